"""Names of augmentation strategies and what they mean, without torch.

A strategy is `none`, `crop_flip`, or `<family>:<operations joined by _>`:

    dsa     one operation of the list for the whole batch, each time anew (Zhao and Bilen, ICML 2021; mode S)
    dsa-m   all operations of the list, in the order written (mode M of the same code)
    dc      one operation per image, in evaluation only (Zhao et al., ICLR 2021)
    frepo   one operation for the whole batch, in evaluation only (Zhou et al., NeurIPS 2022)
    idc     DSA's operations: flip, color, one of crop, scale and rotate for the whole batch, cutout, as far as they
            are listed (Kim et al., ICML 2022)

A bare family name means the paper's list for the dataset; digits and letters are never mirrored. IDC evaluates with
`idc` and distils with `idc-match`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.api import DatasetInfo
from bench.errors import UserError, nearest

Mode = Literal["one", "all", "each", "stages"]
"""one: an operation per group of images; all: every operation in turn; each: an operation per image; stages: IDC."""


@dataclass(frozen=True)
class Strategy:
    """An explicit strategy: family, operations in order, and how they are chosen."""

    family: str
    operations: tuple[str, ...]
    mode: Mode

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """What is done in turn: at each stage one of its operations. At most one stage has more than one."""
        if self.mode == "all":
            return tuple((name,) for name in self.operations)
        plan = _IDC_STAGES if self.mode == "stages" else (self.operations,)
        listed = (tuple(name for name in self.operations if name in stage) for stage in plan)
        return tuple(stage for stage in listed if stage)


VOCABULARY: dict[str, tuple[str, ...]] = {
    "dsa": ("color", "crop", "cutout", "flip", "scale", "rotate"),
    "dc": ("crop", "scale", "rotate", "noise"),
    "frepo": ("flip", "color", "crop", "rotate", "translate", "cutout"),
    "idc": ("flip", "color", "crop", "scale", "rotate", "cutout"),
}
"""Operations of each family, in the order of its paper."""

_MODES: dict[str, Mode] = {"dsa": "one", "dsa-m": "all", "dc": "each", "frepo": "one", "idc": "stages"}
_IDC_STAGES = (("flip",), ("color",), ("crop", "scale", "rotate"), ("cutout",))
_NONE = Strategy("none", (), "all")
_CROP_FLIP = Strategy("dsa", ("crop", "flip"), "all")


def resolve(text: str, info: DatasetInfo) -> str:
    """Return the explicit strategy for a dataset: `dsa` becomes `dsa:color_crop_cutout_flip_scale_rotate`.

    A bare `dc` is the paper's choice, which augments MNIST only. Raises `UserError` for unknown names.
    """
    if text == "dc":
        return "dc:crop_scale_rotate" if info.family == "mnist" else "none"
    if text == "idc":
        return f"idc:{'flip_' if info.flip else ''}color_crop_scale_rotate"
    if text == "idc-match":
        return "idc:color_crop" if info.family == "mnist" else "idc:color_crop_cutout"
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
    operations = "dsa" if family == "idc" else family.partition("-")[0]
    return Strategy(operations, names, _MODES[family])
