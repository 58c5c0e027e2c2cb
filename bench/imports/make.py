"""From what was found in a file to a distilled set of ddbench: the space, the labels, and a header that owns up.

What the file leaves open the user says (`Choice`); what it says is taken at its word unless the values contradict it.
Images in the space of a preprocessing that this benchmark knows by name keep their values bit by bit. Two kinds do not:
pixels, and images that were standardised with other constants than this benchmark's (`bench.imports.space`).

Who made a set is in its header only where one method alone writes that format, or the user says it; else the method is
`imported`. With the method goes the recipe of its paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bench.data
from bench import distilled as sets
from bench.api import DatasetInfo, DistilledSet, Header, LabelKind, NetSpec, TaskSpec
from bench.errors import UserError
from bench.imports.formats import Constants, Foreign
from bench.imports.space import Choice, check_shape, formation, own_constants, space, to_space
from bench.lazy import torch
from bench.registry import METHODS
from bench.run.store import sha256

if TYPE_CHECKING:
    from torch import Tensor

    from bench.data import Prepared

IMPORTED = "imported"
ROUNDING = 1e-2
"""Rows of probabilities that sum to 1 up to this (half precision) are made to."""


def make(foreign: Foreign, dataset: str, **said: Any) -> DistilledSet:
    """Return the set as ddbench keeps it. said: fields of `Choice`.

    Raises `UserError` where the file does not fit the dataset, or does not tell something that must be known.
    """
    choice = Choice(**said)
    info = bench.data.info(dataset)
    check_shape(foreign, info)
    kind, pixels = space(foreign, info, choice)
    data = bench.data.load(dataset)
    standardised = kind == "meanstd" and not pixels
    constants = choice.constants or (own_constants(foreign, data) if standardised else None)
    return assemble(foreign, bench.data.prepare(data, kind), pixels, constants, choice)


def assemble(
    foreign: Foreign, prepared: Prepared, pixels: bool, constants: Constants | None, choice: Choice
) -> DistilledSet:
    """Return the set in the space of `prepared`. constants: what the images were standardised with, if not as there."""
    info, notes = prepared.info, list(foreign.notes)
    factor = formation(foreign, pixels, choice)
    images, outliers = (
        None if found is None else to_space(foreign, found, prepared, pixels, constants, factor, notes)
        for found in (foreign.images, foreign.outliers)
    )
    labels, label_kind = _labels(foreign, prepared, choice)
    ipc = _ipc(labels, label_kind, info.classes)
    rate = choice.rate if choice.rate is not None else foreign.rate
    method = choice.method or _maker(foreign, factor)
    decoder: dict[str, Any] = {"name": "pixels"}
    if factor is not None:
        decoder = {"name": "multi_formation", "factor": factor}
        labels = labels.repeat(factor**2, *[1] * (labels.dim() - 1))
    header = Header(
        dataset=info.name,
        classes=info.classes,
        class_names=prepared.class_names,
        shape=info.shape,
        preprocessing=prepared.preprocessing,
        ipc=ipc,
        seed=foreign.which,
        method=method,
        method_version=0,
        params={} if factor is None else {"factor": factor},
        network={},
        augment="unknown",
        label_kind=label_kind,
        learned_rate=rate,
        decoder=decoder,
        native_recipe=_recipe(foreign, method, info, ipc, factor, rate, notes),
        outlier_weight=None if outliers is None else choice.outlier_weight,
        provenance={"imported": _origin(foreign, notes)},
    )
    made = DistilledSet(header, images, labels, outliers=outliers, extra=prepared.tensors())
    made.header = header.model_copy(update={"floats": sets.budget(made)})
    return sets.check(made, where=str(foreign.path))


# ---------------------------------------------------------------------------------------------- labels


def _labels(foreign: Foreign, prepared: Prepared, choice: Choice) -> tuple[Tensor, LabelKind]:
    """Return the labels and what they are."""
    labels, classes, where = foreign.labels, prepared.info.classes, str(foreign.path)
    if labels.dim() == 2 and labels.shape[1] != classes:
        raise UserError(f"labels of {labels.shape[1]} classes, {prepared.info.name} has {classes}", where=where)
    kind = choice.label_kind or ("hard" if labels.dim() == 1 else foreign.format.labels) or _kind(labels, where)
    if kind == "hard":
        hard = labels if labels.dim() == 1 else foreign.hard
        return labels.argmax(1) if hard is None else _by_name(foreign, hard, prepared), kind
    if labels.dim() == 1:
        raise UserError(f"the labels are classes, not {kind}", where=where)
    if kind == "probabilities":
        sums = labels.double().sum(1, keepdim=True)
        if 1e-4 < float((sums - 1).abs().max()) < ROUNDING:
            labels = (labels.double() / sums).float()
    return labels, kind


def _kind(labels: Tensor, where: str) -> LabelKind:
    if float(labels.min()) >= 0 and float((labels.double().sum(1) - 1).abs().max()) < ROUNDING:
        return "probabilities"
    raise UserError(
        f"labels from {float(labels.min()):.2f} to {float(labels.max()):.2f}: the file does not tell what they are",
        where=where,
        hint="say --label-kind logits | centred, or hard to take the largest as the class",
    )


def _by_name(foreign: Foreign, labels: Tensor, prepared: Prepared) -> Tensor:
    """Return classes of folders as the dataset counts them: by their names, or by their order where all are there."""
    folders, names = foreign.class_names, list(prepared.class_names)
    if not folders:
        return labels
    if set(folders) <= set(names):
        return torch.tensor([names.index(name) for name in folders])[labels]
    if len(folders) != len(names):
        raise UserError(
            f"{len(folders)} folders for the {len(names)} classes of {prepared.info.name}",
            where=str(foreign.path),
            hint=f"name them as the dataset does: {', '.join(names[:3])}, ...",
        )
    return labels


def _ipc(labels: Tensor, kind: LabelKind, classes: int) -> int | None:
    """Return the images per class, where all classes have the same number."""
    per_class, rest = divmod(len(labels), classes)
    if rest or not per_class:
        return None
    if kind == "hard":
        if int(labels.min()) < 0 or int(labels.max()) >= classes:  # `check` says so
            return None
        return per_class if set(torch.bincount(labels, minlength=classes).tolist()) == {per_class} else None
    return per_class


# ---------------------------------------------------------------------------------------------- header


def _maker(foreign: Foreign, factor: int | None) -> str:
    makers = foreign.format.makers
    if len(makers) != 1:
        return IMPORTED
    return "idc_i" if makers == ("idc",) and factor == 1 else makers[0]


def _recipe(
    foreign: Foreign,
    method: str,
    info: DatasetInfo,
    ipc: int | None,
    factor: int | None,
    rate: float | None,
    notes: list[str],
) -> dict[str, Any] | None:
    """Return the recipe of the paper: of the method, or of all methods that write the format where they agree."""
    names = [method] if method in METHODS.targets else list(foreign.format.makers) if method == IMPORTED else []
    found = [_native(name, info, ipc, factor) for name in names]
    recipe = found[0] if found and all(one == found[0] for one in found) else None
    if recipe is None and rate is not None:
        recipe = {"base": "mtt"}
    if recipe is not None and recipe.get("base") == "mtt" and rate is None:
        notes.append("the learned rate is not in the file; with --rate the set has the recipe of its paper")
        return None
    return recipe


def _native(name: str, info: DatasetInfo, ipc: int | None, factor: int | None) -> dict[str, Any] | None:
    kind = METHODS.get(name)
    values = {**kind.preset(info, ipc or 1).params, **({} if factor is None else {"factor": factor})}
    params = kind.Params(**{key: value for key, value in values.items() if key in kind.Params.model_fields})
    task = TaskSpec(dataset=info, ipc=ipc, network=kind.network(params, info) or NetSpec())
    recipe = kind.native_recipe(params, task)
    return None if recipe is None else dict(recipe)


def _origin(foreign: Foreign, notes: list[str]) -> dict[str, Any]:
    """Return what identifies the file, and what the user should know."""
    files = {path.name: sha256(path) for path in foreign.files if path.is_file()}
    place = {"folder": foreign.path.name} if foreign.path.is_dir() else {}
    return {"format": foreign.format.name, **place, "sha256": files, "set": foreign.which, "notes": notes}
