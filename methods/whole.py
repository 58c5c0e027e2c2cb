"""The whole training set: what a network reaches without any distillation, the upper reference of every table."""

from __future__ import annotations

import bench.api
from bench.api import DistilledSet, Method, Task
from bench.distilled import make_set
from bench.lazy import torch


class Whole(Method):
    """All training images. The set points at them instead of holding copies."""

    class Params(bench.api.Params):
        """There is nothing to set."""

    title = "Whole set"
    citation = "no distillation"
    budget_free = True

    steps = 0

    def start(self, task: Task) -> None:
        """Nothing to compute."""
        self.task = task

    def export(self) -> DistilledSet:
        """Return the selection of all indices."""
        train = self.task.data.train
        indices = torch.arange(train.size, device=train.labels.device)
        return make_set(self.task, self, images=None, labels=train.labels, indices=indices, header={})
