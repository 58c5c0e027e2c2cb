"""DC against a plain class loop in float64, and the rules of its paper."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from bench.api import NetSpec
from methods.dc import DC, LOOPS, DCParams, loops

DOUBLE = torch.float64


def run(method, task, steps):
    """Start a method, do `steps` outer iterations, return the images and what was logged."""
    method.start(task)
    log = [method.step() for _ in range(steps)]
    return method.set.images().detach().clone(), log


def small(**params):
    """Few images per batch, two image updates per network."""
    defaults = {"iterations": 10, "outer_loop": 2, "inner_loop": 2, "batch_real": 6, "batch_train": 4}
    return DCParams(**(defaults | {"init": "real", "lr_net": 0.1} | params))


def reference(task, p, steps):
    """DC as its pseudo-code says: a loop over classes, plain SGD written out; returns images and losses."""
    classes, ipc = task.spec.dataset.classes, task.spec.ipc
    real = [task.data.train.sample_class(c, ipc, task.rng("init")) for c in range(classes)]
    images, velocity, losses = torch.stack(real), None, []
    network = task.network()
    weights = list(network.parameters())
    for _ in range(steps):
        task.initialise(network, task.rng("network"))
        total = 0.0
        for update in range(p.outer_loop):
            norms = [layer for layer in network.modules() if hasattr(layer, "running_mean")]
            if norms:  # statistics of 16 real images per class, nothing of what was there before
                real = [task.data.train.sample_class(c, 16, task.rng("statistics")) for c in range(classes)]
                for layer in norms:
                    layer.momentum = 1.0
                network.train()(torch.cat(real))
                for layer in norms:
                    layer.eval()
            gradient = torch.zeros_like(images)
            batches = [task.data.train.sample_class(c, p.batch_real, task.rng("real")) for c in range(classes)]
            shape = (classes, *images.shape[2:])
            draw = task.augment.draw(shape, task.rng("augment"), groups=classes, shared=True)
            # one call for both sides: real and synthetic images of a class are one group
            leaf = images.clone().requires_grad_()
            groups = [torch.cat([batch, leaf[c]]) for c, batch in enumerate(batches)]
            counts = [len(group) for group in groups]
            augmented = task.augment.apply(torch.cat(groups), draw, counts=counts).split(counts)
            for c in range(classes):
                sides = []
                for part in (augmented[c][:-ipc], augmented[c][-ipc:]):
                    loss = F.cross_entropy(network(part), torch.full((len(part),), c))
                    sides.append(torch.autograd.grad(loss, weights, create_graph=True))
                distance = torch.zeros((), dtype=images.dtype)
                for a, b in zip(*sides, strict=True):
                    if a.dim() > 1:
                        for u, v in zip(a.detach().flatten(1), b.flatten(1), strict=True):
                            distance = distance + 1 - u @ v / (u.norm() * v.norm() + 1e-6)
                gradient += torch.autograd.grad(distance, leaf, retain_graph=True)[0]
                total += float(distance.detach())
            velocity = gradient if velocity is None else p.momentum * velocity + gradient
            images = images - p.lr_img * velocity
            if update < p.outer_loop - 1:
                labels = torch.arange(classes).repeat_interleave(ipc)
                network.train()
                for _ in range(p.inner_loop):
                    for index in torch.randperm(len(labels), generator=task.rng("order")).split(p.batch_train):
                        batch = task.augment(images.flatten(0, 1)[index], task.rng("augment network"))
                        found = torch.autograd.grad(F.cross_entropy(network(batch), labels[index]), weights)
                        with torch.no_grad():
                            for weight, slope in zip(weights, found, strict=True):
                                weight -= p.lr_net * slope
        losses.append(total / p.outer_loop / classes)
    return images.flatten(0, 1), losses


@pytest.mark.parametrize("classes", ["per_class", "joint", "auto"])
@pytest.mark.parametrize("ipc", [1, 3])
def test_ten_steps_are_those_of_the_plain_loop(make_task, classes, ipc):
    p = small(classes=classes)
    images, log = run(DC(p), make_task(ipc=ipc, dtype=DOUBLE), 10)
    expected, losses = reference(make_task(ipc=ipc, dtype=DOUBLE), p, 10)
    torch.testing.assert_close(images, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(torch.stack([step["loss"] for step in log]), torch.tensor(losses, dtype=DOUBLE))
    assert (images - make_task(ipc=ipc, dtype=DOUBLE).data.train.images().mean()).abs().max() > 0.1


@pytest.mark.parametrize(("per_class", "distance", "norm"), [(20, "ours", "ln"), ((3, 20, 5), "mse", "in")])
def test_compiled_gradients_are_those_of_the_plain_ones(make_task, monkeypatch, compiles, per_class, distance, norm):
    """Also with real groups of different sizes, which are filled up, and with LayerNorm, which vmap gets wrong."""
    make = {"per_class": per_class, "dtype": DOUBLE, "augment": "dsa:color_crop_cutout_flip_scale_rotate"}
    make["network"] = NetSpec(norm=norm, width=4, depth=2)
    fast = DC(small(distance=distance))
    images, log = run(fast, make_task(**make), 2)
    assert fast.choices() == {"gradients": "compiled"}
    monkeypatch.setenv("DDBENCH_COMPILE", "0")
    plain = DC(small(distance=distance, classes="per_class"))
    expected, losses = run(plain, make_task(**make), 2)
    assert plain.choices() == {"gradients": "plain: DDBENCH_COMPILE=0"}
    torch.testing.assert_close(images, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close([step["loss"] for step in log], [step["loss"] for step in losses])


def test_short_runs_are_not_compiled(make_task):
    method = DC(small())
    method.start(make_task())
    assert method.choices()["gradients"].startswith("plain: a short run")


def test_classes_smaller_than_the_batch_are_taken_whole(make_task):
    results = [
        run(DC(small(classes=classes)), make_task(per_class=(20, 3, 5), dtype=DOUBLE), 3)
        for classes in ("joint", "per_class")
    ]
    assert results[0][1][0]["real_images"] == 2 * (6 + 3 + 5)
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-8, atol=1e-10)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(make_task):
    first, again, other = (run(DC(small()), make_task(seed=seed), 3)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def resume(method, make_task, steps=4, **task):
    """Return the images of a run with a break in the middle, which the harness carries over as here."""
    broken, first = make_task(**task), type(method)(method.params)
    run(first, broken, steps // 2)
    state, generators = first.state_dict(), {name: g.get_state() for name, g in broken._generators.items()}
    first.step()  # the state must not follow
    fresh = make_task(**task)
    method.start(fresh)
    method.load_state_dict(state)
    for name, generator in generators.items():
        fresh.rng(name).set_state(generator)
    for _ in range(steps - steps // 2):
        method.step()
    return method.set.images().detach()


def test_a_resumed_run_ends_with_the_same_bytes(make_task):
    whole, _ = run(DC(small()), make_task(), 4)
    assert torch.equal(resume(DC(small()), make_task), whole)


def test_one_image_update_per_network_never_trains_it(make_task):
    results = [run(DC(small(outer_loop=1, lr_net=rate)), make_task(ipc=1), 3) for rate in (0.01, 5.0)]
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1][0]["network_steps"] == 0
    trained = [run(DC(small(lr_net=rate)), make_task(ipc=1), 3)[0] for rate in (0.01, 5.0)]
    assert not torch.equal(*trained)


def test_a_rate_of_zero_leaves_the_images_as_they_were(make_task):
    for init in ("noise", "real"):
        method = DC(small(lr_img=0.0, init=init))
        method.start(make_task())
        before = method.set.images().detach().clone()
        method.step()
        assert torch.equal(method.set.images(), before)


def test_k_counts_from_zero_and_the_budget_is_logged(make_task):
    method = DC(small(iterations=0, outer_loop=3, inner_loop=2))
    assert method.steps == 1
    updates = []
    method.start(make_task())
    method.set.optimiser.register_step_post_hook(lambda *_: updates.append(1))
    logged = method.step()
    assert len(updates) == 3
    assert {name: logged[name] for name in ("real_images", "synthetic_images", "network_steps")} == {
        "real_images": 3 * 3 * 6,
        "synthetic_images": 3 * 6,
        "network_steps": 2 * 2 * 2,  # between three updates: twice two epochs of two batches
    }
    assert logged["loss"].shape == ()
    assert not logged["loss"].requires_grad


@pytest.mark.parametrize("classes", ["per_class", "joint"])
def test_batch_normalisation_is_frozen_by_real_images_while_matching(make_task, classes):
    make = {"dtype": DOUBLE, "network": NetSpec(norm="bn", width=4, depth=1)}
    p = small(classes=classes, outer_loop=3)
    images, log = run(DC(p), make_task(**make), 3)
    torch.testing.assert_close(images, reference(make_task(**make), p, 3)[0], rtol=1e-7, atol=1e-9)
    assert log[0]["real_images"] == 3 * 3 * (6 + 16)
    released, _ = run(DC(small(statistics="running", outer_loop=3)), make_task(**make), 3)
    assert (released - images).abs().max() > 1e-3


def test_the_loss_falls(make_task):
    _, log = run(DC(small(outer_loop=1, init="noise", lr_img=1.0, batch_real=20)), make_task(), 60)
    losses = torch.stack([step["loss"] for step in log])
    assert losses[-8:].mean() < 0.8 * losses[:8].mean()


def test_nothing_global_is_drawn_from(make_task):
    before = torch.random.get_rng_state()
    run(DC(small(init="noise")), make_task(augment="none"), 1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_result_is_a_valid_set(make_task):
    method = DC(small())
    task = make_task()
    images, _ = run(method, task, 1)
    distilled = method.export()
    method.step()
    assert torch.equal(distilled.images, images)  # a copy
    assert distilled.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (distilled.header.method, distilled.header.ipc, distilled.header.label_kind) == ("dc", 2, "hard")
    assert distilled.header.native_recipe == DC.native_recipe(method.params, task.spec)
    assert set(task.phases) == {"data", "network", "set"}


# ------------------------------------------------------------------------------------------------ presets


def test_loops_are_those_of_the_released_code_and_else_of_the_nearest_size():
    assert [loops(n) for n in (1, 10, 20, 30, 40, 50)] == [(1, 1), (10, 50), (20, 25), (30, 20), (40, 15), (50, 10)]
    assert [loops(n) for n in (2, 5, 6, 15, 25, 100)] == [LOOPS[n] for n in (1, 1, 10, 10, 20, 50)]


@pytest.mark.parametrize(
    ("family", "published"),
    [
        ("mnist", (1, 10, 50)),
        ("fashion_mnist", (1, 10, 50)),
        ("svhn", (1, 10, 50)),
        ("cifar10", (1, 10, 50)),
        ("cifar100", (1, 10)),
        ("tiny_imagenet", ()),
    ],
)
def test_presets_name_their_source_only_where_the_paper_has_the_set(make_task, family, published):
    info = make_task().spec.dataset.model_copy(update={"family": family})
    for ipc in (1, 10, 50):
        preset = DC.preset(info, ipc)
        assert preset.params == {"outer_loop": loops(ipc)[0], "inner_loop": loops(ipc)[1]}
        assert (preset.source is not None) == (ipc in published)
        DCParams(**preset.params)


def test_defaults_are_the_papers(make_task):
    p = DCParams()
    assert (p.iterations, p.lr_img, p.momentum, p.lr_net) == (1000, 0.1, 0.5, 0.01)
    assert (p.batch_real, p.batch_train) == (256, 256)
    assert (p.init, p.distance, DC.augment, DC(p).steps) == ("noise", "ours", "none", 1001)
    assert all(field.description for field in DCParams.model_fields.values())


def test_loops_follow_the_budget_where_nothing_is_said(make_task):
    method = DC(DCParams())
    method.start(make_task(ipc=10))
    assert (method.outer_loop, method.inner_loop) == (10, 50)


def test_planning_needs_no_torch():
    code = "import sys, methods.dc, methods.dsa, methods.dm; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
