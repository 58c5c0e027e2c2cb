"""Decoded datasets as plain arrays: what a reader returns, its checks, its content hash and its order.

One idea: a dataset is known by its content, not by its file. The content hash does not depend on the order of the
images (copies of CIFAR-10 in circulation differ in order), and images are brought into the order of their digests,
so that equal hashes mean equal arrays, hence equal results.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from bench.errors import UserError

Array = TypeVar("Array")
CONTENT_VERSION = b"ddbench content 1"


@dataclass(frozen=True)
class Split(Generic[Array]):
    """One half of a dataset: images uint8 [n, c, h, w], labels int64 [n], group labels int64 [n] or None."""

    images: Array
    labels: Array
    groups: Array | None = None


@dataclass(frozen=True)
class Arrays:
    """A decoded dataset in NumPy arrays."""

    train: Split[np.ndarray]
    test: Split[np.ndarray]
    class_names: tuple[str, ...]


def check(arrays: Arrays, where: str) -> None:
    """Raise `UserError` unless both halves hold images and labels as `Split` describes, and every class is trained."""
    classes = len(arrays.class_names)
    for half, split in (("train", arrays.train), ("test", arrays.test)):
        images, labels = split.images, split.labels
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UserError(
                f"{half} images are {images.dtype} with {images.ndim} dimensions",
                where=where,
                hint="store them as uint8 0..255 [n, h, w, c] or [n, h, w]",
            )
        if images.shape[1] not in (1, 3) or images.shape[1:] != arrays.train.images.shape[1:]:
            raise UserError(
                f"{half} images have shape {images.shape[1:]} (channels, height, width)",
                where=where,
                hint="all images need one size, and one (grey) or three (RGB) channels in the last dimension",
            )
        if not len(images) or labels.shape != (len(images),):
            raise UserError(f"{half} has {len(images)} images and labels of shape {labels.shape}", where=where)
        if labels.min() < 0 or labels.max() >= classes:
            raise UserError(
                f"{half} labels lie in {labels.min()}..{labels.max()}, but there are {classes} classes", where=where
            )
        if split.groups is not None and split.groups.shape != labels.shape:
            raise UserError(f"{half} has groups of shape {split.groups.shape} for {len(labels)} images", where=where)
    counts = np.bincount(arrays.train.labels, minlength=classes)
    if not counts.all():
        empty = [arrays.class_names[k] for k in np.flatnonzero(counts == 0)[:5]]
        raise UserError(f"no training image of class {', '.join(empty)}", where=where, hint="leave such classes out")


def canonical(arrays: Arrays) -> tuple[str, Arrays]:
    """Return the content hash and the same dataset in canonical order.

    An image's digest is the sha256 of its bytes [c, h, w], its label and, where there is one, its group (int64,
    little endian). The content hash is the sha256 over the version, and for train and test: shape and number of
    images, and all digests in ascending order. Class names do not enter.
    """
    content = hashlib.sha256(CONTENT_VERSION)
    halves = []
    for split in (arrays.train, arrays.test):
        digests = _digests(split)
        order = sorted(range(len(digests)), key=digests.__getitem__)
        content.update(str(split.images.shape).encode())
        content.update(b"".join(digests[k] for k in order))
        take = np.array(order)
        groups = None if split.groups is None else split.groups[take]
        halves.append(Split(split.images[take], split.labels[take], groups))
    return content.hexdigest(), Arrays(halves[0], halves[1], arrays.class_names)


def _digests(split: Split[np.ndarray]) -> list[bytes]:
    images = np.ascontiguousarray(split.images)
    facts = [split.labels] if split.groups is None else [split.labels, split.groups]
    tails = np.ascontiguousarray(np.stack(facts, axis=1).astype("<i8"))
    digests = []
    for image, tail in zip(images, tails, strict=True):
        digest = hashlib.sha256(image)
        digest.update(tail)
        digests.append(digest.digest())
    return digests


def statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the pixels in [0, 1] per channel, of images uint8 [n, c, h, w].

    Computed from the exact histogram of the 256 values. A constant channel gets the deviation of one grey level.
    """
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        share = np.bincount(images[:, channel].ravel(), minlength=256) / images[:, channel].size
        centre = float(share @ values)
        mean.append(centre)
        std.append(max(float(np.sqrt(share @ (values - centre) ** 2)), 1 / 255))
    return tuple(mean), tuple(std)


def channels_first(images: Any) -> np.ndarray:
    """Return images [n, h, w, c] or [n, h, w] as [n, c, h, w], contiguous."""
    array = np.asarray(images)
    if array.ndim == 3:
        array = array[..., None]
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if array.ndim == 4 else array
