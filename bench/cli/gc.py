"""`ddbench gc`: delete results that the last plan of a folder no longer uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.errors import UserError

NAME = "gc"


def command(
    folder: Annotated[Path, typer.Argument(help="Results folder of a run.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Delete cells, checkpoints and failures that no cell of the folder's suite refers to."""
    import bench.run

    manifest = folder / "suite.json"
    if not manifest.is_file():
        raise UserError(f"{folder} holds no run", hint="give the folder that `ddbench run` named as its results")
    keep = {cell["key"] for cell in json.loads(manifest.read_text())["plan"]}
    removed = bench.run.Store(folder).gc(keep, dry_run=dry_run)
    print(f"{'would delete' if dry_run else 'deleted'} {removed.entries} entries, {removed.bytes / 2**20:.1f} MiB")
