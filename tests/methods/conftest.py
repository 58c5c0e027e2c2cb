"""A tiny task for the tests of methods: synthetic images, the real data, network and augmentation parts where they fit.

    task = make_task(classes=3, per_class=20, shape=(1, 8, 8), ipc=2, seed=0)

Class c is a fixed random pattern plus noise, so that a method can learn something within a few steps.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from bench.api import DatasetInfo, DistilledSet, NetSpec, TaskSpec


class Batch(NamedTuple):
    images: Tensor
    labels: Tensor
    counts: tuple[int, ...]


class Part:
    """One half of the data, already in the space of the preprocessing."""

    def __init__(self, images: Tensor, labels: Tensor, classes: int) -> None:
        self.pixels, self.labels, self.size, self.classes = images, labels, len(labels), classes

    def images(self, index: Tensor | None = None) -> Tensor:
        return self.pixels if index is None else self.pixels[index]

    def class_index(self, label: int) -> Tensor:
        return torch.nonzero(self.labels == label).flatten()

    def _draw(self, label: int, count: int, rng: torch.Generator) -> Tensor:
        index = self.class_index(label)
        return index[torch.randperm(len(index), generator=rng)[:count]]

    def sample_class(self, label: int, count: int, rng: torch.Generator) -> Tensor:
        return self.pixels[self._draw(label, count, rng)]

    def sample_classes(self, count: int, rng: torch.Generator) -> Batch:
        drawn = [self._draw(label, count, rng) for label in range(self.classes)]
        index = torch.cat(drawn)
        return Batch(self.pixels[index], self.labels[index], tuple(len(one) for one in drawn))

    def sample_mixed(self, count: int, rng: torch.Generator) -> Batch:
        index = torch.randperm(self.size, generator=rng)[:count]
        return Batch(self.pixels[index], self.labels[index], ())

    def batches(self, size: int) -> Iterator[Tensor]:
        yield from self.pixels.split(size)


class Prepared:
    """Data whose preprocessing is the identity: tests then compare values without undoing a transform."""

    def __init__(self, info: DatasetInfo, train: Part, test: Part, preprocessing: str) -> None:
        self.info, self.train, self.test, self.preprocessing = info, train, test, preprocessing
        self.device = torch.device("cpu")

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels

    def to_pixels(self, images: Tensor) -> Tensor:
        return images.clamp(0, 1)

    def tensors(self) -> dict[str, Tensor]:
        return {}


class Network(nn.Module):
    """One convolution with instance normalisation, used while `bench.nets` is not wanted."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, padding=1),
            nn.GroupNorm(width, width),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
        )
        self.feature_size = width * (shape[1] // 2) * (shape[2] // 2)
        self.classifier = nn.Linear(self.feature_size, classes)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def head(self, features: Tensor) -> Tensor:
        return self.classifier(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class FakeTask:
    """The contract of `bench.api.Task` on synthetic data; `artifacts` are handed in by the test."""

    def __init__(self, spec: TaskSpec, data: Prepared, dtype: torch.dtype, artifacts: Mapping[str, Any]) -> None:
        self.spec, self.data, self.dtype, self.artifacts = spec, data, dtype, dict(artifacts)
        self.device = torch.device("cpu")
        self.generators: dict[str, torch.Generator] = {}
        self.phases: list[str] = []

    @property
    def augment(self) -> Any:
        from bench.augment import get

        return get(self.spec.augment)

    def rng(self, name: str) -> torch.Generator:
        if name not in self.generators:
            digest = hashlib.sha256(f"{self.spec.seed}/{name}".encode()).digest()
            self.generators[name] = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return self.generators[name]

    def network(self, net: NetSpec | None = None) -> nn.Module:
        shape, classes = self.data.info.shape, self.data.info.classes
        try:
            from bench.nets import build
        except ImportError:
            with torch.random.fork_rng(devices=[]):
                return Network(shape, classes).to(self.dtype)
        return build(net or self.spec.network, shape, classes).to(self.dtype)

    def initialise(self, network: nn.Module, rng: torch.Generator) -> None:
        try:
            from bench.nets import initialise
        except ImportError:
            for weight in network.parameters():
                if weight.dim() > 1:
                    nn.init.kaiming_uniform_(weight, a=5**0.5, generator=rng)
            return
        initialise(network, rng, self.spec.network.init)

    def artifact(self, name: str) -> dict[str, Tensor]:
        return self.artifacts[name]

    def distilled(self) -> DistilledSet:
        raise AssertionError("a method does not read a distilled set")

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        assert name in ("data", "network", "set", "evaluation")
        self.phases.append(name)
        yield


def _part(patterns: Tensor, per_class: int, rng: torch.Generator, dtype: torch.dtype) -> Part:
    classes = len(patterns)
    labels = torch.arange(classes).repeat_interleave(per_class)
    labels = labels[torch.randperm(len(labels), generator=rng)]
    noise = torch.randn(len(labels), *patterns.shape[1:], generator=rng)
    return Part((patterns[labels] + 0.5 * noise).to(dtype), labels, classes)


@pytest.fixture
def make_task():
    """Return a function that makes a task; every argument has a small default."""

    def make(
        classes: int = 3,
        per_class: int = 20,
        shape: tuple[int, int, int] = (1, 8, 8),
        ipc: int | None = 2,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        *,
        network: NetSpec | None = None,
        augment: str = "none",
        preprocessing: str = "meanstd",
        flip: bool = False,
        artifacts: Mapping[str, Any] | None = None,
    ) -> FakeTask:
        channels = shape[0]
        info = DatasetInfo(
            name="synthetic",
            title="synthetic patterns",
            source="made by the test",
            licence="none",
            classes=classes,
            shape=shape,
            train_size=classes * per_class,
            test_size=classes * per_class,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            constants_source="the identity",
            flip=flip,
            content=None,
            family="synthetic",
        )
        spec = TaskSpec(
            dataset=info,
            ipc=ipc,
            network=network or NetSpec(arch="convnet", norm="in", width=4, depth=2),
            preprocessing=preprocessing,
            augment=augment,
            seed=seed,
        )
        rng = torch.Generator().manual_seed(1)  # the data stay the same whatever the task's seed
        patterns = torch.randn(classes, *shape, generator=rng)
        train, test = (_part(patterns, per_class, rng, dtype) for _ in range(2))
        return FakeTask(spec, Prepared(info, train, test, preprocessing), dtype, artifacts or {})

    return make
