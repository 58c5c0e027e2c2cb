"""The spaces images live in: standardised pixels, or whitened in one of the field's three ways.

Distilled images are numbers of such a space, and the ways of whitening are not interchangeable, so every set names
its preprocessing:

    none        pixels in [0, 1]
    meanstd     (x - mean) / std per channel, with the constants the dataset declares
    zca-kornia  (x - mu) T on pixels in [0, 1], covariance by n - 1, ridge 0.1 (Cazenavette et al., MTT, CVPR 2022)
    zca-kip     standardised channels, each image minus its own mean and divided by its own norm, x T with the raw
                second moment, ridge 0.1 tr/d (Nguyen et al., KIP, NeurIPS 2021)
    zca-frepo   standardised channels, minus the mean image, x T, covariance by n, ridge 0.1 tr/d (Zhou et al.,
                FRePo, NeurIPS 2022)

T = U (S + ridge)^(-1/2) U' of the covariance U S U'. All statistics are of the training images, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.api import DatasetInfo
from bench.data import cache
from bench.errors import UserError, nearest
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("meanstd", "none", "zca-kornia", "zca-kip", "zca-frepo")
RIDGE = 0.1
LARGEST = 3 * 64 * 64
"""Most values per image a whitening matrix is made for: at 64x64 RGB it takes 1.2 GB in float64, at 128x128 19 GB."""
CHUNK = 2048
PREFIX = "preprocessing/"


@dataclass(frozen=True)
class Transform:
    """A fitted preprocessing of images [n, c, h, w] = pixels of `shape`, d = c h w values each.

    mean, std: [c], applied first. unit: every image is then centred and scaled to norm 1; `typical_mean` and
    `typical_norm` are the averages over the training images that this loses. centre: [d]. matrix: T, [d, d].
    """

    kind: str
    shape: tuple[int, int, int]
    mean: Tensor
    std: Tensor
    centre: Tensor | None = None
    matrix: Tensor | None = None
    unit: bool = False
    typical_mean: float = 0.0
    typical_norm: float = 1.0

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the images of the space for pixels in [0, 1]; differentiable."""
        images = (pixels - _column(self.mean)) / _column(self.std)
        if self.matrix is None:
            return images
        rows = images.flatten(1)
        if self.unit:
            rows = _unit(rows)
        if self.centre is not None:
            rows = rows - self.centre
        return (rows @ self.matrix).view_as(images)

    def inverse(self, images: Tensor, means: Tensor | None = None, norms: Tensor | None = None) -> Tensor:
        """Return the pixels of images of the space, not clamped; differentiable.

        Exact but for `zca-kip`, where the mean and norm of each image are lost. Give them (`image_statistics`,
        float32 [n]) for the exact inverse; without them, as for synthetic images, the averages over the training
        images take their place, which gives pictures of the usual brightness and contrast.
        """
        if self.matrix is not None:
            rows = images.flatten(1) @ self.inverse_matrix
            if self.centre is not None:
                rows = rows + self.centre
            if self.unit:
                scale = self.typical_norm if norms is None else norms[:, None]
                rows = rows * scale + (self.typical_mean if means is None else means[:, None])
            images = rows.view_as(images)
        return images * _column(self.std) + _column(self.mean)

    def to_pixels(self, images: Tensor) -> Tensor:
        """Return pixels in [0, 1] for images of the space: `inverse`, clamped."""
        return self.inverse(images).clamp(0, 1)

    def image_statistics(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and norm of each image after standardising, [n] each: what `unit` removes."""
        rows = ((pixels - _column(self.mean)) / _column(self.std)).flatten(1)
        means = rows.mean(1)
        return means, (rows - means[:, None]).norm(dim=1)

    @cached_property
    def inverse_matrix(self) -> Tensor:
        """T^-1, [d, d]; T is positive definite and well conditioned, as the ridge bounds its eigenvalues."""
        assert self.matrix is not None
        exact = self.matrix.double() if self.matrix.device.type != "mps" else self.matrix.cpu().double()
        return torch.linalg.inv(exact).to(self.matrix)

    def to(self, device: torch.device) -> Transform:
        """Return the same transform on `device`."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in self._parts().items()}
        return replace(self, **moved)

    def _parts(self) -> dict[str, Tensor]:
        parts = {"mean": self.mean, "std": self.std, "centre": self.centre, "matrix": self.matrix}
        return {name: value for name, value in parts.items() if value is not None}

    def tensors(self) -> dict[str, Tensor]:
        """Return what must travel with images of this space, by names that begin with `preprocessing/`."""
        typical = torch.tensor([self.typical_mean, self.typical_norm])
        parts = self._parts() | ({"typical": typical} if self.unit else {})
        return {f"{PREFIX}{name}": value.cpu() for name, value in parts.items()}


def from_tensors(kind: str, shape: tuple[int, int, int], tensors: dict[str, Tensor]) -> Transform:
    """Rebuild a transform from what `Transform.tensors` gave. Raises `UserError` where parts are missing."""
    check_kind(kind)
    parts = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    wanted = {"mean", "std"} | ({"matrix"} if kind.startswith("zca") else set())
    if missing := sorted(wanted - parts.keys()):
        raise UserError(f"the preprocessing {kind!r} lacks {', '.join(missing)}", hint="the set was saved incompletely")
    typical = parts.pop("typical", torch.tensor([0.0, 1.0])).tolist()
    return Transform(kind, shape, **parts, unit=kind == "zca-kip", typical_mean=typical[0], typical_norm=typical[1])


def check_kind(kind: str) -> None:
    """Raise `UserError` for an unknown preprocessing, with the nearest name."""
    if kind not in KINDS:
        raise UserError(f"unknown preprocessing {kind!r}", hint=nearest(kind, KINDS))


def transform(
    kind: str, info: DatasetInfo, train: Tensor, device: torch.device, folder: Path | None = None
) -> Transform:
    """Return the preprocessing `kind`, fitted on training images uint8 [n, c, h, w], on `device`.

    folder: where whitening matrices are kept, by content hash; None computes anew. Raises `UserError` for an unknown
    name, or images too large to whiten.
    """
    check_kind(kind)
    if not kind.startswith("zca"):
        identity = kind == "none"
        mean = torch.zeros(info.shape[0]) if identity else torch.tensor(info.mean)
        std = torch.ones(info.shape[0]) if identity else torch.tensor(info.std)
        return Transform(kind, info.shape, mean, std).to(device)
    if train[0].numel() > LARGEST:
        raise UserError(
            f"{kind} would need a matrix of {train[0].numel()} x {train[0].numel()} for {info.name}",
            hint="whitening is for images up to 64x64; use meanstd",
        )
    file = folder / f"{info.content}-{kind}.safetensors" if folder and info.content else None
    fitted = _read(kind, info.shape, file) if file else None
    if fitted is None:
        fitted = fit(kind, train, device if device.type == "cuda" else torch.device("cpu"))
        if file:
            _write(fitted, file)
    return fitted.to(device)


def _read(kind: str, shape: tuple[int, int, int], file: Path) -> Transform | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return from_tensors(kind, shape, load_file(file))
    except (OSError, SafetensorError, UserError):
        return None


def _write(fitted: Transform, file: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in fitted.tensors().items()}
    cache.publish(file, lambda path: save_file(tensors, path))


# ---------------------------------------------------------------------------------------------- fitting


def fit(kind: str, train: Tensor, device: torch.device, ridge: float = RIDGE) -> Transform:
    """Fit a whitening on training images uint8 [n, c, h, w]; `ridge` is absolute for kornia, else times tr/d."""
    n, channels = len(train), train.shape[1]
    mean, std = torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64)
    if kind != "zca-kornia":
        mean, std = _channel_statistics(train)
    shape = (channels, train.shape[2], train.shape[3])
    plain = Transform(kind, shape, mean.to(device), std.to(device))
    rows = partial(_rows, train, plain)
    unit = kind == "zca-kip"
    centre = None if unit else sum(chunk.sum(0) for chunk in rows()) / n
    moment, means, norms = _moment(rows, centre, unit)
    covariance = moment / (n - 1 if kind == "zca-kornia" else n)
    absolute = ridge if kind == "zca-kornia" else ridge * covariance.trace() / len(covariance)
    # n centred images span n - 1 directions; the papers' code counts n, and so scales one arbitrary empty direction
    rank = None if kind == "zca-kornia" else n - (centre is not None)
    return Transform(
        kind,
        shape,
        mean.float().to(device),
        std.float().to(device),
        centre=None if centre is None else centre.float(),
        matrix=whitening(covariance, absolute, rank).float(),
        unit=unit,
        typical_mean=means / n,
        typical_norm=norms / n,
    )


