"""What was found out about data on this machine, kept so that it is found out once.

Facts (content hash, sizes, constants) are small JSON files, valid as long as size and time of the source files stay
the same. Decoded datasets and whitening matrices are safetensors files named by the content hash, so they are never
out of date. Everything lies in one folder of the user (`DDBENCH_CACHE`, by default ~/.cache/ddbench), never beside
the data, which may be shared or read-only. The folder can be deleted at any time; where it cannot be written,
ddbench works without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def root() -> Path:
    """Return the cache folder; it may not exist yet."""
    return Path(os.environ.get("DDBENCH_CACHE") or "~/.cache/ddbench").expanduser()


def signature(paths: Iterable[Path], declared: str = "") -> str:
    """Return a hash of name, size and time of all files at and under `paths`, and of what is declared of them."""
    digest = hashlib.sha256(declared.encode())
    for file, status in _files(paths):
        digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(paths: Iterable[Path]) -> Iterator[tuple[str, os.stat_result]]:
    for path in paths:
        if path.is_file():
            yield str(path), path.stat()
            continue
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.is_dir():
                yield from _files([Path(entry.path)])
            else:
                yield entry.path, entry.stat()


def facts_file(name: str, path: Path) -> Path:
    """Return where the facts on dataset `name`, read from `path`, are kept."""
    key = hashlib.sha256(f"{name}\0{path.resolve()}".encode()).hexdigest()[:24]
    return root() / "facts" / f"{key}.json"


def read_facts(file: Path, current: str) -> dict[str, Any] | None:
    """Return the facts in `file`, or None where there are none or the source changed since."""
    try:
        stored = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return stored["facts"] if isinstance(stored, dict) and stored.get("signature") == current else None


def write_facts(file: Path, current: str, facts: dict[str, Any]) -> None:
    """Keep `facts` for the source with this signature."""
    text = json.dumps({"signature": current, "facts": facts}, indent=1)
    publish(file, lambda path: Path(path).write_text(text))


def publish(file: Path, write: Callable[[str], Any]) -> bool:
    """Let `write` fill a temporary file and rename it to `file`; return False where the cache cannot be written.

    Readers see the old file or the whole new one. Two processes may publish the same file: the last one wins, and
    both wrote the same.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".part-")
        os.close(handle)
    except OSError:
        return False
    try:
        write(temporary)
        os.replace(temporary, file)
    except (OSError, SafetensorError):  # a full disk costs the next process time, nothing else
        return False
    finally:
        with suppress(OSError):
            os.unlink(temporary)
    return True
