"""Augmentation: DSA, IDC, the evaluation augmentations of DC and FRePo, crop and flip, none; CutMix beside them.

`resolve` makes a name explicit for a dataset (no torch), `get` returns the `Augment` behind an explicit name, which
draws its randomness from generators that are handed in and applies it without a loop over images.
"""

from bench.augment.strategy import resolve
from bench.augment.transform import Augment, Draw


def get(strategy: str) -> Augment:
    """Return the augmentation of an explicit strategy. Raises `UserError` if it is unknown or not explicit."""
    return Augment(strategy)


__all__ = ["Augment", "Draw", "get", "resolve"]
