"""A generator as a file: safetensors that `ddbench convert-generator` wrote, in the folder `generators` of the data.

The file is known by its content, not by its place: the hash of its tensors stands in its metadata, is read while
planning, becomes part of the key of all that is made with it, and is checked when the tensors are loaded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.data.lookup import data_root
from bench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

METADATA = "ddbench_generator"
HINT = "make it of a StyleGAN-XL checkpoint with `ddbench convert-generator`"


def place(name: str) -> Path:
    """Return where the generator called `name` lies: a path, or a file of the folder `generators` of the data."""
    return data_root() / "generators" / os.path.expanduser(name)


def known_content(path: Path) -> str | None:
    """Return the hash that a generator's file states, None where there is no such file.

    Raises `UserError` for a file that is something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if not path.is_file():
            return None
        with safe_open(path, framework="np") as file:
            content = (file.metadata() or {}).get(METADATA)
    except (OSError, SafetensorError) as error:
        raise UserError(f"not a generator of ddbench: {error}", where=str(path), hint=HINT) from error
    if content is None:
        raise UserError("a safetensors file, but not a generator of ddbench", where=str(path), hint=HINT)
    return content


def load(path: Path, content: str | None) -> dict[str, Tensor]:
    """Return the tensors. Raises `UserError` if the file is missing or does not hold this content."""
    from safetensors.torch import load_file

    if content is None or known_content(path) is None:
        raise UserError("there is no such generator", where=str(path), hint=HINT)
    tensors = load_file(path)
    if hash_of(tensors) != content:
        raise UserError("the generator changed since the plan was made, or is damaged", where=str(path), hint=HINT)
    return tensors


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a generator (see `bench.nets.prior.to_tensors`) in one atomic step."""
    from safetensors.torch import save as to_bytes

    from bench.run.atomic import atomic_write

    data = to_bytes(dict(tensors), metadata={METADATA: hash_of(tensors)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        stream.write(data)


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the hash of names, shapes, precisions and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
