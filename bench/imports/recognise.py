"""From a file to the set in it: which container it is, which format, and where its images and labels are.

Containers are told apart by their first bytes, formats by the names, shapes and types of what is inside; names of files
only say which labels belong to which images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.imports import array_file, torch_file
from bench.imports.formats import FORMATS, Foreign
from bench.imports.stored import Stored, Unsafe, archive, reading

if TYPE_CHECKING:
    from torch import Tensor

KNOWN = (
    "known: ddbench sets, torch files (DC, DSA, DM, TrustDD, APM, MTT, TESLA, GLaD, RDD, IDC), KIP and FRePo archives, "
    "checkpoints of flax (FRePo, ISA), .npy, .npz, safetensors, folders of images"
)
NAMES = (("images", "labels"), ("image", "label"), ("x", "y"))
"""What images and labels are called in files that nobody's code prescribes."""
PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read(path: Path, which: int | None = None, labels: Path | None = None) -> Foreign:
    """Return the set in a file.

    which: the number of the set where there are several. labels: the file of the labels where it does not lie beside.
    Raises `UserError` for what is damaged, unsafe, or no set.
    """
    kind, found = open_file(path)
    if isinstance(found, Mapping) and "data" in found and kind.startswith("torch"):
        return _results(path, found, which)
    if which:
        raise UserError(f"holds one set, there is no set {which}", where=str(path), hint="sets are counted from 0")
    if isinstance(found, Stored) and len(found.shape) in (3, 4):
        return _beside(path, kind, found, labels)
    if isinstance(found, list | tuple) and len(found) == 2 and _is_pair(found[0], found[1]):
        return _foreign("idc", path, found[0], found[1])
    if isinstance(found, Mapping):
        return _mapping(path, kind, found, labels)
    if isinstance(found, Stored) and len(found.shape) in (1, 2):
        raise UserError(f"{found}: labels, not images", where=str(path), hint="name the file of the images instead")
    raise UserError(f"{kind} with {sketch(found)}: not a distilled set", where=str(path), hint=KNOWN)


# ---------------------------------------------------------------------------------------------- containers


def open_file(path: Path) -> tuple[str, Any]:
    """Return what kind of file it is, and its content with `Stored` in place of arrays."""
    kind, reader = _container(path)
    with reading(path, kind):
        return kind, reader(path)


def _container(path: Path) -> tuple[str, Callable[[Path], Any]]:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    if head.startswith(b"PK"):
        with reading(path, "archive"), archive(path) as (_, members):
            is_torch = any(name.endswith("data.pkl") for name in members)
        return ("torch file", torch_file.read) if is_torch else ("NumPy archive", array_file.read_npz)
    if head.startswith(array_file.NPY):
        return "NumPy array", array_file.read_npy
    if head.startswith(torch_file.LEGACY):
        return "torch file", torch_file.read
    if head[:2] in PICKLE:
        return "pickle", _refuse_pickle
    if head[8:9] == b"{":
        return "safetensors file", array_file.read_safetensors
    if head and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        return "checkpoint of flax", array_file.read_flax
    raise UserError("not a file that ddbench can read, or a damaged one", where=str(path), hint=KNOWN)


def _refuse_pickle(path: Path) -> Any:
    raise Unsafe("Python objects")


# ---------------------------------------------------------------------------------------------- formats


def _results(path: Path, found: Mapping[str, Any], which: int | None) -> Foreign:
    """Return a set of DC, DSA, DM, TrustDD or APM."""
    data, chosen = found["data"], which or 0
    if isinstance(data, list | tuple) and len(data) == 2 and _is_pair(*data):
        if chosen:
            raise UserError(f"holds one set, there is no set {chosen}", where=str(path))
        return _foreign("res" if data[1].integer else "apm", path, data[0], data[1])
    pairs = [_numbered(path, data, chosen)]
    if "data_oe" in found:
        pairs.append(_numbered(path, found["data_oe"], chosen))
    outliers = images(path, pairs[1][0]) if len(pairs) > 1 else None
    several = f"set {chosen} of {len(data)}; another one by its number, from 0"
    return _foreign(
        "trustdd" if len(pairs) > 1 else "res",
        path,
        *pairs[0],
        outliers=outliers,
        sets=len(data),
        which=chosen,
        notes=(several,) if len(data) > 1 else (),
    )


def _numbered(path: Path, data: Any, which: int) -> tuple[Stored, Stored]:
    """Return images and labels of one experiment."""
    if not isinstance(data, list | tuple) or not data:
        raise UserError(f"`data` is {sketch(data)}, not a list of sets", where=str(path))
    if not 0 <= which < len(data):
        raise UserError(f"holds {len(data)} sets, there is no set {which}", where=str(path), hint="counted from 0")
    pair = data[which]
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not _is_pair(*pair):
        raise UserError(f"set {which} is {sketch(pair)}, not images and labels", where=str(path))
    return pair[0], pair[1]


def _mapping(path: Path, kind: str, found: Mapping[str, Any], labels: Path | None) -> Foreign:
    """Return a set whose parts have names."""
    state = found.get("params")
    if (
        kind.startswith("checkpoint")
        and isinstance(state, Mapping)
        and _is_pair(state.get("x_proto"), state.get("y_proto"))
    ):
        return _foreign("frepo", path, state["x_proto"], state["y_proto"], last=True)
    for first, second in NAMES:
        if not _is_pair(found.get(first), found.get(second)):
            continue
        x, y = found[first], found[second]
        learned = kind == "NumPy archive" and len(x.shape) == 4 and len(y.shape) == 2 and not (x.integer or y.integer)
        if learned and first in ("image", "images"):
            return _foreign("frepo" if first == "image" else "kip", path, x, y, last=True)
        return _foreign("plain", path, x, y, rate=_rate(path, found.get("lr")), last=None)
    raise UserError(
        f"{kind} with {sketch(found)}: no images and labels",
        where=str(path),
        hint=f"expected {' or '.join(f'{x!r} and {y!r}' for x, y in NAMES)}, or the layout of an official repository",
    )


