"""Plug-ins that break one rule each. What they have in common is a method that is right: the class means of noise."""

from __future__ import annotations

import random
import time

import numpy as np

from bench import api
from bench.api import Measure, Need, Preset, Training, param
from bench.data.arrays import Arrays, Split
from bench.data.catalogue import Entry
from bench.data.content import info
from bench.distilled import make_set
from bench.lazy import torch
from bench.nets.spec import Architecture


class Right(api.Method):
    """Images that approach the class means, with momentum."""

    class Params(api.Params):
        iterations: int = param(4, "outer steps", ge=0)

    title = "right"
    citation = "these tests"

    @property
    def steps(self):
        return self.params.iterations

    def start(self, task):
        self.task, info, train = task, task.spec.dataset, task.data.train
        self.labels = torch.arange(info.classes, device=task.device).repeat_interleave(self.per_class())
        means = torch.stack([train.images(train.class_index(c)).mean(0) for c in range(info.classes)])
        self.goal = means[self.labels]
        self.images = torch.randn(self.goal.shape, generator=task.rng("init"), device=task.device)
        self.velocity = torch.zeros_like(self.images)

    def per_class(self):
        return self.task.spec.ipc

    def step(self):
        self.velocity = 0.5 * self.velocity + 0.3 * (self.goal - self.images)
        self.images = self.images + self.velocity
        return {"loss": (self.goal - self.images).square().mean()}

    def export(self):
        return make_set(self.task, self, images=self.images, labels=self.labels)

    def state_dict(self):
        return {"images": self.images, "velocity": self.velocity}

    def load_state_dict(self, state):
        self.images, self.velocity = state["images"], state["velocity"]


class GlobalTorch(Right):
    def start(self, task):
        super().start(task)
        self.images = torch.randn(self.goal.shape)


class GlobalNumpy(Right):
    def step(self):
        np.random.shuffle([1, 2, 3])  # noqa: NPY002 - the rule it breaks
        return super().step()


class GlobalPython(Right):
    def step(self):
        random.seed(0)
        return super().step()


class Remembers(Right):
    runs = 0

    def start(self, task):
        super().start(task)
        type(self).runs += 1
        self.images = self.images + 1e-3 * self.runs


class Unseeded(Right):
    def start(self, task):
        super().start(task)
        rng = np.random.default_rng()
        self.images = torch.from_numpy(rng.standard_normal(self.goal.shape)).float()


class IgnoresSeed(Right):
    def start(self, task):
        super().start(task)
        self.images = torch.randn(self.goal.shape, generator=torch.Generator().manual_seed(0))


class ExportCounts(Right):
    def export(self):
        self.velocity = 1.1 * self.velocity
        return super().export()


class TooMany(Right):
    def per_class(self):
        return self.task.spec.ipc + 1


class FalseBudget(Right):
    def export(self):
        distilled = super().export()
        distilled.header = distilled.header.model_copy(update={"floats": {"stored": 1, "decoded": 1, "raw": 1}})
        return distilled


class OneClass(Right):
    def export(self):
        self.labels = torch.zeros_like(self.labels)
        return super().export()


class ForgetsVelocity(Right):
    def state_dict(self):
        return {"images": self.images}

    def load_state_dict(self, state):
        self.images = state["images"]


class PicklesState(Right):
    def state_dict(self):
        return {**super().state_dict(), "task": Right.Params()}


class NanLabels(Right):
    def export(self):
        soft = torch.full((len(self.labels), 10), float("nan"))
        distilled = super().export()
        distilled.labels, distilled.header = soft, distilled.header.model_copy(update={"label_kind": "logits"})
        return distilled


class LabelsBeyond(Right):
    def export(self):
        distilled = super().export()
        distilled.labels = distilled.labels + 1
        return distilled


class KeepsGradient(Right):
    def export(self):
        distilled = super().export()
        distilled.images = distilled.images.clone().requires_grad_()
        return distilled


class OtherSeedInHeader(Right):
    def export(self):
        distilled = super().export()
        distilled.header = distilled.header.model_copy(update={"seed": 7})
        return distilled


class WritesIntoData(Right):
    def start(self, task):
        super().start(task)
        task.data.train._pixels[0] = 0


class Slow(Right):
    def step(self):
        begin = time.process_time()
        while time.process_time() - begin < 0.05:
            pass
        return super().step()


class Endless(Right):
    class Params(api.Params):
        iterations: int = param(10**9, "outer steps")


class WrongPreset(Right):
    @classmethod
    def preset(cls, dataset, ipc):
        return Preset({"iteration": 3}, "a paper")


class TorchInPlans(Right):
    @classmethod
    def preset(cls, dataset, ipc):
        import torch

        return Preset({"iterations": int(torch.tensor(3))}, None)


class MutePlans(Right):
    class Params(Right.Params):
        rate: float = 0.1


