"""`ddbench validate`: check a suite file completely, without running anything."""

from __future__ import annotations

from bench.cli import options

NAME = "validate"


def command(suite_file: options.SuiteFile, preset: options.PresetName = None) -> None:
    """Check a suite file: every mistake at once, each with its line and the nearest valid name."""
    suite, plan = options.load_plan(suite_file, preset, None, True)
    print(f"{suite_file}: valid; preset {suite.preset!r} has {len(plan.cells)} cells")
