"""Claims: who is computing a cell right now, so that two runs on one store share the work.

A claim is a file, made by one process alone (`O_EXCL` holds on network file systems too), signed by it, and kept under
an exclusive `flock`. The kernel drops the lock when that process ends, however it ends, so on one machine a claim is
never stale and a suspended process never loses its own. Between machines the lock may not carry over (depends on the
network file system), so the file is also touched every few seconds: the claim of another machine is taken over when
that has stopped. Two clocks decide, and neither is this machine's: times of files are compared with that of a file made
this moment beside them, and what looks old is watched for some heartbeats first, because clocks of servers jump.

Claims only save work. Should two processes ever compute the same cell, the results are equal and the first published
one stays.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from types import TracebackType

HEARTBEAT = 5.0
"""Seconds between two touches of a held claim."""
STALE = 60.0
"""Seconds without a touch after which the claim of another machine looks abandoned."""
WATCH = 15.0
"""Seconds for which such a claim is watched before it is taken over; a few heartbeats."""


class Claim:
    """A held claim; leaving the block releases it."""

    def __init__(self, path: Path, handle: int, signature: bytes) -> None:
        self.path, self._handle, self._signature = path, handle, signature
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="claim heartbeat", daemon=True)
        self._pulse.start()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            try:
                os.utime(self._handle)  # by the clock of the file system
            except OSError:  # a store that is away for a moment must not end the computation
                continue

    def lost(self) -> bool:
        """Return whether another machine took it over, as happens to one that was suspended for long."""
        try:
            return self.path.read_bytes() != self._signature
        except OSError:
            return True

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._pulse.join()
        if not self.lost():
            self.path.unlink(missing_ok=True)  # before the lock goes: whoever waits on this file sees that it is gone
        os.close(self._handle)


def acquire(path: Path) -> Claim | None:
    """Claim `path` for this process, or return None where somebody else holds it.

    Takes `WATCH` seconds where a claim of another machine looks abandoned.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle, fresh = _open(path)
        kept = False
        try:
            locked = _lock_soon(handle) if fresh else _lock(handle)
            if locked is False:
                return None
            if not _is_at(handle, path):  # the former owner removed it between our open and our lock
                continue
            if not fresh:
                state = _state(handle, path, bool(locked))
                if state == "held" or (state == "old" and not _silent(path)):
                    return None
            claim = Claim(path, handle, _sign(handle))
            kept = True
            return claim
        except OSError:  # disk full: nobody will sign this one
            if fresh:
                path.unlink(missing_ok=True)
            raise
        finally:  # this process must not go on holding what it does not know it holds
            if not kept:
                os.close(handle)


def held(path: Path) -> bool:
    """Return whether somebody holds the claim at this moment."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        locked = _lock(handle)
        return locked is False or _state(handle, path, bool(locked)) == "held"
    finally:
        os.close(handle)


def _open(path: Path) -> tuple[int, bool]:
    """Open the file of a claim; return whether it was made by this call, which only one of several can have done."""
    while True:
        with suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR), False


def _sign(handle: int) -> bytes:
    owner: dict[str, object] = {**_machine(), "pid": os.getpid(), "start": time.time()}
    signature = json.dumps(owner).encode()
    os.ftruncate(handle, 0)
    os.pwrite(handle, signature, 0)
    os.close(os.dup(handle))  # at every close a network file system sends what was written
    return signature


def _lock(handle: int) -> bool | None:
    """Lock the file; return False where another process has the lock, None on a file system without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _lock_soon(handle: int) -> bool | None:
    """Lock a file made by this process: who else has it locked only looks at it, which is a matter of moments."""
    deadline = time.monotonic() + 1.0
    while (locked := _lock(handle)) is False and time.monotonic() < deadline:
        time.sleep(0.001)
    return locked


def _state(handle: int, path: Path, locked: bool) -> str:
    """Return `held`, `old` or `free`: what is known of a claim whose lock is ours, or that cannot be locked."""
    try:
        owner = json.loads(os.pread(handle, 4096, 0))
        here = {name: owner.get(name) for name in _machine()} == _machine()
    except (ValueError, AttributeError):  # its maker is about to sign it, or died before that
        return "held" if abs(_now(path.parent) - os.fstat(handle).st_mtime) < HEARTBEAT else "free"
    if here and locked:
        return "free"  # its process is gone
    return "held" if abs(_now(path.parent) - os.fstat(handle).st_mtime) < STALE else "old"


def _silent(path: Path) -> bool:
    """Watch a claim that looks old; return whether it has stopped. When a clock jumps those of the living look old."""
    before, deadline = _touched(path), time.monotonic() + WATCH
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if _touched(path) != before:
            return False
    return True


@cache
def _machine() -> dict[str, str]:
    """Return what tells this start of this machine from others: many machines call themselves localhost."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return {"host": socket.gethostname(), "boot": boot}


def _now(folder: Path) -> float:
    """Return the time by the clock that stamps files in a folder, which on a network is the server's."""
    ticks = time.monotonic()
    return ticks + _ahead(folder, int(ticks / HEARTBEAT))


@lru_cache(maxsize=4)
def _ahead(folder: Path, beat: int) -> float:
    """Return that time less this machine's monotonic clock, measured once in a heartbeat."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime - time.monotonic()
    except OSError:
        return time.time() - time.monotonic()


def _touched(path: Path) -> int:
    """Return when a file was touched, in ns. It is opened: what a network file system remembers may be a minute old."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return -1
    try:
        return os.fstat(handle).st_mtime_ns
    finally:
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    mine = os.fstat(handle)
    try:
        current = os.stat(path)
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (current.st_dev, current.st_ino)
