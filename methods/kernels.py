"""Kernels of infinitely wide ReLU networks, in closed form: NNGP and NTK (Jacot et al. 2018; Arora et al. 2019).

A network is a short list of layers, `architecture` makes the usual ones. Where nothing mixes pixels before the
readout (no pooling), the covariance of a pixel with the same pixel of the other image is all that is needed and a
kernel costs O(n m P). Pooling needs all pairs of pixels, O(n m P^2), and is computed in blocks of image pairs, each
of which is computed once more for its derivative, so that memory holds one block: exact, and for tiny images only.

NTK parametrisation with weight variance 2 and bias variance 0.01, as KIP uses. Use float64: the ridge of KIP is 1e-6
of the mean diagonal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from bench.errors import UserError
from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT, BIAS = 2.0, 0.01
"""Variances of weights and biases (KIP.ipynb)."""

PI = 3.141592653589793
BLOCK = 2**24
"""Numbers in one block of pixel pairs: 128 MiB in float64 for each of the few arrays alive at a time."""

KERNELS = "fc<L>, conv<L>, conv<L>-gap, convnet, convnet3, myrtle5, myrtle7 or myrtle10"
"""The names that `architecture` knows."""

Layer = Literal["conv", "relu", "pool", "gap", "flatten", "dense"]


def architecture(name: str) -> tuple[Layer, ...]:
    """Return the layers of a network of `KERNELS`.

    fc: L hidden layers. conv: L convolutions without pooling. convnet: the main kernel of KIP's second paper, a
    convolution followed by three with 2x2 average pooling; convnet3 lacks the first one. myrtle: blocks of
    convolutions, pooled twice on the way and globally at the end (Shankar et al. 2020). Raises `UserError`.
    """
    conv: tuple[Layer, ...] = ("conv", "relu")
    pooled: tuple[Layer, ...] = (*conv, "pool")
    fixed: dict[str, tuple[Layer, ...]] = {
        "convnet": (*conv, *pooled * 3, "flatten", "dense"),
        "convnet3": (*pooled * 3, "flatten", "dense"),
    }
    for name_of, blocks in (("myrtle5", (1, 1, 1)), ("myrtle7", (1, 2, 2)), ("myrtle10", (2, 3, 3))):
        first, second, third = (conv * number for number in blocks)
        fixed[name_of] = (*conv, *first, "pool", *second, "pool", *third, "gap", "dense")
    if name in fixed:
        return fixed[name]
    kind, _, readout = name.partition("-")
    word = kind.rstrip("0123456789")
    depth = kind.removeprefix(word)
    if word == "fc" and depth and not readout:
        return ("flatten", "dense", *("relu", "dense") * int(depth))
    if word == "conv" and depth and readout in ("", "gap"):
        return (*conv * int(depth), "gap" if readout else "flatten", "dense")
    raise UserError(f"unknown kernel {name!r}", hint=f"known: {KERNELS}")


def kernel(name: str, kind: Literal["ntk", "nngp"] = "ntk") -> Callable[[Tensor, Tensor], Tensor]:
    """Return k(x, z): images [n, c, h, w] and [m, c, h, w] -> [n, m], differentiable in both."""
    layers = architecture(name)
    every_pair = "pool" in layers or "gap" in layers
    covariance = _pixel_pairs if every_pair else _same_pixels

    def gram(x: Tensor, z: Tensor) -> Tensor:
        nngp, ntk = covariance(x, z, layers)
        return ntk if kind == "ntk" else nngp

    return gram


def relu(k11: Tensor, k22: Tensor, k12: Tensor, ntk: Tensor) -> tuple[Tensor, Tensor]:
    """Return (K12, Theta) after a ReLU, for centred Gaussians with variances k11, k22 and covariance k12.

    With sine s = sqrt(k11 k22 - k12^2) and angle a between the two: K12 <- (s + (pi - a) k12) / 2 pi and
    Theta <- Theta (pi - a) / 2 pi. At angle 0 the derivative of the angle is infinite and that of K12 is not; there s
    is set to 0 without a gradient, which is the limit of K12's.
    """
    product = k11 * k22
    square = product - k12.square()
    apart = square > 1e-14 * product
    sine = torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0)
    rest = PI - torch.atan2(sine, k12)
    return (sine + rest * k12) / (2 * PI), ntk * rest / (2 * PI)


# ------------------------------------------------------------------------------------------------ without pooling


def _same_pixels(x: Tensor, z: Tensor, layers: tuple[Layer, ...]) -> tuple[Tensor, Tensor]:
    """Return (NNGP, NTK), [n, m], from the covariance of equal pixels alone."""
    if layers[0] == "flatten":  # every value is a channel of a single pixel: a matrix product instead of [n, m, P]
        x, z = x.reshape(len(x), -1, 1, 1), z.reshape(len(z), -1, 1, 1)
    n, m, channels = len(x), len(z), x.shape[1]
    k12 = torch.einsum("nchw,mchw->nmhw", x, z) / channels
    k11 = x.square().mean(1)[:, None]
    k22 = z.square().mean(1)[None]
    ntk = torch.zeros_like(k12)
    for layer in layers:
        if layer == "conv":
            k11, k22, k12 = (WEIGHT * _box(k) + BIAS for k in (k11, k22, k12))
            ntk = k12 + WEIGHT * _box(ntk)
        elif layer == "relu":
            k12, ntk = relu(k11, k22, k12, ntk)
            k11, k22 = k11 / 2, k22 / 2
        elif layer == "flatten":
            k11, k22, k12, ntk = (k.mean((2, 3), keepdim=True) for k in (k11, k22, k12, ntk))
        else:
            k11, k22, k12 = (WEIGHT * k + BIAS for k in (k11, k22, k12))
            ntk = k12 + WEIGHT * ntk
    return k12.view(n, m), ntk.view(n, m)


def _box(k: Tensor) -> Tensor:
    """Return the 3x3 mean with zeros outside and nine as the denominator everywhere, over the last two dimensions."""
    flat = k.reshape(-1, 1, *k.shape[-2:])
    return F.avg_pool2d(flat, 3, stride=1, padding=1).view(k.shape)


# ------------------------------------------------------------------------------------------------ with pooling


def _pixel_pairs(x: Tensor, z: Tensor, layers: tuple[Layer, ...]) -> tuple[Tensor, Tensor]:
    """Return (NNGP, NTK), [n, m], from the covariance of all pairs of pixels, block by block of image pairs."""
    from torch.utils.checkpoint import checkpoint

    def recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
        return checkpoint(function, *arguments, layers, use_reentrant=False, preserve_rng_state=False)

    pixels = x.shape[-1] * x.shape[-2]
    size = max(1, int((BLOCK // pixels**2) ** 0.5))
    parts_x, parts_z = x.split(size), z.split(size)
    variances_z = [recomputed(_variances, part) for part in parts_z]
    variances_x = variances_z if x is z else [recomputed(_variances, part) for part in parts_x]
    blocks: dict[tuple[int, int], Any] = {}
    for i, part_x in enumerate(parts_x):
        for j, part_z in enumerate(parts_z):
            if x is z and j < i:  # the kernel of a set with itself is symmetric
                blocks[i, j] = [block.T for block in blocks[j, i]]
            else:
                blocks[i, j] = recomputed(_cross, part_x, part_z, variances_x[i], variances_z[j])

    def whole(which: int) -> Tensor:
        rows = [torch.cat([blocks[i, j][which] for j in range(len(parts_z))], 1) for i in range(len(parts_x))]
        return torch.cat(rows)

    return whole(0), whole(1)


def _covariance(x: Tensor, z: Tensor) -> Tensor:
    """Return the pixel covariance [b, h, w, h, w] of pairs of images [b, c, h, w]."""
    return torch.einsum("bchw,bcij->bhwij", x, z) / x.shape[1]


def _diagonal(k: Tensor) -> Tensor:
    """Return the variance of every pixel, [b, h, w]."""
    b, h, w = k.shape[:3]
    return k.reshape(b, h * w, h * w).diagonal(dim1=1, dim2=2).view(b, h, w)


def _variances(x: Tensor, layers: tuple[Layer, ...]) -> list[Tensor]:
    """Return the pixels' variances [b, h, w] in front of every ReLU."""
    k, found = _covariance(x, x), []
    for layer in layers:
        if layer == "relu":
            variance = _diagonal(k)
            found.append(variance)
            k, _ = relu(variance[:, :, :, None, None], variance[:, None, None], k, torch.zeros_like(k))
        elif layer in ("conv", "pool"):
            k = WEIGHT * _joint_box(k) + BIAS if layer == "conv" else _pool(k)
    return found


