"""Files of NumPy (`.npy`, `.npz`), of safetensors, and checkpoints of flax (msgpack): arrays without code.

Of each file the names, shapes and types are read first; an array is made when it is asked for. None of these formats
can hold a program but NumPy's arrays of Python objects, which are pickles and are refused.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.imports.stored import LARGEST, Damaged, Stored, archive, count, from_bytes, numpy_type

if TYPE_CHECKING:
    from torch import Tensor

NPY = b"\x93NUMPY"
HEADER = 2**14
"""Bytes in which the header of an array must end; NumPy itself refuses more than 10,000."""
FLAX_ARRAY = 1
"""Code of an array among the extensions of msgpack that flax defines."""
MOST = 4096
"""Most entries of one list or dict in a checkpoint."""


def read_npy(path: Path) -> Stored:
    """Return the array of an `.npy` file."""
    with path.open("rb") as file:
        shape, dtype, fortran, start = _header(file.read(HEADER))
    if path.stat().st_size - start != math.prod(shape) * dtype.itemsize:
        raise Damaged(f"{path.stat().st_size - start} bytes for an array {dtype} of shape {shape}")

    def load() -> Tensor:
        return from_bytes(path.read_bytes()[start:], shape, dtype, fortran)

    return Stored(shape, dtype.name, load)


def read_npz(path: Path) -> dict[str, Stored]:
    """Return the arrays of an `.npz` archive by name."""
    found = {}
    with archive(path) as (opened, members):
        for name, member in members.items():
            with opened.open(name) as file:
                shape, dtype, fortran, start = _header(file.read(HEADER))
            if member.file_size - start != math.prod(shape) * dtype.itemsize:
                raise Damaged(f"{member.file_size - start} bytes for an array {dtype} of shape {shape}")

            def load(name=name, shape=shape, dtype=dtype, fortran=fortran, start=start) -> Tensor:
                with archive(path) as (opened, _):
                    return from_bytes(opened.read(name)[start:], shape, dtype, fortran)

            found[name.removesuffix(".npy")] = Stored(shape, dtype.name, load)
    return found


def _header(data: bytes) -> tuple[tuple[int, ...], np.dtype, bool, int]:
    """Return shape, type and order of an array from the beginning of its file, and where its values begin."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise Damaged(f"an array in version {version} of the layout")
    shape, fortran, dtype = readers[version](stream)
    dtype = numpy_type(dtype)
    count(shape, dtype.itemsize)
    return shape, dtype, fortran, stream.tell()


def read_safetensors(path: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by name."""
    from safetensors import safe_open

    found = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            piece = file.get_slice(name)

            def load(name=name) -> Tensor:
                with safe_open(path, framework="pt") as again:
                    return again.get_tensor(name)

            found[name] = Stored(tuple(piece.get_shape()), SAFETENSORS.get(piece.get_dtype(), "other"), load)
    return found


SAFETENSORS = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    "U8": "uint8",
    "BF16": "bfloat16",
}


def is_ddbench(path: Path) -> bool:
    """Return whether a safetensors file is a distilled set of ddbench."""
    from safetensors import safe_open

    from bench.distilled import METADATA

    with safe_open(path, framework="np") as file:
        return METADATA in (file.metadata() or {})


# ---------------------------------------------------------------------------------------------- flax


def read_flax(path: Path) -> Any:
    """Return the state in a checkpoint of `flax.training.checkpoints`: dicts with `Stored` in place of arrays.

    Arrays above 1 GiB, which flax cuts into pieces, are not put together: they stay dicts.
    """
    import msgpack

    if path.stat().st_size > LARGEST:
        raise Damaged("too large")
    found = msgpack.unpackb(path.read_bytes(), max_array_len=MOST, max_map_len=MOST, strict_map_key=True)
    return _leaves(found)


def _leaves(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {key: _leaves(value) for key, value in found.items()}
    code, data = getattr(found, "code", None), getattr(found, "data", None)
    return _flax_array(data) if code == FLAX_ARRAY and data is not None else found


def _flax_array(data: bytes) -> Stored:
    """Return an array as flax packs it: shape, name of the type, values in C order."""
    import msgpack

    shape, name, values = msgpack.unpackb(data, max_array_len=MOST, max_map_len=MOST, raw=True)
    if not isinstance(name, bytes) or not isinstance(values, bytes) or name == b"object":
        raise Damaged("an array without type or values")
    dtype = numpy_type(name.decode("ascii"))
    if count(shape, dtype.itemsize) * dtype.itemsize != len(values):
        raise Damaged(f"{len(values)} bytes for an array {dtype} of shape {tuple(shape)}")
    return Stored(tuple(shape), dtype.name, lambda: from_bytes(values, tuple(shape), dtype))
