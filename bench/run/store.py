"""The store: finished cells on disk, the only truth about what has been computed.

    cells/<key[:2]>/<key>/   a finished cell: result.json, its tensors, its log; appears by one rename
    work/<key>/              work in progress: checkpoints, log.txt, and the folder that will be published
    claims/<key>             who computes it now (bench.run.claims)
    failed/<key>.json        how the last try ended, where it failed
    corrupt/                 damaged results, moved here for inspection and computed again

`result.json` lists size and sha256 of every file beside it, and has a hash of its own, `digest`. That, sizes and
safetensors headers are checked whenever a result is read; contents are hashed when the cell becomes the input of
another.

Torch-free: plans of thousands of cells are compared with the store before anything is started.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.run import claims
from bench.run.atomic import publish, write_json

LOG = "log.txt"
_UNLISTED = {"result.json", LOG}
"""Not hashed: the one holds the hashes, the other is still being written when they are taken."""


class Damaged(Exception):
    """A stored result cannot be trusted; the text says why."""


@dataclass(frozen=True)
class Removed:
    """What `Store.gc` deleted: directory entries and their size."""

    entries: int
    bytes: int


class Store:
    """The results below one root folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    # -------------------------------------------------------------------------------- reading

    def cell(self, key: str) -> Path:
        """Return the folder of a finished cell (which need not exist)."""
        return self.root / "cells" / key[:2] / key

    def result(self, key: str) -> dict[str, Any] | None:
        """Return the result of a finished cell, None where there is none. Raises `Damaged`."""
        folder = self.cell(key)
        try:
            text = (folder / "result.json").read_bytes()
        except FileNotFoundError:
            if folder.is_dir():
                raise Damaged("result.json is missing") from None
            return None
        try:
            result = json.loads(text)
            files = {name: entry["size"] for name, entry in result["files"].items()}
            consistent = result["key"] == key and result["state"] == "ok"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged("result.json is not readable") from error
        if not consistent:
            raise Damaged("result.json belongs to another cell")
        if "digest" in result and result["digest"] != _digest(result):  # older results have none
            raise Damaged("the content of result.json changed")
        for name, size in files.items():
            _check_file(folder / name, size)
        return result

    def look_again(self, key: str) -> None:
        """Have the next `result` see what another machine published just now.

        A network file system remembers for up to a minute that a name was not there, as long as it takes the folder
        to be unchanged; touching the folder makes it ask.
        """
        with suppress(OSError):
            os.utime(self.cell(key).parent)

    def finished(self) -> set[str]:
        """Return the keys of all finished cells, damaged ones among them: one look instead of one for each cell."""
        return {path.name for path in self.root.glob("cells/*/*")}

    def tried(self) -> set[str]:
        """Return the keys of all cells that somebody computes now or that failed when they were last computed."""
        running = {path.name for path in self.root.glob("claims/*")}
        return running | {path.stem for path in self.root.glob("failed/*.json")}

    def verified(self, key: str) -> Path:
        """Return the folder of a finished cell after hashing its files. Raises `Damaged`, also where it is missing."""
        result = self.result(key)
        if result is None:
            raise Damaged("it is not in the store")
        for name, entry in result["files"].items():
            if sha256(self.cell(key) / name) != entry["sha256"]:
                raise Damaged(f"the content of {name} changed")
        return self.cell(key)

    def failure(self, key: str) -> dict[str, Any] | None:
        """Return how the last try of a cell failed: state, reason, traceback, finished; None where it did not."""
        try:
            found = json.loads((self.root / "failed" / f"{key}.json").read_bytes())
            return {"state": str(found["state"]), "reason": str(found["reason"]), **found}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    # -------------------------------------------------------------------------------- writing

    def work(self, key: str) -> Path:
        """Return the folder for checkpoints and the log of a running cell; it is made where missing."""
        folder = self.root / "work" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def draft(self, key: str) -> Path:
        """Return a new, empty folder that `publish` will turn into the result; earlier drafts are removed."""
        for left in self.work(key).glob("draft-*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = self.work(key) / f"draft-{uuid.uuid4().hex}"
        folder.mkdir()
        return folder

    def publish(self, draft: Path, result: Mapping[str, Any]) -> bool:
        """Turn a draft into the finished cell `result["key"]`; return False where it was there already."""
        key = result["key"]
        files = {path.name: path for path in sorted(draft.iterdir()) if path.is_file() and path.name not in _UNLISTED}
        listed = {name: {"size": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()}
        whole = {**result, "files": listed}
        whole["digest"] = _digest(json.loads(json.dumps(whole)))
        (draft / "result.json").write_text(json.dumps(whole, indent=1) + "\n")  # flushed below, with all the others
        log = self.work(key) / LOG
        if log.exists():
            os.replace(log, draft / LOG)
        published = publish(draft, self.cell(key))
        (self.root / "failed" / f"{key}.json").unlink(missing_ok=True)
        shutil.rmtree(self.root / "work" / key, ignore_errors=True)
        return published

    def fail(self, key: str, state: str, reason: str, traceback: str = "") -> None:
        """Record how a try ended. The work folder stays: a later try continues from its checkpoint."""
        folder = self.root / "failed"
        folder.mkdir(parents=True, exist_ok=True)
        entry = {"key": key, "state": state, "reason": reason, "traceback": traceback, "finished": now()}
        write_json(folder / f"{key}.json", entry)

    def discard(self, key: str) -> Path | None:
        """Move a damaged cell aside; return where to, or None where it was gone already."""
        aside = self.root / "corrupt" / f"{key}-{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(self.cell(key), aside)
        except FileNotFoundError:
            return None
        return aside

    def claim(self, key: str) -> claims.Claim | None:
        """Claim a cell for this process, None where somebody else computes it. A context manager."""
        return claims.acquire(self.root / "claims" / key)

    def claimed(self, key: str) -> bool:
        """Return whether somebody computes the cell now."""
        return claims.held(self.root / "claims" / key)

    # -------------------------------------------------------------------------------- tidying

    def tidy(self) -> None:
        """Remove what processes that were killed just after publishing left of their cells: claims and work."""
        for key in {path.name for kind in ("claims", "work") for path in self.root.glob(f"{kind}/*")}:
            if not self.cell(key).is_dir():
                continue
            with suppress(OSError):  # a store that is full or must not be written stays as it is
                claim = self.claim(key)
                if claim is not None:
                    with claim:
                        shutil.rmtree(self.root / "work" / key, ignore_errors=True)

    def gc(self, keep: Collection[str], *, dry_run: bool = False) -> Removed:
        """Delete cells, work, failures and claims of all keys not in `keep`, and everything set aside as damaged.

        A cell that somebody computes now is left alone. With `dry_run` nothing is deleted, only counted.
        """
        keep = set(keep)
        entries = size = 0
        for key, path in list(self._entries()):
            leftover = path.parent.name == "work" and self.cell(key).is_dir()  # killed just after publishing
            if (key in keep and not leftover) or self.claimed(key):
                continue
            entries, size = entries + 1, size + _size(path)
            if not dry_run:
                self._delete(path)
        return Removed(entries, size)

    def _entries(self) -> Iterator[tuple[str, Path]]:
        """Yield everything in the store with the key it belongs to (empty for what is damaged or half deleted)."""
        patterns = {"cells/*/*": "name", "work/*": "name", "failed/*": "stem", "claims/*": "name"}
        for pattern, attribute in patterns.items():
            for path in sorted(self.root.glob(pattern)):
                yield getattr(path, attribute), path
        for path in sorted(self.root.glob("corrupt/*")):
            yield "", path

    def _delete(self, path: Path) -> None:
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        doomed = self.root / "work" / f"deleted-{uuid.uuid4().hex}"  # a kill must not leave half a cell in its place
        doomed.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def now() -> str:
    """Return the present time, UTC, ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _check_file(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError:
        raise Damaged(f"{path.name} is missing") from None
    if found != size:
        raise Damaged(f"{path.name} has {found} bytes instead of {size}")
    if path.suffix == ".safetensors":
        _check_safetensors(path, size)


def _check_safetensors(path: Path, size: int) -> None:
    """Check that the header can be read and spans the file: 8 bytes of length, JSON, then the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length) if length < size else b"")
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise Damaged(f"{path.name} has a damaged header") from None
    if 8 + length + max(ends, default=0) != size:
        raise Damaged(f"{path.name} is cut off")


def _digest(result: Mapping[str, Any]) -> str:
    """Return the sha256 of a result as it is read from its file, but for the digest itself."""
    rest = {name: value for name, value in result.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
