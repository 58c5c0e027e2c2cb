"""Training losses for every kind of label a distilled set may carry.

Labels are turned into targets once, before training; the loss of a batch is then one line. Which loss belongs to
which labels is stated in `AUTO`; any other pairing is a choice the recipe has to name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.api import LabelKind
from bench.errors import UserError
from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

AUTO: dict[str, str] = {"hard": "ce", "probabilities": "soft_ce", "centred": "mse", "logits": "l1"}
"""The loss each kind of label is made for: FRePo's centred labels half the squared error, APM's logits L1."""


def targets(labels: Tensor, kind: LabelKind, loss: str, classes: int, temperature: float = 1.0) -> tuple[str, Tensor]:
    """Return the resolved loss and what it compares with: int64 [n] for `ce`, float [n, K] for the others.

    Args:
        labels: int64 [n] (hard) or float [n, K].
        kind: what the labels are, see `bench.api.LabelKind`.
        loss: a loss of the recipe, or `auto`.
        classes: K.
        temperature: softens logits and centred labels for `soft_ce` (softmax(labels / temperature)).

    Raises:
        UserError: the labels cannot be used with this loss.
    """
    loss = AUTO[kind] if loss == "auto" else loss
    if loss == "ce":
        return loss, labels if kind == "hard" else labels.argmax(1)
    if loss == "l1" and kind != "logits":
        raise UserError(f"the loss l1 compares logits, the labels of this set are {kind}", hint="use loss: auto")
    if kind == "hard":
        labels = F.one_hot(labels, classes).to(torch.get_default_dtype())
        kind = "probabilities"
    if loss == "soft_ce":
        return loss, labels if kind == "probabilities" else (labels / temperature).softmax(1)
    if loss == "mse":
        if kind == "logits":
            raise UserError("the loss mse compares centred labels, this set has logits", hint="use loss: auto")
        return loss, labels - 1 / classes if kind == "probabilities" else labels
    return loss, labels


def compute(loss: str, logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean loss of a batch, 0-d. `mse` is half the squared error summed over classes (FRePo)."""
    if loss in ("ce", "soft_ce"):
        return F.cross_entropy(logits, target)
    if loss == "mse":
        return 0.5 * (logits - target).square().sum(1).mean()
    return F.l1_loss(logits, target)


def of_each(loss: str, logits: Tensor, target: Tensor) -> Tensor:
    """Return the loss of each image, [n]; `compute` is their mean."""
    if loss in ("ce", "soft_ce"):
        return F.cross_entropy(logits, target, reduction="none")
    if loss == "mse":
        return 0.5 * (logits - target).square().sum(1)
    return F.l1_loss(logits, target, reduction="none").mean(1)


def outlier_exposure(logits: Tensor) -> Tensor:
    """Return mean(logsumexp(z) - mean(z)), the cross entropy with the uniform label (TrustDD; at least log K)."""
    return exposure_of_each(logits).mean()


def exposure_of_each(logits: Tensor) -> Tensor:
    """Return the outlier exposure of each image, [n]."""
    return logits.logsumexp(1) - logits.mean(1)
