"""MTT against a student unrolled as one graph in float64: batches, draws, rates, presets, resume."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch.func import functional_call
from trajectory_fakes import SMALL, check_resume, check_ten_steps, task_with_experts, unflatten

import bench.data
from bench.train.recipe import resolve
from methods.mtt import FIELDS, MTT, ROWS


@pytest.fixture
def prepared(make_task):
    """Return a function that makes a task which has experts."""
    return partial(task_with_experts, make_task)


def mtt(**changes):
    return MTT(MTT.Params(**(SMALL | changes)))


@pytest.mark.parametrize("network", ["convnet-in-w4-d2", "convnet-bn-w4-d2", "convnet-ln-w4-d2"])
@pytest.mark.parametrize("augment", ["none", "dsa:color_crop_cutout_scale_rotate"])
def test_ten_steps_equal_a_plain_reference(prepared, augment, network):
    task, twin = (prepared(augment=augment, network=network) for _ in range(2))
    check_ten_steps(mtt(batch_syn=4), mtt(batch_syn=4), task, twin, detach=False, share=1.0, soft=False)


def test_ten_compiled_steps_equal_a_plain_reference(prepared, compiles):
    """With LayerNorm, whose second derivative vmap gets wrong."""
    task, twin = (prepared(augment="dsa:color_crop_cutout_scale_rotate", network="convnet-ln-w4-d2") for _ in range(2))
    method = mtt(batch_syn=3)
    check_ten_steps(method, mtt(batch_syn=3), task, twin, detach=False, share=1.0, soft=False)
    assert method.choices() == {"student": "compiled", "graphs": "rebuilt"}


def test_a_window_of_all_steps_is_exact(prepared):
    results = []
    for changes in ({}, {"sweep": "window", "window": 4}, {"sweep": "window", "window": 1}):
        method = mtt(**changes)
        method.start(prepared())
        method.step()
        results.append(method.set.pixels.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-14)
    assert (results[0] - results[2]).abs().max() > 1e-6


def test_one_step_from_the_first_weights_is_gradient_matching(prepared):
    """N = 1 at the experts' start: the images move down rate^2 / Delta ||g - (theta_0 - theta*) / rate||^2."""
    task, twin = prepared(), prepared()
    method, draws = (mtt(syn_steps=1, max_start_epoch=1) for _ in range(2))
    method.start(task)
    draws.start(twin)
    start, goal = draws._expert()
    images, network = draws.set.pixels.detach().clone().requires_grad_(), task.network()
    point = start.clone().requires_grad_()
    logits = functional_call(network, unflatten(network, point), (images,))
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, draws.set.labels), point, create_graph=True)
    distance = 0.01**2 / (start - goal).square().sum() * (gradient - (start - goal) / 0.01).square().sum()
    (slope,) = torch.autograd.grad(distance, images)
    torch.testing.assert_close(method.step()["loss"], distance.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(method.set.pixels.detach(), (images - 0.2 * slope).detach(), rtol=1e-10, atol=1e-14)


def test_chunks_come_with_the_short_one_first(prepared):
    method = mtt(batch_syn=8)
    method.start(prepared(classes=10, ipc=2, network="convnet-in-w2-d1"))
    chunks = [method._chunk() for _ in range(6)]
    assert [len(chunk) for chunk in chunks] == [4, 8, 8, 4, 8, 8]
    assert sorted(torch.cat(chunks[:3]).tolist()) == list(range(20))


def test_without_a_rate_the_loss_is_one_and_only_the_rate_learns(prepared):
    method = mtt()
    method.start(prepared())
    with torch.no_grad():
        method.rate.zero_()
    before = method.set.pixels.detach().clone()
    assert float(method.step()["loss"]) == 1.0
    assert torch.equal(method.set.pixels.detach(), before)
    assert float(method.rate.detach()) != 0


def test_start_epochs_stay_in_range(prepared):
    for latest, wanted in ((2, {0, 1}), (1, {0})):  # with one start epoch it is always the first weights
        method = mtt(max_start_epoch=latest, expert_epochs=2)
        method.start(prepared())
        rows, seen = method.snapshots.tensor, set()
        for _ in range(60):
            start, goal = method._expert()
            (who, begin) = next((i, t) for i in range(3) for t in range(4) if torch.equal(rows[i, t], start))
            assert torch.equal(rows[who, begin + 2], goal)
            seen.add(begin)
        assert seen == wanted


def test_start_epochs_beyond_the_experts_are_refused():
    with pytest.raises(ValidationError, match="up to epoch 4 of 3"):
        MTT.Params(**SMALL | {"max_start_epoch": 3, "expert_epochs": 2})


def test_a_buffer_read_from_its_file_gives_the_same(prepared, tmp_path):
    resident, streamed = prepared(), prepared()
    save_file(streamed.artifacts.pop("experts"), tmp_path / "tensors.safetensors")
    file = safe_open(tmp_path / "tensors.safetensors", framework="pt")
    streamed.artifact_slice = lambda name, tensor: file.get_slice(tensor)
    results = []
    for task in (resident, streamed):
        method = mtt()
        method.start(task)
        for _ in range(3):
            method.step()
        results.append(method.set.pixels.detach())
    assert torch.equal(*results)


def test_scaling_both_rates_is_scaling_the_loss(prepared):
    """Momentum SGD is linear in the gradient, so k times both rates at a k-th of the loss changes nothing."""
    paths = []
    for factor in (1.0, 4.0):
        method = mtt(lr_img=0.2 * factor, lr_lr=1e-6 * factor)
        method.start(prepared())
        for leaf, optimiser in ((method.set.pixels, method.set.optimiser), (method.rate, method.rate_optimiser)):

            def divide(*_, leaf=leaf, factor=factor):
                leaf.grad /= factor

            optimiser.register_step_pre_hook(divide)
        for _ in range(3):
            method.step()
        paths.append((method.set.pixels.detach(), method.rate.detach()))
    torch.testing.assert_close(paths[0], paths[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("network", ["convnet-in-w4-d2", "convnet-bn-w4-d2"])
def test_state_continues_bit_for_bit(prepared, network):
    check_resume(lambda: mtt(batch_syn=4), partial(prepared, augment="dsa:color_crop", network=network))


def test_running_statistics_stay_as_they_are(prepared):
    method = mtt()
    method.start(prepared(network="convnet-bn-w4-d2"))
    before = [buffer.clone() for buffer in method.student.network.buffers()]
    method.step()
    assert before
    assert all(torch.equal(a, b) for a, b in zip(before, method.student.network.buffers(), strict=True))


def test_the_learned_rate_is_stored_and_used_by_the_native_recipe(prepared):
    method = mtt(lr_lr=1e-3)
    task = prepared()
    method.start(task)
    method.step()
    header = method.export().header
    assert header.learned_rate == method.rate.item() != 0.01
    recipe = resolve(method.native_recipe(method.params, task.spec))
    assert (recipe.lr, recipe.epochs, recipe.augment, recipe.momentum) == ("learned", 1000, "dsa", 0.9)


# the commands of the authors, by dataset and IPC, in the order of FIELDS
PUBLISHED = {
    ("cifar10", 1): (50, 2, 2, 100, 1e-7, 0.01, None, True),
    ("cifar10", 10): (30, 2, 20, 100, 1e-5, 0.001, None, True),
    ("cifar10", 50): (30, 2, 40, 1000, 1e-5, 0.001, None, False),
    ("cifar100", 1): (20, 3, 20, 1000, 1e-5, 0.01, None, True),
    ("cifar100", 10): (20, 2, 20, 1000, 1e-5, 0.01, None, False),
    ("cifar100", 50): (80, 2, 40, 1000, 1e-5, 0.01, 125, True),
    ("tiny_imagenet", 1): (10, 2, 10, 10000, 1e-4, 0.01, None, False),
    ("tiny_imagenet", 10): (20, 2, 40, 10000, 1e-4, 0.01, 200, False),
    ("tiny_imagenet", 50): (20, 2, 40, 10000, 1e-4, 0.01, 300, False),
    ("imagenette", 1): (20, 2, 10, 1e5, 1e-6, 0.01, None, False),
    ("imagewoof", 10): (20, 2, 10, 1e5, 1e-6, 0.01, 20, False),
}


@pytest.mark.parametrize(("name", "ipc"), PUBLISHED)
def test_presets_are_the_commands_of_the_authors(name, ipc):
    info = bench.data.info(name)
    preset = MTT.preset(info, ipc)
    params = MTT.Params(**preset.params)
    assert preset.source
    assert tuple(getattr(params, field) for field in FIELDS) == PUBLISHED[name, ipc]
    assert (params.experts, params.train_epochs, params.train_lr, params.train_batch) == (100, 50, 0.01, 256)
    assert (params.iterations, params.momentum, params.init) == (5000, 0.5, "real")
    assert MTT.preprocessing(params, info) == ("zca-kornia" if params.zca else "meanstd")


@pytest.mark.parametrize(
    ("name", "ipc", "nearest"),
    [("mnist", 1, 1), ("mnist", 10, 10), ("fashion_mnist", 50, 50), ("digits", 3, 1), ("digits", 4, 10)],
)
def test_other_data_take_the_nearest_row_of_cifar10_without_a_source(name, ipc, nearest):
    preset = MTT.preset(bench.data.info(name), ipc)
    assert preset.source is None
    assert preset.params == dict(zip(FIELDS, ROWS["cifar10", nearest], strict=True)) | {"zca": False}


def test_other_sizes_take_the_nearest_row_of_their_dataset():
    preset = MTT.preset(bench.data.info("cifar100"), 20)
    assert preset.source is None
    assert preset.params == dict(zip(FIELDS, PUBLISHED["cifar100", 10], strict=True))
