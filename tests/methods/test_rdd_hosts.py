"""RDD over DM, IDC and MTT: what each reduces to, and plain loops for what it adds."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from test_dc import resume, run
from test_idc import small as small_idc
from test_rdd import DOUBLE, STRATEGY, plain_risk, train_plainly
from trajectory_fakes import SMALL

from methods.dm import DM, DMParams
from methods.experts import Experts
from methods.idc import IDC
from methods.mtt import MTT
from methods.rdd_dm import RDDDM, RDDDMParams
from methods.rdd_idc import RDDIDC, RDDIDCParams
from methods.rdd_mtt import RDDMTT, RobustExperts, within_classes

IDC_STRATEGY = "idc:color_crop_cutout"

# ------------------------------------------------------------------------------------------- DM


def dm(**params):
    return RDDDMParams(**({"iterations": 10, "batch_real": 4, "batch_train": 5, "lr_net": 0.1} | params))


def reference(task, p, steps):
    """DM whose networks are trained image by image before they embed; images of a class are [ipc, c, h, w]."""
    classes, ipc, train = task.spec.dataset.classes, task.spec.ipc, task.data.train
    images = torch.stack([train.sample_class(c, ipc, task.rng("init")) for c in range(classes)])
    velocity, losses, network = torch.zeros_like(images), [], task.network()
    for step in range(steps):
        task.initialise(network, task.rng("network"))
        pool = [train.sample_class(c, 2 * p.batch_real, task.rng("pool")) for c in range(classes)]
        labels = torch.arange(classes).repeat_interleave(2 * p.batch_real)
        train_plainly(task, network, torch.cat(pool), labels, images.flatten(0, 1), p, p.train_epochs)
        batches = [train.sample_class(c, p.batch_real, task.rng("real")) for c in range(classes)]
        draw = task.augment.draw((classes, *images.shape[2:]), task.rng("augment"), groups=classes, shared=True)
        leaf, loss = images.clone().requires_grad_(), 0.0
        groups = [torch.cat([batch, leaf[c]]) for c, batch in enumerate(batches)]
        counts = [len(group) for group in groups]
        for part in task.augment.apply(torch.cat(groups), draw, counts=counts).split(counts):
            gap = network.features(part[:-ipc]).detach().mean(0) - network.features(part[-ipc:]).mean(0)
            loss = loss + gap.square().sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        velocity = gradient if step == 0 else p.momentum * velocity + gradient
        images = images - p.lr_img * velocity
        losses.append(loss.detach() / classes)
    return images.flatten(0, 1), torch.stack(losses)


def test_ten_steps_over_dm_are_those_of_the_plain_loop(make_task):
    p, make = dm(train_epochs=1), {"dtype": DOUBLE, "augment": STRATEGY}
    images, log = run(RDDDM(p), make_task(**make), 10)
    expected, losses = reference(make_task(**make), p, 10)
    torch.testing.assert_close(images, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(torch.stack([step["loss"] for step in log]), losses)
    assert (log[0]["real_images"], log[0]["network_steps"]) == (3 * (4 + 8), 5)


@pytest.mark.parametrize(
    "params",
    [{"train_epochs": 0}, {"where": "matching", "risk": "none"}, {"where": "matching", "risk": "code"}],
)
def test_without_what_it_adds_it_is_dm(make_task, params):
    images, _ = run(RDDDM(dm(**params)), make_task(augment=STRATEGY), 3)
    host = DMParams(iterations=10, batch_real=4)
    assert torch.equal(images, run(DM(host), make_task(augment=STRATEGY), 3)[0])


def test_one_group_of_a_class_is_dm_too(make_task):
    """IPC 1: one anchor of each class; mean and maximum are the same, twice the distance of DM."""
    host, _ = run(DM(DMParams(iterations=10, batch_real=4, lr_img=1.0)), make_task(ipc=1, dtype=DOUBLE), 3)
    for params in ({"lambda_max": 0.0}, {"lambda_max": 1.0, "lr_img": 0.5}):
        images, _ = run(RDDDM(dm(where="matching", **params)), make_task(ipc=1, dtype=DOUBLE), 3)
        torch.testing.assert_close(images, host, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("most", [10, 2])
def test_groups_in_the_matching_by_hand(make_task, most):
    """One group after the other, among the images of its class; an anchor without real images is no group."""
    task = make_task(ipc=4, per_class=(20, 9, 3), augment=STRATEGY)
    method = RDDDM(dm(where="matching", init="noise", batch_real=9, anchors=most, lambda_mean=0.7, lambda_max=0.4))
    method.start(task)
    seen = []
    method.match = lambda real, synthetic: (seen.extend([real, synthetic]), RDDDM.match(method, real, synthetic))[1]
    loss = method.step()["loss"]
    (real, synthetic), network, losses = seen, method.model, []
    leaf = synthetic.images.detach().requires_grad_()
    for c, (images, fakes) in enumerate(zip(real.images.split(list(real.counts)), leaf.split(4), strict=True)):
        chosen = (
            [0, max(range(4), key=lambda i, x=fakes: float((x[i] - x[0]).detach().norm()))] if most == 2 else range(4)
        )
        there = [network.features(fakes[i][None])[0].detach() for i in chosen]
        here = [network.features(image[None])[0] for image in images]
        owner = [min(range(len(there)), key=lambda k, x=x: float((x - there[k]).norm())) for x in here]
        mine, gaps = network.features(fakes).mean(0), []
        for k in set(owner):
            group = torch.stack([x for x, g in zip(here, owner, strict=True) if g == k])
            gaps.append((group.mean(0) - mine).square().sum())
        losses.append(0.7 * sum(gaps) / len(gaps) + 0.4 * max(gaps, key=lambda x: float(x.detach())))
        assert (len(gaps) < 4) or c < 2  # three images of the last class
    found, derivative = RDDDM.match(method, real, synthetic)
    torch.testing.assert_close(found, torch.stack(losses).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, found.mean())
    torch.testing.assert_close(derivative, torch.autograd.grad(sum(losses), leaf)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["network", "matching"])
def test_dm_resumes_and_repeats(make_task, where):
    p = dm(where=where)
    whole, _ = run(RDDDM(p), make_task(augment=STRATEGY), 4)
    assert torch.equal(resume(RDDDM(p), make_task, augment=STRATEGY), whole)
    assert not torch.equal(run(RDDDM(p), make_task(seed=1, augment=STRATEGY), 4)[0], whole)
    method = RDDDM(p)
    method.start(make_task())
    method.step()
    assert not any(weight.requires_grad or weight.grad is not None for weight in method.model.parameters())


# ------------------------------------------------------------------------------------------- IDC


def idc(**params):
    return RDDIDCParams(**(small_idc(inner_loop=3, n_data=20).model_dump() | params))


def pixels(method, task, steps=3):
    return run(method, task, steps)[0], method.set.pixels.detach().clone()


def test_idc_without_gradient_of_the_risk_is_idc(make_task):
    host = pixels(IDC(small_idc(inner_loop=3, n_data=20)), make_task(augment=IDC_STRATEGY))[1]
    for risk in ("none", "code"):
        assert torch.equal(pixels(RDDIDC(idc(risk=risk)), make_task(augment=IDC_STRATEGY))[1], host)
    assert not torch.equal(pixels(RDDIDC(idc()), make_task(augment=IDC_STRATEGY))[1], host)


@pytest.mark.parametrize("mixed", [0.5, 0.0])
def test_the_network_of_idc_is_trained_under_the_risk(make_task, mixed):
    """Each loss again, from what was seen: groups of images before CutMix, by the network of `interval` updates ago."""
    task = make_task(augment=IDC_STRATEGY, dtype=DOUBLE)
    method = RDDIDC(idc(interval=2, cutmix=mixed, tail=0.5))
    calls, events = [], []

    class Recorded(RDDIDC):
        def regroup(self):
            super().regroup()
            events.append("new groups")
            calls.append([copy.deepcopy(self.model), self.set.images().detach().clone(), []])

        def mix(self, images, labels):
            out = super().mix(images, labels)
            calls[-1][2].append([images, *out])
            return out

        def network_loss(self, images, labels):
            before = copy.deepcopy(self.model)
            loss = super().network_loss(images, labels)
            calls[-1][2][-1] += [before, loss.detach()]
            return loss

        def update_images(self):
            events.append("images")
            return super().update_images()

    method.__class__ = Recorded
    run(method, task, 1)
    assert events == ["images", "new groups", "images", "images", "new groups"]
    for grouper, around, batches in calls:
        there, window = grouper.features(around), []
        for number, (plain, images, target, network, loss) in enumerate(batches):
            groups = [int((there - grouper.features(x[None])).norm(dim=1).argmin()) for x in plain]
            window.append((images, target, groups))
            expected = F.cross_entropy(network(images), target)
            if number % 3 == 0:
                losses = [
                    -(network(x[None]).log_softmax(1)[0] * y).sum()
                    for xs, ys, _ in window
                    for x, y in zip(xs, ys, strict=True)
                ]
                expected = expected + plain_risk(losses, [g for *_, own in window for g in own], method.params)
                window = []
            torch.testing.assert_close(loss, expected.detach())
    assert [len(batches) for *_, batches in calls] == [10, 5]


def test_idc_resumes(make_task):
    whole = pixels(RDDIDC(idc()), make_task(augment=IDC_STRATEGY), 4)[0]
    assert torch.equal(resume(RDDIDC(idc()), make_task, augment=IDC_STRATEGY), whole)


# ------------------------------------------------------------------------------------------- MTT

FEW = {"experts": 2, "epochs": 3, "batch": 16}


def test_experts_without_risk_are_those_of_mtt(make_task):
    plain, robust = (
        kind(kind.Params(**FEW, **more)).build(make_task(augment="dsa:color_crop"))
        for kind, more in ((Experts, {}), (RobustExperts, {"risk": "none"}))
    )
    torch.testing.assert_close(robust["snapshots"], plain["snapshots"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(robust["loss"], plain["loss"], rtol=1e-4, atol=1e-5)
    released = RobustExperts(RobustExperts.Params(**FEW, risk="code")).build(make_task(augment="dsa:color_crop"))
    assert torch.equal(released["snapshots"], robust["snapshots"])


def test_experts_under_the_risk_by_hand(make_task, monkeypatch):
    """With one group per image and the whole tail, every group is one loss."""
    built = RobustExperts(RobustExperts.Params(experts=1, epochs=2, batch=16, centres=60)).build(
        make_task(dtype=DOUBLE, per_class=8)
    )
    task = make_task(dtype=DOUBLE, per_class=8)
    network, rng = task.network(), task.rng("expert/0")
    task.initialise(network, rng)
    weights, images, labels = list(network.parameters()), task.data.train.images(), task.data.train.labels
    for epoch in range(2):
        flat = torch.cat([weight.detach().flatten() for weight in weights]).float()
        torch.testing.assert_close(built["snapshots"][0, epoch], flat)
        for number, index in enumerate(torch.randperm(24, generator=rng).split(16)):
            each = F.cross_entropy(network(images[index]), labels[index], reduction="none")
            loss = each.mean() + (each.mean() + each.max() if number == 0 else 0)
            slopes = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, slope in zip(weights, slopes, strict=True):
                    weight -= 0.01 * slope


def test_groups_within_classes_never_mix_them():
    rng = torch.Generator().manual_seed(0)
    labels, features = torch.arange(60) % 3, torch.randn(60, 5, generator=rng)
    groups, count = within_classes(features, labels, 4, rng)
    assert sorted(set(groups.tolist())) == list(range(count))
    assert 3 <= count <= 12
    assert all(len(set(labels[groups == k].tolist())) == 1 for k in range(count))


def test_mtt_asks_for_robust_experts_and_goes_on_as_mtt(make_task):
    params = RDDMTT.Params(**SMALL, tail=0.3)
    spec = make_task().spec
    need, plain = RDDMTT.needs(params, spec)["experts"], MTT.needs(MTT.Params(**SMALL), spec)["experts"]
    assert (need.artifact, need.params["tail"], need.params["risk"]) == ("robust_experts", 0.3, "paper")
    assert {name: need.params[name] for name in plain.params} == plain.params
    assert need.task == plain.task
    built = RobustExperts(RobustExperts.Params(**{**need.params, "batch": 16})).build(make_task(seed=5))
    results = []
    for method in (RDDMTT(params), MTT(MTT.Params(**SMALL))):
        task = make_task(artifacts={"experts": built})
        method.start(task)
        for _ in range(2):
            method.step()
        results.append(method.set.images().detach())
    assert torch.equal(*results)


def test_presets_have_no_source(make_task):
    info = make_task().spec.dataset.model_copy(update={"family": "cifar10"})
    for kind, host in ((RDDDM, DM), (RDDIDC, IDC), (RDDMTT, MTT)):
        assert host.preset(info, 10).source is not None
        assert kind.preset(info, 10).source is None
        assert kind.preset(info, 10).params == host.preset(info, 10).params
        assert "not published" in kind.title
        assert kind.version == 1
        kind.Params(**kind.preset(info, 10).params)
