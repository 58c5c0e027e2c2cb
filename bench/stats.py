"""Means and intervals, computed in one place so that every table means the same by "±".

A method is measured on several distilled sets (seeds) with several networks each. Networks trained on one set share
its luck, so they are not independent: with two or more sets the mean of each set is one observation, with one set
the networks are, and `over` says which. Intervals are Student's; one observation has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """Location and spread of n observations.

    std: sample standard deviation (n - 1), None where n is 1. low, high: Student t interval of the mean at 95 %,
    None where n is 1. over: what one observation is, a distilled set (the mean of its networks) or a network.
    """

    mean: float
    std: float | None
    n: int
    low: float | None
    high: float | None
    over: Literal["sets", "networks"]


@dataclass(frozen=True)
class Paired:
    """The mean difference a - b of n pairs, its t interval at 95 % and two-sided p, None where n is too small."""

    mean: float
    std: float | None
    n: int
    low: float | None
    high: float | None
    p: float | None


def summary(values: ArrayLike, groups: Iterable[object] | None = None) -> Summary:
    """Summarise measured values [n].

    groups: which distilled set each value belongs to, [n]; with two or more different ones their means count.
    Raises `ValueError` if there are no values or the lengths differ.
    """
    observed = np.asarray(values, dtype=float)
    over: Literal["sets", "networks"] = "networks"
    if groups is not None:
        numbers: dict[object, int] = {}
        codes = [numbers.setdefault(group, len(numbers)) for group in groups]
        if len(codes) != observed.size:
            raise ValueError(f"{observed.size} values need as many groups, not {len(codes)}")
        if len(numbers) >= 2:
            observed, over = np.bincount(codes, observed) / np.bincount(codes), "sets"
    return Summary(*_interval(observed), over=over)


def paired(a: ArrayLike, b: ArrayLike) -> Paired:
    """Compare two methods on the same seeds: a [n] and b [n] hold one value per seed, in the same order.

    p is 0 or 1 where all differences are equal (to zero: 1). Raises `ValueError` as `summary` does.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"pairs need equal lengths, not {first.size} and {second.size}")
    mean, std, n, low, high = _interval(first - second)
    if std is None:
        p = None
    elif std == 0:
        p = 1.0 if mean == 0 else 0.0
    else:
        from scipy import stats

        p = float(stats.ttest_rel(first, second).pvalue)
    return Paired(mean, std, n, low, high, p)


def pooled_paired(differences: Sequence[ArrayLike]) -> list[Paired]:
    """Compare two methods in several places at once: one array of differences a - b [n] per place.

    Every place has its own mean; the spread is taken to be the same everywhere, so that places of two or three pairs
    borrow degrees of freedom from each other (the residual variance of a one-way layout). std is that spread. One
    place alone gives what `paired` gives. p is None where no place has two pairs.
    """
    found = [np.asarray(one, dtype=float) for one in differences]
    df = sum(one.size - 1 for one in found)
    std = (sum(float(((one - one.mean()) ** 2).sum()) for one in found) / df) ** 0.5 if df else None
    return [_difference(float(one.mean()), std, one.size, std and std / one.size**0.5, df) for one in found]


def welch(a: ArrayLike, b: ArrayLike) -> Paired:
    """Compare two methods on different seeds: the difference of the means of a [n] and b [m], variances not equal.

    n is the size of the smaller sample, std None. low, high and p are None where one has a single value.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    mean, n = float(first.mean() - second.mean()), min(first.size, second.size)
    if n < 2:
        return Paired(mean, None, n, None, None, None)
    x, y = (float(one.var(ddof=1)) / one.size for one in (first, second))
    df = (x + y) ** 2 / (x**2 / (first.size - 1) + y**2 / (second.size - 1)) if x + y else 1.0  # Welch-Satterthwaite
    return _difference(mean, None, n, (x + y) ** 0.5, df)


def _difference(mean: float, std: float | None, n: int, error: float | None, df: float) -> Paired:
    """Return a mean difference with interval and p from its standard error; without one they are None."""
    if error is None:
        return Paired(mean, std, n, None, None, None)
    from scipy.special import stdtr  # Student's t, in a tenth of the time that importing scipy.stats takes

    half = _quantile(df) * error
    p = float(2 * stdtr(df, -abs(mean) / error)) if error else float(mean == 0)
    return Paired(mean, std, n, mean - half, mean + half, p)


def _interval(observed: np.ndarray) -> tuple[float, float | None, int, float | None, float | None]:
    """Return mean, std, n, and the ends of the t interval of observations [n]."""
    if observed.ndim != 1 or observed.size == 0:
        raise ValueError("a summary needs at least one value")
    mean, n = float(observed.mean()), int(observed.size)
    if n == 1:
        return mean, None, n, None, None
    std = float(observed.std(ddof=1)) if np.ptp(observed) else 0.0  # equal values: not what rounding makes of them
    half = _quantile(n - 1) * std / n**0.5
    return mean, std, n, mean - half, mean + half


def _quantile(df: float) -> float:
    """Return the two-sided quantile of Student's t at `LEVEL`."""
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + LEVEL) / 2))
