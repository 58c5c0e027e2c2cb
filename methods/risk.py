"""Group risk: how bad a loss is in the worst part of every group, and in the worst group.

The value at risk of a group of losses is their conditional value at risk (CVaR): the mean of the largest share `tail`.
tail 1 is the mean of the group, a tail near 0 its maximum. The risk of all groups is

    lambda_mean * mean over groups of CVaR + lambda_max * maximum over groups of CVaR

which guards against hard samples within a group and against hard groups. Groups come from features: a sample belongs
to the nearest of some anchors, whatever their classes.

    cvar, cvar_code    the tail mean of every group; what the released code of RDD computes in its place
    group_risk         from losses and groups to the risk; `influence`: how much each sample counts in it
    RiskLoss           cross-entropy that has the risk added at every third batch
    nearest, spread, representatives, centres     groups, anchors and batches by distance

`risk` says which one is meant. paper: the proper CVaR with its gradient. code: the released code's value, which
averages the smallest losses and drops small groups, and has no gradient, because the losses pass through an array of
another library; training is then plain training and only a logged number differs. none: no risk at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bench.api import Params, param
from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

CODE = "RDD, released code"
Risk = Literal["paper", "code", "none"]
EMBED = 256  # images in one pass, where only features are wanted


class RiskParams(Params):
    """What is added to the cross-entropy of a network that is trained on real images."""

    risk: Risk = param("paper", "paper: CVaR with gradient; code: as released, without any; none", source="RDD")
    tail: float = param(
        0.8,
        "share of each group's losses that counts, the largest; the code's alpha read as tail mass (0.2: read as "
        "confidence)",
        source=CODE,
        gt=0,
        le=1,
    )
    lambda_mean: float = param(1.0, "weight of the mean over groups", source=CODE, ge=0)
    lambda_max: float = param(1.0, "weight of the worst group", source=CODE, ge=0)
    every: int = param(
        3, "the risk counts in every so many batches, over all since the last time", unit="batches", source=CODE, ge=1
    )


# ---------------------------------------------------------------------------------------------- values


def cvar(losses: Tensor, groups: Tensor, count: int, tail: float) -> Tensor:
    """Return the mean of the largest `tail` of each group's losses, [count]; 0 for a group without any.

    losses: [n]; groups: int64 [n], 0 to count - 1. With m = tail * n_k and losses falling, the i-th of a group (from 0)
    weighs what of it lies within m, that is m - i held between 0 and 1, over m. The weights are the gradient.
    """
    sizes = group_sizes(groups, count)
    order, owner, rank = by_group(losses, groups, sizes, descending=True)
    mass = tail * sizes.to(losses.dtype)[owner]
    weights = (mass - rank).clamp(0, 1) / mass
    return torch.segment_reduce(losses[order] * weights, "sum", lengths=sizes)


def cvar_code(losses: Tensor, groups: Tensor, count: int, alpha: float) -> Tensor:
    """Return what the released code takes for the CVaR of each group, [count], without gradient.

    Every group becomes a row as long as the largest group, filled up with zeros and sorted ascending. Of its first
    `alpha` the mean of those that are not zero counts, so groups below a fifth of the largest are worth 0 at 0.8.
    """
    losses, sizes = losses.detach(), group_sizes(groups, count)
    order, owner, rank = by_group(losses, groups, sizes, descending=False)
    rows = losses.new_zeros(count, int(sizes.max()))
    rows[owner, rank] = losses[order]
    kept = max(1, int(alpha * rows.shape[1]))
    low = rows.sort(1).values[:, :kept]
    mean = low.sum(1) / (low != 0).sum(1).clamp(min=1)
    return (mean + low[:, -1] * (alpha - kept / rows.shape[1])) / alpha


def group_sizes(groups: Tensor, count: int) -> Tensor:
    """Return the number of samples of each group, int64 [count]."""
    return groups.new_zeros(count).index_add_(0, groups, torch.ones_like(groups))


def by_group(values: Tensor, groups: Tensor, sizes: Tensor, *, descending: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Sort by group, then by value; return the order, the group of each place, and its rank within the group."""
    order = values.detach().argsort(descending=descending, stable=True)
    order = order[groups[order].argsort(stable=True)]
    owner = groups[order]
    starts = sizes.cumsum(0) - sizes
    return order, owner, torch.arange(len(order), device=order.device) - starts[owner]


def group_risk(losses: Tensor, groups: Tensor, count: int, params: RiskParams) -> Tensor:
    """Return the risk of losses [n] in groups int64 [n], 0-d; groups without losses do not take part."""
    p = params
    if p.risk == "none":
        return losses.new_zeros(())
    if p.risk == "code":
        values = cvar_code(losses, groups, count, p.tail)
        present, worst = values != 0, values.max()
    else:
        values = cvar(losses, groups, count, p.tail)
        present = group_sizes(groups, count) > 0
        worst = values.where(present, -torch.inf).max()
    mean = values.where(present, 0).sum() / present.sum().clamp(min=1)
    return p.lambda_mean * mean + p.lambda_max * worst


