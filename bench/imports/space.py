"""In which space the images of a foreign file are, and how they get into one of ddbench.

Images in a space that ddbench knows by name keep their values. Pixels are brought into one by the transform of the
dataset, as its real images are. Images that were standardised with other constants than ddbench's are moved to these,
so that they fit the test images; for a network that is an affine change of each channel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import bench.data
from bench.api import DatasetInfo, LabelKind
from bench.data import preprocess
from bench.errors import UserError, nearest
from bench.imports.formats import Constants, Foreign
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.data import Prepared

OUTLIER_WEIGHT = 0.5
"""Lambda of TrustDD's code, which does not store it."""
PIXELS = (-0.5, 1.5)
"""IDC learns pixels without bounds between its clamps; what reaches beyond this is in another space."""


@dataclass(frozen=True)
class Choice:
    """What the user says of a set.

    preprocessing: the space the images are in, or, for pixels, are to be brought into. zca: that of the format with
    whitening (True) or without. pixels: whether the values are pixels in [0, 1]. formation: images on a side of the
    grid in every image (IDC's factor), 1 for none. method: who made the set. rate: learned with the images.
    label_kind: what the labels are; `hard` takes the classes. constants: mean and deviation that the images were
    standardised with. outlier_weight: lambda of the outliers.
    """

    preprocessing: str | None = None
    zca: bool | None = None
    pixels: bool | None = None
    formation: int | None = None
    method: str | None = None
    rate: float | None = None
    label_kind: LabelKind | None = None
    constants: Constants | None = None
    outlier_weight: float = OUTLIER_WEIGHT

    def __post_init__(self) -> None:
        """Raise `UserError` for what cannot be meant."""
        if self.label_kind not in (None, *get_args(LabelKind)):
            hint = nearest(str(self.label_kind), get_args(LabelKind))
            raise UserError(f"unknown kind of labels {self.label_kind!r}", hint=hint)
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise UserError(f"the learned rate is {self.rate}, not a number above 0")


def check_shape(foreign: Foreign, info: DatasetInfo) -> None:
    """Raise `UserError` where the images are not of the size of the dataset's."""
    found, wanted = tuple(foreign.images.shape[1:]), tuple(info.shape)
    outside = None if foreign.outliers is None else tuple(foreign.outliers.shape[1:])
    if found != wanted or outside not in (None, wanted):
        raise UserError(
            f"holds images {_size(found)}, those of {info.name} are {_size(wanted)} (channels, height, width)",
            where=str(foreign.path),
            hint="another dataset?",
        )


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def space(foreign: Foreign, info: DatasetInfo, choice: Choice) -> tuple[str, bool]:
    """Return the preprocessing of the set, and whether the values in the file are pixels to be brought into it."""
    where, known = str(foreign.path), foreign.format
    pixels = foreign.pixels if choice.pixels is None else choice.pixels
    if not pixels and not foreign.images.is_floating_point():
        raise UserError("whole numbers from 0 to 255 are pixels", where=where)
    kind = choice.preprocessing
    if choice.zca is not None:
        asked = known.zca if choice.zca else "meanstd"
        if asked is None or kind not in (None, asked):
            kinds = ", ".join(name for name in preprocess.KINDS if name.startswith("zca"))
            raise UserError("which whitening is not known here", where=where, hint=f"say the preprocessing: {kinds}")
        kind = asked
    if kind is not None:
        preprocess.check_kind(kind)
    kind = kind or ("meanstd" if pixels else known.preprocessing(info))
    low, high = float(foreign.images.min()), float(foreign.images.max())
    if kind is None or (pixels is None and kind != "none" and 0 <= low <= high <= 1):
        ways = ["meanstd", known.zca] if known.zca else [name for name in preprocess.KINDS if name != "none"]
        raise UserError(
            f"{known.title}, values {low:.2f} to {high:.2f}: the file does not tell which space they are in",
            where=where,
            hint=f"say --preprocessing {' | '.join(ways)}, or --pixels for pixels in [0, 1]; where you do not know, "
            f"`ddbench inspect {foreign.path.name}` holds the values against the dataset",
        )
    if pixels and foreign.images.is_floating_point() and not PIXELS[0] <= low <= high <= PIXELS[1]:
        raise UserError(
            f"{known.title}: pixels lie in [0, 1], these values from {low:.2f} to {high:.2f}",
            where=where,
            hint="say --no-pixels and --preprocessing, the space that they are in",
        )
    return kind, bool(pixels)


def formation(foreign: Foreign, pixels: bool, choice: Choice) -> int | None:
    """Return how many images on a side every image holds; None where images are kept as they are."""
    if choice.formation is None and not (foreign.format.grid and pixels):
        return None
    if not pixels:
        raise UserError("grids of images are pixels", where=str(foreign.path), hint="leave the formation out")
    if choice.formation is None:
        named = re.search(r"factor(\d+)", str(foreign.path.absolute().parent))
        told = f"the folder's name says {named[1]}" if named else "IDC's factor: 2 for small images, 3 for ImageNet"
        raise UserError(
            "the file does not tell how many images each image holds",
            where=str(foreign.path),
            hint=f"say --formation N, 1 for none; {told}",
        )
    if not 1 <= choice.formation <= min(foreign.images.shape[2:]):
        raise UserError(f"a formation of {choice.formation} is impossible", where=str(foreign.path))
    return choice.formation


def own_constants(foreign: Foreign, data: bench.data.Dataset) -> Constants | None:
    """Return what the code that writes this format standardises the dataset with, where it is not as here."""
    known = foreign.format.constants
    if isinstance(known, Mapping):
        return known.get(data.info.family)
    if known is None:
        return None
    from bench.data.arrays import statistics

    return statistics(data.train.images.numpy())


def to_space(
    foreign: Foreign,
    found: Tensor,
    prepared: Prepared,
    pixels: bool,
    constants: Constants | None,
    factor: int | None,
    notes: list[str],
) -> Tensor:
    """Return float32 images in the space of the set; grids stay pixels, their decoder does it."""
    values = found if found.is_floating_point() else found.float() / 255
    if factor is not None:
        return values
    if pixels:
        return prepared.forward(values)
    info = prepared.info
    if prepared.preprocessing != "meanstd" or constants is None or constants == (info.mean, info.std):
        return values
    if {len(part) for part in constants} != {info.shape[0]} or min(constants[1]) <= 0:
        raise UserError(f"{constants} are not mean and deviation of {info.shape[0]} channels", hint="one number each")
    note = f"moved from mean and deviation {_short(constants)} to those of ddbench, {_short((info.mean, info.std))}"
    if note not in notes:
        notes.append(note)
    mean, std = (torch.tensor(part, dtype=torch.float64)[:, None, None] for part in constants)
    return prepared.forward(values.double() * std + mean).float()


def _short(constants: Constants) -> str:
    return " / ".join(", ".join(f"{value:.4f}" for value in part) for part in constants)
