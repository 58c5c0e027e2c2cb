"""Many networks at once are the same networks as one by one, and leave each other alone."""

import math
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from plain_training import generators, one_by_one

import bench.augment
import bench.nets
import bench.train.batches
from bench.api import NetSpec
from bench.errors import Diverged, UserError
from bench.train import predict, train
from bench.train.batches import Batches
from bench.train.recipe import Recipe, resolve
from bench.train.trainer import choose_stack

SPEC = NetSpec(norm="in", width=4, depth=2)
SEEDS = (3, 1, 2)


def sgd(parameters, rate):
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=5e-4)


def same(handle, e, network, tolerance=1e-10):
    """Assert that network e of the handle has the weights and running statistics of a network trained alone."""
    params, buffers = handle.network(e)
    expected = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    assert expected.keys() == {**params, **buffers}.keys()
    for name, value in {**params, **buffers}.items():
        torch.testing.assert_close(value, expected[name].detach().to(value.dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("stack", ["vmap", "loop"])
@pytest.mark.parametrize(("norm", "augment"), [("in", "none"), ("bn", "dsa:color_scale_rotate"), ("none", "none")])
def test_stacked_sgd_is_one_by_one_sgd(info, images, labels, stack, norm, augment):
    spec = SPEC.model_copy(update={"norm": norm})
    recipe = Recipe(epochs=5, batch=3, lr=0.05, augment=augment)  # 7 images in batches of 3: the last has one
    handle = train(spec, images, labels, recipe, generators(*SEEDS), info=info, stack=stack)
    assert handle.stack == stack
    for e, seed in enumerate(SEEDS):
        network = one_by_one(
            spec, info, images, labels, seed, rates=[0.05] * 4 + [0.005] * 2, reset_after=4, batch=3,
            augment=augment, make=sgd,
        )  # fmt: skip
        same(handle, e, network)
        test = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
        logits = predict(handle, test.split(4))
        assert (logits.shape, logits.dtype) == ((3, 6, 3), torch.float32)
        torch.testing.assert_close(logits[e], network(test).detach().float())


@pytest.mark.parametrize("stack", ["vmap", "loop"])
def test_stacked_adam_is_one_by_one_adam(info, images, labels, stack):
    recipe = Recipe(optimiser="adam", lr=0.01, epochs=3, batch=4, schedule="constant", weight_decay=0.01)
    handle = train(SPEC, images, labels, recipe, generators(*SEEDS), info=info, stack=stack)
    for e, seed in enumerate(SEEDS):
        network = one_by_one(
            SPEC, info, images, labels, seed, rates=[0.01] * 3, batch=4,
            make=lambda p, lr: torch.optim.Adam(p, lr, weight_decay=0.01),
        )  # fmt: skip
        same(handle, e, network)


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("probabilities", F.cross_entropy),
        ("centred", lambda z, y: 0.5 * ((z - y) ** 2).sum(1).mean()),
        ("logits", F.l1_loss),
    ],
)
def test_float_labels(info, images, kind, reference):
    soft = torch.softmax(torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), 1)
    recipe = Recipe(epochs=2, schedule="constant", batch=4)
    handle = train(SPEC, images, soft, recipe, generators(1, 2), info=info, label_kind=kind, stack="vmap")
    for e, seed in enumerate((1, 2)):
        network = one_by_one(
            SPEC, info, images, soft, seed, rates=[0.01] * 2, batch=4, loss=reference, make=sgd
        )  # fmt: skip
        same(handle, e, network)


