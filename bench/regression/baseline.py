"""A baseline: what one or several unchanged runs measured, and how far such runs lie apart, as one JSON file.

The spread of costs is measured, not guessed. From several runs it is that of the whole runs, the honest one; from a
single run only that between seeds, which knows nothing of a machine that has a slow day, and the file says so.
Logarithms are compared: a cell twice as slow is as far away as one twice as fast.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from bench.errors import UserError
from bench.regression.measured import Cost, Measured, Values, Where
from bench.report.results import DONE
from bench.run.atomic import atomic_write

KINDS = ("cpu", "wall", "MiB")
"""The numbers of a cost that are compared, see `bench.regression.measured.Sample`."""
SECONDS = {"cpu": "cpu_seconds", "wall": "seconds"}
"""The seconds behind those that are multiples of the calibration."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Spread(_Strict):
    """Standard deviation of logarithms, pooled over all costs, with its degrees of freedom."""

    std: float
    df: int
    over: Literal["runs", "seeds"]


class Known(_Strict):
    """One cost: by kind one number per run (medians over seeds) and its own standard deviation of logarithms."""

    name: str
    digest: str
    hardware: str
    seeds: int
    values: dict[str, list[float]]
    seconds: dict[str, float]
    spread: dict[str, float]


class Accuracy(_Strict):
    """The fractions measured in one place, by seed and replicate; means over the runs."""

    where: Where
    values: dict[int, dict[int, float]]


class Baseline(_Strict):
    """What a run is compared with. runs: where the numbers come from. cells: evaluations that had a result."""

    version: Literal[1] = 1
    suite: str
    preset: str
    runs: list[dict[str, Any]]
    spread: dict[str, Spread]
    cells: list[str]
    accuracy: list[Accuracy]
    costs: list[Known]


def make(measured: Sequence[Measured], *, with_failures: bool = False) -> Baseline:
    """Return the baseline of one or several runs of one suite and preset.

    Raises `UserError` where they are of different ones, and for failed cells unless `with_failures`.
    """
    first = measured[0]
    for one in measured:
        if (one.suite, one.preset) != (first.suite, first.preset):
            raise UserError(
                f"runs of different suites: {first.suite} ({first.preset}), {one.suite} ({one.preset})",
                hint="a baseline holds repeats of one suite and preset",
            )
        lost = [f"{name}: {state}" for name, (state, _) in one.cells.items() if state not in DONE]
        if lost and not with_failures:
            raise UserError(
                f"{len(lost)} cells have no result, the first is {lost[0]}",
                hint="run the suite to its end, or accept them with --with-failures",
            )
    done = [{name for name, (state, _) in one.cells.items() if state in DONE} for one in measured]
    places = list(dict.fromkeys(where for one in measured for where in one.accuracy))
    costs, several = _by_identity(measured), len(measured) > 1
    return Baseline(
        suite=first.suite,
        preset=first.preset,
        runs=[one.origin for one in measured],
        spread={kind: found for kind in KINDS if (found := _spread(costs, kind, several))},
        cells=sorted(set.intersection(*done)),
        accuracy=[
            Accuracy(where=where, values=_mean([one.accuracy.get(where, {}) for one in measured])) for where in places
        ],
        costs=[_known(found, several) for found in costs],
    )


def load(file: Path) -> Baseline:
    """Read a baseline. Raises `UserError` where there is none or it cannot be understood."""
    try:
        return Baseline.model_validate_json(file.read_bytes())
    except OSError:
        hint = "write one with `ddbench check RUN... --update --baseline FILE`"
        raise UserError(f"there is no baseline {file}", hint=hint) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"not a baseline: {place}: {first['msg']}", where=str(file)) from None


def save(file: Path, baseline: Baseline) -> None:
    """Write a baseline, one line per cell, place and cost, so that differences of two versions can be read."""
    parts = []
    for name, value in baseline.model_dump(mode="json").items():
        rows = ",\n".join(f"  {json.dumps(row)}" for row in value) if isinstance(value, list) else ""
        parts.append(f' "{name}": [\n{rows}\n ]' if rows else f' "{name}": {json.dumps(value)}')
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file, "w") as stream:
        stream.write("{\n" + ",\n".join(parts) + "\n}\n")


# ------------------------------------------------------------------------------------ from runs to numbers


def _mean(runs: Sequence[Values]) -> Values:
    """Return the mean over the runs of every value; equal ones, as one machine gives, stay equal to the last digit."""
    found: dict[int, dict[int, list[float]]] = {}
    for run in runs:
        for seed, replicates in run.items():
            for replicate, value in replicates.items():
                found.setdefault(seed, {}).setdefault(replicate, []).append(value)
    return {seed: {e: statistics.mean(values) for e, values in own.items()} for seed, own in found.items()}


def _by_identity(measured: Sequence[Measured]) -> list[list[Cost]]:
    """Return the costs of one name, setting and hardware together, one for each run that has it."""
    found: dict[tuple[str, str, str], list[Cost]] = {}
    for one in measured:
        for cost in one.costs:
            found.setdefault((cost.name, cost.digest, cost.hardware), []).append(cost)
    return list(found.values())


def _known(costs: Sequence[Cost], several: bool) -> Known:
    first = costs[0]
    values = {kind: [value for cost in costs if (value := cost.median(kind)) is not None] for kind in KINDS}
    logs = {kind: _logarithms(costs, kind, several) for kind in KINDS}
    return Known(
        name=first.name,
        digest=first.digest,
        hardware=first.hardware,
        seeds=len(first.samples),
        values={kind: found for kind, found in values.items() if found},
        seconds={kind: float(np.mean([cost.median(kind) for cost in costs])) for kind in SECONDS.values()},
        spread={kind: float(np.std(found, ddof=1)) for kind, found in logs.items() if len(found) > 1},
    )


def _logarithms(costs: Sequence[Cost], kind: str, several: bool) -> list[float]:
    """Return what varies: the medians of several runs, or the seeds of a single one; nothing of short cells."""
    if kind in SECONDS and any(cost.short(SECONDS[kind]) for cost in costs):
        return []
    values = [cost.median(kind) for cost in costs] if several else [getattr(one, kind) for one in costs[0].samples]
    return [math.log(value) for value in values if value is not None]


def _spread(groups: Sequence[Sequence[Cost]], kind: str, several: bool) -> Spread | None:
    """Return the spread of a kind pooled over all costs, None where nothing was measured twice."""
    rows = [np.array(logs) for costs in groups if len(logs := _logarithms(costs, kind, several)) > 1]
    if not rows:
        return None
    df = sum(len(row) - 1 for row in rows)
    std = (sum(float(((row - row.mean()) ** 2).sum()) for row in rows) / df) ** 0.5
    return Spread(std=std, df=df, over="runs" if several else "seeds")
