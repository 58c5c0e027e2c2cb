"""The rules of datasets: what is declared is what is read, twice the same, in the form that everybody expects."""

from __future__ import annotations

import numpy as np

from bench.data import views
from bench.testing.planning import check_planning
from bench.testing.rules import elsewhere, ensure

SHARED = 0.01
"""Largest part of the test images that may also be training images: published sets have a few."""
OFF = 0.15
"""Largest distance of declared constants from those of the training images, in pixels from 0 to 1."""


def check_dataset(dataset: str) -> None:
    """Check a dataset by its name, `module:attribute`, `npz:PATH` or `folder:PATH`.

    Raises `AssertionError` for the first broken rule, `MissingData` where the data is not on this machine. Checked:
    facts without torch; reading twice gives the same content, which is the declared one and what `load` hands out;
    shapes, types and labels; names of classes; constants; training and test images apart; global generators untouched.
    """
    import bench.data
    from bench.data import arrays, content
    from bench.errors import UserError

    check_planning(("dataset", dataset, None))
    who = f"dataset {dataset!r}"
    found = content.required(views.base(dataset))
    read = []
    for seed in (1, 2):
        with elsewhere(seed, who):
            raw = found.read()
            try:
                arrays.check(raw, who)
            except UserError as error:
                raise AssertionError(f"{error}\n  rule: readers return bench.data.arrays.Arrays") from error
            read.append(arrays.canonical(raw))
    ensure(read[0][0] == read[1][0], f"{who} is not the same when it is read again", "reading is deterministic")
    try:
        loaded = bench.data.load(dataset)
    except UserError as error:
        raise AssertionError(f"{error}\n  rule: the facts of an Entry are those of its data") from error
    if views.parse(dataset) is None:
        ensure(
            loaded.content == read[0][0],
            f"{who} is loaded with other content ({loaded.content[:12]}) than it is read with ({read[0][0][:12]})",
            "the files that `layouts` or `home` name change when the data does",
        )
        _check_apart(read[0][1], who)
    _check_facts(dataset, loaded, who)


def _check_apart(read: object, who: str) -> None:
    """Ensure that test images are not training images."""
    train, test = (
        {image.tobytes() for image in np.ascontiguousarray(half.images)}
        for half in (read.train, read.test)  # type: ignore[attr-defined]
    )
    share = len(train & test) / len(test)
    ensure(
        share <= SHARED, f"{share:.0%} of the test images of {who} are training images", "they have no image in common"
    )


def _check_facts(dataset: str, loaded: object, who: str) -> None:
    """Ensure that names, sizes and constants are those of the images."""
    import bench.data

    info, names = bench.data.prepare(loaded).info, loaded.class_names  # type: ignore[arg-type, attr-defined]
    ensure(info.name == dataset, f"{who} calls itself {info.name!r}", "info.name is the name it is found by")
    ensure(len(set(names)) == info.classes, f"{who} has the class names {names}", "every class has a name of its own")
    channels = info.shape[0]
    for constant in ("mean", "std"):
        values = getattr(info, constant)
        ensure(len(values) == channels, f"{who} has {len(values)} values of {constant}", "one for each channel")
    pixels = bench.data.prepare(loaded, "none").train.pixels()  # type: ignore[arg-type]
    for constant, actual in (("mean", pixels.mean((0, 2, 3))), ("std", pixels.std((0, 2, 3)))):
        for declared, value in zip(getattr(info, constant), actual.tolist(), strict=True):
            ensure(
                abs(declared - value) <= OFF and (constant == "mean" or declared > 0),
                f"{who} declares the {constant} {declared:.4f} of pixels, that of its training images is {value:.4f}",
                "constants are those of pixels from 0 to 1",
            )
