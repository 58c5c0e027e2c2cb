"""Names of networks: reading, writing, defaults by image size, and refusals that say what to do."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import nets
from bench.api import NetSpec
from bench.errors import UserError
from bench.nets.spec import architecture

CIFAR, MNIST, TINY, DIGITS = (3, 32, 32), (1, 28, 28), (3, 64, 64), (1, 8, 8)


def test_planning_needs_no_torch():
    program = (
        "import sys\n"
        "from bench import nets\n"
        "for name in nets.names(): nets.describe(name); nets.label(nets.resolve(nets.parse(name), (3, 32, 32)))\n"
        "assert not {'torch', 'scipy', 'pandas'} & set(sys.modules), 'heavy import'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", nets.names())
def test_every_architecture_is_described(name):
    facts = nets.describe(name)
    assert facts["title"]
    assert facts["citation"]
    assert facts["norm"] == facts["norms"][0]


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("convnet", {}),
        ("convnet-bn", {"norm": "bn"}),
        ("resnet18_ap-in", {"arch": "resnet18_ap", "norm": "in"}),
        ("convnet-none-w32-d2", {"norm": "none", "width": 32, "depth": 2}),
        ("convnet-swish-nopool", {"activation": "swish", "pooling": "none"}),
        ("convnet-lecun", {"init": "lecun"}),
        ("frepo_conv", {"arch": "frepo_conv", "init": "lecun"}),
        ("alexcifar", {"arch": "alexcifar", "init": "xavier"}),
    ],
)  # fmt: skip
def test_short_names(text, fields):
    assert nets.parse(text) == NetSpec(**fields)
    assert nets.parse(fields) == NetSpec(**fields)


def test_default_norms_and_sizes():
    norms = {name: nets.resolve(nets.parse(name), CIFAR).norm for name in nets.names()}
    assert {norms[name] for name in ("convnet", "vgg11", "resnet18", "resnet18_ap")} == {"in"}
    assert norms["alexnet"] == "none"
    depths = {size: nets.resolve(NetSpec(), (3, size, size)).depth for size in (8, 16, 28, 32, 64, 128, 256)}
    assert depths == {8: 2, 16: 2, 28: 2, 32: 3, 64: 4, 128: 5, 256: 6}
    assert nets.resolve(NetSpec(), MNIST).depth == 3
    assert nets.resolve(NetSpec(arch="resnet18"), CIFAR).depth is None


def test_labels_name_what_differs():
    assert nets.label(NetSpec()) == "convnet-in"
    assert nets.label(nets.resolve(NetSpec(), CIFAR)) == "convnet-in"
    assert nets.label(NetSpec(width=32, depth=2)) == "convnet-in-w32-d2"
    assert nets.label(nets.resolve(NetSpec(), TINY)) == "convnet-in-d4"
    assert nets.label(nets.resolve(NetSpec(), TINY), TINY) == "convnet-in"
    assert nets.label(nets.parse("lenet")) == "lenet"
    assert nets.label(nets.parse("alexnet")) == "alexnet-none"


@st.composite
def specs(draw):
    arch = draw(st.sampled_from(nets.names()))
    known = architecture(arch)
    fields = {"arch": arch, "norm": draw(st.sampled_from(known.norms))}
    fields["init"] = draw(st.sampled_from(["torch", "lecun", "xavier"]))
    if known.width:
        fields["width"] = 8 * draw(st.integers(1, 20))
    if known.depth:
        fields["depth"] = draw(st.integers(1, 3))
        fields["activation"] = draw(st.sampled_from(["relu", "leakyrelu", "sigmoid", "swish"]))
        fields["pooling"] = draw(st.sampled_from(["avg", "max", "none"]))
    return NetSpec(**fields)


@given(spec=specs(), shape=st.sampled_from([CIFAR, MNIST, TINY, DIGITS]))
@settings(max_examples=200, deadline=None)
def test_label_and_parse_are_inverse(spec, shape):
    resolved = nets.resolve(spec, shape)
    assert nets.resolve(nets.parse(nets.label(resolved, shape)), shape) == resolved
    assert nets.resolve(resolved, shape) == resolved


@pytest.mark.parametrize(
    ("network", "shape", "words"),
    [
        ("convent", CIFAR, ["convent", "did you mean 'convnet'"]),
        ("convnet-bm", CIFAR, ["'bm'", "known: ", "bn"]),
        ("convnet-leakrelu", CIFAR, ["did you mean 'leakyrelu'"]),
        ("convnet-bn-in", CIFAR, ["norm twice"]),
        ({"arch": "convnet", "widht": 32}, CIFAR, ["widht", "width"]),
        ({"arch": "convnet", "norm": "instance"}, CIFAR, ["norm", "instance"]),
        ({"arch": "convnet", "width": "32"}, CIFAR, ["width"]),
        ({"arch": 3}, CIFAR, ["arch"]),
        ("convnet-w0", CIFAR, ["width"]),
        ("convnet-d6", CIFAR, ["depth 6", "greatest depth is 5"]),
        ("convnet-d4", DIGITS, ["depth 4", "8x8", "greatest depth is 3"]),
        ("convnet-gn-w30", CIFAR, ["width 30", "multiple of 4", "32"]),
        ("alexnet-gn-w4", CIFAR, ["multiple of 8"]),
        ("lenet-w8", CIFAR, ["no choice of width"]),
        ("resnet18-d3", CIFAR, ["no choice of depth"]),
        ("vgg11-maxpool", CIFAR, ["no choice of pooling"]),
        ("vgg11-swish", CIFAR, ["no choice of activation"]),
        ("mlp-bn", CIFAR, ["no norm 'bn'"]),
        ("resnet18", (3, 2, 2), ["2x2", "smallest side"]),
    ],
)
def test_refusals_name_the_thing_and_the_remedy(network, shape, words):
    with pytest.raises(UserError) as error:
        nets.resolve(nets.parse(network), shape)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_plug_in_must_be_an_architecture():
    with pytest.raises(UserError, match="Architecture"):
        nets.parse("bench.nets.spec:NORMS")
