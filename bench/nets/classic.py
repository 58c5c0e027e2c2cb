"""MLP, LeNet, AlexCifarNet, AlexNet and VGG in the small-image forms the field evaluates with.

Sizes are those for 32 pixels. Larger images end in adaptive pooling; on smaller ones a pooling is left out where
the map would fall below what the head takes, so that the number of parameters is the same for every image size.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from bench.api import NetSpec
from bench.nets.layers import Network, Size, adapt, extra_padding, halved, norm_layer, sizes
from bench.nets.spec import Shape, inner_size


def mlp(spec: NetSpec, shape: Shape, classes: int) -> Network:
    """Return two hidden layers of `width` units with ReLU."""
    inputs, (_, width) = shape[0] * shape[1] * shape[2], sizes(spec)
    layers = [nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return Network(nn.Sequential(*layers), width, classes)


def lenet(spec: NetSpec, shape: Shape, classes: int) -> Network:
    """Return LeNet-5: two 5 x 5 convolutions, 400-120-84 units. Images under 32 pixels are padded by 2."""
    size: Size = shape[1:]
    layers: list[nn.Module] = []
    # 400 = 16 maps of 5 x 5, from 32 pixels by two unpadded convolutions; smaller maps are padded instead
    for inputs, outputs, unpadded in ((shape[0], 6, 32), (6, 16, 14)):
        padding = 0 if min(size) >= unpadded else 2
        size = (size[0] - 4 + 2 * padding, size[1] - 4 + 2 * padding)
        layers += [nn.Conv2d(inputs, outputs, 5, padding=padding), nn.ReLU()]
        if min(halved(size)) >= 5:
            layers.append(nn.MaxPool2d(2))
            size = halved(size)
    layers += [*adapt(size, 5), nn.Flatten()]
    layers += [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
    return Network(nn.Sequential(*layers), 84, classes)


def alexcifar(spec: NetSpec, shape: Shape, classes: int) -> Network:
    """Return AlexCifarNet of Dataset Distillation (2018): two 5 x 5 convolutions with local response norm.

    Maps of 8 x 8, then 384 and 192 units (6 and 3 times `width`).
    """
    _, width = sizes(spec)
    size = inner_size(shape)
    layers: list[nn.Module] = []
    for index in range(2):
        padding = 2 + (0 if index else extra_padding(shape))
        layers += [nn.Conv2d(width if index else shape[0], width, 5, padding=padding), nn.ReLU()]
        response = nn.LocalResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1)
        smaller = (size[0] + 1) // 2, (size[1] + 1) // 2
        pool: list[nn.Module] = []
        if min(smaller) >= 8:
            pool, size = [nn.MaxPool2d(3, stride=2, padding=1)], smaller
        layers += [response, *pool] if index else [*pool, response]
    layers += [*adapt(size, 8), nn.Flatten()]
    layers += [nn.Linear(64 * width, 6 * width), nn.ReLU(), nn.Linear(6 * width, 3 * width), nn.ReLU()]
    return Network(nn.Sequential(*layers), 3 * width, classes)


def alexnet(spec: NetSpec, shape: Shape, classes: int) -> Network:
    """Return AlexNet with 5 convolutions and one linear layer on a 4 x 4 map. The norm stands before each ReLU."""
    norm, base = sizes(spec)
    widths = [base, base * 3 // 2, base * 2, base * 3 // 2, base * 3 // 2]
    channels, size = shape[0], inner_size(shape)
    layers: list[nn.Module] = []
    for index, width in enumerate(widths):
        kernel = 5 if index < 2 else 3
        padding = kernel // 2 + (0 if index else extra_padding(shape))
        layers.append(nn.Conv2d(channels, width, kernel, padding=padding))
        if norm != "none":
            layers.append(norm_layer(norm, width))
        layers.append(nn.ReLU())
        if index in (0, 1, 4) and min(halved(size)) >= 4:
            layers.append(nn.MaxPool2d(2))
            size = halved(size)
        channels = width
    layers += [*adapt(size, 4), nn.Flatten()]
    return Network(nn.Sequential(*layers), channels * 16, classes)


_VGG_STAGES = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions in each of the five stages; a max pooling ends each stage."""


def _vgg(layers: int, spec: NetSpec, shape: Shape, classes: int) -> Network:
    """Return VGG: 3 x 3 convolutions of 1, 2, 4, 8, 8 times `width` channels and one linear layer.

    Before the last stage ends, no pooling may leave a single pixel: a norm over it would erase the image.
    """
    norm, base = sizes(spec)
    channels, size = shape[0], inner_size(shape)
    body: list[nn.Module] = []
    for stage, convolutions in enumerate(_VGG_STAGES[layers]):
        width = base * min(8, 2**stage)
        for index in range(convolutions):
            padding = 1 + (0 if stage or index else extra_padding(shape))
            body.append(nn.Conv2d(channels, width, 3, padding=padding))
            if norm != "none":
                body.append(norm_layer(norm, width))
            body.append(nn.ReLU())
            channels = width
        if min(halved(size)) >= (1 if stage == 4 else 2):
            body.append(nn.MaxPool2d(2))
            size = halved(size)
    body += [*adapt(size, 1), nn.Flatten()]
    return Network(nn.Sequential(*body), channels, classes)


vgg11, vgg13, vgg16, vgg19 = (partial(_vgg, layers) for layers in _VGG_STAGES)
