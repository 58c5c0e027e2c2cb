"""What a set is worth without its soft labels and its augmentation: the scores of DD-Ranking, in fractions.

    HLR = a(all real images, hard labels) - a(set, hard labels)                  small is good
    IOR = a(set, its own protocol) - a(random real images, the same protocol)    large is good
    LRS = score(w IOR - (1 - w) HLR)                          score(x) = (e^x - e^-1) / (e - e^-1), in [0, 1]
    ARS = score(g [a(set, aug) - a(random, aug)] + (1 - g) [a(set, no aug) - a(random, no aug)])

The published code enters accuracies in percent, chooses rates and epochs on the test set, and trains the baselines anew
for every method. Here accuracies are fractions after the last epoch, every network has the rate that real training
images choose (`bench.train.rates`), and baselines are trained once for a dataset, size, seed and protocol. The networks
of random images have the seeds of those of the set, so IOR is a difference within pairs. `protocol: ddranking` chooses
as published: the best epoch and rate on the test set, called `best-test` in every table.

Own protocol: the suite's recipe for the method, `native` for that of its paper. Augmentation is that of the recipe, or
`augment` for one that has none. A set with hard labels is trained with them anyway, so its own run is the hard one. One
with soft labels is trained once more on the classes they favour, by cross entropy, without augmentation, as published.

Random images have no soft labels. By default they keep their classes, under the loss that hard labels have in the
recipe: IOR then holds what soft labels bring. As published a teacher labels them: `baseline: random_soft`, with its
parameters (`labels: centred` where the set has such). Labels are stored, one for an image; a teacher that answers every
augmented batch is not offered. Other deviations: one random set for a seed, not for a repeat (take more seeds); the
recipe of the full data is the same for all networks; the recipe's own rate is among those tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, Strict

from bench import augment
from bench.api import EvalSpec, Evaluation, Evaluator, Measure, Params, Training, param
from bench.errors import UserError
from bench.lazy import torch
from bench.nets import spec as nets
from bench.train import recipe as recipes
from bench.train.recipe import Recipe
from evaluators.metrics import best, diverged, per_network, request, top_k

if TYPE_CHECKING:
    from torch import Tensor

SOURCE = "DD-Ranking"
CHECK = 10
"""Epochs between two looks at the test set in the published protocol."""
FULL = Recipe(epochs=200, batch=512, schedule="step")
"""Training on all real images: the published recipe of ConvNet-3 on CIFAR, step decay at half of 200 epochs."""
Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Strict(False)]


class DDRankingParams(Params):
    """The weights of the scores, and how networks are trained."""

    w: float = param(0.5, "weight of IOR in LRS, the rest is HLR's", source=SOURCE, ge=0, le=1)
    g: float = param(0.5, "weight of training with augmentation in ARS", source=SOURCE, ge=0, le=1)
    protocol: Literal["last", "ddranking"] = param("last", "ddranking: best epoch and rate on the test set")
    rates: Rates = param((0.001, 0.005, 0.01, 0.05, 0.1), "learning rates to try", source=SOURCE, min_length=1)
    own_rate: Literal["search", "recipe"] = param(
        "search", "own protocol of the set: best of `rates` like random images, unless learned, or the recipe's"
    )
    augment: str = param("dsa", "augmentation of ARS where the recipe has none", source=SOURCE)
    augment_hard: bool = param(False, "sets with soft labels: augment in the run on hard ones too", source=SOURCE)
    labels: Literal["any", "hard"] = param("any", "hard: no set has soft labels, a third fewer trainings of it")
    full: dict[str, Any] = param({}, "fields of the recipe of the full data that differ from the published ones")
    baseline: Literal["random", "random_soft"] = param("random", "random images with their classes or a teacher's")
    baseline_params: dict[str, Any] = param({}, "parameters of that method")


class DDRanking(Evaluator):
    """Measure LRS, ARS, HLR and IOR of every repeat."""

    Params = DDRankingParams
    title = "Label- and augmentation-robust scores"
    citation = "DD-Ranking: Rethinking the Evaluation of Dataset Distillation, NUS-HPC-AI-Lab, 2024"

    @classmethod
    def distillations(cls, params: DDRankingParams, spec: EvalSpec) -> Mapping[str, Mapping[str, Any]]:
        """Return random images of the same number and seed, and all real images, the same for all seeds.

        Raises `UserError` for a set without a number of images.
        """
        if spec.task.ipc is None:
            raise UserError(
                f"{spec.method!r} has no number of images, so no random set is as large",
                hint="leave it out with `where`",
            )
        common = {"network": spec.network, "augment": "none"}
        return {
            "random": {"method": params.baseline, "params": params.baseline_params, **common},
            "full": {"method": "whole", "ipc": None, "seed": 0, **common},
        }

    @classmethod
    def trainings(cls, params: DDRankingParams, spec: EvalSpec) -> Sequence[Training]:
        """Return the networks of all runs."""
        return list(runs(params, spec).values())

    def evaluate(self, task: Evaluation) -> list[Measure]:
        """Return the scores of every repeat, with the accuracies and rates behind them.

        Raises `UserError` for soft labels where `labels: hard` promises none.
        """
        p, spec = self.params, task.eval_spec
        planned, hard = runs(p, spec), task.distilled().header.label_kind == "hard"
        if not (hard or "hard" in planned):
            raise UserError("the labels of this set are soft, `labels: hard` says they are not", hint="labels: any")
        if hard:
            planned.pop("hard", None)
        a, lost, behind = {}, torch.zeros(spec.replicates, dtype=torch.bool), []
        for run, training in planned.items():
            trained = task.trained(training)
            if p.protocol == "last":
                a[run] = top_k(trained.logits, task.data.test.labels).cpu()
            else:
                a[run] = best(trained.curves, "best-test").double().cpu()
            gone = diverged(trained.logits).cpu()
            lost |= gone
            named = {**self._how(spec), "recipe": recipes.label(recipes.resolve(training.recipe))}
            tags = {"run": run, "baseline": p.baseline}
            behind += per_network("accuracy", a[run], gone, tags, **named)
            if "rate" in trained.curves:
                behind += per_network("rate", trained.curves["rate"], gone, tags, **named, unit="rate")
        own = recipes.resolve(spec.recipe)
        tags = {"own": recipes.label(own).replace(", ", ","), "baseline": p.baseline}  # ", " stands between tags
        found = scores(a, augmented(own, spec), p.w, p.g)
        named = self._how(spec)
        return [m for name, values in found.items() for m in per_network(name, values, lost, tags, **named)] + behind

    def _how(self, spec: EvalSpec) -> dict[str, Any]:
        """Return the network and the selection rule, as the fields of a measure."""
        rule = "last" if self.params.protocol == "last" else "best-test"
        return {"network": nets.label(spec.network, spec.task.dataset.shape), "selection": rule}


# ---------------------------------------------------------------------------------------------- the scores


def score(difference: Tensor) -> Tensor:
    """Return (e^x - e^-1) / (e - e^-1): 0 at -1, 1 at 1, rising and convex."""
    return (difference.exp() - math.exp(-1)) / (math.e - math.exp(-1))


def scores(a: Mapping[str, Tensor], augments: bool, w: float, g: float) -> dict[str, Tensor]:
    """Return the scores of every repeat by name, float64 [E].

    a: accuracy [E] of every run, fractions; `hard` is missing where the own run is the hard one. augments: whether the
    own protocol is the one with augmentation.
    """
    hlr = a["full"] - a.get("hard", a["own"])
    ior, turned = a["own"] - a["random"], a["turned"] - a["random_turned"]
    alpha = w * ior - (1 - w) * hlr
    beta = g * ior + (1 - g) * turned if augments else g * turned + (1 - g) * ior
    return {"lrs": score(alpha), "ars": score(beta), "hlr": hlr, "ior": ior, "alpha": alpha, "beta": beta}


# ---------------------------------------------------------------------------------------------- the runs


def runs(p: DDRankingParams, spec: EvalSpec) -> dict[str, Training]:
    """Return what is trained, by run.

    own, random: the set and random images under the set's own protocol. turned, random_turned: the same with
    augmentation if that has none, else without. hard: the set on hard labels. full: all real images.
    Raises `UserError` for a protocol that random images cannot follow.
    """
    own = recipes.resolve(spec.recipe)
    refuse(own, p)
    turned = with_augment(own, spec, "none" if augmented(own, spec) else p.augment)
    hard = (own if p.augment_hard else with_augment(own, spec, "none")).model_copy(update={"loss": "ce"})
    given = own.lr == "learned" or p.own_rate == "recipe"
    found = {
        "own": _request(p, spec, own, search=not given),
        "random": _request(p, spec, own, "random"),
        "turned": _request(p, spec, turned, search=not given),
        "random_turned": _request(p, spec, turned, "random"),
        "hard": _request(p, spec, hard),
        "full": _request(p, spec, recipes.resolve(p.full, base=FULL), "full", search=False),
    }
    return {run: training for run, training in found.items() if run != "hard" or p.labels != "hard"}


def augmented(recipe: Recipe, spec: EvalSpec) -> bool:
    """Tell whether a recipe augments this dataset."""
    return augment.resolve(recipe.augment, spec.task.dataset) != "none" or recipe.cutmix > 0


def with_augment(recipe: Recipe, spec: EvalSpec, name: str) -> Recipe:
    """Return the recipe with another augmentation and nothing else changed: its length stays what it was here."""
    own = recipe.on(augment.resolve(recipe.augment, spec.task.dataset))
    return own.model_copy(update={"augment": name, "cutmix": 0.0})


def refuse(recipe: Recipe, p: DDRankingParams) -> None:
    """Raise `UserError` for a protocol that random images cannot follow."""
    if recipe.use_steps:
        raise UserError(
            "random images cannot follow the ordered steps of another set, so IOR has no baseline",
            hint="give the method another recipe, for example `recipes: {dd: review}` under `evaluation`",
        )
    if recipe.loss == "l1" and p.baseline_params.get("labels") != "logits":
        raise UserError(
            "the loss l1 compares logits, which random images do not have",
            hint="params: {baseline: random_soft, baseline_params: {labels: logits}}",
        )


def _request(p: DDRankingParams, spec: EvalSpec, recipe: Recipe, of: str = "", *, search: bool = True) -> Training:
    """Return the request for a run on the set, or on the baseline `of`; search: at the best rate."""
    rates = sorted({*p.rates, *([] if recipe.lr == "learned" else [recipe.lr])}) if search else []
    fields: dict[str, Any] = {"select": "last"}
    if p.protocol == "ddranking":
        epochs = recipe.on(augment.resolve(recipe.augment, spec.task.dataset)).epochs
        fields = {"select": "best-test", "evaluations": epochs // CHECK or 1 if epochs else recipe.evaluations}
    if rates and recipe.lr == "learned":  # the rates replace it, whatever stands here: as most recipes, to be shared
        fields["lr"] = Recipe.model_fields["lr"].default
    recipe = recipe.model_copy(update=fields)
    asked = request(spec, sets=[of] if of else [])
    return replace(asked, recipe=recipe.model_dump(mode="json"), rates=tuple(rates))
