"""Every network against published sizes, torchvision, and the properties its norm promises."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench import nets, tv
from bench.nets.layers import AvgPool, norm_layer
from bench.nets.resnet import Block
from bench.nets.spec import architecture

torchvision = tv.torchvision()

GREY, CIFAR, TINY, LARGE, DIGITS = (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 128, 128), (1, 8, 8)
REVIEW = ["convnet-in", "convnet-none", "convnet-bn", "alexnet-none", "alexnet-in", "resnet18-in", "resnet18-bn",
          "vgg11-in", "vgg11-bn"]  # fmt: skip


def make(name, shape, classes=10, seed=0, dtype=torch.float32):
    network = nets.build(name, shape, classes).to(dtype)
    nets.initialise(network, torch.Generator().manual_seed(seed), nets.parse(name).init)
    return network


def images(shape, n=3, seed=1, dtype=torch.float32):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


COUNTS = {
    (GREY, 10): {
        "convnet-d1": 329226, "convnet-d2": 231306, "convnet-d3": 317706, "convnet-d4": 450186, "convnet-d5": 594186,
        "mlp": 118282, "lenet": 61706, "alexnet": 1865802, "alexnet-bn": 1867722, "vgg11": 9229962,
        "resnet18": 11172810, "resnet18_ap": 11213770,
    },
    (CIFAR, 10): {
        "convnet-d1": 331530, "convnet-d2": 233610, "convnet-d3": 320010, "convnet-d4": 452490, "convnet-d5": 596490,
        "convnet-bn": 320010, "convnet-gn": 320010, "convnet-none": 319242, "convnet-ln": 663306,
        "convnet-w32": 24714, "convnet-w64": 86282, "convnet-w256": 1229834, "convnet-w512": 4818954,
        "convnet-nopool": 1610250, "convnet-maxpool": 320010, "convnet-none-w1024": 19068938,
        "mlp": 411146, "lenet": 62006, "alexnet": 1872202, "alexnet-bn": 1874122, "alexnet-in": 1874122,
        "vgg11": 9231114, "vgg11-bn": 9231114, "vgg13": 9416010, "vgg16": 14728266, "vgg19": 20040522,
        "resnet18": 11173962, "resnet18-bn": 11173962, "resnet18_ap": 11250762, "resnet34": 21282122,
        "resnet50": 23520842, "frepo_conv-none": 1560842, "alexcifar": 1756426,
    },
    (CIFAR, 100): {
        "convnet-d1": 3280740, "convnet-d2": 970980, "convnet-d3": 504420, "convnet-d4": 498660, "convnet-d5": 608100,
        "mlp": 422756, "lenet": 69656, "alexnet": 2148772, "alexnet-bn": 2150692, "vgg11": 9277284,
        "resnet18": 11220132, "resnet18_ap": 11988132,
    },
    (TINY, 200): {
        "convnet-d1": 26218440, "convnet-d2": 6705480, "convnet-d3": 1938120, "convnet": 857160, "convnet-d5": 697800,
        "convnet_gap": 473160, "mlp": 1615304, "alexnet": 2456072, "resnet18": 11271432, "vgg11": 9328584,
    },
    (LARGE, 10): {
        "convnet-d1": 5246730, "convnet-d2": 1462410, "convnet-d3": 627210, "convnet-d4": 529290, "convnet": 615690,
        "resnet18_imagenet": 11181642,
    },
}  # fmt: skip


@pytest.mark.parametrize(("shape", "classes"), COUNTS)
def test_parameter_counts_are_the_published_ones(shape, classes):
    expected = COUNTS[shape, classes]
    assert {name: nets.parameter_count(name, shape, classes) for name in expected} == expected


@pytest.mark.parametrize("name", ["convnet", "resnet18", "vgg11", "lenet", "mlp"])
def test_multiply_adds_are_half_of_torch_flops(name):
    network = nets.build(name, CIFAR, 10).train()
    found = nets.multiply_adds(network, CIFAR)
    assert network.training
    with FlopCounterMode(display=False) as counter:
        network.eval().to("meta")(torch.zeros(1, *CIFAR, device="meta"))
    assert found == counter.get_total_flops() / 2
    assert name != "convnet" or found == 3 * 9 * 128 * 32**2 + 128 * 9 * 128 * (16**2 + 8**2) + 2048 * 10


FEATURES = {
    CIFAR: {"convnet-d1": 32768, "convnet-d2": 8192, "convnet-d3": 2048, "convnet-d4": 512, "convnet-d5": 128,
            "mlp": 128, "lenet": 84, "alexcifar": 192, "alexnet": 3072, "vgg11": 512, "resnet18": 512,
            "resnet50": 2048, "resnet18_ap": 8192, "frepo_conv": 8192, "convnet_gap": 128},
    GREY: {"convnet": 2048, "frepo_conv": 8192, "alexnet": 3072, "vgg11": 512, "resnet18": 512, "resnet18_ap": 4608},
    TINY: {"convnet": 2048, "frepo_conv": 16384},
    LARGE: {"convnet": 2048, "frepo_conv": 32768},
}  # fmt: skip


@pytest.mark.parametrize("shape", FEATURES)
def test_feature_sizes_are_the_published_ones(shape):
    for name, expected in FEATURES[shape].items():
        network = nets.build(name, shape, 10, device="meta")
        features = network.features(torch.empty(2, *shape, device="meta"))
        assert (name, network.feature_size, tuple(features.shape)) == (name, expected, (2, expected))


@pytest.mark.parametrize(
    ("name", "shape", "millions"),
    [("convnet", GREY, 48.4), ("convnet", CIFAR, 50.7), ("convnet", TINY, 212.7), ("convnet", LARGE, 858.8),
     ("alexnet", CIFAR, 245.0), ("vgg11", CIFAR, 152.8), ("resnet18", CIFAR, 555.4), ("resnet18_ap", CIFAR, 744.2)],
)  # fmt: skip
def test_multiplications_per_image(name, shape, millions):
    network = nets.build(name, shape, 200 if shape == TINY else 10, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *shape, device="meta"))
    assert counter.get_total_flops() / 2e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("name", nets.names())
def test_every_network_takes_every_image_size(name):
    known = architecture(name)
    width = "-w8" if known.width else ""
    for shape in (GREY, CIFAR, TINY, DIGITS, (3, 28, 28), (3, 16, 16), (1, 32, 32), (3, 33, 47), (2, 9, 12)):
        for norm in known.norms if shape == (2, 9, 12) else known.norms[:1]:
            option = f"-{norm}" if len(known.norms) > 1 else ""
            network = nets.build(f"{name}{option}{width}", shape, 7, device="meta")
            features = network.features(torch.empty(2, *shape, device="meta"))
            assert features.shape == (2, network.feature_size)
            assert network.head(features).shape == (2, 7)


@pytest.mark.parametrize("name", nets.names())
@pytest.mark.parametrize("side", [4, 8])
def test_no_network_is_blind_on_small_images(name, side):
    """A norm over a single pixel, or a map that vanished, would give every image the same logits."""
    known = architecture(name)
    for norm in known.norms:
        if side < known.smallest:
            continue
        option = (f"-{norm}" if len(known.norms) > 1 else "") + ("-w8" if known.width else "")
        network = make(name + option, (1, side, side), dtype=torch.float64)
        logits = network(images((1, side, side), 8, dtype=torch.float64))
        # networks without norm damp their input from layer to layer, those that are blind return constants
        assert logits.std(0).max() > 1e-10, (name, norm)
        gradient = torch.autograd.grad(F.cross_entropy(logits, torch.arange(8)), list(network.parameters()))
        assert all(g.isfinite().all() for g in gradient)


def test_head_of_features_is_the_network():
    for name in ("convnet-w8", "lenet", "vgg11-w8", "resnet18_ap-bn-w8"):
        network = make(name, CIFAR).eval()
        batch = images(CIFAR)
        assert torch.equal(network.head(network.features(batch)), network(batch))


# ---------------------------------------------------------------------------------------------- oracles


def transplant(source, target):
    """Copy parameters and running statistics in order; both networks list them alike."""
    for tensors in ("parameters", "buffers"):
        mine = [t for t in getattr(source, tensors)() if t.dtype.is_floating_point]
        theirs = [t for t in getattr(target, tensors)() if t.dtype.is_floating_point]
        assert [t.shape for t in mine] == [t.shape for t in theirs]
        for a, b in zip(mine, theirs, strict=True):
            b.data.copy_(a)


@pytest.mark.parametrize(("name", "layers", "block"), [
    ("resnet18-bn-w64", [2, 2, 2, 2], torchvision.models.resnet.BasicBlock),
    ("resnet34-bn-w64", [3, 4, 6, 3], torchvision.models.resnet.BasicBlock),
    ("resnet50-bn-w64", [3, 4, 6, 3], torchvision.models.resnet.Bottleneck),
])  # fmt: skip
def test_resnet_is_torchvisions_with_the_small_stem(name, layers, block):
    ours = make(name, CIFAR)
    oracle = torchvision.models.ResNet(block, layers, num_classes=10)
    oracle.conv1, oracle.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    transplant(ours, oracle)
    batch = images(CIFAR, 2)
    torch.testing.assert_close(ours(batch), oracle(batch), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.eval()(batch), oracle.eval()(batch), rtol=1e-4, atol=1e-5)


def test_resnet_for_large_images_is_torchvisions():
    ours, oracle = make("resnet18_imagenet-bn", TINY), torchvision.models.resnet18(num_classes=10)
    transplant(ours, oracle)
    batch = images(TINY, 2)
    torch.testing.assert_close(ours(batch), oracle(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "configuration"), [("vgg11-bn", "A"), ("vgg13-bn", "B"), ("vgg16-none", "D")])
def test_vgg_is_torchvisions_with_one_linear_layer(name, configuration):
    ours = make(name, CIFAR).eval()
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs[configuration], name.endswith("bn"))
    oracle = torch.nn.Sequential(layers, torch.nn.Flatten(), torch.nn.Linear(512, 10)).eval()
    transplant(ours, oracle)
    batch = images(CIFAR, 2)
    torch.testing.assert_close(ours(batch), oracle(batch))


def test_average_pooled_blocks_of_stride_one_are_ordinary_blocks():
    ours, oracle = (Block(8, 16, 1, "in", False, pooled) for pooled in (True, False))
    oracle.load_state_dict(ours.state_dict())
    batch = images((8, 6, 6))
    assert torch.equal(ours(batch), oracle(batch))


def test_average_pooled_block_halves_after_the_first_relu_and_before_the_shortcut_norm():
    block = Block(4, 8, 2, "in", False, True).double()
    batch = images((4, 6, 6), dtype=torch.float64)
    conv1, norm1, _, _, conv2, norm2 = block.chain
    conv3, _, norm3 = block.shortcut
    chain = norm2(conv2(F.avg_pool2d(norm1(conv1(batch)).relu(), 2)))
    expected = (chain + norm3(F.avg_pool2d(conv3(batch), 2))).relu()
    torch.testing.assert_close(block(batch), expected)


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (2, 2), (7, 5), (16, 16)])
def test_average_pooling_is_that_of_torch_and_so_are_its_derivatives(size):
    maps = torch.randn(3, 2, *size, dtype=torch.float64, requires_grad=True)
    stacked = maps.detach().unsqueeze(0).repeat(2, 1, 1, 1, 1)
    pool = AvgPool()
    assert torch.allclose(pool(maps), F.avg_pool2d(maps, 2))
    assert torch.allclose(torch.vmap(pool)(stacked)[1], pool(maps))
    (ours,) = torch.autograd.grad(pool(maps).pow(3).sum(), maps, create_graph=True)
    (torchs,) = torch.autograd.grad(F.avg_pool2d(maps, 2).pow(3).sum(), maps, create_graph=True)
    assert torch.allclose(ours, torchs)
    assert torch.allclose(*(torch.autograd.grad(g.pow(2).sum(), maps)[0] for g in (ours, torchs)))


def test_average_pooling_does_not_round_under_autocast():
    maps = torch.randn(5, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(AvgPool()(maps), F.avg_pool2d(maps, 2))


def test_adaptive_pooling_changes_nothing_at_32_pixels():
    network = make("resnet18-w8", CIFAR, dtype=torch.float64)
    batch = images(CIFAR, dtype=torch.float64)
    last_map = network.body[:-2](batch)
    torch.testing.assert_close(network.features(batch), F.avg_pool2d(last_map, 4).flatten(1))
    for name in ("vgg11", "alexnet", "alexcifar", "lenet"):
        layers = nets.build(name, CIFAR, 10, device="meta").modules()
        assert not any(isinstance(layer, torch.nn.AdaptiveAvgPool2d) for layer in layers)


def test_convnet_block_by_block():
    network = make("convnet-w4-d2-leakyrelu-maxpool", (3, 8, 8), dtype=torch.float64)
    maps = batch = images((3, 8, 8), dtype=torch.float64)
    for block in network.body[:2]:
        maps = F.conv2d(maps, block.conv.weight, block.conv.bias, padding=1)
        mean, variance = maps.mean((2, 3), keepdim=True), maps.var((2, 3), keepdim=True, correction=0)
        maps = (maps - mean) / (variance + 1e-5).sqrt()
        maps = torch.where(maps > 0, maps, 0.01 * maps)
        maps = maps.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    torch.testing.assert_close(network.features(batch), maps.flatten(1))


def test_frepo_conv_norms_before_every_convolution_but_the_first():
    network = make("frepo_conv-in-w4-d2", (3, 8, 8), dtype=torch.float64)
    batch = images((3, 8, 8), dtype=torch.float64)
    first, second = network.body[:2]
    assert not hasattr(first, "norm")
    assert second.conv.out_channels == 2 * first.conv.out_channels
    maps = F.avg_pool2d(first.conv(batch).relu(), 2)
    maps = (maps - maps.mean((2, 3), keepdim=True)) / (maps.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(network.features(batch), F.avg_pool2d(second.conv(maps).relu(), 2).flatten(1))
    remembered = [
        module.momentum for module in make("frepo_conv-bn-w4", CIFAR).modules() if hasattr(module, "momentum")
    ]
    assert remembered == [0.9, 0.9]


def test_grey_28_pixels_are_padded_to_32():
    for name in ("convnet-w4", "alexnet-w4", "vgg11-w4", "frepo_conv-none-w4", "alexcifar-w4", "lenet"):
        grey, wide = make(name, GREY), nets.build(name, (1, 32, 32), 10)
        wide.load_state_dict(grey.state_dict())
        batch = images(GREY)
        expected = wide.eval()(F.pad(batch, (2, 2, 2, 2)))
        torch.testing.assert_close(grey.eval()(batch), expected, msg=name)
    first = make("convnet-w4", GREY).body[0].conv
    assert first(images(GREY)).shape[2:] == (32, 32)


# ---------------------------------------------------------------------------------------------- norms


@pytest.mark.parametrize(
    "name", [n for n in REVIEW if not n.endswith("bn")] + ["convnet-ln", "resnet18-ln", "vgg11-gn"]
)
def test_without_batch_norm_an_image_is_alone_and_has_no_mode(name):
    network = make(f"{name}-w8", CIFAR)
    batch = images(CIFAR, 4)
    torch.testing.assert_close(network(batch)[:1], network(batch[:1]), rtol=1e-5, atol=1e-6)
    assert torch.equal(network(batch), network.eval()(batch))
    assert not list(network.buffers())


def test_batch_norm_depends_on_the_batch_while_training_only():
    network = make("convnet-bn-w8", CIFAR)
    batch = images(CIFAR, 4)
    assert not torch.allclose(network(batch)[:2], network(batch[:2]), atol=1e-3)
    network.eval()
    torch.testing.assert_close(network(batch)[:2], network(batch[:2]), rtol=1e-5, atol=1e-6)


def test_instance_norm_ignores_the_scale_of_a_convolution():
    network = make("convnet-w8", CIFAR, dtype=torch.float64)
    batch = images(CIFAR, dtype=torch.float64)
    before = network(batch)
    with torch.no_grad():
        network.body[1].conv.weight.mul_(1000)
        network.body[1].conv.bias.mul_(1000)
        network.body[0].conv.weight.mul_(1000)
        network.body[0].conv.bias.mul_(1000)
    torch.testing.assert_close(network(batch), before, rtol=1e-3, atol=1e-3)


def test_group_and_layer_norm():
    maps = images((8, 5, 5), dtype=torch.float64)

    def whitened(x, dims):
        return (x - x.mean(dims, keepdim=True)) / (x.var(dims, keepdim=True, correction=0) + 1e-5).sqrt()

    grouped = whitened(maps.view(3, 4, 2, 5, 5), (2, 3, 4)).view_as(maps)
    torch.testing.assert_close(norm_layer("gn", 8).double()(maps), grouped)
    torch.testing.assert_close(norm_layer("ln", 8).double()(maps), whitened(maps, (1, 2, 3)))
    layer = norm_layer("ln", 8, (5, 5)).double()
    assert layer.weight.shape == (8, 5, 5)
    torch.testing.assert_close(layer(maps), whitened(maps, (1, 2, 3)))


def test_resnet_without_norm_has_biases():
    network = nets.build("resnet18-none-w8", CIFAR, 10)
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(conv.bias is not None for conv in convolutions)
    assert all(conv.bias is None for conv in nets.build("resnet18-in-w8", CIFAR, 10).modules()
               if isinstance(conv, torch.nn.Conv2d))  # fmt: skip
