"""Devices of this machine: which a cell may be told to compute on, and how many cells each takes at once.

`--device cuda` means all GPUs that torch sees; every cell is handed one of them by its name, `cuda:2`. What a cell
computes does not depend on which: seeds, keys and provenance know no number.

Torch-free: torch is asked in a process of its own, and only where there is the driver of a GPU.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from bench.errors import UserError
from bench.run import provenance

DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
"""NVIDIA's driver, its boards', that of Windows below Linux, AMD's: where there is none of them there is no GPU."""
COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


@dataclass
class Device:
    """Where cells compute. name: what they are told. room: untimed cells at once; a timed one is alone.

    cells: the keys of those that are on it now. timed_turn: the sort it takes at the moment.
    """

    name: str
    room: float = float("inf")
    cells: set[str] = field(default_factory=set)
    timed_turn: bool = False


def check(wanted: str) -> None:
    """Raise `UserError` where `wanted` is not a device as users name them."""
    if not re.fullmatch(r"auto|cpu|mps|cuda|cuda:\d+(,cuda:\d+)*", wanted):
        raise UserError(f"unknown device {wanted!r}", hint="auto, cpu, cuda, cuda:<k>, cuda:<k>,cuda:<l> or mps")


def here(wanted: str, jobs: int | None = None) -> list[Device]:
    """Return the devices of this machine that are meant, with room for `jobs` cells at once in all.

    jobs: default: one per core on a CPU, one per GPU. Raises `UserError` for what is not here.
    """
    names = _names(wanted)
    if names == ["cpu"]:
        jobs = jobs or provenance.usable_cores()
    return spread(names, jobs or len(names))


def elsewhere(wanted: str, jobs: int) -> list[Device]:
    """Return one device with room for `jobs` cells, for executors whose machines choose theirs themselves."""
    check(wanted)
    if "," in wanted:
        raise UserError(f"devices {wanted!r} are those of one machine", hint="the cluster chooses: --device cuda")
    return [Device(wanted, jobs)]


def spread(names: Sequence[str], jobs: int) -> list[Device]:
    """Return devices with room for `jobs` cells in all, as even as can be; those that get none are left out."""
    each, more = divmod(jobs, len(names))
    rooms = [each + (index < more) for index in range(len(names))]
    return [Device(name, room) for name, room in zip(names, rooms, strict=True) if room]


def _names(wanted: str) -> list[str]:
    check(wanted)
    if wanted == "mps" and sys.platform != "darwin":
        raise UserError("device 'mps' is not available: only Macs have it", hint="use --device cpu")
    if wanted in ("cpu", "mps"):
        return [wanted]
    found = [f"cuda:{index}" for index in range(gpus())]
    if wanted == "auto":
        return found or ["cpu"]
    if not found:
        raise UserError(f"device {wanted!r} is not available: torch sees no GPU", hint="use --device cpu")
    if wanted == "cuda":
        return found
    names = list(dict.fromkeys(wanted.split(",")))
    for name in names:
        if name not in found:
            raise UserError(f"device {name!r} is not available", hint=f"GPUs 0 to {len(found) - 1} are visible")
    return names


@cache
def gpus() -> int:
    """Return how many GPUs torch sees: what is installed, `CUDA_VISIBLE_DEVICES` and torch's build decide.

    Raises `UserError` where torch cannot be asked.
    """
    if "torch" in sys.modules:
        cuda = sys.modules["torch"].cuda
        return cuda.device_count() if cuda.is_available() else 0
    if not any(Path(driver).exists() for driver in DRIVERS):
        return 0
    try:
        done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, timeout=300)
        return int(done.stdout.split()[-1])
    except (ValueError, IndexError, OSError, subprocess.TimeoutExpired) as error:
        raise UserError("torch could not be asked for GPUs", hint="`ddbench doctor` says more") from error
