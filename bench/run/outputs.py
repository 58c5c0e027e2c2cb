"""The files a run leaves for people and reports: suite.json, records.jsonl, states.jsonl, environment.jsonl.

All are derived from the plan and the store and can be made again at any time. Lines are in the order of the
plan, so that equal results give equal files whatever order the cells ended in; a file whose content would not change
is not touched.
"""

from __future__ import annotations

import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.api import Record
from bench.run.atomic import atomic_write

BLOCK = 1 << 20
"""Bytes copied at once."""
PLACE = ("dataset", "method", "label", "settings", "ipc", "seed", "distil_network", "evaluator")


def manifest(plan: Any) -> Iterator[str]:
    """Yield the lines of suite.json: the resolved suite with name and preset, and the planned cells under `plan`.

    A cell that stands at several places of the suite (equal parameters under two labels) has one entry for each.
    """
    yield json.dumps({**plan.suite.resolved(), "plan": []}, indent=1).removesuffix("]\n}")
    before = ""
    for cell in (*plan.cells, *plan.skipped):
        for coords in (cell.coords, *cell.also):
            row = {
                "key": cell.key,
                "kind": cell.kind,
                "label": cell.label,
                "coords": dict(coords),
                "timed": cell.timed,
                "inputs": dict(cell.inputs),
            }
            yield f"{before}{json.dumps(row)}"
            before = ","
    yield "]}"


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


def packed(lines: Iterable[str]) -> bytes:
    """Return lines as the runner keeps them: those of one cell say nearly the same, so a tenth of their size."""
    return zlib.compress("\n".join(lines).encode(), 1)


def unpacked(kept: bytes) -> list[str]:
    """Return the lines that were packed."""
    return zlib.decompress(kept).decode().split("\n")


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


def environment_lines(provenances: Iterable[str]) -> Iterator[str]:
    """Yield the lines of environment.jsonl: how many cells were computed in each of the environments that occur.

    provenances: of the finished cells in the order of the plan, as JSON. Who opens the run later need not open every
    cell.
    """
    for provenance, count in Counter(provenances).items():
        yield f'{{"cells": {count}, "provenance": {provenance}}}'


def write_changed(path: Path, lines: Iterable[str]) -> None:
    """Write the lines unless the file holds exactly them. They are taken one by one and never held together."""
    texts = (f"{line}\n".encode() for line in lines)
    with path.open("rb") if path.is_file() else io.BytesIO() as old:
        equal, differs = 0, b""
        for text in texts:
            if old.read(len(text)) != text:
                differs = text
                break
            equal += len(text)
        if path.is_file() and not (differs or old.read(1)):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        old.seek(0)
        with atomic_write(path) as new:
            while equal:
                equal -= new.write(old.read(min(equal, BLOCK)))
            new.write(differs)
            new.writelines(texts)
