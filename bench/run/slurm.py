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
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import UserError, nearest
from bench.run.atomic import write_json
from bench.run.devices import Device, elsewhere
from bench.run.executors import Emit, Local
from bench.run.job import Job, Outcome, Progress
from bench.run.store import Damaged, Store

LOSSES = 3
"""How many jobs may be lost with the same cell at work before it counts as failed."""
ENDED = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE",
         "OUT_OF_MEMORY", "REVOKED"}  # fmt: skip
"""States of jobs that will not run again."""
HOPELESS = {"PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints", "AccountNotAllowed", "QOSNotAllowed"}
"""Why jobs wait that will never start as they are."""
ARRAY = 1000
"""Jobs of an array at most, one less than Slurm's default limit."""


class Options(BaseModel):
    """What `--slurm KEY=VALUE` may say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: str | None = Field(None, description="partition; default: the cluster's")
    time: int = Field(240, ge=1, description="time limit of a job in minutes")
    warning: int = Field(120, ge=10, description="seconds before the time limit at which checkpoints are written")
    cpus: int | None = Field(None, ge=1, description="CPUs of a job; default: threads of its cells")
    gpus: int | None = Field(None, ge=0, description="GPUs of a job; default: one where the device is cuda")
    memory: str | None = Field(None, description="memory of a job, such as 16G; default: the cluster's")
    pack: int = Field(10, ge=1, description="minutes of short cells put into one job")
    cells: int = Field(4, ge=1, description="cells of a job while nobody knows how long they take")
    requeues: int = Field(20, ge=0, description="how often a job may be continued after its time limit")
    sbatch: str = Field("", description="further arguments of sbatch")


def read_options(words: Mapping[str, str]) -> Options:
    """Return options from words. Raises `UserError`."""
    try:
        return Options.model_validate(words)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        if name not in Options.model_fields:
            raise UserError(f"unknown Slurm option {name!r}", hint=nearest(name, Options.model_fields)) from None
        about = Options.model_fields[name].description
        raise UserError(f"Slurm option {name}={words[name]}: {error.errors()[0]['msg']}", hint=about) from None


# ------------------------------------------------------------------------------------ packing


def pack(jobs: Iterable[Job], seconds: Callable[[Job], float | None], options: Options) -> list[list[Job]]:
    """Divide cells among Slurm jobs: the longest first, each into the first job that has room.

    A job holds `pack` minutes of cells, or half its time limit where that is less; a longer cell has a job of its
    own. Cells whose time is unknown are taken to need a job's share. A timed cell is alone, and only cells that ask
    for the same device and threads share a job.
    """
    room = min(options.pack * 60.0, options.time * 30.0)
    taken = {job.key: room / options.cells if (known := seconds(job)) is None else known for job in jobs}
    bins: list[tuple[tuple[str, int], list[Job], float]] = []
    for job in sorted(jobs, key=lambda job: (-taken[job.key], -job.weight)):
        needs = (job.device, threads(job))
        for index, (kind, members, full) in enumerate(bins):
            alone = job.timed or members[0].timed
            if kind == needs and not alone and full + taken[job.key] <= room * (1 + 1e-9):
                bins[index] = (kind, [*members, job], full + taken[job.key])
                break
        else:
            bins.append((needs, [job], taken[job.key]))
    return [members for _, members, _ in bins]


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


class Rates:
    """Seconds per unit of weight of the cells that ended, by kind; kept in the store for the next run."""

    def __init__(self, root: Path) -> None:
        self.file = root / "slurm" / "rates.json"
        self.found: dict[str, list[float]] = defaultdict(list)
        with suppress(OSError, ValueError, TypeError, AttributeError):
            self.found.update(json.loads(self.file.read_text()))

    def learn(self, job: Job, seconds: float) -> None:
        """Take note of a cell; the last hundred of a kind are kept."""
        self.found[job.kind] = [*self.found[job.kind][-99:], seconds / max(job.weight, 1e-9)]

    def seconds(self, job: Job) -> float | None:
        """Return how long a cell will take, None where no cell of its kind has ended yet."""
        found = self.found.get(job.kind)
        return statistics.median(found) * job.weight if found else None

    def keep(self) -> None:
        """Write them."""
        with suppress(OSError):
            write_json(self.file, self.found)


# ------------------------------------------------------------------------------------ Slurm's commands


def submission(options: Options, jobs: Sequence[Sequence[Job]], folder: Path) -> list[str]:
    """Return the command that queues an array; all of its cells ask for the same device and threads."""
    job = jobs[0][0]
    gpus = options.gpus if options.gpus is not None else int(job.device.startswith("cuda"))
    command = [
        "sbatch", "--parsable", f"--array=0-{len(jobs) - 1}", f"--job-name=ddbench-{folder.parent.parent.name}",
        "--requeue", "--open-mode=append", f"--output={folder}/%a.log", "--ntasks=1", f"--time={options.time}",
        f"--signal=B:USR1@{options.warning}", f"--cpus-per-task={options.cpus or threads(job)}",
    ]  # fmt: skip
    command += [f"--partition={options.partition}"] if options.partition else []
    command += [f"--gres=gpu:{gpus}"] if gpus else []
    command += [f"--mem={options.memory}"] if options.memory else []
    command += ["--exclusive"] if job.timed else []
    script = shlex.join([sys.executable, "-m", "bench.run.slurm_node", str(folder)])
    return [*command, *shlex.split(options.sbatch), "--wrap", f"exec {script}"]


def parse_states(text: str) -> dict[str, tuple[str, str]]:
    """Return (state, reason) of every job that squeue lists with `--format=%F|%K|%T|%r`, by `<array>_<task>`."""
    rows = [line.strip().split("|", 3) for line in text.splitlines()]
    return {f"{array}_{task}": (state, why) for array, task, state, why in (row for row in rows if len(row) == 4)}


def end_of(state: str) -> tuple[str, str]:
    """Return (state, reason) of a cell whose job ended in a state of Slurm's without a word."""
    match state:
        case "TIMEOUT":
            return "timeout", "its Slurm job was ended at the time limit before a checkpoint could be written"
        case "OUT_OF_MEMORY":
            return "oom", "its Slurm job ran out of memory"
        case "":
            return "killed", "its Slurm job vanished from the queue"
    return "killed", f"its Slurm job ended as {state}"


def call(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm's, safe from the Ctrl-C that is meant for the runner."""
    try:
        return subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


# ------------------------------------------------------------------------------------ the executor


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
