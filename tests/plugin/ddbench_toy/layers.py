"""The toy network itself."""

from __future__ import annotations

from torch import nn

from bench.api import NetSpec
from bench.nets.layers import Network


def toy_net(spec: NetSpec, shape: tuple[int, int, int], classes: int) -> Network:
    """Return one hidden layer of `width` units."""
    assert spec.width is not None
    inputs = shape[0] * shape[1] * shape[2]
    return Network(nn.Sequential(nn.Flatten(), nn.Linear(inputs, spec.width), nn.Tanh()), spec.width, classes)
