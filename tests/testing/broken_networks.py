"""Networks that break one rule each, and one that breaks none."""

from __future__ import annotations

import torch
from torch import nn

from bench.nets.layers import Network


def right(spec, shape, classes):
    inputs = shape[0] * shape[1] * shape[2]
    width = spec.width or 8
    return Network(nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.Tanh()), width, classes)


def no_width(spec, shape, classes):
    return right(spec.model_copy(update={"width": 8}), shape, classes)


def no_head(spec, shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


def wrong_size(spec, shape, classes):
    network = right(spec, shape, classes)
    network.feature_size = 9
    return network


class Around(Network):
    """The network that is right, with something around its logits."""

    def __init__(self, shape, classes, around):
        inner = right(type("Spec", (), {"width": 8}), shape, classes)
        super().__init__(inner.body, 8, classes)
        self.around = around

    def features(self, images):
        return self.around(self.body(images))

    def forward(self, images):
        return self.head(self.features(images))


def dropout(spec, shape, classes):
    generator = torch.Generator("cpu").manual_seed(0)
    return Around(shape, classes, lambda x: x + torch.rand(x.shape, generator=generator, dtype=x.dtype))


def sees_batch(spec, shape, classes):
    return Around(shape, classes, lambda x: x - x.mean(0))


def unused(spec, shape, classes):
    network = right(spec, shape, classes)
    network.spare = nn.Linear(3, 3)
    return network


def flat(spec, shape, classes):
    """Its logits do not depend on the images in a way that has a gradient."""
    return Around(shape, classes, lambda x: x.detach() + 0 * x)


def unstackable(spec, shape, classes):
    return Around(shape, classes, lambda x: x if bool(x.isfinite().all()) else 0 * x)
