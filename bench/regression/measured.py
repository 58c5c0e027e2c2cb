"""What a results folder says that can be compared with another one: accuracies, costs of cells, what has a result.

Accuracies come from records.jsonl. Costs come from the cells themselves: seconds on the wall and of CPU, those of one
step of the calibration (`bench.run.usage`), and the peak of memory of a distillation. A folder without its cells, as
results are published, has accuracies only.

A cost belongs to a name (a cell without its seed) and a digest of all settings of the cell, versions apart: what
another batch size costs says nothing about the code.
"""

from __future__ import annotations

import hashlib
import re
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bench.report import results as runs
from bench.report.results import DONE, Results, rows_of
from bench.run.store import Damaged, Store
from bench.run.usage import SHORT, VERSION
from bench.suite.keys import canonical

METRICS = (
    "accuracy", "krr_accuracy", "corruption_accuracy", "common_accuracy", "continual_accuracy", "average_accuracy",
    "cluster_min", "group_min",
)  # fmt: skip
"""Metrics that are compared: fractions of test images of which more is better."""
HARDWARE = ("system", "cpu", "device", "gpu", "threads")
"""What must be equal for seconds to be comparable; of the provenance of every cell."""
SMALL = 16.0
"""MiB: a peak below this is mostly what the libraries take at their first call, and counts as if it were this."""
NEAR, FEW = 5.0, 5
"""Seconds around a cell in which calibrations tell how fast the machine was, and how many of them are enough."""


class Where(NamedTuple):
    """What one accuracy is of; networks and seeds are what it is averaged over."""

    dataset: str
    label: str
    ipc: int | None
    evaluator: str
    metric: str
    network: str
    distil_network: str
    recipe: str
    selection: str
    tags: str


Values = dict[int, dict[int, float]]
"""Measured fractions by seed and replicate (0 where a measure has no replicate)."""


@dataclass(frozen=True)
class Sample:
    """What one cell took.

    cpu, wall: seconds as multiples of one step of the calibration near that time, `SHORT` ones as if of that length.
    cpu_seconds, seconds: as measured. MiB: peak of a distillation, `SMALL` ones as if of that size; None for other
    cells.
    """

    cpu: float
    wall: float
    cpu_seconds: float
    seconds: float
    MiB: float | None


@dataclass
class Cost:
    """What the cells of one name and one setting took on one kind of hardware: one sample per seed."""

    name: str
    digest: str
    hardware: str
    samples: list[Sample] = field(default_factory=list)

    def median(self, what: str) -> float | None:
        """Return the median over the seeds, None where no seed has that number."""
        values = [value for sample in self.samples if (value := getattr(sample, what)) is not None]
        return statistics.median(values) if values else None

    def short(self, unit: str) -> bool:
        """Return whether the cells are too short for their seconds to mean anything."""
        return (self.median(unit) or 0.0) < SHORT


@dataclass
class Measured:
    """One results folder. cells: name -> (state, reason) of every evaluation. origin: provenance of the run."""

    suite: str
    preset: str
    accuracy: dict[Where, Values]
    cells: dict[str, tuple[str, str]]
    costs: list[Cost]
    origin: dict[str, Any]


def read(folder: Path) -> Measured:
    """Read a results folder. Raises `UserError` where it holds no run, or a damaged one."""
    results = runs.load(folder)
    cells: dict[str, tuple[str, str]] = {}
    for row in rows_of(results.plan[results.plan["kind"] == "evaluate"]):
        if cells.get(row.cell, ("ok", ""))[0] in DONE:  # of several cells of one name the failed one counts
            cells[row.cell] = results.cause(row.key)
    store = Store(folder)
    stored = [found for key in dict.fromkeys(results.plan["key"]) if (found := _result(store, key))]
    whole = [found for found in stored if _is_whole(found)]
    machines = _machines(whole)
    origin = _origin(stored, machines)
    return Measured(results.suite, results.preset, _accuracies(results), cells, _costs(whole, machines), origin)


def _accuracies(results: Results) -> dict[Where, Values]:
    """Return the accuracies of final sets."""
    records = results.records
    records = records[records["metric"].isin(METRICS) & (records["unit"] == "fraction") & records["step"].isna()]
    found: dict[Where, Values] = {}
    for row in rows_of(records):
        where = Where(**{name: getattr(row, name) for name in Where._fields})._replace(ipc=_number(row.ipc))
        found.setdefault(where, {}).setdefault(_number(row.seed) or 0, {})[_number(row.replicate) or 0] = row.value
    return found


