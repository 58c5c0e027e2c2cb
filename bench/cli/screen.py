"""What the verbs print: rich tables on a terminal, the same text without colours elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {"ok": "green", "cached": "green", "failed": "red", "diverged": "red", "oom": "red", "killed": "red"}
REASONS = 200
"""Most cells that are listed with what kept them from a result."""
console = Console(soft_wrap=False)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values, one a line; long values wrap."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(str(name), Text(_plain(value)))
    console.print(table)


def print_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print mappings with equal keys as a table; nothing where there are none."""
    if not rows:
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for name in rows[0]:
        table.add_column(name, overflow="fold", no_wrap=name == "name")
    for row in rows:
        table.add_row(*(Text(_plain(value)) for value in row.values()))
    console.print()
    console.print(table)


def state_row(cell: Any, state: str, reason: str) -> dict[str, Any]:
    """Return one cell of a plan as plain values."""
    return {"key": cell.key, "kind": cell.kind, "label": cell.label, "state": state, "reason": reason}


def print_plan(plan: Any, states: Sequence[tuple[Any, str, str]]) -> None:
    """Print the cells of a plan by kind and state, and every cell that cannot run."""
    rows = [state_row(*row) for row in states]
    print_states(rows)
    to_do = sum(row["state"] == "planned" for row in rows)
    console.print(f"{len(plan.cells)} cells, {to_do} to run")


def print_states(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print counts of cells by kind and state, then the reason of every cell that is not all right."""
    counts = Counter((str(row["kind"]), str(row["state"])) for row in rows)
    states = sorted({state for _, state in counts})
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("cells")
    for state in states:
        table.add_column(state, justify="right", style=STYLES.get(state))
    for kind in dict.fromkeys(str(row["kind"]) for row in rows):
        table.add_row(kind, *(str(counts[kind, state] or "") for state in states))
    console.print(table)
    _print_reasons([(str(row["state"]), str(row["label"]), str(row["reason"])) for row in rows if row["reason"]])


def _print_reasons(cells: Sequence[tuple[str, str, str]]) -> None:
    """Print (state, label, reason) of cells, those that failed themselves first where there are too many for all."""
    own = sorted(cells, key=lambda cell: cell[0] == "skipped") if len(cells) > REASONS else cells
    for state, label, reason in own[:REASONS]:
        console.print(Text(f"{state}: {label}: {reason}", style=STYLES.get(state, "yellow")))
    left = Counter(state for state, _, _ in own[REASONS:])
    if left:
        more = ", ".join(f"{count} {state}" for state, count in sorted(left.items()))
        console.print(f"and more: {more}; `ddbench status` and `ddbench plan` list all with --json", highlight=False)


def print_summary(summary: Any, folder: Path, tables: str = "accuracy*.md") -> None:
    """Print how a run ended: the accuracy tables (or `tables`), what failed, and where the report is."""
    for table in sorted((folder / "tables").glob(tables)):
        console.print(Text(table.read_text().rstrip()))
        console.print()
    own = [one for one in summary.failures if not one[2].startswith("because ")]  # others lack a result of these
    _print_reasons([(state, cell.label, reason) for cell, state, reason in own])
    counts = ", ".join(f"{count} {state}" for state, count in sorted(summary.counts.items()))
    console.print(f"{counts}; {summary.seconds:.1f} s", highlight=False)
    console.print(Text(f"report: {folder / 'report.html'}"), soft_wrap=True)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    return "" if value is None else str(value)