class NeedsNothingKnown(Right):
    @classmethod
    def needs(cls, params, spec):
        return {"networks": Need("no_such_artifact")}


# ---------------------------------------------------------------------------------------------- evaluators


class RightEvaluator(api.Evaluator):
    """How often the first network is right."""

    Params = api.Params
    title = "right"

    @classmethod
    def trainings(cls, params, spec):
        return [Training(spec.network, spec.recipe, 1)]

    def evaluate(self, task):
        return [Measure("hits", self.hits(task), replicate=0)]

    def hits(self, task):
        logits = task.trained(self.trainings(self.params, task.eval_spec)[0]).logits
        return float((logits[0].argmax(1) == task.data.test.labels).float().mean())


class NanMeasure(RightEvaluator):
    def hits(self, task):
        return float("nan")


class Percent(RightEvaluator):
    def hits(self, task):
        return 100 * super().hits(task) + 1


class Signed(RightEvaluator):
    def hits(self, task):
        return super().hits(task) - 1


class OddUnit(RightEvaluator):
    def evaluate(self, task):
        return [Measure("length", 3.0, "furlongs")]


class Twice(RightEvaluator):
    def evaluate(self, task):
        return super().evaluate(task) * 2


class Nothing(RightEvaluator):
    def evaluate(self, task):
        return []


class NotAList(RightEvaluator):
    def evaluate(self, task):
        return Measure("hits", 0.5)


class DrawsGlobally(RightEvaluator):
    def hits(self, task):
        return float(torch.rand(()))


class DrawsAnew(RightEvaluator):
    def hits(self, task):
        return float(np.random.default_rng().random())


class SpoilsData(RightEvaluator):
    def hits(self, task):
        task.data.test.labels[:] = 0
        return super().hits(task)


class Unrecorded(RightEvaluator):
    def evaluate(self, task):
        return [Measure("hits", 0.5, tags={"sets": ["a", "b"]})]


class TrainsInPlans(RightEvaluator):
    @classmethod
    def trainings(cls, params, spec):
        return [Training(spec.network, {"epoch": 3}, 1)]


# ---------------------------------------------------------------------------------------------- networks


def _architecture(build, **fields):
    facts = {"norms": ("none",), **fields}
    return Architecture("a network", "these tests", f"broken_networks:{build}", **facts)


RIGHT_NETWORK = _architecture("right", width=8)
NO_HEAD = _architecture("no_head")
WRONG_SIZE = _architecture("wrong_size")
DROPOUT = _architecture("dropout")
SEES_BATCH = _architecture("sees_batch")
UNUSED = _architecture("unused")
FLAT = _architecture("flat")
UNSTACKABLE = _architecture("unstackable")
FIXED_WIDTH = _architecture("no_width", width=8)
TORCH_NETWORK = "torch.nn:Linear"

# ---------------------------------------------------------------------------------------------- datasets


def _entry(name, make, **facts):
    base = info("debug")
    facts = {"name": name, "content": None, "classes": 2, "train_size": 20, "test_size": 10, **facts}
    return Entry(base.model_copy(update=facts), make=f"broken_plugins:{make}", home="broken_plugins:home")


def home():
    from pathlib import Path

    return Path(__file__)


def _arrays(seed=0, **changes):
    rng = np.random.default_rng(seed)

    def half(size):
        images = rng.integers(0, 256, (size, 3, 8, 8), dtype=np.uint8)
        return Split(images // 2 + 64, np.arange(size, dtype=np.int64) % 2)

    parts = {"train": half(20), "test": half(10), "class_names": ("a", "b"), **changes}
    return Arrays(**parts)


def right_data():
    return _arrays()


def unstable_data():
    return _arrays(seed=None)


def global_data():
    np.random.shuffle([1, 2])  # noqa: NPY002 - the rule it breaks
    return _arrays()


def float_data():
    arrays = _arrays()
    return _arrays(train=Split(arrays.train.images / 255, arrays.train.labels))


def label_data():
    arrays = _arrays()
    return _arrays(train=Split(arrays.train.images, arrays.train.labels + 1))


def leaking_data():
    arrays = _arrays()
    return _arrays(test=Split(arrays.train.images[:10], arrays.train.labels[:10]))


def twins_data():
    return _arrays(class_names=("a", "a"))


RIGHT_DATA = _entry("right", "right_data")
UNSTABLE_DATA = _entry("unstable", "unstable_data")
GLOBAL_DATA = _entry("global", "global_data")
FLOAT_DATA = _entry("float", "float_data")
LABEL_DATA = _entry("labels", "label_data")
LEAKING_DATA = _entry("leaking", "leaking_data")
TWINS_DATA = _entry("twins", "twins_data")
SIZED_DATA = _entry("sized", "right_data", train_size=21)
BYTES_DATA = _entry("bytes", "right_data", mean=(127.0, 127.0, 127.0))
NO_SOURCE_DATA = _entry("nowhere", "right_data", source="")