@pytest.mark.parametrize("stack", ["vmap", "loop"])
@pytest.mark.parametrize("decay", [0.995, 0.6])
def test_the_average_is_that_of_the_weights_after_each_epoch(info, images, labels, decay, stack):
    """The mean of all epochs so far; from the epoch on whose share would be below 1 - decay, a moving average."""
    spec = SPEC.model_copy(update={"norm": "bn"})
    recipe = Recipe(epochs=6, batch=4, lr=0.05, schedule="half_warmup")
    after, seen = [], []

    def keep(rows):
        return lambda epoch, handle: rows.append({k: v.detach().clone() for k, v in handle.params.items()})

    plain = train(spec, images, labels, recipe, generators(*SEEDS), info=info, stack=stack, on_epoch=keep(after))
    recipe = recipe.model_copy(update={"average": decay})
    handle = train(spec, images, labels, recipe, generators(*SEEDS), info=info, stack=stack, on_epoch=keep(seen))
    for name, found in handle.params.items():
        expected = after[0][name]
        for t, weights in enumerate(after):  # the released code: decay_t = min(decay, 1 - 1 / (1 + t))
            rate = min(decay, 1 - 1 / (1 + t))
            expected = rate * expected + (1 - rate) * weights[name]
            torch.testing.assert_close(seen[t][name], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        if decay == 0.995:
            mean = torch.stack([weights[name] for weights in after]).mean(0)
            torch.testing.assert_close(found, mean, rtol=1e-12, atol=1e-12)
        assert not found.requires_grad
    assert (handle.params["head.weight"] - plain.params["head.weight"]).abs().max() > 1e-3
    assert all(torch.equal(handle.buffers[name], value) for name, value in plain.buffers.items())


def cut_and_mixed(images, labels, probability, rng):
    """CutMix of one batch, with plain numbers; returns the images, the other labels and their weight."""
    used, lam, row, column = torch.rand(4, generator=rng).tolist()
    other = torch.randperm(len(images), generator=rng)
    half = int(8 * math.sqrt(1 - lam)) // 2 if used < probability else 0
    top, bottom = max(int(8 * row) - half, 0), min(int(8 * row) + half, 8)
    left, right = max(int(8 * column) - half, 0), min(int(8 * column) + half, 8)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[other][..., top:bottom, left:right]
    return mixed, labels[other], (bottom - top) * (right - left) / 64


@pytest.mark.parametrize("stack", ["vmap", "loop"])
def test_cutmix_is_the_weighted_loss_of_both_labels(info, images, labels, stack):
    recipe = Recipe(epochs=6, batch=3, schedule="step", milestones=(2 / 3, 5 / 6), gamma=0.2, augment="idc", cutmix=0.6)
    handle = train(SPEC, images, labels, recipe, generators(*SEEDS), info=info, stack=stack)
    transform = bench.augment.get("idc:color_crop_scale_rotate")
    for e, seed in enumerate(SEEDS):
        rng = torch.Generator().manual_seed(seed)
        network = bench.nets.build(SPEC, info.shape, info.classes)
        bench.nets.initialise(network, rng, SPEC.init)
        network = network.double()
        optimiser = sgd(network.parameters(), 0.01)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [4, 5], 0.2)
        for _ in range(6):
            for index in torch.randperm(7, generator=rng).split(3):
                x, other, share = cut_and_mixed(transform(images[index], rng), labels[index], 0.6, rng)
                optimiser.zero_grad()
                logits = network(x)
                own, foreign = F.cross_entropy(logits, labels[index]), F.cross_entropy(logits, other)
                ((1 - share) * own + share * foreign).backward()
                optimiser.step()
            scheduler.step()
        same(handle, e, network)


def test_cutmix_mixes_float_labels_and_leaves_outliers_alone(info, images):
    soft = torch.softmax(torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), 1)
    recipe = Recipe(epochs=2, schedule="constant", batch=4, cutmix=1.0)
    outliers = torch.full((4, 1, 8, 8), 7.0, dtype=torch.float64)
    data = Batches(images, soft, outliers, bench.augment.get("none"), generators(3, 4), recipe.cutmix)
    index = torch.stack([torch.randperm(7, generator=rng)[:4] for rng in generators(3, 4)])
    found, target = next(data.batches(data.shuffled(4)))
    assert torch.equal(found[:, 4:], outliers.expand(2, -1, -1, -1, -1))
    assert not (found[:, :4] == 7).any()
    torch.testing.assert_close(target.sum(2), torch.ones(2, 4, dtype=torch.float64))
    assert not torch.equal(target, soft[index])
    handle = train(
        SPEC, images, soft, recipe, generators(3), info=info, label_kind="probabilities", outliers=outliers,
        outlier_weight=0.5,
    )  # fmt: skip
    assert bool(handle.finite().all())


