"""The rules of evaluators, checked on the set of a small method and networks trained on it for two epochs."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bench.api import Evaluator, Measure, Record
from bench.registry import EVALUATORS, METHODS
from bench.run import outputs
from bench.testing.planning import check_planning
from bench.testing.rules import RUNAWAY, Clock, elsewhere, ensure, limit, name_of, one_thread
from bench.testing.workbench import TINY, Workbench, ensure_data_untouched, plan

UNITS = ("fraction", "ratio", "s", "MiB", "steps", "images", "groups", "times", "nats", "bits", "score")
"""Units of measures. A ratio may exceed 1; `score` is any other number; what counts things is named by them."""
IDENTITY = ("metric", "network", "recipe", "selection", "replicate", "step", "tags")
SHORTER = "a check takes seconds on the debug data: pass `params` that make it short"


def check_evaluator(
    evaluator: str | type[Evaluator],
    params: Mapping[str, Any] | None = None,
    *,
    method: str = "random",
    method_params: Mapping[str, Any] | None = None,
    signed: Collection[str] = (),
    units: Collection[str] = (),
    dataset: str = "debug",
    ipc: int = 2,
    network: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> list[Measure]:
    """Check an evaluator by its name, `module:attribute` or class; raise `AssertionError` for the first broken rule.

    params: as in a suite; give those that make it short. method, method_params: what made the set it looks at. signed:
    metrics in fractions that may lie outside of 0 to 1, such as differences. units: further units it measures in.
    network: to distil and evaluate with. recipe: of the networks, default `review` for two epochs.

    Checked: planning without torch; finite measures in known units, each said once; the same measures again from the
    same inputs; global generators and real data untouched. Returns the measures, for tests of what they are.
    """
    name = name_of(evaluator, EVALUATORS)
    check_planning(("evaluator", name, params))
    suite = {
        "grid": {
            "datasets": [dataset],
            "methods": [{"name": name_of(method, METHODS), "params": dict(method_params or {})}],
            "ipc": [ipc],
            "network": network or TINY,
        },
        "evaluation": {"recipe": dict(recipe or {"base": "review", "epochs": 2}), "replicates": 2},
        "evaluators": [{"name": name, "params": dict(params or {})}],
    }
    who = f"evaluator {name!r}"
    with tempfile.TemporaryDirectory() as temporary, one_thread(device) as resolved:
        folder = Path(temporary)
        cells = plan(folder, suite)
        clock = Clock(limit(resolved) * RUNAWAY, who, SHORTER)
        workbench = Workbench(folder / "cells", resolved, clock)
        last = next(cell for cell in cells if cell.kind == "evaluate")
        for cell in cells:
            if cell is not last:
                with elsewhere(1, f"what {who} builds on"):
                    workbench.make(cell)
        measures = _measured(workbench, last, 2, who)
        again = _measured(workbench, last, 3, who)
    _check_measures(measures, {*UNITS, *units}, set(signed), last, who)
    ensure(
        [_plain(one) for one in measures] == [_plain(one) for one in again],
        f"{who} measures something else when it looks at the same networks and set again",
        "measures depend on the inputs and task.rng(name) alone",
    )
    return measures


def _measured(workbench: Workbench, cell: Any, seed: int, who: str) -> list[Measure]:
    kind = EVALUATORS.get(cell.config["evaluator"])
    task = workbench.task(cell)
    with elsewhere(seed, who):
        measures = kind(kind.Params.model_validate_json(json.dumps(cell.config["params"]))).evaluate(task)
    ensure(isinstance(measures, list), f"{who} returns a {type(measures).__name__}", "evaluate returns a list")
    ensure_data_untouched(task, who)
    return measures


def _plain(measure: Measure) -> dict[str, Any]:
    return {**vars(measure), "value": float(measure.value), "tags": dict(measure.tags)}


def _check_measures(measures: list[Measure], units: set[str], signed: set[str], cell: Any, who: str) -> None:
    """Ensure that measures are numbers that tables can show."""
    ensure(bool(measures), f"{who} measures nothing", "an evaluator returns measures, or raises UserError")
    seen: set[str] = set()
    for one in measures:
        ensure(isinstance(one, Measure), f"{who} returns {one!r}", "evaluate returns bench.api.Measure objects")
        value, metric = float(one.value), one.metric
        ensure(
            math.isfinite(value), f"{metric} of {who} is {value}", "measures are finite; leave out what is not known"
        )
        known = ", ".join(sorted(units))
        ensure(one.unit in units, f"{metric} of {who} has the unit {one.unit!r}", f"units are {known}, or in `units`")
        if one.unit == "fraction" and metric not in signed:
            ensure(
                0 <= value <= 1,
                f"{metric} of {who} is {value}",
                "fractions are stored as 0 to 1, percents are only printed; differences are named in `signed`",
            )
        identity = json.dumps({**{key: getattr(one, key) for key in IDENTITY}, "tags": dict(one.tags)}, sort_keys=True)
        ensure(
            identity not in seen, f"{who} measures {identity} twice", "what differs between measures is in their tags"
        )
        seen.add(identity)
        _check_record(one, cell, who)


def _check_record(measure: Measure, cell: Any, who: str) -> None:
    """Ensure that a measure becomes a line of records.jsonl."""
    place = {name: cell.coords.get(name) for name in outputs.PLACE}
    try:
        Record.model_validate({"suite": "", "preset": "", **place, **_plain(measure), "cell": cell.key})
    except ValueError as error:
        raise AssertionError(f"{measure.metric} of {who} cannot be recorded: {error}") from error
