"""An array in a foreign file, known by shape and type before it is read, and the checks every container shares.

One idea: a reader turns a file into plain containers whose leaves are `Stored`. Nothing is made in memory because a
file says so: a stored array is read only once its size was held against the bytes that are there. Whatever else a
damaged file makes a library raise becomes one `UserError`.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.errors import UserError
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 2**32
"""Most bytes of one array: 50 images of 64x64 for each class of ImageNet are 2.5 GB."""
SMALL = 2**26
"""An array up to this size may be compressed as well as it likes."""
EXPANSION = 100
"""Most that a larger array may be smaller in the file: images of any kind do not come near it."""
PAIR = "images=images, labels=labels"
MEMBERS = 10_000
"""Most files in one archive."""


@dataclass(frozen=True)
class Stored:
    """An array that `read` makes. dtype: its name in NumPy, or `bfloat16`."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]

    @property
    def integer(self) -> bool:
        """Whether it holds whole numbers."""
        return self.dtype.startswith(("int", "uint"))

    def __str__(self) -> str:
        return f"{self.dtype} {'x'.join(map(str, self.shape)) or 'number'}"


class Damaged(ValueError):
    """A file contradicts itself."""


class Unsafe(Exception):
    """Reading would run what the file asks for. The argument names it."""


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever happens while a file is decoded into a `UserError` that says what was being read.

    A damaged file may make a decoder raise anything at all, so everything is caught here and nowhere else.
    """
    try:
        yield
    except UserError:
        raise
    except Unsafe as error:
        raise UserError(
            f"not read, because this {kind} asks for {error}: unpickling that can run any code",
            where=str(path),
            hint=remedy(path, kind),
        ) from None
    except OSError as error:
        raise UserError(f"cannot be read as {kind}: {error.strerror or error}", where=str(path)) from error
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"a damaged {kind}, or something else: {text or type(error).__name__}", where=str(path)
        ) from error


def remedy(path: Path, kind: str) -> str:
    """Return how to make a file that is safe to read out of one that is not."""
    name = path.name
    if kind.startswith("NumPy"):
        load, save = f"numpy.load({name!r}, allow_pickle=True)", f"numpy.savez({path.stem + '-safe.npz'!r}, {PAIR})"
    else:
        load = f"pickle.load(open({name!r}, 'rb'))" if kind == "pickle" else f"torch.load({name!r}, weights_only=False)"
        save = f"torch.save(dict({PAIR}), {path.stem + '-safe.pt'!r})"
    return f"if you trust the file, where it was made: x = {load}; images, labels = ...; {save}"


# ---------------------------------------------------------------------------------------------- archives


@contextmanager
def archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """Open a zip file and give its members by name, after checking what they claim about their sizes."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as opened:
        members = opened.infolist()
        if len(members) > MEMBERS or len({member.filename for member in members}) < len(members):
            raise Damaged(f"{len(members)} members, some of the same name or too many")
        for member in members:
            if member.compress_size > size or member.flag_bits & 1:
                raise Damaged(f"{member.filename!r} is larger than the file, or encrypted")
            limit = min(LARGEST, max(SMALL, EXPANSION * member.compress_size))
            if member.file_size > limit:
                raise Damaged(f"{member.filename!r} says it holds {member.file_size} bytes, more than is plausible")
        yield opened, {member.filename: member for member in members}


# ---------------------------------------------------------------------------------------------- arrays


def count(shape: Any, itemsize: int) -> int:
    """Return the elements of an array of this shape. Raises `Damaged` for what is no shape, or too large.

    Nothing of a shape is multiplied or printed before it is known to be a few small numbers.
    """
    if not isinstance(shape, tuple | list) or len(shape) > 8:
        raise Damaged("an array without a shape")
    if not all(type(side) is int and 0 <= side <= LARGEST for side in shape):
        raise Damaged("an array with an impossible shape")
    if math.prod(shape) * itemsize > LARGEST:
        raise Damaged(f"an array of shape {tuple(shape)}, which is too large")
    return math.prod(shape)


def numpy_type(name: Any) -> np.dtype:
    """Return the NumPy type of numbers called `name`. Raises `Damaged` for others, `Unsafe` for Python objects."""
    kind = np.dtype(name)
    if kind.hasobject:
        raise Unsafe("Python objects (an array of dtype object)")
    if kind.kind not in "biuf" or kind.itemsize not in (1, 2, 4, 8):
        raise Damaged(f"an array of dtype {kind}, not of numbers")
    return kind


def from_bytes(data: bytes, shape: tuple[int, ...], dtype: np.dtype, fortran: bool = False) -> Tensor:
    """Return the array that the bytes are. Raises `Damaged` where they are not as many as the shape needs."""
    if count(shape, dtype.itemsize) * dtype.itemsize != len(data):
        raise Damaged(f"{len(data)} bytes for an array {dtype} of shape {shape}")
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(values.astype(dtype.newbyteorder("="), order="C", copy=True))
