"""`ddbench status`: how far a results folder is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic_core import from_json

from bench.cli import options
from bench.errors import UserError

NAME = "status"


def command(
    folder: Annotated[Path, typer.Argument(help="Results folder of a run.", show_default=False)],
    as_json: options.AsJson = False,
) -> None:
    """Show how many cells of a run are done, running, failed or still to do, and why some failed."""
    from bench.cli import screen

    states = read_states(folder)
    if as_json:
        print(json.dumps(states, indent=1))
    else:
        screen.print_states(states)


def read_states(folder: Path) -> list[dict[str, object]]:
    """Return the rows of `states.jsonl`. Raises `UserError` where the folder holds no run."""
    file = folder / "states.jsonl"
    if not file.is_file():
        raise UserError(f"{folder} holds no run", hint="give the folder that `ddbench run` named as its results")
    return [from_json(line) for line in file.read_bytes().splitlines()]
