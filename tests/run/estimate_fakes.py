"""Methods whose cost is known: they sleep, which other work on the machine does not lengthen."""

import time

import torch

from bench.api import Method, Params, param
from bench.distilled import make_set


class Sleeps(Method):
    """The first images of every class after some naps."""

    class Params(Params):
        iterations: int = param(100, "outer steps", ge=0)
        nap: float = param(0.02, "seconds of a step", unit="s", ge=0)

    title = "sleeps"
    citation = "none"

    @property
    def steps(self):
        return self.params.iterations

    def start(self, task):
        self.task, train, k = task, task.data.train, task.spec.ipc
        self.labels = torch.arange(task.spec.dataset.classes).repeat_interleave(k)
        rows = [train.class_index(c)[:k] for c in range(task.spec.dataset.classes)]
        self.images = train.images(torch.cat(rows))

    def step(self):
        time.sleep(self.params.nap)
        return {}

    def export(self):
        return make_set(self.task, self, images=self.images, labels=self.labels)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Hungry(Sleeps):
    def step(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")


class Broken(Sleeps):
    def start(self, task):
        raise ValueError("made up")
