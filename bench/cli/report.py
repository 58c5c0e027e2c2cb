"""`ddbench report`: write tables, plots and the HTML page of a results folder anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "report"


def command(
    folder: Annotated[Path, typer.Argument(help="Results folder of a run.", show_default=False)],
    reference: Annotated[
        Path | None, typer.Option("--reference", help="CSV of published numbers to print beside ours.")
    ] = None,
) -> None:
    """Write the report of a run again, for example beside other published numbers."""
    from bench.cli.run import write_report
    from bench.cli.status import read_states

    read_states(folder)
    print(f"report: {write_report(folder, reference, force=True)}")
