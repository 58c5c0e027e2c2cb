"""RDD over DC and GLaD against plain per-sample loops in float64, what it reduces to, and the rules of its code."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from prior_fakes import task_with_prior
from test_dc import resume, run

from bench.api import TaskSpec
from bench.errors import Diverged
from methods.dc import DC, DCParams
from methods.glad import GladDC, GladDCParams
from methods.rdd import RDD, SUBSETS, GroupParams, RDDGlad, RDDGladParams, RDDParams, anchors
from methods.risk import group_risk, spread

DOUBLE = torch.float64
STRATEGY = "dsa:color_crop_cutout_flip_scale_rotate"


def small(**params):
    """Few images per batch, five batches in an epoch, a network that learns fast."""
    defaults = {"iterations": 10, "batch_real": 4, "batch_train": 5, "init": "real", "lr_net": 0.1, "lr_img": 0.1}
    return RDDParams(**(defaults | params))


# ------------------------------------------------------------------------------------------- ten steps


def plain_risk(losses, groups, p):
    """Mean and maximum over groups of the mean of the largest losses, sample by sample."""
    values = []
    for k in sorted(set(groups)):
        own = sorted(
            (x for x, g in zip(losses, groups, strict=True) if g == k), key=lambda x: float(x.detach()), reverse=True
        )
        mass = p.tail * len(own)
        whole = int(mass)
        total = sum(own[:whole], torch.zeros((), dtype=DOUBLE))
        if whole < len(own):
            total = total + (mass - whole) * own[whole]
        values.append(total / mass)
    return p.lambda_mean * sum(values) / len(values) + p.lambda_max * max(values, key=lambda x: float(x.detach()))


def train_plainly(task, network, images, labels, around, p, epochs):
    """Train a network under the risk, image by image."""
    weights = list(network.parameters())
    with torch.no_grad():
        there = [network.features(image[None])[0] for image in around]
        here = [network.features(image[None])[0] for image in images]
    groups = [min(range(len(there)), key=lambda k: float((x - there[k]).norm())) for x in here]
    for _ in range(epochs):
        kept = []
        for number, index in enumerate(torch.randperm(len(labels), generator=task.rng("order")).split(p.batch_train)):
            batch = task.augment(images[index], task.rng("augment network"))
            kept.append((batch, index.tolist()))
            loss = F.cross_entropy(network(batch), labels[index])
            if number % p.every == 0:
                pairs = [(image, i) for part, rows in kept for image, i in zip(part, rows, strict=True)]
                losses = [F.cross_entropy(network(image[None]), labels[i][None]) for image, i in pairs]
                loss, kept = loss + plain_risk(losses, [groups[i] for _, i in pairs], p), []
            found = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, slope in zip(weights, found, strict=True):
                    weight -= p.lr_net * slope


def gradient_gap(network, real, synthetic, label):
    """The distance of DC for one class, row by row."""
    weights, sides = list(network.parameters()), []
    for part in (real, synthetic):
        loss = F.cross_entropy(network(part), torch.full((len(part),), label))
        sides.append(torch.autograd.grad(loss, weights, create_graph=True))
    distance = torch.zeros((), dtype=DOUBLE)
    for a, b in zip(*sides, strict=True):
        if a.dim() > 1:
            for u, v in zip(a.detach().flatten(1), b.flatten(1), strict=True):
                distance = distance + 1 - u @ v / (u.norm() * v.norm() + 1e-6)
    return distance


def reference(task, p, steps):
    """RDD on pixels as its pseudo-code says; the images of a class are [ipc, c, h, w]."""
    classes, ipc, train = task.spec.dataset.classes, task.spec.ipc, task.data.train
    images = torch.stack([train.sample_class(c, ipc, task.rng("init")) for c in range(classes)])
    velocity, losses, network = None, [], task.network()

    def real(stream, size):
        return [train.sample_class(c, size, task.rng(stream)) for c in range(classes)]

    for _ in range(steps):
        task.initialise(network, task.rng("network"))
        total = 0.0
        for update in range(p.outer_loop):
            batches, leaf = real("real", p.batch_real), images.clone().requires_grad_()
            draw = task.augment.draw((classes, *images.shape[2:]), task.rng("augment"), groups=classes, shared=True)
            groups = [torch.cat([batch, leaf[c]]) for c, batch in enumerate(batches)]
            counts = [len(group) for group in groups]
            augmented = task.augment.apply(torch.cat(groups), draw, counts=counts).split(counts)
            matched, around = [part[:-ipc].detach() for part in augmented], [part[-ipc:] for part in augmented]
            distance = sum(gradient_gap(network, matched[c], around[c], c) for c in range(classes))
            (gradient,) = torch.autograd.grad(distance, leaf)
            total += float(distance.detach())
            velocity = gradient if velocity is None else p.momentum * velocity + gradient
            images = images - p.lr_img * velocity
            if update < p.outer_loop - 1:
                if p.pool == "fresh":
                    matched, around = real("pool", p.batch_real), images
                pool = [*matched, *real("pool", p.batch_real)]
                labels = torch.cat([torch.full((len(part),), i % classes) for i, part in enumerate(pool)])
                chosen = [part.detach()[pick(part.detach(), p.anchors, p.spread)] for part in around]
                train_plainly(task, network, torch.cat(pool), labels, torch.cat(chosen), p, p.inner_loop)
        losses.append(total / p.outer_loop / classes)
    return images.flatten(0, 1), losses


def pick(rows, most, rule):
    if len(rows) <= most:
        return list(range(len(rows)))
    chosen = [0]
    while len(chosen) < most:
        others, seen = [i for i in range(len(rows)) if i not in chosen], chosen[-1:] if rule == "last" else chosen
        chosen.append(max(others, key=lambda i, seen=seen: min(float((rows[i] - rows[k]).norm()) for k in seen)))
    return chosen


@pytest.mark.parametrize(
    ("options", "make"),
    [
        ({}, {"augment": STRATEGY}),
        ({"pool": "fresh", "tail": 0.3, "lambda_mean": 0.5, "inner_loop": 1}, {"augment": STRATEGY}),
        ({"anchors": 2, "spread": "all", "every": 2, "outer_loop": 3, "inner_loop": 1}, {"ipc": 4}),
    ],
)
def test_ten_steps_are_those_of_the_plain_loop(make_task, options, make):
    p, make = small(**options), {"dtype": DOUBLE, **make}
    images, log = run(RDD(p), make_task(**make), 10)
    expected, losses = reference(make_task(**make), p, 10)
    torch.testing.assert_close(images, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(torch.stack([step["loss"] for step in log]), torch.tensor(losses, dtype=DOUBLE))
    plain, _ = run(RDD(small(**options, risk="none")), make_task(**make), 10)
    assert (plain - images).abs().max() > 1e-3  # the risk matters


# ------------------------------------------------------------------------------------------- what it reduces to


@pytest.mark.parametrize("tail", [0.2, 0.8])
def test_with_one_update_per_network_it_is_the_host(make_task, tail):
    p = {"iterations": 10, "outer_loop": 1, "batch_real": 4, "lr_img": 0.1}
    images, _ = run(RDD(RDDParams(**p, tail=tail)), make_task(augment=STRATEGY), 3)
    host, _ = run(DC(DCParams(**p)), make_task(augment=STRATEGY), 3)
    assert torch.equal(images, host)


def test_on_latents_with_one_update_per_network_it_is_glad(make_task):
    p = {"iterations": 10, "outer_loop": 1, "batch_real": 4, "lr_img": 0.5, "lr_w": 0.05, "layer": 2}
    images, _ = run(RDDGlad(RDDGladParams(**p)), task_with_prior(make_task, augment=STRATEGY), 3)
    host, _ = run(GladDC(GladDCParams(**p)), task_with_prior(make_task, augment=STRATEGY), 3)
    assert torch.equal(images, host)


def test_on_latents_the_network_is_trained_around_decoded_images(make_task):
    p = {"iterations": 10, "batch_real": 4, "batch_train": 5, "lr_img": 0.5, "lr_w": 0.05, "layer": 2, "lr_net": 0.1}
    for pool in ("matched", "fresh"):
        make = {"augment": STRATEGY}
        method, plain = (RDDGlad(RDDGladParams(**p, pool=pool, risk=risk)) for risk in ("paper", "none"))
        images, log = run(method, task_with_prior(make_task, **make), 3)
        assert log[0]["network_steps"] == 2 * 5
        assert (images - run(plain, task_with_prior(make_task, **make), 3)[0]).abs().max() > 1e-6


def test_in_pixel_space_the_glad_host_is_the_dc_host(make_task):
    p = {"iterations": 10, "batch_real": 4, "batch_train": 5, "init": "real"}
    ours = run(RDDGlad(RDDGladParams(**p, space="p")), make_task(augment=STRATEGY), 3)[0]
    assert torch.equal(ours, run(RDD(RDDParams(**p)), make_task(augment=STRATEGY), 3)[0])


@pytest.mark.parametrize("batches", ["random", "risk"])
def test_the_released_risk_changes_a_logged_number_alone(make_task, batches):
    results = [run(RDD(small(risk=risk, batches=batches)), make_task(augment=STRATEGY), 3) for risk in ("code", "none")]
    assert torch.equal(results[0][0], results[1][0])
    assert [("risk" in step) for step in results[0][1] + results[1][1]] == [True] * 3 + [False] * 3
    assert float(results[0][1][0]["risk"]) > 0


# ------------------------------------------------------------------------------------------- pool and groups


@pytest.mark.parametrize(("ipc", "around"), [(2, 6), (10, 30), (20, 30), (50, 30)])
def test_pool_and_groups_are_counted(make_task, monkeypatch, ipc, around):
    """2 x batch x C real images; as many groups as synthetic images, but at most ten of a class."""
    seen = {}

    def record(losses, groups, count, params):
        seen.setdefault("count", count)
        seen.setdefault("groups", []).append(groups)
        return group_risk(losses, groups, count, params)

    monkeypatch.setattr("methods.risk.group_risk", record)
    method = RDD(small(every=1, inner_loop=1, batch_real=7))
    _, log = run(method, make_task(ipc=ipc, per_class=60), 1)
    groups = torch.cat(seen["groups"])
    assert len(groups) == 2 * 7 * 3
    assert (int(groups.min()) >= 0, int(groups.max()) < around, seen["count"]) == (True, True, around)
    assert log[0]["real_images"] == 3 * 7 * 3  # matched twice and pooled once
    assert log[0]["network_steps"] == -(-2 * 7 * 3 // 5)


def test_anchors_of_fifty_are_ten_of_each_class():
    images = torch.randn(150, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = anchors(images, 3, GroupParams())
    chosen = spread(images.view(3, 50, 16), 10)
    assert torch.equal(found, torch.cat([images.view(3, 50, 1, 4, 4)[c, chosen[c]] for c in range(3)]))
    assert torch.equal(anchors(images[:30], 3, GroupParams()), images[:30])


# ------------------------------------------------------------------------------------------- batches


def which(task, images):
    """Return which training images these are."""
    return (images[:, None] == task.data.train.images()[None]).flatten(2).all(2).long().argmax(1)


def test_representative_batches_are_real_images_of_their_class(make_task):
    task = make_task(per_class=(20, 12, 3))
    method = RDD(small(batches="representative", batch_real=12, centres=4))
    _, log = run(method, task, 2)
    real, _ = method.draw_real()
    assert all(1 <= count <= 4 for count in real.counts)
    index = which(task, real.images)
    assert torch.equal(task.data.train.labels[index], real.labels)
    assert len(set(index.tolist())) == len(index)
    assert log[0]["real_images"] < 3 * (12 + 12 + 3)


def test_batches_by_risk_are_drawn_by_their_weight_in_cross_entropy_plus_risk(make_task):
    """A batch is a whole class; an image's share of 500 draws is the derivative of the objective by its loss."""
    task = make_task(per_class=5, ipc=2, dtype=DOUBLE)
    method = RDD(small(batches="risk", batch_real=5))
    method.start(task)
    task.initialise(method.model, task.rng("network"))
    draws = [which(task, method.draw_real()[0].images) for _ in range(100)]
    share = torch.bincount(torch.cat(draws), minlength=15).double() / 1500
    network, p = method.model, method.params
    with torch.no_grad():
        there = network.features(method.set.images())
    for c in range(3):
        index = task.data.train.class_index(c)
        images = task.data.train.images(index)
        here = network.features(images).detach()
        groups = [min(range(6), key=lambda k, x=x: float((x - there[k]).norm())) for x in here]

        with torch.no_grad():
            losses = F.cross_entropy(network(images), torch.full((5,), c), reduction="none")
        losses = [loss.requires_grad_() for loss in losses]
        weights = torch.stack(torch.autograd.grad(sum(losses) / 5 + plain_risk(losses, groups, p), losses)) / 3
        assert weights.max() > 1.5 * weights.min()
        torch.testing.assert_close(share[index] * 3, weights, rtol=0, atol=4 * (0.25 / 500) ** 0.5)