@pytest.mark.parametrize("strategy", ["none", "dsa:color_crop_cutout_flip_scale_rotate", "dc:crop_scale_rotate_noise"])
@pytest.mark.parametrize("outliers", [None, 5])
def test_steps_augmented_together_are_those_augmented_one_by_one(images, strategy, outliers, monkeypatch):
    """7 images in batches of 3 and 1, three steps of one size in each piece, two networks that draw for themselves."""
    soft = torch.softmax(torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), 1)
    outliers = outliers and torch.randn(outliers, 1, 8, 8, dtype=torch.float64)

    def found(ahead):
        monkeypatch.setattr(bench.train.batches, "AHEAD", ahead)
        data = Batches(images, soft, outliers, bench.augment.get(strategy), generators(3, 4), 0.5)
        return list(data.batches(islice(data.shuffled(3), 10)))

    alone, together = found(1), found(2 * 3 * 64 * 3)
    assert [len(target[0]) for _, target in alone] == ([3, 3, 1] * 4)[:10] if outliers is None else [3, 3] * 5
    assert len(together) == 10
    for (one, its), (other, theirs) in zip(alone, together, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)
        assert torch.equal(theirs, its)


@pytest.mark.parametrize("stack", ["vmap", "loop"])
def test_a_network_depends_on_its_own_generator_only(info, images, labels, stack):
    recipe = Recipe(epochs=3, batch=3, augment="dsa:color_scale_rotate", cutmix=0.5)
    together = train(SPEC, images, labels, recipe, generators(*SEEDS), info=info, stack=stack)
    for e, seed in enumerate(SEEDS):
        alone = train(SPEC, images, labels, recipe, generators(seed), info=info, stack=stack)
        for name, value in alone.params.items():
            torch.testing.assert_close(together.params[name][e], value[0], rtol=1e-11, atol=1e-12)


def test_same_generators_same_bytes_and_other_seeds_other_networks(info, images, labels):
    recipe = Recipe(epochs=2, batch=3)
    first, again, other = (
        train(SPEC, images.float(), labels, recipe, generators(*seeds), info=info) for seeds in ((0, 1), (0, 1), (0, 2))
    )
    assert all(torch.equal(first.params[name], again.params[name]) for name in first.params)
    assert torch.equal(first.params["head.weight"][0], other.params["head.weight"][0])
    assert not torch.equal(first.params["head.weight"][1], other.params["head.weight"][1])


def test_the_global_generator_is_left_alone(info, images, labels):
    before = torch.get_rng_state()
    train(SPEC, images, labels, Recipe(epochs=1, augment="dsa:color_scale_rotate"), generators(0), info=info)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("stack", ["vmap", "loop"])
@pytest.mark.parametrize("norm", ["in", "bn"])
def test_a_network_that_diverges_harms_no_other(info, images, labels, stack, norm):
    def poison(epoch, handle):
        if epoch == 1:
            with torch.no_grad():
                handle.params["head.weight"][1].fill_(math.nan)

    spec = SPEC.model_copy(update={"norm": norm})
    run = lambda hook: train(  # noqa: E731
        spec, images.float(), labels, Recipe(epochs=3), generators(*SEEDS), info=info, stack=stack, on_epoch=hook
    )
    healthy, ill = run(None), run(poison)
    assert ill.finite().tolist() == [True, False, True]
    logits, expected = predict(ill, [images.float()]), predict(healthy, [images.float()])
    assert torch.equal(logits[[0, 2]], expected[[0, 2]])
    assert bool(logits[1].isnan().all())


