"""Claims: who is computing a cell right now, so that two runs on one store share the work.

A claim is a file held under an exclusive `flock` by the process that computes. The kernel drops the lock when that
process ends, however it ends, so on one machine a claim is never stale and a suspended process never loses its own.
Between machines the lock may not carry over (depends on the network file system), so the file also names its owner
and is touched every few seconds: a foreign claim whose heartbeat is older than a minute is taken over.

Claims only save work. Should two processes ever compute the same cell, the results are equal and the first published
one stays.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

HEARTBEAT = 5.0
"""Seconds between two touches of a held claim."""
STALE = 60.0
"""Seconds without a touch after which the claim of another machine is taken over."""


class Claim:
    """A held claim; leaving the block releases it."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self._handle = path, handle
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="claim heartbeat", daemon=True)
        self._pulse.start()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            try:
                os.utime(self._handle)
            except OSError:  # a store that is away for a moment must not end the computation
                continue

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._pulse.join()
        self.path.unlink(missing_ok=True)  # before the lock goes: whoever waits on this file sees that it is gone
        os.close(self._handle)


def acquire(path: Path) -> Claim | None:
    """Claim `path` for this process, or return None where somebody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(handle) or _beats_elsewhere(handle):
            os.close(handle)
            return None
        if not _is_at(handle, path):  # the former owner removed it between our open and our lock
            os.close(handle)
            continue
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "start": time.time()}
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(owner).encode(), 0)
        except OSError:  # disk full: this process must not go on holding what it does not know it holds
            os.close(handle)
            raise
        return Claim(path, handle)


def held(path: Path) -> bool:
    """Return whether somebody holds the claim at this moment."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _lock(handle) or _beats_elsewhere(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: the heartbeat decides alone
        return True
    return True


def _beats_elsewhere(handle: int) -> bool:
    """Return whether the owner is on another machine and was alive a minute ago."""
    try:
        owner = json.loads(os.pread(handle, 4096, 0))
        host = owner["host"]
    except (ValueError, KeyError, TypeError):
        return False  # we hold the lock and nobody has signed: a fresh file, or its writer died before writing
    return host != socket.gethostname() and abs(time.time() - os.fstat(handle).st_mtime) < STALE


def _is_at(handle: int, path: Path) -> bool:
    mine = os.fstat(handle)
    try:
        current = os.stat(path)
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (current.st_dev, current.st_ino)
