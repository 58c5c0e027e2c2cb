"""The command line: one file per verb, thin over the library.

Nothing here imports torch, pandas, scipy or matplotlib at import time, so every `--help` answers at once. `main`
turns errors the user can mend into one message and exit code 2; a defect of ddbench itself is written to a file
and named in one line.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
import warnings
from gc import set_threshold
from typing import Any

import typer

from bench.cli import (
    benchmark,
    check,
    convert_generator,
    data,
    describe,
    doctor,
    estimate,
    evaluate,
    gc,
    import_,
    inspect,
    listing,
    new,
    plan,
    report,
    run,
    show,
    status,
    validate,
)
from bench.errors import UserError

AGAIN = 0.01
"""Seconds until Ctrl-C comes again."""
STOPPED = "stopped; finished results are kept, the same command goes on from here"

app = typer.Typer(
    name="ddbench",
    help="Benchmark and evaluation harness for dataset distillation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    run,
    plan,
    estimate,
    status,
    report,
    check,
    show,
    listing,
    describe,
    validate,
    doctor,
    evaluate,
    gc,
    import_,
    inspect,
    convert_generator,
    new,
    benchmark,
):
    app.command(verb.NAME)(verb.command)
app.add_typer(data.app, name="data")


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from bench import __version__

        print(f"ddbench {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; the entry point `ddbench`."""
    if "" not in sys.path:  # the installed script: `module:attribute` in a suite may be a file beside the user
        sys.path.append(os.getcwd())
    warnings.formatwarning = _warning
    set_threshold(100_000, 20, 20)  # of what plans, runs and reports make, next to nothing is garbage in cycles
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL):
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _unraisable
    try:
        app()
    except UserError as error:
        _complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        _complain(STOPPED)
        sys.exit(130)
    except SystemExit as end:
        if end.code == 130:  # typer has caught Ctrl-C and says nothing
            _complain(STOPPED)
        raise
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        with tempfile.NamedTemporaryFile("w", prefix="ddbench-", suffix=".log", delete=False) as log:
            traceback.print_exc(file=log)
        _complain(f"internal error: {type(error).__name__}: {error}\nThis is a defect of ddbench. Details: {log.name}")
        sys.exit(70)
    finally:
        sys.unraisablehook = sys.__unraisablehook__
        if signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupt(signum: int, frame: Any) -> None:
    """End on Ctrl-C, and at once on the next one: what is in the store is whole at any moment."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _unraisable(args: Any) -> None:
    """Bring Ctrl-C again where Python drops it, as in the callbacks with which it cleans up after an import."""
    if isinstance(args.exc_value, KeyboardInterrupt):
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
    else:
        sys.__unraisablehook__(args)


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning as text: what is said to users stands alone, what is said to developers names its place."""
    place = "" if category is UserWarning else f"{filename}:{lineno}: {category.__name__}: "
    return f"ddbench: {place}{message}\n"


def _complain(text: str) -> None:
    print(f"ddbench: {text}", file=sys.stderr)