def test_all_networks_diverged(info, images, labels):
    with pytest.raises(Diverged, match="all 2 evaluation networks"):
        train(SPEC, images, labels, Recipe(epochs=200, lr=1e200), generators(0, 1), info=info)


def test_ordered_steps_are_an_ordinary_sgd_loop_bit_for_bit(info, images, labels):
    images = images.float()
    steps, rates = torch.tensor([[0, 2, 4], [1, 3, 5], [0, 2, 4], [6, 6, 1]]), torch.tensor([0.3, 0.1, 0.2, 0.05])
    handle = train(
        SPEC, images, labels, resolve("dd"), generators(4, 5), info=info, steps=steps, rates=rates, stack="loop"
    )
    for e, seed in enumerate((4, 5)):
        network = bench.nets.build(SPEC, info.shape, info.classes)
        bench.nets.initialise(network, *generators(seed), SPEC.init)
        for index, rate in zip(steps, rates.tolist(), strict=True):
            network.zero_grad()
            F.cross_entropy(network(images[index]), labels[index]).backward()
            torch.optim.SGD(network.parameters(), lr=rate).step()
        same(handle, e, network, tolerance=0.0)


def test_ordered_steps_are_demanded(info, images, labels):
    with pytest.raises(UserError, match="the set has none"):
        train(SPEC, images, labels, resolve("dd"), generators(0), info=info)


def test_learned_rate(info, images, labels):
    recipe = Recipe(epochs=2, schedule="constant", lr="learned")
    learned = train(SPEC, images, labels, recipe, generators(0), info=info, rate=0.03)
    plain = train(SPEC, images, labels, Recipe(epochs=2, schedule="constant", lr=0.03), generators(0), info=info)
    assert torch.equal(learned.params["head.weight"], plain.params["head.weight"])
    for rate in (None, -0.1, math.nan):
        with pytest.raises(UserError, match=r"learned rate|rate of this set"):
            train(SPEC, images, labels, recipe, generators(0), info=info, rate=rate)


@pytest.mark.parametrize("stack", ["vmap", "loop"])
@pytest.mark.parametrize("augment", ["none", "dsa:color_crop_cutout_scale_rotate"])
@pytest.mark.parametrize("count", [5, 11])
def test_outliers_are_trained_to_be_uniform(info, images, labels, stack, augment, count):
    """Two loaders side by side, each with a shuffle and augmentations of its own; the shorter one ends an epoch."""
    rng = torch.Generator().manual_seed(8)
    outliers = torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=rng)
    recipe = Recipe(epochs=2, batch=3, schedule="constant", momentum=0.0, weight_decay=0.0, augment=augment)
    handle = train(
        SPEC, images, labels, recipe, generators(0, 1), info=info, outliers=outliers, outlier_weight=0.5, stack=stack
    )
    transform, uniform = bench.augment.get(augment), torch.full((count, 3), 1 / 3, dtype=torch.float64)
    for e, seed in enumerate((0, 1)):
        (rng,) = generators(seed)
        network = bench.nets.build(SPEC, info.shape, info.classes)
        bench.nets.initialise(network, rng, SPEC.init)
        network.double()
        steps = 0
        for _ in range(2):
            orders = [torch.randperm(size, generator=rng).split(3) for size in (7, count)]
            for i, o in zip(*orders, strict=False):
                network.zero_grad()
                loss = F.cross_entropy(network(transform(images[i], rng)), labels[i])
                exposure = F.cross_entropy(network(transform(outliers[o], rng)), uniform[: len(o)])
                (loss + 0.5 * exposure).backward()
                torch.optim.SGD(network.parameters(), lr=0.01).step()
                steps += 1
        assert steps == (4 if count == 5 else 6)
        same(handle, e, network)


