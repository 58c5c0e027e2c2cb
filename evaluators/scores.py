"""Scores that tell how strange an image looks to a network; larger = more out of the distribution (OOD).

All are made of what the network said of the images (`evaluators.seen`), so one pass serves every score.

Scores that compare with known images are fitted: on the distilled set itself (what a user of it has), or on the real
training images, which distillation means to do without. A distilled set is far smaller than the feature space, hence
covariances have no inverse: the pseudo-inverse takes its place, and what no rule can define raises `Undefined`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from evaluators.seen import Head, Seen

CHUNK = 2000
"""Images compared with all known ones at once; bounds memory, changes nothing."""


class Undefined(Exception):
    """A score has no meaning for this network and these known images; the text says why."""


@dataclass(frozen=True)
class Known:
    """The head of a network, and what it says of known images with labels int64 [n], None where no score wants them."""

    head: Head
    seen: Seen | None = None
    labels: Tensor | None = None


Rule = Callable[["Seen"], "Tensor"]
"""What a network says of images -> their scores, float64 [n]."""

# ---------------------------------------------------------------------------------------------- from the logits


def msp(logits: Tensor) -> Tensor:
    """Return 1 - max_k p_k (Hendrycks and Gimpel, ICLR 2017) as the sum of the others: max p itself rounds to 1."""
    return logits.softmax(1).sort(1).values[:, :-1].sum(1)


def max_logit(logits: Tensor) -> Tensor:
    """Return -max_k z_k (Hendrycks et al., ICML 2022)."""
    return -logits.amax(1)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return -T logsumexp(z / T) (Liu et al., NeurIPS 2020)."""
    return -temperature * (logits / temperature).logsumexp(1)


def entropy(logits: Tensor) -> Tensor:
    """Return -sum_k p_k log p_k."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def gen(logits: Tensor, gamma: float = 0.1, top: int = 100) -> Tensor:
    """Return the sum of p^g (1-p)^g over the `top` largest probabilities (Liu, Lochman and Zach, CVPR 2023)."""
    p = logits.softmax(1).sort(1, descending=True).values
    rest = 1 - p
    rest[:, 0] = p[:, 1:].sum(1)
    return (p * rest)[:, :top].pow(gamma).sum(1)


# ---------------------------------------------------------------------------------------------- known images


def principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the directions [d, r] and variances [r], largest first, of rows [n, d] about the origin: X'X / n.

    Directions whose variance is rounding (below d eps of the largest, as in `scipy.linalg.pinvh`) are left out.
    """
    n, d = rows.shape
    if n < d:
        _, scales, directions = torch.linalg.svd(rows, full_matrices=False)
        variances, directions = scales.square() / n, directions.T
    else:
        variances, directions = (found.flip(-1) for found in torch.linalg.eigh(rows.T @ rows / n))
    real = variances > variances[0] * d * torch.finfo(rows.dtype).eps
    return directions[:, real], variances[real]