def test_batches_by_risk_of_a_network_that_is_lost_are_an_error(make_task):
    method = RDD(small(batches="risk"))
    method.start(make_task())
    torch.nn.init.constant_(method.model.head.weight, torch.nan)
    with pytest.raises(Diverged):
        method.draw_real()


# ------------------------------------------------------------------------------------------- rules


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(make_task):
    for batches in ("random", "representative", "risk"):
        p = small(batches=batches, centres=2)
        first, again, other = (run(RDD(p), make_task(seed=seed, augment=STRATEGY), 2)[0] for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("batches", ["random", "risk"])
def test_a_resumed_run_ends_with_the_same_bytes(make_task, batches):
    p = small(batches=batches)
    whole, _ = run(RDD(p), make_task(augment=STRATEGY), 4)
    assert torch.equal(resume(RDD(p), make_task, augment=STRATEGY), whole)


def test_nothing_global_is_drawn_from(make_task):
    before = torch.random.get_rng_state()
    run(RDD(small(batches="representative", centres=2)), make_task(augment=STRATEGY), 1)
    run(RDD(small(batches="risk", pool="fresh")), make_task(augment=STRATEGY), 1)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("network", ["convnet-bn-w4-d2", "convnet-none-w4-d2"])
def test_other_normalisations_run(make_task, network):
    images, log = run(RDD(small(batches="risk")), make_task(network=network), 2)
    assert images.isfinite().all()
    assert float(log[1]["risk"]) > 0


def test_the_result_is_a_valid_set(make_task):
    method, task = RDD(small()), make_task()
    images, _ = run(method, task, 1)
    distilled = method.export()
    assert torch.equal(distilled.images, images)
    assert distilled.header.native_recipe["base"] == "idc"


def test_defaults_are_those_of_the_released_code(make_task):
    for p in (RDDParams(), RDDGladParams()):
        assert (p.iterations, p.outer_loop, p.inner_loop, p.batch_real, p.batch_train) == (2000, 2, 2, 256, 256)
        assert (p.tail, p.every, p.anchors, p.lr_net, p.lr_img, p.momentum) == (0.8, 3, 10, 0.01, 1.0, 0.5)
        assert (p.risk, p.lambda_mean, p.lambda_max, p.batches, p.init) == ("paper", 1.0, 1.0, "random", "noise")
        assert all(field.description for field in type(p).model_fields.values())
    assert (RDDGladParams().space, RDD.augment, RDDGlad.augment) == ("wp", "dsa", "dsa")


def test_presets_are_those_of_the_readme(make_task):
    info = make_task().spec.dataset
    for family in ("cifar10", "svhn", *SUBSETS, "mnist", "imagenette"):
        for ipc in (1, 10):
            preset = RDDGlad.preset(info.model_copy(update={"family": family}), ipc)
            known = ipc == 10 and family not in ("mnist", "imagenette")
            assert (preset.source is not None) == known
            params = RDDGladParams(**preset.params)
            if known:
                assert params.layer == (16 if family in SUBSETS else 2)
                assert (params.learn_g, params.lr_g) == ((True, 0.01) if family == "svhn" else (False, 1e-4))
    assert RDD.preset(info, 10).source is None


def test_it_is_evaluated_as_idc(make_task):
    info = make_task().spec.dataset
    spec = TaskSpec(dataset=info, ipc=10, network=make_task().spec.network)
    assert RDD.native_recipe(RDDParams(), spec) == {"base": "idc"}
    large = spec.model_copy(update={"dataset": info.model_copy(update={"shape": (3, 128, 128)})})
    assert RDDGlad.native_recipe(RDDGladParams(), large) == {"base": "idc", "epochs": 2000, "cutmix": 1.0}


def test_planning_needs_no_torch():
    code = "import sys, methods.rdd, methods.rdd_dm, methods.rdd_mtt, methods.rdd_idc; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
