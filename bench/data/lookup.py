"""Datasets by name and place: which names there are, and where their files lie on this machine.

A name stands in the table or is that of a plug-in; `module:attribute` is an `Entry` anywhere else. Look-up order below
the data root (`DDBENCH_DATA`, by default ~/.cache/ddbench/data): `<name>.npz`, the folder `<name>/`, the layout of the
authors or of torchvision. Nothing is opened here, and nothing is downloaded.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data import views
from bench.data.catalogue import ENTRIES, Entry
from bench.errors import MissingData, UserError, nearest
from bench.registry import Registry

if TYPE_CHECKING:
    from bench.data.arrays import Arrays

OWN = ("npz:", "folder:")
"""Beginnings of names that stand for the user's own data."""


PLUGINS = Registry("dataset", {}, "ddbench.datasets")


@dataclass(frozen=True)
class Found:
    """A dataset on this machine: its place, the files that make it up, and how to read them."""

    path: Path
    files: tuple[Path, ...]
    read: Callable[[], Arrays]


def data_root() -> Path:
    """Return the folder datasets are looked for in."""
    return Path(os.environ.get("DDBENCH_DATA") or "~/.cache/ddbench/data").expanduser()


# ---------------------------------------------------------------------------------------------- names


@cache
def entries() -> dict[str, Entry]:
    """Return all datasets: the built-in table, then plug-ins. A broken plug-in is left out with a warning."""
    found = dict(ENTRIES)
    for name in PLUGINS.names():
        if name in ENTRIES:
            warnings.warn(f"plug-in dataset {name!r} is ignored: the name is built in", stacklevel=2)
            continue
        try:
            plugin = PLUGINS.get(name)
        except UserError as error:
            warnings.warn(str(error), stacklevel=2)
            continue
        if not isinstance(plugin, Entry) or plugin.info.name != name:
            warnings.warn(f"plug-in dataset {name!r} is ignored: it is not an Entry of this name", stacklevel=2)
        else:
            found[name] = plugin
    return found


def names() -> list[str]:
    """Return the names of all known datasets, built-in ones first."""
    return list(entries())


def entry_of(name: str) -> Entry:
    """Return the entry of a dataset: of the table, of a plug-in, or the one at `module:attribute` under that name.

    Raises `UserError` with the nearest name, or for what is no entry.
    """
    if name in entries():
        return entries()[name]
    if ":" not in name:
        hint = f"{nearest(name, entries())}; own data: npz:PATH or folder:PATH"
        raise UserError(f"unknown dataset {name!r}", hint=hint)
    entry = PLUGINS.get(name)
    if not isinstance(entry, Entry):
        raise UserError(f"{name!r} is a {type(entry).__name__}", hint="it must be a bench.data.catalogue.Entry")
    return replace(entry, info=entry.info.model_copy(update={"name": name}))


def stem(name: str) -> str:
    """Return what files of a dataset are called below the data root: its name, with a dot for the colon."""
    return name.replace(":", ".")


# ---------------------------------------------------------------------------------------------- places


def find(name: str) -> Found | None:
    """Return where `name` is on this machine and how to read it, or None. Raises `UserError` for unknown names.

    Of a view, that is its base.
    """
    if view := views.parse(name):
        return find(view.base)
    if name.startswith(OWN):
        return _find_own(name)
    entry, root = entry_of(name), data_root()
    if entry.make:
        home = call(entry.home)
        return Found(home, (home,), partial(call, entry.make))
    archive, folder = root / f"{stem(name)}.npz", root / stem(name)
    if archive.is_file():
        return Found(archive, (archive,), partial(call, "bench.data.sources:read_npz", archive))
    if (folder / "train").is_dir():
        return Found(folder, (folder,), partial(_read_folder, entry, folder))
    for layout in entry.layouts:
        marks = tuple(root / mark for mark in layout.marks)
        if all(mark.exists() for mark in marks):
            return Found(root / layout.place, marks, partial(call, layout.read, root, entry))
    return None


def _find_own(name: str) -> Found | None:
    kind, _, text = name.partition(":")
    if kind == "npz":
        path = Path(text).expanduser()
        return Found(path, (path,), partial(call, "bench.data.sources:read_npz", path)) if path.is_file() else None
    place, at, size = text.rpartition("@")
    square = (int(size), int(size)) if at and size.isdecimal() and int(size) else None
    path = Path(place if square else text).expanduser()
    return (
        Found(path, (path,), partial(call, "bench.data.sources:read_folder", path, square)) if path.is_dir() else None
    )


def _read_folder(entry: Entry, folder: Path) -> Arrays:
    """Read the folder of a known set: the class folders its entry names, or all there are."""
    if entry.classes:
        return call("bench.data.formats:class_folders", folder, entry)
    channels, height, width = entry.info.shape
    return call("bench.data.sources:read_folder", folder, (height, width), channels)


def locate(name: str) -> Path | None:
    """Return where the dataset is on this machine, or None. Sets that come with a package are always there."""
    found = find(name)
    return found.path if found else None


def require(name: str) -> None:
    """Raise `MissingData` with the exact remedy where the dataset is not on this machine."""
    required(name)


def required(name: str) -> Found:
    """Return where the dataset is. Raises `MissingData` where it is not on this machine."""
    found = find(name)
    if found is None:
        looked_at = name.partition(":")[2] if name.startswith(OWN) else str(data_root())
        raise MissingData(f"dataset {name!r} is not on this machine", where=looked_at, hint=remedy(name))
    return found


def remedy(name: str) -> str:
    """Return how to get the dataset onto this machine."""
    if view := views.parse(name):
        return remedy(view.base)
    if name.startswith(OWN):
        return "the path does not exist; relative paths count from the current folder"
    entry = entry_of(name)
    ways = [f"run 'ddbench data get {name}' (needs a network)"] if entry.download else []
    ways += [entry.remedy] if entry.remedy else []
    ways += [f"put {stem(name)}.npz or {stem(name)}/train|test/<class>/ there; DDBENCH_DATA names the folder"]
    return "; or ".join(ways)


def call(target: str, *arguments: Any) -> Any:
    """Call the function `module:function`, importing it now."""
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)(*arguments)
