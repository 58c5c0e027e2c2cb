"""What all checks share: how a broken rule is told, names of plug-ins, the guard of the global generators, the clock.

One idea: every piece of a plug-in's work is done inside `elsewhere`, in a process whose global generators stand
somewhere else each time. Who draws from them leaves a trace, and who depends on them gives other bytes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from bench.lazy import F, torch
from bench.registry import Registry

REFERENCE = 0.05
"""Seconds of processor time that `_workload` takes on one core of an ordinary machine of 2020."""
RUNAWAY = 5
"""Times the limit after which work is broken off; up to then it may be the first use of a slow library."""


def ensure(holds: bool, what: str, rule: str) -> None:
    """Raise `AssertionError` with what was found and the rule that it breaks, unless the rule holds."""
    if not holds:
        raise AssertionError(f"{what}\n  rule: {rule}")


def name_of(thing: str | type, registry: Registry) -> str:
    """Return the name a suite would use: the text itself, the registered name of a class, or `module:attribute`."""
    if isinstance(thing, str):
        return thing
    origin = f"{thing.__module__}:{thing.__qualname__}"
    ensure(
        "." not in thing.__qualname__,
        f"{registry.kind} {origin!r} stands inside a function or another class",
        "define it at the top of a module: suites and the processes of a run import it by name",
    )
    return next((name for name, target in registry.targets.items() if target == origin), origin)


# ---------------------------------------------------------------------------------------------- global generators


def _states() -> dict[str, Any]:
    """Return the states of the global generators, as values that can be compared."""
    import numpy as np

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "random": random.getstate(),
        "numpy": repr([part.tobytes() if isinstance(part, np.ndarray) else part for part in np.random.get_state()]),  # noqa: NPY002
        "torch": torch.get_rng_state().numpy().tobytes(),
        "torch (CUDA)": [state.numpy().tobytes() for state in cuda],
    }


@contextmanager
def elsewhere(seed: int, who: str) -> Iterator[None]:
    """Do something while the global generators stand at `seed`; ensure that they still do, then put them back."""
    import numpy as np

    python, legacy, own = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    try:
        before = _states()
        yield
        for library, state in _states().items():
            ensure(
                not before[library] or state == before[library],
                f"{who} changes the global generator of {library}: it draws from it or seeds it",
                "randomness comes from task.rng(name) or a generator of one's own; nobody touches a global one",
            )
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(own)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


# ---------------------------------------------------------------------------------------------- the clock


@contextmanager
def one_thread(device: str) -> Iterator[str]:
    """Set up this process as that of a cell and give the device with `auto` resolved; put the threads back."""
    from bench.run import preload, worker  # noqa: F401 - the first optimiser imports for a second, which is nobody's

    threads = torch.get_num_threads()
    try:
        yield worker.use(device, 1)
    finally:
        torch.set_num_threads(threads)


class Clock:
    """Processor time of this process since its start, which other work on the machine hardly lengthens."""

    def __init__(self, limit: float, who: str, remedy: str) -> None:
        self.limit, self.who, self.remedy = limit, who, remedy
        self.begin = time.process_time()
        self.seconds = 0.0

    def __call__(self, step: int = 0, steps: int = 0, text: str = "") -> None:
        """Take the time; a progress report of the loop (`bench.run.job.Report`)."""
        self.seconds = time.process_time() - self.begin
        if self.seconds > RUNAWAY * self.limit:
            where = f"after step {step} of {steps}" if steps else "without an end"
            ensure(False, f"{self.who} has computed for {self.seconds:.0f} seconds {where}", self.remedy)


@cache
def limit(device: str) -> float:
    """Return the seconds that stand for one second of an ordinary machine; a faster one gets a whole second too."""
    return max(1.0, min(_workload(device) for _ in range(3)) / REFERENCE)


def _workload(device: str) -> float:
    """Return the processor time of a little training, as most methods are made of."""
    rng = torch.Generator().manual_seed(0)
    images, weight, head = (
        torch.randn(size, generator=rng).to(device) for size in ((64, 3, 8, 8), (8, 3, 3, 3), (512, 10))
    )
    weight.requires_grad_()
    head.requires_grad_()
    begin = time.process_time()
    for _ in range(50):
        maps = F.conv2d(images, weight, padding=1).relu().flatten(1)
        loss = torch.logsumexp(maps @ head, 1).mean()
        torch.autograd.grad(loss, (weight, head))
    loss.item()
    return time.process_time() - begin
