"""What the harness itself costs: the command line, the plan, cells that do next to nothing, the report.

There is no other side: limits in seconds, for whole processes as a user starts them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.benchmarks.case import Case, Sides

SUITE = """\
title: Many cells
grid:
  datasets: [digits]
  methods: {methods}
  ipc: [1, 10]
  seeds: {seeds}
  network: convnet-in-w4-d1
evaluation: {{network: convnet-in-w4-d1, recipe: {{base: review, epochs: 1}}, replicates: 1}}
evaluators: [accuracy]
"""


def cases(quick: bool) -> list[Case]:
    """Return the cases; `quick` ones are of the size of tests."""
    seeds, cells, records = (2, 6, 70) if quick else (834, 30, 50_000)
    return [
        Case("ddbench --help", "harness", "one process", _help, limit=None if quick else 0.3),
        Case(
            f"ddbench plan, {seeds * 12} cells",
            "harness",
            "one process",
            partial(_plan, seeds),
            limit=None if quick else 2.0,
        ),
        Case(f"ddbench run, {cells} small cells", "harness", "one process", partial(_run, cells), repeats=2),
        Case(
            f"ddbench report, {records} records",
            "harness",
            "one process",
            partial(_report, records),
            limit=None if quick else 5.0,
            repeats=3,
        ),
    ]


def _ddbench(*arguments: object) -> None:
    command = [sys.executable, "-c", "from bench.cli import main; main()", *map(str, arguments)]
    subprocess.run(command, capture_output=True, check=True)


def _help() -> Sides:
    return Sides(partial(_ddbench, "--help"))


def _plan(seeds: int) -> Sides:
    """Plan two methods at two sizes; each set, its networks and its accuracy are three cells."""
    folder = _folder()
    suite = _suite(folder, "[random, dm]", seeds)
    return Sides(partial(_ddbench, "plan", suite, "--out", folder / "out"))


def _run(cells: int) -> Sides:
    """Run cells that do next to nothing, every time into a new folder; three cells for every set."""
    folder = _folder()
    suite = _suite(folder, "[random]", cells // 6)

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            _ddbench("run", suite, "--out", out)

    return Sides(run)


def _report(records: int) -> Sides:
    """Write the report of a folder that looks like a run of five datasets, twelve methods and three sizes."""
    folder = _folder()
    cells: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for coords in _coordinates(records):
        distilled, measured = f"distil-{len(cells)}", f"evaluate-{len(cells)}"
        own = {**coords, "evaluator": "cross_arch", "network": "convnet-in"}
        cells.append(_cell(distilled, "distil", coords, {}))
        cells.append(_cell(measured, "evaluate", own, {"distilled": distilled}))
        rows += [_record(own, measured, network, e) for network in NETWORKS for e in range(7)]
    rows = rows[:records]
    suite = {"name": "made_up", "preset": "laptop", "plan": cells}
    (folder / "suite.json").write_text(json.dumps(suite))
    states = [{**cell, "state": "ok", "reason": "", "seconds": 1.5} for cell in cells]
    for name, lines in (("records", rows), ("states", states)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def report() -> None:
        (folder / "report.html").unlink(missing_ok=True)
        _ddbench("report", folder)

    return Sides(report)


NETWORKS = ("convnet-none", "convnet-in", "convnet-bn", "alexnet-in", "resnet18-in", "resnet18-bn", "vgg11-in")


def _coordinates(records: int) -> Iterator[dict[str, Any]]:
    """Yield sets enough for so many records."""
    for number in range(-(-records // (7 * len(NETWORKS)))):
        method = f"m{number % 12}"
        yield {
            "dataset": f"d{number // 12 % 5}", "method": method, "label": method, "settings": "modified",
            "ipc": (1, 10, 50)[number // 60 % 3], "seed": number // 180, "distil_network": "convnet-in",
        }  # fmt: skip


def _cell(key: str, kind: str, coords: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    return {"key": key, "kind": kind, "label": key, "coords": coords, "timed": False, "inputs": inputs}


def _record(coords: dict[str, Any], cell: str, network: str, replicate: int) -> dict[str, Any]:
    own = {"network": network, "recipe": "review", "selection": "last", "replicate": replicate, "step": None}
    value = 0.5 + 0.01 * replicate
    measured = {"metric": "accuracy", "value": value, "unit": "fraction", "tags": {}, "cell": cell}
    return {"suite": "made_up", "preset": "laptop", **coords, **own, **measured}


def _suite(folder: Path, methods: str, seeds: int) -> Path:
    file = folder / "many.yaml"
    file.write_text(SUITE.format(methods=methods, seeds=seeds))
    return file


_folders: list[tempfile.TemporaryDirectory[str]] = []


def _folder() -> Path:
    """Return a new folder that lives as long as this process."""
    _folders.append(tempfile.TemporaryDirectory(prefix=f"ddbench-{os.getpid()}-"))
    return Path(_folders[-1].name)
