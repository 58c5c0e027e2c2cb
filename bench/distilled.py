"""The distilled-set file: one safetensors file that says completely what it holds.

The tensors of a `DistilledSet` are stored under their field names (`extra/<name>` for the rest) and the header as one
JSON string in the metadata. Nothing in the file is ever executed: no pickle, and a decoder is looked up among the
registered ones only, never imported by a name the file chooses. A file is checked completely before it is handed out,
so whoever holds a loaded set need not doubt shapes, labels or finiteness.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bench.api import DistilledSet, Header
from bench.data.preprocess import PREFIX as PREPROCESSING
from bench.errors import Diverged, UserError, nearest
from bench.lazy import torch
from bench.registry import DECODERS, METHODS
from bench.run.atomic import atomic_write

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import TensorDataset

    from bench.api import Method, Task
    from bench.data import Prepared

FORMAT = 1
METADATA = "ddbench"
FIELDS = ("images", "labels", "indices", "steps", "rates", "outliers")
INTEGERS = ("indices", "steps")
EXTRA = "extra/"
LATENT = "latent/"
"""Beginning of the names, in `DistilledSet.extra`, of what the images were decoded from; nobody trains on it."""

# ------------------------------------------------------------------------------------ making a set


def make_header(task: Task, method: Method, *, floats: Mapping[str, int] | None = None, **fields: Any) -> Header:
    """Return the header of what `method` made for `task`.

    floats: the budget; default that of plain images with hard labels. fields: further fields of `Header`
    (`label_kind`, `learned_rate`, `decoder`, `outlier_weight`, ...).
    """
    spec, kind = task.spec, type(method)
    raw = _raw_floats(spec.dataset.shape, spec.dataset.classes, spec.ipc) or spec.dataset.train_size * math.prod(
        spec.dataset.shape
    )
    defaults: dict[str, Any] = {
        "dataset": spec.dataset.name,
        "classes": spec.dataset.classes,
        "class_names": task.data.class_names,
        "shape": spec.dataset.shape,
        "preprocessing": spec.preprocessing,
        "ipc": spec.ipc,
        "seed": spec.seed,
        "method": _name(kind),
        "method_version": kind.version,
        "params": method.params.model_dump(mode="json"),
        "network": spec.network.model_dump(mode="json"),
        "augment": spec.augment,
        "native_recipe": kind.native_recipe(method.params, spec),
        "floats": dict(floats or {"stored": raw, "decoded": raw, "raw": raw}),
    }
    return Header(**(defaults | fields))


def make_set(
    task: Task,
    method: Method,
    *,
    images: Tensor | None,
    labels: Tensor,
    header: Mapping[str, Any] | None = None,
    **tensors: Any,
) -> DistilledSet:
    """Return the checked set with header, budget and the tensors of the preprocessing filled in.

    header: fields for `make_header` beyond what the task knows. tensors: further fields of `DistilledSet`. Floats of
    another precision become float32. Raises `Diverged` if a number is not finite, `UserError` if the parts do not fit
    together.
    """
    extra = {**task.data.tensors(), **tensors.pop("extra", {})}
    parts = {"images": images, "labels": labels, **tensors}
    parts = {name: None if value is None else _contract(value) for name, value in parts.items()}
    distilled = DistilledSet(make_header(task, method, **(header or {})), **parts, extra=extra)
    distilled.header = distilled.header.model_copy(update={"floats": budget(distilled)})
    for problem in _infinite(distilled):
        raise Diverged(problem)
    return check(distilled, where=f"set of {distilled.header.method}")


def _contract(tensor: Tensor) -> Tensor:
    return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()


def budget(distilled: DistilledSet) -> dict[str, int]:
    """Return how many numbers the set stands for.

    stored: floats that must be kept: images (also those a selection only points at), outliers, float labels, rates,
    a learned rate and decoder tensors, but not what the preprocessing of the dataset needs. decoded: floats of the
    images a network trains on, outliers included. raw: floats of IPC real images per class (of as many images as
    there are labels where no IPC is set). latent: floats of the latents that come along, if any; they are not stored
    in place of images.
    """
    header, pixels = distilled.header, math.prod(distilled.header.shape)
    decoded = len(distilled.labels) * pixels
    outliers = 0 if distilled.outliers is None else distilled.outliers.numel()
    latent = sum(tensor.numel() for name, tensor in distilled.extra.items() if name.startswith(LATENT))
    pieces = [tensor for name, tensor in distilled.extra.items() if not name.startswith((PREPROCESSING, LATENT))]
    pieces += [distilled.labels] if header.label_kind != "hard" else []
    pieces += [tensor for tensor in (distilled.images, distilled.rates) if tensor is not None]
    stored = sum(tensor.numel() for tensor in pieces) + outliers + (header.learned_rate is not None)
    if distilled.images is None and distilled.indices is not None:
        stored += decoded
    raw = _raw_floats(header.shape, header.classes, header.ipc)
    counts = {"stored": stored, "decoded": decoded + outliers, "raw": decoded if raw is None else raw}
    return counts | ({"latent": latent} if latent else {})


def _raw_floats(shape: tuple[int, ...], classes: int, ipc: int | None) -> int | None:
    return None if ipc is None else ipc * classes * math.prod(shape)


def _name(kind: type) -> str:
    """Return the registered name of a method class, or its `module:attribute`."""
    origin = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, target in METHODS.targets.items() if target == origin), origin)


# ------------------------------------------------------------------------------------ file


def save(path: Path | str, distilled: DistilledSet) -> None:
    """Write the set to `path` in one atomic step: a reader sees the old file or the whole new one.

    Missing folders are made. Equal sets give equal bytes. Raises `UserError` if the set is not valid or the file
    cannot be written.
    """
    from safetensors.torch import save as to_bytes

    check(distilled, where=str(path))
    named = {name: getattr(distilled, name) for name in FIELDS}
    named |= {EXTRA + name: tensor for name, tensor in distilled.extra.items()}
    tensors = {  # clones: the format wants contiguous tensors that share no memory
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in named.items()
        if tensor is not None
    }
    try:
        text = json.dumps(distilled.header.model_dump(), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"the header cannot be written as JSON: {error}", where=str(path)) from error
    data = to_bytes(tensors, metadata={METADATA: text})
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as stream:
            stream.write(data)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", where=str(path)) from error


def load(path: Path | str, device: str | torch.device = "cpu") -> DistilledSet:
    """Return the set in the file, its tensors on `device`.

    Raises `UserError` with the file's name if it is missing, damaged, foreign, of a newer format, or inconsistent.
    """
    where = str(path)
    text, tensors = _read(path, device)
    header = _parse_header(text, where)
    unknown = [name for name in tensors if name not in FIELDS and not name.startswith(EXTRA)]
    if unknown:
        raise _invalid(f"unknown tensor {unknown[0]!r}", where)
    if "labels" not in tensors:
        raise _invalid("there are no labels", where)
    extra = {name.removeprefix(EXTRA): tensor for name, tensor in tensors.items() if name.startswith(EXTRA)}
    fields = {name: tensors.get(name) for name in FIELDS}
    return check(DistilledSet(header, **fields, extra=extra), where=where)  # type: ignore[arg-type]


def read_header(path: Path | str) -> Header:
    """Return the header alone, without torch; the tensors are not looked at. Raises as `load`."""
    return _parse_header(_read(path, None)[0], str(path))


def _read(path: Path | str, device: str | torch.device | None) -> tuple[str, dict[str, Tensor]]:
    """Return the header text and all tensors of a safetensors file; no tensors where no device is given."""
    from safetensors import SafetensorError, safe_open

    where = str(path)
    try:
        with Path(path).open("rb"):  # for the system's own words about a missing or closed file
            pass
        options = {"framework": "np"} if device is None else {"framework": "pt", "device": str(device)}
        with safe_open(path, **options) as file:
            text = (file.metadata() or {}).get(METADATA)
            names = () if device is None else file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=where) from error
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"not a distilled set, or a damaged one: {_one_line(error)}",
            where=where,
            hint="a distilled set is a safetensors file of ddbench; `ddbench import` makes one of other formats",
        ) from error
    if text is None:
        raise UserError("a safetensors file, but not a distilled set of ddbench", where=where)
    return text, tensors


def _parse_header(text: str, where: str) -> Header:
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise _invalid("the header is not a JSON object", where)
        version = fields.get("format")
        if type(version) is int and version > FORMAT:
            raise UserError(f"format {version} is newer than this ddbench, which reads {FORMAT}", where=where)
        if type(version) is not int or version != FORMAT:
            raise _invalid(f"unknown format {version!r}", where)
        return Header(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _invalid(f"header field {place}: {first['msg']}", where) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise _invalid(f"the header is not valid JSON: {error}", where) from error


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]


def _invalid(what: str, where: str) -> UserError:
    return UserError(f"not a valid distilled set: {_one_line(what)}", where=where)


# ------------------------------------------------------------------------------------ rules


def check(distilled: DistilledSet, where: str = "distilled set") -> DistilledSet:
    """Return the set. Raises `UserError` for the first rule that it breaks."""
    for problem in _problems(distilled):
        raise _invalid(problem, where)
    return distilled


def _problems(distilled: DistilledSet) -> Iterator[str]:
    """Yield what is wrong; whoever takes the next problem knows that those before did not occur."""
    header = distilled.header
    if min(header.shape) < 1 or header.classes < 1:
        yield f"shape {header.shape} and {header.classes} classes must be positive"
    if header.class_names and len(header.class_names) != header.classes:
        yield f"{len(header.class_names)} class names for {header.classes} classes"
    if not isinstance(header.decoder.get("name"), str):
        yield "the decoder has no name"
    for name in FIELDS:
        tensor = getattr(distilled, name)
        integer = name in INTEGERS or (name == "labels" and header.label_kind == "hard")
        expected = torch.int64 if integer else torch.float32
        if tensor is not None and tensor.dtype != expected:
            yield f"{name} are {tensor.dtype}, not {expected}"
    yield from _infinite(distilled)
    yield from _label_problems(distilled.labels, header)
    yield from _shape_problems(distilled, len(distilled.labels), tuple(header.shape))


def _infinite(distilled: DistilledSet) -> Iterator[str]:
    for name in ("learned_rate", "outlier_weight"):
        value = getattr(distilled.header, name)
        if value is not None and not math.isfinite(value):
            yield f"{name} is {value}"
    for name, tensor in {**{name: getattr(distilled, name) for name in FIELDS}, **distilled.extra}.items():
        if tensor is not None and tensor.is_floating_point() and not bool(torch.isfinite(tensor.double()).all()):
            yield f"{name} are not finite"


def _label_problems(labels: Tensor, header: Header) -> Iterator[str]:
    if labels.dim() == 0 or len(labels) == 0:
        yield "there are no labels"
    expected = (len(labels),) if header.label_kind == "hard" else (len(labels), header.classes)
    if tuple(labels.shape) != expected:
        yield f"{header.label_kind} labels have shape {tuple(labels.shape)}, not {expected}"
    if header.label_kind == "hard" and not _within(labels, header.classes):
        yield f"hard labels must be 0 to {header.classes - 1}, found {int(labels.min())} to {int(labels.max())}"
    if header.label_kind == "probabilities":
        if float(labels.min()) < 0:
            yield "probabilities must not be negative"
        if float((labels.double().sum(1) - 1).abs().max()) > 1e-4:
            yield "rows of probabilities must sum to 1"


def _shape_problems(distilled: DistilledSet, size: int, shape: tuple[int, ...]) -> Iterator[str]:
    images, indices, steps, rates = distilled.images, distilled.indices, distilled.steps, distilled.rates
    if distilled.header.decoder["name"] == "pixels":
        if images is None and indices is None:
            yield "there are neither images nor indices"
        if images is not None and tuple(images.shape) != (size, *shape):
            yield f"images have shape {tuple(images.shape)}, not {(size, *shape)}"
    if indices is not None and (tuple(indices.shape) != (size,) or int(indices.min()) < 0):
        yield f"indices must be {size} numbers from 0"
    if steps is not None and (steps.dim() != 2 or not _within(steps, size)):
        yield f"steps must be a table of image numbers 0 to {size - 1}"
    if rates is not None and (steps is None or tuple(rates.shape) != (len(steps),)):
        yield "rates must be one number for each of the steps"
    if distilled.outliers is not None and tuple(distilled.outliers.shape[1:]) != shape:
        yield f"outliers have shape {tuple(distilled.outliers.shape)}, not (any, {', '.join(map(str, shape))})"


def _within(numbers: Tensor, limit: int) -> bool:
    return numbers.numel() == 0 or (int(numbers.min()) >= 0 and int(numbers.max()) < limit)


# ------------------------------------------------------------------------------------ use


def merge(sets: Sequence[DistilledSet], images: Sequence[Tensor]) -> DistilledSet:
    """Return the union of sets of one method as a set of plain images, in the order given. images: decoded.

    A learned rate becomes the mean of theirs; ordered steps are dropped, since one order of all of them is not
    defined. Which training images they are stays known where all of them are of one dataset. Raises `UserError` where
    their labels are not of one kind.
    """
    first = sets[0]
    kinds = {one.header.label_kind for one in sets}
    if len(kinds) > 1:
        raise UserError(f"sets with labels of the kinds {', '.join(sorted(kinds))} cannot be used together")
    rates = [one.header.learned_rate for one in sets if one.header.learned_rate is not None]
    outliers = [one.outliers for one in sets if one.outliers is not None]
    indices = [one.indices for one in sets if one.indices is not None and one.header.dataset == first.header.dataset]
    header = first.header.model_copy(
        update={"decoder": {"name": "pixels"}, "learned_rate": sum(rates) / len(rates) if rates else None}
    )
    return DistilledSet(
        header,
        torch.cat(list(images)),
        torch.cat([one.labels for one in sets]),
        indices=torch.cat(indices) if len(indices) == len(sets) else None,
        outliers=torch.cat(outliers) if outliers else None,
        extra={name: tensor for name, tensor in first.extra.items() if name.startswith(PREPROCESSING)},
    )


def decode(distilled: DistilledSet, prepared: Prepared | None = None) -> Tensor:
    """Return the images a network trains on: float32 [n, c, h, w], one for each label, in the space of the set.

    prepared: the real data in the same preprocessing, needed where the set only points at training images.
    Raises `UserError` for a decoder that is not registered, and where the data are needed and missing.
    """
    header, name = distilled.header, distilled.header.decoder["name"]
    if name not in DECODERS.targets:
        raise UserError(f"unknown decoder {name!r}", where=header.method, hint=nearest(name, DECODERS.targets))
    images = DECODERS.get(name)(distilled, prepared)
    expected = (len(distilled.labels), *header.shape)
    if tuple(images.shape) != expected:
        raise UserError(f"decoder {name!r} made images of shape {tuple(images.shape)}, not {expected}")
    return images


def pixels(distilled: DistilledSet, prepared: Prepared | None = None) -> Tensor:
    """Return the stored images, or the training images the set points at: the decoder of most methods."""
    if distilled.images is not None:
        return distilled.images
    where = f"set of {distilled.header.method}"
    if prepared is None:
        raise UserError(f"points at training images of {distilled.header.dataset}", where=where, hint="give the data")
    assert distilled.indices is not None
    if not _within(distilled.indices, prepared.train.size):
        raise UserError(f"points beyond the {prepared.train.size} training images", where=where, hint="other data?")
    return prepared.train.images(distilled.indices)


def as_dataset(distilled: DistilledSet, prepared: Prepared | None = None) -> TensorDataset:
    """Return the pairs (image, label) for any torch DataLoader."""
    from torch.utils.data import TensorDataset

    return TensorDataset(decode(distilled, prepared), distilled.labels)


def summary(distilled: DistilledSet) -> dict[str, Any]:
    """Return the facts worth showing of a set, as plain JSON values."""
    header, images = distilled.header, distilled.images
    facts = header.model_dump(mode="json", exclude={"floats", "provenance", "class_names"}, exclude_none=True)
    facts["labels"] = f"{len(distilled.labels)} {header.label_kind}"
    if header.label_kind == "hard":
        counts = torch.bincount(distilled.labels, minlength=header.classes)
        facts["images_per_class"] = [int(counts.min()), int(counts.max())]
    if images is not None and images.numel():
        facts["value_range"] = [float(images.min()), float(images.max())]
    named = {name: getattr(distilled, name) for name in FIELDS} | distilled.extra
    facts["tensors"] = {name: list(tensor.shape) for name, tensor in named.items() if tensor is not None}
    return {**facts, "floats": budget(distilled), "provenance": header.provenance}
