"""Files of `torch.save`, old and new, read without running anything that they ask for.

torch's own safe loader (`weights_only=True`) refuses what the official repositories write: DC, DSA, DM, APM and TrustDD
store accuracies as NumPy numbers beside the images. So the pickle is read here, by an unpickler that knows tensors,
plain containers and those numbers (of which it keeps nothing) and that refuses every other name with that name. It
calls no function of a file's choice, changes no object the way a file asks for, hashes nothing but text and numbers,
and takes no more memory than the file holds.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.imports.stored import Damaged, Stored, Unsafe, archive, count
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file of torch before 1.6 begins: a pickle of the magic number."""
LEGACY_VERSION = 1001
LARGEST_PICKLE = 2**22
"""Most bytes of pickles: they hold names, shapes and accuracies, not the values of tensors."""
EXPANDED = 2**20
"""A tensor may have more values than are stored (a broadcast one) up to this many."""
TYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


def read(path: Path) -> Any:
    """Return what was saved: plain containers with `Stored` in place of tensors."""
    return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)


# ---------------------------------------------------------------------------------------------- two layouts


def _read_zip(path: Path) -> Any:
    with archive(path) as (opened, members):
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1 or any("/code/" in name for name in members):
            raise Damaged("an archive without one data.pkl, or a compiled program")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in members and opened.read(f"{root}byteorder") != b"little":
            raise Damaged("written on a big-endian machine")
        if members[pickles[0]].file_size > LARGEST_PICKLE:
            raise Damaged("too large a pickle")
        data = opened.read(pickles[0])

    def load(key: str) -> bytes:
        with archive(path) as (opened, members):
            if f"{root}data/{key}" not in members:
                raise Damaged("the values of a tensor are missing")
            return opened.read(f"{root}data/{key}")

    return Plain(io.BytesIO(data), load).load()


def _read_legacy(path: Path) -> Any:
    """Read magic number, version, machine, the object, the names of the storages; then come their values."""
    places: dict[str, tuple[int, int]] = {}

    def load(key: str) -> bytes:
        if key not in places:
            raise Damaged("the values of a tensor are missing")
        with path.open("rb") as file:
            file.seek(places[key][0])
            return file.read(places[key][1])

    size = path.stat().st_size
    with path.open("rb") as file:
        head = io.BytesIO(file.read(LARGEST_PICKLE))
        if head.read(len(LEGACY)) != LEGACY:
            raise Damaged("not written by torch.save")
        if Plain(head, load).load() != LEGACY_VERSION:
            raise Damaged("an unknown version of the layout")
        machine = Plain(head, load).load()
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise Damaged("written on a big-endian machine")
        plain = Plain(head, load)
        found, keys = plain.load(), Plain(head, load).load()
        if not isinstance(keys, list) or not all(type(key) is str and key in plain.storages for key in keys):
            raise Damaged("the list of what is stored is wrong")
        start = head.tell()
        for key in keys:
            file.seek(start)
            (numel,) = struct.unpack("<q", file.read(8))
            length = numel * plain.storages[key].itemsize
            if numel < 0 or start + 8 + length > size:
                raise Damaged("a tensor reaches beyond the end of the file")
            places[key] = (start + 8, length)
            start += 8 + length
    return found


# ---------------------------------------------------------------------------------------------- the pickle


class Storage:
    """The values that one or more tensors are views of."""

    def __init__(self, key: str, dtype: str, numel: int, load: Callable[[str], bytes]) -> None:
        self.key, self.dtype, self.numel, self.load = key, dtype, numel, load
        self.itemsize: int = getattr(torch, dtype).itemsize

    def values(self) -> Tensor:
        """Return all of them as one row."""
        data = self.load(self.key)
        if len(data) != self.numel * self.itemsize:
            raise Damaged(f"{len(data)} bytes stored for {self.numel} values of type {self.dtype}")
        kind = getattr(torch, self.dtype)
        return torch.frombuffer(bytearray(data), dtype=kind) if data else torch.empty(0, dtype=kind)


class Kind:
    """The type of a storage."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Stored:
    """Return a view of a storage, checked against the values it has."""
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        raise Damaged("a tensor without values")
    length = count(size, storage.itemsize)
    count(stride, 0)
    if len(stride) != len(size):
        raise Damaged("a tensor whose strides do not fit its shape")
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True)) if length else -1
    if last >= storage.numel or length > max(storage.numel, EXPANDED):
        raise Damaged(f"a tensor of shape {tuple(size)} for {storage.numel} stored values")

    def view() -> Tensor:
        values = storage.values().as_strided(tuple(size), tuple(stride), offset if length else 0)
        return values.clone(memory_format=torch.contiguous_format)

    return Stored(tuple(size), storage.dtype, view)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _empty(*_: Any) -> dict[str, Any]:
    """Stand for the hooks of a tensor, an empty OrderedDict."""
    return {}


def _nothing(*_: Any) -> None:
    """Stand for a NumPy number, or the type of one: nothing of it is kept."""


CALLED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): _empty,
    ("_codecs", "encode"): _nothing,
    ("numpy", "dtype"): _nothing,
    **{(f"numpy.{core}.multiarray", "scalar"): _nothing for core in ("core", "_core")},
}
NAMED: dict[tuple[str, str], Any] = {**CALLED, **{("torch", name): Kind(dtype) for name, dtype in TYPES.items()}}

# What torch.save does not write and what could make objects, take memory at a file's word, or hash what it built.
REFUSED = (
    pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID,
    pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS,
    pickle.FROZENSET,
)  # fmt: skip


class Plain(pickle._Unpickler):
    """An unpickler that makes plain containers and `Stored`.

    It is the one written in Python, whose memo is a dict: the one in C takes memory for as many entries as a file says.
    load: gives the bytes of a storage by its key. storages: those that were named.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = {
        op: do for op, do in pickle._Unpickler.dispatch.items() if op not in [code[0] for code in REFUSED]
    }

    def __init__(self, file: io.BytesIO, load: Callable[[str], bytes]) -> None:
        super().__init__(file, encoding="latin1")
        self._load, self.storages = load, dict[str, Storage]()

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name of the file. Raises `Unsafe` for one that is not known."""
        if (module, name) not in NAMED:
            raise Unsafe(repr(f"{module}.{name}"[:80]))
        return NAMED[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        """Return a storage: (word, type, key, device, number of values), in old files also a view, which is None."""
        word, kind, key, _, numel, *view = pid
        if word != "storage" or not isinstance(kind, Kind) or type(key) is not str or any(view):
            raise Damaged("a tensor stored in an unknown way")
        count((numel,), getattr(torch, kind.dtype).itemsize)
        self.storages[key] = Storage(key, kind.dtype, numel, self._load)
        return self.storages[key]

    def load_reduce(self) -> None:
        """Call one of the functions of `CALLED`."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not any(function is known for known in CALLED.values()):
            raise Damaged("a call of what is no function")
        self.stack.append(function(*arguments))

    def load_build(self) -> None:
        """Forget the state that a file gives an object: none of those made here has any."""
        self.stack.pop()

    def load_setitem(self) -> None:
        """Add one entry to a dict."""
        self._add([self.stack.pop(-2), self.stack.pop()])

    def load_setitems(self) -> None:
        """Add entries to a dict."""
        self._add(self.pop_mark())  # type: ignore[attr-defined]

    def _add(self, items: list[Any]) -> None:
        entries = dict[Any, Any]()
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise Damaged("a dict whose keys are neither text nor numbers")
            entries[key] = value
        if type(self.stack[-1]) is not dict:
            raise Damaged("entries for what is no dict")
        self.stack[-1].update(entries)

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }
