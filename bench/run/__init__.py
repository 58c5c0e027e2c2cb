"""Running: the store of finished cells, the scheduler, executors, and the process that computes one cell.

    store = Store("runs/survey")
    summary = run_plan(plan, store, jobs=2)      # computes what the store lacks
    states(plan, store)                          # what is there, without changing anything

Importing this package imports no torch; only processes that compute do.
"""

from bench.run.scheduler import Event, RunSummary, run_plan, states
from bench.run.store import Damaged, Store

__all__ = ["Damaged", "Event", "RunSummary", "Store", "run_plan", "states"]
