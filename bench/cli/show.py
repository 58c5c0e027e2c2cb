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
    """Show a distilled set: its header, its budget, and a picture of its images. Of a foreign file, what it is."""
    import json

    import bench.distilled
    import bench.imports
    import bench.report

    if file.exists() and not bench.imports.is_own(file):
        _show_foreign(file, as_json)
        return
    distilled = bench.distilled.load(file)
    facts = bench.distilled.summary(distilled)
    target = bench.report.picture(distilled, picture or file.with_suffix(".png"))
    if as_json:
        print(json.dumps({**facts, "picture": str(target)}, indent=1, default=str))
        return
    from bench.cli import screen

    screen.print_facts(facts)
    print(f"picture: {target}")


def _show_foreign(file: Path, as_json: bool) -> None:
    """Print what `ddbench import` would find in a file of another project."""
    import json

    import bench.imports
    from bench.cli import screen

    facts = bench.imports.summary(bench.imports.read(file))
    print(json.dumps(facts, indent=1)) if as_json else screen.print_facts(facts)