def influence(losses: Tensor, groups: Tensor, count: int, params: RiskParams) -> Tensor:
    """Return the share of every sample in the gradient of the mean loss plus the risk, [n]; they sum to 1."""
    losses = losses.detach().requires_grad_()
    (share,) = torch.autograd.grad(losses.mean() + group_risk(losses, groups, count, params), losses)
    return share / share.sum()


# ---------------------------------------------------------------------------------------------- training


class RiskLoss:
    """Cross-entropy of a batch; of the first batch and every `every`-th one after it, plus the risk of all since.

    A single batch has too few images of most groups. The images since the last time are therefore kept, and the risk
    is that of the network as it is now on all of them: exact, at the price of passing them once more. The released code
    keeps their losses instead, of networks that are gone; under `risk: code` so do we.
    """

    def __init__(self, params: RiskParams, count: int) -> None:
        self.params, self.count = params, count
        self.number = 0
        self.kept: list[Kept] = []
        self.risk: Tensor | None = None  # as last computed

    def __call__(self, network: nn.Module, images: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
        """Return the loss of one batch, 0-d."""
        kind = self.params.risk
        due = kind != "none" and self.number % self.params.every == 0
        self.number += 1
        old = self.kept if due else []
        again = old if kind == "paper" else []
        logits = network(torch.cat([*(kept.images for kept in again), images]))
        labels = torch.cat([*(kept.labels for kept in again), labels])
        losses = F.cross_entropy(logits, labels, reduction="none")
        own = losses[-len(images) :]
        if due:
            if kind == "code":
                losses = torch.cat([*(kept.losses for kept in old), losses])
            groups = torch.cat([*(kept.groups for kept in old), groups])
            self.kept = []
            risk = group_risk(losses, groups, self.count, self.params)
            self.risk = risk.detach()
            return own.mean() + risk
        if kind != "none":
            self.kept.append(Kept(images, labels, groups, losses.detach()))
        return own.mean()


class Kept(NamedTuple):
    """A batch that the next risk counts; losses are those of the network at its time."""

    images: Tensor
    labels: Tensor
    groups: Tensor
    losses: Tensor


# ---------------------------------------------------------------------------------------------- distances


def embed(network: Any, images: Tensor) -> Tensor:
    """Return the features of images, [n, f], without gradient; the network stays in the mode it is in."""
    with torch.no_grad():
        return torch.cat([network.features(part) for part in images.split(EMBED)])


def nearest(features: Tensor, anchors: Tensor) -> Tensor:
    """Return the index of the nearest anchor [k, f] of each row [n, f], int64 [n]; the first of equally near ones."""
    return torch.cdist(features, anchors).argmin(1)


def spread(rows: Tensor, count: int, rule: Literal["last", "all"] = "last") -> Tensor:
    """Return the indices of `count` rows of every set [c, n, d] that lie far apart, int64 [c, count].

    The first row is taken, then again and again the one that is farthest from the one taken `last` (the released code),
    or from `all` taken so far, that is from the nearest of them.
    """
    taken = torch.zeros(rows.shape[:2], dtype=torch.bool, device=rows.device)
    last = torch.zeros(len(rows), 1, dtype=torch.int64, device=rows.device)
    gaps, chosen = torch.full(rows.shape[:2], torch.inf, dtype=rows.dtype, device=rows.device), [last]
    for _ in range(count - 1):
        taken.scatter_(1, last, True)
        new = (rows - rows.gather(1, last[..., None].expand(-1, -1, rows.shape[2]))).norm(dim=2)
        gaps = torch.minimum(gaps, new) if rule == "all" else new
        last = gaps.masked_fill(taken, -1).argmax(1, keepdim=True)
        chosen.append(last)
    return torch.cat(chosen, 1)


def centres(features: Tensor, count: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """Return k-means of rows [n, f]: at most `count` centres [k, f] and the centre of each row, int64 [n].

    The first centres are rows drawn from `rng`. A centre that lost all its rows is not returned.
    """
    from fast_pytorch_kmeans import KMeans

    start = torch.randperm(len(features), generator=rng, device=rng.device)[:count].to(features.device)
    model = KMeans(len(start))
    model.fit_predict(features, features[start])
    used, owner = nearest(features, model.centroids).unique(return_inverse=True)
    return model.centroids[used], owner


def representatives(features: Tensor, count: int, rng: Generator) -> Tensor:
    """Return the rows that are nearest to at most `count` k-means centres, each once, ascending, int64."""
    found, _ = centres(features, count, rng)
    return nearest(found, features).unique()
