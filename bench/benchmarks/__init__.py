"""How fast ddbench is, always beside the plain way to do the same.

A *case* is one piece of work with two sides: `fast`, what ddbench does, and `plain`, the same written the way the
field's code does it (per-class loops, one network after the other, fp32 eager, DataLoader, per-batch Python), which
stands in `bench.benchmarks.plain`. Both are timed in turns in one process, so that every claim is a ratio of one run.
The cases are data and have two users: `ddbench bench` measures them at full size, the tests under `tests/benchmarks`
run them at small sizes and check that both sides give the same result.

    case.py      what a case is             training.py      evaluation training and testing
    measure.py   timing, memory, ratios     augmentation.py  DSA alone
    table.py     Markdown, JSON, hardware   distillation.py  one outer iteration of every method
                                            harness.py       plan, command line, report

Inputs are made up (random bytes of CIFAR-10's sizes): speed does not depend on what a picture shows.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from bench.errors import UserError, nearest

if TYPE_CHECKING:
    from bench.benchmarks.case import Case

GROUPS = {
    "training": "bench.benchmarks.training",
    "augment": "bench.benchmarks.augmentation",
    "distillation": "bench.benchmarks.distillation",
    "harness": "bench.benchmarks.harness",
}
"""Modules with a function `cases(quick)`, in the order of the table."""


def cases(only: str | None = None, quick: bool = False) -> list[Case]:
    """Return the cases of all groups, or of the group, or with the text in their name, that `only` says.

    quick: the small sizes. Raises `UserError` where nothing is called like that.
    """
    found = [case for module in GROUPS.values() for case in importlib.import_module(module).cases(quick)]
    chosen = [case for case in found if only is None or only == case.group or only in case.name]
    if not chosen:
        known = [*GROUPS, *(case.name for case in found)]
        raise UserError(f"no group or case of the benchmarks is called {only!r}", hint=nearest(str(only), known))
    return chosen
