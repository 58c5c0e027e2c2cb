"""`ddbench check`: whether a run is as good as a baseline; for continuous integration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bench.regression.compare import Finding

NAME = "check"
STYLES = {"better": "green", "unclear": "yellow"}
ROWS = 30
"""Most lines about single changes on the terminal."""


def command(
    runs: Annotated[list[Path], typer.Argument(help="Results folder of a run; several for --update.")],
    baseline: Annotated[Path, typer.Option("--baseline", help="Baseline file (JSON).", show_default=False)],
    update: Annotated[bool, typer.Option("--update", help="Write the baseline from these runs instead.")] = False,
    margin: Annotated[float, typer.Option("--margin", min=0, help="Points of accuracy that may be lost.")] = 2.0,
    slower: Annotated[float, typer.Option("--slower", min=1, help="Ratio of time that may be reached.")] = 1.3,
    larger: Annotated[float, typer.Option("--larger", min=1, help="Ratio of memory that may be reached.")] = 1.3,
    wall: Annotated[
        bool, typer.Option("--wall", help="Compare wall clock; default: CPU seconds (not on GPUs).")
    ] = False,
    only_accuracy: Annotated[bool, typer.Option("--only-accuracy", help="Leave out time and memory.")] = False,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write a summary as Markdown.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the verdicts as JUnit XML.")] = None,
    with_failures: Annotated[
        bool, typer.Option("--with-failures", help="With --update: accept runs with failed cells.")
    ] = False,
) -> None:
    """Compare a run with a baseline: exit code 0 as good as it, 1 regression, 2 wrong input.

    A change fails where it is beyond the limit and beyond the measured noise.
    """
    from rich.text import Text

    from bench.cli import screen
    from bench.errors import UserError
    from bench.regression import baseline as baselines
    from bench.regression import compare, measured, show

    found = [measured.read(run) for run in runs]
    if update:
        made = baselines.make(found, with_failures=with_failures)
        baselines.save(baseline, made)
        for line in show.made(made, baseline):
            screen.console.print(Text(line), soft_wrap=True)
        return
    if len(found) != 1:
        raise UserError(f"{len(found)} runs to compare", hint="one run is compared; several make a baseline, --update")
    limits = compare.Limits(margin / 100, slower, larger, only_accuracy, wall)
    known = baselines.load(baseline)
    findings = compare.check(found[0], known, limits)
    print_findings(findings)
    if markdown:
        show.write(markdown, show.markdown(findings, known))
    if junit:
        show.write(junit, show.junit(findings))
    raise typer.Exit(int(any(one.failed for one in findings)))


def print_findings(findings: Sequence[Finding]) -> None:
    """Print a table of what changed, then the summary."""
    from rich.table import Table
    from rich.text import Text

    from bench.cli import screen
    from bench.regression import show

    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in show.HEADS:
        table.add_column(head, overflow="fold", justify="right" if head in ("baseline", "now") else "left")
    changed = show.changed(findings)
    for one in changed[:ROWS]:
        table.add_row(*map(Text, show.row(one)), style=STYLES.get(one.verdict, "red"))
    if table.row_count:
        screen.console.print(table)
        if len(changed) > ROWS:
            screen.console.print(f"and {len(changed) - ROWS} more: see --markdown FILE")
        screen.console.print()
    *lines, verdict = show.summary(findings)
    for line in lines:
        screen.console.print(Text(line), soft_wrap=True)
    screen.console.print(Text(verdict, style="bold red" if any(one.failed for one in findings) else "bold green"))
