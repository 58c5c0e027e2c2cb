"""The small generator: its sizes, its loss against closed forms, and what it learns of real digits."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributions import Normal, kl_divergence

import bench.data
from bench.api import TaskSpec
from bench.errors import UserError
from bench.nets import prior_file, resolve
from bench.nets.prior import Encoder, SmallPrior, default_channels, draw, from_tensors, to_tensors
from bench.task import LiveTask
from methods import generator
from methods.generator import ENCODER, JUDGE, Generator, GeneratorFile, difference, divergence, need, psnr


@pytest.mark.parametrize(
    ("shape", "channels", "parameters", "maps"),
    [
        ((1, 28, 28), (128, 64, 32), 0.38, [(128, 7), (64, 14), (64, 14), (32, 28), (32, 28), (1, 28)]),
        (
            (3, 32, 32),
            (128, 128, 64, 32),
            0.71,
            [(128, 4), (128, 8), (128, 8), (64, 16), (64, 16), (32, 32), (32, 32), (3, 32)],
        ),
        ((1, 8, 8), (64, 32), 0.13, [(64, 4), (32, 8), (32, 8), (1, 8)]),
        ((3, 64, 64), (128, 128, 128, 64, 32), 1.0, None),
    ],
)
def test_sizes(shape, channels, parameters, maps):
    assert default_channels(shape) == channels
    network = SmallPrior(shape, 10, channels)
    draw(network, torch.Generator().manual_seed(0))
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(parameters * 1e6, rel=0.05)
    styles = network.map(torch.randn(2, 64), torch.tensor([0, 9]))
    assert styles.shape == (2, len(network.layers) + 1, 128)
    assert network(styles).shape == (2, *shape)
    if maps:
        assert [tuple(network.to_f(styles, n + 1).shape[1:3]) for n in range(len(network.layers))] == maps
    mean, log_variance = Encoder(network, 32)(torch.randn(2, *shape), torch.tensor([0, 9]))
    assert mean.shape == log_variance.shape == (2, 64)


def test_noise_and_class_count_by_direction_alone():
    network = SmallPrior((1, 8, 8), 4, (4, 4))
    draw(network, torch.Generator().manual_seed(0))
    z, classes = torch.randn(4, 64), torch.arange(4)
    styles = network.map(z, classes)
    torch.testing.assert_close(network.map(z * 7, classes), styles, rtol=1e-5, atol=1e-6)
    assert (network.map(z, classes.flip(0)) - styles).abs().max() > 0.1


def test_the_divergence_is_that_of_normal_distributions():
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(divergence(mean, log_variance), expected)
    assert divergence(torch.zeros(5, 7), torch.zeros(5, 7)) == 0


def test_the_difference_is_of_three_sizes():
    a, b = torch.rand(3, 2, 8, 8), torch.rand(3, 2, 8, 8)
    expected = 0.0
    for side in (1, 2, 4):
        small = [x.unfold(2, side, side).unfold(3, side, side).mean((4, 5)) for x in (a, b)]
        expected += float((small[0] - small[1]).abs().mean())
    assert float(difference(a, b)) == pytest.approx(expected)


def test_tensors_are_the_generator(tmp_path):
    network = SmallPrior((3, 16, 16), 5, (6, 5, 4), z_dim=3, w_dim=9)
    draw(network, torch.Generator().manual_seed(0))
    save_file(to_tensors(network), tmp_path / "generator.safetensors")
    again = from_tensors(load_file(tmp_path / "generator.safetensors"))
    assert (again.shape, again.classes, again.z_dim, again.training) == ((3, 16, 16), 5, 3, False)
    assert not any(weight.requires_grad for weight in again.parameters())
    styles = network.map(torch.randn(2, 3), torch.tensor([0, 4]))
    assert torch.equal(again(styles), network(styles))


@pytest.mark.parametrize("damage", ["config", "generator/constant", "shape", "kind"])
def test_other_tensors_are_refused(damage):
    tensors = to_tensors(SmallPrior((1, 8, 8), 4, (4, 4)))
    if damage in tensors:
        del tensors[damage]
    elif damage == "shape":
        tensors["generator/constant"] = torch.zeros(2, 2)
    else:
        tensors["config"] = torch.tensor(list(b'{"kind": "other"}'), dtype=torch.uint8)
    with pytest.raises(UserError, match="not a generator"):
        from_tensors(tensors)


# ------------------------------------------------------------------------------------------- trained on digits


def digits_task(seed=0):
    info = bench.data.info("digits")
    return LiveTask(TaskSpec(dataset=info, ipc=None, network=resolve(JUDGE, info.shape), seed=seed))


SHORT = {"epochs": 6, "batch": 32, "width": 16, "largest": 32}


@pytest.fixture(scope="module")
def trained():
    return Generator(Generator.Params(**SHORT)).build(digits_task())


def images_of(tensors, per_class=50):
    network, labels = from_tensors(tensors), torch.arange(10).repeat_interleave(per_class)
    z = torch.randn(len(labels), 64, generator=torch.Generator().manual_seed(9))
    return (network(network.map(z, labels)) + 1) / 2, labels


def nearest_mean(images, labels):
    """Return the share of images (pixels) that are nearest to the mean real digit of their class."""
    train = digits_task().data.train
    means = torch.stack([train.pixels(train.class_index(c)).mean(0) for c in range(10)])
    return float((torch.cdist(images.flatten(1), means.flatten(1)).argmin(1) == labels).float().mean())


def test_drawn_images_look_like_their_class(trained):
    """By a rule that shares nothing with the generator, nor with the network that judges it."""
    test = digits_task().data.test
    assert 0.85 < nearest_mean(test.pixels(), test.labels) < 0.95, "of real test images, about nine in ten"
    images, labels = images_of(trained)
    assert nearest_mean(images, labels) > 0.7
    assert float(trained["consistency"]) > 0.7
    assert float(trained["judge"]) > 0.9
    # digits, not means of digits: they differ within a class
    spread = images.unflatten(0, (10, 50)).std(1).mean()
    real = torch.stack(
        [digits_task().data.train.pixels(digits_task().data.train.class_index(c)).std(0) for c in range(10)]
    )
    assert spread > 0.3 * real.mean()


def test_test_images_come_back_better_than_as_the_mean_of_their_class(trained):
    task = digits_task()
    train, test = task.data.train, task.data.test
    means = torch.stack([train.pixels(train.class_index(c)).mean(0) for c in range(10)])
    baseline = -10 * (test.pixels() - means[test.labels]).square().mean().log10()
    assert float(trained["psnr"]) > float(baseline) + 0.5
    network = from_tensors(trained)
    encoder = Encoder(network, 16)
    encoder.load_state_dict({k.removeprefix(ENCODER): v for k, v in trained.items() if k.startswith(ENCODER)})
    z = encoder(test.pixels() * 2 - 1, test.labels)[0]
    decoded = ((network(network.map(z, test.labels)) + 1) / 2).clamp(0, 1)
    expected = -10 * (decoded - test.pixels()).square().mean().log10()
    torch.testing.assert_close(psnr(task, network, encoder), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trained["psnr"], expected, rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_bytes_and_test_images_have_no_part():
    params = Generator.Params(epochs=1, width=4, largest=8)
    one, blind = digits_task(), digits_task()
    test = blind.data.test
    test._pixels = test._pixels.flip(0).roll(3, 3)
    first, second = tensors_of(params, one), tensors_of(params, blind)
    same = {name for name, tensor in first.items() if torch.equal(tensor, second[name])}
    assert first.keys() - same == {"psnr", "judge"}
    drawn = [SmallPrior((1, 8, 8), 10, (8, 4)) for _ in range(2)]
    for seed, network in enumerate(drawn):
        draw(network, digits_task(seed).rng("generator"))
    assert not torch.equal(drawn[0].constant, drawn[1].constant)


def tensors_of(params, task):
    """Build without the check: one epoch is not enough for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "refuse_useless", lambda *_: None)
        patch.setattr(generator, "JUDGE_EPOCHS", 1)
        return Generator(params).build(task)


