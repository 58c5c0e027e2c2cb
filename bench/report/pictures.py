"""Pictures of distilled sets: one row per class, the first images of each class, as grey or colour pixels.

Outliers of a set stand below its images, after a gap.

The only part of the report that needs torch and the data: decoding a set may mean to undo a whitening. A picture is
kept under the key of its cell, so that a second report draws only what is new. What cannot be drawn says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.errors import UserError
from bench.lazy import F, torch
from bench.report.results import Results, rows_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from bench.api import DistilledSet

COLUMNS = 10
"""Images shown of each class."""

CLASSES = 20
"""Classes shown; a set with more shows the first ones."""

GAP = 2
"""White pixels around each image."""


@dataclass(frozen=True)
class Picture:
    """A drawn set, or why it could not be drawn (`path` is None then)."""

    dataset: str
    label: str
    ipc: int | None
    path: Path | None
    reason: str = ""


def write(results: Results, folder: Path) -> list[Picture]:
    """Draw the set of the first seed of every method, dataset and IPC; keep what is drawn already."""
    states = results.states[(results.states["kind"] == "distil") & (results.states["method"] != "whole")]
    states = states[states["state"].isin(["ok", "cached"])].sort_values("seed", kind="stable")
    first = states.drop_duplicates(["dataset", "label", "ipc", "distil_network"]).sort_index()
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for row in rows_of(first):
        ipc = None if pd.isna(row.ipc) else int(row.ipc)
        path, reason = folder / f"{row.key}.png", ""
        if not path.is_file():
            reason = _try(results.out / "cells" / row.key[:2] / row.key / "set.safetensors", path)
        pictures.append(Picture(row.dataset, row.label, ipc, None if reason else path, reason))
    return pictures


def draw(distilled: DistilledSet, path: Path, columns: int = COLUMNS, classes: int = CLASSES) -> Path:
    """Write the `image` of a set as a PNG and return its path."""
    from bench.run.atomic import atomic_write

    picture = image(distilled, columns, classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        picture.save(file, format="PNG", optimize=True)
    return path


def image(distilled: DistilledSet, columns: int = COLUMNS, classes: int = CLASSES) -> Image:
    """Return the picture of a set, one row per class.

    Classes are those of the hard labels, or the likeliest of soft ones. Raises `UserError` where the set cannot be
    decoded: the data it points at or its decoder are not here.
    """
    from PIL.Image import fromarray

    images = to_pixels(distilled)
    labels = distilled.labels if distilled.labels.ndim == 1 else distilled.labels.argmax(1)
    width = min(columns, max(int((labels == index).sum()) for index in range(distilled.header.classes)))
    rows = [images[labels == index] for index in range(min(distilled.header.classes, classes))]
    if distilled.outliers is not None and len(distilled.outliers):
        outliers = to_pixels(_only_outliers(distilled))
        rows += [images[:0], *outliers.split(math.ceil(len(outliers) / distilled.header.classes))[:classes]]
    tiles = torch.cat([_filled(row[:width], width) for row in rows])
    factor = max(1, 24 // tiles.shape[-1])  # small images are enlarged so that pixels stay visible
    tiles = tiles.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    canvas = grid(tiles, width)
    return fromarray((canvas.clamp(0, 1) * 255).round().byte().numpy())


def grid(tiles: Tensor, width: int) -> Tensor:
    """Return images [rows * width, c, h, w] side by side with white between and around them, [height, width, 3].

    torchvision's make_grid, whose import would take longer than all the rest of the pictures.
    """
    tiles = F.pad(tiles, (GAP, 0, GAP, 0), value=1.0).expand(-1, 3, -1, -1)
    canvas = tiles.unflatten(0, (-1, width)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return F.pad(canvas, (0, 0, 0, GAP, 0, GAP), value=1.0)


def _filled(row: Tensor, width: int) -> Tensor:
    """Return a row of images with white ones after them."""
    return torch.cat([row, torch.ones(width - len(row), *row.shape[1:])])


def _only_outliers(distilled: DistilledSet) -> DistilledSet:
    """Return a set of the outliers alone, all of one class."""
    assert distilled.outliers is not None
    plain = {"decoder": {"name": "pixels"}, "label_kind": "hard"}
    return replace(
        distilled,
        header=distilled.header.model_copy(update=plain),
        images=distilled.outliers,
        labels=torch.zeros(len(distilled.outliers), dtype=torch.int64),
        outliers=None,
    )


def to_pixels(distilled: DistilledSet) -> Tensor:
    """Return the images of a set as pixels in [0, 1]: float32 [n, c, h, w].

    The file says how to undo its preprocessing; the data are opened only where it does not, or where the set points
    at training images.
    """
    from bench.data import preprocess
    from bench.distilled import decode

    header = distilled.header
    if distilled.images is None or not any(name.startswith(preprocess.PREFIX) for name in distilled.extra):
        prepared = _prepared(header.dataset, header.preprocessing)
        return prepared.to_pixels(decode(distilled, prepared))
    transform = preprocess.from_tensors(header.preprocessing, header.shape, distilled.extra)
    return transform.to_pixels(decode(distilled))


@lru_cache(maxsize=2)
def _prepared(dataset: str, preprocessing: str) -> Any:
    from bench import data

    return data.prepare(data.load(dataset), preprocessing, "cpu")


def _try(source: Path, target: Path) -> str:
    """Draw a stored set and return why that failed; a picture is never worth the loss of the report."""
    try:
        from bench.distilled import load

        draw(load(source), target)
    except UserError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
