"""Executor `ray`: cells become tasks of a Ray cluster, one CPU for each of their threads, or a GPU.

A task follows one cell, which has a fresh process as everywhere (`bench.run.executors.Local`), and yields what is
small: `Progress` now and then, the `Outcome` at the end. Results are published in the store, which all nodes must see.
On CPUs a Ray worker may follow one cell after the other, so that its fork server imports torch once; it ends with its
cell on a GPU, because only then Ray can give that GPU to another.

A cell whose worker or node died is sent again, and has failed when that happened `LOSSES` times. Should the old process
still be alive, its claim keeps the new one waiting.

Torch-free in the runner.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.errors import UserError, nearest
from bench.run import failures, provenance
from bench.run.devices import Device, check, spread
from bench.run.executors import Emit, Local, follow
from bench.run.job import Job, Outcome, Progress
from bench.run.remote import LOSSES, threads, visible
from bench.run.store import Store

PROGRESS_SECONDS = 1.0
"""Least time between two messages of one cell to the runner."""


# ------------------------------------------------------------------------------------ on a node

_local: Local | None = None
"""Of this Ray worker, with a fork server that has imported torch."""


def compute(job: Job, setting: Mapping[str, Any]) -> Iterator[Progress | Outcome]:
    """Compute one cell; what a task of Ray does. setting: path, preload, grace and variables of the runner.

    Ray asks it to end with an interrupt, and passes on nothing that is yielded after that.
    """
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda signum, frame: asked.append(signum))
    local = _warm(setting)
    told: list[Progress] = []
    told_at, local.emit = 0.0, told.append
    cell = follow(local, dataclasses.replace(job, provenance=provenance.environment()), asked)
    try:
        for outcome in cell:
            if outcome:
                yield outcome
            elif told and not asked and time.monotonic() - told_at >= PROGRESS_SECONDS:
                yield told[-1]
                told.clear()
                told_at = time.monotonic()
    finally:  # where Ray closes this generator while the cell is at work
        asked.append(signal.SIGINT)
        for _ in cell:
            pass


def _warm(setting: Mapping[str, Any]) -> Local:
    """Return what starts cells in this worker; the same at every call."""
    global _local
    if _local is None:
        sys.path += [entry for entry in setting["path"] if entry not in sys.path]
        os.environ.update(setting["variables"])
        _local = Local(1, print)
        _local.preload, _local.grace = tuple(setting["preload"]), setting["grace"]
        _local.start()
    return _local


# ------------------------------------------------------------------------------------ the cluster


def connect(address: str | None) -> Any:
    """Connect to a Ray cluster and return the module `ray`. Raises `UserError`.

    address: `auto`, or host:port of the cluster's head; default: $RAY_ADDRESS, or the cluster this machine belongs to,
    or else one of this machine alone, which is started and ends with this process.
    """
    try:
        import ray
    except ImportError as error:
        hint = 'pip install -c constraints.txt -e ".[ray]"'
        raise UserError(f"Ray cannot be imported: {error}", hint=hint) from error
    if ray.is_initialized():
        return ray
    address = address or os.environ.get("RAY_ADDRESS") or None
    _knock(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what is started here reports to nobody
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        where = f"at {address!r}" if address else "on this machine"
        raise UserError(f"no Ray cluster {where}: {failures.one_line(str(error))}", hint=HINT) from error
    return ray


HINT = "`ray start --head` starts one; --address auto, or host:port of its head"


def _knock(address: str | None) -> None:
    """Raise `UserError` where nobody listens at an address: Ray itself would try for minutes."""
    if address in (None, "auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        raise UserError(f"--address {address}: not the address of a Ray cluster", hint=HINT)
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"no Ray cluster at {address!r}: {error.strerror or error}", hint=HINT) from error


# ------------------------------------------------------------------------------------ the executor


class Ray:
    """Sends cells to Ray, and those again that were lost."""

    grace = 15.0
    """Seconds a cell has for its last checkpoint."""
    settle = 60.0
    """Seconds that a result written on another machine may take to be seen here."""

    def __init__(self, jobs: int | None, emit: Emit, options: Mapping[str, str] | None = None) -> None:
        for name in options or {}:
            if name != "address":
                raise UserError(f"unknown option {name!r} of Ray", hint=nearest(name, ["address"]))
        self.address, self.emit = (options or {}).get("address"), emit
        self._ray: Any = None
        self._sent: dict[str, tuple[Job, Any]] = {}
        self._ended: dict[str, tuple[Job, Outcome, float]] = {}
        self._losses: Counter[str] = Counter()
        self._possible: set[tuple[float, float]] = set()
        self._stopping = False

    def start(self) -> None:
        """Connect."""
        self._ray = ray = connect(self.address)
        self._on_cpu = ray.remote(max_retries=0, num_returns="streaming")(compute)
        self._on_gpu = ray.remote(max_retries=0, num_returns="streaming", max_calls=1)(compute)
        path = [str(Path(entry or os.curdir).absolute()) for entry in sys.path]
        variables = {name: value for name, value in os.environ.items() if name.startswith("DDBENCH_")}
        self._setting = {"path": path, "preload": Local.preload, "grace": self.grace - 2.0, "variables": variables}

    def devices(self, wanted: str, jobs: int | None) -> list[Device]:
        """Return the GPUs of the cluster, one cell on each, or its CPUs together. Raises `UserError`.

        So timed cells on CPUs run one at a time, alone in the whole cluster as far as this run goes.
        """
        check(wanted)
        if wanted not in ("auto", "cpu", "cuda"):
            raise UserError(f"device {wanted!r} is one of this machine", hint="Ray chooses: --device cuda or cpu")
        total = self._ray.cluster_resources()
        cpus, gpus = (int(total.get(name, 0)) for name in ("CPU", "GPU"))
        if wanted == "cuda" and not gpus:
            raise UserError("the Ray cluster has no GPU", hint="use --device cpu")
        if wanted == "cpu" or not gpus:
            return [Device("cpu", jobs or max(1, cpus))]
        return spread(["cuda"] * gpus, min(jobs or gpus, gpus))

    def submit(self, job: Job) -> None:
        """Hand a cell to Ray."""
        gpus = int(job.device == "cuda")
        self._check(threads(job), gpus)
        task = self._on_gpu if gpus else self._on_cpu
        needs = {"num_cpus": threads(job), "num_gpus": gpus, "name": f"ddbench {job.label}"}
        self._sent[job.key] = job, task.options(**needs).remote(job, self._setting)

    def wait(self, timeout: float) -> list[Outcome]:
        """Pass on progress, send again what was lost, and return the cells that ended."""
        jobs = {stream: job for job, stream in self._sent.values()}
        if jobs:
            self._ray.wait(list(jobs), timeout=timeout, fetch_local=False)
            ready, _ = self._ray.wait(list(jobs), num_returns=len(jobs), timeout=0, fetch_local=False)
            for stream in ready:
                self._receive(jobs[stream], stream)
        else:
            time.sleep(timeout)
        return self._seen()

    def stop(self) -> None:
        """Interrupt all tasks, which have their cells write checkpoints; those that have not begun never will."""
        self._stopping = True
        for _, stream in self._sent.values():
            self._ray.cancel(stream)

    def kill(self) -> None:
        """End all tasks."""
        for _, stream in self._sent.values():
            self._ray.cancel(stream, force=True)
        self._sent.clear()

    # -------------------------------------------------------------------------------- receiving

    def _receive(self, job: Job, stream: Any) -> None:
        """Take the next message of a task, or note how it ended without a word."""
        errors = self._ray.exceptions
        try:
            message = self._ray.get(next(stream))
        except errors.TaskCancelledError:
            message = Outcome(job.key, "stopped")
        except errors.RayTaskError as error:  # on its node, before the cell began
            message = self._failed(job, "failed", f"its Ray task failed: {type(error.cause).__name__}: {error.cause}")
        except (errors.RayError, StopIteration) as error:
            self._lost(job, error)
            return
        if isinstance(message, Progress):
            self.emit(message)
        else:
            del self._sent[job.key]
            self._ended[job.key] = job, message, time.monotonic()

    def _lost(self, job: Job, error: Exception) -> None:
        """Send a cell again whose worker or node is gone, unless that happened too often."""
        del self._sent[job.key]
        self._losses[job.key] += 1
        if self._stopping:
            outcome = Outcome(job.key, "stopped")
        elif self._losses[job.key] < LOSSES:
            self.emit(Progress(job.key, text=f"sent again: {failures.one_line(str(error))}"))
            self.submit(job)
            return
        else:
            state = "oom" if isinstance(error, self._ray.exceptions.OutOfMemoryError) else "killed"
            outcome = self._failed(job, state, f"lost {LOSSES} times: {error}")
        self._ended[job.key] = job, outcome, time.monotonic()

    def _failed(self, job: Job, state: str, reason: str) -> Outcome:
        """Record the failure of a cell that could not do so itself."""
        reason = failures.one_line(reason)
        with suppress(OSError):
            Store(job.root).fail(job.key, state, reason)
        return Outcome(job.key, state, reason)

    def _seen(self) -> list[Outcome]:
        """Return the cells that ended, those with a result as soon as it can be seen from here."""
        now, seen = time.monotonic(), []
        for job, outcome, since in list(self._ended.values()):
            if outcome.state != "ok" or now - since >= self.settle or visible(job):
                del self._ended[job.key]
                seen.append(outcome)
        return seen

    def _check(self, cpus: int, gpus: int) -> None:
        """Raise `UserError` where no node could ever run a cell with these needs."""
        needs = {"CPU": cpus, "GPU": gpus}
        if (cpus, gpus) in self._possible:
            return
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0) >= need for name, need in needs.items()) for node in nodes):
            wanted = f"{cpus} CPUs" + (f" and {gpus} GPU" if gpus else "")
            raise UserError(f"no node of the Ray cluster has {wanted}", hint="it must be up when the run starts")
        self._possible.add((cpus, gpus))
