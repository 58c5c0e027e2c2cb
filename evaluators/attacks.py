"""Attacks that tell members from others: five on what one network says, and LiRA on many networks.

A member is a real image that was used in making what a network was trained on. All scores are larger for members.

    threshold, logistic, mlp, forest, neighbours   outputs and loss of one network (the five of FRePo and ISA, which
                                                   take them from TensorFlow Privacy)
    lira                                           outputs of networks that saw an image, against those that did not
                                                   (Carlini et al. 2022, arXiv 2112.03570)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier

Variant = Literal["online", "online-fixed", "offline", "offline-fixed"]
GRIDS: dict[str, tuple[type[Any], dict[str, Any], dict[str, Sequence[Any]], dict[str, Any]]] = {
    "logistic": (LogisticRegression, {}, {"C": np.logspace(-4, 2, 10).tolist()}, {"C": 0.1}),
    "mlp": (
        MLPClassifier,
        {},
        {"hidden_layer_sizes": [(64,), (32, 32)], "alpha": [1e-4, 1e-3, 1e-2]},
        {"hidden_layer_sizes": (64,), "alpha": 1e-3},
    ),
    "forest": (
        RandomForestClassifier,
        {"n_estimators": 100, "max_features": "sqrt"},
        {"max_depth": [5, 10, 20, None], "min_samples_split": [2, 5, 10], "min_samples_leaf": [1, 2, 4]},
        {"max_depth": 10, "min_samples_split": 5, "min_samples_leaf": 2},
    ),
    "neighbours": (KNeighborsClassifier, {}, {"n_neighbors": [3, 5, 7]}, {"n_neighbors": 5}),
}
"""Attacker -> its class, what is fixed, the published grid, and the middle of the grid."""
ATTACKS = ("threshold", *GRIDS)


# ---------------------------------------------------------------------------------------------- one network


def trained_attack(name: str, features: np.ndarray, member: np.ndarray, *, grid: bool, seed: int) -> np.ndarray:
    """Return the score of every example by an attacker that never saw it, [n].

    The larger group is sampled down to the smaller; the rest is cut in two halves with equal shares of members, and an
    attacker trained on one scores the other. Examples left out by the sampling are scored by the second attacker.
    grid: choose the attacker's parameters by 3-fold search on its half; else the middle of the grid.
    features: [n, d], not scaled. member: bool [n].
    """
    rng = np.random.default_rng(seed)
    groups = [rng.permutation(np.flatnonzero(member == who)) for who in (False, True)]
    size = min(map(len, groups))
    kept = rng.permutation(np.concatenate([group[:size] for group in groups]))
    left = np.setdiff1d(np.arange(len(member)), kept)
    scores = np.full(len(member), np.nan)
    for train, test in StratifiedKFold(2).split(kept, member[kept]):
        attacker = _attacker(name, grid, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the published limits of steps
            attacker.fit(features[kept[train]], member[kept[train]])
        scores[kept[test]] = attacker.predict_proba(features[kept[test]])[:, 1]
    if len(left):
        scores[left] = attacker.predict_proba(features[left])[:, 1]
    return scores


def _attacker(name: str, grid: bool, seed: int) -> Any:
    kind, fixed, choices, middle = GRIDS[name]
    if "random_state" in kind().get_params():
        fixed = {**fixed, "random_state": seed}
    return GridSearchCV(kind(**fixed), choices, cv=3) if grid else kind(**fixed, **middle)


# ---------------------------------------------------------------------------------------------- many networks


def lira(statistic: np.ndarray, member: np.ndarray, variant: Variant = "online-fixed") -> np.ndarray:
    """Return the score of every example in every run, where all other runs are the shadows, [R, n].

    statistic: float [R, n], of example i by the network of run r, near normal (see `log_odds`). member: bool [R, n].
    Centres are medians. online: log likelihood ratio of the normal laws of the runs with and without the example;
    offline: the probability that a run without it says less (one-sided). fixed: one deviation for all examples, of
    the residuals, for the runs with and without apart; else each example has its own.
    Raises `ValueError` where an example has too few runs on a side: one for fixed, two otherwise.
    """
    fixed = variant.endswith("fixed")
    scores = np.empty(statistic.shape)
    for target in range(len(statistic)):
        others = np.arange(len(statistic)) != target
        laws = [
            _law(np.where(member[others] == side, statistic[others], np.nan), fixed=fixed) for side in (True, False)
        ]
        found = statistic[target]
        if variant.startswith("online"):
            scores[target] = stats.norm.logpdf(found, *laws[0]) - stats.norm.logpdf(found, *laws[1])
        else:
            scores[target] = stats.norm.logcdf(found, *laws[1])
    return scores


def _law(values: np.ndarray, *, fixed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return median [n] and deviation [n] of values [R, n], NaN where a run does not count."""
    if (np.isfinite(values).sum(0) < (1 if fixed else 2)).any():
        raise ValueError("too few runs with, or without, an example")
    centre = np.nanmedian(values, 0)
    residual = values - centre
    spread = np.full(len(centre), np.sqrt(np.nanmean(residual**2))) if fixed else np.nanstd(values, 0)
    return centre, np.maximum(spread, 1e-12)


