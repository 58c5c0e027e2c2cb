"""Made-up measured runs: a base that never changes, and repeats of it with the noise that real runs have."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from bench.regression.measured import Cost, Measured, Sample, Where

METHODS = {"random": 0.60, "dm": 0.85, "dsa": 0.84, "kip": 0.88}
IPCS = (1, 10, 50)
HARDWARE = "system Linux x86_64, cpu made up, device cpu, threads 1"
SET, NETWORK = 0.002, 0.005
"""Deviations of accuracy by sets and networks: digits, kernels for AVX2 against those for AVX-512, same seeds."""
CPU, WALL, MEMORY = 0.12, 0.5, 0.002
"""Deviations of the logarithm from run to run, on two cores with eight busy processes."""


def base(seeds: int = 2, replicates: int = 2) -> Measured:
    """Return the run all others repeat: every method, IPC, seed and network has numbers of its own."""
    rng = np.random.default_rng(0)
    accuracy, cells, costs = {}, {}, []
    for label, level in METHODS.items():
        for ipc in IPCS:
            where = Where("digits", label, ipc, "accuracy", "accuracy", "convnet", "convnet", "review", "last", "")
            level = min(0.95, level + 0.03)
            accuracy[where] = {
                seed: {e: level + rng.normal(0, 0.03) for e in range(replicates)} for seed in range(seeds)
            }
            for seed in range(seeds):
                cells[f"accuracy of {label}, digits, ipc {ipc}, seed {seed}"] = ("ok", "")
            for name in (f"distil {label}", f"train convnet on {label}"):
                took = rng.uniform(0.5, 5)
                sample = Sample(took / 0.002, took / 0.002, took, took, 40.0 if "distil" in name else None)
                costs.append(Cost(f"{name}, digits, ipc {ipc}", "settings", HARDWARE, [sample] * seeds))
    return Measured("made_up", "laptop", accuracy, cells, costs, {"ddbench": ["0.1.0"], "hardware": [HARDWARE]})


def repeat(rng: np.random.Generator, run: Measured | None = None, noise: float = 1.0) -> Measured:
    """Return an unchanged run with noise on every number."""
    found = copy.deepcopy(run or base())
    for values in found.accuracy.values():
        for seed, own in values.items():
            luck = rng.normal(0, noise * SET)
            values[seed] = {e: value + luck + rng.normal(0, noise * NETWORK) for e, value in own.items()}
    for cost in found.costs:
        cost.samples = [_noisy(rng, one, noise) for one in cost.samples]
    return found


def _noisy(rng: np.random.Generator, sample: Sample, noise: float) -> Sample:
    cpu, wall, memory = np.exp(noise * rng.normal(0, [CPU, WALL, MEMORY]))
    return Sample(
        sample.cpu * cpu, sample.wall * wall, sample.cpu_seconds * cpu, sample.seconds * wall,
        sample.MiB and sample.MiB * memory,
    )  # fmt: skip


def lose(run: Measured, label: str, points: float, ipcs: tuple[int, ...] = IPCS) -> Measured:
    """Take points of accuracy from a method."""
    for where, values in run.accuracy.items():
        if where.label == label and where.ipc in ipcs:
            run.accuracy[where] = {s: {e: v - points / 100 for e, v in own.items()} for s, own in values.items()}
    return run


def slow(run: Measured, name: str, factor: float, memory: float = 1.0) -> Measured:
    """Multiply what the cells of a name took."""
    for cost in run.costs:
        if name in cost.name:
            cost.samples = [
                replace(
                    one,
                    **{kind: factor * getattr(one, kind) for kind in ("cpu", "wall", "cpu_seconds", "seconds")},
                    MiB=one.MiB and memory * one.MiB,
                )
                for one in cost.samples
            ]
    return run
