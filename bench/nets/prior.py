"""Generators as priors: class-conditional networks whose latents are learned in place of pixels (GLaD, CVPR 2023).

Every prior has the shape of a style-based generator: a mapping from noise and class to the styles W+, an input block
that makes the first map, and synthesis layers L_0 .. L_{K-1}, the last of which paints the image. It can be cut after
any number n of layers, so that a feature map F takes the place of all that comes before it:

    to_f(styles, n)        x = input(w_0);  x = L_i(x, w_{i+1}) for i < n
    from_f(styles, F, n)   x = F;           x = L_i(x, w_{i+1}) for i >= n;  image = scale * x, about in [-1, 1]

`SmallPrior` is the small one that the artifact `generator` trains on a dataset. A prior travels as plain tensors: its
weights, and how it is built as JSON text in bytes; see `to_tensors` and `from_tensors`.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from bench.errors import UserError

Shape = tuple[int, int, int]
CONFIG = "config"
WEIGHTS = "generator/"
SLOPE = 0.2
"""Of the leaky ReLU; times sqrt(2) it keeps the second moment of its input."""


class Prior(nn.Module, ABC):
    """What every generator is to those who learn its latents.

    shape: of its images; classes: how many it knows; z_dim: length of the noise; scale: of the last layer's output.
    """

    shape: Shape
    classes: int
    z_dim: int
    layers: nn.ModuleList
    scale: float = 1.0

    @abstractmethod
    def map(self, z: Tensor, classes: Tensor) -> Tensor:
        """Return styles [n, K + 1, w_dim] for noise [n, z_dim] and classes int64 [n]. Row 0 is the input block's."""

    @abstractmethod
    def first(self, style: Tensor) -> Tensor:
        """Return the map that the layers start from, for row 0 of the styles, [n, w_dim]."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return how to build this network again, as JSON values."""

    def to_f(self, styles: Tensor, n: int) -> Tensor:
        """Return the map after the first `n` layers."""
        x = self.first(styles[:, 0])
        for i in range(n):
            x = self.layers[i](x, styles[:, i + 1])
        return x

    def from_f(self, styles: Tensor, features: Tensor, n: int) -> Tensor:
        """Return the images [m, *shape] that the layers after the first `n` make of the map `features`."""
        x = features
        for i in range(n, len(self.layers)):
            x = self.layers[i](x, styles[:, i + 1])
        return x * self.scale

    def forward(self, styles: Tensor) -> Tensor:
        """Return images."""
        return self.from_f(styles, self.to_f(styles, 0), 0)


