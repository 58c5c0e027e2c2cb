"""`ddbench run`: plan, distil, evaluate, report. The same command again does only what is missing."""

from __future__ import annotations

import enum
import importlib
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli import options
from bench.errors import UserError

NAME = "run"
SETTLED = ("ok", "cached", "skipped")
"""States of cells that a run leaves alone."""
REPORT = ("bench.report.page", "bench.report.plots", "scipy.special")
"""What the report imports: a second of its own."""


class Executor(enum.StrEnum):
    """Where cells run."""

    local = "local"
    inline = "inline"
    slurm = "slurm"
    ray = "ray"


def command(
    suite_file: options.SuiteFile,
    preset: options.PresetName = None,
    out: options.OutFolder = None,
    only: options.OnlyCells = None,
    device: options.Device = "auto",
    jobs: options.Jobs = None,
    executor: Annotated[
        Executor, typer.Option("--executor", help="local: a fresh process per cell; inline: this process; slurm; ray.")
    ] = Executor.local,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm",
            metavar="KEY=VALUE",
            help="For --executor slurm, also repeated: partition, time (minutes of a job), warning (seconds before its "
            "end), cpus, gpus, memory, pack (minutes of short cells in a job), cells, requeues, sbatch (arguments).",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="For --executor ray: auto (a cluster this machine belongs to), or host:port of its head; default: "
            "$RAY_ADDRESS, else auto, else a cluster of this machine alone.",
        ),
    ] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first cell that fails.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and stop.")] = False,
    skip_missing: options.SkipMissing = False,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="CSV of published numbers to print beside ours.")
    ] = None,
) -> None:
    """Run a suite and write its tables, plots and report."""
    import bench.run
    from bench.cli import screen
    from bench.run import devices

    suite, plan = options.load_plan(suite_file, preset, only, skip_missing)
    folder = options.out_folder(out, suite)
    store = bench.run.Store(folder)
    if dry_run:
        found = bench.run.states(plan, store)
        if executor in (Executor.local, Executor.inline) and any(state not in SETTLED for _, state, _ in found):
            devices.here(device, jobs)  # what the run would complain about
        screen.print_plan(plan, found)
        raise typer.Exit
    given = executor_options(executor, slurm, address)
    summary = bench.run.run_plan(
        plan,
        store,
        jobs=jobs,
        device=device,
        executor=executor.value,
        options=given,
        fail_fast=fail_fast,
        on_event=prepare_report(),
    )
    write_report(folder, reference)
    screen.print_summary(summary, folder)
    raise typer.Exit(summary.exit_code)


def prepare_report() -> Callable[[Any], None]:
    """Return a listener that imports what the report needs while the first cell waits for the fork server."""
    begun: list[threading.Thread] = []

    def listen(event: Any) -> None:
        if event.state == "running" and not begun:
            begun.append(threading.Thread(target=_import_report, name="import report"))
            begun[0].start()

    return listen


def _import_report() -> None:
    with suppress(Exception):  # what is wrong will be told when the report is written
        for module in REPORT:
            importlib.import_module(module)


def executor_options(executor: Executor, slurm: list[str] | None, address: str | None) -> dict[str, str]:
    """Return what is said for an executor. Raises `UserError` where it is another one's."""
    for option, given, whose in (("--slurm", slurm, Executor.slurm), ("--address", address, Executor.ray)):
        if given and executor is not whose:
            raise UserError(f"{option} is for --executor {whose.value}", hint=f"this run is on {executor.value}")
    return {"address": address} if address else pairs(slurm)


def pairs(words: list[str] | None) -> dict[str, str]:
    """Return what `--slurm` says as a mapping. Raises `UserError`."""
    for word in words or ():
        if "=" not in word:
            raise UserError(f"--slurm {word}: not of the form KEY=VALUE", hint="such as --slurm partition=gpu")
    return {key: value for key, _, value in (word.partition("=") for word in words or ())}


def write_report(folder: Path, reference: Path | None, force: bool = False) -> Path:
    """Write the report of a results folder unless it is up to date; return the path of `report.html`."""
    import bench.report

    if force or not bench.report.up_to_date(folder, reference):
        bench.report.write(folder, reference)
    return folder / "report.html"
