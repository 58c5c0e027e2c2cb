"""A small generator for 8x8 images of three classes in float64, and tasks that have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.nets.prior import Encoder, SmallPrior, draw, to_tensors
from methods.generator import ENCODER


def mini(channels: tuple[int, ...] = (6, 4), shape: tuple[int, int, int] = (1, 8, 8)) -> dict[str, Tensor]:
    """Return the tensors of an untrained generator with four layers, and of an encoder."""
    rng = torch.Generator().manual_seed(2)
    prior = SmallPrior(shape, 3, channels, z_dim=5, w_dim=7)
    encoder = Encoder(prior, 2)
    for network in (prior, encoder):
        draw(network, rng)
        network.double()
    return {**to_tensors(prior), **{ENCODER + name: weight for name, weight in encoder.state_dict().items()}}


def task_with_prior(make_task: Callable[..., Any], **arguments: Any) -> Any:
    """Return a task in float64 that has the generator."""
    task = make_task(**{"dtype": torch.float64, **arguments})
    task.artifacts["generator"] = mini(shape=task.spec.dataset.shape)
    return task
