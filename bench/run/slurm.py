"""Executor `slurm`: cells become jobs of a Slurm cluster, several to a job, many jobs to an array.

What passes between this runner and the nodes are files in the store, which both must see:

    slurm/<batch>/batch.json     what to compute: one list of cells for each job of the array
    slurm/<batch>/<task>.log     what the job printed; <key>.log of each of its cells is a link to it
    slurm/<batch>/<key>.json     how a cell ended (bench.run.slurm_node writes it); results are in the store as ever

A job is warned before its time is up, has its running cell write a checkpoint, and goes back into the queue; Slurm
puts it back by itself when its node fails. A job that is gone and has left cells undone is lost: they are sent again,
and a cell that was at work in `LOSSES` lost jobs has failed. A runner that is killed leaves its jobs at work, and the
next one finds what they computed; claims keep two jobs from computing one cell.

submitit is not used: it sends pickles where plain JSON says everything, and it reads states from `sacct`, which needs
an accounting database that small clusters do not have; `squeue` is always there.

Torch-free.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import UserError
from bench.run.atomic import write_json
from bench.run.devices import Device, elsewhere
from bench.run.executors import Emit, Local
from bench.run.job import Job, Outcome, Progress
from bench.run.remote import LOSSES, threads, visible
from bench.run.slurm_jobs import (
    ENDED,
    HOPELESS,
    Rates,
    call,
    end_of,
    pack,
    parse_states,
    read_options,
    submission,
)
from bench.run.store import Store

ARRAY = 1000
"""Jobs of an array at most, one less than Slurm's default limit."""


@dataclass
class _Sent:
    """One job in Slurm's hands: the cells it has not ended yet, in the order in which it computes them.

    gone: when it was missed in the queue; told: the last progress of each cell; said: when its end was first read.
    """

    folder: Path
    cells: dict[str, Job]
    gone: float | None = None
    state: str = ""
    told: dict[str, str] = field(default_factory=dict)
    said: dict[str, float] = field(default_factory=dict)


