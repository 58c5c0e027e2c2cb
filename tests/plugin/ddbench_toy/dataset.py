"""Stripes in three directions under noise, drawn here: a dataset that needs no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.api import DatasetInfo
from bench.data.arrays import Arrays, Split
from bench.data.catalogue import Entry

NAMES = ("across", "down", "diagonal")
STRIPES = Entry(
    DatasetInfo(
        name="toy_stripes",
        title="stripes in three directions, 8x8 grey",
        source="made by ddbench_toy.dataset",
        licence="MIT",
        classes=3,
        shape=(1, 8, 8),
        train_size=60,
        test_size=30,
        mean=(0.5,),
        std=(0.3,),
        constants_source="about those of the pixels",
        flip=False,
        content=None,
        family="toy_stripes",
    ),
    make="ddbench_toy.dataset:stripes",
    home="ddbench_toy.dataset:home",
    class_names=NAMES,
)


def home() -> Path:
    """Return the file the data come from: when it changes, they are made anew."""
    return Path(__file__)


def stripes() -> Arrays:
    """Return the images."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:8, :8]

    def half(per_class: int) -> Split[np.ndarray]:
        waves = [np.sin(np.pi / 2 * place) for place in (rows, columns, rows + columns)]
        labels = np.repeat(np.arange(3, dtype=np.int64), per_class)
        images = 128 + 90 * np.stack(waves)[labels] + 20 * rng.standard_normal((len(labels), 8, 8))
        return Split(images.clip(0, 255).round().astype(np.uint8)[:, None], labels)

    return Arrays(half(20), half(10), NAMES)