def _cross(
    x: Tensor, z: Tensor, variances_x: list[Tensor], variances_z: list[Tensor], layers: tuple[Layer, ...]
) -> tuple[Tensor, Tensor]:
    """Return (NNGP, NTK), [n, m], of one block of images."""
    n, m = len(x), len(z)
    k = _covariance(x.repeat_interleave(m, 0), z.repeat(n, 1, 1, 1))
    ntk, number = torch.zeros_like(k), 0
    for layer in layers:
        if layer == "conv":
            k = WEIGHT * _joint_box(k) + BIAS
            ntk = k + WEIGHT * _joint_box(ntk)
        elif layer == "relu":
            k11 = variances_x[number].repeat_interleave(m, 0)[:, :, :, None, None]
            k22 = variances_z[number].repeat(n, 1, 1)[:, None, None]
            k, ntk = relu(k11, k22, k, ntk)
            number += 1
        elif layer == "pool":
            k, ntk = _pool(k), _pool(ntk)
        elif layer == "flatten":
            k, ntk = (_diagonal(each).mean((1, 2)) for each in (k, ntk))
        elif layer == "gap":
            k, ntk = (each.mean((1, 2, 3, 4)) for each in (k, ntk))
        else:
            k = WEIGHT * k + BIAS
            ntk = k + WEIGHT * ntk
    return k.view(n, m), ntk.view(n, m)


def _joint_box(k: Tensor) -> Tensor:
    """Return the mean over the nine offsets that a 3x3 convolution applies to both pixels alike, zeros outside."""
    h, w = k.shape[1:3]
    padded = F.pad(k, (1, 1, 1, 1, 1, 1, 1, 1))
    shifts = [(i, j) for i in range(3) for j in range(3)]
    return torch.stack([padded[:, i : i + h, j : j + w, i : i + h, j : j + w] for i, j in shifts]).sum(0) / 9


def _pool(k: Tensor) -> Tensor:
    """Return the covariance after 2x2 average pooling of both images; an odd last row or column is dropped."""
    b, h, w = k.shape[0], k.shape[1] // 2, k.shape[2] // 2
    k = k[:, : 2 * h, : 2 * w, : 2 * h, : 2 * w]
    return k.reshape(b, h, 2, w, 2, h, 2, w, 2).mean((2, 4, 6, 8))
