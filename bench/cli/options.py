"""Arguments that several verbs share, and where a suite's results lie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

SuiteFile = Annotated[Path, typer.Argument(help="Suite file (YAML).", show_default=False)]
PresetName = Annotated[str | None, typer.Option("--preset", help="Preset of the suite; default: the one it names.")]
OutFolder = Annotated[Path | None, typer.Option("--out", help="Results folder; default: runs/<suite>-<preset>.")]
OnlyCells = Annotated[str | None, typer.Option("--only", help="Part of the cells, e.g. method=dm|dsa,ipc=10.")]
SkipMissing = Annotated[bool, typer.Option("--skip-missing", help="Show cells without data as skipped, do the rest.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, mps, cuda (all GPUs), or cuda:<k>,cuda:<l>.")]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Cells at once; default: one per core, or GPU.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load_plan(suite_file: Path, preset: str | None, only: str | None, skip_missing: bool) -> tuple[Any, Any]:
    """Return (suite, plan). Raises `UserError` naming every mistake of the suite file."""
    import bench.suite

    suite = bench.suite.load(suite_file, preset=preset)
    return suite, bench.suite.plan(suite, only=only, skip_missing=skip_missing)


def out_folder(out: Path | None, suite: Any) -> Path:
    """Return the folder of the results."""
    return out or Path("runs") / f"{suite.name}-{suite.preset}"
