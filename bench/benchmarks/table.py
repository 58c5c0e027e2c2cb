"""Writes what was measured: a table for people, JSON for programs, both with the hardware and the packages."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.run.atomic import atomic_write

COLUMNS = ("case", "unit", "fast", "plain", "ratio", "quartiles", "by cores", "whole run", "memory", "claim")


ON_SCREEN = ("case", "fast", "plain", "ratio", "by cores", "whole run", "memory", "claim")


def on_screen(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return what a terminal has room for, without columns that are empty."""
    texts = [dict(zip(COLUMNS, cells(row), strict=True)) for row in rows]
    used = [name for name in ON_SCREEN if any(text[name] for text in texts)]
    return [{name: text[name] for name in used} for text in texts]


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the texts of one row, see `COLUMNS`."""
    fast, plain, ratio = row["fast"], row["plain"], row["ratio"]
    memory = " / ".join(f"{side['peak_MiB']:.0f}" for side in (fast, plain) if side and side["peak_MiB"] is not None)
    claim = ""
    if row["target"] is not None:
        claim = f"at least {row['target']:g}x: "
    if row["limit"] is not None:
        claim = f"at most {row['limit']:g} s: "
    if row["holds"] is not None:
        claim += "holds" if row["holds"] else "MISSED"
    return [
        row["name"],
        row["unit"],
        duration(fast["median"]),
        duration(plain["median"]) if plain else "",
        f"{ratio['median']:.2f}x" if ratio else "",
        f"{ratio['low']:.2f} to {ratio['high']:.2f}" if ratio else "",
        f"{ratio['of_cores']:.2f}x" if ratio else "",
        f"{ratio['whole']:.2f}x" if ratio and "whole" in ratio else "",
        f"{memory} MiB" if memory else "",
        claim,
    ]


def duration(seconds: float) -> str:
    """Return seconds with three digits in the unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def markdown(rows: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]) -> str:
    """Return the table and where it was measured."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    lines += [
        "",
        "Medians over turns of the two sides in one process; ratio: plain / fast, turn by turn; by cores: the",
    ]
    lines += [
        "ratio of the time the cores spent; whole run: ratio of the run of which the case is a part, with all that"
    ]
    lines += ["the first call costs, as compilation; memory: peak above the start, fast / plain.", ""]
    lines += [f"- {name}: {_text(value)}" for name, value in provenance.items()]
    facts = [(row["name"], row["facts"]) for row in rows if row["facts"]]
    if facts:
        lines += ["", "What was chosen:", "", *(f"- {name}: {_text(chosen)}" for name, chosen in facts)]
    return "\n".join(lines) + "\n"


def write(folder: Path, rows: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]) -> Path:
    """Write `bench.json` and `bench.md` to a folder; return the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    data = json.dumps({"provenance": provenance, "rows": list(rows)}, indent=1)
    for name, text in (("bench.json", data + "\n"), ("bench.md", markdown(rows, provenance))):
        with atomic_write(folder / name, "w") as stream:
            stream.write(text)
    return folder / "bench.md"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    return str(value)


def load() -> str:
    """Return how much else was going on at the start: runnable processes, averaged over 1 and 15 minutes."""
    if not hasattr(os, "getloadavg"):
        return "not known"
    one, _, fifteen = os.getloadavg()
    return f"{one:.1f} runnable processes in the last minute, {fifteen:.1f} in the last 15"
