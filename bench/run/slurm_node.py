"""One job of a Slurm array: computes its cells one after the other, each in a process of its own.

    python -m bench.run.slurm_node <store>/slurm/<batch>

SIGUSR1 (time is nearly up) and SIGTERM (the job is taken back) have the running cell write a checkpoint; after the
first the job returns to the queue, where Slurm starts it again with the same cells: what has ended is left alone and
the rest goes on from its checkpoint. Slurm itself does the same to the jobs of a node that failed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

asked: list[int] = []
"""Signals that came; noted before anything heavy is imported."""

CLAIM_SECONDS = 2.0
"""How often a cell that somebody else computes is looked at."""
PROGRESS_SECONDS = 5.0
"""Seconds between two notes of progress."""


def main(folder: Path) -> None:
    """Compute the cells of this job of the array."""
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda signum, frame: asked.append(signum))
    batch = json.loads((folder / "batch.json").read_text())
    sys.path += [entry for entry in batch["path"] if entry not in sys.path]
    cells = batch["jobs"][int(os.environ["SLURM_ARRAY_TASK_ID"])]
    print(f"job {os.environ['SLURM_JOB_ID']} on {os.environ.get('SLURMD_NODENAME', '?')}", flush=True)
    if Node(folder, batch["options"], batch["preload"]).compute(cells):
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], start_new_session=True)


class Node:
    """Computes cells in this job."""

    def __init__(self, folder: Path, options: Mapping[str, Any], preload: list[str]) -> None:
        from bench.run.executors import Local

        self.folder, self.options = folder, options
        self.restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        self.local = Local(1, self.note)
        self.local.preload = tuple(preload)
        self.local.grace = 0.75 * options["warning"]  # the rest of the warning is for going back into the queue
        self._noted = 0.0

    def compute(self, cells: list[Mapping[str, Any]]) -> bool:
        """Compute cells until all have ended or a signal came; return whether the job must go on later."""
        from bench.run import provenance
        from bench.run.job import Job
        from bench.run.store import Store

        left = deque(Job(**{**cell, "root": Path(cell["root"]), "provenance": {}}) for cell in cells)
        left = deque(job for job in left if not self.file(job.key).exists())
        fresh = True
        self.local.start()
        while left and not asked:
            job = dataclasses.replace(left.popleft(), provenance=provenance.environment())
            if Store(job.root).claimed(job.key):  # by a job that was thought lost, or another run
                left.append(job)
                time.sleep(CLAIM_SECONDS)
                continue
            outcome = self._one(job)
            if outcome.state == "claimed":
                left.append(job)
            elif outcome.state == "stopped":
                left.appendleft(job)
                self._give_up(job, fresh)
            else:
                self.end(outcome)
            fresh = False
        return signal.SIGUSR1 in asked and any(not self.file(job.key).exists() for job in left)

    def _one(self, job: Any) -> Any:
        """Compute one cell in a process of its own and return its `Outcome`."""
        print(f"{job.key} {job.label}", flush=True)
        from bench.run.executors import follow

        outcome = next(outcome for outcome in follow(self.local, job, asked) if outcome)
        print(f"{job.key} {outcome.state} {outcome.reason}", flush=True)
        return outcome

    def _give_up(self, job: Any, fresh: bool) -> None:
        """Fail a cell that cannot end: it had a whole job and keeps nothing to go on from, or had too many jobs."""
        from bench.run.job import Outcome
        from bench.run.store import LOG, Store

        if signal.SIGUSR1 not in asked:
            return
        store, limit = Store(job.root), f"the time limit of its Slurm job ({self.options['time']} min)"
        names = {path.name for path in store.work(job.key).iterdir()} - {LOG}
        if fresh and all(name.startswith(("draft-", ".tmp-")) for name in names):
            reason = f"it needs longer than {limit} and writes no checkpoints to go on from: raise --slurm time=MINUTES"
        elif self.restarts >= self.options["requeues"]:
            reason = f"stopped {self.restarts + 1} times by {limit}: raise --slurm time=MINUTES or requeues="
        else:
            return
        store.fail(job.key, "timeout", reason)
        self.end(Outcome(job.key, "timeout", reason))

    def note(self, progress: Any) -> None:
        """Write down where a cell is, for the runner to read; losing this harms nobody."""
        now = time.monotonic()
        if now - self._noted >= PROGRESS_SECONDS:
            self._noted = now
            temporary = self.folder / f".tmp-{progress.key}"
            temporary.write_text(json.dumps(dataclasses.asdict(progress)))
            os.replace(temporary, self.folder / f"{progress.key}.progress")

    def end(self, outcome: Any) -> None:
        """Tell the runner how a cell ended."""
        from bench.run.atomic import write_json

        (self.folder / f"{outcome.key}.progress").unlink(missing_ok=True)
        write_json(self.file(outcome.key), dataclasses.asdict(outcome))

    def file(self, key: str) -> Path:
        """Return the file that says how a cell ended."""
        return self.folder / f"{key}.json"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
