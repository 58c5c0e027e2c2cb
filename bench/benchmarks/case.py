"""What a benchmark case is: plain values, and a function that makes its two sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sides:
    """The work of a case, ready to be timed: every call does the same amount of it.

    fast: as ddbench does it. plain: as the field's code does it; None where only a limit in seconds is claimed.
    check: run both from one state and raise `AssertionError` where the results differ by more than rounding; None
    where the two sides are different things that are only compared in time. facts: what was chosen on the way
    (compiled, chunk, ...), written down beside the times.
    """

    fast: Callable[[], Any]
    plain: Callable[[], Any] | None = None
    check: Callable[[], None] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    name: unique, starts with what is measured. unit: what one call does. make: build the sides; not timed, and what
    it allocated is not counted as memory. target: the ratio plain / fast that must hold on two cores. limit: seconds
    that `fast` may take. share: what part of a whole run one call is; the claim is then about the whole run, with
    what the first call of each side costs on top. memory: also measure the peak of one call of each side. repeats: at
    most so many turns of each side.
    """

    name: str
    group: str
    unit: str
    make: Callable[[], Sides]
    target: float | None = None
    limit: float | None = None
    share: float | None = None
    memory: bool = False
    repeats: int | None = None
