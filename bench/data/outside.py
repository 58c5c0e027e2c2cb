"""Test images from outside the distribution (OOD): noise made here, and the test images of other datasets.

Noise follows the recipes of Outlier Exposure (Hendrycks, Mazeika and Dietterich, ICLR 2019). Images of other datasets
are brought to the shape of the images a network knows: grey becomes RGB and RGB grey, the picture is scaled until it
covers the frame (bilinear, antialiased) and its centre cut out, as in OpenOOD. Whatever a run does to its own images
(mean and deviation, whitening) is done to these by whoever uses them.

Corruptions of the data itself (jigsaw, invert, pixelate, speckle, ghost, means) are no test sets: methods train on
them as outliers. Images of classes that both datasets have are not taken out, unlike in the lists of OpenOOD.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from bench.api import Artifact, DatasetInfo, Need, Params, Task, param
from bench.data.content import info
from bench.data.lookup import names
from bench.errors import UserError
from bench.facts import NetSpec
from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Generator, Tensor

Shape = tuple[int, int, int]

CHUNK = 1000
"""Images scaled at once."""
LUMA = (0.299, 0.587, 0.114)
"""Share of red, green and blue in the grey of Pillow and torchvision (ITU-R 601)."""

NOISE = ("gaussian", "rademacher", "uniform", "blobs")
CORRUPTIONS = (
    "jigsaw",
    "invert",
    "pixelate",
    "gauss-speckle",
    "uniform-speckle",
    "rgb-ghost",
    "avg-mean",
    "geo-mean",
)
"""What pseudo-outlier exposure makes of training images; never offered here."""
KINDS = {
    "digits": "digits",
    "mnist": "digits",
    "svhn": "digits",
    "fashion_mnist": "clothes",
    "cifar10": "photos",
    "cifar100": "photos",
    "tiny_imagenet": "photos",
}
"""What the datasets show whose distance is known, by family."""
DISTANCES = {
    ("photos", "photos"): "near",
    ("clothes", "digits"): "near",
    ("clothes", "clothes"): "near",
    ("digits", "digits"): "shifted",
    ("clothes", "photos"): "far",
    ("digits", "photos"): "far",
}
"""Pairs of kinds, in alphabetical order. Near and far as in OpenOOD; shifted: the same classes in another look."""

# ---------------------------------------------------------------------------------------------- how far


def distance(inside: DatasetInfo, outside: str) -> str:
    """Return how far a set is from a dataset: synthetic, near, far, shifted, or other where nobody has said.

    Of OpenOOD's pairs: CIFAR-10, CIFAR-100 and Tiny ImageNet are near to each other and far from MNIST and SVHN;
    MNIST and Fashion-MNIST are near, though one is drawn and the other photographed. SVHN, MNIST and the 8x8 digits
    have the same ten classes, so that what differs is not the class.
    """
    if outside in NOISE or outside == "debug":
        return "synthetic"
    pair = sorted(KINDS.get(family, "") for family in (inside.family, info(outside).family))
    return DISTANCES.get((pair[0], pair[1]), "other")


def check(outside: str) -> None:
    """Raise `UserError` for a name that is no OOD set, `MissingData` for own data that is not there."""
    if outside in CORRUPTIONS:
        raise UserError(
            f"{outside!r} is no OOD test set: methods train on this corruption", hint=f"noise: {', '.join(NOISE)}"
        )
    if outside not in NOISE:
        info(outside)


def is_own(inside: DatasetInfo, outside: str) -> bool:
    """Return whether a set is the dataset itself, or a part of it."""
    return outside not in NOISE and info(outside).family == inside.family


def is_seen(outside: str, params: Mapping[str, Any]) -> bool:
    """Return whether a method with these parameters learned from other images of a set, or of the same family."""
    named = [value for value in params.values() if isinstance(value, str) and value in names()]
    return any(is_own(info(name), outside) for name in named)


# ---------------------------------------------------------------------------------------------- noise


def noise(name: str, count: int, shape: Shape, rng: Generator) -> Tensor:
    """Return `count` images float32 [count, c, h, w] in [-1, 1].

    gaussian: N(0, 0.5^2), clipped. rademacher: -1 or 1. uniform. blobs: 0 and 1 with probability 0.7 of 1, blurred
    over height, width and channels (sigma 1.5), what is below 0.75 set to 0, times 2 minus 1.
    """
    size, device = (count, *shape), rng.device
    if name == "gaussian":
        return (0.5 * torch.randn(size, generator=rng, device=device)).clamp(-1, 1)
    if name == "rademacher":
        return 2.0 * torch.randint(2, size, generator=rng, device=device) - 1
    if name == "uniform":
        return 2 * torch.rand(size, generator=rng, device=device) - 1
    if name == "blobs":
        return _blobs(torch.rand(size, generator=rng, device=device) < 0.7)
    raise UserError(f"unknown noise {name!r}", hint=f"known: {', '.join(NOISE)}")


def _blobs(drawn: Tensor) -> Tensor:
    from scipy.ndimage import gaussian_filter

    images = drawn.permute(0, 2, 3, 1).float().cpu().numpy()
    axes = (1, 2, 3) if images.shape[3] > 1 else (1, 2)
    images = gaussian_filter(images, 1.5, mode="nearest", truncate=4.0, axes=axes)
    images[images < 0.75] = 0
    return torch.from_numpy(2 * images - 1).permute(0, 3, 1, 2).contiguous().to(drawn.device)


# ---------------------------------------------------------------------------------------------- other datasets


def fit(images: Tensor, shape: Shape) -> Tensor:
    """Return images float [n, c, h, w] with the channels and the size of `shape`; those that fit as they are.

    Bilinear with antialiasing, as Pillow scales; what sticks out on two sides is cut off evenly.
    """
    channels, height, width = shape
    if images.shape[1] != channels:
        luma = torch.tensor(LUMA, dtype=images.dtype, device=images.device)[:, None, None]
        images = (images * luma).sum(1, keepdim=True) if channels == 1 else images.expand(-1, channels, -1, -1)
    if images.shape[2:] != (height, width):
        factor = max(height / images.shape[2], width / images.shape[3])
        size = [round(side * factor) for side in images.shape[2:]]
        if tuple(size) != tuple(images.shape[2:]):
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        images = images[:, :, top : top + height, left : left + width]
    return images


def converted(images: Tensor, shape: Shape) -> Tensor:
    """Return images uint8 [n, c, h, w] with the channels and the size of `shape`, see `fit`."""
    return torch.cat([(255 * fit(chunk / 255, shape)).round().to(torch.uint8) for chunk in images.split(CHUNK)])


class OutsideParams(Params):
    """What other images become."""

    shape: Shape = param((3, 32, 32), "channels, height and width of the images to become")
    count: int | None = param(None, "at most so many; None: all", unit="images", ge=1)
    half: Literal["test", "train"] = param("test", "which images: outliers to train on are training images")


class Outside(Artifact):
    """Bring the test (or training) images of the task's dataset to another shape.

    Tensors: `images` uint8 [n, c, h, w]. The first ones are taken: the canonical order is as good as a random one.
    """

    Params = OutsideParams
    title = "Images of one dataset in the shape of another"

    def build(self, task: Task) -> Mapping[str, Tensor]:
        """Convert."""
        from bench.data.prepared import load

        images = getattr(load(task.spec.dataset.name), self.params.half).images
        return {"images": converted(images[: self.params.count], self.params.shape)}


def need(outside: str, shape: Shape, count: int | None, half: Literal["test", "train"] = "test") -> Need:
    """Return the artifact that holds the images of a dataset in this shape, whatever the asking task is."""
    task = {"dataset": info(outside), "ipc": None, "network": NetSpec(), "preprocessing": "none", "augment": "none"}
    return Need("outside", {"shape": shape, "count": count, "half": half}, {**task, "seed": 0})
