"""`ddbench data`: what is known of a dataset, and how to get it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bench.cli import options

app = typer.Typer(help="Datasets: `info` and `get`.", no_args_is_help=True)
DatasetName = Annotated[str, typer.Argument(help="Dataset name, folder:<path> or npz:<path>.", show_default=False)]


@app.command("info")
def info(name: DatasetName, as_json: options.AsJson = False) -> None:
    """Show source, licence, shape, constants, content hash, and where the data was found."""
    import bench.data
    from bench.cli import screen

    facts = bench.data.describe(name)
    print(json.dumps(facts, indent=1, default=str)) if as_json else screen.print_facts(facts)


@app.command("get")
def get(name: DatasetName) -> None:
    """Download a dataset into the data folder (needs a network), or say how to get it by hand."""
    import bench.data

    print(f"{name}: {bench.data.get(name)}")
