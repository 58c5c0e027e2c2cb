"""What a dataset holds: its facts and its content hash, found out by reading it once.

The first reading of a dataset checks its content against the table, brings it into canonical order, and keeps the
decoded arrays and the facts in the cache; after that a fingerprint costs one look at size and time of the files.
No torch here: plans need facts and fingerprints.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.api import DatasetInfo
from bench.data import cache, views
from bench.data.lookup import OWN, Found, call, data_root, entry_of, find, remedy, required
from bench.errors import UserError

if TYPE_CHECKING:
    from bench.data.arrays import Arrays


@dataclass(frozen=True)
class Facts:
    """What was found out about a dataset on this machine: content hash, true sizes, class names."""

    content: str
    info: DatasetInfo
    class_names: tuple[str, ...]


def info(name: str) -> DatasetInfo:
    """Return what is known of a dataset, or of the user's own data (`npz:PATH`, `folder:PATH[@SIZE]`).

    Own data is read once for it. Raises `UserError` for an unknown name, `MissingData` where own data is not there.
    """
    if view := views.parse(name):
        return view.info(name, info(view.base))
    return facts(name)[0].info if name.startswith(OWN) else entry_of(name).info


def fingerprint(name: str) -> str:
    """Return the content hash that goes into cell keys.

    That is the declared one, which `load` holds the data against; where none is declared the data is read once.
    Raises `MissingData` where nothing is declared and the data is not there.
    """
    if view := views.parse(name):
        return view.fingerprint(fingerprint(view.base))
    if not name.startswith(OWN) and (declared := entry_of(name).info.content):
        return declared
    return facts(name)[0].content


def facts(name: str) -> tuple[Facts, Arrays | None]:
    """Return the facts on a dataset and, if it had to be read for them, its arrays in canonical order.

    Raises `MissingData`, or `UserError` where the data is damaged or is not what its name says.
    """
    found = required(name)
    stored = _stored(name, found)
    return (stored, None) if stored else read(name)


def _signature(name: str, found: Found) -> str:
    declared = "" if name.startswith(OWN) else entry_of(name).info.model_dump_json()
    return cache.signature(found.files, f"1 {sorted(DatasetInfo.model_fields)} {declared}")


def _stored(name: str, found: Found) -> Facts | None:
    """Return the facts of an earlier reading if files and table are still the same."""
    stored = cache.read_facts(cache.facts_file(name, found.path), _signature(name, found))
    if stored is None:
        return None
    return Facts(stored["content"], DatasetInfo.model_validate(stored["info"]), tuple(stored["class_names"]))


def read(name: str) -> tuple[Facts, Arrays]:
    """Read, check and order a dataset; remember what was found out and the decoded arrays. Raises as `facts`."""
    from bench.data.arrays import canonical, check

    found = required(name)
    current = _signature(name, found)
    arrays = found.read()
    check(arrays, str(found.path))
    content, arrays = canonical(arrays)
    seen = _own(name, found, arrays, content) if name.startswith(OWN) else _known(name, found, arrays, content)
    _write_decoded(content, arrays)
    known = {"content": content, "info": seen.model_dump(mode="json"), "class_names": arrays.class_names}
    cache.write_facts(cache.facts_file(name, found.path), current, known)
    return Facts(content, seen, arrays.class_names), arrays


def _known(name: str, found: Found, arrays: Arrays, content: str) -> DatasetInfo:
    """Return the declared facts with the sizes and content found; raise `UserError` where they contradict."""
    entry = entry_of(name)
    declared = entry.info
    sizes = len(arrays.train.labels), len(arrays.test.labels)
    limits = declared.train_size, declared.test_size
    shape, classes = tuple(arrays.train.images.shape[1:]), len(arrays.class_names)
    if (
        (shape, classes) != (declared.shape, declared.classes)
        or (sizes != limits and (entry.exact or sizes[0] > limits[0] or sizes[1] > limits[1]))
        or declared.content not in (None, content)
    ):
        raise UserError(
            f"this is not the published {name}: found {_sketch(sizes, shape, classes, content)}, "
            f"expected {_sketch(limits, declared.shape, declared.classes, declared.content)}",
            where=str(found.path),
            hint="get it again, or use it as your own data with npz:PATH or folder:PATH",
        )
    return declared.model_copy(update={"content": content, "train_size": sizes[0], "test_size": sizes[1]})


def _sketch(sizes: tuple[int, int], shape: tuple[int, ...], classes: int, content: str | None) -> str:
    size = "x".join(str(length) for length in shape)
    return f"{sizes[0]} + {sizes[1]} images {size} of {classes} classes, content {(content or 'any')[:12]}"


def _own(name: str, found: Found, arrays: Arrays, content: str) -> DatasetInfo:
    from bench.data.arrays import statistics

    channels, height, width = arrays.train.images.shape[1:]
    mean, std = statistics(arrays.train.images)
    return DatasetInfo(
        name=name,
        title=f"the user's own data ({found.path.name})",
        source=str(found.path.resolve()),
        licence="not known to ddbench",
        classes=len(arrays.class_names),
        shape=(channels, height, width),
        train_size=len(arrays.train.labels),
        test_size=len(arrays.test.labels),
        mean=mean,
        std=std,
        constants_source="pixel mean and deviation of the training images",
        flip=channels == 3,  # the rule of DSA: colour images are mirrored, grey ones are not
        content=content,
        family=name,
        complete=True,
    )


def decoded_file(content: str) -> Path:
    """Return where the decoded arrays of this content are kept."""
    return cache.root() / "decoded" / f"{content}.safetensors"


def _write_decoded(content: str, arrays: Arrays) -> None:
    """Keep decoded arrays, so that later processes map them into memory instead of decoding again."""
    from safetensors.numpy import save_file

    tensors: dict[str, Any] = {}
    for half, split in (("train", arrays.train), ("test", arrays.test)):
        tensors |= {f"{half}.images": split.images, f"{half}.labels": split.labels}
        if split.groups is not None:
            tensors[f"{half}.groups"] = split.groups
    cache.publish(decoded_file(content), lambda path: save_file(tensors, path))


# ---------------------------------------------------------------------------------------------- for the command line


def describe(name: str) -> dict[str, Any]:
    """Return the declared facts, where the data was found, its state, and the remedy where it is missing."""
    known = info(name).model_dump()
    if view := views.parse(name):
        return {**describe(view.base), **known}
    if not name.startswith(OWN) and (entry := entry_of(name)).class_names:
        known["class_names"] = list(entry.class_names)
    found = find(name)
    if found is None:
        return {**known, "found": None, "state": "not on this machine", "remedy": remedy(name)}
    stored = _stored(name, found)
    state = f"content checked: {stored.content}" if stored else "there; its content is checked at first use"
    return {**known, "found": str(found.path), "state": state}


def get(name: str) -> str:
    """Download a dataset, check it, and return one line on where it is and what it holds.

    Raises `UserError` where it cannot be downloaded, with the way to get it by hand.
    """
    if view := views.parse(name):
        return get(view.base)
    if find(name) is None:
        download = "" if name.startswith(OWN) else entry_of(name).download
        if not download:
            required(name)
        root = data_root()
        try:
            root.mkdir(parents=True, exist_ok=True)
            call(download, root)
        except (OSError, RuntimeError, EOFError) as error:
            raise UserError(f"{name!r} cannot be downloaded: {error}", where=str(root), hint=remedy(name)) from error
    found, (known, _) = required(name), facts(name)
    return f"{found.path}, {known.info.train_size} + {known.info.test_size} images, content {known.content}"
