"""The sweep by compiled steps is the sweep by plain ones, piece by piece."""

import pytest
import torch
from unroll_toy import close, toy, trajectory

from bench import unroll_compiled
from bench.unroll import Flat, differentiate
from bench.unroll_compiled import CompiledStep


@pytest.fixture
def compiles(monkeypatch):
    """Compile by everything of torch.compile but its code generator, which takes a minute."""
    compile_ = torch.compile
    monkeypatch.setenv("DDBENCH_COMPILE", "1")
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compile_(*args, backend="aot_eager", **options))
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(("mode", "momentum", "images"), [("recompute", 0.9, 2), ("identity", 0.0, 100)])
def test_compiled_steps_give_the_same_sweep(monkeypatch, compiles, mode, momentum, images):
    """Batches of 3 to 5 images with learned labels, in pieces of at most 2, and in one piece."""
    problem, _ = trajectory(toy(), toy(1)["weights"])
    flat = problem["step_loss"].flat
    monkeypatch.setattr(unroll_compiled, "PIECE", images * 4 * 16 // torch.get_num_threads())
    fast = CompiledStep(flat, exact=mode != "identity", soft=True, work=0, device=torch.device("cpu"))
    expected = differentiate(**problem, mode=mode, momentum=momentum)
    found = differentiate(**problem, mode=mode, momentum=momentum, fast=fast)
    assert fast.choice == "compiled"
    for a, b in zip(
        [found.loss, found.rates, *found.leaves], [expected.loss, expected.rates, *expected.leaves], strict=True
    ):
        close(a, b)


def test_short_loops_are_plain():
    fast = CompiledStep(toy()["step_loss"].flat, exact=True, work=1e6, device=torch.device("cpu"))
    assert not fast
    assert fast.choice.startswith("plain: a short run")


def test_running_statistics_are_left_to_the_plain_step(monkeypatch):
    monkeypatch.setenv("DDBENCH_COMPILE", "auto")
    flat = Flat(torch.nn.BatchNorm2d(2))
    assert not CompiledStep(flat, exact=True, work=1e20, device=torch.device("cpu"))
