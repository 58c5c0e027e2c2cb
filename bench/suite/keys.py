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
from functools import cache
from typing import Any

from pydantic_core import to_jsonable_python

from bench.api import NetSpec, TaskSpec, Training

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


@cache
def network_fields(network: NetSpec) -> dict[str, Any]:
    """Return a network as plain JSON values: one dict for all cells, never to be changed."""
    return network.model_dump(mode="json")


def recipe_fields(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe as plain JSON values: one dict for all equal ones, never to be changed."""
    return _read(json.dumps(dict(recipe), default=to_jsonable_python))


_read = cache(json.loads)


def task_config(spec: TaskSpec, data: str) -> dict[str, Any]:
    """Return what identifies a task. data: fingerprint of the dataset, which stands for all its facts."""
    return {
        "dataset": spec.dataset.name,
        "data": data,
        "ipc": spec.ipc,
        "network": network_fields(spec.network),
        "preprocessing": spec.preprocessing,
        "augment": spec.augment,
        "seed": spec.seed,
    }


def training_fields(training: Training) -> dict[str, Any]:
    """Return a request for trained networks as plain JSON values, exactly as the evaluator made it."""
    fields = {
        "network": network_fields(training.network),
        "recipe": recipe_fields(training.recipe),
        "replicates": training.replicates,
        "snapshot": training.snapshot,
        "weights": training.weights,
    }
    later = {"sets": training.sets, "rates": training.rates}
    return fields | {name: to_jsonable_python(value) for name, value in later.items() if value}
