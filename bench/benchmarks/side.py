"""One side of a case, made once and called many times: in a process of its own, or in this one."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from typing import Any, Protocol

from bench import heap
from bench.benchmarks.case import Case
from bench.errors import UserError
from bench.lazy import torch
from bench.profile import MIB, host_peak_mib, reset_host_peak, resident_mib


class Side(Protocol):
    """What `bench.benchmarks.measure` needs. paired: whether the case has two sides; facts: see `Sides`."""

    paired: bool
    facts: dict[str, Any]

    def run(self, calls: int) -> tuple[float, float]:
        """Call so many times; return the seconds of all, on the wall and of the cores."""

    def peak(self) -> float:
        """Return by how many MiB the memory of the device (or of the process) rises at most during one call."""

    def close(self) -> None:
        """End it."""


class Here:
    """A side in this process."""

    def __init__(self, case: Case, name: str, threads: int = 1) -> None:
        sides = case.make()
        self.function, self.paired, self.facts = getattr(sides, name), sides.plain is not None, dict(sides.facts)

    def run(self, calls: int) -> tuple[float, float]:
        """See `Side`."""
        begin, cores = now(), _cores()
        for _ in range(calls):
            self.function()
        return now() - begin, _cores() - cores

    def peak(self) -> float:
        """See `Side`."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            allocated = torch.cuda.memory_allocated()
            self.function()
            return (torch.cuda.max_memory_allocated() - allocated) / MIB
        heap.release()  # what is kept would hide the rise
        reset_host_peak()
        before = resident_mib()
        self.function()
        return max(0.0, host_peak_mib() - before)

    def close(self) -> None:
        """See `Side`."""


class Apart:
    """A side in a new process, which sees nothing of what ran before."""

    def __init__(self, case: Case, name: str, threads: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, case, name, threads), daemon=False)
        self.process.start()
        theirs.close()
        self.paired, self.facts = self._answer()

    def run(self, calls: int) -> tuple[float, float]:
        """See `Side`."""
        self.connection.send(("run", calls))
        return self._answer()

    def peak(self) -> float:
        """See `Side`."""
        self.connection.send(("peak",))
        return self._answer()

    def close(self) -> None:
        """See `Side`."""
        self.connection.close()
        self.process.join()

    def _answer(self) -> Any:
        try:
            found = self.connection.recv()
        except EOFError:
            raise UserError("a side of a benchmark ended before it was done", hint="see above for the reason") from None
        if isinstance(found, Exception):
            raise found
        return found


def _serve(connection: Connection, case: Case, name: str, threads: int) -> None:
    """Make a side and do what is asked until nobody asks any more; the target of the process."""
    torch.set_num_threads(threads)
    if name == "fast":
        heap.keep()
    try:
        side = Here(case, name)
        connection.send((side.paired, side.facts))
        while True:
            order, *arguments = connection.recv()
            connection.send(getattr(side, order)(*arguments))
    except EOFError:
        pass
    except Exception as error:
        connection.send(error)
        raise


def now() -> float:
    """Return the clock after the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _cores() -> float:
    """Return the seconds that cores spent on this process and on those it started and has seen end."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