def test_a_random_generator_is_only_drawn(monkeypatch):
    monkeypatch.setattr(generator, "JUDGE_EPOCHS", 1)
    tensors = Generator(Generator.Params(training="random", width=4, largest=8)).build(digits_task())
    assert not any(name.startswith(ENCODER) for name in tensors)
    assert "psnr" not in tensors
    network = SmallPrior((1, 8, 8), 10, (8, 4))
    draw(network, digits_task().rng("generator"))
    assert torch.equal(from_tensors(tensors).constant, network.constant)
    assert float(tensors["consistency"]) < 0.4


def test_a_generator_that_did_not_learn_is_refused(monkeypatch):
    monkeypatch.setattr(generator, "JUDGE_EPOCHS", 1)
    with pytest.raises(UserError, match="did not learn the classes"):
        Generator(Generator.Params(epochs=1, lr=1e-9, width=4, largest=8)).build(digits_task())
    for classes, judge, least in ((10, 0.9, 0.26), (200, 0.305, 0.065)):
        generator.refuse_useless(least + 1e-6, judge, classes)
        with pytest.raises(UserError, match="test images"):
            generator.refuse_useless(least - 1e-6, judge, classes)


# ------------------------------------------------------------------------------------------- files


def test_a_generator_from_a_file_is_known_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path))
    network = SmallPrior((1, 8, 8), 4, (4, 4))
    draw(network, torch.Generator().manual_seed(0))
    tensors = to_tensors(network)
    prior_file.save(tmp_path / "generators" / "mine.safetensors", tensors)
    asked = need("mine.safetensors", 30)
    assert asked.artifact == "generator_file"
    assert need(str(tmp_path / "generators" / "mine.safetensors"), 30).params["content"] == asked.params["content"]
    built = GeneratorFile(GeneratorFile.Params(**asked.params)).build(None)
    assert all(torch.equal(built[name], tensor) for name, tensor in tensors.items())
    tensors["generator/constant"] = tensors["generator/constant"] + 1
    prior_file.save(tmp_path / "generators" / "mine.safetensors", tensors)
    assert need("mine.safetensors", 30).params["content"] != asked.params["content"]
    with pytest.raises(UserError, match="changed"):
        GeneratorFile(GeneratorFile.Params(**asked.params)).build(None)
    missing = need("other.safetensors", 30)
    assert missing.params["content"] is None
    with pytest.raises(UserError, match="no such generator"):
        GeneratorFile(GeneratorFile.Params(**missing.params)).build(None)


def test_other_files_are_refused_while_planning(tmp_path, monkeypatch):
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path))
    (tmp_path / "generators").mkdir()
    (tmp_path / "generators" / "text").write_text("no tensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "generators" / "plain")
    for name in ("text", "plain", "x" * 5000):
        with pytest.raises(UserError, match="not a generator of ddbench"):
            need(name, 30)
    for name in ("", "~nobody/x", "\0"):
        assert need(name, 30).params["content"] is None
