"""Durable writes: a file or a directory appears under its name complete, or not at all.

Everything is written beside its target (same file system), flushed to the disk with fsync, and then renamed; POSIX
renames are atomic. After a crash at any moment the name shows the old content or the new one, and an abandoned
temporary file starts with `.tmp-`, which no reader takes for anything. The price is a few fsync calls for each file,
milliseconds on a disk: right for results and checkpoints, wrong for logs.

Torch-free.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

TEMPORARY = ".tmp-"


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` when the block ends well; an exception leaves `path` as it was.

        with atomic_write(folder / "checkpoint.pt") as file:
            torch.save(state, file)

    mode: `wb`, or `w` for UTF-8 text. Raises `OSError` where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open(mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document durably."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def publish(folder: Path, target: Path) -> bool:
    """Make the finished `folder` appear as `target` by one rename; return False where `target` already exists.

    Every file in it reaches the disk first: a name that survives a power cut has its content.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_directory(folder)
    if not target.parent.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        sync_directory(target.parent.parent)
    try:
        os.rename(folder, target)  # fails on a directory with content: a result is never overwritten
    except OSError:
        if target.is_dir():
            return False
        raise
    sync_directory(target.parent)
    return True


def sync_directory(folder: Path) -> None:
    """Flush the names in a directory to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
