"""The generator of StyleGAN-XL (Sauer, Schwarz, Geiger, SIGGRAPH 2022), as a prior for GLaD.

The synthesis network is that of alias-free GANs (Karras et al., NeurIPS 2021): Fourier features that the first style
rotates and moves, then modulated convolutions, each followed by a leaky ReLU between an upsampling and a downsampling
low-pass filter. Sizes, paddings and filters are those of the checkpoint, never designed anew, and everything is
computed in the precision of the weights (the authors: half precision in the last layers on a GPU).

    layer   y = conv(x * style) * demodulation * gain;  y = down(clamp(sqrt(2) lrelu(up(y + bias))))

`gain` is one over the root mean square of the input during training. The last layer has no demodulation and no
nonlinearity. Compared once with the released network, random weights, with and without superresolution, both kinds of
filters: equal to rounding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.nets.prior import SLOPE, Prior, unit

Padding = tuple[int, int, int, int]
"""Columns before and after, rows before and after; negative: cropped."""


class StyleGANXL(Prior):
    """The generator; the arguments are the JSON values that `bench.nets.stylegan_pickle` reads from a checkpoint."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments
        self.shape, self.classes = tuple(arguments["shape"]), arguments["classes"]
        self.z_dim, self.scale = arguments["z_dim"], arguments["scale"]
        self.embedding = nn.Parameter(torch.empty(arguments["embedding"]))
        self.projection = Scaled(**arguments["projection"])
        self.mapping = nn.ModuleList([Scaled(**sizes) for sizes in arguments["mapping"]])
        self.input = FourierInput(**arguments["input"])
        self.layers = nn.ModuleList([FilteredConv(**sizes) for sizes in arguments["layers"]])

    def map(self, z: Tensor, classes: Tensor) -> Tensor:
        """Return the same style for all layers."""
        x = torch.cat([unit(z), unit(_lrelu(self.projection(self.embedding[classes])))], 1)
        for linear in self.mapping:
            x = _lrelu(linear(x))
        return x[:, None].expand(-1, len(self.layers) + 1, -1)

    def first(self, style: Tensor) -> Tensor:
        """Return Fourier features."""
        return self.input(style)

    def config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {"kind": "stylegan_xl", "arguments": self.arguments}


