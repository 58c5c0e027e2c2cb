"""`ddbench report`: write tables, plots and the HTML page of results folders anew, or a site of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "report"


def command(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Results folders.", show_default=False)],
    reference: Annotated[
        Path | None, typer.Option("--reference", help="CSV of published numbers to print beside ours.")
    ] = None,
    site: Annotated[
        Path | None, typer.Option("--site", help="Write a leaderboard and a gallery of all runs into this folder.")
    ] = None,
) -> None:
    """Write the report of runs again, for example beside other published numbers; or a static site of them."""
    from bench.cli.run import write_report
    from bench.cli.status import read_states

    for folder in folders:
        read_states(folder)
    if site is not None:
        from bench.report import site as sites

        print(f"site: {sites.write(folders, site, reference)}")
        return
    for folder in folders:
        print(f"report: {write_report(folder, reference, force=True)}")