def _beside(path: Path, kind: str, found: Stored, labels: Path | None) -> Foreign:
    """Return images that fill a file, with the labels and perhaps the learned rate in files beside it."""
    partner = labels or _partner(path, "labels")
    if partner is None or not partner.is_file():
        raise UserError(
            f"{found}: images without labels",
            where=str(path),
            hint=f"put {partner.name if partner else 'their labels'} beside it, or name the file of the labels",
        )
    _, stored = open_file(partner)
    if not isinstance(stored, Stored):
        raise UserError(f"{sketch(stored)}, not the labels of {path.name}", where=str(partner))
    extra, rate = _partner(path, "lr"), None
    files = [path, partner]
    if extra is not None and extra.is_file():
        rate = _rate(extra, open_file(extra)[1])
        files.append(extra)
    torch_pair = kind.startswith("torch")
    notes: tuple[str, ...] = ()
    if re.match(r"images_zca_\d+$", path.stem) and torch_pair:
        notes = ("MTT calls so what its whitening was undone on: pixels, to be said with `pixels`",)
    last = False if torch_pair else None
    found_set = _foreign(
        "pair" if torch_pair else "plain", path, found, stored, labels_at=partner, rate=rate, notes=notes, last=last
    )
    return replace(found_set, files=tuple(files))


def _partner(path: Path, what: str) -> Path | None:
    """Return the file beside `images...` that is called `labels...` or `lr...`; without a step's `zca_`."""
    if not path.name.startswith("images"):
        return None
    rest = path.name.removeprefix("images").replace("_zca_", "_")
    return path.with_name(what + rest)


def _rate(path: Path, found: Any) -> float | None:
    """Return a learned rate, stored as a number or a tensor of one; None where there is none."""
    if found is None:
        return None
    if isinstance(found, Stored) and math.prod(found.shape) == 1:
        with reading(path, "learning rate"):
            found = float(found.read().flatten()[0])
    if isinstance(found, float) and math.isfinite(found) and found > 0:
        return found
    raise UserError("the learned rate is not a number above 0", where=str(path))


def _is_pair(first: Any, second: Any) -> bool:
    """Return whether these may be images and their labels."""
    both = isinstance(first, Stored) and isinstance(second, Stored)
    return both and len(first.shape) in (3, 4) and len(second.shape) in (1, 2) and first.shape[0] == second.shape[0]


def sketch(found: Any) -> str:
    """Return a few words on what was found, whatever it is; nothing of unknown depth is walked through."""
    if isinstance(found, Stored):
        return f"one array, {found}"
    if isinstance(found, Mapping):
        keys = ", ".join(str(key)[:30] for key in list(found)[:6] if isinstance(key, str | int))
        return f"the names {keys}{', ...' if len(found) > 6 else ''}" if found else "nothing in it"
    if isinstance(found, list | tuple):
        return f"a list of {len(found)}"
    return f"one {type(found).__name__}"


# ---------------------------------------------------------------------------------------------- tensors


def _foreign(
    name: str,
    path: Path,
    x: Stored,
    y: Stored,
    *,
    last: bool | None = False,
    labels_at: Path | None = None,
    **fields: Any,
) -> Foreign:
    return Foreign(
        FORMATS[name], (path,), images(path, x, last), read_labels(labels_at or path, y, x.shape[0]), **fields
    )


def images(path: Path, stored: Stored, last: bool | None = False) -> Tensor:
    """Return images uint8 or float32 [n, c, h, w].

    last: whether channels come last; None: found out, where only one of the two ways gives 1 or 3 channels.
    """
    where = str(path)
    shape = stored.shape
    if math.prod(shape) == 0:
        raise UserError(f"{stored}: no images", where=where)
    if len(shape) == 4 and last is None:
        first, final = shape[1] in (1, 3), shape[3] in (1, 3)
        if first == final:
            what = "either the second or the last side may be the channels" if first else "no side is 1 or 3 channels"
            raise UserError(f"{stored}: {what}", where=where, hint="images are [n, c, h, w] or [n, h, w, c]")
        last = final
    with reading(path, "array of images"):
        values = stored.read()
        if len(shape) == 3:
            values = values[:, None]
        elif last:
            values = values.permute(0, 3, 1, 2).contiguous()
        if values.is_floating_point():
            return values.float()
        whole = values.long()
    if stored.dtype == "bool" or int(whole.min()) < 0 or int(whole.max()) > 255:
        raise UserError(f"{stored}: images are floats, or whole numbers from 0 to 255", where=where)
    return whole.byte()


def read_labels(path: Path, stored: Stored, size: int) -> Tensor:
    """Return labels int64 [n] or float32 [n, K]."""
    if not stored.shape or stored.shape[0] != size or len(stored.shape) not in (1, 2):
        raise UserError(f"{stored}: not the labels of {size} images", where=str(path))
    with reading(path, "array of labels"):
        values = stored.read()
    if values.dim() == 2:
        return values.float()
    if values.is_floating_point() and not bool((values == values.round()).all()):
        raise UserError(f"{stored}: classes are whole numbers", where=str(path), hint="soft labels are [n, classes]")
    return values.long()
