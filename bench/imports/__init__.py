"""Distilled sets of other projects: files of the official repositories in, sets of ddbench out.

    read(path)                        what is in a file, as found: `Foreign`
    make(foreign, "cifar10", ...)     the set as ddbench keeps it
    load(path, dataset="cifar10")     both; a set of ddbench as it is

A file is recognised by its content, whatever it is called, and nothing of it is run. Each format has its layout in
`bench.imports.formats`. What a file does not tell (which whitening, IDC's factor, MTT's learned rate) must be said.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bench.distilled
from bench.api import DistilledSet
from bench.errors import UserError
from bench.imports import array_file, folder, recognise
from bench.imports.folder import SEED
from bench.imports.formats import FORMATS, Foreign
from bench.imports.make import make
from bench.imports.space import Choice

__all__ = ["FORMATS", "SEED", "Choice", "Foreign", "is_own", "load", "make", "read", "summary"]

SPACES = {None: "not in the file", "frepo": "zca-frepo, meanstd if grey"}
"""What the spaces of a format are called, where not by their name."""


def read(path: Path | str, *, which: int | None = None, labels: Path | str | None = None, seed: int = SEED) -> Foreign:
    """Return the set in a foreign file or folder.

    which: number of the set where there are several, from 0. labels: where the labels are, if not beside the images.
    seed: with which SRe2L's labels were stored. Raises `UserError` for what is damaged, unsafe or no set.
    """
    path, at = Path(path).expanduser(), None if labels is None else Path(labels).expanduser()
    for place in (path, at):
        if place is not None and not place.exists():
            raise UserError("there is no such file", where=str(place))
        if place is not None and not (place.is_file() or place.is_dir()):
            raise UserError("neither a file nor a folder", where=str(place))
    if path.is_dir():
        return folder.read(path, at, seed)
    return recognise.read(path, which, at)


def is_own(path: Path | str) -> bool:
    """Return whether a file is a set of ddbench. False for what cannot be read."""
    path = Path(path).expanduser()
    try:
        return path.is_file() and array_file.is_ddbench(path)
    except Exception:  # whatever a foreign file makes the library raise: it is not ours
        return False


def summary(foreign: Foreign) -> dict[str, Any]:
    """Return what was found, as plain JSON values."""
    images, labels = foreign.images, foreign.labels
    return {
        "format": f"{foreign.format.title} ({foreign.format.name})",
        "files": [path.name for path in foreign.files],
        "sets": foreign.sets,
        "images": f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}",
        "value_range": [float(images.min()), float(images.max())],
        "labels": "classes" if labels.dim() == 1 else f"{labels.shape[1]} numbers each",
        "learned_rate": foreign.rate,
        "outliers": None if foreign.outliers is None else list(foreign.outliers.shape),
        "space": "pixels" if foreign.pixels else SPACES.get(foreign.format.space, foreign.format.space),
        "notes": list(foreign.notes),
    }


def load(path: Path | str, *, dataset: str | None = None, **options: Any) -> DistilledSet:
    """Return the set in a file of ddbench or of another project.

    dataset: which one the set stands for; a file of ddbench says it. options: those of `read` and the fields of
    `Choice`. Raises `UserError`.
    """
    if is_own(path):
        found = bench.distilled.load(Path(path).expanduser())
        if dataset not in (None, found.header.dataset):
            raise UserError(f"a set of {found.header.dataset}, not of {dataset}", where=str(path))
        if given := sorted(name for name, value in options.items() if value is not None):
            raise UserError(f"a set of ddbench says {given[0]} itself", where=str(path), hint=f"leave {given[0]} out")
        return found
    foreign = read(path, **{name: options.pop(name) for name in ("which", "labels", "seed") if name in options})
    if dataset is None:
        raise UserError(f"{foreign.format.title}: of which dataset?", where=str(path), hint="say --dataset NAME")
    return make(foreign, dataset, **options)
