"""What a suite would take on this machine, before it runs: hours and memory, from short trials of its cells.

    estimate(plan, store) -> a row for each method, dataset and IPC, and totals

Cells that are in the store cost nothing; seconds of results there are taken for equal cells. What is left is tried for
a few seconds (`bench.run.calibrate`), one trial for all cells that differ in nothing that matters: seeds do not, nor
does the method behind a training on equally many images. Trials run one after the other, each in a fresh process; so
what cells that run at once take from each other (cores, bandwidth) is not in the numbers.

Seconds of a cell = starting its process and reading its inputs + what the computation is expected to take.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.errors import UserError
from bench.run import Store, devices, run_plan
from bench.run.progress import duration
from bench.run.store import Damaged
from bench.suite.cells import Cell
from bench.suite.keys import canonical, key

MIB = 2**20
BUDGET = 3.0
"""Seconds of a trial, beside what cannot be interrupted: a step, an epoch, an evaluation."""
PATIENCE = 60.0
"""A trial ends at the latest after so many times its budget."""
NEVER = "not measured"
KINDS = ("distil", "prepare", "evaluate")
"""Kinds of cells; networks that are trained on a set are prepared for its evaluation."""


@dataclass
class Cost:
    """What one cell takes. seconds: None where it is not known, for the reason in `note`; MiB where measured."""

    seconds: float | None
    host: float | None = None
    device: float | None = None
    note: str = ""


@dataclass
class Row:
    """The cells of one method, dataset and IPC. todo: those not in the store; seconds: of one cell, by kind (mean)."""

    label: str
    dataset: str
    ipc: int | None
    cells: int = 0
    todo: int = 0
    total: float = 0.0
    kinds: dict[str, list[float]] = field(default_factory=dict)
    host: float = 0.0
    device: float = 0.0
    fits: bool = True
    notes: dict[str, None] = field(default_factory=dict)

    def each(self, kind: str) -> float | None:
        """Return the mean seconds of a cell of a kind, None where there is none to do."""
        return statistics.fmean(self.kinds[kind]) if self.kinds.get(kind) else None


@dataclass
class Estimate:
    """rows, and of all cells to do: seconds of those that share the machine, and of timed ones, which run alone.

    jobs: cells at once; jobs_on_one: on one device. unknown: cells whose cost is not known. tried: trials made.
    host_room, device_room: MiB of the host and of a device (None: no GPU).
    """

    rows: list[Row]
    untimed: float
    timed: float
    jobs: int
    jobs_on_one: int
    unknown: int
    tried: int
    host_room: float
    device_room: float | None

    @property
    def seconds(self) -> float:
        """Return the seconds from start to end with `jobs` cells at once, timed cells alone."""
        return self.untimed / self.jobs + self.timed


def estimate(
    plan: Any,
    store: Store,
    *,
    device: str = "auto",
    jobs: int | None = None,
    budget: float = BUDGET,
    host_room: float | None = None,
    device_room: float | None = None,
    progress: bool = True,
) -> Estimate:
    """Return what the cells of a plan that `store` lacks would take. Raises `UserError` for devices not here.

    jobs: cells at once, as for a run. budget: seconds of a trial. host_room, device_room: MiB, default: what is here.
    """
    import psutil

    there = devices.here(device, jobs)
    at_once = sum(int(one.room) for one in there)
    host_room = host_room or psutil.virtual_memory().total / MIB
    with tempfile.TemporaryDirectory(prefix="ddbench-estimate-") as folder:
        trials = _Trials(plan, store, Store(Path(folder)), device, budget, progress)
        costs = trials.run()
    device_room = device_room or trials.device_room
    on_one = max(int(one.room) for one in there)
    result = Estimate([], 0.0, 0.0, at_once, on_one, 0, trials.tried, host_room, device_room)
    rows: dict[tuple[Any, ...], Row] = {}
    for cell in plan.cells:
        label = cell.coords.get("label") or cell.config.get("artifact", "")
        place = (label, cell.coords.get("dataset", ""), cell.coords.get("ipc"))
        row = rows.setdefault(place, Row(*place))
        row.cells += 1
        if cell.key in costs:
            _add(result, row, cell, costs[cell.key])
    result.rows = list(rows.values())
    return result


def _add(result: Estimate, row: Row, cell: Cell, cost: Cost) -> None:
    """Add a cell that is to do to its row and to the totals."""
    row.todo += 1
    if cost.note:
        row.notes[cost.note] = None
    if cost.seconds is None:
        result.unknown += 1
        return
    row.total += cost.seconds
    row.kinds.setdefault(cell.kind, []).append(cost.seconds)
    row.host, row.device = max(row.host, cost.host or 0.0), max(row.device, cost.device or 0.0)
    full = (cost.host or 0.0) * (1 if cell.timed else result.jobs) > result.host_room
    if result.device_room is not None:
        full |= (cost.device or 0.0) * (1 if cell.timed else result.jobs_on_one) > result.device_room
    row.fits &= not full
    if cell.timed:
        result.timed += cost.seconds
    else:
        result.untimed += cost.seconds


class _Trials:
    """Goes through a plan from the first inputs to the last evaluations and tries what is not known yet."""

    def __init__(self, plan: Any, store: Store, scratch: Store, device: str, budget: float, progress: bool) -> None:
        self.plan, self.store, self.scratch = plan, store, scratch
        self.device, self.budget, self.progress = device, budget, progress
        self.tried = 0
        self.device_room: float | None = None
        self._finished = store.finished()
        self._looks: dict[str, str] = {}  # key of a planned cell -> what others see of it; equal ones cost the same
        self._stands: dict[
            str, str
        ] = {}  # what a cell is, or else the same look -> key in the scratch store to build on
        self._costs: dict[str, Cost] = {}  # what a cell is (its sort) -> cost
        self._known: dict[str, str] = {}  # the same -> look
        self._empty: float | None = None  # seconds of a cell that does nothing
        self._sorts: dict[str, str] = {}
        self._labels = {cell.key: cell.label for cell in plan.cells}

    def run(self) -> dict[str, Cost]:
        """Return the cost of every cell to do, by key."""
        layers: dict[int, list[Cell]] = {}
        depth: dict[str, int] = {}
        for cell in self.plan.cells:
            depth[cell.key] = 1 + max((depth.get(other, 0) for other in cell.inputs.values()), default=0)
            layers.setdefault(depth[cell.key], []).append(cell)
        costs: dict[str, Cost] = {}
        for _, cells in sorted(layers.items()):
            sorts = {cell.key: self._sort(cell) for cell in cells}
            self._sorts |= sorts
            there = {cell.key: found for cell in cells if (found := self._stored(cell.key))}
            for cell in cells:
                if cell.key in there:
                    self._learn(cell, sorts[cell.key], there[cell.key])
            self._try([cell for cell in cells if cell.key not in there], sorts)
            for cell in cells:
                if cell.key not in there:
                    costs[cell.key] = self._costs[sorts[cell.key]]
        return costs

    def _stored(self, name: str) -> dict[str, Any] | None:
        try:
            return self.store.result(name) if name in self._finished else None
        except Damaged:
            return None

    def _sort(self, cell: Cell) -> str:
        """Return what determines the cost of a cell: its configuration but for seeds, and what its inputs look like."""
        config = {name: value for name, value in cell.config.items() if name not in ("inputs", "timed")}
        config["task"] = {name: value for name, value in cell.config["task"].items() if name != "seed"}
        if cell.kind == "evaluate":  # of the method it sees only the set
            config = {name: value for name, value in config.items() if name not in ("method", "method_steps")}
            config["trainings"] = [{**one, "input": ""} for one in config.get("trainings", ())]
        looks = {name: self._looks[other] for name, other in cell.inputs.items() if other in self._looks}
        return key({"config": config, "inputs": looks})

    def _learn(self, cell: Cell, sort: str, result: Mapping[str, Any]) -> None:
        """Take what a stored cell took, and let others build on it."""
        look = self._known[sort] = self._looks[cell.key] = self._look(cell, sort, self.store, cell.key)
        if sort not in self._stands:
            source, target = self.store.cell(cell.key).absolute(), self.scratch.cell(cell.key)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source, target_is_directory=True)
            self._stands[sort] = cell.key
            self._stands.setdefault(look, cell.key)
        if not result.get("usage", {}).get("resumed"):  # else its seconds are those of the last try alone
            device = (result.get("profile") or {}).get("peak_device_MiB")
            self._costs.setdefault(sort, Cost(float(result["seconds"]), None, device))

    def _look(self, cell: Cell, sort: str, store: Store, name: str) -> str:
        """Return what cells that build on this one see of it: of a set its size and form, else what made it."""
        if cell.kind != "distil":
            return sort
        from bench import distilled

        try:
            one = distilled.load(store.cell(name) / "set.safetensors")
        except Exception:  # damaged, or of a trial that failed: nothing builds on it
            return sort
        stored = [None if x is None else list(x.shape) for x in (one.images, one.labels, one.outliers, one.steps)]
        return canonical([stored, one.header.label_kind, str(one.header.decoder)])

    def _try(self, cells: list[Cell], sorts: Mapping[str, str]) -> None:
        """Try one cell of each sort whose cost is not known; note what others can build on."""
        fresh: dict[str, Cell] = {}
        for cell in cells:
            sort = sorts[cell.key]
            if sort in self._costs:
                continue
            lacking = [name for name, other in cell.inputs.items() if self._stand(other) is None]
            if lacking:
                self._costs[sort] = Cost(None, note=self._because(cell.inputs[lacking[0]]))
            else:
                fresh.setdefault(sort, cell)
        if fresh:
            self._run(fresh)
        for cell in cells:
            self._looks[cell.key] = self._known.get(sorts[cell.key], sorts[cell.key])

    def _because(self, name: str) -> str:
        """Return why nothing can be built on a cell."""
        note = self._costs[self._sorts[name]].note
        return note if note.startswith(NEVER) else f"{NEVER}: {self._labels[name]}: {note}"

    def _stand(self, name: str) -> str | None:
        """Return the key in the scratch store that stands for a cell; None where there is nothing to build on.

        One of its own sort, if there is one: only that has the same intermediate sets.
        """
        return self._stands.get(self._sorts[name]) or self._stands.get(self._looks[name])

    def _run(self, fresh: Mapping[str, Cell]) -> None:
        """Make one trial for each sort, and note what it tells."""
        start = self._start(next(iter(fresh.values())))
        trials = [self._trial(cell) for cell in fresh.values()]
        failed, _ = self._compute(trials, self.progress)
        self.tried += len(trials)
        results = {trial.key: self.scratch.result(trial.key) for trial in trials if trial.key not in failed}
        for (sort, cell), trial in zip(fresh.items(), trials, strict=True):
            result = results.get(trial.key)
            if result is None:
                self._costs[sort] = Cost(None, note=failed.get(trial.key, NEVER))
                continue
            found = result["calibration"]
            own = start + result["seconds"] - found["spent"]
            words = "" if found["whole"] and not found["single"] else f"judged by {found['sample']}"
            self._costs[sort] = Cost(own + found["seconds"], found["host_MiB"], found["device_MiB"], words)
            self.device_room = found["device_room_MiB"] or self.device_room
            if found["whole"]:
                look = self._known[sort] = self._look(cell, sort, self.scratch, trial.key)
                self._stands[sort] = trial.key
                self._stands.setdefault(look, trial.key)

    def _start(self, like: Cell) -> float:
        """Return the seconds of a cell that does nothing; they are measured once."""
        if self._empty is None:
            kind: Any = "bench.run.calibrate:nothing"
            for number in range(2):  # the first one waits until torch is imported
                config = {"number": number}
                cell = replace(like, key=key(config), kind=kind, config=config, inputs={}, label="start", also=())
                _, took = self._compute([cell], False)
                self._empty = took[cell.key]
        return self._empty or 0.0

    def _compute(self, cells: list[Cell], progress: bool) -> tuple[dict[str, str], dict[str, float]]:
        """Compute cells in the scratch store; return what failed and why, and the seconds that the runner saw."""
        begun: dict[str, float] = {}
        took: dict[str, float] = {}

        def note(event: Any) -> None:
            begun.setdefault(event.cell.key, time.monotonic())
            took[event.cell.key] = time.monotonic() - begun[event.cell.key]

        todo = SimpleNamespace(cells=cells, skipped=[], suite=self.plan.suite)
        limit = PATIENCE * max(1.0, self.budget)
        summary = run_plan(
            todo, self.scratch, jobs=1, device=self.device, timeout=limit, progress=progress, on_event=note
        )
        return {cell.key: f"{state}: {reason}" for cell, state, reason in summary.failures}, took

    def _trial(self, cell: Cell) -> Cell:
        """Return the short form of a cell, built on what stands for its inputs."""
        inputs = {name: str(self._stand(other)) for name, other in cell.inputs.items()}
        config = {"cell": dict(cell.config), "budget": self.budget, "threads": cell.config.get("threads", 1)}
        name = key({**config, "inputs": inputs})
        kind: Any = f"bench.run.calibrate:{cell.kind}"
        return replace(cell, key=name, kind=kind, config=config, inputs=inputs, timed=False, also=())


# ------------------------------------------------------------------------------------ as text


def table(found: Estimate) -> list[dict[str, str]]:
    """Return the rows as text: cells to do, mean seconds of one by kind, time of all, memory (host + device)."""
    return [
        {
            "method": row.label,
            "dataset": row.dataset,
            "IPC": "all" if row.ipc is None else str(row.ipc),
            "to do": f"{row.todo}/{row.cells}",
            **{kind: _seconds(row.each(kind)) for kind in KINDS},
            "total": duration(row.total) if row.kinds else "",
            "MiB": (f"{row.host:.0f}" if row.host else "") + (f" + {row.device:.0f}" if row.device else ""),
            "fits": "" if not row.kinds else "yes" if row.fits else "no",
        }
        for row in found.rows
    ]


def notes(found: Estimate) -> list[str]:
    """Return what is to be known of rows, equal words once."""
    places: dict[str, list[str]] = {}
    for row in found.rows:
        for note in row.notes:
            places.setdefault(note, []).append(f"{row.label}" + ("" if row.ipc is None else f" IPC {row.ipc}"))
    return [f"{', '.join(rows)}: {note}" for note, rows in places.items()]


def conclusion(found: Estimate) -> str:
    """Return the totals in words."""
    text = f"about {duration(found.seconds)} with {found.jobs} cells at once, timed ones alone ({found.tried} trials)"
    lost = sum(row.todo for row in found.rows if not row.fits)
    text += f"; {found.unknown} cells of unknown cost are not in it" if found.unknown else ""
    return text + (f"; {lost} cells stand in rows that do not fit the memory" if lost else "")


def write_csv(found: Estimate, path: Path) -> None:
    """Write the rows with their numbers in full. Raises `UserError` where that cannot be."""
    rows = [
        {
            "method": row.label,
            "dataset": row.dataset,
            "ipc": row.ipc,
            "cells": row.cells,
            "to_do": row.todo,
            **{f"{kind}_seconds": row.each(kind) for kind in KINDS},
            "total_seconds": row.total,
            "host_MiB": row.host or None,
            "device_MiB": row.device or None,
            "fits": row.fits,
            "note": "; ".join(row.notes),
        }
        for row in found.rows
    ]
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", where=str(path)) from error


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
