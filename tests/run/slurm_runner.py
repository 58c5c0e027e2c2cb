"""A runner on Slurm to be stopped: one slow cell with checkpoints, in the store named on the command line."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import run_fakes as fakes  # noqa: E402

from bench.run import Store, run_plan  # noqa: E402
from bench.run.executors import Local  # noqa: E402
from bench.run.slurm import Slurm  # noqa: E402


def slow(name: str = "slow", steps: int = 60, seconds: float = 0.1, start: float = 0.3):
    """Return a cell of some seconds that writes a checkpoint when it is asked to end."""
    return fakes.cell("stepwise", name=name, start=start, steps=steps, block=1000, seconds=seconds)


def hurry() -> None:
    """Look at jobs more often than a cluster with many users would like, and import no more than these cells need."""
    Local.preload = ("bench.run.worker",)
    Slurm.poll = Slurm.look = Slurm.gather = 0.3
    Slurm.settle = 1.0


if __name__ == "__main__":
    hurry()
    try:
        run_plan(fakes.plan(slow()), Store(sys.argv[1]), device="cpu", executor="slurm")
    except KeyboardInterrupt:
        sys.exit(130)
