"""Identity of cells: the configuration says everything a result depends on, and the key is its hash.

A key is the first 20 hex digits of the sha256 of the configuration's canonical JSON. What is in the configuration
changes the key; what only says where and how fast something runs (device, time limit, number of jobs) is not in it.
A file whose sha256 stands beside its path is known by the hash: the path says where it lies and is not in the key.
Keys of older results must never change their meaning: tests hold golden keys and a list of every field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_jsonable_python

from bench.api import TaskSpec, Training

KEY_LENGTH = 20
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def canonical(value: Any) -> str:
    """Return JSON with sorted keys, no spaces and ASCII only: equal values give equal text."""
    return _ENCODER.encode(value)


def key(config: Mapping[str, Any]) -> str:
    """Return the key of a configuration."""
    params = config.get("params")
    if isinstance(params, Mapping) and params.get("sha256") and "file" in params:
        config = {**config, "params": {name: value for name, value in params.items() if name != "file"}}
    return hashlib.sha256(canonical(config).encode()).hexdigest()[:KEY_LENGTH]


def task_config(spec: TaskSpec, data: str) -> dict[str, Any]:
    """Return what identifies a task. data: fingerprint of the dataset, which stands for all its facts."""
    return {
        "dataset": spec.dataset.name,
        "data": data,
        "ipc": spec.ipc,
        "network": spec.network.model_dump(mode="json"),
        "preprocessing": spec.preprocessing,
        "augment": spec.augment,
        "seed": spec.seed,
    }


def training_fields(training: Training) -> dict[str, Any]:
    """Return a request for trained networks as plain JSON values, exactly as the evaluator made it."""
    fields = {
        "network": training.network,
        "recipe": training.recipe,
        "replicates": training.replicates,
        "snapshot": training.snapshot,
        "weights": training.weights,
    }
    later = {"sets": training.sets, "rates": training.rates}
    return to_jsonable_python(fields | {name: value for name, value in later.items() if value})
