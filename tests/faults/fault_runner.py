"""A runner to be killed: computes a plan of slow, checkpointed cells in the store named on the command line."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "run")]

import run_fakes as fakes  # noqa: E402

from bench.run import Store, run_plan  # noqa: E402
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
    return fakes.plan(fakes.cell("deaf", seconds=60))


if __name__ == "__main__":
    Local.preload = ("bench.run.worker",)  # these cells need no more, and start twice as fast
    try:
        sys.exit(
            run_plan(
                stubborn() if "stubborn" in sys.argv else plan(), Store(sys.argv[1]), jobs=2, device="cpu"
            ).exit_code
        )
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
