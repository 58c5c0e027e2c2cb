"""What computing a cell took: seconds on the wall, seconds of CPU, and how fast the machine was just then.

Seconds say little on a machine that does other work, or on another machine. Beside them stand those of a fixed piece of
work, a training step of a small ConvNet, repeated in the same process, on the same device, with the same number of
threads. It runs when the result is there and the peaks of memory have been read, draws no random numbers and touches
nothing of the cell: about 15 ms of CPU, only where the cell took long enough to be compared.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.lazy import F, torch

VERSION = 1
"""Of the fixed piece of work: its seconds are comparable within one version only."""
SHORT = 0.2
"""Seconds: what takes less is mostly opening files; the machine is not measured beside it."""
WARM_UP, STEPS = 1, 5
"""Few: what is compared with is the mean over many cells of a run (`bench.regression.measured`)."""


class Meter:
    """Reads the clocks between its making and `read`."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._begin = self._clocks()

    def read(self) -> dict[str, Any]:
        """Return seconds, cpu_seconds, own_process (whether this process is the cell's own), and calibration.

        cpu_seconds are those of all threads of this process; on a GPU they say little. calibration: version, and
        seconds and cpu_seconds of one step; None where the cell was short or the device has no room left for it.
        """
        seconds, cpu_seconds = (end - begin for begin, end in zip(self._begin, self._clocks(), strict=True))
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "own_process": multiprocessing.parent_process() is not None,
            "calibration": self._calibrate() if seconds >= SHORT else None,
        }

    def _calibrate(self) -> dict[str, float] | None:
        """Return the means over a few steps; the result of the cell must not suffer from a failure here."""
        taken = []
        try:
            step = calibration_step(self.device)
            for _ in range(WARM_UP + STEPS):
                begin = self._clocks()
                step()
                taken.append([end - start for start, end in zip(begin, self._clocks(), strict=True)])
        except RuntimeError:
            return None
        wall, cpu = (statistics.fmean(values) for values in zip(*taken[WARM_UP:], strict=True))
        return {"version": VERSION, "seconds": wall, "cpu_seconds": cpu}

    def _clocks(self) -> tuple[float, float]:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter(), time.process_time()


def calibration_step(device: Any) -> Callable[[], Any]:
    """Return a function that does one training step and returns its loss.

    Two convolutions with instance norm, 32 images of 8x8: the same work at every call and in every process.
    """
    images = torch.linspace(-1, 1, 32 * 8 * 8, device=device).sin().reshape(32, 1, 8, 8)
    labels = torch.arange(32, device=device) % 10
    weights = [
        0.1 * torch.arange(torch.Size(shape).numel(), device=device).sin().reshape(shape)
        for shape in ((16, 1, 3, 3), (16, 16, 3, 3), (10, 64))
    ]

    def step() -> Any:
        with torch.enable_grad():
            leaves = [weight.detach().requires_grad_() for weight in weights]
            features = images
            for weight in leaves[:2]:
                features = F.avg_pool2d(F.relu(F.instance_norm(F.conv2d(features, weight, padding=1))), 2)
            loss = F.cross_entropy(features.flatten(1) @ leaves[2].T, labels)
            gradients = torch.autograd.grad(loss, leaves)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.sub_(gradient, alpha=0.01)
        return loss.detach()

    return step