def test_the_recipe_decides_whether_outliers_are_used(info, images, labels):
    recipe = Recipe(epochs=1, schedule="constant")
    args = (SPEC, images, labels)
    without = train(*args, recipe, generators(0), info=info)
    outliers = images.flip(0)
    found = {
        weight: train(
            *args, recipe.model_copy(update={"outlier_weight": weight}), generators(0), info=info,
            outliers=outliers, outlier_weight=0.5,
        ).params["head.weight"]
        for weight in (0.0, 0.5, "set")
    }  # fmt: skip
    assert torch.equal(found[0.0], without.params["head.weight"])
    assert torch.equal(found[0.5], found["set"])
    assert not torch.equal(found[0.5], found[0.0])


def test_curves_and_epochs(info, images, labels):
    seen = []
    handle = train(
        SPEC, images, labels, Recipe(epochs=6, lr=0.05), generators(0, 1), info=info,
        on_epoch=lambda epoch, handle: seen.append((epoch, handle.epochs)),
    )  # fmt: skip
    assert seen == [(epoch, 7) for epoch in range(1, 8)]
    assert handle.curves["epoch"].tolist() == list(range(1, 8))
    assert handle.curves["loss"].shape == (2, 7)
    # one batch per epoch: the first point is the loss of the fresh networks
    fresh = train(SPEC, images, labels, Recipe(epochs=1, schedule="constant", lr=1e-12), generators(0, 1), info=info)
    expected = [F.cross_entropy(z, labels) for z in predict(fresh, [images]).double()]
    torch.testing.assert_close(handle.curves["loss"][:, 0], torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert bool((handle.curves["loss"][:, -1] < handle.curves["loss"][:, 0]).all())


def test_long_curves_are_averaged(info, images, labels):
    handle = train(SPEC, images[:1], labels[:1], Recipe(steps=401, schedule="constant"), generators(0), info=info)
    assert handle.curves["loss"].shape == (1, 134)
    assert handle.curves["epoch"][-1] == 401


def test_length_in_steps_may_end_within_an_epoch(info, images, labels):
    recipe = Recipe(steps=4, batch=3, schedule="constant", weight_decay=0.0)
    handle = train(SPEC, images, labels, recipe, generators(0), info=info)
    assert handle.epochs == 2
    longer = train(SPEC, images, labels, recipe.model_copy(update={"steps": 6}), generators(0), info=info)
    assert not torch.equal(handle.params["head.bias"], longer.params["head.bias"])


def test_bf16_is_close_to_fp32(info, images, labels):
    full, half = (
        train(SPEC, images.float(), labels, Recipe(epochs=1, precision=precision), generators(0), info=info)
        for precision in ("fp32", "bf16")
    )
    a, b = full.params["head.weight"], half.params["head.weight"]
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, rtol=0, atol=5e-3)


def test_initialisation_of_the_recipe(info, images, labels):
    recipe = Recipe(epochs=1, schedule="constant", lr=1e-30, momentum=0.0, weight_decay=0.0, init="lecun")
    handle = train(SPEC, images, labels, recipe, generators(0), info=info)
    assert not handle.params["head.bias"].abs().gt(1e-20).any()
    assert handle.spec.init == "lecun"


def test_choice_of_stacking():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_stack("auto", cpu, NetSpec(width=32), (1, 8, 8), 10) == "vmap"
    assert choose_stack("auto", cpu, NetSpec(width=128), (3, 32, 32), 10) == "loop"
    assert choose_stack("auto", gpu, NetSpec(width=128), (3, 32, 32), 256) == "vmap"
    assert choose_stack("loop", gpu, NetSpec(width=128), (3, 32, 32), 256) == "loop"


@pytest.mark.parametrize("stack", ["vmap", "loop"])
def test_testing_in_pieces_is_testing_at_once(monkeypatch, info, images, labels, stack):
    handle = train(SPEC, images, labels, Recipe(epochs=1), generators(*SEEDS), info=info, stack=stack)
    at_once = predict(handle, [images, images[:2]])
    monkeypatch.setattr("bench.train.step.PIECE", 2 * 4 * 64)
    torch.testing.assert_close(predict(handle, [images, images[:2]]), at_once)
    assert predict(handle, [images[:0]]).shape == (3, 0, 3)
