"""What a Slurm cluster is asked for, and what its words mean: options, packing of cells into jobs, sbatch, squeue.

Torch-free.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import UserError, nearest
from bench.run.atomic import write_json
from bench.run.job import Job
from bench.run.remote import threads

ENDED = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE",
         "OUT_OF_MEMORY", "REVOKED"}  # fmt: skip
"""States of jobs that will not run again."""
HOPELESS = {"PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints", "AccountNotAllowed", "QOSNotAllowed"}
"""Why jobs wait that will never start as they are."""


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
