"""The files a run leaves for people and reports: suite.json, records.jsonl, states.jsonl.

All three are derived from the plan and the store and can be made again at any time. Lines are in the order of the
plan, so that equal results give equal files whatever order the cells ended in; a file whose content would not change
is not touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.api import Record
from bench.run.atomic import write_lines

PLACE = ("dataset", "method", "label", "settings", "ipc", "seed", "distil_network", "evaluator")


def manifest(plan: Any) -> list[str]:
    """Return suite.json: the resolved suite with name and preset, and the planned cells under `plan`.

    A cell that stands at several places of the suite (equal parameters under two labels) has one entry for each.
    """
    rows = [
        {
            "key": cell.key,
            "kind": cell.kind,
            "label": cell.label,
            "coords": dict(coords),
            "timed": cell.timed,
            "inputs": dict(cell.inputs),
        }
        for cell in (*plan.cells, *plan.skipped)
        for coords in (cell.coords, *cell.also)
    ]
    return [json.dumps({**plan.suite.resolved(), "plan": rows}, indent=1)]


def record_lines(plan: Any, cell: Any, result: Mapping[str, Any]) -> list[str]:
    """Return the lines of records.jsonl for a finished cell: one per measure and place in the suite."""
    lines = []
    for coords in (cell.coords, *cell.also):
        place = {name: coords.get(name) for name in PLACE}
        for measure in result.get("measures", ()):
            fields = {
                "suite": plan.suite.name,
                "preset": plan.suite.preset,
                **place,
                **measure,
                "network": measure["network"] or coords.get("network"),
                "cell": cell.key,
            }
            lines.append(json.dumps(Record.model_validate(fields).model_dump(mode="json")))
    return lines


def state_line(cell: Any, state: str, reason: str, seconds: float | None) -> str:
    """Return one line of states.jsonl. A finished cell is `ok` whenever it was computed."""
    return json.dumps(
        {
            "key": cell.key,
            "kind": cell.kind,
            "label": cell.label,
            "coords": dict(cell.coords),
            "state": "ok" if state == "cached" else state,
            "reason": reason,
            "seconds": seconds,
        }
    )


def write_changed(path: Path, lines: Iterable[str]) -> None:
    """Write the lines unless the file holds exactly them."""
    lines = list(lines)
    try:
        if path.read_text(encoding="utf-8") == "".join(f"{line}\n" for line in lines):
            return
    except (OSError, UnicodeDecodeError):
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, lines)
