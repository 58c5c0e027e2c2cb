"""ResNet for small images (He et al., CVPR 2016; CIFAR stem of the gradient-matching family).

A 3 x 3 stem without pooling, four stages that halve the map and double the channels, global average pooling. A
stage keeps its stride at 1 where the map would become a single pixel, over which instance norm erases the image.
Convolutions have a bias only where no norm follows.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from bench.api import NetSpec
from bench.nets.layers import Network, Size, halved, norm_layer, sizes
from bench.nets.spec import Norm, Shape


class Block(nn.Module):
    """One residual block: a chain of convolutions with norms, plus the input, then ReLU.

    `bottleneck` chains 1 x 1, 3 x 3, 1 x 1 with four times the channels, otherwise 3 x 3, 3 x 3. With `pooled` a
    halving is an average pooling after a convolution of stride 1 instead of a stride.
    """

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm, bottleneck: bool, pooled: bool) -> None:
        super().__init__()
        outputs = width * (4 if bottleneck else 1)
        bias, step = norm == "none", 1 if pooled else stride
        pool: list[nn.Module] = [nn.AvgPool2d(2)] if pooled and stride == 2 else []
        if bottleneck:
            chain = [
                *_conv(inputs, width, 1, 1, norm),
                nn.ReLU(),
                *_conv(width, width, 3, step, norm),
                nn.ReLU(),
                *pool,
                *_conv(width, outputs, 1, 1, norm),
            ]
        else:
            chain = [
                *_conv(inputs, width, 3, step, norm),
                nn.ReLU(),
                *pool,
                *_conv(width, width, 3, 1, norm),
            ]
        self.chain = nn.Sequential(*chain)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, step, bias=bias), *pool, *_norm(norm, outputs))
        self.outputs = outputs

    def forward(self, maps: Tensor) -> Tensor:
        """Return relu(chain(maps) + shortcut(maps))."""
        return (self.chain(maps) + self.shortcut(maps)).relu()


def _norm(norm: Norm, channels: int) -> list[nn.Module]:
    return [] if norm == "none" else [norm_layer(norm, channels)]


def _conv(inputs: int, outputs: int, kernel: int, stride: int, norm: Norm) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=norm == "none")
    return [conv, *_norm(norm, outputs)]


def _resnet(
    stages: tuple[int, int, int, int],
    spec: NetSpec,
    shape: Shape,
    classes: int,
    *,
    bottleneck: bool = False,
    pooled: bool = False,
    large: bool = False,
) -> Network:
    """Return a ResNet with `stages` blocks per stage.

    pooled: average pooling instead of strides, and the flat last map as embedding (ResNet18_AP). large: a 7 x 7
    stem of stride 2 and a max pooling, for 128 pixels and more.
    """
    norm, base = sizes(spec)
    size: Size = shape[1:]
    body: list[nn.Module] = [*_conv(shape[0], base, 7 if large else 3, 2 if large else 1, norm), nn.ReLU()]
    if large:
        body.append(nn.MaxPool2d(3, 2, 1))
        size = _strided(_strided(size))
    channels = base
    for stage, blocks in enumerate(stages):
        smaller = halved(size) if pooled else _strided(size)
        stride = 2 if stage and min(smaller) >= 2 else 1
        size = smaller if stride == 2 else size
        for index in range(blocks):
            width = base * 2**stage
            block = Block(channels, width, 1 if index else stride, norm, bottleneck, pooled)
            body.append(block)
            channels = block.outputs
    if pooled:
        body.append(nn.Flatten())
        return Network(nn.Sequential(*body), channels * size[0] * size[1], classes)
    body += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Network(nn.Sequential(*body), channels, classes)


def _strided(size: Size) -> Size:
    """Return the size of a map after a padded convolution or pooling of stride 2."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


resnet18 = partial(_resnet, (2, 2, 2, 2))
resnet34 = partial(_resnet, (3, 4, 6, 3))
resnet50 = partial(_resnet, (3, 4, 6, 3), bottleneck=True)
resnet18_ap = partial(_resnet, (2, 2, 2, 2), pooled=True)
resnet18_imagenet = partial(_resnet, (2, 2, 2, 2), large=True)
