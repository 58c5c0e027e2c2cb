"""Names of augmentation strategies and what they mean, without torch.

A strategy is `none`, `crop_flip`, or `<family>:<operations joined by _>`:

    dsa     one operation of the list for the whole batch, each time anew (Zhao and Bilen, ICML 2021; mode S)
    dsa-m   all operations of the list, in the order written (mode M of the same code)
    dc      one operation per image, in evaluation only (Zhao et al., ICLR 2021)
    frepo   one operation for the whole batch, in evaluation only (Zhou et al., NeurIPS 2022)

A bare family name means the paper's list for the dataset; digits and letters are never mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.api import DatasetInfo
from bench.errors import UserError, nearest

Mode = Literal["one", "all", "each"]
"""one: an operation per group of images; all: every operation in turn; each: an operation per image."""


@dataclass(frozen=True)
class Strategy:
    """An explicit strategy: family, operations in order, and how they are chosen."""

    family: str
    operations: tuple[str, ...]
    mode: Mode


VOCABULARY: dict[str, tuple[str, ...]] = {
    "dsa": ("color", "crop", "cutout", "flip", "scale", "rotate"),
    "dc": ("crop", "scale", "rotate", "noise"),
    "frepo": ("flip", "color", "crop", "rotate", "translate", "cutout"),
}
"""Operations of each family, in the order of its paper."""

_MODES: dict[str, Mode] = {"dsa": "one", "dsa-m": "all", "dc": "each", "frepo": "one"}
_NONE = Strategy("none", (), "all")
_CROP_FLIP = Strategy("dsa", ("crop", "flip"), "all")


def resolve(text: str, info: DatasetInfo) -> str:
    """Return the explicit strategy for a dataset: `dsa` becomes `dsa:color_crop_cutout_flip_scale_rotate`.

    A bare `dc` is the paper's choice, which augments MNIST only. Raises `UserError` for unknown names.
    """
    if text == "dc":
        return "dc:crop_scale_rotate" if info.family == "mnist" else "none"
    if text in _MODES:
        names = VOCABULARY[text.partition("-")[0]]
        return f"{text}:{'_'.join(name for name in names if info.flip or name != 'flip')}"
    parse(text)
    return "none" if text in ("", "None") else text


def parse(text: str) -> Strategy:
    """Return the meaning of an explicit strategy. Raises `UserError` for unknown families or operations."""
    if text in ("none", "None", ""):
        return _NONE
    if text == "crop_flip":
        return _CROP_FLIP
    family, colon, listed = text.partition(":")
    if family not in _MODES:
        raise UserError(f"unknown augmentation {text!r}", hint=nearest(family, ["none", "crop_flip", *_MODES]))
    vocabulary = VOCABULARY[family.partition("-")[0]]
    if not colon:
        example = f"{family}:{'_'.join(vocabulary)}"
        raise UserError(f"augmentation {text!r} depends on the dataset", hint=f"write it out, for example {example}")
    names = tuple(listed.split("_"))
    for name in names:
        if name not in vocabulary:
            raise UserError(f"unknown operation {name!r} in augmentation {text!r}", hint=nearest(name, vocabulary))
    if len(set(names)) < len(names):
        raise UserError(f"augmentation {text!r} names an operation twice", hint="keep one of them")
    return Strategy(family.partition("-")[0], names, _MODES[family])