def log_odds(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return log p_y - log sum of the other p, the logit-scaled confidence of LiRA. logits: [..., n, K]."""
    own, others = _apart(logits, labels)
    top = others.max(-1)
    return own - top - np.log(np.exp(others - top[..., None]).sum(-1))


def margin(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the output of the label minus the largest of the others, for networks whose outputs are regressed."""
    own, others = _apart(logits, labels)
    return own - others.max(-1)


def _apart(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits = np.asarray(logits, dtype=np.float64)
    own = np.arange(logits.shape[-1]) == labels[:, None]
    return (logits * own).sum(-1), np.where(own, -np.inf, logits)


# ---------------------------------------------------------------------------------------------- figures of merit


def auc(scores: np.ndarray, member: np.ndarray) -> float:
    """Return the probability that a member scores higher than another one; ties count a half."""
    return float(roc_auc_score(member.ravel(), scores.ravel()))


def null_deviation(members: int, others: int) -> float:
    """Return the standard deviation of the AUC of a score that means nothing."""
    return math.sqrt((members + others + 1) / (12 * members * others))


def true_positives(scores: np.ndarray, member: np.ndarray, rate: float) -> tuple[float, float, float]:
    """Return the share of members found with less than this share of false alarms, and its 95 % interval.

    It is the last point of the ROC below the rate, never one between two points; the interval is that of Clopper and
    Pearson. Raises `ValueError` where there are too few non-members for such a rate to mean anything (1 / rate).
    """
    member, scores = member.ravel(), scores.ravel()
    others = int((~member).sum())
    if others * rate < 1:
        raise ValueError(f"{others} non-members are too few for a false positive rate of {rate:g}")
    false, true, _ = roc_curve(member, scores, drop_intermediate=False)
    found = float(true[false < rate].max())
    interval = stats.binomtest(round(found * int(member.sum())), int(member.sum())).proportion_ci(method="exact")
    return found, float(interval.low), float(interval.high)


def balanced_accuracy(scores: np.ndarray, member: np.ndarray) -> float:
    """Return the best mean of the shares of members and of others that one threshold gets right."""
    false, true, _ = roc_curve(member.ravel(), scores.ravel(), drop_intermediate=False)
    return float((1 - (false + 1 - true) / 2).max())


def summary(
    scores: np.ndarray, member: np.ndarray, rates: Sequence[float]
) -> tuple[list[tuple[str, float, dict[str, float]]], list[str]]:
    """Return (name, value, tags) of `auc`, `balanced_accuracy`, and for every rate `tpr` with `tpr_low` and `tpr_high`.

    Beside them the reasons why there is no number for a rate.
    """
    found: list[tuple[str, float, dict[str, float]]] = [
        ("auc", auc(scores, member), {}),
        ("balanced_accuracy", balanced_accuracy(scores, member), {}),
    ]
    reasons = []
    for rate in rates:
        try:
            values = true_positives(scores, member, rate)
        except ValueError as error:
            reasons.append(str(error))
            continue
        names = ("tpr", "tpr_low", "tpr_high")
        found += [(name, value, {"rate": rate}) for name, value in zip(names, values, strict=True)]
    return found, reasons
