"""Folders: images by class, with or without a teacher's stored labels, and folders that hold a pair of files.

SRe2L stores the teacher's logits of every epoch on random views of the images (crop, flip, and by default CutMix of
two images), batch by batch. A distilled set here has one label for each image, so the mean of the logits over all
epochs is taken; labels of mixed images belong to no image and are refused. Which image a row belongs to follows from
the seed of the shuffling, as in the official code; the folders' classes tell whether it was the right one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.errors import UserError
from bench.imports import torch_file
from bench.imports.formats import FORMATS, Foreign
from bench.imports.recognise import KNOWN, open_file, read_labels, sketch
from bench.imports.recognise import read as read_file
from bench.imports.stored import LARGEST, Stored, reading
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

PAIRS = ("images_best.pt", "images.npy", "images.pt")
NUMBERED = re.compile(r"new(\d{3,})$")
LARGEST_SIDE = 4096
SEED = 42
"""Seed of the shuffling in SRe2L's code."""
AGREE = 0.5
"""Least share of images whose mean label is of their folder's class; SRe2L's images were made to please the teacher."""


def read(path: Path, labels: Path | None = None, seed: int = SEED) -> Foreign:
    """Return the set in a folder.

    labels: a file of labels in the order of the images (classes by name, files by name), or SRe2L's folder of stored
    labels; labels.npy and labels.pt in the folder count by themselves. seed: of the shuffling when labels were stored.
    """
    from bench.data.sources import image_files

    for name in PAIRS:
        if (path / name).is_file():
            return read_file(path / name, labels=labels)
    folders = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    files = [image_files(folder) for folder in folders]
    named = [(folder.name, group) for folder, group in zip(folders, files, strict=True) if group]
    if not named:
        hint = f"expected <class>/<images>, or {', '.join(PAIRS)}; {KNOWN}"
        raise UserError("no folders of images, and no file of a distilled set", where=str(path), hint=hint)
    numbers = [NUMBERED.match(name) for name, _ in named]
    numbered = [int(number[1]) for number in numbers if number]
    ids = numbered if len(numbered) == len(named) else list(range(len(named)))
    hard = torch.tensor(ids).repeat_interleave(torch.tensor([len(group) for _, group in named]))
    images = _pictures([file for _, group in named for file in group], path)
    names = () if ids is numbered else tuple(name for name, _ in named)
    soft, at = _soft(path, labels, hard, seed)
    kind = FORMATS["sre2l" if ids is numbered else "folder"]
    return Foreign(kind, (path, *at), images, hard if soft is None else soft, hard=hard, class_names=names)


def _pictures(files: list[Path], where: Path) -> Tensor:
    """Return images uint8 [n, c, h, w], grey if all are."""
    from PIL import Image

    sizes, modes = set(), set()
    for file in files:
        with reading(file, "image"), Image.open(file) as picture:
            sizes.add(picture.size)
            modes.add(picture.mode)
    if len(sizes) > 1:
        raise UserError(f"images have {len(sizes)} different sizes", where=str(where), hint="bring them to one size")
    (width, height), channels = sizes.pop(), 1 if modes <= {"1", "L", "LA"} else 3
    if max(width, height) > LARGEST_SIDE or len(files) * width * height * channels > LARGEST:
        raise UserError(f"{len(files)} images of {width}x{height}: too large", where=str(where))
    out = np.empty((len(files), height, width, channels), np.uint8)
    for index, file in enumerate(files):
        with reading(file, "image"), Image.open(file) as picture:
            out[index] = np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(height, width, channels)
    return torch.from_numpy(out.transpose(0, 3, 1, 2).copy())


# ---------------------------------------------------------------------------------------------- stored labels


def _soft(path: Path, labels: Path | None, hard: Tensor, seed: int) -> tuple[Tensor | None, tuple[Path, ...]]:
    """Return the labels stored for the images and where, or None."""
    found = labels or next((path / name for name in ("labels.npy", "labels.pt") if (path / name).is_file()), None)
    if found is None:
        return None, ()
    if found.is_dir():
        return _epochs(found, hard, seed), (found,)
    _, stored = open_file(found)
    if not isinstance(stored, Stored):
        raise UserError(f"{sketch(stored)}, not labels", where=str(found))
    return read_labels(found, stored, len(hard)), (found,)


def _epochs(folder: Path, hard: Tensor, seed: int) -> Tensor:
    """Return the mean over all epochs of the logits that SRe2L stored, one row for each image."""
    generator = torch.Generator().manual_seed(seed)
    sampler = torch.utils.data.RandomSampler(range(len(hard)), generator=generator)
    total, epochs = None, 0
    while (folder / f"epoch_{epochs}").is_dir():
        rows = _epoch(folder / f"epoch_{epochs}", len(hard))
        restored = torch.empty_like(rows)
        restored[torch.tensor(list(sampler))] = rows
        total = restored if total is None else total + restored
        epochs += 1
    if total is None:
        raise UserError("no folder epoch_0 with batch_0.tar, ...", where=str(folder), hint="name SRe2L's fkd-path")
    mean = total / epochs
    agree = float((mean.argmax(1) == hard).float().mean())
    if agree < AGREE:
        raise UserError(
            f"the labels agree with the folders for {agree:.0%} of the images only",
            where=str(folder),
            hint=f"were they stored for these images, and with the seed {seed}? (`seed` is SRe2L's --fkd-seed)",
        )
    return mean


def _epoch(folder: Path, size: int) -> Tensor:
    """Return the logits of one epoch in the order they were stored."""
    rows, batch = [], 0
    while (file := folder / f"batch_{batch}.tar").is_file():
        with reading(file, "torch file"):
            found = torch_file.read(file)
        if not isinstance(found, list | tuple) or len(found) != 6 or not isinstance(found[5], Stored):
            raise UserError(f"{sketch(found)}, not stored labels of SRe2L", where=str(file))
        if found[2] is not None:
            raise UserError(
                "labels of mixed images (CutMix or mixup), which belong to no single image",
                where=str(file),
                hint="leave the labels out to take the classes of the folders, or label the images anew",
            )
        with reading(file, "torch file"):
            rows.append(found[5].read().float())
        batch += 1
    if not rows or sum(len(part) for part in rows) != size or len({part.shape[1:] for part in rows}) != 1:
        raise UserError(f"not one label for each of {size} images", where=str(folder))
    return torch.cat(rows)
