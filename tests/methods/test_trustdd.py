"""TrustDD on DSA and DM against plain loops in float64: two sets, their groups, their losses, their reductions."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from test_dc import run

import bench.data
import bench.distilled
from bench.api import NetSpec
from bench.data import Batch
from bench.data.outliers import CORRUPTIONS, Corrupted
from bench.errors import MissingData, UserError
from bench.train.recipe import resolve
from methods.dm import DM
from methods.dsa import DSA, DSAParams
from methods.matching import group_gradients, match_gradients
from methods.outliers import SLICE, Foreign, Pseudo
from methods.trustdd import TrustDDOE, TrustDDPOE
from methods.trustdd_more import TrustDDPOEDM

DOUBLE = torch.float64
STRATEGY = "dsa:color_crop_cutout_scale_rotate"
KINDS = ("jigsaw", "invert", "pixelate", "gauss-speckle")
SMALL = {"iterations": 9, "outer_loop": 2, "inner_loop": 2, "batch_real": 6, "batch_train": 4, "lr_net": 0.1}
TASK = {"classes": 4, "shape": (1, 10, 10), "dtype": DOUBLE}  # four cells to pixelate, not one
FOREIGN = torch.randint(256, (35, 1, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def poe(**params):
    return TrustDDPOE(TrustDDPOE.Params(**SMALL | {"batch_outliers": 7} | params))


def oe(**params):
    return TrustDDOE(TrustDDOE.Params(**SMALL | {"batch_outliers": 7, "source": "debug"} | params))


def with_foreign(make_task, **arguments):
    return make_task(artifacts={"outliers": {"images": FOREIGN}}, **arguments)


# ------------------------------------------------------------------------------------------------ plain references


def stored_copies(task):
    """Return a function that draws real outliers: the corrupted training sets are made once and kept."""
    seed = int(torch.randint(2**31, (), generator=task.rng("corruptions")))
    size = task.data.train.size
    copies = [Corrupted(task.data, seed).images(kind, torch.arange(size)) for kind in KINDS]
    return lambda group, count, rng: copies[group % 4][torch.randperm(size, generator=rng)[:count]]


def slices(task):
    """Return a function that draws real outliers: equal parts of the foreign images, shuffled once."""
    groups = task.spec.dataset.classes
    size = len(FOREIGN) // groups
    order = torch.randperm(len(FOREIGN), generator=task.rng("slices"))
    images = task.data.forward(FOREIGN.float() / 255).double()

    def draw(group, count, rng):
        part = order[group * size : (group + 1) * size]
        return images[part[torch.randperm(size, generator=rng)[:count]]]

    return draw


def siamese(task, real, leaf, stream):
    """Return real and synthetic images of every group under one augmentation per group."""
    draw = task.augment.draw((len(real), *leaf.shape[2:]), task.rng(stream), groups=len(real), shared=True)
    groups = [torch.cat([batch, leaf[c]]) for c, batch in enumerate(real)]
    counts = [len(group) for group in groups]
    augmented = task.augment.apply(torch.cat(groups), draw, counts=counts).split(counts)
    return [(part[: len(batch)], part[len(batch) :]) for part, batch in zip(augmented, real, strict=True)]


def exposure(logits):
    """Return the loss of outlier exposure, as the papers write it."""
    return -(logits.mean(1) - logits.logsumexp(1)).mean()


def distance(network, pair, losses):
    sides = [torch.autograd.grad(loss(network(part)), network.parameters(), create_graph=True) for part, loss in
             zip(pair, losses, strict=True)]  # fmt: skip
    pairs = [(a.detach().flatten(1), b.flatten(1)) for a, b in zip(*sides, strict=True) if a.dim() > 1]
    return sum((1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum() for a, b in pairs)


class Momentum:
    """Plain SGD with momentum on one tensor."""

    def __init__(self, value, rate, momentum):
        self.value, self.velocity, self.rate, self.momentum = value, None, rate, momentum

    def step(self, gradient):
        self.velocity = gradient if self.velocity is None else self.momentum * self.velocity + gradient
        self.value = self.value - self.rate * self.velocity


def start(task, p, pool):
    classes, ipc = task.spec.dataset.classes, task.spec.ipc
    inside = torch.stack([task.data.train.sample_class(c, ipc, task.rng("init")) for c in range(classes)])
    outside = torch.stack([pool(c, p.per_group or ipc, task.rng("outlier init")) for c in range(classes)])
    return Momentum(inside, p.lr_img, p.momentum), Momentum(outside, p.lr_img, p.momentum)


def match_both(task, p, pool, inside, outside, compare):
    """Update both sets under one network; compare(pair, group or None) is the distance of a class or of outliers."""
    classes = task.spec.dataset.classes
    for part, stream in ((inside, "augment"), (outside, "outlier augment")):
        leaf = part.value.clone().requires_grad_()
        if part is inside:
            real = [task.data.train.sample_class(c, p.batch_real, task.rng("real")) for c in range(classes)]
        else:
            real = [pool(c, p.batch_outliers, task.rng("real outliers")) for c in range(classes)]
        pairs = siamese(task, real, leaf, stream)
        total = sum(compare(pair, c if part is inside else None) for c, pair in enumerate(pairs))
        part.step(torch.autograd.grad(total, leaf)[0])


def reference(task, p, steps, pool):
    """TrustDD on DSA as its pseudo-code says: a loop over classes, a loop over groups, training on both."""
    pool = pool(task)
    inside, outside = start(task, p, pool)
    network = task.network()
    weights, ipc = list(network.parameters()), task.spec.ipc

    def compare(pair, c):
        losses = exposure if c is None else lambda logits: F.cross_entropy(logits, torch.full((len(logits),), c))
        return distance(network, pair, [losses, losses])

    for _ in range(steps):
        task.initialise(network, task.rng("network"))
        for update in range(p.outer_loop):
            match_both(task, p, pool, inside, outside, compare)
            if update == p.outer_loop - 1:
                continue
            labels = torch.arange(task.spec.dataset.classes).repeat_interleave(ipc)
            sets = inside.value.flatten(0, 1), outside.value.flatten(0, 1)
            for _ in range(p.inner_loop):
                orders = [
                    torch.randperm(len(images), generator=task.rng(name)).split(p.batch_train)
                    for images, name in zip(sets, ("order", "outlier order"), strict=True)
                ]
                for i, o in zip(*orders, strict=False):
                    loss = F.cross_entropy(network(task.augment(sets[0][i], task.rng("augment network"))), labels[i])
                    seen = task.augment(sets[1][o], task.rng("outlier augment network"))
                    loss = loss + p.outlier_weight * exposure(network(seen))
                    found = torch.autograd.grad(loss, weights)
                    with torch.no_grad():
                        for weight, slope in zip(weights, found, strict=True):
                            weight -= p.lr_net * slope
    return inside.value.flatten(0, 1), outside.value.flatten(0, 1)


def both(method, task, steps):
    """Run a method; return its two sets and what was logged."""
    images, log = run(method, task, steps)
    return images, method.set.outside.images().detach().clone(), log


@pytest.mark.parametrize(
    ("augment", "options"),
    [("none", {"classes": "per_class"}), (STRATEGY, {"classes": "joint"}), (STRATEGY, {"per_group": 1})],
)
def test_ten_steps_are_those_of_the_plain_loop(make_task, augment, options):
    method = poe(**options)
    inside, outside, log = both(method, make_task(augment=augment, **TASK), 10)
    expected = reference(make_task(augment=augment, **TASK), method.params, 10, stored_copies)
    torch.testing.assert_close(inside, expected[0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(outside, expected[1], rtol=1e-6, atol=1e-8)
    assert torch.stack([step["outlier_loss"] for step in log]).min() > 0


def test_ten_steps_with_foreign_outliers(make_task):
    method, make = oe(), {"dtype": DOUBLE, "augment": STRATEGY, "classes": 3}
    inside, outside, log = both(method, with_foreign(make_task, **make), 10)
    expected = reference(with_foreign(make_task, **make), method.params, 10, slices)
    torch.testing.assert_close(inside, expected[0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(outside, expected[1], rtol=1e-6, atol=1e-8)
    assert log[0]["real_images"] == 2 * 3 * (6 + 7)
    assert log[0]["synthetic_images"] == 2 * (6 + 6)
    assert log[0]["network_steps"] == 2 * 2


def test_the_loss_of_outliers_is_cross_entropy_with_uniform_labels(make_task):
    """The gradient of OE by the logits is softmax - 1/K over the number of images."""
    task = make_task(dtype=DOUBLE)
    network = task.network()
    task.initialise(network, task.rng("network"))
    images = torch.randn(5, 1, 8, 8, dtype=DOUBLE, generator=task.rng("images"))
    names = [name for name, _ in network.named_parameters()]
    batch = Batch(images, torch.full((5, 3), 1 / 3, dtype=DOUBLE), (2, 3))
    for joint in (False, True):
        found = group_gradients(network, batch, names, joint=joint)
        for group, part in enumerate(images.split([2, 3])):
            logits = network(part)
            slope = (logits.softmax(1) - 1 / 3).detach() / len(part)
            expected = torch.autograd.grad(logits, network.parameters(), slope)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a[group], b)


# ------------------------------------------------------------------------------------------------ reductions


def test_without_weight_the_images_are_those_of_dsa(make_task):
    dsa, _ = run(DSA(DSAParams(**SMALL)), make_task(augment=STRATEGY), 3)
    for method in (poe(outlier_weight=0.0), poe(outlier_weight=0.0, per_group=1)):
        assert torch.equal(both(method, make_task(augment=STRATEGY), 3)[0], dsa)
    alone = with_foreign(make_task, augment=STRATEGY)
    assert torch.equal(both(oe(outlier_weight=0.0), alone, 3)[0], dsa)
    assert not torch.equal(both(poe(), make_task(augment=STRATEGY), 3)[0], dsa)


def test_without_training_the_weight_means_nothing(make_task):
    """Lambda acts through the network alone: with one update per network there is no training between."""
    once = {"outer_loop": 1}
    results = [both(poe(outlier_weight=weight, **once), make_task(), 3)[:2] for weight in (0.0, 0.5, 50.0)]
    dsa, _ = run(DSA(DSAParams(**SMALL | once)), make_task(), 3)
    for images, outside in results:
        assert torch.equal(images, dsa)
        assert torch.equal(outside, results[0][1])


def test_each_step_moves_its_own_set_alone(make_task):
    method = poe()
    method.start(make_task(augment=STRATEGY))
    task, sets = method.task, method.set
    task.initialise(method.model, task.rng("network"))
    method.real_images, method.losses = 0, []
    inside, outside = sets.images().detach().clone(), sets.outside.images().detach().clone()
    DSA.update_images(method)
    assert torch.equal(sets.outside.images(), outside)
    assert not torch.equal(sets.images(), inside)
    inside, weights = sets.images().detach().clone(), [weight.clone() for weight in method.model.parameters()]
    state = sets.inside.state_dict()["optimiser"]["state"][0]["momentum_buffer"]
    method.update_outliers(lambda real, synthetic: match_gradients(method.model, real, synthetic))
    assert torch.equal(sets.images(), inside)
    assert torch.equal(sets.inside.state_dict()["optimiser"]["state"][0]["momentum_buffer"], state)
    assert not torch.equal(sets.outside.images(), outside)
    assert all(torch.equal(a, b) for a, b in zip(weights, method.model.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------ groups


def test_group_c_has_the_corruption_c_mod_k(make_task):
    task = make_task(classes=10)
    pool = Pseudo(task, KINDS)
    for group in range(10):
        rng, twin = (torch.Generator().manual_seed(3) for _ in range(2))
        index = torch.randperm(task.data.train.size, generator=twin)[:9]
        expected = pool.corrupted.images(KINDS[group % 4], index)
        assert torch.equal(pool.draw(group, 9, rng), expected)


def test_a_batch_of_pseudo_outliers_is_of_all_classes(make_task):
    task = make_task(classes=10)
    train = task.data.train
    drawn = Pseudo(task, ["invert"]).draw(0, 100, torch.Generator().manual_seed(0))
    spoiled = task.data.forward(1 - train.pixels())
    owners = torch.cdist(drawn.flatten(1), spoiled.flatten(1)).argmin(1)
    assert len(owners.unique()) == 100
    assert len(train.labels[owners].unique()) == 10
    assert len(Pseudo(task, ["invert"]).draw(0, 10_000, torch.Generator())) == 200


def test_foreign_slices_are_disjoint_and_of_equal_size(make_task):
    task = make_task(classes=4, preprocessing="none")
    images = torch.arange(64, dtype=torch.uint8).repeat(40, 1).view(40, 1, 8, 8)
    images[:, 0, 0, 0] = torch.arange(40)
    drawn = [
        {round(float(image[0, 0, 0]) * 255) for image in pool.draw(group, 100, torch.Generator().manual_seed(s))}
        for pool in [Foreign(task, images, 4, 6)]
        for group in range(4)
        for s in range(2)
    ]
    assert [len(part) for part in drawn] == [6] * 8
    assert all(drawn[2 * group] == drawn[2 * group + 1] for group in range(4))
    assert len(set().union(*drawn)) == 24
    assert not torch.equal(Foreign(task, images, 4, 6).slices.flatten(), torch.arange(24))


def test_the_size_of_slices(make_task):
    task = make_task(classes=3)
    assert Foreign(task, FOREIGN, 3, None).slices.shape == (3, 11)
    assert Foreign(task, FOREIGN, 3, 5).slices.shape == (3, 5)
    many = torch.zeros(3 * SLICE + 50, 1, 1, 1, dtype=torch.uint8)
    assert Foreign(task, many, 3, None).slices.shape == (3, 10_000)
    for size, images in ((12, FOREIGN), (None, FOREIGN[:2])):
        with pytest.raises(UserError, match="more than the"):
            Foreign(task, images, 3, size)


def test_too_few_outliers_to_start_from(make_task):
    with pytest.raises(UserError, match="fewer than 12 outliers"):
        oe(per_group=12).start(with_foreign(make_task))
    method = oe(per_group=12, init="noise")
    method.start(with_foreign(make_task))
    assert method.set.outside.images().shape == (36, 1, 8, 8)


def test_corruptions_are_checked_at_the_start(make_task):
    with pytest.raises(UserError, match="in colour"):
        poe(corruptions=("rgb-ghost",)).start(make_task())
    method = poe(corruptions=tuple(CORRUPTIONS), iterations=0)
    both(method, make_task(shape=(3, 8, 8), classes=8), 1)


def test_foreign_outliers_come_from_elsewhere(make_task, monkeypatch, tmp_path):
    spec = make_task().spec.model_copy(update={"dataset": bench.data.info("mnist")})
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path))
    need = TrustDDOE.needs(oe(source="cifar10").params, spec)["outliers"]
    assert (need.artifact, need.params["shape"], need.params["half"]) == ("outside", (1, 28, 28), "train")
    assert need.task["dataset"].name == "cifar10"
    for source in ("mnist", "uniform", "jigsaw"):
        with pytest.raises(UserError, match=f"'{source}' is no"):
            TrustDDOE.needs(oe(source=source).params, spec)
    assert TrustDDOE.needs(TrustDDOE.Params(), spec)["outliers"].task["dataset"].shape == (3, 32, 32)
    with pytest.raises(MissingData, match="300K_random_images"):
        bench.data.require("300k")


# ------------------------------------------------------------------------------------------------ over DM


def poe_dm(**params):
    return TrustDDPOEDM(TrustDDPOEDM.Params(**{"iterations": 9, "batch_real": 6, "batch_outliers": 7} | params))


@pytest.mark.parametrize("augment", ["none", STRATEGY])
def test_ten_steps_of_dm_match_means_of_both(make_task, augment):
    method = poe_dm()
    inside, outside, log = both(method, make_task(augment=augment, **TASK), 10)
    task, p = make_task(augment=augment, **TASK), method.params
    pool = stored_copies(task)
    first, second = start(task, p, pool)
    for _ in range(10):
        network = task.network()
        task.initialise(network, task.rng("network"))

        def compare(pair, c, network=network):
            real, synthetic = (network.features(part).mean(0) for part in pair)
            return (real.detach() - synthetic).square().sum()

        match_both(task, p, pool, first, second, compare)
    torch.testing.assert_close(inside, first.value.flatten(0, 1), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(outside, second.value.flatten(0, 1), rtol=1e-8, atol=1e-10)
    assert (log[0]["real_images"], log[0]["synthetic_images"]) == (4 * (6 + 7), 16)


def test_the_images_of_dm_do_not_see_the_outliers(make_task):
    plain, _ = run(DM(DM.Params(iterations=9, batch_real=6)), make_task(augment=STRATEGY), 3)
    assert torch.equal(both(poe_dm(), make_task(augment=STRATEGY), 3)[0], plain)


# ------------------------------------------------------------------------------------------------ as any method

METHODS = {"poe": poe, "oe": oe, "poe_dm": poe_dm}


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(make_task, name):
    first, again, other = (
        both(METHODS[name](), with_foreign(make_task, seed=seed, augment=STRATEGY), 2) for seed in (0, 0, 1)
    )
    for k in (0, 1):
        assert torch.equal(first[k], again[k])
        assert not torch.equal(first[k], other[k])


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_ends_with_the_same_bytes(make_task, name):
    whole = both(METHODS[name](), with_foreign(make_task, augment=STRATEGY), 4)
    broken, method = with_foreign(make_task, augment=STRATEGY), METHODS[name]()
    run(method, broken, 2)
    state, generators = method.state_dict(), {key: g.get_state() for key, g in broken._generators.items()}
    method.step()  # the state must not follow
    fresh, method = with_foreign(make_task, augment=STRATEGY), METHODS[name]()
    method.start(fresh)
    method.load_state_dict(state)
    for key, generator in generators.items():
        fresh.rng(key).set_state(generator)
    for _ in range(2):
        method.step()
    assert torch.equal(method.set.images(), whole[0])
    assert torch.equal(method.set.outside.images(), whole[1])


@pytest.mark.parametrize("name", METHODS)
def test_the_result_holds_both_sets_and_says_what_they_cost(make_task, name, tmp_path):
    method = METHODS[name](outlier_weight=0.25)
    images, outside, _ = both(method, with_foreign(make_task), 1)
    distilled = method.export()
    method.step()
    bench.distilled.save(tmp_path / "set.safetensors", distilled)
    loaded = bench.distilled.load(tmp_path / "set.safetensors")
    assert torch.equal(loaded.images, images)
    assert torch.equal(loaded.outliers, outside)
    assert loaded.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (loaded.header.method, loaded.header.outlier_weight) == (f"trustdd_{name}", 0.25)
    assert loaded.header.floats == {"stored": 2 * 6 * 64, "decoded": 2 * 6 * 64, "raw": 6 * 64}
    recipe = resolve(loaded.header.native_recipe)
    assert (recipe.epochs, recipe.augment, recipe.outlier_weight) == (1000, "dsa", "set")


def test_whitened_and_standardised_outliers_are_in_the_space_of_the_images(make_task):
    for preprocessing in ("none", "zca-kornia"):
        task = make_task(preprocessing=preprocessing)
        method = poe(corruptions=("invert",))
        method.start(task)
        expected = task.data.forward(1 - task.data.train.pixels()).flatten(1)
        first = method.set.outside.images().detach().flatten(1)
        assert torch.cdist(first, expected).min(1).values.max() < 1e-2


def test_networks_with_batch_normalisation(make_task):
    bn = NetSpec(norm="bn", width=4, depth=1)
    for method in (poe(iterations=0), poe_dm(iterations=0)):
        both(method, make_task(network=bn), 1)


def test_defaults_are_the_released_ones():
    for kind in (TrustDDPOE, TrustDDOE):
        p = kind.Params()
        assert (p.outlier_weight, p.batch_outliers, p.per_group) == (0.5, 256, None)
        assert p.model_dump(include=set(DSAParams.model_fields)) == DSAParams().model_dump()
        assert (kind.augment, kind(p).steps) == ("dsa", 1001)
    assert TrustDDPOE.Params().corruptions == KINDS
    assert (TrustDDOE.Params().source, TrustDDOE.Params().slice, SLICE) == ("300k", None, 10_000)


@pytest.mark.parametrize(
    ("ipc", "loops"), [(1, (1, 1)), (2, (1, 1)), (5, (10, 50)), (10, (10, 50)), (20, (20, 25)), (50, (50, 10))]
)
def test_presets_are_the_released_loops(ipc, loops):
    for family in ("cifar10", "cifar100", "mnist"):
        for kind in (TrustDDPOE, TrustDDOE):
            preset = kind.preset(bench.data.info(family), ipc)
            assert preset.params == {"outer_loop": loops[0], "inner_loop": loops[1]}
            published = family == "cifar10" or (family == "cifar100" and kind is TrustDDPOE)
            assert (preset.source is not None) == (published and ipc > 1)
            kind.Params(**preset.params)
    assert TrustDDPOEDM.preset(bench.data.info("cifar10"), 10).source is None


def test_planning_needs_no_torch():
    code = "import sys, methods.trustdd_more, methods.outliers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