def unit(x: Tensor) -> Tensor:
    """Return rows with mean square 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


# ---------------------------------------------------------------------------------------------- the small generator


class SmallPrior(Prior):
    """A small style-based generator: a learned constant, modulated convolutions, one linear layer to colours.

    channels: of each resolution, the smallest first; each step up doubles it. Two layers per resolution, one at the
    smallest; the first of two begins with bilinear upsampling.
    """

    def __init__(self, shape: Shape, classes: int, channels: Sequence[int], z_dim: int = 64, w_dim: int = 128) -> None:
        super().__init__()
        self.shape, self.classes, self.z_dim, self.channels = shape, classes, z_dim, tuple(channels)
        size = [side >> (len(channels) - 1) for side in shape[1:]]
        self.embedding = nn.Parameter(torch.empty(classes, z_dim))
        self.mapping = nn.ModuleList([nn.Linear(2 * z_dim, w_dim), nn.Linear(w_dim, w_dim)])
        self.constant = nn.Parameter(torch.empty(channels[0], *size))
        layers = [StyledConv(channels[0], channels[0], w_dim)]
        for before, after in pairwise(channels):
            layers += [StyledConv(before, after, w_dim, up=True), StyledConv(after, after, w_dim)]
        self.layers = nn.ModuleList([*layers, StyledConv(channels[-1], shape[0], w_dim, colours=True)])

    def map(self, z: Tensor, classes: Tensor) -> Tensor:
        """Return the same style for all layers."""
        x = torch.cat([unit(z), unit(self.embedding[classes])], 1)
        for linear in self.mapping:
            x = F.leaky_relu(linear(x), SLOPE) * math.sqrt(2)
        return x[:, None].expand(-1, len(self.layers) + 1, -1)

    def first(self, style: Tensor) -> Tensor:
        """Return the learned constant."""
        return self.constant.expand(len(style), -1, -1, -1)

    def config(self) -> dict[str, Any]:
        """Return the sizes."""
        return {
            "kind": "small",
            "shape": self.shape,
            "classes": self.classes,
            "channels": self.channels,
            "z_dim": self.z_dim,
            "w_dim": self.mapping[0].out_features,
        }


class StyledConv(nn.Module):
    """A convolution whose input channels the style scales, and whose output is scaled to what it was (StyleGAN 2).

    Scaling the maps before and after is the convolution with modulated and demodulated weights, without a set of
    weights per image. colours: the last layer, 1 x 1, linear and not demodulated.
    """

    def __init__(self, before: int, after: int, w_dim: int, *, up: bool = False, colours: bool = False) -> None:
        super().__init__()
        self.up, self.colours = up, colours
        side = 1 if colours else 3
        self.style = nn.Linear(w_dim, before)
        self.weight = nn.Parameter(torch.empty(after, before, side, side))
        self.bias = nn.Parameter(torch.empty(after))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return the next map, [n, after, h, w]."""
        scale = self.style(style)
        x = x * scale[:, :, None, None]
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
        x = F.conv2d(x, self.weight, padding=self.weight.shape[2] // 2)
        if self.colours:
            return x + self.bias[:, None, None]
        norm = (scale.square() @ self.weight.square().sum((2, 3)).T + 1e-8).rsqrt()
        return F.leaky_relu(x * norm[:, :, None, None] + self.bias[:, None, None], SLOPE) * math.sqrt(2)


class Encoder(nn.Module):
    """Finds the noise of an image: three convolutions with stride 2, and a linear layer that also sees the class."""

    def __init__(self, prior: Prior, width: int) -> None:
        super().__init__()
        channels, height, side = prior.shape
        self.classes = prior.classes
        sizes = [channels, width, 2 * width, 4 * width]
        self.body = nn.ModuleList([nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(sizes)])
        flat = sizes[-1] * math.ceil(height / 8) * math.ceil(side / 8)
        self.head = nn.Linear(flat + self.classes, 2 * prior.z_dim)

    def forward(self, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance of the noise, [n, z_dim] each, of images in [-1, 1]."""
        x = images
        for conv in self.body:
            x = F.leaky_relu(conv(x), SLOPE) * math.sqrt(2)
        hot = F.one_hot(classes, self.classes).to(x.dtype)
        mean, log_variance = self.head(torch.cat([x.flatten(1), hot], 1)).chunk(2, 1)
        return mean, log_variance


def default_channels(shape: Shape, width: int = 32, largest: int = 128) -> tuple[int, ...]:
    """Return the channels of each resolution: halved sides down to 4 pixels, twice the channels each, from `width`."""
    sides, steps = list(shape[1:]), 0
    while all(side % 2 == 0 and side > 4 for side in sides):
        sides, steps = [side // 2 for side in sides], steps + 1
    return tuple(min(largest, width << k) for k in reversed(range(steps + 1)))


def draw(network: nn.Module, rng: Generator) -> None:
    """Draw the weights of a small prior (or of its encoder): normal, variance 1/fan_in; styles begin around 1."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("bias"):
                weight.fill_(1.0 if name.endswith("style.bias") else 0.0)
                continue
            fan_in = 1 if name in ("constant", "embedding") else weight[0].numel()
            weight.copy_(torch.randn(weight.shape, generator=rng, device=rng.device) / math.sqrt(fan_in))


# ---------------------------------------------------------------------------------------------- as tensors


def to_tensors(prior: Prior) -> dict[str, Tensor]:
    """Return a prior as tensors: `generator/<weight or buffer>`, and `config`, JSON text as bytes."""
    weights = {WEIGHTS + name: tensor.detach().clone() for name, tensor in prior.state_dict().items()}
    return {CONFIG: encode(prior.config()), **weights}


def encode(config: Mapping[str, Any]) -> Tensor:
    """Return JSON values as text, as bytes, as a tensor."""
    return torch.frombuffer(bytearray(json.dumps(config, sort_keys=True).encode()), dtype=torch.uint8)


def from_tensors(tensors: Mapping[str, Tensor]) -> Prior:
    """Return the prior that `to_tensors` took apart, in the precision and on the device of its tensors.

    Raises `UserError` for tensors that are not a prior of ddbench.
    """
    weights = {name.removeprefix(WEIGHTS): tensor for name, tensor in tensors.items() if name.startswith(WEIGHTS)}
    try:
        config = json.loads(bytes(tensors[CONFIG].tolist()))
        prior = _build(config)
        prior.load_state_dict(weights, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"not a generator of ddbench, or a damaged one: {' '.join(str(error).split())[:300]}"
        ) from error
    return prior.requires_grad_(False).eval()


def _build(config: dict[str, Any]) -> Prior:
    kind = config.pop("kind")
    with torch.device("meta"):
        if kind == "small":
            return SmallPrior(tuple(config.pop("shape")), **config)
        if kind == "stylegan_xl":
            from bench.nets.stylegan import StyleGANXL

            return StyleGANXL(**config)
    raise ValueError(f"unknown kind {kind!r}")
