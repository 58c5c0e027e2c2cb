"""`ddbench estimate`: hours and memory of a suite on this machine, from short trials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli import options

NAME = "estimate"


def command(
    suite_file: options.SuiteFile,
    preset: options.PresetName = None,
    out: options.OutFolder = None,
    only: options.OnlyCells = None,
    device: options.Device = "auto",
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Cells at once; default: as for a run.")] = None,
    skip_missing: options.SkipMissing = False,
    budget: Annotated[float, typer.Option("--budget", min=0.0, help="Seconds of a trial of one configuration.")] = 3.0,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the table to this file as well.")] = None,
) -> None:
    """Try every configuration of a suite for a few seconds; say how long the whole takes, and what does not fit."""
    from bench import estimate
    from bench.cli import screen
    from bench.run import Store

    suite, plan = options.load_plan(suite_file, preset, only, skip_missing)
    store = Store(options.out_folder(out, suite))
    found = estimate.estimate(plan, store, device=device, jobs=jobs, budget=budget)
    if csv is not None:
        estimate.write_csv(found, csv)
    title = f"{suite.name}, preset {suite.preset}: seconds of a cell by what it does, time of all one after the other"
    screen.print_rows(title, estimate.table(found))
    for note in estimate.notes(found):
        screen.console.print(note, markup=False, highlight=False)
    screen.console.print(estimate.conclusion(found), highlight=False)
