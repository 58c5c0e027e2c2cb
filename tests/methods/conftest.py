"""A tiny task for the tests of methods: synthetic images, everything else as in a real run.

    task = make_task(classes=3, per_class=20, shape=(1, 8, 8), ipc=2, seed=0)

Class c is a fixed random pattern plus noise, so that a method can learn something within a few steps. With
`dtype=torch.float64` images and networks come in that precision.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import nets
from bench.api import DatasetInfo, DistilledSet, NetSpec, TaskSpec
from bench.data import Dataset, Part, Prepared, Split, prepare


class Double(Part):
    """One half of the data in float64."""

    def pixels(self, index: Tensor | slice | None = None) -> Tensor:
        return super().pixels(index).double()


class Rows:
    """A tensor read as it is indexed, with the interface of a slice of a safetensors file."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def __getitem__(self, place: Any) -> Tensor:
        return self.tensor[place]


class FakeTask:
    """The contract of `bench.api.Task` on a dataset made by the test, which also hands in the artifacts."""

    def __init__(self, spec: TaskSpec, dataset: Dataset, dtype: torch.dtype, artifacts: Mapping[str, Any]) -> None:
        self.spec, self.dataset, self.dtype, self.artifacts = spec, dataset, dtype, dict(artifacts)
        self.device, self.folder = torch.device("cpu"), None
        self.phases: list[str] = []  # all that were booked, in order
        self._inside = False
        self._generators: dict[str, torch.Generator] = {}

    @cached_property
    def data(self) -> Prepared:
        prepared = prepare(self.dataset, self.spec.preprocessing, self.device)
        if self.dtype == torch.float64:
            prepared.train.__class__ = prepared.test.__class__ = Double
        return prepared

    @cached_property
    def augment(self) -> Any:
        import bench.augment

        return bench.augment.get(self.spec.augment)

    def rng(self, name: str) -> torch.Generator:
        if name not in self._generators:
            digest = hashlib.sha256(f"{self.spec.seed}/{name}".encode()).digest()
            self._generators[name] = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return self._generators[name]

    def network(self, net: NetSpec | None = None) -> nn.Module:
        info = self.spec.dataset
        return nets.build(net or self.spec.network, info.shape, info.classes).to(self.dtype)

    def initialise(self, network: nn.Module, rng: torch.Generator) -> None:
        nets.initialise(network, rng, self.spec.network.init)

    def artifact(self, name: str) -> dict[str, Tensor]:
        return self.artifacts[name]

    def artifact_slice(self, name: str, tensor: str) -> Any:
        return Rows(self.artifacts[name][tensor])

    def distilled(self) -> DistilledSet:
        raise AssertionError("a method does not read a distilled set")

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        assert name in ("data", "network", "set", "evaluation")
        assert not self._inside, "phases do not nest"
        self.phases.append(name)
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def report(self, step: int = 0, steps: int = 0, text: str = "") -> None:
        assert 0 <= step <= steps


def _images(patterns: Tensor, per_class: tuple[int, ...], rng: torch.Generator) -> Split[Tensor]:
    labels = torch.arange(len(patterns)).repeat_interleave(torch.tensor(per_class))
    labels = labels[torch.randperm(len(labels), generator=rng)]
    noise = torch.randn(len(labels), *patterns.shape[1:], generator=rng)
    images = 128 + 50 * patterns[labels] + 25 * noise
    return Split(images.clamp(0, 255).round().to(torch.uint8), labels)


def _info(per_class: tuple[int, ...], shape: tuple[int, int, int], flip: bool) -> DatasetInfo:
    return DatasetInfo(
        name="synthetic",
        title="synthetic patterns",
        source="made by the test",
        licence="none",
        classes=len(per_class),
        shape=shape,
        train_size=sum(per_class),
        test_size=sum(per_class),
        mean=(0.5,) * shape[0],
        std=(0.25,) * shape[0],
        constants_source="near those of the patterns",
        flip=flip,
        content=None,
        family="synthetic",
    )


@pytest.fixture
def make_task():
    """Return a function that makes a task; every argument has a small default.

    per_class: images of each class, one number or one for each class.
    """

    def make(
        classes: int = 3,
        per_class: int | tuple[int, ...] = 20,
        shape: tuple[int, int, int] = (1, 8, 8),
        ipc: int | None = 2,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        *,
        network: NetSpec | str | None = None,
        augment: str = "none",
        preprocessing: str = "meanstd",
        flip: bool = False,
        artifacts: Mapping[str, Any] | None = None,
    ) -> FakeTask:
        sizes = (per_class,) * classes if isinstance(per_class, int) else per_class
        info = _info(sizes, shape, flip)
        net = nets.parse(network) if isinstance(network, str) else network or NetSpec(norm="in", width=4, depth=2)
        rng = torch.Generator().manual_seed(1)  # the data stay the same whatever the task's seed
        patterns = torch.randn(len(sizes), *shape, generator=rng)
        train, test = (_images(patterns, sizes, rng) for _ in range(2))
        names = tuple(f"pattern {c}" for c in range(len(sizes)))
        spec = TaskSpec(
            dataset=info,
            ipc=ipc,
            network=nets.resolve(net, shape),
            preprocessing=preprocessing,
            augment=augment,
            seed=seed,
        )
        return FakeTask(spec, Dataset(info, names, train, test), dtype, artifacts or {})

    return make


@pytest.fixture
def compiles(monkeypatch):
    """Compile whatever may be compiled, by everything of torch.compile but its code generator, which takes minutes."""
    compile_ = torch.compile
    monkeypatch.setenv("DDBENCH_COMPILE", "1")
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compile_(*args, backend="aot_eager", **options))
    yield
    torch.compiler.reset()
