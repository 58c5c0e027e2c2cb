"""The formats of the official repositories: what a file of each tells, and what it leaves open.

A format is recognised by content. It says whose code writes it, in which space its images live where that is always
the same, and with which constants that code standardises: those are not always the ones of this benchmark.

    res      {"data": [[images, labels], ...], ...}: one pair for each experiment; DC, DSA, DM
    trustdd  the same with "data_oe", the outliers of each experiment
    apm      {"data": [images, logits], ...}
    pair     two files, images_<step>.pt and labels_<step>.pt, some forks add lr_<step>.pt; MTT, TESLA, GLaD, RDD
    idc      [images, labels]: pixels, of which each may be a grid of smaller ones
    kip      .npz with `images` [n, h, w, c] and `labels` [n, K]
    frepo    .npz with `image` and `label`, or a checkpoint of flax with `x_proto` and `y_proto`; FRePo and ISA
    sre2l    folders new<class>/ of images, and stored logits of a teacher on views of them
    folder   folders of images, one for each class
    plain    images and labels in .npy, .npz, .pt or .safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.api import DatasetInfo, LabelKind

if TYPE_CHECKING:
    from torch import Tensor

Constants = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation of each channel."""
_CIFAR10: Constants = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CIFAR10_TRUST: Constants = (
    (125.3 / 255, 123.0 / 255, 113.9 / 255),
    (63.0 / 255, 62.1 / 255, 66.7 / 255),
)


@dataclass(frozen=True)
class Format:
    """What every file of one layout has in common.

    makers: methods of ddbench whose official code writes it. space: what the images are: `pixels` in [0, 1],
    `meanstd`, `frepo` (whitened unless grey), or None where the file does not tell. zca: the whitening of that code.
    labels: what float labels are, None where it must be found out. constants: those of that code by dataset family,
    where they are not this benchmark's; `measured`: mean and deviation of the training images themselves. grid:
    whether a stored image may be a grid of images.
    """

    name: str
    title: str
    makers: tuple[str, ...] = ()
    space: Literal["pixels", "meanstd", "frepo"] | None = None
    zca: str | None = None
    labels: LabelKind | None = None
    constants: Mapping[str, Constants] | Literal["measured"] | None = None
    grid: bool = False

    def preprocessing(self, info: DatasetInfo) -> str | None:
        """Return the space the images are in where the format tells, but for pixels."""
        if self.space == "frepo":
            return "zca-frepo" if info.shape[0] > 1 else "meanstd"
        return "meanstd" if self.space == "meanstd" else None


_MTT = {"cifar100": _CIFAR10}
_TRUST = {
    "cifar10": _CIFAR10_TRUST,
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}

FORMATS: dict[str, Format] = {
    known.name: known
    for known in (
        Format("res", "results of DC, DSA or DM", ("dc", "dsa", "dm"), "meanstd", "zca-kornia"),
        Format("trustdd", "results of TrustDD", ("trustdd_oe", "trustdd_poe"), "meanstd", constants=_TRUST),
        Format("apm", "results of APM", ("apm",), None, "zca-kornia", "logits", _MTT),
        Format(
            "pair", "images and labels of MTT, TESLA, GLaD or RDD", ("mtt", "tesla"), None, "zca-kornia", None, _MTT
        ),
        Format("idc", "data of IDC", ("idc",), "pixels", grid=True),
        Format("kip", "archive of KIP", ("kip",), None, "zca-kip", "centred", "measured"),
        Format("frepo", "images of FRePo or ISA", ("frepo", "isa"), "frepo", "zca-frepo", "centred"),
        Format("sre2l", "image folders of SRe2L", (), "pixels", labels="logits"),
        Format("folder", "image folders", (), "pixels"),
        Format("plain", "images and labels"),
    )
}


@dataclass(frozen=True)
class Foreign:
    """A distilled set as it was found, in the values and the order of its file.

    images: float32, or uint8 which are pixels, [n, c, h, w]. labels: int64 [n] or float32 [n, K]. hard: the classes of
    images in folders, which may have soft labels besides. rate: learned with the images. outliers: as the images.
    sets, which: how many sets there are and the number of this one, from 0. class_names: of the folders, in the order
    of the labels. notes: what the user should know.
    """

    format: Format
    files: tuple[Path, ...]
    images: Tensor
    labels: Tensor
    hard: Tensor | None = None
    rate: float | None = None
    outliers: Tensor | None = None
    sets: int = 1
    which: int = 0
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file that was named."""
        return self.files[0]

    @property
    def pixels(self) -> bool | None:
        """Whether the images are pixels; None where the file does not tell."""
        if not self.images.is_floating_point() or self.format.space == "pixels":
            return True
        return None if self.format.space is None else False
