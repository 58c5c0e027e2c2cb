"""Parts shared by all networks: the norm factory, a batch norm fit for `torch.func`, and the network itself.

A network is a body that maps images to a flat embedding, and one linear head. Maps are NCHW; `size` is (height,
width) of a map.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.api import NetSpec
from bench.nets.spec import GROUPS, Norm

Size = tuple[int, int]
SMALL_MAP = 64
"""Pixels of a map up to which a matrix product pools it faster."""


class Network(nn.Module):
    """A body that embeds images, and a linear head.

    images: float [n, c, h, w]; `features` returns [n, feature_size]; the module itself returns logits [n, classes].
    """

    def __init__(self, body: nn.Module, feature_size: int, classes: int) -> None:
        super().__init__()
        self.feature_size = feature_size
        self.body = body
        self.head = nn.Linear(feature_size, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the embedding before the head, [n, feature_size]."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [n, classes]."""
        return self.head(self.body(images))


class BatchNorm(nn.Module):
    """Batch normalisation of [n, c, h, w] that works under `vmap` and `grad`.

    torch's own layer writes into its running statistics, which function transforms forbid. This one replaces them
    by new tensors; `bench.nets.call` returns those. `momentum` is the weight of the batch, as in torch.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def reset_running_stats(self) -> None:
        """Forget all batches: mean 0, variance 1."""
        self.running_mean = torch.zeros_like(self.running_mean)
        self.running_var = torch.ones_like(self.running_var)

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise by the batch while training (and remember it), by the running statistics otherwise."""
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = mean.clone(), variance.clone()
        normed = F.batch_norm(maps, mean, variance, self.weight, self.bias, self.training, self.momentum, self.eps)
        if self.training:
            self.running_mean, self.running_var = mean, variance
        return normed

    def extra_repr(self) -> str:
        """Return the sizes for `print`."""
        return f"{self.weight.shape[0]}, momentum={self.momentum}, eps={self.eps}"


class AvgPool(nn.Module):
    """Mean over 2 x 2 pixels with stride 2; an odd last row or column is dropped.

    Torch's own kernel goes through a map value by value on a CPU. For small maps one matrix product with the weights
    of every pixel takes a third of its time, forward and backward: 1.1 to 1.25 of the speed of a whole step on 8x8
    images. Compilers fuse torch's own, and autocast would round the product.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Return [n, c, h // 2, w // 2]."""
        h, w = maps.shape[2:]
        if h * w > SMALL_MAP or maps.device.type != "cpu" or torch.compiler.is_compiling() or _autocast():
            return F.avg_pool2d(maps, 2)
        return (maps.flatten(2) @ _pooling(h, w, maps.dtype)).unflatten(2, (h // 2, w // 2))


def _autocast() -> bool:
    return torch.is_autocast_enabled("cpu")


@functools.cache
def _pooling(h: int, w: int, dtype: torch.dtype) -> Tensor:
    """Return the weight of every pixel in every mean, [h w, (h // 2) (w // 2)]."""
    pixels = torch.eye(h * w, dtype=dtype).view(h * w, 1, h, w)
    return F.avg_pool2d(pixels, 2).flatten(1)


class Features(nn.Module):
    """A network whose output is its embedding, for `torch.func.functional_call`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the embedding [n, feature_size]."""
        return self.network.features(images)  # type: ignore[operator]


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "swish": nn.SiLU,
}
POOLINGS: dict[str, Callable[[], nn.Module]] = {"avg": AvgPool, "max": lambda: nn.MaxPool2d(2)}


def norm_layer(kind: Norm, channels: int, size: Size | None = None, momentum: float = 0.1) -> nn.Module:
    """Return a norm for maps of `channels`.

    in: GroupNorm(C, C), what the field calls instance norm: no running statistics, the same in training and test.
    gn: 4 groups. ln: one group, or with `size` elementwise over [C, h, w] as in ConvNet. bn: `BatchNorm`.
    """
    if kind == "bn":
        return BatchNorm(channels, momentum)
    if kind == "in":
        return nn.GroupNorm(channels, channels)
    if kind == "gn":
        return nn.GroupNorm(GROUPS, channels)
    if kind == "ln":
        return nn.LayerNorm([channels, *size]) if size else nn.GroupNorm(1, channels)
    return nn.Identity()


def sizes(spec: NetSpec) -> tuple[Norm, int]:
    """Return norm and base width of a resolved spec."""
    if spec.norm is None or spec.width is None:
        raise ValueError(f"{spec.arch}: resolve the spec before building it")
    return spec.norm, spec.width


def halved(size: Size) -> Size:
    """Return the size of a map after 2 x 2 pooling with stride 2, which drops an odd last row or column."""
    return size[0] // 2, size[1] // 2


def extra_padding(shape: tuple[int, int, int]) -> int:
    """Return by how much the first convolution pads grey 28-pixel images to make its map 32 pixels wide."""
    return 2 if shape == (1, 28, 28) else 0


def adapt(size: Size, target: int) -> list[nn.Module]:
    """Return the pooling that brings a map to `target` pixels square; none where it has that size already."""
    return [] if size == (target, target) else [nn.AdaptiveAvgPool2d(target)]
