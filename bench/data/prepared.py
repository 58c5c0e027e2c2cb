"""Datasets in memory: loaded as bytes, moved to the device once, preprocessed on request.

Images stay uint8 [n, c, h, w] on the device; a request gathers rows by index and makes floats of them. Whitening
costs a matrix product per image, so a whitened half is kept as a whole where it fits `WHITENED_BYTES`. All sampling
draws permutations from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from bench.api import DatasetInfo
from bench.data import cache, views
from bench.data.arrays import Arrays, Split
from bench.data.content import decoded_file, facts, read
from bench.data.preprocess import Transform, transform
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

WHITENED_BYTES = 2**30
"""Largest whitened half of a dataset (float32) that is kept in memory: 1 GiB, CIFAR-10's training images are 0.6."""
CHUNK = 4096


@dataclass(frozen=True)
class Dataset:
    """A dataset in host memory, in canonical order (see `bench.data.arrays`). `info` has the true sizes and hash.

    space: the dataset that preprocessing is fitted on, where it is not this one.
    """

    info: DatasetInfo
    class_names: tuple[str, ...]
    train: Split[Tensor]
    test: Split[Tensor]
    space: Dataset | None = None

    @property
    def content(self) -> str:
        """The content hash of the data as it was read."""
        assert self.info.content is not None
        return self.info.content


class Batch(NamedTuple):
    """Sampled images float32 [n, c, h, w], labels int64 [n], and the sizes of the consecutive groups in it.

    Class-sorted: one group per class. Mixed: one group.
    """

    images: Tensor
    labels: Tensor
    counts: tuple[int, ...]


def load(name: str) -> Dataset:
    """Load a dataset. Raises `MissingData`, or `UserError` where the data is damaged or is not what its name says."""
    if view := views.parse(name):
        return _viewed(name, view)
    known, arrays = facts(name)
    halves = _decoded(known.content) if arrays is None else _tensors(arrays)
    if halves is None:  # the decoded copy was deleted or could not be written
        halves = _tensors(read(name)[1])
    train, test = halves
    return Dataset(known.info, known.class_names, train, test)


def _viewed(name: str, view: views.View) -> Dataset:
    """Return the dataset of a view, with its true sizes."""
    base = load(view.base)
    halves = view.arguments.apply(base)
    sizes = {"train_size": len(halves.train.labels), "test_size": len(halves.test.labels)}
    content = view.fingerprint(base.content)
    info = view.info(name, base.info).model_copy(update={"content": content, **sizes})
    space = base.space or base if view.arguments.shares_space else None
    return Dataset(info, base.class_names, halves.train, halves.test, space)


def _tensors(arrays: Arrays) -> list[Split[Tensor]]:
    def tensors(split: Split) -> Split[Tensor]:
        groups = None if split.groups is None else torch.from_numpy(split.groups)
        return Split(torch.from_numpy(split.images), torch.from_numpy(split.labels), groups)

    return [tensors(arrays.train), tensors(arrays.test)]


def _decoded(content: str) -> list[Split[Tensor]] | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(decoded_file(content))
    except (OSError, SafetensorError):
        return None
    return [
        Split(found[f"{half}.images"], found[f"{half}.labels"], found.get(f"{half}.groups"))
        for half in ("train", "test")
    ]


