"""Accuracy by groups of test images: how bad it is where it is worst.

A distilled set fits the average and may lose the rare regions of the data. Three ways of making groups:

    pixels     ten k-means clusters of the raw normalised test pixels, labels ignored (Vahidian et al. 2025)
    features   the same on the features of a network trained on the real images (ours)
    given      the group labels of the dataset, where it has them

The logits are those of the accuracy evaluator: nothing is trained here. `cluster_mean` weighs all groups equally and
is therefore not the accuracy; `group_adjusted` weighs groups by their share of the training images (Sagawa et al.,
Distributionally Robust Neural Networks, ICLR 2020). The minimum over small groups is low by chance alone: the number
of groups with fewer than 30 images is reported beside it (`small_groups`), and they are left out of the statistics on
request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Strict

from bench.api import EvalSpec, Evaluation, Evaluator, Measure, Need, Params, Training, param
from bench.lazy import torch
from evaluators import groups
from evaluators.metrics import best_of, correct, diverged, how, per_network, request

if TYPE_CHECKING:
    from torch import Tensor

Family = Literal["pixels", "features", "given"]
BEST_OF = ("accuracy", "class_min", "cluster_min", "cluster_mean", "group_min", "group_mean", "group_adjusted")
"""Metrics of which the maximum over the networks may be wanted."""


class SubgroupParams(Params):
    """Which groups, and which statistics of them."""

    families: Annotated[tuple[Family, ...], Strict(False)] = param(
        ("pixels", "given"), "ways of making groups; given: only where the dataset has group labels"
    )
    clusters: int = param(10, "number of k-means groups", source=groups.SOURCE, ge=2)
    starts: int = param(10, "starts of k-means (n_init)", source=groups.STARTS_SOURCE, ge=1)
    reference: str = param("convnet", "network whose features are grouped, trained on the real images", source="ours")
    epochs: int = param(30, "training of that network", unit="epochs", source="ours", ge=1)
    by_class: bool = param(False, "also every group split by class", source="ours")
    smallest: int = param(30, "images below which a group is small", source="ours", ge=1)
    small: Literal["keep", "leave_out"] = param(
        "keep", "what becomes of small groups in minimum, mean, gap and adjusted accuracy", source=groups.SOURCE
    )
    best_of_networks: bool = param(
        False, "also the maximum over the networks of one set, as the released script prints", source=groups.SOURCE
    )


class Subgroup(Evaluator):
    """Measure minimum, mean and every single accuracy over groups of test images, for every network."""

    Params = SubgroupParams
    title = "Accuracy by groups"
    citation = "Vahidian et al., Group Distributionally Robust Dataset Distillation with Risk Minimization, ICLR 2025"

    @classmethod
    def trainings(cls, params: SubgroupParams, spec: EvalSpec) -> Sequence[Training]:
        """Return the one request: the suite's network and recipe."""
        return (request(spec),)

    @classmethod
    def needs(cls, params: SubgroupParams, spec: EvalSpec) -> Mapping[str, Need]:
        """Return the groups by k-means."""
        found = {}
        if "pixels" in params.families:
            found["pixels"] = groups.of_pixels(params.clusters, params.starts)
        if "features" in params.families:
            found["features"] = groups.of_features(params.clusters, params.starts, params.reference, params.epochs)
        return found

    def evaluate(self, task: Evaluation) -> list[Measure]:
        """Return accuracy, worst class, and the statistics of every way of making groups, for every network."""
        (training,) = self.trainings(self.params, task.eval_spec)
        logits, labels = task.trained(training).logits, task.data.test.labels
        right, lost, named = correct(logits, labels), diverged(logits), how(training, task)
        measures = per_network("accuracy", right.double().mean(1), lost, **named)
        measures += per_network("class_min", each_group(Grouping("class", labels[None]), right).amin(1), lost, **named)
        for grouping in self._groupings(task):
            small, tags = grouping.counts < self.params.smallest, dict(grouping.tags)
            left_out = small if self.params.small == "leave_out" else torch.zeros_like(small)
            for metric, values in statistics(grouping, right, left_out).items():
                measures += per_network(metric, values, lost, tags, **named)
            measures.append(Measure("small_groups", int(small.sum()), "groups", tags=tags, **named))
            for g, values in enumerate(each_group(grouping, right).unbind(1)):
                own = {**tags, "group": grouping.label(g), "images": int(grouping.counts[g])}
                measures += per_network(f"{grouping.name}_accuracy", values, lost, own, **named)
        if self.params.best_of_networks:
            measures += best_of(one for one in measures if one.metric in BEST_OF)
        return measures

    def _groupings(self, task: Evaluation) -> Iterator[Grouping]:
        """Yield the groups of every family, then split by class where that is wanted."""
        test, train = task.data.test, task.data.train
        for family in dict.fromkeys(self.params.families):
            if family != "given":
                name, keys, seen = "cluster", task.artifact(family)["groups"].to(test.labels.device), None
            elif test.groups is not None:
                name, keys, seen = "group", test.groups, train.groups
            else:
                continue
            tags = {"groups": family}
            yield Grouping(name, keys[None], None if seen is None else seen[None], tags)
            if self.params.by_class:
                pairs = None if seen is None else torch.stack([train.labels, seen])
                yield Grouping(name, torch.stack([test.labels, keys]), pairs, {**tags, "split": "class"})


