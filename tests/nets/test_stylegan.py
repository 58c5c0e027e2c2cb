"""StyleGAN-XL's generator against plain arithmetic, and its checkpoint as a pickle from which nothing is run.

No checkpoint comes with the tests: they write files in the layout of the released code.
"""

from __future__ import annotations

import os
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import scipy.signal
import torch
from torch import nn

from bench.cli import convert_generator
from bench.errors import UserError
from bench.nets import prior_file
from bench.nets.prior import from_tensors, to_tensors
from bench.nets.stylegan import FilteredConv, FourierInput, StyleGANXL, downsample, upsample
from bench.nets.stylegan_pickle import convert

DOUBLE = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def padded(values, before, after):
    """Pad an axis with zeros, or crop it where a number is negative."""
    values = np.pad(values, (max(before, 0), max(after, 0)))
    return values[max(-before, 0) : len(values) - max(-after, 0)]


def filtered(row, taps, up, down, before, after):
    """One axis: zeros between the values, padding, the filter, every down-th value; and a gain of `up`."""
    spread = np.zeros(len(row) * up)
    spread[::up] = row
    values = padded(spread, before, after)
    return scipy.signal.upfirdn(taps * up, values, 1, 1)[len(taps) - 1 : len(values)][::down]


@pytest.mark.parametrize("up", [1, 2, 4])
@pytest.mark.parametrize("padding", [(9, 8, 9, 8), (-1, -3, 2, 0), (0, 1, -2, 5)])
def test_upsampling_is_zeros_between_padding_and_a_filter(up, padding):
    taps = torch.rand(6 * up, generator=rng(), dtype=DOUBLE)
    x = torch.randn(2, 3, 13, 12, generator=rng(1), dtype=DOUBLE)
    rows = np.apply_along_axis(filtered, 3, x.numpy(), taps.numpy(), up, 1, *padding[:2])
    expected = np.apply_along_axis(filtered, 2, rows, taps.numpy(), up, 1, *padding[2:])
    torch.testing.assert_close(upsample(x, taps, up, padding), torch.from_numpy(expected), rtol=1e-10, atol=1e-12)
    square = torch.outer(taps, taps)
    torch.testing.assert_close(upsample(x, square, up, padding), torch.from_numpy(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("down", [1, 2, 3])
def test_downsampling_is_a_filter_and_every_second_value(down):
    taps = torch.rand(5, generator=rng(), dtype=DOUBLE)
    x = torch.randn(2, 3, 15, 14, generator=rng(1), dtype=DOUBLE)
    rows = np.apply_along_axis(filtered, 3, x.numpy(), taps.numpy(), 1, down, 0, 0)
    expected = torch.from_numpy(np.apply_along_axis(filtered, 2, rows, taps.numpy(), 1, down, 0, 0))
    torch.testing.assert_close(downsample(x, taps, down), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(downsample(x, torch.outer(taps, taps), down), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(downsample(x, None, down), x[:, :, ::down, ::down])
    # a filter that is not its own mirror image, on one side only
    lopsided = torch.randn(3, 4, generator=rng(2), dtype=DOUBLE)
    expected = scipy.signal.convolve2d(x[0, 0].numpy(), lopsided.numpy(), "valid")[::down, ::down]
    torch.testing.assert_close(downsample(x, lopsided, down)[0, 0], torch.from_numpy(expected))


@pytest.mark.parametrize(("side", "up", "down", "clamp"), [(3, 2, 2, None), (1, 4, 2, 0.5), (3, 1, 1, None)])
def test_a_layer_is_convolution_nonlinearity_and_two_filters(side, up, down, clamp):
    filters = [[6 * factor] if factor > 1 else None for factor in (up, down)]
    layer = FilteredConv(5, 4, 3, side, up, down, (5, 4, 5, 4), clamp, False, *filters)
    layer = randomised(layer)
    x, style = (torch.randn(*shape, generator=rng(s), dtype=DOUBLE) for s, shape in enumerate([(2, 4, 8, 8), (2, 5)]))
    images = []
    for image, row in zip(x, style, strict=True):
        scale = layer.style.weight @ row / 5**0.5 + layer.style.bias
        weight = layer.weight * scale[:, None, None]
        weight = weight / weight.square().sum((1, 2, 3), keepdim=True).sqrt() / layer.magnitude.sqrt()
        y = nn.functional.conv2d(image[None], weight, layer.bias, padding=side - 1)[0].detach().numpy()
        taps = [np.ones(1) if taps is None else taps.numpy() for taps in (layer.up_filter, layer.down_filter)]
        for axis in (1, 2):
            y = np.apply_along_axis(filtered, axis, y, taps[0], up, 1, 5, 4)
        y = np.where(y > 0, y, 0.2 * y) * 2**0.5
        y = y if clamp is None else np.clip(y, -clamp, clamp)
        for axis in (1, 2):
            y = np.apply_along_axis(filtered, axis, y, taps[1], 1, down, 0, 0)
        images.append(torch.from_numpy(y))
    torch.testing.assert_close(layer(x, style), torch.stack(images), rtol=1e-6, atol=1e-7)


def test_the_last_layer_is_linear_and_keeps_the_scale_of_the_style():
    layer = randomised(FilteredConv(5, 4, 3, 1, 1, 1, (-1, -1, -2, 0), 256.0, True, None, None))
    x, style = torch.randn(2, 4, 6, 6, dtype=DOUBLE), torch.randn(2, 5, dtype=DOUBLE)
    scale = (style @ layer.style.weight.T / 5**0.5 + layer.style.bias) / 2
    y = torch.einsum("nihw,ni,oi->nohw", x, scale, layer.weight[:, :, 0, 0]) / layer.magnitude.sqrt()
    expected = (y + layer.bias[:, None, None])[:, :, 2:, 1:-1]
    torch.testing.assert_close(layer(x, style), expected)
    torch.testing.assert_close(layer(1e6 * x, style).abs().max(), torch.tensor(256.0, dtype=DOUBLE))


def test_the_input_is_waves_that_the_style_turns_and_moves():
    layer = randomised(FourierInput(5, 6, (8, 10), 4.0, 1.0))
    layer.transform.copy_(torch.tensor([[0.9, 0.2, 0.1], [-0.1, 1.1, -0.3], [0, 0, 1]], dtype=DOUBLE))
    style = torch.randn(2, 5, generator=rng(4), dtype=DOUBLE)
    found = layer(style).detach()
    for n in range(2):
        c, s, tx, ty = (layer.motion.weight @ style[n] / 5**0.5 + layer.motion.bias).tolist()
        size = (c * c + s * s) ** 0.5
        c, s, tx, ty = c / size, s / size, tx / size, ty / size
        turn, move = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]), np.array([[1, 0, -tx], [0, 1, -ty], [0, 0, 1]])
        whole = turn @ move @ layer.transform.numpy()
        waves = []
        for frequency, phase in zip(layer.frequencies.numpy(), layer.phases.numpy(), strict=True):
            moved = frequency @ whole[:2, :2]
            fade = np.clip(1 - (np.linalg.norm(moved) - 1.0) / (4.0 / 2 - 1.0), 0, 1)
            y, x = np.meshgrid((np.arange(8) - 3.5) / 4, (np.arange(10) - 4.5) / 4, indexing="ij")
            angle = moved[0] * x + moved[1] * y + phase + frequency @ whole[:2, 2]
            waves.append(np.sin(2 * np.pi * angle) * fade)
        expected = np.einsum("ij,jhw->ihw", layer.weight.detach().numpy(), np.stack(waves)) / 6**0.5
        torch.testing.assert_close(found[n], torch.from_numpy(expected), rtol=1e-9, atol=1e-10)


def randomised(module, seed=0):
    """Fill a module with random numbers; magnitudes are positive."""
    generator, module = rng(seed), module.double()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("magnitude"):
                tensor.copy_(torch.rand((), generator=generator) + 0.5)
            else:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    return module


# ------------------------------------------------------------------------------------------- a whole one

TAPS = {"up_filter": [12], "down_filter": [12]}
LAYER = {"w_dim": 8, "side": 3, "up": 2, "down": 2, "clamp": 256.0, "colours": False, **TAPS}
ARGUMENTS = {
    "shape": [3, 16, 16],
    "classes": 5,
    "z_dim": 6,
    "scale": 0.25,
    "embedding": [5, 7],
    "projection": {"before": 7, "after": 6, "gain": 7**-0.5, "bias_gain": 1.0},
    "mapping": [
        {"before": 12, "after": 8, "gain": 0.01 * 12**-0.5, "bias_gain": 0.01},
        {"before": 8, "after": 8, "gain": 0.01 * 8**-0.5, "bias_gain": 0.01},
    ],
    "input": {"w_dim": 8, "channels": 4, "size": [20, 20], "rate": 16.0, "bandwidth": 2.0},
    "layers": [
        {**LAYER, "before": 4, "after": 4, "padding": [9, 8, 9, 8]},
        {**LAYER, "before": 4, "after": 3, "padding": [9, 8, 9, 8], "down_filter": [12, 12]},
        {**LAYER, "before": 3, "after": 3, "side": 1, "up": 1, "down": 1, "padding": [-2, -2, -2, -2], "colours": True,
         "up_filter": None, "down_filter": None},
    ],
}  # fmt: skip


def network():
    return randomised(StyleGANXL(ARGUMENTS)).float().requires_grad_(False)


def test_it_can_be_cut_after_any_layer():
    prior = network().double()
    styles = prior.map(torch.randn(2, 6, dtype=DOUBLE), torch.tensor([0, 4]))
    styles = styles + torch.randn(styles.shape, generator=rng(), dtype=DOUBLE)
    images = prior(styles)
    assert images.shape == (2, 3, 16, 16)
    for n in range(4):
        torch.testing.assert_close(prior.from_f(styles, prior.to_f(styles, n), n), images)
    assert torch.equal(from_tensors(to_tensors(prior))(styles), images)


def test_images_do_not_depend_on_those_beside_them():
    prior = network().double()
    styles = prior.map(torch.randn(3, 6, dtype=DOUBLE), torch.tensor([0, 4, 2])) * torch.tensor([[[1.0]], [[9]], [[3]]])
    torch.testing.assert_close(prior(styles)[:1], prior(styles[:1]), rtol=1e-10, atol=1e-12)


def test_noise_and_class_become_one_style():
    prior = network().double()
    z = torch.randn(2, 6, generator=rng(), dtype=DOUBLE)
    y = prior.embedding[[1, 3]] @ prior.projection.weight.T * 7**-0.5 + prior.projection.bias
    y = torch.where(y > 0, y, 0.2 * y)
    x = torch.cat([v / v.square().mean(1, keepdim=True).sqrt() for v in (z, y)], 1)
    for layer, size in zip(prior.mapping, (12, 8), strict=True):
        x = x @ layer.weight.T * 0.01 / size**0.5 + 0.01 * layer.bias
        x = torch.where(x > 0, x, 0.2 * x) * 2**0.5
    styles = prior.map(z, torch.tensor([1, 3]))
    assert styles.shape == (2, 4, 8)
    torch.testing.assert_close(styles, x[:, None].expand(-1, 4, -1), rtol=1e-6, atol=1e-8)


# ------------------------------------------------------------------------------------------- the pickle


class Stored:
    """A network as the authors' files hold it: a function of their code, given its source and its state."""

    def __init__(self, name, state):
        self.name, self.state = name, state

    def __reduce__(self):
        source = "raise AssertionError('the source in the file was run')"
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": self.name, "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


class EasyDict(dict):
    """The authors' kind of dict."""


@pytest.fixture
def authors(monkeypatch):
    """Modules with the names that the authors' files refer to."""
    for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the authors' code was run")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    sys.modules["dnnlib.util"].EasyDict = EasyDict
    monkeypatch.setattr(EasyDict, "__module__", "dnnlib.util")


def part(name, parameters=(), buffers=(), modules=(), **attributes):
    named = {"_parameters": parameters, "_buffers": buffers, "_modules": modules}
    return Stored(name, {**attributes, **{key: OrderedDict(value) for key, value in named.items()}})


def linear(module, activation):
    gains = {"weight_gain": np.float64(module.gain), "bias_gain": module.bias_gain, "activation": activation}
    return part("FullyConnectedLayer", {"weight": nn.Parameter(module.weight), "bias": module.bias}, **gains)


def checkpoint(prior, **changes):
    """Return a generator as the authors' objects. changes: attributes of it that are otherwise."""
    embed = nn.Embedding(9, 7)
    with torch.no_grad():
        embed.weight[:5] = prior.embedding
    mapping = {f"fc{k}": linear(layer, "lrelu") for k, layer in enumerate(prior.mapping)}
    mapping |= {"embed": embed, "embed_proj": linear(prior.projection, "lrelu")}
    wave = prior.input
    layers = {
        "input": part(
            "SynthesisInput",
            {"weight": wave.weight},
            {"freqs": wave.frequencies, "phases": wave.phases, "transform": wave.transform},
            {"affine": linear(wave.motion, "linear")},
            channels=4,
            size=np.array([20, 20]),
            sampling_rate=np.float64(16.0),
            bandwidth=2.0,
        )
    }
    for k, layer in enumerate(prior.layers):
        layers[f"L{k}"] = part(
            "SynthesisLayer",
            {"weight": layer.weight, "bias": layer.bias},
            {"magnitude_ema": layer.magnitude, "up_filter": layer.up_filter, "down_filter": layer.down_filter},
            {"affine": linear(layer.style, "linear")},
            up_factor=layer.up,
            down_factor=layer.down,
            padding=list(layer.padding),
            conv_clamp=int(layer.clamp),
            is_torgb=layer.colours,
        )
    names = [name for name in layers if name != "input"]
    synthesis = part("SynthesisNetwork", modules=layers, layer_names=names, num_ws=4, output_scale=0.25)
    attributes = {"z_dim": 6, "c_dim": 5, "w_dim": 8, "img_resolution": 16, "img_channels": 3, **changes}
    parts = {"mapping": part("MappingNetwork", modules=mapping, num_layers=2), "synthesis": synthesis}
    return part("Generator", modules=parts, **attributes)


def write(path, generator, **others):
    path.write_bytes(pickle.dumps({"G_ema": generator, **others}))
    return path


def test_a_checkpoint_becomes_the_generator_it_holds(authors, tmp_path):
    prior = network()
    extra = {"D": nn.Conv2d(1, 1, 1), "augment_pipe": None, "training_set_kwargs": EasyDict(class_name="x", a=[1])}
    found = from_tensors(convert(write(tmp_path / "a.pkl", checkpoint(prior), **extra)))
    assert isinstance(found, StyleGANXL)
    assert found.arguments == ARGUMENTS
    assert found.state_dict().keys() == prior.state_dict().keys()
    for name, tensor in prior.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    styles = prior.map(torch.randn(2, 6), torch.tensor([0, 4]))
    assert torch.equal(found(styles), prior(styles))


class Harm:
    """Code that a pickle can ask to be run when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("where", ["beside", "within", "tensor"])
def test_nothing_in_the_file_is_run(authors, tmp_path, where):
    target = tmp_path / "made"
    harm = Harm(os.mkdir, str(target))
    if where == "tensor":  # a pickle in the pickle, as stored tensors are
        harm = Harm(torch.storage._load_from_bytes, pickle.dumps(Harm(os.mkdir, str(target))))
    beside = {} if where == "within" else {"D": harm}
    changes = {"z_dim": harm} if where == "within" else {}
    path = write(tmp_path / "a.pkl", checkpoint(network(), **changes), **beside)
    if where == "beside":
        convert(path)
    else:
        with pytest.raises(UserError):
            convert(path)
    assert not target.exists()
    with pytest.raises(AssertionError, match="was run"):
        pickle.loads(write(tmp_path / "b.pkl", checkpoint(network())).read_bytes())
    Harm(os.mkdir, str(target)).call[0](str(target))
    assert target.exists(), "the harm is real"


@pytest.mark.parametrize(
    "damage", ["empty", "text", "no network", "no classes", "a layer less", "other activation", "missing"]
)
def test_other_files_are_refused(authors, tmp_path, damage):
    path, stored = tmp_path / "a.pkl", checkpoint(network())
    synthesis, mapping = (stored.state["_modules"][name].state for name in ("synthesis", "mapping"))
    if damage == "no classes":
        stored.state["c_dim"] = 0
    elif damage == "a layer less":
        del synthesis["_modules"][synthesis["layer_names"].pop()]
    elif damage == "other activation":
        mapping["_modules"]["fc0"].state["activation"] = "relu"
    write(path, stored)
    if damage in ("empty", "text"):
        path.write_text("" if damage == "empty" else "no pickle")
    elif damage == "no network":
        path.write_bytes(pickle.dumps({"G": stored}))
    elif damage == "missing":
        path.unlink()
    with pytest.raises(UserError, match=r"a\.pkl"):
        convert(path)


# ------------------------------------------------------------------------------------------- the command


def test_the_command_refuses_without_trust_and_converts_with_it(authors, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path))
    path = write(tmp_path / "toy.pkl", checkpoint(network()))
    with pytest.raises(UserError, match=r"pickle.*--trust"):
        convert_generator.command(path)
    assert not list(tmp_path.glob("**/*.safetensors"))
    convert_generator.command(path, trust=True)
    target = tmp_path / "generators" / "toy.safetensors"
    assert "3x16x16 images of 5 classes, 3 layers" in capsys.readouterr().out
    found = from_tensors(prior_file.load(target, prior_file.known_content(target)))
    assert torch.equal(found.layers[0].weight, network().layers[0].weight)
    convert_generator.command(path, tmp_path / "other" / "b.safetensors", trust=True)
    assert (tmp_path / "other" / "b.safetensors").read_bytes() == target.read_bytes()
