"""What the executors that compute on other machines share.

Torch-free.
"""

from __future__ import annotations

from contextlib import suppress

from bench.run.job import Job
from bench.run.store import Damaged, Store

LOSSES = 3
"""How many jobs may be lost with the same cell at work before it counts as failed."""


def threads(job: Job) -> int:
    """Return how many threads a cell computes with."""
    return int(job.config.get("threads", 1))


def visible(job: Job) -> bool:
    """Return whether the result of a cell, which another machine has published, can be seen from here."""
    store = Store(job.root)
    store.look_again(job.key)
    with suppress(Damaged):
        return store.result(job.key) is not None
    return True