class Part:
    """One half of a prepared dataset, on the device."""

    def __init__(self, split: Split[Tensor], transform: Transform, classes: int, device: torch.device) -> None:
        self._pixels = split.images.to(device)
        self._transform = transform
        self.labels = split.labels.to(device)
        self.groups = None if split.groups is None else split.groups.to(device)
        order = torch.argsort(split.labels, stable=True)
        sizes = torch.bincount(split.labels, minlength=classes).tolist()
        self._by_class = [index.to(device) for index in order.split(sizes)]

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def present(self) -> tuple[int, ...]:
        """The classes that have images: all, but for a view that leaves some out."""
        return tuple(c for c, index in enumerate(self._by_class) if len(index))

    def images(self, index: Tensor | slice | None = None) -> Tensor:
        """Return preprocessed images float32 [n, c, h, w]: all, or those of `index`. Not to be written into."""
        if self._whitened is not None:
            return self._whitened if index is None else self._whitened[index]
        return self._transform.forward(self.pixels(index))

    def pixels(self, index: Tensor | slice | None = None) -> Tensor:
        """Return images float32 [n, c, h, w] in [0, 1]: all, or those of `index`."""
        chosen = self._pixels if index is None else self._pixels[index]
        return chosen.float().div_(255)

    @cached_property
    def _whitened(self) -> Tensor | None:
        if self._transform.matrix is None or self._pixels.numel() * 4 > WHITENED_BYTES:
            return None
        kept = torch.empty(self._pixels.shape, device=self._pixels.device)
        for start in range(0, self.size, CHUNK):
            part = slice(start, start + CHUNK)
            kept[part] = self._transform.forward(self.pixels(part))
        return kept

    def class_index(self, c: int) -> Tensor:
        """Return the indices of all images of class `c`, ascending, int64."""
        return self._by_class[c]

    def draw_class(self, c: int, k: int, rng: torch.Generator) -> Tensor:
        """Return indices of min(k, N_c) different images of class `c`, drawn from `rng`, int64."""
        index = self._by_class[c]
        chosen = torch.randperm(len(index), generator=rng, device=rng.device)[:k]
        return index[chosen.to(index.device)]

    def sample_class(self, c: int, k: int, rng: torch.Generator) -> Tensor:
        """Return min(k, N_c) different preprocessed images of class `c`."""
        return self.images(self.draw_class(c, k, rng))

    def sample_classes(self, k: int, rng: torch.Generator) -> Batch:
        """Return min(k, N_c) different images of every class that is present, sorted by class, drawn class by class."""
        parts = [self.draw_class(c, k, rng) for c in self.present]
        index = torch.cat(parts)
        return Batch(self.images(index), self.labels[index], tuple(len(part) for part in parts))

    def sample_mixed(self, k: int, rng: torch.Generator) -> Batch:
        """Return min(k, size) different images, classes as they come."""
        index = torch.randperm(self.size, generator=rng, device=rng.device)[:k].to(self.labels.device)
        return Batch(self.images(index), self.labels[index], (len(index),))

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all preprocessed images in order, `size` at a time (the last batch may be smaller)."""
        for start in range(0, self.size, size):
            yield self.images(slice(start, start + size))


@dataclass(frozen=True)
class Prepared:
    """A dataset in the space of one preprocessing, on one device."""

    info: DatasetInfo
    class_names: tuple[str, ...]
    transform: Transform
    device: torch.device
    train: Part
    test: Part

    @property
    def preprocessing(self) -> str:
        """Name of the space the images live in."""
        return self.transform.kind

    def forward(self, pixels: Tensor) -> Tensor:
        """Return images of the space for pixels in [0, 1], [n, c, h, w]; differentiable."""
        return self.transform.forward(pixels)

    def to_pixels(self, images: Tensor) -> Tensor:
        """Return pixels in [0, 1], clamped, for images of the space; see `Transform.inverse`."""
        return self.transform.to_pixels(images)

    def tensors(self) -> dict[str, Tensor]:
        """Return what must travel with a set in this space; `preprocess.from_tensors` reads it."""
        return self.transform.tensors()


def prepare(dataset: Dataset, preprocessing: str = "meanstd", device: str | torch.device = "cpu") -> Prepared:
    """Move a dataset to `device` and fit the preprocessing on its training images.

    preprocessing: a name of `bench.data.preprocess.KINDS`; `UserError` for others. Whitening matrices are computed
    once per content and kept in the cache.
    """
    device = torch.device(device)
    fitted_on = dataset.space or dataset
    space = transform(preprocessing, fitted_on.info, fitted_on.train.images, device, cache.root() / "zca")
    classes = dataset.info.classes
    train, test = (Part(split, space, classes, device) for split in (dataset.train, dataset.test))
    return Prepared(dataset.info, dataset.class_names, space, device, train, test)
