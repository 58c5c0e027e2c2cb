"""GLaD against plain loops in float64, one graph from latents to loss; and the paper's rules."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from prior_fakes import mini, task_with_prior
from test_dc import run
from trajectory_fakes import SMALL, plain_loss, task_with_experts

import bench.data
from bench.api import TaskSpec
from bench.errors import UserError
from bench.nets.prior import from_tensors
from bench.registry import METHODS
from methods.dc import DC, DCParams
from methods.dm import DM, DMParams
from methods.generator import need
from methods.glad import CODE, README, GladDC, GladDCParams, GladDM, GladDMParams, GladMTT, GladMTTParams, LatentParams
from methods.latents import Latents
from methods.mtt import MTT, TrajectoryParams
from methods.parametrise import Pixels

STRATEGY = "dsa:color_crop_cutout_scale_rotate"
LATENT = {"layer": 2, "lr_w": 0.05, "lr_img": 0.5, "decode_batch": 4}


def dc(**changes):
    return GladDC(GladDCParams(**{**LATENT, "iterations": 9, "batch_real": 6, **changes}))


def dm(**changes):
    return GladDM(GladDMParams(**{**LATENT, "iterations": 9, "batch_real": 6, **changes}))


def mtt(**changes):
    return GladMTT(GladMTTParams(**{**SMALL, **LATENT, "lr_w": 0.01, "lr_img": 0.2, **changes}))


class Plain:
    """Latents without parts, chunks or leaves in between: the set as one function of what is learned."""

    def __init__(self, task, p):
        self.p = p
        self.prior = from_tensors(task.artifact("generator")).requires_grad_(p.learn_g)
        labels = torch.arange(3).repeat_interleave(task.spec.ipc)
        z = torch.randn(len(labels), self.prior.z_dim, generator=task.rng("init"), dtype=torch.float64)
        self.w = self.prior.map(z, labels).detach().clone().requires_grad_()
        self.f = self.prior.to_f(self.w, p.layer).detach().clamp(-10, 10).requires_grad_()
        groups = [{"params": [self.w], "lr": p.lr_w}, {"params": [self.f], "lr": p.lr_img}]
        if p.learn_g:
            groups.append({"params": list(self.prior.parameters()), "lr": p.lr_g})
        self.sgd = torch.optim.SGD(groups, momentum=0.5)

    def images(self):
        pixels = (self.prior.from_f(self.w, self.f, self.p.layer) + 1) / 2
        return (pixels - 0.5) / 0.25

    def step(self, loss):
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()


def matched_gradients(task, network, real, images, ipc):
    """The distance of DC, summed over classes; real and images: [class][n, c, h, w], augmented."""
    weights, total = list(network.parameters()), torch.zeros((), dtype=torch.float64)
    for c in range(3):
        sides = []
        for part in (real[c], images[c]):
            loss = F.cross_entropy(network(part), torch.full((len(part),), c))
            sides.append(torch.autograd.grad(loss, weights, create_graph=True))
        for a, b in zip(*sides, strict=True):
            if a.dim() > 1:
                for u, v in zip(a.detach().flatten(1), b.flatten(1), strict=True):
                    total = total + 1 - u @ v / (u.norm() * v.norm() + 1e-6)
    return total


def matched_means(task, network, real, images, ipc):
    """The distance of DM, summed over classes."""
    gaps = [
        network.features(a).mean(0).detach() - network.features(b).mean(0) for a, b in zip(real, images, strict=True)
    ]
    return sum(gap.square().sum() for gap in gaps)


def reference(task, p, steps, distance):
    """GLaD as its pseudo-code says: a fresh network, one draw per class, one step, all in one graph."""
    plain, ipc, losses = Plain(task, p), task.spec.ipc, []
    network = task.network()
    for _ in range(steps):
        task.initialise(network, task.rng("network"))
        batches = [task.data.train.sample_class(c, p.batch_real, task.rng("real")) for c in range(3)]
        draw = task.augment.draw((3, 1, 8, 8), task.rng("augment"), groups=3, shared=True)
        groups = [torch.cat([batch, images]) for batch, images in zip(batches, plain.images().split(ipc), strict=True)]
        counts = [len(group) for group in groups]
        augmented = task.augment.apply(torch.cat(groups), draw, counts=counts).split(counts)
        loss = distance(task, network, [x[:-ipc] for x in augmented], [x[-ipc:] for x in augmented], ipc)
        losses.append(loss.detach() / 3)
        plain.step(loss)
    return plain, torch.stack(losses)


@pytest.mark.parametrize("learn_g", [False, True])
@pytest.mark.parametrize(("make", "distance"), [(dc, matched_gradients), (dm, matched_means)])
def test_ten_steps_are_those_of_the_plain_loop(make_task, make, distance, learn_g):
    method = make(learn_g=learn_g, lr_g=0.01)
    images, log = run(method, task_with_prior(make_task, augment=STRATEGY), 10)
    plain, losses = reference(task_with_prior(make_task, augment=STRATEGY), method.params, 10, distance)
    torch.testing.assert_close(torch.stack([step["loss"] for step in log]), losses, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(images, plain.images().detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(method.set.styles, plain.w, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(method.set.features, plain.f, rtol=1e-6, atol=1e-8)
    weight = from_tensors(mini()).layers[2].weight
    assert bool((method.set.prior.layers[2].weight - weight).abs().max() > 1e-6) == learn_g
    start = Latents(task_with_prior(make_task), mini(), method.params).images()
    assert (images - start).abs().max() > 0.1


@pytest.mark.parametrize("sweep", ["exact", "identity"])
def test_ten_steps_of_trajectory_matching_are_those_of_the_plain_loop(make_task, sweep):
    prepared = partial(task_with_experts, partial(task_with_prior, make_task), augment=STRATEGY)
    task, twin = prepared(), prepared()
    fast, slow = mtt(sweep=sweep), mtt(sweep=sweep)
    fast.start(task)
    slow.start(prepared())  # gives the draws alone
    plain = Plain(twin, fast.params)
    rate = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([rate], lr=1e-6, momentum=0.5)
    network = twin.network()
    for _ in range(10):
        loss = fast.step()["loss"]
        start, goal = slow._expert()
        chunks = [slow._chunk() for _ in range(4)]
        slow.seen = slow.set.images()
        draws = [slow._draw(chunk) for chunk in chunks]
        images = plain.images()
        found = plain_loss(
            twin, network, images, rate, slow.set.labels, start, goal, chunks, draws, sweep == "identity"
        )
        rate.grad = None
        plain.step(found)
        sgd.step()
        torch.testing.assert_close(loss, found.detach(), rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(fast.set.styles, plain.w, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(fast.set.features, plain.f, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(fast.rate.detach(), rate.detach(), rtol=1e-8, atol=1e-11)


# ------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize(("make", "kind", "hosted"), [(dc, DC, DCParams), (dm, DM, DMParams)])
def test_with_the_identity_for_a_generator_it_is_the_method_on_pixels(make_task, make, kind, hosted):
    """All layers before the cut: a step of lr_img moves pixels by lr_img / (4 std^2), here 4 lr_img."""
    glad = make(layer=4, lr_img=0.01)
    images, log = run(glad, task_with_prior(make_task, augment=STRATEGY), 10)
    task = task_with_prior(make_task, augment=STRATEGY)
    common = {"iterations": 9, "batch_real": 6, "lr_img": 0.04, "init": "real"}
    host = kind(hosted(**common, **({"outer_loop": 1} if kind is DC else {})))
    first = Latents(task_with_prior(make_task), mini(), glad.params).images().detach()
    host.start(task)
    with torch.no_grad():
        host.set.pixels.copy_(first)
    losses = [host.step()["loss"] for _ in range(10)]
    torch.testing.assert_close(images, host.set.pixels.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(torch.stack([step["loss"] for step in log]), torch.stack(losses))


def test_in_pixel_space_it_is_the_method_itself_to_the_bit(make_task):
    """`space: p` with the rates of GLaD: no generator, one update per untrained network."""
    glad = dc(space="p", lr_img=1.0, init="real")
    images, _ = run(glad, make_task(augment=STRATEGY), 3)
    p = {"iterations": 9, "batch_real": 6, "lr_img": 1.0, "init": "real", "outer_loop": 1}
    expected, _ = run(DC(DCParams(**p)), make_task(augment=STRATEGY), 3)
    assert torch.equal(images, expected)
    assert isinstance(glad.set, Pixels)


def test_glad_dc_never_trains_the_network(make_task):
    for ipc in (1, 10):
        method = dc()
        _, log = run(method, task_with_prior(make_task, ipc=ipc), 1)
        assert (method.outer_loop, log[0]["network_steps"]) == (1, 0)
    deeper = dc(outer_loop=2, inner_loop=1)
    _, log = run(deeper, task_with_prior(make_task), 1)
    assert log[0]["network_steps"] == 1


# ------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("make", [dc, dm, mtt])
def test_a_resumed_run_ends_with_the_same_bytes(make_task, make):
    def prepared():
        return task_with_experts(partial(task_with_prior, make_task), augment=STRATEGY, ipc=3)

    def method():
        return make(learn_g=True, lr_g=0.001)

    def start(state=None, generators=None):
        task, started = prepared(), method()
        started.start(task)
        if state is not None:
            started.load_state_dict(state)
            for name, value in generators.items():
                task.rng(name).set_state(value)
        return task, started

    task, whole = start()
    for k in range(6):
        if k == 3:
            state = copy.deepcopy(whole.state_dict())
            generators = {name: rng.get_state() for name, rng in task._generators.items()}
        whole.step()
    _, resumed = start(state, generators)
    for _ in range(3):
        resumed.step()
    assert whole.set.learned.keys() == resumed.set.learned.keys() >= {"styles", "features"}
    for name, tensor in whole.set.learned.items():
        assert torch.equal(tensor, resumed.set.learned[name]), name
    assert torch.equal(whole.export().images, resumed.export().images)


@pytest.mark.parametrize("make", [dc, dm, mtt])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(make_task, make):
    found = []
    for seed in (0, 0, 1):
        task = task_with_experts(partial(task_with_prior, make_task), augment=STRATEGY, seed=seed)
        found.append(run(make(), task, 2)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# ------------------------------------------------------------------------------------------- settings and planning


def test_defaults_are_those_of_the_released_code():
    p, q, r = GladDCParams(), GladDMParams(), GladMTTParams()
    assert {x.iterations for x in (p, q, r)} == {1000}
    assert [(x.lr_img, x.lr_w, x.lr_g) for x in (p, q, r)] == [(1, 1e-3, 1e-4), (10, 1e-2, 1e-4), (1e4, 10, 0.1)]
    assert {x.momentum for x in (p, q, r)} == {0.5}
    assert (p.batch_real, q.batch_real, p.outer_loop, p.inner_loop, p.decode_batch) == (256, 256, 1, 1, 10)
    assert (r.syn_steps, r.expert_epochs, r.max_start_epoch, r.lr_lr, r.lr_init) == (20, 3, 5, 1e-6, 0.01)
    assert (r.experts, r.train_epochs, r.train_lr, r.batch_syn, r.zca) == (100, 15, 0.01, None, False)
    # the readme's layers of 25 convolutions
    assert [round(x.layer * 25) for x in (p, q, r)] == [16, 20, 12]
    for kind in (GladDC, GladDM, GladMTT):
        assert kind.augment == "dsa"
        assert kind(kind.Params()).steps == 1001
        assert all(field.description for field in kind.Params.model_fields.values())


def test_only_the_readmes_setting_is_called_published(make_task):
    info = make_task().spec.dataset
    for kind, layer in ((GladDC, 16), (GladDM, 20), (GladMTT, 12)):
        for family, ipc in (("imagenet_a", 10), ("cifar10", 1), ("digits", 1)):
            preset = kind.preset(info.model_copy(update={"family": family}), ipc)
            assert (preset.params, preset.source) == ({}, None)
        preset = kind.preset(info.model_copy(update={"family": "imagefruit"}), 1)
        assert preset.params["layer"] == layer
        assert preset.params["generator"] == "imagenet128.safetensors"
        assert preset.source == README
        assert CODE in README
        kind.Params(**preset.params)


def test_all_methods_sizes_and_seeds_share_one_generator():
    digits = bench.data.info("digits")
    needs = [
        kind.needs(kind.Params(), TaskSpec(dataset=digits, ipc=ipc, seed=seed, network={"width": 7}))["generator"]
        for kind in (GladDC, GladDM, GladMTT)
        for ipc, seed in ((1, 0), (10, 3))
    ]
    assert all(one == needs[0] for one in needs)
    assert needs[0].task["ipc"] is None
    assert set(GladMTT.needs(GladMTTParams(), TaskSpec(dataset=digits, ipc=1, network={}))) == {"experts", "generator"}
    assert need("random", 30) != need("trained", 30) != need("trained", 5)


def test_no_parameter_of_a_host_changes_its_meaning():
    for hosted in (DCParams, DMParams, TrajectoryParams):
        assert not LatentParams.model_fields.keys() & hosted.model_fields.keys()


def test_names_are_registered():
    assert [METHODS.get(name) for name in ("glad_dc", "glad_dm", "glad_mtt")] == [GladDC, GladDM, GladMTT]


def test_a_host_of_its_own_can_be_put_before_it(make_task):
    """What RDD does: a mixin over GLaD-DC sees latents and images of the set under `set`."""

    class Counting:
        def update_network(self):
            self.anchors = self.set.images().detach()
            super().update_network()

    class Hosted(Counting, GladDC):
        pass

    method = Hosted(dc(outer_loop=2).params)
    run(method, task_with_prior(make_task), 1)
    assert method.anchors.shape == (6, 1, 8, 8)


def test_a_budget_is_needed(make_task):
    with pytest.raises(UserError, match="images per class"):
        dc().start(task_with_prior(make_task, ipc=None))


def test_trajectory_matching_is_the_exact_one(make_task):
    assert GladMTT(GladMTTParams())._mode() == MTT(MTT.Params())._mode() == "recompute"
