"""From logits to accuracies: the few lines that several evaluators share.

A network that diverged has NaN for logits. It predicts nothing, so each such row counts as wrong: the network keeps
its place in the mean (leaving it out would flatter a method that often diverges) and is tagged, so that a table can
say so. `argmax` alone would silently give it the share of class 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from bench.api import EvalSpec, Evaluation, Measure, NetSpec, Trained, Training
from bench.lazy import torch
from bench.nets import spec as nets
from bench.train import recipe as recipes

if TYPE_CHECKING:
    from torch import Tensor

TOP = 5
"""The k of top-k accuracy, reported for datasets with more than `TOP_FROM` classes."""
TOP_FROM = 10


def request(
    spec: EvalSpec,
    network: NetSpec | None = None,
    *,
    snapshot: int | None = None,
    replicates: int | None = None,
    weights: bool = False,
    sets: Sequence[str] = (),
) -> Training:
    """Return the suite's default training with all fields resolved, so that equal requests are equal.

    network, replicates: in place of the suite's. snapshot: outer step of an intermediate set. weights: keep them.
    sets: names of the evaluator's own distillations to train on.
    Raises `UserError` if the network cannot be built for this dataset.
    """
    return Training(
        network=nets.resolve(network or spec.network, spec.task.dataset.shape),
        recipe=_recipe(json.dumps(spec.recipe)),
        replicates=replicates or spec.replicates,
        snapshot=snapshot,
        weights=weights,
        sets=tuple(sets),
    )


@cache
def _recipe(given: str) -> Mapping[str, Any]:
    """Return all fields of a recipe given as JSON text; one mapping for the seeds of a suite, never to be changed."""
    return recipes.resolve(json.loads(given)).model_dump(mode="json")


def correct(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Return whether the class of each test image is among the k largest logits, bool [E, N].

    logits: float [E, N, K]; labels: int64 [N]. A row with a NaN is wrong; of equal logits `torch.topk` chooses.
    """
    found = logits.topk(k, dim=2).indices if k > 1 else logits.argmax(2, keepdim=True)
    return (found == labels[None, :, None]).any(2) & ~logits.isnan().any(2)


def top_k(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Return the share of test images that are `correct`, float64 [E]."""
    return correct(logits, labels, k).double().mean(1)


def diverged(logits: Tensor) -> Tensor:
    """Return bool [E]: whether a network has lost all its predictions to NaN."""
    return logits.isnan().any(2).all(1)


def accuracies(trained: Trained, task: Evaluation) -> list[Measure]:
    """Return one measure per network of a request: accuracy after the last epoch, and what else its recipe asks for.

    Top-5 accuracy is added for more than ten classes. `best-val` and `best-test` come on top of `last`, never in its
    place. Diverged networks carry the tag `diverged=1`.
    """
    recipe, named = recipes.resolve(trained.training.recipe), how(trained.training, task)
    labels, lost = task.data.test.labels, diverged(trained.logits)
    found: dict[tuple[str, Any], Tensor] = {("accuracy", "last"): top_k(trained.logits, labels)}
    if trained.logits.shape[2] > TOP_FROM:
        found[f"top{TOP}_accuracy", "last"] = top_k(trained.logits, labels, TOP)
    if recipe.select != "last":
        found["accuracy", recipe.select] = best(trained.curves, recipe.select)
    return [
        measure
        for (metric, rule), values in found.items()
        for measure in per_network(metric, values, lost, **{**named, "selection": rule})
    ]


def how(training: Training, task: Evaluation) -> dict[str, Any]:
    """Return the fields of a measure that say how its networks were made; the last epoch counts."""
    return {
        "network": nets.label(training.network, task.spec.dataset.shape),
        "recipe": recipes.label(recipes.resolve(training.recipe)),
        "step": training.snapshot,
        "selection": "last",
    }


def per_network(
    metric: str, values: Tensor, lost: Tensor, tags: Mapping[str, str | int | float] | None = None, **named: Any
) -> list[Measure]:
    """Return one measure for each of the values [E]. lost: bool [E], the networks to tag as `diverged`."""
    own = dict(tags or {})
    return [
        Measure(metric, value, replicate=e, tags={**own, "diverged": 1} if gone else own, **named)
        for e, (value, gone) in enumerate(zip(values.tolist(), lost.tolist(), strict=True))
    ]


def best_of(measures: Iterable[Measure]) -> list[Measure]:
    """Return the maximum over the networks of one set of every measure, with the tag `best_of`.

    It is chosen on the test set and grows with the number of networks: for comparison with scripts that print it.
    """
    alike: dict[tuple[Any, ...], list[Measure]] = {}
    for measure in measures:
        tags = {name: value for name, value in measure.tags.items() if name != "diverged"}
        alike.setdefault((measure.metric, *tags.items()), []).append(replace(measure, tags=tags, replicate=None))
    best = (max(same, key=lambda measure: measure.value) for same in alike.values())
    return [
        replace(found, tags={**found.tags, "best_of": len(same)})
        for found, same in zip(best, alike.values(), strict=True)
    ]


def best(curves: Mapping[str, Tensor], select: str) -> Tensor:
    """Return the test accuracy at the epoch the rule picks, [E]; the earliest of equal ones.

    curves: `test_accuracy` [E, S] and, for best-val, `val_accuracy` [E, S].
    """
    chosen = curves["val_accuracy" if select == "best-val" else "test_accuracy"].argmax(1, keepdim=True)
    return curves["test_accuracy"].gather(1, chosen).squeeze(1)


def mean_accuracy(trained: Trained, labels: Tensor) -> float:
    """Return the mean over networks of the accuracy after the last epoch."""
    return float(torch.mean(top_k(trained.logits, labels)))
