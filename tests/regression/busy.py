"""A method whose only cost is a known amount of training, and a switch outside of its settings that plants defects."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.api import Method, Params, param
from bench.distilled import make_set
from bench.run.usage import calibration_step


class Busy(Method):
    """Random images after some work. The file `switch` holds how often the work is done, and perhaps `blind`: noise."""

    class Params(Params):
        work: int = param(90, "training steps per outer step", ge=1)
        switch: str = param("", "path of the file")

    title = "busy"
    citation = "none"

    @property
    def steps(self):
        return 5

    @property
    def planted(self):
        return Path(self.params.switch).read_text().split()

    def start(self, task):
        self.task, train, k = task, task.data.train, task.spec.ipc
        self.labels = torch.arange(task.spec.dataset.classes).repeat_interleave(k)
        rows = [train.class_index(c)[:k] for c in range(task.spec.dataset.classes)]
        self.images = train.images(torch.cat(rows))
        if "blind" in self.planted:
            self.images = torch.randn(self.images.shape, generator=task.rng("init"))

    def step(self):
        work = calibration_step("cpu")
        for _ in range(self.params.work * int(self.planted[0])):
            work()
        return {}

    def export(self):
        return make_set(self.task, self, images=self.images, labels=self.labels)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass
