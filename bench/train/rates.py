"""Learning rates by trial: networks are trained at each of several rates, and each is kept at the one that suits it.

What suits is asked of real images that were held out: a tenth of the training images, drawn once for a seed, without
those the set itself holds, which a network has seen. The distillation may have used them; the test set has no part in
the choice. A recipe that selects the best epoch chooses the rate by the same accuracies as the epoch, so `best-test`
looks at the test set and is labelled so.

Every try begins with the same weights, shuffles and augmentations. One that diverges has lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from bench.errors import Diverged, UserError
from bench.lazy import torch
from bench.train.trainer import Handle, predict

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from bench.api import DistilledSet, Task
    from bench.data.prepared import Part

SHARE = 0.1
BATCH = 1000
OF_ALL = ("seconds", "stacked", "curve/epoch", "curve/selection_epoch")
"""Tensors of an attempt that have no row for every network."""
LOST = -1.0
"""What a network that is no longer finite scores."""


def held_out(task: Task, distilled: DistilledSet) -> Tensor:
    """Return the training images that choose the rate for a set, int64 [v].

    Raises `UserError` where the set itself holds all of them.
    """
    size, rng = task.data.train.size, task.rng("evaluation/rates")
    chosen = torch.randperm(size, generator=rng, device=rng.device)[: max(1, round(SHARE * size))].to(task.data.device)
    if distilled.indices is not None and distilled.header.dataset == task.spec.dataset.name:
        chosen = chosen[~torch.isin(chosen, distilled.indices.to(chosen.device))]
    if not len(chosen):
        raise UserError(
            "no training image is left to choose a learning rate by: the set holds all that were held out",
            where=f"set of {distilled.header.method}",
            hint="give the recipe a rate, or leave this set out",
        )
    return chosen


def accuracy_on(handle: Handle, part: Part, index: Tensor) -> Tensor:
    """Return the accuracy of every network on some images of a half of the data, float64 [E]; NaN predicts nothing."""
    logits = predict(handle, (part.images(rows) for rows in index.split(BATCH)))
    right = (logits.argmax(2) == part.labels[index]) & ~logits.isnan().any(2)
    return right.double().mean(1)


def choose(
    rates: Sequence[float], rngs: Sequence[Generator], attempt: Callable[[float], tuple[Tensor, Mapping[str, Tensor]]]
) -> dict[str, Tensor]:
    """Return the tensors of every network at its best rate, of equal ones the first.

    attempt: trains at one rate and returns scores float64 [E] and tensors, [E, ...] but for `OF_ALL`. rngs: set back
    before each. Adds `curve/rate` float64 [E] and `curve/rate_score` float64 [E, R]; `seconds` is that of all tries.
    Raises `Diverged` if no network is finite at any rate.
    """
    begin = [rng.get_state() for rng in rngs]
    best: dict[str, Tensor] = {}
    scores: list[Tensor | None] = []
    for rate in rates:
        for rng, state in zip(rngs, begin, strict=True):
            rng.set_state(state)
        try:
            score, found = attempt(rate)
        except Diverged:
            scores.append(None)
            continue
        found = {**found, "curve/rate": torch.full_like(score, rate), "curve/score": score}
        best = _better(best, found) if best else found
        scores.append(score)
    if not best:
        raise Diverged(f"all networks are NaN at every rate: {', '.join(f'{rate:g}' for rate in rates)}")
    lost = torch.full_like(best.pop("curve/score"), LOST)
    return {**best, "curve/rate_score": torch.stack([lost if one is None else one for one in scores], 1)}


def _better(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return for every network the tensors with the higher score."""
    won = new["curve/score"] > old["curve/score"]
    merged = {name: old[name] for name in OF_ALL if name in old}
    merged["seconds"] = old["seconds"] + new["seconds"]
    for name in old.keys() - merged.keys():
        merged[name] = torch.where(won.view(-1, *[1] * (old[name].dim() - 1)), new[name], old[name])
    return merged
