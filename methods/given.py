"""A set that lies in a file: made by ddbench before or imported, and from here on evaluated like that of any method.

While planning only the header of the file is read. It says which dataset, preprocessing, network and number of images
per class the set was made for, and a suite that wants something else is refused before anything runs. The set is known
by the sha256 of its file and not by its place: a changed file is a new cell, a moved one is not.

The set is handed on as it is, header included, so what is evaluated still says who made it. One file is one set
whatever the seed: it is planned for the first seed of a suite alone, because the same images under several seeds would
be counted as several sets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import bench.api
import bench.data
from bench import distilled as sets
from bench.api import DatasetInfo, DistilledSet, Header, Method, Need, NetSpec, Task, TaskSpec, param
from bench.errors import UserError
from bench.nets import spec as nets
from bench.registry import METHODS


class Given(Method):
    """The set in a file of ddbench; files of other projects become one by `ddbench import`."""

    class Params(bench.api.Params):
        """Which file."""

        file: str = param("", "a distilled set (.safetensors); `{dataset}` and `{ipc}` in it stand for the cell's")
        sha256: str | None = param(None, "hash of the file; None: that of the file as it is when the plan is made")

    title = "Given set"
    citation = "whoever made the file; its header says so"
    seed_free = True
    steps = 0

    @classmethod
    def settle(cls, params: Any, dataset: DatasetInfo, ipc: int | None) -> Params:
        """Return the parameters with the file's full path and hash. Raises `UserError` for a file that is no set."""
        if not params.file:
            raise UserError("params.file is missing", hint="name the file of a distilled set")
        name = params.file.replace("{dataset}", dataset.name).replace("{ipc}", str(ipc))
        path = Path(name).expanduser().absolute()
        header(path)
        content = sha256(path)
        if params.sha256 not in (None, content):
            raise UserError(
                f"the file has the sha256 {content[:12]}..., not {params.sha256[:12]}... as params.sha256 says",
                where=str(path),
                hint="leave params.sha256 out to take the file as it is",
            )
        return cls.Params(file=str(path), sha256=content)

    @classmethod
    def preprocessing(cls, params: Any, dataset: DatasetInfo) -> str:
        """Return the space the set was made in."""
        return header(Path(params.file)).preprocessing

    @classmethod
    def network(cls, params: Any, dataset: DatasetInfo) -> NetSpec | None:
        """Return the network the set was made with, where the file says it."""
        made_with = header(Path(params.file)).network
        return nets.parse(made_with) if made_with else None

    @classmethod
    def needs(cls, params: Any, spec: TaskSpec) -> Mapping[str, Need]:
        """Return nothing. Raises `UserError` where the set was not made for this task."""
        refuse(header(Path(params.file)), spec, params.file)
        return {}

    @classmethod
    def native_recipe(cls, params: Any, spec: TaskSpec) -> Mapping[str, Any] | None:
        """Return the recipe in the header."""
        return header(Path(params.file)).native_recipe

    @classmethod
    def native_network(cls, params: Any, spec: TaskSpec) -> NetSpec | None:
        """Return the network that the method named in the header evaluates with, where ddbench knows that method."""
        made = header(Path(params.file))
        if made.method not in METHODS.targets or made.native_recipe is None:
            return None
        kind = METHODS.get(made.method)
        try:
            return kind.native_network(kind.Params.model_validate_json(json.dumps(made.params)), spec)
        except ValueError:  # made by another version, whose parameters were others
            return None

    def start(self, task: Task) -> None:
        """Read the set. Raises `UserError` if the file is gone or changed since the plan was made."""
        path = Path(self.params.file)
        found = sets.load(path, device=task.device)
        if sha256(path) != self.params.sha256:
            raise UserError("the file changed since the plan was made", where=str(path), hint="run it again")
        self.set = found

    def export(self) -> DistilledSet:
        """Return the set; where it came from stands beside what made it."""
        made = self.set.header
        origin = {"given": {"sha256": self.params.sha256, "provenance": made.provenance}}
        return replace(self.set, header=made.model_copy(update={"provenance": origin}))


def header(path: Path) -> Header:
    """Return the header of a set, without torch. Raises `UserError` for a file that is missing or no set."""
    try:
        status = path.stat()
    except OSError as error:
        hint = "params.file: relative paths count from the current folder"
        raise UserError("there is no such file", where=str(path), hint=hint) from error
    return _header(path, status.st_size, status.st_mtime_ns)


def sha256(path: Path) -> str:
    """Return the hash of a file's bytes, read once as long as size and time stay the same."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@cache
def _header(path: Path, size: int, time: int) -> Header:
    return sets.read_header(path)


@cache
def _sha256(path: Path, size: int, time: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse(made: Header, spec: TaskSpec, file: str) -> None:
    """Raise `UserError` where a set was made for another dataset, shape, preprocessing or number of images."""
    info = spec.dataset
    if made.dataset != info.name and made.provenance.get("data") != bench.data.fingerprint(info.name):
        hint = f"evaluate it on {made.dataset!r}; in a suite with other datasets: skip: [{{label: ..., dataset: ...}}]"
        raise UserError(f"the set was made for {made.dataset!r}, not for {info.name!r}", where=file, hint=hint)
    if (tuple(made.shape), made.classes) != (tuple(info.shape), info.classes):
        theirs, ours = (
            f"{'x'.join(map(str, shape))} in {classes} classes"
            for shape, classes in ((made.shape, made.classes), (info.shape, info.classes))
        )
        raise UserError(f"the set holds images {theirs}, {info.name} {ours}", where=file, hint="is it the right file?")
    if made.preprocessing != spec.preprocessing:
        raise UserError(
            f"the set was made in the preprocessing {made.preprocessing!r}, not {spec.preprocessing!r}",
            where=file,
            hint=f"give its entry `preprocessing: {made.preprocessing}`, or leave the key out",
        )
    if None not in (made.ipc, spec.ipc) and made.ipc != spec.ipc:
        raise UserError(
            f"the set holds {made.ipc} images per class, not {spec.ipc}",
            where=file,
            hint=f"put {made.ipc} into grid.ipc; in a suite with others too: skip: [{{label: ..., ipc: {spec.ipc}}}]",
        )
