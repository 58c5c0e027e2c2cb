"""From logits to accuracies: the few lines that several evaluators share.

A network that diverged has NaN for logits. It predicts nothing, so each such row counts as wrong: the network keeps
its place in the mean (leaving it out would flatter a method that often diverges) and is tagged, so that a table can
say so. `argmax` alone would silently give it the share of class 0.
"""

from __future__ import annotations

from collections.abc import Mapping
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
) -> Training:
    """Return the suite's default training with all fields resolved, so that equal requests are equal.

    network, replicates: in place of the suite's. snapshot: outer step of an intermediate set. weights: keep them.
    Raises `UserError` if the network cannot be built for this dataset.
    """
    return Training(
        network=nets.resolve(network or spec.network, spec.task.dataset.shape),
        recipe=recipes.resolve(spec.recipe).model_dump(mode="json"),
        replicates=replicates or spec.replicates,
        snapshot=snapshot,
        weights=weights,
    )


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
    recipe = recipes.resolve(trained.training.recipe)
    named: dict[str, Any] = {
        "network": nets.label(trained.training.network, task.spec.dataset.shape),
        "recipe": recipes.label(recipe),
        "step": trained.training.snapshot,
    }
    labels = task.data.test.labels
    lost = diverged(trained.logits).tolist()
    found: dict[tuple[str, Any], Tensor] = {("accuracy", "last"): top_k(trained.logits, labels)}
    if trained.logits.shape[2] > TOP_FROM:
        found[f"top{TOP}_accuracy", "last"] = top_k(trained.logits, labels, TOP)
    if recipe.select != "last":
        found["accuracy", recipe.select] = best(trained.curves, recipe.select)
    return [
        Measure(metric, float(value), selection=rule, replicate=e, tags={"diverged": 1} if lost[e] else {}, **named)
        for (metric, rule), values in found.items()
        for e, value in enumerate(values)
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