@dataclass(frozen=True)
class Grouping:
    """One way of making groups of the test images.

    name: cluster or group; the metrics begin with it. keys: int64 [r, N], what the images of a group have in
    common. train: the same of the training images, where it is known. tags: what tells it from others.
    """

    name: str
    keys: Tensor
    train: Tensor | None = None
    tags: Mapping[str, str | int | float] = field(default_factory=dict)

    @cached_property
    def _found(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.unique(self.keys, dim=1, return_inverse=True, return_counts=True)

    @property
    def index(self) -> Tensor:
        """The group of each test image, 0 to G - 1, int64 [N]."""
        return self._found[1]

    @property
    def counts(self) -> Tensor:
        """The number of test images of each group, int64 [G]."""
        return self._found[2]

    def label(self, g: int) -> str:
        """Return the name of a group: its key, or `class/key`."""
        return "/".join(map(str, self._found[0][:, g].tolist()))

    def shares(self) -> Tensor | None:
        """Return the share of each group among the training images, float64 [G], or None where it is not known."""
        if self.train is None:
            return None
        return torch.stack([(self.train == key[:, None]).all(0).double().mean() for key in self._found[0].T])


def each_group(grouping: Grouping, right: Tensor) -> Tensor:
    """Return the accuracy of every group, float64 [E, G], of networks that are `right` (bool [E, N]) or not."""
    sums = torch.zeros(len(right), len(grouping.counts), dtype=torch.float64, device=right.device)
    return sums.index_add_(1, grouping.index, right.double()) / grouping.counts


def statistics(grouping: Grouping, right: Tensor, left_out: Tensor) -> dict[str, Tensor]:
    """Return metric -> values, float64 [E]: minimum, mean, gap and adjusted.

    gap: of the accuracy on all images over the minimum. adjusted: the mean with the weights that the groups have in
    training, where these are known; of test groups that never occur in training it says nothing. left_out: bool [G].
    Nothing is returned where no group is left.
    """
    if left_out.all():
        return {}
    each = each_group(grouping, right)[:, ~left_out]
    lowest = each.amin(1)
    found = {"min": lowest, "mean": each.mean(1), "gap": right.double().mean(1) - lowest}
    shares = grouping.shares()
    if shares is not None and (weights := shares[~left_out]).sum() > 0:
        found["adjusted"] = each @ (weights / weights.sum())
    return {f"{grouping.name}_{statistic}": values for statistic, values in found.items()}