def whitening(covariance: Tensor, ridge: float | Tensor, rank: int | None = None) -> Tensor:
    """Return T = U (S + ridge)^(-1/2) U' of a covariance [d, d] = U S U', float64.

    rank: directions the images can span; where it is below d, the others are passed on unscaled (KIP and FRePo).
    """
    values, vectors = torch.linalg.eigh(covariance)
    scales = (values.clamp_min(0) + ridge).rsqrt()
    if rank is not None and rank < len(values):
        scales[: len(values) - rank] = 1  # eigenvalues ascend
    return (vectors * scales) @ vectors.T


def _channel_statistics(train: Tensor) -> tuple[Tensor, Tensor]:
    from bench.data.arrays import statistics

    mean, std = statistics(train.numpy())
    return torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)


def _rows(train: Tensor, plain: Transform):
    """Yield standardised images as rows float64 [m, d]."""
    for chunk in train.split(CHUNK):
        yield plain.forward(chunk.to(plain.mean.device).double() / 255).flatten(1)


def _moment(rows: Callable, centre: Tensor | None, unit: bool) -> tuple[Tensor, float, float]:
    """Return the sum of x'x over all rows, [d, d], and the sums of the rows' means and norms."""
    total, means, norms = torch.zeros((), dtype=torch.float64), 0.0, 0.0
    for chunk in rows():
        if unit:
            average = chunk.mean(1, keepdim=True)
            means += float(average.sum())
            norms += float((chunk - average).norm(dim=1).sum())
            chunk = _unit(chunk)
        else:
            chunk = chunk - centre
        total = total + chunk.T @ chunk
    return total, means, norms


def _unit(rows: Tensor) -> Tensor:
    """Return every row minus its mean, divided by its norm; a constant row becomes zero."""
    centred = rows - rows.mean(1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _column(values: Tensor) -> Tensor:
    return values[:, None, None]
