"""A runner to be disturbed: computes a plan of slow, checkpointed cells in the store named on the command line.

    python fault_runner.py <store> [stubborn]

It ends as the command line of ddbench does. FAULT_GRACE: seconds that cells have for a last checkpoint. FAULT_MACHINE:
the name of another machine, which does not see the locks of this one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "run")]

import run_fakes as fakes  # noqa: E402

import bench.cli  # noqa: E402
from bench.run import Store, claims, run_plan  # noqa: E402
from bench.run.executors import Local  # noqa: E402

STEPS, BLOCK = 50, 10


def plan():
    """Eight cells of a third of a second, and four that build on two of them each."""
    slow = [
        fakes.cell("stepwise", name=f"cell{i}", start=0.1 + 0.01 * i, steps=STEPS, block=BLOCK, seconds=0.006)
        for i in range(8)
    ]
    sums = [fakes.cell("number", value=i, inputs={"a": slow[2 * i], "b": slow[2 * i + 1]}) for i in range(4)]
    return fakes.plan(*slow, *sums)


def stubborn():
    """A cell that does not listen; it says in the journal when it began."""
    return fakes.plan(fakes.cell("deaf", seconds=600))


def elsewhere(name: str) -> None:
    """Be another machine: locks are not seen, and heartbeats are faster, so that a test need not wait for a minute."""
    claims._machine = lambda: {"host": name, "boot": ""}  # type: ignore[assignment]
    claims._lock = lambda handle: None
    claims.HEARTBEAT, claims.STALE, claims.WATCH = 0.2, 4.0, 4.0


if "FAULT_MACHINE" in os.environ:
    elsewhere(os.environ["FAULT_MACHINE"])


def main() -> None:
    """Compute the plan."""
    chosen = stubborn() if "stubborn" in sys.argv else plan()
    sys.exit(run_plan(chosen, Store(sys.argv[1]), jobs=2, device="cpu").exit_code)


if __name__ == "__main__":
    Local.preload = ("bench.run.worker", "fault_runner")  # these cells need no more, and start twice as fast
    Local.grace = float(os.environ.get("FAULT_GRACE", Local.grace))
    bench.cli.app = main  # type: ignore[assignment]
    bench.cli.main()