class Scaled(nn.Module):
    """A linear layer that multiplies its stored weights and biases, which sets how fast they learn."""

    def __init__(self, before: int, after: int, gain: float, bias_gain: float) -> None:
        super().__init__()
        self.gain, self.bias_gain = gain, bias_gain
        self.weight, self.bias = nn.Parameter(torch.empty(after, before)), nn.Parameter(torch.empty(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, after]."""
        return F.linear(x, self.weight * self.gain, self.bias * self.bias_gain)


class FourierInput(nn.Module):
    """Waves sin(2 pi (f . p + phase)) at the pixels p of a map [channels, *size], mixed by one matrix.

    The style gives a rotation and a translation of the plane. rate: pixels per unit length; waves fade out between
    `bandwidth` and half the rate.
    """

    frequencies: Tensor
    phases: Tensor
    transform: Tensor

    def __init__(self, w_dim: int, channels: int, size: tuple[int, int], rate: float, bandwidth: float) -> None:
        super().__init__()
        self.size, self.rate, self.bandwidth = tuple(size), rate, bandwidth
        self.motion = Scaled(w_dim, 4, 1 / math.sqrt(w_dim), 1.0)
        self.weight = nn.Parameter(torch.empty(channels, channels))
        self.register_buffer("frequencies", torch.empty(channels, 2))
        self.register_buffer("phases", torch.empty(channels))
        self.register_buffer("transform", torch.empty(3, 3))

    def forward(self, style: Tensor) -> Tensor:
        """Return maps [n, channels, *size]."""
        motion = self.motion(style)
        cosine, sine, right, down = (motion / motion[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        rotation = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
        shift = -(rotation @ torch.stack([right, down], 1)[:, :, None])
        # the fixed transform comes first, then the translation, then the rotation
        matrix = rotation @ self.transform[:2, :2]
        shift = rotation @ self.transform[:2, 2:] + shift
        waves = self.frequencies @ matrix
        phases = self.phases + (self.frequencies @ shift).squeeze(2)
        fade = (1 - (waves.norm(dim=2) - self.bandwidth) / (self.rate / 2 - self.bandwidth)).clamp(0, 1)
        rows, columns = (self._places(side, style) for side in self.size)
        angles = rows[:, None, None] * waves[:, None, None, :, 1] + columns[:, None] * waves[:, None, None, :, 0]
        maps = torch.sin(2 * math.pi * (angles + phases[:, None, None])) * fade[:, None, None]
        return (maps @ self.weight.T / math.sqrt(len(self.weight))).permute(0, 3, 1, 2).contiguous()

    def _places(self, side: int, like: Tensor) -> Tensor:
        """Return the centres of the pixels of one side, the middle of the map being 0."""
        return (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5 - side / 2) / self.rate


class FilteredConv(nn.Module):
    """One synthesis layer. up_filter and down_filter: shapes of the filters, one or two sides, None for none."""

    up_filter: Tensor | None
    down_filter: Tensor | None
    magnitude: Tensor

    def __init__(
        self,
        w_dim: int,
        before: int,
        after: int,
        side: int,
        up: int,
        down: int,
        padding: Padding,
        clamp: float | None,
        colours: bool,
        up_filter: list[int] | None,
        down_filter: list[int] | None,
    ) -> None:
        super().__init__()
        self.up, self.down, self.padding, self.clamp, self.colours = up, down, padding, clamp, colours
        self.style = Scaled(w_dim, before, 1 / math.sqrt(w_dim), 1.0)
        self.weight = nn.Parameter(torch.empty(after, before, side, side))
        self.bias = nn.Parameter(torch.empty(after))
        self.register_buffer("magnitude", torch.empty(()))
        self.register_buffer("up_filter", None if up_filter is None else torch.empty(up_filter))
        self.register_buffer("down_filter", None if down_filter is None else torch.empty(down_filter))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return the next map."""
        scale, side = self.style(style), self.weight.shape[2]
        weight: Tensor = self.weight
        if self.colours:
            scale = scale / math.sqrt(weight[0].numel())
        else:  # neither matters after the demodulation, but for its 1e-8
            weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
            scale = unit(scale)
        x = F.conv2d(x * scale[:, :, None, None], weight * self.magnitude.rsqrt(), padding=side - 1)
        if not self.colours:
            norm = (scale.square() @ weight.square().sum((2, 3)).T + 1e-8).rsqrt()
            x = x * norm[:, :, None, None]
        x = upsample(x + self.bias[:, None, None], self.up_filter, self.up, self.padding)
        if not self.colours:
            x = _lrelu(x)
        if self.clamp is not None:
            x = x.clamp(-self.clamp, self.clamp)
        return downsample(x, self.down_filter, self.down)


def _lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE) * math.sqrt(2)


def upsample(x: Tensor, taps: Tensor | None, factor: int, padding: Padding) -> Tensor:
    """Put `factor - 1` zeros after each value, pad (or crop), filter and multiply by factor^2.

    taps: [t] for both sides, or [t, t]; None for no filter.
    """
    if taps is None:
        taps = torch.ones(1, dtype=x.dtype, device=x.device)
    size, channels = taps.shape[0], x.shape[1]
    for kernel, stride in _kernels(taps * (factor if taps.dim() == 1 else factor**2), factor):
        x = F.conv_transpose2d(x, kernel.expand(channels, 1, -1, -1), stride=stride, groups=channels)
    # the whole convolution begins `size - 1` values before the first that needs no padding; its last zeros are missing
    left, right, top, bottom = (amount - (size - 1) for amount in padding)
    return F.pad(x, (left, right + factor - 1, top, bottom + factor - 1))


def downsample(x: Tensor, taps: Tensor | None, factor: int) -> Tensor:
    """Filter and keep every `factor`-th value, from the first that needs no padding."""
    if taps is None:
        return x[:, :, ::factor, ::factor]
    channels = x.shape[1]
    for kernel, stride in _kernels(taps.flip(tuple(range(taps.dim()))), factor):
        x = F.conv2d(x, kernel.expand(channels, 1, -1, -1), stride=stride, groups=channels)
    return x


def _kernels(taps: Tensor, stride: int) -> list[tuple[Tensor, tuple[int, int]]]:
    """Return the passes of a filter, kernel [1, 1, h, w] and strides: one for each side, or one for both."""
    if taps.dim() == 2:
        return [(taps[None, None], (stride, stride))]
    return [(taps[None, None, :, None], (stride, 1)), (taps[None, None, None], (1, stride))]
