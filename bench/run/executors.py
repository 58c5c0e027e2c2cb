"""Executors start cells and tell how they ended; what has been computed is only ever read from the store.

`local` gives every cell a fresh process, forked from a server that has imported torch once: nothing that ran before
can leak into a cell, peak memory is the cell's own, and a crash hurts one cell. `inline` computes in this process,
for debuggers. `slurm` (bench.run.slurm) and `ray` (bench.run.ray) send cells to a cluster.

Torch-free in the runner.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, Protocol

from bench.errors import UserError
from bench.registry import Registry
from bench.run import child, failures
from bench.run.job import Job, Outcome, Progress
from bench.run.store import Store

EXECUTORS = Registry(
    "executor",
    {
        "local": "bench.run.executors:Local",
        "inline": "bench.run.executors:Inline",
        "slurm": "bench.run.slurm:Slurm",
        "ray": "bench.run.ray:Ray",
    },
    "ddbench.executors",
)
GRACE = 2.0
"""Seconds a cell has for a last checkpoint after it was asked to stop."""
START_SECONDS = 10.0
"""Seconds for which it is tried again to start a process."""
_starting = threading.RLock()
"""Held where a process starts, which changes what belongs to all threads."""

Emit = Callable[[Progress], None]


class Executor(Protocol):
    """Starts cells; made with the number of cells at once, where the user says it, and a function that takes progress.

    A class may have `devices`, which is called after `start` in place of `bench.run.devices.here`, and `grace`, the
    seconds in which `stop` should end; one that is made with `options` as well takes `--slurm KEY=VALUE`, `--address`.
    """

    def start(self) -> None:
        """Begin to warm up; called as soon as it is known that something must be computed."""

    def submit(self, job: Job) -> None:
        """Start a cell."""

    def wait(self, timeout: float) -> list[Outcome]:
        """Return the cells that ended, after at most `timeout` seconds, or as soon as there is one."""

    def stop(self) -> None:
        """Ask all running cells to stop; `wait` returns them."""

    def kill(self) -> None:
        """End all running cells now."""


class Inline:
    """Computes each cell inside `submit`. No time limits, and a crash takes the runner with it."""

    def __init__(self, jobs: int | None, emit: Emit) -> None:
        self.emit = emit
        self._ended: list[Outcome] = []

    def start(self) -> None:
        """Nothing to warm up."""

    def submit(self, job: Job) -> None:
        """Compute the cell."""
        from bench.run import worker

        def report(step: int = 0, steps: int = 0, text: str = "") -> None:
            self.emit(Progress(job.key, step, steps, text))

        self._ended.append(worker.execute(job, report))

    def wait(self, timeout: float) -> list[Outcome]:
        """Return what ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """Nothing runs outside of `submit`."""

    def kill(self) -> None:
        """Nothing runs outside of `submit`."""


@dataclass
class _Running:
    job: Job
    process: Any
    connection: Connection
    begin: float
    outcome: Outcome | None = None
    stop_at: float | None = None
    timed_out: bool = False


class Local:
    """One process per cell from a fork server on this machine."""

    preload: tuple[str, ...] = ("bench.run.preload",)
    """Modules that the fork server imports, so that cells do not have to."""
    grace = GRACE

    def __init__(self, jobs: int | None, emit: Emit) -> None:
        self.emit = emit
        self._context = multiprocessing.get_context("forkserver")
        self._running: dict[str, _Running] = {}

    def start(self) -> None:
        """Start the fork server; it imports torch while the runner goes on."""
        self._context.set_forkserver_preload(list(self.preload))
        with _starting, _ctrl_c_ignored(), _one_thread():
            forkserver.ensure_running()

    def submit(self, job: Job) -> None:
        """Start a process for the cell."""
        receiver, sender = self._context.Pipe(duplex=False)
        with _starting, _main_hidden():
            process = self._process(job, sender)
        sender.close()
        self._running[job.key] = _Running(job, process, receiver, time.monotonic())

    def _process(self, job: Job, sender: Connection) -> Any:
        """Start a process. Where the fork server was killed another one starts, as soon as the old one is gone."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            process = self._context.Process(target=child.main, args=(job, sender), name=f"ddbench {job.key}")
            try:
                process.start()
                return process
            except (OSError, EOFError) as error:
                if time.monotonic() > deadline:
                    raise UserError(f"no process can be started to compute a cell: {error}") from error
                time.sleep(0.05)

    def wait(self, timeout: float) -> list[Outcome]:
        """Pass on progress, enforce time limits, and return the cells whose process ended."""
        waited: dict[Any, _Running] = {}
        for running in self._running.values():
            waited[running.process.sentinel] = running
            if not running.connection.closed:
                waited[running.connection] = running
        if not waited:
            time.sleep(timeout)
        ended = []
        for ready in wait(list(waited), timeout):
            running = waited[ready]
            self._receive(running)
            if ready is not running.connection:
                ended.append(self._end(running))
        self._enforce_limits()
        return ended

    def stop(self) -> None:
        """Send SIGTERM to all; those that do not end in time are killed by a later `wait`."""
        for running in self._running.values():
            self._ask(running)

    def kill(self) -> None:
        """Kill all and wait for their ends."""
        for running in self._running.values():
            running.process.kill()
        for running in self._running.values():
            running.process.join(1.0)
        self._running.clear()

    def _receive(self, running: _Running) -> None:
        """Read what the child has sent until now."""
        try:
            while not running.connection.closed and running.connection.poll():
                message = running.connection.recv()
                if isinstance(message, Progress):
                    self.emit(message)
                else:
                    running.outcome = message
        except (EOFError, OSError):
            running.connection.close()

    def _end(self, running: _Running) -> Outcome:
        job, process = running.job, running.process
        del self._running[job.key]
        process.join()
        code = process.exitcode
        process.close()
        running.connection.close()
        seconds = time.monotonic() - running.begin
        outcome = running.outcome
        if outcome is not None and not (outcome.state == "stopped" and running.timed_out):
            return outcome
        if running.timed_out:
            state, reason = "timeout", f"stopped after the time limit of {job.timeout:g} s"
        elif running.stop_at is not None:
            return Outcome(job.key, "stopped", seconds=seconds)
        else:
            state, reason = failures.of_exit(code)
        with suppress(OSError):
            Store(job.root).fail(job.key, state, reason)
        return Outcome(job.key, state, reason, seconds)

    def _enforce_limits(self) -> None:
        now = time.monotonic()
        for running in self._running.values():
            limit = running.job.timeout
            if limit is not None and running.stop_at is None and now - running.begin > limit:
                running.timed_out = True
                self._ask(running)
            if running.stop_at is not None and now > running.stop_at:
                running.process.kill()

    def _ask(self, running: _Running) -> None:
        if running.stop_at is None:
            running.stop_at = time.monotonic() + self.grace
            running.process.terminate()


def follow(local: Local, job: Job, asked: Sequence[int]) -> Iterator[Outcome | None]:
    """Compute one cell; yield None several times a second, and its outcome at the end.

    asked: has something in it as soon as the cell should stop.
    """
    local.submit(job)
    stopped = False
    while True:
        if asked and not stopped:
            local.stop()
            stopped = True
        if ended := local.wait(0.2):
            yield ended[0]
            return
        yield None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Give processes started inside one thread in NumPy, SciPy and scikit-learn, so that sums do not depend on cores.

    Torch's threads are the cell's own choice, made in the worker.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Ignore SIGINT inside; a process started there ignores it for life. Does nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Let a process start without importing the runner's main script again.

    What it runs is found by module name, so that import would only cost time (and need a guard in the script).
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
