"""Latents of a generator: the decoding, its gradient against plain autograd, first values, rates, what is stored."""

from __future__ import annotations

import pytest
import torch
from prior_fakes import mini, task_with_prior
from torch import nn

from bench.api import Header
from bench.distilled import budget, load, save
from bench.errors import UserError
from bench.nets.prior import from_tensors, to_tensors
from methods.generator import ENCODER
from methods.glad import GladDC, GladDCParams
from methods.latents import Latents, class_table, cropping, depth
from methods.parametrise import Pixels

DOUBLE = torch.float64


def params(**changes):
    return GladDCParams(**{"layer": 2, "lr_w": 0.05, "decode_batch": 4} | changes)


def latents(make_task, ipc=2, **changes):
    task = task_with_prior(make_task, ipc=ipc)
    return Latents(task, task.artifact("generator"), params(**changes)), task


# ------------------------------------------------------------------------------------------- decoding and gradient


@pytest.mark.parametrize("n", range(5))
def test_a_generator_cut_after_any_layer_is_the_generator(n):
    prior = from_tensors(mini())
    assert len(prior.layers) == 4
    styles = prior.map(torch.randn(3, prior.z_dim, dtype=DOUBLE), torch.tensor([0, 1, 2]))
    styles = styles + torch.randn_like(styles)
    torch.testing.assert_close(prior.from_f(styles, prior.to_f(styles, n), n), prior(styles), rtol=1e-12, atol=1e-12)


