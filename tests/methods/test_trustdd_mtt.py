"""TrustDD on MTT: a student on both sets unrolled as one graph in float64, and experts that train on outliers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from trajectory_fakes import SMALL, check_resume, task_with_experts, unflatten

import bench.data
import bench.suite
from bench.train.recipe import resolve
from bench.unroll import Flat
from methods.experts import Experts
from methods.mtt import MTT
from methods.outliers import Pseudo
from methods.trustdd_more import ExposedExperts, TrustDDPOEMTT

KINDS = ("jigsaw", "invert", "pixelate", "gauss-speckle")
STRATEGY = "dsa:color_crop_cutout_scale_rotate"


def method(**changes):
    return TrustDDPOEMTT(TrustDDPOEMTT.Params(**(SMALL | changes)))


@pytest.mark.parametrize(
    ("augment", "options"), [("none", {}), (STRATEGY, {"batch_syn": 4}), (STRATEGY, {"batch_syn": 4, "per_group": 1})]
)
def test_ten_steps_equal_a_plain_reference(make_task, augment, options):
    fast, slow = method(**options), method(**options)
    task, twin = (task_with_experts(make_task, augment=augment) for _ in range(2))
    fast.start(task)
    slow.start(twin)  # for the draws alone
    leaves = [part.pixels.detach().clone().requires_grad_() for part in (slow.set.inside, slow.set.outside)]
    rate = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)
    outer = [torch.optim.SGD([leaf], lr=0.2, momentum=0.5) for leaf in leaves]
    outer.append(torch.optim.SGD([rate], lr=1e-6, momentum=0.5))
    network, labels = twin.network(), slow.set.inside.labels
    for _ in range(10):
        loss = fast.step()["loss"]
        start, goal = slow._expert()
        chunks = [slow._chunk() for _ in range(4)]
        slow.seen = slow.set.images()
        draws = [slow._draw(chunk) for chunk in chunks]
        weights = start.clone().requires_grad_()
        for (i, o), (draw, other) in zip(chunks, draws, strict=True):
            predict = lambda x, w=weights: functional_call(network, unflatten(network, w), (x,))  # noqa: E731
            inner = F.cross_entropy(predict(twin.augment.apply(leaves[0][i], draw)), labels[i])
            outside = predict(twin.augment.apply(leaves[1][o - len(labels)], other))
            inner = inner + 0.5 * F.cross_entropy(outside, torch.full_like(outside, 1 / 3).detach())
            weights = weights - rate * torch.autograd.grad(inner, weights, create_graph=True)[0]
        plain = (weights - goal).square().sum() / (start - goal).square().sum()
        for leaf, gradient, optimiser in zip(
            (*leaves, rate), torch.autograd.grad(plain, [*leaves, rate]), outer, strict=True
        ):
            leaf.grad = gradient
            optimiser.step()
        torch.testing.assert_close(loss, plain.detach(), rtol=1e-9, atol=1e-12)
    for leaf, part, kept in (
        (leaves[0], fast.set.inside, slow.set.inside),
        (leaves[1], fast.set.outside, slow.set.outside),
    ):
        assert (leaf - kept.pixels).abs().max() > 1e-4
        torch.testing.assert_close(part.pixels.detach(), leaf.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(fast.rate.detach(), rate.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch_syn", [None, 4])
def test_without_weight_the_images_are_those_of_mtt(make_task, batch_syn):
    results = []
    for one in (method(outlier_weight=0.0, batch_syn=batch_syn), MTT(MTT.Params(**SMALL, batch_syn=batch_syn))):
        one.start(task_with_experts(make_task, augment=STRATEGY))
        for _ in range(4):
            one.step()
        results.append(one.export())
    torch.testing.assert_close(results[0].images, results[1].images, rtol=1e-5, atol=1e-6)
    first = method()
    first.start(task_with_experts(make_task, augment=STRATEGY))
    assert torch.equal(results[0].outliers, first.export().outliers)  # no loss, no step


def test_every_image_and_outlier_is_seen_in_a_pass(make_task):
    one = method(batch_syn=4, per_group=1)
    one.start(task_with_experts(make_task))
    pairs = [one._chunk() for _ in range(4)]
    assert [(len(i), len(o)) for i, o in pairs] == [(2, 3), (4, 3), (2, 3), (4, 3)]
    assert sorted(torch.cat([i for i, _ in pairs[:2]]).tolist()) == list(range(6))
    assert all(sorted(o.tolist()) == [6, 7, 8] for _, o in pairs)
    assert one.set.labels.tolist() == [0, 0, 1, 1, 2, 2, -1, -1, -1]


def test_state_continues_bit_for_bit(make_task):
    def prepared():
        return task_with_experts(make_task, augment=STRATEGY)

    check_resume(lambda: method(batch_syn=4, per_group=1), prepared)
    whole, again = method(batch_syn=4), method(batch_syn=4)
    for one in (whole, again):
        one.start(prepared())
        one.step()
    assert torch.equal(whole.export().outliers, again.export().outliers)
    again.step()
    again.load_state_dict(whole.state_dict())
    assert torch.equal(whole.export().outliers, again.export().outliers)


def test_the_result_has_both_sets_and_the_rate(make_task):
    one, task = method(lr_lr=1e-3), task_with_experts(make_task)
    one.start(task)
    one.step()
    found = one.export()
    assert found.images.shape == found.outliers.shape == (6, 1, 8, 8)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (found.header.learned_rate, found.header.outlier_weight) == (one.rate.item(), 0.5)
    assert found.header.method == "trustdd_poe_mtt"
    assert found.header.floats == {"stored": 2 * 6 * 64 + 1, "decoded": 2 * 6 * 64, "raw": 6 * 64}
    recipe = resolve(found.header.native_recipe)
    assert (recipe.lr, recipe.outlier_weight) == ("learned", "set")
    assert TrustDDPOEMTT.preset(bench.data.info("cifar10"), 10).source is None


# ------------------------------------------------------------------------------------------------ experts


def exposed(weight, **params):
    return ExposedExperts(
        ExposedExperts.Params(experts=2, epochs=2, batch=60, outlier_weight=weight, corruptions=KINDS, **params)
    )


def test_experts_are_trained_on_images_and_as_many_outliers(make_task):
    task = make_task()
    built = exposed(0.5).build(task)["snapshots"]
    images, labels = task.data.train.images(), task.data.train.labels
    outliers = Pseudo(make_task(), KINDS).all(60, make_task().rng("outliers"))
    network = task.network()
    for number, rows in enumerate(built):
        task.initialise(network, make_task().rng(f"expert/{number}"))
        assert torch.equal(rows[0], Flat(network).vector())
        weights = rows[0]
        for t in range(2):  # the batch is the whole set, so one epoch is one step of plain gradient descent
            point = weights.clone().requires_grad_()
            logits, outside = (functional_call(network, unflatten(network, point), (x,)) for x in (images, outliers))
            loss = F.cross_entropy(logits, labels) + 0.5 * F.cross_entropy(outside, torch.full_like(outside, 1 / 3))
            weights = weights - 0.01 * torch.autograd.grad(loss, point)[0]
            torch.testing.assert_close(rows[t + 1], weights.detach(), rtol=1e-4, atol=1e-6)


def test_experts_without_weight_are_plain_experts(make_task):
    plain = Experts(Experts.Params(experts=2, epochs=2, batch=60)).build(make_task())["snapshots"]
    assert torch.equal(exposed(0.0).build(make_task())["snapshots"], plain)
    assert not torch.equal(exposed(0.5).build(make_task())["snapshots"], plain)


def test_outliers_of_experts_are_different_images_under_all_corruptions(make_task):
    task = make_task()
    pool = Pseudo(task, KINDS)
    found = pool.all(10, torch.Generator().manual_seed(0))
    index = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:10]
    parts = zip(KINDS, index.split([3, 3, 3, 1]), strict=True)
    expected = torch.cat([pool.corrupted.images(kind, part) for kind, part in parts])
    assert torch.equal(found, expected)
    fewer = exposed(0.5, images=4).build(make_task())["snapshots"]
    assert fewer.shape == exposed(0.5).build(make_task())["snapshots"].shape


SUITE = """\
title: Experts with outliers are another buffer
grid: {datasets: [digits], methods: [mtt, trustdd_poe_mtt], ipc: [1, 10], seeds: 2, network: convnet-w8}
methods:
  mtt: &experts {max_start_epoch: 2, expert_epochs: 2, experts: 4, train_epochs: 3}
  trustdd_poe_mtt: *experts
evaluators: [accuracy]
"""


def test_sizes_and_seeds_share_the_exposed_experts(tmp_path):
    file = tmp_path / "suite.yaml"
    file.write_text(SUITE)
    plan = bench.suite.plan(bench.suite.load(file))
    for name, artifact in (("mtt", "experts"), ("trustdd_poe_mtt", "exposed_experts")):
        keys = {cell.key for cell in plan.cells if cell.config.get("artifact") == artifact}
        asking = [cell for cell in plan.cells if cell.kind == "distil" and cell.config["method"] == name]
        assert len(keys) == 1
        assert {cell.inputs["experts"] for cell in asking} == keys
