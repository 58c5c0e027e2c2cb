"""Compiled steps are plain steps up to rounding, are chosen by the work alone, and give way where the compiler fails.

Most tests trace the step and run the graph with torch's own kernels (`aot_eager`): that is the part that can be wrong
here, in seconds. One test goes all the way through the C++ compiler.
"""

from __future__ import annotations

import pytest
import torch
from plain_training import generators

import bench.lazy
import bench.nets
from bench import compiled
from bench.api import NetSpec
from bench.train import losses, step, train
from bench.train.recipe import Recipe, resolve

SPEC = NetSpec(norm="in", width=4, depth=2)
SEEDS = (3, 1)
real_compile = torch.compile


@pytest.fixture
def traced(monkeypatch):
    """Trace as in earnest, leave the C++ compiler out; return the calls."""
    calls = []

    def compile_(function, **options):
        fast = real_compile(function, backend="aot_eager", **options)

        def counted(*arguments):
            calls.append([a.shape for a in arguments if isinstance(a, torch.Tensor)])
            return fast(*arguments)

        return counted

    monkeypatch.setattr(step, "_known", {})
    monkeypatch.setattr(bench.lazy.torch, "compile", compile_)
    monkeypatch.setattr(compiled, "has_compiler", lambda: True)
    return calls


def both(spec, images, labels, info, *, stack="auto", **fields):
    """Return what plain and what compiled training gives."""
    options = {name: fields.pop(name) for name in ("label_kind", "outliers", "outlier_weight") if name in fields}
    recipe = Recipe(**{"epochs": 2, "batch": 4, "lr": 0.05} | fields)
    runs = [recipe.model_copy(update={"compile": choice}) for choice in ("never", "always")]
    return [train(spec, images, labels, run, generators(*SEEDS), info=info, stack=stack, **options) for run in runs]


def same(one, other, tolerance=1e-12):
    for name, value in {**one.params, **one.buffers, **one.curves}.items():
        found = {**other.params, **other.buffers, **other.curves}[name]
        torch.testing.assert_close(found, value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("network", "stack"),
    [("convnet-in-w4-d2", "loop"), ("convnet-bn-w4-d2", "loop"), ("convnet-none-w4-d2", "vmap"), ("mlp-w8", "loop")],
)
def test_compiled_is_plain(traced, info, images, labels, network, stack):
    plain, fast = both(bench.nets.parse(network), images, labels, info, stack=stack, augment="dsa:color_scale_rotate")
    assert (plain.compiled, fast.compiled, fast.stack) == ("plain: the configuration says so", "compiled", stack)
    assert traced
    same(plain, fast)


def test_pieces_are_the_whole_batch(traced, monkeypatch, info, images, labels):
    """Seven images in pieces of three, the last one filled up: 2 networks, 3 epochs, 3 pieces."""
    monkeypatch.setattr(step, "PIECE", 3 * 4 * 64)
    monkeypatch.setattr(bench.lazy.torch, "get_num_threads", lambda: 1)
    plain, fast = both(SPEC, images, labels, info, batch=256)
    same(plain, fast)
    assert len(traced) == 2 * 3 * 3
    assert {shapes[0] for shapes in traced} == {(3, 1, 8, 8)}


@pytest.mark.parametrize(("kind", "loss"), [("centred", "mse"), ("logits", "l1"), ("probabilities", "soft_ce")])
def test_outliers_and_every_loss_in_pieces(traced, monkeypatch, info, images, kind, loss):
    monkeypatch.setattr(step, "PIECE", 2 * 4 * 64)
    soft = torch.softmax(torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), 1)
    outliers = images.flip(0) * 2
    plain, fast = both(
        SPEC, images, soft, info, label_kind=kind, loss=loss, outliers=outliers, outlier_weight=0.5, batch=5
    )
    assert fast.compiled == "compiled"
    same(plain, fast)