def test_a_styled_convolution_is_that_of_styled_and_normalised_weights():
    """StyleGAN 2, section 2.2: a weight per image, scaled by its style, divided by the norm of what it became."""
    prior = from_tensors(mini())
    rng = torch.Generator().manual_seed(3)
    style = torch.randn(2, 7, generator=rng, dtype=DOUBLE)
    for layer, size in ((prior.layers[0], 4), (prior.layers[3], 8)):
        x = torch.randn(2, layer.weight.shape[1], size, size, generator=rng, dtype=DOUBLE)
        rows = []
        for image, row in zip(x, layer.style(style), strict=True):
            weight = layer.weight * row[None, :, None, None]
            if not layer.colours:
                weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
            y = nn.functional.conv2d(image[None], weight, layer.bias, padding=weight.shape[2] // 2)
            rows.append(y if layer.colours else nn.functional.leaky_relu(y, 0.2) * 2**0.5)
        torch.testing.assert_close(layer(x, style), torch.cat(rows), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("layer", [-1, 0, 2, 4])
def test_the_gradient_is_that_of_plain_autograd(make_task, chunk, layer):
    found, task = latents(make_task, layer=layer, decode_batch=chunk, learn_g=True)
    slope = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in found.learned.items()}
    prior = from_tensors(task.artifact("generator")).requires_grad_()
    weights = {n.removeprefix("generator/"): t for n, t in leaves.items() if n.startswith("generator/")}
    if layer < 0:
        images = torch.func.functional_call(prior, weights, (leaves["styles"],))
    else:
        cut = Cut(prior, layer)
        named = {f"prior.{name}": weight for name, weight in weights.items()}
        images = torch.func.functional_call(cut, named, (leaves["styles"], leaves["features"]))
    images = ((images + 1) / 2 - 0.5) / 0.25
    torch.testing.assert_close(found.images().detach(), images.detach(), rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(images, list(leaves.values()), slope, materialize_grads=True)
    for name, got, want in zip(leaves, found.pull(slope), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
    assert set(leaves) >= {"styles", "generator/constant"}


class Cut(nn.Module):
    """The part of a prior after layer n, as a module."""

    def __init__(self, prior, n):
        super().__init__()
        self.prior, self.n = prior, n

    def forward(self, styles, features):
        return self.prior.from_f(styles, features, self.n)


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_styles_before_the_cut_do_not_learn(make_task, layer):
    found, _ = latents(make_task, layer=layer)
    styles, _ = found.pull(torch.ones(6, 1, 8, 8, dtype=DOUBLE))
    assert torch.equal(styles[:, : layer + 1], torch.zeros_like(styles[:, : layer + 1]))
    assert (styles[:, layer + 1 :].abs().amax((0, 2)) > 0).all()


def test_an_update_is_a_step_of_sgd_with_a_rate_for_each_part(make_task):
    """Through an augmentation, twice, with momentum."""
    found, _ = latents(make_task, learn_g=True, lr_img=0.3, lr_w=0.02, lr_g=0.01)
    rates = {"styles": 0.02, "features": 0.3}
    state = {name: tensor.detach().clone() for name, tensor in found.learned.items()}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    slope = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    for _ in range(2):
        leaf = found.images()
        assert found.images() is leaf
        for name, gradient in zip(state, found.pull(slope.flip(3)), strict=True):
            velocity[name] = 0.5 * velocity[name] + gradient
            state[name] = state[name] - rates.get(name, 0.01) * velocity[name]
        found.update(leaf.flip(3), slope)
        for name, tensor in found.learned.items():
            torch.testing.assert_close(tensor.detach(), state[name], rtol=1e-10, atol=1e-12)


def test_styles_alone_take_the_rate_of_feature_maps(make_task):
    found, _ = latents(make_task, layer=-1, lr_img=0.7, lr_w=0.1)
    assert [group["lr"] for group in found.optimiser.param_groups] == [0.7]
    assert list(found.learned) == ["styles"]
    assert found.optimiser.param_groups[0]["momentum"] == 0.5


# ------------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize("channels", [1, 3])
def test_after_all_layers_latents_are_pixels(make_task, channels):
    """The cut after the last layer leaves the identity: a step of lr moves pixels by lr / (4 std^2)."""
    task = task_with_prior(make_task, shape=(channels, 8, 8))
    found = Latents(task, task.artifact("generator"), params(layer=4, lr_img=0.4))
    pixels = found.images().detach().clone()
    rate = 0.4 / (4 * 0.25**2)
    velocity, rng = torch.zeros_like(pixels), torch.Generator().manual_seed(1)
    for _ in range(3):
        slope = torch.randn(pixels.shape, generator=rng, dtype=DOUBLE)
        velocity = 0.5 * velocity + slope
        pixels = pixels - rate * velocity
        found.update(found.images(), slope)
        torch.testing.assert_close(found.images().detach(), pixels, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------- first values


def test_first_latents_are_the_generators_own_images(make_task):
    found, task = latents(make_task, ipc=3)
    z = torch.randn(9, 5, generator=twin(task, "init"), dtype=DOUBLE)
    prior = from_tensors(task.artifact("generator"))
    images = ((prior(prior.map(z, found.labels)) + 1) / 2 - 0.5) / 0.25
    torch.testing.assert_close(found.images().detach(), images, rtol=1e-10, atol=1e-10)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.counts == (3, 3, 3)


def twin(task, name):
    """Return a generator as the task's own was when it was made."""
    fresh = type(task)(task.spec, task.dataset, task.dtype, {})
    return fresh.rng(name)


def test_the_mean_style_is_that_of_a_thousand(make_task):
    found, task = latents(make_task, ipc=1, first="mean")
    prior, rng = from_tensors(task.artifact("generator")), twin(task, "init")
    for c in range(3):
        z = torch.randn(1000, 5, generator=rng, dtype=DOUBLE)
        expected = prior.map(z, torch.full((1000,), c)).mean(0)
        torch.testing.assert_close(found.styles[c].detach(), expected, rtol=1e-10, atol=1e-12)
    with pytest.raises(UserError, match="same latents"):
        latents(make_task, ipc=2, first="mean")


def test_encoded_real_images_are_where_the_encoder_puts_them(make_task):
    found, task = latents(make_task, first="real")
    from bench.nets.prior import Encoder

    prior = from_tensors(task.artifact("generator"))
    encoder = Encoder(prior, 2).double()
    encoder.load_state_dict(
        {k.removeprefix(ENCODER): v for k, v in task.artifact("generator").items() if k.startswith(ENCODER)}
    )
    rng = twin(task, "init")
    real = torch.cat([task.data.train.sample_class(c, 2, rng) for c in range(3)])
    pixels = real * 0.25 + 0.5
    expected = prior.map(encoder(pixels * 2 - 1, found.labels)[0], found.labels)
    torch.testing.assert_close(found.styles.detach(), expected, rtol=1e-6, atol=1e-8)
    task.artifacts["generator"] = {k: v for k, v in mini().items() if not k.startswith(ENCODER)}
    with pytest.raises(UserError, match="encoder"):
        Latents(task, task.artifact("generator"), params(first="real"))


def test_feature_maps_start_finite_and_within_ten(make_task):
    tensors = mini()
    tensors["generator/layers.1.bias"] = torch.tensor([0.0, 1e3, torch.nan, torch.inf], dtype=DOUBLE)
    task = task_with_prior(make_task)
    features = Latents(task, tensors, params()).features.detach()
    assert features.abs().max() == 10.0
    assert torch.equal(features[:, 2], torch.zeros_like(features[:, 2]))
    assert torch.equal(features[:, 3], torch.full_like(features[:, 3], 5.0))
    plain, _ = latents(make_task)
    torch.testing.assert_close(features[:, 0], plain.features.detach()[:, 0], rtol=1e-10, atol=1e-10)


def test_random_feature_maps_keep_mean_and_deviation_of_each_image(make_task):
    tensors = mini(channels=(6, 64))
    plain = Latents(task_with_prior(make_task), tensors, params()).features.detach().flatten(1)
    noise = Latents(task_with_prior(make_task), tensors, params(rand_f=True)).features.detach().flatten(1)
    size = plain.shape[1]
    assert size == 64 * 64
    error = 5 * plain.std(1) / size**0.5
    assert ((noise.mean(1) - plain.mean(1)).abs() < error).all()
    assert ((noise.std(1) - plain.std(1)).abs() < error).all()
    assert torch.corrcoef(torch.stack([noise[0], plain[0]]))[0, 1].abs() < 0.1


# ------------------------------------------------------------------------------------------- rates, depth, classes


@pytest.mark.parametrize("layer", [-1, 1, 3, 4])
def test_a_calibrated_first_step_moves_images_as_far_as_one_of_pixels(make_task, layer):
    found, task = latents(make_task, layer=layer, calibrate=True, lr_img=1e-4, lr_w=1e-5)
    before = found.images().detach().clone()
    train = task.data.train
    means = torch.stack([train.images(train.class_index(c)).mean(0) for c in range(3)]).repeat_interleave(2, 0)
    slope = before - means
    found.update(found.images(), slope)
    moved = found.images().detach() - before
    torch.testing.assert_close(moved.norm(), (1e-4 * slope).norm(), rtol=2e-3, atol=0)
    if layer > 0:
        w, f = (group["lr"] for group in found.optimiser.param_groups)
        assert w / f == pytest.approx(0.1)


def test_a_fraction_is_a_relative_depth():
    # the readme's layers of 25 convolutions, on eight layers with the one to colours
    assert [depth(fraction, 8) for fraction in (0.64, 0.8, 0.48, 0.13, 0.0, 1.0)] == [4, 6, 3, 1, 0, 7]
    assert [depth(layer, 8) for layer in (-1, 0, 8)] == [-1, 0, 8]
    for layer in (-2, 9):
        with pytest.raises(UserError, match="8 layers"):
            depth(layer, 8)


def test_classes_of_the_generator(make_task):
    info = make_task().spec.dataset
    assert list(class_table(None, 3, info)) == [0, 1, 2]
    assert class_table((7, 0, 7), 10, info) == (7, 0, 7)
    subset = info.model_copy(update={"family": "imagenet_a", "classes": 10})
    assert class_table(None, 1000, subset)[:2] == (255, 376)
    for given in (None, (1, 2), (0, 1, 10)):
        with pytest.raises(UserError, match="10 classes"):
            class_table(given, 10, info)


def test_images_are_cropped_and_made_grey():
    images = torch.arange(2 * 3 * 32 * 32.0).view(2, 3, 32, 32)
    assert torch.equal(cropping((3, 32, 32), (1, 28, 28))(images), images[:, :, 2:30, 2:30].mean(1, keepdim=True))
    assert torch.equal(cropping((3, 32, 32), (3, 32, 32))(images), images)
    for made, wanted in (((1, 8, 8), (3, 8, 8)), ((3, 32, 32), (3, 27, 32)), ((3, 32, 32), (3, 64, 64))):
        with pytest.raises(UserError, match="cannot stand"):
            cropping(made, wanted)


# ------------------------------------------------------------------------------------------- what is stored


def test_the_set_has_images_for_training_and_latents_to_go_on_with(make_task, tmp_path):
    method = GladDC(params(learn_g=True, batch_real=6, lr_g=0.01))
    method.start(task_with_prior(make_task))
    method.step()
    save(tmp_path / "set.safetensors", method.export())
    found = load(tmp_path / "set.safetensors")
    weights = {name: found.extra["latent/" + name] for name in method.set.learned}
    prior = from_tensors({**to_tensors(method.set.prior), **{k: v for k, v in weights.items() if "/" in k}})
    images = (prior.from_f(weights["styles"], weights["features"], 2) + 1) / 2
    torch.testing.assert_close(found.images, (images - 0.5) / 0.25, rtol=1e-4, atol=1e-5)
    first, now = mini()["generator/layers.2.weight"], weights["generator/layers.2.weight"]
    assert (now - first).abs().max() > 1e-6, "the generator learned"
    size = sum(value.numel() for value in weights.values())
    assert budget(found) == {"stored": 6 * 64, "decoded": 6 * 64, "raw": 6 * 64, "latent": size}
    assert isinstance(found.header, Header)
    method = GladDC(params(keep_latents=False))
    method.start(task_with_prior(make_task))
    assert method.export().extra.keys() == method.task.data.tensors().keys()


def test_one_sgd_for_pixels_is_the_parametrisation_pixels(make_task):
    method = GladDC(params(space="p"))
    method.start(make_task())
    assert isinstance(method.set, Pixels)
    assert GladDC.needs(params(space="p"), method.task.spec) == {}