def class_means(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of every class that occurs, [C, d], and of which of them each row is, int64 [n]."""
    own = labels.unique(return_inverse=True)[1]
    members = F.one_hot(own).to(features)  # not index_add, whose order of sums is not fixed on every device
    return (members / members.sum(0)).T @ features, own


def distance(means: Tensor, spread: Tensor) -> Callable[[Tensor], Tensor]:
    """Return features [m, d] -> the smallest squared Mahalanobis distance to any of the means [C, d], [m].

    spread: centred rows whose covariance is meant. Raises `Undefined` where they are all zero.
    """
    directions, variances = principal(spread)
    if not len(variances):
        raise Undefined("no spread: the known images of a class have one and the same features")
    scaled = directions / variances.sqrt()
    return lambda features: torch.cdist(features @ scaled, means @ scaled).square().amin(1)


def mahalanobis(features: Tensor, labels: Tensor) -> Rule:
    """Fit the class means and one covariance for all classes (Lee et al., NeurIPS 2018)."""
    means, own = class_means(features, labels)
    nearest = distance(means, features - means[own])
    return lambda seen: nearest(seen.features)


def rmds(features: Tensor, labels: Tensor) -> Rule:
    """Subtract the distance to the mean of all, in the covariance about it (Ren et al., 2021)."""
    means, own = class_means(features, labels)
    overall = features.mean(0, keepdim=True)
    nearest, background = distance(means, features - means[own]), distance(overall, features - overall)
    return lambda seen: nearest(seen.features) - background(seen.features)


def knn(features: Tensor, k: int = 50) -> Rule:
    """Return the distance to the k-th nearest known features, all of norm 1 (Sun et al., ICML 2022); k is at most n."""
    known, k = F.normalize(features), min(k, len(features))

    def rule(seen: Seen) -> Tensor:
        chunks = F.normalize(seen.features).split(CHUNK)
        return torch.cat([torch.cdist(rows, known).topk(k, largest=False).values[:, -1] for rows in chunks])

    return rule


def vim(head: Head, known: Seen, dimension: int = 256) -> Rule:
    """Return alpha |P (f - u)| - logsumexp(z) (Wang et al., CVPR 2022), u where all logits are 0.

    P takes away the `dimension` largest directions of the known features about u; alpha makes both parts equally
    large on them. A residual is left only where the dimension is below their rank, so it is at most rank - 1.
    """
    origin = -torch.linalg.pinv(head.weight) @ head.bias
    directions, _ = principal(known.features - origin)
    if directions.shape[1] < 2:
        raise Undefined("the known features span fewer than two directions")
    kept = directions[:, : min(dimension, directions.shape[1] - 1)]

    def residual(features: Tensor) -> Tensor:
        rows = features - origin
        return (rows - rows @ kept @ kept.T).norm(dim=1)

    alpha = known.logits.amax(1).mean() / residual(known.features).mean()
    return lambda seen: alpha * residual(seen.features) + energy(seen.logits)


# ---------------------------------------------------------------------------------------------- changed features


def react(head: Head, features: Tensor, percentile: float = 90.0) -> Rule:
    """Return the energy with features cut at a percentile of all known ones (Sun, Guo and Li, NeurIPS 2021)."""
    import numpy as np

    limit = float(np.percentile(features.cpu().numpy(), percentile))
    return lambda seen: energy(head(seen.features.clamp(max=limit)))


def shaped(head: Head, change: Callable[[Tensor, Tensor], Tensor], percentile: float) -> Rule:
    """Return the energy with features changed by `change(features, kept)`; kept: 1 at the largest of a row, else 0.

    k = d - round(d percentile / 100) features are kept, at least one. Raises `Undefined` for negative features.
    """

    def rule(seen: Seen) -> Tensor:
        features = seen.features
        if float(features.amin()) < 0:
            raise Undefined("it is made for features that are not negative")
        d = features.shape[1]
        largest = features.topk(max(1, d - round(d * percentile / 100))).indices
        return energy(head(change(features, torch.zeros_like(features).scatter(1, largest, 1.0))))

    return rule


def ash_p(features: Tensor, kept: Tensor) -> Tensor:
    """Prune: the largest features as they are (Djurisic et al., ICLR 2023)."""
    return features * kept


def ash_b(features: Tensor, kept: Tensor) -> Tensor:
    """Binarise: the sum of all features, in equal parts at the places of the largest (Djurisic et al., ICLR 2023)."""
    return kept * (features.sum(1, keepdim=True) / kept.sum(1, keepdim=True))


def ash_s(features: Tensor, kept: Tensor) -> Tensor:
    """Scale: the largest features times exp(sum of all / sum of these) (Djurisic et al., ICLR 2023)."""
    return features * kept * _growth(features, kept)


def scale(features: Tensor, kept: Tensor) -> Tensor:
    """Keep all features and scale them as ASH-S does (Xu et al., ICLR 2024)."""
    return features * _growth(features, kept)


def _growth(features: Tensor, kept: Tensor) -> Tensor:
    """Return exp(sum of all / sum of the kept), [n, 1]; 1 for rows of zeros."""
    total, own = features.sum(1, keepdim=True), (features * kept).sum(1, keepdim=True)
    return torch.where(own > 0, total / own, 0.0).exp()


# ---------------------------------------------------------------------------------------------- by name


@dataclass(frozen=True)
class Score:
    """make: (what is known, the evaluator's parameters) -> rule. fitted: it wants known images."""

    make: Callable[[Known, Any], Rule]
    fitted: bool = False


def _of_logits(function: Callable[[Tensor], Tensor]) -> Score:
    return Score(lambda known, p: lambda seen: function(seen.logits))


def _fitted(make: Callable[[Known, Seen, Tensor, Any], Rule]) -> Score:
    def rule(known: Known, p: Any) -> Rule:
        assert known.seen is not None
        assert known.labels is not None
        return make(known, known.seen, known.labels, p)

    return Score(rule, fitted=True)


def _odin(known: Known, p: Any) -> Rule:
    def rule(seen: Seen) -> Tensor:
        assert seen.perturbed is not None
        return msp(seen.perturbed / p.odin_temperature)

    return rule


SCORES: dict[str, Score] = {
    "msp": _of_logits(msp),
    "max_logit": _of_logits(max_logit),
    "energy": Score(lambda known, p: lambda seen: energy(seen.logits, p.temperature)),
    "entropy": _of_logits(entropy),
    "gen": Score(lambda known, p: lambda seen: gen(seen.logits, p.gen_gamma, p.gen_top)),
    "odin": Score(_odin),
    "mahalanobis": _fitted(lambda known, seen, labels, p: mahalanobis(seen.features, labels)),
    "rmds": _fitted(lambda known, seen, labels, p: rmds(seen.features, labels)),
    "knn": _fitted(lambda known, seen, labels, p: knn(seen.features, p.neighbours)),
    "vim": _fitted(lambda known, seen, labels, p: vim(known.head, seen, p.vim_dimension)),
    "react": _fitted(lambda known, seen, labels, p: react(known.head, seen.features, p.react_percentile)),
    "ash_p": Score(lambda known, p: shaped(known.head, ash_p, p.ash_percentile)),
    "ash_b": Score(lambda known, p: shaped(known.head, ash_b, p.ash_percentile)),
    "ash_s": Score(lambda known, p: shaped(known.head, ash_s, p.ash_percentile)),
    "scale": Score(lambda known, p: shaped(known.head, scale, p.scale_percentile)),
}
"""All scores by name."""
