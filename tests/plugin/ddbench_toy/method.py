"""Images of the class means, each with noise of its own: a method without steps."""

from __future__ import annotations

import bench.api
from bench.api import DistilledSet, Method, Task, param
from bench.distilled import make_set
from bench.lazy import torch


class ToyMean(Method):
    """Return the class means with a little noise."""

    class Params(bench.api.Params):
        """How much noise."""

        noise: float = param(0.1, "standard deviation of the noise", ge=0)

    title = "class means with noise"
    citation = "the tests of ddbench"
    steps = 0

    def start(self, task: Task) -> None:
        """Compute everything at once."""
        train, classes = task.data.train, task.spec.dataset.classes
        means = torch.stack([train.images(train.class_index(c)).mean(0) for c in range(classes)])
        self.labels = torch.arange(classes, device=task.device).repeat_interleave(task.spec.ipc)
        noise = torch.randn((len(self.labels), *task.spec.dataset.shape), generator=task.rng("noise"))
        self.task, self.images = task, means[self.labels] + self.params.noise * noise.to(task.device)

    def export(self) -> DistilledSet:
        """Return the images."""
        return make_set(self.task, self, images=self.images, labels=self.labels)
