"""A runner on Ray to be stopped: one slow cell with checkpoints, in the store named on the command line."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import run_fakes as fakes  # noqa: E402

from bench.run import Store, run_plan  # noqa: E402
from bench.run.executors import Local  # noqa: E402


def slow(name: str, steps: int = 60, seconds: float = 0.1, start: float = 0.3, block: int = 1000):
    """Return a cell of some seconds that writes a checkpoint after every `block` steps, and when it is asked to end."""
    return fakes.cell("stepwise", name=name, start=start, steps=steps, block=block, seconds=seconds)


if __name__ == "__main__":
    Local.preload = ("bench.run.worker",)
    store, name, address = sys.argv[1:]
    try:
        run_plan(fakes.plan(slow(name)), Store(store), device="cpu", executor="ray", options={"address": address})
    except KeyboardInterrupt:
        sys.exit(130)
