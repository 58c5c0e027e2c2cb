"""A small unrolled problem in float64, and the loss of trajectory matching on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from bench.unroll import Flat

STEPS, IMAGES, CLASSES = 6, 9, 3


@dataclass
class Loss:
    """Mean cross-entropy of a network at weights [P]."""

    flat: Flat

    def __call__(self, weights, images, labels):
        return F.cross_entropy(self.flat(weights, images), labels)


def toy(seed: int = 0, norm: bool = True):
    """A small ConvNet in float64, its images with uneven chunks, and real images for the outer loss."""
    rng = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(4, 4) if norm else nn.Identity())
    network.extend([nn.Softplus(), nn.Flatten()])
    network.append(nn.Linear(4 * 16, CLASSES)).double()
    for weight in network.parameters():
        weight.data = 0.3 * torch.randn(weight.shape, generator=rng, dtype=torch.float64)
    images = torch.randn(IMAGES, 1, 4, 4, generator=rng, dtype=torch.float64).requires_grad_()
    labels = torch.softmax(torch.randn(IMAGES, CLASSES, generator=rng, dtype=torch.float64), 1).requires_grad_()
    real = torch.randn(20, 1, 4, 4, generator=rng, dtype=torch.float64)
    target = torch.randint(CLASSES, (20,), generator=rng)
    flat = Flat(network)
    chunks = [torch.randperm(IMAGES, generator=rng)[: 3 + t % 3] for t in range(STEPS)]
    rates = 0.1 + 0.2 * torch.rand(STEPS, generator=rng, dtype=torch.float64)
    return {
        "step_loss": Loss(flat),
        "outer_loss": lambda w: F.cross_entropy(flat(w, real), target),
        "weights": flat.vector(),
        "batches": [lambda c=c: (images[c] * 1.5, labels[c]) for c in chunks],
        "rates": rates,
        "leaves": [images, labels],
    }


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def trajectory(problem, goal):
    """The problem with the loss of MTT: where the loop ends, relative to how far the goal was."""
    scale = (problem["weights"] - goal).square().sum()
    return problem | {"outer_loss": lambda w: (w - goal).square().sum() / scale}, scale
