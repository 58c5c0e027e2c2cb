"""Selections of real images: what random, herding, k-center and forgetting share.

One idea: a coreset method only orders the candidates of one class, best first. The candidates come to it in a random
order drawn from the task's seed; "the first of equals wins" then breaks ties by that order and nothing else, and the
choice does not depend on how the dataset is stored. Taking the first n makes the set for a small IPC part of the set
for a larger one.

The set carries the indices of the chosen images, so that later evaluations know which training images it exposes.
Guo, Zhao, Bai, "DeepCore: a comprehensive library for coreset selection in deep learning", DEXA 2022, arXiv
2204.08499, compares these selections; where its code and the papers differ, the papers are followed here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import bench.api
from bench.api import DistilledSet, Method, Need, Task, TaskSpec, param
from bench.distilled import make_set
from bench.errors import UserError
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Coreset(Method):
    """A method that is done after `start`: it chooses images and changes no pixel."""

    class Params(bench.api.Params):
        """Parameters of every selection."""

        balance: Literal["class", "none"] = param(
            "class", "`class`: IPC images of every class; `none`: IPC x classes images of any class"
        )

    steps = 0

    @abstractmethod
    def choose(self, candidates: Tensor, count: int) -> Tensor:
        """Return the `count` best of the candidates (int64 [m], training indices in random order), best first."""

    def start(self, task: Task) -> None:
        """Choose the images, class by class. Raises `UserError` where no IPC is set."""
        if task.spec.ipc is None:
            raise UserError(f"{type(self).title} needs a number of images per class")
        self.task, train, rng = task, task.data.train, task.rng("candidates")
        groups, count = [train.class_index(label) for label in train.present], task.spec.ipc
        if self.params.balance == "none":
            groups, count = [torch.arange(train.size, device=task.device)], count * len(groups)
        with task.phase("set"):
            chosen = []
            for group in groups:
                shuffled = group[torch.randperm(len(group), generator=rng, device=rng.device).to(group.device)]
                chosen.append(self.choose(shuffled, min(count, len(group))))
            self.indices = torch.cat(chosen)

    def export(self) -> DistilledSet:
        """Return the chosen images, grouped by class, within a class in the order they were chosen."""
        train = self.task.data.train
        return make_set(
            self.task,
            self,
            images=train.images(self.indices),
            labels=train.labels[self.indices],
            indices=self.indices,
            header={},
        )


class TrainedCoreset(Coreset):
    """A selection that needs a network trained on the whole training set: its features, or how it learned."""

    class Params(Coreset.Params):
        """Parameters of the selection and of the training it needs."""

        epochs: int = param(30, "training of the network behind the selection", unit="epochs", ge=1)

    @classmethod
    def needs(cls, params: Any, spec: TaskSpec) -> Mapping[str, Need]:
        """Return the one training that all selections of all IPC share for a dataset, network and seed.

        It sees mean/std normalised images whatever the set is stored in: the same images are chosen for whitened runs.
        """
        shared = {"ipc": None, "augment": "none", "preprocessing": "meanstd"}
        return {"dynamics": Need("dynamics", {"epochs": params.epochs}, shared)}

    def start(self, task: Task) -> None:
        """Read the training's results, then choose."""
        self.dynamics = task.artifact("dynamics")
        super().start(task)

    def features(self, candidates: Tensor) -> Tensor:
        """Return the centred penultimate features [m, d] of the candidates, in float64 where the device has it.

        Greedy selections do not change under translation; without the mean, rounding does not either.
        """
        features = self.dynamics["features"].to(candidates.device)[candidates]
        if features.device.type != "mps":
            features = features.double()
        return features - features.mean(0)
