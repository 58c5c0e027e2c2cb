"""Infinite semantic augmentation: a loss on real samples for any predictor that is linear in features of its target.

Move a sample along the line through its nearest neighbour j, features and label together: x + l (x - x_j) with label
y + l (y - y_j). A linear predictor g has there the residual A + l B with A = r, B = r - r_j and r = g(x) - y, so its
mean square over a whole law of l is known from the residuals and two moments. No augmented sample is ever made:

    E (A + l B)^2 = A^2 + 2 E[l] A B + E[l^2] B^2

Before that, the easiest part of the batch is dropped, judged by the same residuals. Everything needed of the
predictor are its residuals [b, K] and the inner products of its targets' features, so ridge regression on the features
of a network will do, and also on the kernel of an infinitely wide one, whose features cannot be written down.

Laws of l (`moments`). The released code moves away from the neighbour, l > 0; interpolation proper, which the
authors' words describe, is -1 <= l <= 0 (`segment`, or `isa` with a negative epsilon):

    none        0
    isa         uniform on [0, epsilon]
    symmetric   uniform on [-epsilon, epsilon]
    segment     uniform on [-1, 0]
    mixup       -Beta(alpha, alpha)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from bench.api import Params, param
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

CODE = "fiona-lxd/ISA, README"
Law = Literal["none", "isa", "symmetric", "segment", "mixup"]


class SemanticParams(Params):
    """Which samples count, and where their augmented copies lie."""

    kappa: float = param(
        0.8, "share of a real batch that is kept: the hardest; negative: the easiest; 0: all", source=CODE, ge=-1, le=1
    )
    law: Law = param("isa", "law of the move away from the neighbour, see methods/semantic.py", source=CODE)
    epsilon: float = param(
        0.5, "farthest move, in steps to the neighbour (isa, symmetric)", source=CODE + "; run.sh has 1.0"
    )
    alpha: float = param(1.0, "parameter of the Beta law (mixup)", source="ours", gt=0)


class Crucial(NamedTuple):
    """The part of a batch that counts.

    squares: expected squared residuals [k, K] of the kept samples. kept: which samples these are, int64 [k]. pair:
    the place in `kept` of the neighbour of each, int64 [k]; None where there is no augmentation.
    """

    squares: Tensor
    kept: Tensor
    pair: Tensor | None


def crucial(residuals: Tensor, gram: Callable[[Tensor], Tensor], params: SemanticParams) -> Crucial:
    """Select and augment. gram: index [k] of samples -> inner products [k, k] of their features.

    Gradients pass through `squares` to the residuals alone: which samples are kept and who is whose neighbour are
    constants.
    """
    kept = select(residuals.detach().square().sum(1) / 2, params.kappa)
    a = residuals[kept]
    first, second = moments(params.law, params.epsilon, params.alpha)
    if second == 0:
        return Crucial(a.square(), kept, None)
    with torch.no_grad():
        pair = nearest(gram(kept))
    return Crucial(expected_square(a, a - a[pair], first, second), kept, pair)


def select(errors: Tensor, kappa: float) -> Tensor:
    """Return which samples are kept, int64: all for a share of 0 or at least 1, in their order, else hardest first.

    A positive share keeps that part of the batch with the largest errors [b], a negative one that with the smallest,
    rounded down but at least one sample.
    """
    if kappa == 0 or abs(kappa) >= 1:
        return torch.arange(len(errors), device=errors.device)
    count = max(1, int(abs(kappa) * len(errors) + 1e-9))  # 0.29 * 100 is a little less than 29 in floats
    order = errors.argsort(descending=True, stable=True)
    return order[:count] if kappa > 0 else order[-count:]


def nearest(gram: Tensor) -> Tensor:
    """Return for every sample the other one of highest cosine similarity, int64 [k], from inner products [k, k].

    A sample without any feature is as far from all others as orthogonal ones. A single sample is its own neighbour.
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    cosine = gram / torch.where(norms > 0, norms, 1)  # up to the norm of the row, which all candidates share
    return cosine.fill_diagonal_(-torch.inf).argmax(1)


def moments(law: Law, epsilon: float, alpha: float) -> tuple[float, float]:
    """Return the mean of l and that of its square."""
    return {
        "none": (0.0, 0.0),
        "isa": (epsilon / 2, epsilon**2 / 3),
        "symmetric": (0.0, epsilon**2 / 3),
        "segment": (-1 / 2, 1 / 3),
        "mixup": (-1 / 2, (alpha + 1) / (2 * (2 * alpha + 1))),
    }[law]


def expected_square(a: Tensor, b: Tensor, first: float, second: float) -> Tensor:
    """Return the mean of (a + l b)^2 over a law of l with these moments, elementwise."""
    return a.square() + 2 * first * a * b + second * b.square()


def diagnostics(residuals: Tensor, targets: Tensor, found: Crucial) -> dict[str, Tensor]:
    """Return what tells whether selection and augmentation do what they should, 0-d tensors.

    batch_accuracy: of the predictions on the whole batch. kept_error, dropped_error: half the squared error of a
    sample. least_kept: share kept of the class that loses most; selection knows no classes. same_label: share of
    neighbours that do have the sample's label. size_a, size_b: mean magnitudes of A and B.
    """
    with torch.no_grad():
        errors, classes = residuals.square().sum(1) / 2, targets.argmax(1)
        kept = torch.zeros_like(errors).index_fill_(0, found.kept, 1.0)
        counts, left = (torch.zeros_like(targets[0]).index_add_(0, classes, n) for n in (torch.ones_like(kept), kept))
        logged = {
            "batch_accuracy": ((residuals + targets).argmax(1) == classes).double().mean(),
            "kept_error": (errors * kept).sum() / kept.sum(),
            "least_kept": torch.where(counts > 0, left / counts, 1.0).min(),
        }
        if len(found.kept) < len(errors):
            logged["dropped_error"] = (errors * (1 - kept)).sum() / (1 - kept).sum()
        if found.pair is not None:
            a, own = residuals[found.kept], classes[found.kept]
            logged["same_label"] = (own == own[found.pair]).double().mean()
            logged["size_a"], logged["size_b"] = a.abs().mean(), (a - a[found.pair]).abs().mean()
        return logged
