"""`ddbench bench`: how fast this machine is, always beside the plain way to do the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli import options

NAME = "bench"


def command(
    only: Annotated[str | None, typer.Option("--only", help="A group, or text in the names of cases.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: shows that all of it runs.")] = False,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Turns of each side.")] = 7,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Default: all cores.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of bench.json and bench.md.")] = Path("runs/bench"),
    listing: Annotated[bool, typer.Option("--list", help="Only name the cases.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Time what ddbench does beside the plain way, in turns in one process; print the table and keep it."""
    import json

    import torch

    import bench.benchmarks
    from bench.benchmarks import made_up, table
    from bench.benchmarks.measure import measure
    from bench.cli import screen
    from bench.run import provenance

    chosen = bench.benchmarks.cases(only, quick)
    if listing:
        screen.print_rows("cases", [{"group": case.group, "name": case.name, "unit": case.unit} for case in chosen])
        return
    threads = threads or provenance.usable_cores()
    torch.set_num_threads(threads)  # for the provenance; the sides are processes of their own
    origin = {**provenance.environment(), **provenance.of_device(str(made_up.device())), "load": table.load()}
    rows: list[dict[str, Any]] = []
    for case in chosen:
        with screen.console.status(f"{len(rows) + 1}/{len(chosen)} {case.name}"):
            rows.append(measure(case, repeats, threads).json())
        table.write(out, rows, origin)  # after every case: what was measured is kept if the next one is stopped
    if as_json:
        print(json.dumps({"provenance": origin, "rows": rows}, indent=1))
        return
    screen.print_rows("benchmarks", table.on_screen(rows))
    print(out / "bench.md")
