"""Rough costs of cells, so that the scheduler starts the long ones first. Only their order matters.

The unit is one million pixels seen once by the default ConvNet; factors of other networks are their multiply-adds
per 32-pixel image relative to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from bench.api import Params, TaskSpec
from bench.suite.resolve import Variant

EVALUATION = 0.01
"""Weight of an evaluation: its networks are trained already."""

NETWORK_COST = {"mlp": 0.01, "lenet": 0.02, "alexnet": 4.8, "vgg11": 3.0, "resnet18": 11.0, "resnet18_ap": 14.7}
REAL_BATCH = 256
ARTIFACT_EPOCHS = 50


def distillation(variant: Variant) -> float:
    """Return the weight of a distillation: its steps, with a batch of real and the synthetic images of each class."""
    info, ipc = variant.task.dataset, variant.task.ipc or 0
    inner = _number(getattr(variant.params, "outer_loop", 1)) * _number(getattr(variant.params, "inner_loop", 1))
    batch = min(REAL_BATCH, info.train_size // info.classes) + ipc
    return 0.01 + variant.steps * inner * info.classes * batch * prod(info.shape) / 1e6


def training(config: Mapping[str, Any], spec: TaskSpec) -> float:
    """Return the weight of networks trained on a distilled set."""
    info, params, recipe = spec.dataset, config["params"], config["params"]["recipe"]
    images = info.train_size if spec.ipc is None else info.classes * spec.ipc
    seen = images * _number(recipe.get("epochs"), 0) or _number(recipe.get("steps"), 100) * _number(recipe.get("batch"))
    cost = NETWORK_COST.get(params["network"]["arch"], 1.0) * (_number(params["network"]["width"], 128) / 128) ** 2
    cost *= len(params.get("rates", ())) or 1
    return 0.01 + _number(params["replicates"]) * cost * (seen + info.test_size) * prod(info.shape) / 1e6


def artifact(params: Params, spec: TaskSpec) -> float:
    """Return the weight of an artifact: about that of training on the real images."""
    epochs = _number(getattr(params, "epochs", None), ARTIFACT_EPOCHS)
    return epochs * spec.dataset.train_size * prod(spec.dataset.shape) / 1e6


def _number(value: Any, default: float = 1) -> float:
    """Return a number, or a default for None and for what a plug-in means by the same name."""
    return value if isinstance(value, int | float) else default
