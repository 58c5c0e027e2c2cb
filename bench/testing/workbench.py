"""Cells of a small suite, planned and computed here: what a plug-in is checked with is what a run would do.

The suite goes through the same loader and planner as a file of a user, and artifacts, distillations and evaluations
through the same functions as in the process of a cell; only the store, and with it all caching between checks, is left
out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bench.suite
from bench.lazy import torch
from bench.run.job import Report, Work
from bench.suite.cells import Cell
from bench.testing.rules import ensure

TINY = "convnet-in-w4-d2"
"""Network of the checks where a method brings none."""


def plan(folder: Path, suite: Mapping[str, Any]) -> list[Cell]:
    """Return the cells of a suite given as plain values, every cell after its inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "check.yaml"
    file.write_text(json.dumps(suite))  # JSON is YAML
    planned = bench.suite.plan(bench.suite.load(file))
    reasons = sorted({str(cell.skip) for cell in planned.skipped})
    ensure(bool(planned.cells), f"nothing is planned: {', '.join(reasons)}", "a check needs a set to look at")
    return planned.cells


class Workbench:
    """Computes cells in one folder, each in its own below it. report: takes progress, may break off."""

    def __init__(self, folder: Path, device: str, report: Report) -> None:
        self.folder, self.device, self.report = folder, device, report

    def inputs(self, cell: Cell) -> dict[str, Path]:
        """Return the folders of what a cell builds on."""
        return {name: self.folder / key for name, key in cell.inputs.items()}

    def work(self, cell: Cell) -> Work:
        """Return what the function behind the cell's kind is given."""
        draft = self.folder / cell.key
        draft.mkdir(parents=True, exist_ok=True)
        return Work(cell.config, self.inputs(cell), self.folder / "work" / cell.key, draft, self.device, self.report)

    def make(self, cell: Cell) -> dict[str, Any]:
        """Compute a cell and return its result, which is kept where the cells that use it look for it."""
        from bench.run.worker import KINDS

        work = self.work(cell)
        found = dict(KINDS.get(cell.kind)(work))
        (work.draft / "result.json").write_text(json.dumps(found))
        return found

    def task(self, cell: Cell) -> Any:
        """Return a fresh task of the cell."""
        from bench.task import LiveTask

        return LiveTask.from_config(cell.config, self.inputs(cell), self.device)


def ensure_data_untouched(task: Any, who: str) -> None:
    """Ensure that the real images of a task are still what the dataset holds."""
    import bench.data

    fresh = bench.data.prepare(bench.data.load(task.spec.dataset.name), task.spec.preprocessing, task.device)
    for ours, theirs in ((task.data.train, fresh.train), (task.data.test, fresh.test)):
        same = torch.equal(ours.images(), theirs.images()) and torch.equal(ours.labels, theirs.labels)
        ensure(same, f"{who} writes into the real images or labels", "task.data is shared: clone what you change")


def tiny_task(dataset: str = "debug", ipc: int | None = 2, seed: int = 0, network: str = TINY, **fields: Any) -> Any:
    """Return a real task of a method, for tests of what it computes. fields: further ones of `bench.api.TaskSpec`."""
    import bench.data
    from bench.api import TaskSpec
    from bench.nets import spec as nets
    from bench.task import LiveTask

    info = bench.data.info(dataset)
    net = nets.resolve(nets.parse(network), info.shape)
    return LiveTask(TaskSpec(dataset=info, ipc=ipc, seed=seed, network=net, **fields))
