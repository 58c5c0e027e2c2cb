"""Doing parts of a report at the same time, on several cores."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.run.provenance import usable_cores


def can_fork() -> bool:
    """Return whether forking this process is safe (one thread), allowed (no daemon) and of use (another core)."""
    alone = threading.active_count() == 1 and not multiprocessing.current_process().daemon
    return sys.platform == "linux" and alone and usable_cores() > 1


@contextmanager
def beside(folder: Path, *works: Callable[[], object]) -> Iterator[None]:
    """Do `works` while the block runs, each in a fork of this process, which has all modules and numbers at hand.

    Where that is not possible they are done before it. Raises `OSError` where they could not write to `folder`.
    """
    if not can_fork():
        for work in works:
            work()
        yield
        return
    fork = multiprocessing.get_context("fork").Process
    others = [fork(target=_quietly, args=(work,), daemon=True) for work in works]
    for other in others:
        other.start()
    yield
    for other in others:
        other.join()
        if other.exitcode:
            why = os.strerror(other.exitcode) if other.exitcode > 0 else "the process was killed"
            raise OSError(other.exitcode, why, str(folder))


def _quietly(work: Callable[[], object]) -> None:
    """Work in a process of its own; the first one speaks for all, and Ctrl-C is for it alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work()
    except OSError as error:
        sys.exit(error.errno or errno.EIO)
