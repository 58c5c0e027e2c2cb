"""How well a score tells out-of-distribution (OOD) images from those of the distribution (InD).

A score is one number per image, larger = more OOD. Both kinds are pooled. Conventions differ between papers, so each
metric says in its name which one it is:

    auroc           P(OOD > InD) + P(OOD = InD) / 2
    aupr_in         InD images are the positives, average precision (step-wise sum) with the negated score
    aupr_out        OOD images are the positives
    fpr95_ood_pos   share of InD images flagged where at least 95 % of OOD images are (OpenOOD v1.5, Outlier Exposure)
    fpr95_id_pos    share of OOD images accepted where at least 95 % of InD images are (ODIN)

`..._nearest` takes the threshold whose recall is nearest to 95 % instead, and of equally near ones that with the
larger rate, as the code of Outlier Exposure and TrustDD does. `..._trapezoid` integrates the precision-recall curve by
trapezoids as OpenOOD does, which is optimistic where scores tie. AUPR depends on the ratio of the two sizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

RECALL = 0.95
Rule = Literal["at_least", "nearest"]
Area = Literal["average_precision", "trapezoid"]


def measure(
    inside: ArrayLike, outside: ArrayLike, *, rule: Rule = "at_least", area: Area = "average_precision"
) -> dict[str, float]:
    """Return all metrics by name for the scores of InD images [n] and of OOD images [m].

    Raises `ValueError` for a score that is NaN, and where one of the two is empty.
    """
    from sklearn.metrics import auc, roc_curve

    known, strange = (np.asarray(scores, dtype=np.float64).ravel() for scores in (inside, outside))
    if not len(known) or not len(strange):
        raise ValueError(f"{len(known)} InD and {len(strange)} OOD scores: both are needed")
    scores = np.concatenate([known, strange])
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} of {len(scores)} scores are NaN")
    scores = np.nan_to_num(scores)  # infinite scores keep their place, scikit-learn refuses them
    is_out = np.arange(len(scores)) >= len(known)
    out_curve, in_curve = (
        roc_curve(positive, values, drop_intermediate=False)[:2]
        for positive, values in ((is_out, scores), (~is_out, -scores))
    )
    aupr, fpr = "" if area == "average_precision" else "_trapezoid", "" if rule == "at_least" else "_nearest"
    return {
        "auroc": float(auc(*out_curve)),
        f"aupr_in{aupr}": precision_recall_area(~is_out, -scores, area),
        f"aupr_out{aupr}": precision_recall_area(is_out, scores, area),
        f"fpr95_ood_pos{fpr}": false_positive_rate(*out_curve, rule),
        f"fpr95_id_pos{fpr}": false_positive_rate(*in_curve, rule),
    }


def precision_recall_area(positive: np.ndarray, scores: np.ndarray, area: Area = "average_precision") -> float:
    """Return the area under the precision-recall curve. positive: bool [N]; scores: [N], larger = more positive."""
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve

    if area == "average_precision":
        return float(average_precision_score(positive, scores))
    precision, recall, _ = precision_recall_curve(positive, scores)
    return float(auc(recall, precision))


def false_positive_rate(rates: np.ndarray, recall: np.ndarray, rule: Rule = "at_least") -> float:
    """Return the false positive rate at 95 % recall. rates, recall: [T], a ROC curve from no positives to all."""
    if rule == "at_least":
        return float(rates[np.argmax(recall >= RECALL)])
    distance = np.abs(recall - RECALL)
    return float(rates[np.flatnonzero(distance == distance.min())[-1]])
