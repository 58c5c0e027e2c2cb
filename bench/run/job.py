"""What passes between the runner and the process that computes a cell: plain, picklable, torch-free values.

One idea: a cell is a pure function of `Job.config` and its inputs. What else a job carries (device, limits,
provenance) says where and how it runs and is not seen by the computation beyond the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Job:
    """One cell to compute. device: auto, cpu, mps, cuda or cuda:<k>. timeout: seconds, None for no limit.

    weight: rough cost; timed: must run alone on its machine. Both are for executors that share machines.
    """

    root: Path
    key: str
    kind: str
    label: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    timeout: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    timed: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a try ended.

    state: ok, failed, diverged, oom, timeout or killed; or claimed (somebody else computes it), damaged (inputs, whose
    keys are in `damaged`), stopped (on request, to be continued). reason: one readable line. seconds: of the try.
    """

    key: str
    state: str
    reason: str = ""
    seconds: float = 0.0
    damaged: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Where a running cell is: outer step of steps (0: unknown), and what it does."""

    key: str
    step: int = 0
    steps: int = 0
    text: str = ""


class Report(Protocol):
    """How a computation tells its progress; cheap enough to be called in every outer step.

    Raises `Stopped` when the runner has asked the cell to end; a loop that catches it may write a checkpoint first.
    """

    def __call__(self, step: int = 0, steps: int = 0, text: str = "") -> None:
        """Tell that `step` of `steps` is done, and what is going on."""


class Stopped(BaseException):
    """The runner asked this cell to end. Not an `Exception`: no method may swallow it by accident."""


@dataclass(frozen=True)
class Work:
    """What the function behind a kind is given.

    inputs: folders of the finished cells it builds on. folder: survives a kill, for checkpoints. draft: what is
    written here is published with the result. device: resolved (`cpu`, `cuda:0`).
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, Path]
    folder: Path
    draft: Path
    device: str
    report: Report


Kind = Callable[[Work], Mapping[str, Any]]
"""Computes one cell; returns what goes into its result.json (`measures`, `profile`, ...)."""