class Slurm:
    """Sends cells to Slurm; reads how they ended from the store, and from `squeue` that a job is gone."""

    cells_at_once = 1000
    grace = 60.0
    poll = 10.0
    """Seconds between two calls of squeue."""
    look = 1.0
    """Seconds between two looks at the files of the jobs."""
    gather = 2.0
    """Seconds in which cells that become ready are gathered for one array."""
    settle = 60.0
    """Seconds that a file written on another machine may take to be seen here."""
    patience = 600.0
    """Seconds for which a controller that does not answer is asked again."""

    def __init__(self, jobs: int | None, emit: Emit, options: Mapping[str, str] | None = None) -> None:
        self.options, self.emit = read_options(options or {}), emit
        self._waiting: list[Job] = []
        self._sent: dict[str, _Sent] = {}
        self._losses: Counter[str] = Counter()
        self._rates: Rates | None = None
        self._gathered = self._look_at = self._poll_at = 0.0
        self._refused: float | None = None
        self._stopping = False

    def start(self) -> None:
        """Check that there is a Slurm."""
        if shutil.which("sbatch") is None:
            raise UserError("there is no Slurm here: sbatch was not found", hint="run on a login node of the cluster")

    def devices(self, wanted: str, jobs: int | None) -> list[Device]:
        """Return one: nodes have their own."""
        return elsewhere(wanted, jobs or self.cells_at_once)

    def submit(self, job: Job) -> None:
        """Note a cell for the next array."""
        if not self._waiting:
            self._gathered = time.monotonic() + self.gather
        self._waiting.append(job)

    def wait(self, timeout: float) -> list[Outcome]:
        """Send what was gathered, and return the cells that ended."""
        time.sleep(timeout)
        now = time.monotonic()
        if self._stopping:
            unsent, self._waiting = self._waiting, []
            return [Outcome(job.key, "stopped") for job in unsent] + self._ended(now)
        if self._waiting and now >= self._gathered:
            self._send()
        if now < self._look_at:
            return []
        self._look_at = now + self.look
        return self._ended(now)

    def stop(self) -> None:
        """Take back what is queued, and ask running jobs for checkpoints."""
        self._stopping = True
        if self._sent:
            call("scancel", "--state=PENDING", *self._sent)
            call("scancel", "--batch", "--signal=TERM", "--state=RUNNING", *self._sent)
        self._poll_at = 0.0

    def kill(self) -> None:
        """End all jobs."""
        if self._sent:
            call("scancel", *self._sent)
        self._sent.clear()

    # -------------------------------------------------------------------------------- sending

    def _send(self) -> None:
        """Queue the gathered cells, one array for each device and number of threads."""
        waiting, self._waiting = self._waiting, []
        root = waiting[0].root
        self._rates = self._rates or Rates(root)
        alike: dict[tuple[str, int, bool], list[list[Job]]] = defaultdict(list)
        for cells in pack(waiting, self._rates.seconds, self.options):
            alike[cells[0].device, threads(cells[0]), cells[0].timed].append(cells)
        for jobs in alike.values():
            for first in range(0, len(jobs), ARRAY):
                self._send_array(root, jobs[first : first + ARRAY])

    def _send_array(self, root: Path, jobs: Sequence[Sequence[Job]]) -> None:
        folder = root / "slurm" / uuid.uuid4().hex[:12]
        folder.mkdir(parents=True)
        plain = [[{**dataclasses.asdict(job), "root": str(job.root)} for job in cells] for cells in jobs]
        path = [str(Path(entry or os.curdir).absolute()) for entry in sys.path]
        batch = {"path": path, "preload": Local.preload, "options": self.options.model_dump(), "jobs": plain}
        write_json(folder / "batch.json", batch)
        for index, cells in enumerate(jobs):
            for job in cells:
                (folder / f"{job.key}.log").symlink_to(f"{index}.log")
        done = call(*submission(self.options, jobs, folder))
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            self._was_refused([job for cells in jobs for job in cells], done.stderr.strip())
            return
        self._refused = None
        number = done.stdout.strip().partition(";")[0]
        for index, cells in enumerate(jobs):
            self._sent[f"{number}_{index}"] = _Sent(folder, {job.key: job for job in cells})

    def _was_refused(self, jobs: Collection[Job], why: str) -> None:
        """Ask again a little later where Slurm has taken jobs before, or give up."""
        now = time.monotonic()
        self._refused = self._refused or now
        if not self._sent or now - self._refused > self.patience:
            self.kill()
            raise UserError(f"Slurm did not take the jobs: {why}", hint="--slurm KEY=VALUE sets what is asked for")
        for job in jobs:
            self.submit(job)
        self._gathered = now + self.poll

    # -------------------------------------------------------------------------------- receiving

    def _ended(self, now: float) -> list[Outcome]:
        """Return the cells that ended, and deal with jobs that are gone."""
        outcomes = []
        if now >= self._poll_at and self._sent:
            self._poll_at = now + (self.look if self._stopping else self.poll)
            self._ask(now)
        for name, sent in list(self._sent.items()):
            for key in self._files(sent):
                outcome = self._read(sent, key)
                if outcome is not None:
                    outcomes.append(outcome)
                    del sent.cells[key]
            if not sent.cells:
                del self._sent[name]
                if sent.state == "PENDING":  # Slurm gave its node up, and yet the cells were ended there
                    call("scancel", name)
            elif sent.gone is not None and (self._stopping or now - sent.gone >= self.settle):
                del self._sent[name]
                outcomes += self._lost(sent)
        if outcomes and self._rates:
            self._rates.keep()
        return outcomes

    def _ask(self, now: float) -> None:
        """See in the queue which jobs are gone. Where Slurm does not answer nothing is known."""
        done = call("squeue", "--me", "--states=all", "--array", "--noheader", "--format=%F|%K|%T|%r")
        if done.returncode:
            return
        found = parse_states(done.stdout)
        for name, sent in self._sent.items():
            sent.state, why = found.get(name, (sent.state if sent.state in ENDED else "", ""))
            if sent.state == "PENDING":
                self._waits(name, sent, why)
            if sent.state and sent.state not in ENDED:
                sent.gone = None
            elif sent.gone is None:
                sent.gone = now

    def _waits(self, name: str, sent: _Sent, why: str) -> None:
        """Pass on why a job waits. Raises `UserError` where it would wait for ever."""
        if why in HOPELESS and not self._stopping:
            self.kill()
            raise UserError(f"Slurm will never start the jobs: {why}", hint="--slurm KEY=VALUE sets what is asked for")
        for key in sent.cells:
            text = f"in Slurm's queue, job {name}: {why}"
            if sent.told.get(key) != text:
                sent.told[key] = text
                self.emit(Progress(key, text=text))

    def _files(self, sent: _Sent) -> list[str]:
        """Return the cells of a job that have ended, and pass on the progress of the others."""
        names = {entry.name for entry in os.scandir(sent.folder)}
        for key in sent.cells:
            if f"{key}.progress" in names:
                with suppress(OSError):
                    text = (sent.folder / f"{key}.progress").read_text()
                    if sent.told.get(key) != text:
                        sent.told[key] = text
                        self.emit(Progress(**json.loads(text)))
        return [key for key in sent.cells if f"{key}.json" in names]

    def _read(self, sent: _Sent, key: str) -> Outcome | None:
        """Return how a cell ended; None while its result cannot be seen from here."""
        job = sent.cells[key]
        outcome = Outcome(**json.loads((sent.folder / f"{key}.json").read_text()))
        now = time.monotonic()
        waited = now - sent.said.setdefault(key, now)  # by one clock, of one machine
        if outcome.state == "ok" and waited < self.settle and not visible(job):
            return None
        if outcome.state == "ok" and self._rates:
            self._rates.learn(job, outcome.seconds)
        return outcome

    def _lost(self, sent: _Sent) -> list[Outcome]:
        """Send the cells of a lost job again; the one it was at has failed if that happened too often."""
        if self._stopping:
            return [Outcome(key, "stopped") for key in sent.cells]
        outcomes = []
        first = next(iter(sent.cells))
        self._losses[first] += 1
        if self._losses[first] >= LOSSES:
            job = sent.cells.pop(first)
            state, reason = end_of(sent.state)
            log = (sent.folder / f"{first}.log").relative_to(job.root)
            reason = f"{reason}, {LOSSES} times; see {log}"
            with suppress(OSError):
                Store(job.root).fail(first, state, reason)
            outcomes.append(Outcome(first, state, reason))
        for job in sent.cells.values():
            self.submit(job)
        return outcomes
