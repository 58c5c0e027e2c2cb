"""ConvNet, the field's default network, and FRePo's variant of it.

`depth` blocks of convolution, norm, activation and pooling, then one linear layer (Zhao et al., ICLR 2021, after
Gidaris and Komodakis, CVPR 2018). All sizes follow from the resolved spec.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from bench.api import NetSpec
from bench.nets.layers import ACTIVATIONS, POOLINGS, Network, Size, extra_padding, halved, norm_layer, sizes
from bench.nets.spec import Shape, inner_size


def convnet(spec: NetSpec, shape: Shape, classes: int) -> Network:
    """Return ConvNet: every block has `width` channels; the embedding is the last map, flattened."""
    blocks, channels, size = _blocks(spec, shape)
    return Network(nn.Sequential(*blocks, nn.Flatten()), channels * size[0] * size[1], classes)


def convnet_gap(spec: NetSpec, shape: Shape, classes: int) -> Network:
    """Return ConvNet whose embedding is the mean of the last map (ConvNetGAP of MTT)."""
    blocks, channels, _ = _blocks(spec, shape)
    return Network(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels, classes)


def frepo_conv(spec: NetSpec, shape: Shape, classes: int) -> Network:
    """Return FRePo's Conv: channels double from block to block; the norm stands before the convolution.

    The first block has no norm. Batch norm remembers with momentum 0.9 (0.1 in the convention of Flax).
    """
    blocks, channels, size = _blocks(spec, shape, doubling=True)
    return Network(nn.Sequential(*blocks, nn.Flatten()), channels * size[0] * size[1], classes)


def _blocks(spec: NetSpec, shape: Shape, doubling: bool = False) -> tuple[list[nn.Module], int, Size]:
    """Return the blocks, the channels and the size of their last map; `doubling` makes them FRePo's."""
    norm, base = sizes(spec)
    channels, size = shape[0], inner_size(shape)
    blocks: list[nn.Module] = []
    for index in range(spec.depth or 0):
        width = base * 2**index if doubling else base
        block: OrderedDict[str, nn.Module] = OrderedDict()
        if doubling and index and norm != "none":
            block["norm"] = norm_layer(norm, channels, size, momentum=0.9)
        block["conv"] = nn.Conv2d(channels, width, 3, padding=1 + (0 if index else extra_padding(shape)))
        if not doubling and norm != "none":
            block["norm"] = norm_layer(norm, width, size)
        block["activation"] = ACTIVATIONS[spec.activation]()
        if spec.pooling != "none":
            block["pooling"] = POOLINGS[spec.pooling or "avg"]()
            size = halved(size)
        blocks.append(nn.Sequential(block))
        channels = width
    return blocks, channels, size
