"""What a distillation costs: wall clock by phase and per outer step, peak host and device memory.

One idea: the harness owns the clock. Methods name what they do (`with task.phase("data")`), the loop names its steps,
and everything that is not the method's work (loading the data, checkpoints, snapshots) stands inside `untimed`, where
the clock is stopped. Device work is finished before every reading, so that a phase pays for what it started.

Totals survive a restart through `state_dict`. The first steps of every start (cold caches, compilation, memory
pools) count towards the totals and not towards the medians per step.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from bench import heap
from bench.lazy import torch

PHASES = ("data", "network", "set", "evaluation")
MIB = 2**20


class Profile:
    """The clock and the memory gauge of one distillation.

        profile = Profile(device)
        with profile:                       # memory peaks are reset here, the clock runs inside
            for _ in range(steps):
                with profile.step(), profile.phase("set"):
                    ...
        profile.summary()

    warmup: outer steps after each start that the medians leave out. clock: monotonic seconds.
    """

    def __init__(self, device: Any = "cpu", *, warmup: int = 1, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device = torch.device(device)
        self.warmup, self.clock = warmup, clock
        self._total = 0.0  # of earlier runs; the running one is added when read
        self._phases = dict.fromkeys(PHASES, 0.0)
        self._steps, self._warmed = 0, 0
        self._durations: dict[str, list[float]] = {name: [] for name in ("step", *PHASES)}
        self._peaks: dict[str, float] = {}
        self._host_source = ""
        self._begin: float | None = None
        self._phase: str | None = None
        self._in_step = False
        self._stopped = 0.0  # seconds the clock stood still
        self._stopped_at: float | None = None
        self._run_steps = 0
        self._baseline = 0.0

    # -------------------------------------------------------------------------------- the running time

    def __enter__(self) -> Profile:
        if self._begin is not None:
            raise RuntimeError("the profile is already running")
        self._run_steps = 0
        heap.release()  # pages kept from loading the data would hide as many of the method's
        self._host_source = reset_host_peak()
        self._baseline = resident_mib()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._begin = self._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._begin is not None
        try:
            self._total = self.seconds
        finally:
            self._peaks = self._read_peaks()
            self._begin = None

    @property
    def seconds(self) -> float:
        """Return the seconds spent inside the running blocks so far, earlier runs included."""
        return self._total + (self._now() - self._begin if self._begin is not None else 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book the time inside on `name`: data, network, set or evaluation. Nothing is booked before the start.

        Raises `RuntimeError` for another name and inside another phase: such seconds would count twice.
        """
        if name not in PHASES:
            raise RuntimeError(f"unknown phase {name!r}: a phase is one of {', '.join(PHASES)}")
        if self._phase is not None:
            raise RuntimeError(f"phase {name!r} begins inside phase {self._phase!r}: phases do not nest")
        if self._begin is None:
            yield
            return
        self._phase, begin = name, self._now()
        try:
            yield
        finally:
            self._phase = None
            self._phases[name] += self._now() - begin

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time one outer step; a step that raises is not counted. Raises `RuntimeError` inside another step."""
        if self._begin is None or self._in_step:
            raise RuntimeError("a step must be inside the running profile and outside of other steps")
        self._in_step, begin, phases = True, self._now(), dict(self._phases)
        try:
            yield
        finally:
            self._in_step = False
        duration = self._now() - begin
        self._steps += 1
        self._run_steps += 1
        if self._run_steps <= self.warmup:
            self._warmed += 1
            return
        self._durations["step"].append(duration)
        for name in PHASES:
            self._durations[name].append(self._phases[name] - phases[name])

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Stop the clock inside: for the total, the current step and the current phase alike."""
        if self._stopped_at is not None:
            yield
            return
        self._synchronise()
        self._stopped_at = self.clock()
        try:
            yield
        finally:
            try:
                self._synchronise()
            finally:
                self._stopped += self.clock() - self._stopped_at
                self._stopped_at = None

    def _now(self) -> float:
        """Return the seconds of the clock that can be stopped."""
        if self._stopped_at is not None:
            return self._stopped_at - self._stopped
        self._synchronise()
        return self.clock() - self._stopped

    def _synchronise(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    # -------------------------------------------------------------------------------- memory

    def _read_peaks(self) -> dict[str, float]:
        """Return the largest peaks [MiB] of this run and of the runs before."""
        if self._begin is None:
            return dict(self._peaks)
        now = {"host": max(0.0, host_peak_mib() - self._baseline)}
        if self.device.type == "cuda":
            now["device"] = torch.cuda.max_memory_allocated(self.device) / MIB
        return {name: max(value, self._peaks.get(name, 0.0)) for name, value in now.items()}

    # -------------------------------------------------------------------------------- results

    def summary(self) -> dict[str, Any]:
        """Return the cost of the distillation as plain JSON values.

        seconds: total. phases: seconds of data, network, set, evaluation, and other (the rest of the total).
        steps: outer steps done; warmup_steps of them are left out of the medians seconds_per_step and
        phases_per_step (None and {} where no other step was done). peak_host_MiB: largest resident size minus that
        at the start; host_source says how it was read. peak_device_MiB: largest size of all tensors on a CUDA device,
        None elsewhere.
        """
        seconds, peaks = self.seconds, self._read_peaks()
        measured = self._durations["step"]
        return {
            "seconds": seconds,
            "phases": {**self._phases, "other": max(0.0, seconds - sum(self._phases.values()))},
            "steps": self._steps,
            "warmup_steps": self._warmed,
            "seconds_per_step": statistics.median(measured) if measured else None,
            "phases_per_step": {name: statistics.median(self._durations[name]) for name in PHASES} if measured else {},
            "peak_host_MiB": peaks.get("host"),
            "host_source": self._host_source,
            "peak_device_MiB": peaks.get("device"),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the totals until now as plain JSON values."""
        return {
            "seconds": self.seconds,
            "phases": dict(self._phases),
            "steps": self._steps,
            "warmed": self._warmed,
            "durations": {name: list(values) for name, values in self._durations.items()},
            "peaks": self._read_peaks(),
            "host_source": self._host_source,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`. Raises `RuntimeError` while the clock runs."""
        if self._begin is not None:
            raise RuntimeError("load the state before the profile runs")
        self._total = state["seconds"]
        self._phases = dict(state["phases"])
        self._steps, self._warmed = state["steps"], state["warmed"]
        self._durations = {name: list(values) for name, values in state["durations"].items()}
        self._peaks, self._host_source = dict(state["peaks"]), state["host_source"]


# ------------------------------------------------------------------------------------ resident memory of the process


def resident_mib() -> float:
    """Return the memory the process holds now."""
    return psutil.Process().memory_info().rss / MIB


def reset_host_peak() -> str:
    """Set the kernel's high-water mark back to the present size; return in words how the peak will be read.

    Where the kernel does not allow it, the peak of the whole life of the process is all there is: an upper bound.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # 5: reset VmHWM, see proc(5)
    except OSError:
        return "peak of the whole process (upper bound)"
    return "peak since the start of the distillation"


def host_peak_mib() -> float:
    """Return the high-water mark of the resident size."""
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