def _number(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


# ------------------------------------------------------------------------------------ what the cells tell


def _result(store: Store, key: str) -> dict[str, Any] | None:
    """Return the result of a cell, None where there is none or it is damaged."""
    try:
        return store.result(key)
    except Damaged:
        return None


def _is_whole(result: dict[str, Any]) -> bool:
    """Return whether a cell was measured from its begin to its end in a process of its own.

    A process that computes several cells pays for imports and caches in the first of them.
    """
    usage = result.get("usage")
    return usage is not None and usage["own_process"] and not usage["resumed"]


class _Machine:
    """How fast one kind of hardware was in the course of a run.

    measured: (time, CPU seconds, seconds) of one step of the calibration at the end of a cell.

    The steps after one cell see one moment of it, and their mean over a run nothing of the minutes in which a shared
    machine is slow. Measured on two cores by two runs of the laptop preset, as the standard deviation of the logarithm
    of the ratio between the times of equal cells: 0.24 by the mean over the run, 0.23 by the steps of the cell itself,
    0.16 by those of all cells that ended in its course or within `NEAR` seconds of it.
    """

    def __init__(self, measured: Iterable[tuple[float, float, float]]) -> None:
        self.times, cpu, wall = zip(*sorted(measured), strict=True)
        self.cpu, self.wall = ([0.0, *accumulate(values)] for values in (cpu, wall))

    def step(self, begin: float = -inf, end: float = inf) -> tuple[float, float]:
        """Return the mean CPU seconds and seconds of a step near that time; of the run where those are `FEW`."""
        first, last = bisect_left(self.times, begin - NEAR), bisect_right(self.times, end + NEAR)
        if last - first < FEW:
            first, last = 0, len(self.times)
        cpu, wall = ((sums[last] - sums[first]) / (last - first) for sums in (self.cpu, self.wall))
        return cpu, wall


def _machines(stored: list[dict[str, Any]]) -> dict[str, _Machine]:
    """Return the speeds of the hardware that the cells were computed on."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for result in stored:
        step = result["usage"]["calibration"]
        if step and step["version"] == VERSION:
            found.setdefault(_hardware(result), []).append(
                (_time(result, "finished"), step["cpu_seconds"], step["seconds"])
            )
    return {name: _Machine(rows) for name, rows in found.items()}


def _time(result: dict[str, Any], what: str) -> float:
    return datetime.fromisoformat(result[what]).timestamp()


def _costs(stored: list[dict[str, Any]], machines: dict[str, _Machine]) -> list[Cost]:
    """Return what the cells took by name, settings and hardware; nothing where no cell was calibrated."""
    found: dict[tuple[str, str, str], Cost] = {}
    for result in stored:
        hardware, usage = _hardware(result), result["usage"]
        if hardware not in machines:
            continue
        cpu_step, step = machines[hardware].step(_time(result, "started"), _time(result, "finished"))
        name, digest = re.sub(r", seed \d+", "", result["label"]), _digest(result["config"])
        peaks = [result.get("profile", {}).get(f"peak_{where}_MiB") for where in ("device", "host")]
        memory = next((peak for peak in peaks if peak is not None), None)
        sample = Sample(
            max(SHORT, usage["cpu_seconds"]) / cpu_step,
            max(SHORT, usage["seconds"]) / step,
            usage["cpu_seconds"],
            usage["seconds"],
            None if memory is None else max(SMALL, memory),
        )
        cost = found.setdefault((name, digest, hardware), Cost(name, digest, hardware))
        cost.samples.append(sample)
    return list(found.values())


def _digest(config: dict[str, Any]) -> str:
    """Return a hash of the settings of a cell without version, inputs (keys, which hold versions) and seed."""
    own = {name: value for name, value in config.items() if name not in ("version", "inputs")}
    if "task" in own:
        own["task"] = {name: value for name, value in own["task"].items() if name != "seed"}
    return hashlib.sha256(canonical(own).encode()).hexdigest()[:12]


def _hardware(result: dict[str, Any]) -> str:
    origin = dict(result["provenance"])
    if "device" in origin:
        origin["device"] = origin["device"].partition(":")[0]  # older results name one of several equal GPUs
    return ", ".join(f"{name} {origin[name]}" for name in HARDWARE if name in origin)


def _origin(stored: list[dict[str, Any]], machines: dict[str, _Machine]) -> dict[str, Any]:
    """Return when, by which code and on what the cells were computed; different values are all named."""
    facts = {name: _values(stored, name) for name in ("ddbench", "commit", "dirty", "python", "packages")}
    times = sorted(result[name] for result in stored for name in ("started", "finished"))
    calibration = {
        name: dict(zip(("cpu_seconds", "seconds"), one.step(), strict=True)) for name, one in machines.items()
    }
    return {
        **facts,
        "started": times[:1],
        "finished": times[-1:],
        "hardware": sorted({_hardware(one) for one in stored}),
        "calibration": calibration,
    }


def _values(stored: list[dict[str, Any]], name: str) -> list[Any]:
    values = {canonical(value): value for one in stored if (value := one["provenance"].get(name)) is not None}
    return [values[text] for text in sorted(values)]