def test_bf16_autocast_is_inside_the_compiled_step(traced, info, images, labels):
    runs = [both(SPEC, images.float(), labels, info, epochs=1, precision=name) for name in ("fp32", "bf16")]
    plain, fast = runs[1]
    assert fast.params["head.weight"].dtype == torch.float32
    exact = runs[0][1].params["head.weight"]
    assert 1e-6 < (fast.params["head.weight"] - exact).abs().max() < 0.02
    same(plain, fast, tolerance=0.02)


@pytest.mark.parametrize("loss", ["ce", "soft_ce", "mse", "l1"])
def test_the_loss_of_a_batch_is_the_mean_over_its_images(loss):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=rng, dtype=torch.float64)
    target = torch.arange(6) % 5 if loss == "ce" else torch.randn(6, 5, generator=rng, dtype=torch.float64).softmax(1)
    torch.testing.assert_close(losses.of_each(loss, logits, target).mean(), losses.compute(loss, logits, target))


# ---------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize("replicates", [1, 3])
def test_the_choice_is_made_by_the_work_of_one_network(traced, monkeypatch, info, images, labels, replicates):
    each = bench.nets.multiply_adds(bench.nets.build(SPEC, info.shape, info.classes), info.shape)
    work = 3 * each * 4 * 3 * 2  # three epochs (half_reset) of two batches, counted as full ones
    for worth, expected in ((work, "compiled"), (work + 1, f"plain: a short run ({work:.0e} multiply-adds)")):
        monkeypatch.setattr(compiled, "WORTH", worth)
        rngs = generators(*range(replicates))
        handle = train(SPEC, images, labels, Recipe(epochs=2, batch=4), rngs, info=info)
        assert handle.compiled == expected
        assert handle.stack == ("loop" if expected == "compiled" else "vmap")


def test_a_short_training_is_never_compiled_and_that_costs_no_key(info, images, labels):
    assert "compile" not in resolve("review").model_dump()
    assert resolve({"compile": "never"}).model_dump()["compile"] == "never"
    handle = train(SPEC, images, labels, Recipe(epochs=2), generators(0), info=info)
    assert handle.compiled.startswith("plain: a short run")


def test_the_environment_can_forbid_it(traced, monkeypatch, info, images, labels):
    monkeypatch.setenv("DDBENCH_COMPILE", "0")
    plain, fast = both(SPEC, images, labels, info)
    assert fast.compiled == "plain: DDBENCH_COMPILE=0"
    assert not traced
    same(plain, fast, tolerance=0)


# ---------------------------------------------------------------------------------------------- failures


def test_a_compiler_that_fails_is_not_asked_again(monkeypatch, info, images, labels):
    asked = []

    def backend(graph, inputs):
        asked.append(1)
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(step, "_known", {})
    monkeypatch.setattr(bench.lazy.torch, "compile", lambda f, **options: real_compile(f, backend=backend, **options))
    monkeypatch.setattr(compiled, "has_compiler", lambda: True)
    plain, fast = both(SPEC, images, labels, info, stack="loop")
    assert fast.compiled == "plain: the compiler failed (BackendCompilerFailed)"
    assert len(asked) == 1
    same(plain, fast)


def test_no_compiler_no_compiled_step(monkeypatch, info, images, labels):
    monkeypatch.setattr(compiled, "has_compiler", lambda: False)
    plain, fast = both(SPEC, images, labels, info)
    assert fast.compiled == "plain: no C++ compiler found"
    same(plain, fast, tolerance=0)


def test_through_the_compiler_same_seed_same_bytes(info, images, labels):
    if not compiled.has_compiler():
        pytest.skip("no C++ compiler here")
    spec = NetSpec(norm="in", width=4, depth=1)
    plain, fast = both(spec, images.float(), labels, info)
    again = both(spec, images.float(), labels, info)[1]
    assert fast.compiled == "compiled"
    same(plain, fast, tolerance=1e-5)
    same(fast, again, tolerance=0)
