"""What the harness itself costs: the command line, the plan, the report. Limits in seconds, without another side."""

from __future__ import annotations

import subprocess
import sys

from bench.benchmarks.case import Case, Sides


def cases(quick: bool) -> list[Case]:
    """Return the cases; `quick` ones are of the size of tests."""
    return [Case("ddbench --help", "harness", "one process", _help, limit=None if quick else 0.3)]


def _help() -> Sides:
    command = [sys.executable, "-c", "from bench.cli import main; main()", "--help"]
    return Sides(lambda: subprocess.run(command, capture_output=True, check=True))
