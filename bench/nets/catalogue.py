"""What is known of the built-in architectures: titles, papers, norms, default sizes. No torch.

Default norms are those of the gradient-matching family of methods: instance norm for ConvNet, VGG and ResNet, none
for AlexNet. Every architecture takes images of any size and any number of channels: classifiers written for 32 pixels
end in adaptive pooling, which changes nothing at 32 pixels, and a pooling or stride is left out where it would make
a map vanish (or leave a norm a single pixel) on small images. The number of parameters stays that of 32 pixels,
except for ConvNet, ResNet18-AP and MLP, whose heads follow the image.
"""

from __future__ import annotations

from dataclasses import replace

from bench.nets.spec import NORMS, Architecture, Norm, Shape, inner_size

_DC = "Zhao, Mopuri, Bilen: Dataset Condensation with Gradient Matching, ICLR 2021"
_MTT = "Cazenavette et al.: Dataset Distillation by Matching Training Trajectories, CVPR 2022"
_FREPO = "Zhou, Nezhadarya, Ba: Dataset Distillation using Neural Feature Regression, NeurIPS 2022"
_DD = "Wang, Zhu, Torralba, Efros: Dataset Distillation, 2018"
_LENET = "LeCun et al.: Gradient-Based Learning Applied to Document Recognition, Proc. IEEE 1998"
_ALEXNET = "Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep CNNs, NeurIPS 2012"
_VGG = "Simonyan, Zisserman: Very Deep Convolutional Networks, ICLR 2015"
_RESNET = "He et al.: Deep Residual Learning for Image Recognition, CVPR 2016"

_INSTANCE_FIRST: tuple[Norm, ...] = ("in", "none", "bn", "ln", "gn")
_BATCH_FIRST: tuple[Norm, ...] = ("bn", "none", "in", "ln", "gn")


def halvings(shape: Shape) -> int:
    """Return the field's depth: blocks until the map is 4 pixels wide (28/32: 3, 64: 4, 128: 5), at least 2.

    Images under 16 pixels would get a single block by that rule; they get two.
    """
    side = min(inner_size(shape))
    return max(min(2, side.bit_length() - 1), (side // 4).bit_length() - 1)


def deepest(shape: Shape, pooling: str) -> int:
    """Return the greatest depth: the last norm must see a map of at least 2 x 2, which the last pooling halves."""
    return min(inner_size(shape)).bit_length() - 1 if pooling != "none" else 64


CONVNET = Architecture(
    "ConvNet: blocks of conv, norm, activation, pooling",
    _DC,
    "bench.nets.convnet:convnet",
    norms=_INSTANCE_FIRST,
    width=128,
    depth=halvings,
    deepest=deepest,
    pooling="avg",
    activations=True,
)
CONVNET_GAP = replace(
    CONVNET, title="ConvNet with global average pooling", citation=_MTT, build="bench.nets.convnet:convnet_gap"
)
FREPO_CONV = replace(
    CONVNET,
    title="FRePo's Conv: widths double, norm before the convolution",
    citation=_FREPO,
    build="bench.nets.convnet:frepo_conv",
    norms=_BATCH_FIRST,
    init="lecun",
)
MLP = Architecture("MLP: two hidden layers", _DC, "bench.nets.classic:mlp", norms=("none",), width=128, smallest=1)
LENET = Architecture("LeNet-5 with ReLU and max pooling", _LENET, "bench.nets.classic:lenet", norms=("none",))
ALEXCIFAR = Architecture(
    "AlexCifarNet with local response normalisation",
    _DD,
    "bench.nets.classic:alexcifar",
    norms=("none",),
    width=64,
    init="xavier",
)
ALEXNET = Architecture(
    "AlexNet for 32 pixels with one linear layer",
    _ALEXNET,
    "bench.nets.classic:alexnet",
    norms=NORMS,
    width=128,
    width_step=2,
)


def _vgg(layers: int) -> Architecture:
    build = f"bench.nets.classic:vgg{layers}"
    return Architecture(f"VGG{layers} for 32 pixels", _VGG, build, norms=_INSTANCE_FIRST, width=64)


def _resnet(title: str, name: str, smallest: int = 4) -> Architecture:
    build = f"bench.nets.resnet:{name}"
    return Architecture(title, _RESNET, build, norms=_INSTANCE_FIRST, width=64, smallest=smallest)


VGG11, VGG13, VGG16, VGG19 = _vgg(11), _vgg(13), _vgg(16), _vgg(19)
RESNET18 = _resnet("ResNet18 for 32 pixels", "resnet18")
RESNET34 = _resnet("ResNet34 for 32 pixels", "resnet34")
RESNET50 = _resnet("ResNet50 for 32 pixels", "resnet50")
RESNET18_AP = _resnet("ResNet18 with average pooling instead of strides", "resnet18_ap")
RESNET18_IMAGENET = _resnet("ResNet18 with the stem for large images", "resnet18_imagenet", smallest=8)
