"""The process of one cell, from its start by the fork server to its end.

It keeps its output away from the terminal, tells the runner how far it is, ends when the runner ends, and stops at
the next step when it is asked to (SIGTERM), so that a checkpoint can be written.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from bench.run.job import Job, Progress, Stopped

INTERVAL = 0.2
"""Seconds between two progress messages of one cell."""
LOG_TRIES = 10
"""How often it is tried to open the log of a cell."""


class Reporter:
    """Sends progress to the runner, at most every `INTERVAL` seconds, and raises `Stopped` on request."""

    def __init__(self, key: str, connection: Connection) -> None:
        self.key, self.connection = key, connection
        self.stop_requested = False
        self._last = 0.0

    def __call__(self, step: int = 0, steps: int = 0, text: str = "") -> None:
        """Tell the runner; see `bench.run.job.Report`."""
        if self.stop_requested:
            raise Stopped
        now = time.monotonic()
        if now - self._last >= INTERVAL:
            self._last = now
            self.connection.send(Progress(self.key, step, steps, text))


def main(job: Job, connection: Connection) -> None:
    """Compute one cell and send its `Outcome`; the target of the child process."""
    _die_with_runner()
    reporter = Reporter(job.key, connection)

    def request_stop(signum: int, frame: Any) -> None:
        reporter.stop_requested = True

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the runner decides what it means
    from bench.run import worker

    try:
        _redirect(job)
        outcome = worker.execute(job, reporter)
    except OSError as error:  # no place for its log: disk full, no right to write
        outcome = worker.unusable(job, error)
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(outcome)
    connection.close()


def _redirect(job: Job) -> None:
    """Send everything written to stdout and stderr, also by libraries and at a crash, to the log of the cell."""
    handle = _open_log(job)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.enable(file=2)


def _open_log(job: Job) -> int:
    """Open the log; again where another runner's process published this cell just now and removed its folder."""
    from bench.run import worker

    for _ in range(LOG_TRIES - 1):
        with suppress(FileNotFoundError):
            return os.open(worker.log_file(job), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    return os.open(worker.log_file(job), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)


def _die_with_runner() -> None:
    """End this process at once when the runner is gone, or the fork server that reports our end to it."""
    runner = multiprocessing.parent_process()
    assert runner is not None
    server = os.getppid()

    def watch() -> None:
        while not wait([runner.sentinel], timeout=1.0):
            if os.getppid() != server:
                break
        os._exit(1)

    threading.Thread(target=watch, name="watch runner", daemon=True).start()
