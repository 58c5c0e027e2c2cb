"""`ddbench plan`: what a run would do, and what is there already."""

from __future__ import annotations

import json

from bench.cli import options

NAME = "plan"


def command(
    suite_file: options.SuiteFile,
    preset: options.PresetName = None,
    out: options.OutFolder = None,
    only: options.OnlyCells = None,
    skip_missing: options.SkipMissing = False,
    as_json: options.AsJson = False,
) -> None:
    """Show the cells of a suite: what is cached, what would run, what cannot."""
    import bench.run
    from bench.cli import screen

    suite, plan = options.load_plan(suite_file, preset, only, skip_missing)
    states = bench.run.states(plan, bench.run.Store(options.out_folder(out, suite)))
    if as_json:
        print(json.dumps([screen.state_row(cell, state, reason) for cell, state, reason in states], indent=1))
    else:
        screen.print_plan(plan, states)
