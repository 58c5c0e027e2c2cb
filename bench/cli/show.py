"""`ddbench show`: what is in a distilled-set file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli import options

NAME = "show"


def command(
    file: Annotated[Path, typer.Argument(help="A distilled set (.safetensors).", show_default=False)],
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Where to write the picture; default: beside the file.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Show a distilled set: its header, its budget, and a picture of its images."""
    import json

    import bench.distilled
    import bench.report

    distilled = bench.distilled.load(file)
    facts = bench.distilled.summary(distilled)
    target = bench.report.picture(distilled, picture or file.with_suffix(".png"))
    if as_json:
        print(json.dumps({**facts, "picture": str(target)}, indent=1, default=str))
        return
    from bench.cli import screen

    screen.print_facts(facts)
    print(f"picture: {target}")
