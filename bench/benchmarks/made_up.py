"""Inputs of the benchmarks: random bytes in the sizes of CIFAR-10, or, for the tests, of a very small dataset.

What is timed does not depend on what a picture shows, so nobody has to download anything to repeat a measurement.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.api import DatasetInfo, NetSpec, TaskSpec
from bench.lazy import torch
from bench.task import LiveTask

if TYPE_CHECKING:
    from torch import Tensor

    from bench.data import Dataset, Prepared

STRATEGY = "dsa:color_crop_cutout_flip_scale_rotate"


def info(quick: bool) -> DatasetInfo:
    """Return the facts of the dataset: CIFAR-10's, or 3 classes of 20 images of 1x8x8."""
    shape, classes, train, test = ((1, 8, 8), 3, 60, 30) if quick else ((3, 32, 32), 10, 50_000, 10_000)
    return DatasetInfo(
        name="made-up", title="random bytes", source="random numbers", licence="none", classes=classes, shape=shape,
        train_size=train, test_size=test, mean=(0.5,) * shape[0], std=(0.25,) * shape[0],
        constants_source="round numbers", flip=True, content="made-up", family="made-up",
    )  # fmt: skip


def network(quick: bool) -> NetSpec:
    """Return the field's default network, or one of width 4 and depth 2."""
    return NetSpec(norm="in", width=4, depth=2) if quick else NetSpec(norm="in", width=128, depth=3)


def pixels(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Return uint8 images [n, c, h, w]."""
    return torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def dataset(quick: bool) -> Dataset:
    """Return the whole dataset, equally many images of every class."""
    from bench.data import Dataset, Split

    facts = info(quick)
    train, test = (
        Split(pixels(size, facts.shape, seed), torch.arange(size) % facts.classes)
        for seed, size in enumerate((facts.train_size, facts.test_size))
    )
    return Dataset(facts, tuple(f"class {c}" for c in range(facts.classes)), train, test)


def device() -> torch.device:
    """Return where the benchmarks compute: the first CUDA device, or the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


class Task(LiveTask):
    """A task on made-up data, as methods get it; `artifacts` stands for what earlier cells would have made."""

    def __init__(self, quick: bool, ipc: int | None, *, augment: str = "none", seed: int = 0, **artifacts: Any) -> None:
        from bench import nets

        facts = info(quick)
        spec = TaskSpec(
            dataset=facts, ipc=ipc, network=nets.resolve(network(quick), facts.shape), preprocessing="meanstd",
            augment=augment, seed=seed,
        )  # fmt: skip
        super().__init__(spec, device=device())
        self.quick, self.artifacts = quick, artifacts

    @cached_property
    def data(self) -> Prepared:
        """The made-up dataset on the device."""
        from bench.data import prepare

        return prepare(dataset(self.quick), self.spec.preprocessing, self.device)

    def artifact(self, name: str) -> dict[str, Tensor]:
        """Return the tensors handed in under `name`."""
        return self.artifacts[name]

    def artifact_slice(self, name: str, tensor: str) -> Any:
        """Return one of these tensors, which can be indexed."""
        return self.artifacts[name][tensor]
