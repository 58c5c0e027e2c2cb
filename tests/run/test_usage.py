"""What a cell took is recorded beside its result and never changes it."""

from __future__ import annotations

import time

import pytest
import run_fakes as fakes
import torch

from bench.run import Store, run_plan, usage


def test_seconds_and_cpu_seconds_are_those_of_the_clocks():
    meter = usage.Meter("cpu")
    begin, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < 0.05:
        pass
    time.sleep(0.2)
    found, wall, busy = meter.read(), time.perf_counter() - begin, time.process_time() - cpu
    assert 0.25 <= found["seconds"] <= wall
    assert 0.05 <= found["cpu_seconds"] <= busy
    assert found["seconds"] - found["cpu_seconds"] >= 0.15  # asleep is not CPU
    assert found["own_process"] is False
    assert set(found["calibration"]) == {"version", "seconds", "cpu_seconds"}


def test_short_cells_are_not_calibrated(monkeypatch):
    monkeypatch.setattr(usage, "SHORT", 60.0)  # this process may have to wait for a core
    assert usage.Meter("cpu").read()["calibration"] is None


def test_the_calibration_trains_and_touches_no_global_state():
    rng, threads, grad = torch.random.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled()
    first, second = usage.calibration_step("cpu"), usage.calibration_step("cpu")
    with torch.no_grad():
        losses = [float(first()) for _ in range(30)]
    assert losses[-1] < losses[0]
    assert float(second()) == losses[0]  # it starts anew and draws nothing
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)


def test_a_calibration_that_fails_costs_no_result(monkeypatch):
    def full(device):
        raise torch.OutOfMemoryError("made up")

    monkeypatch.setattr(usage, "calibration_step", full)
    meter = usage.Meter("cpu")
    time.sleep(usage.SHORT)
    assert meter.read()["calibration"] is None


@pytest.mark.parametrize("executor", ["local", "inline"])
def test_results_carry_it(tmp_path, executor, monkeypatch):
    monkeypatch.setattr(usage, "SHORT", 60.0)  # in this process: a short cell may have to wait for a core
    cell = (
        fakes.cell("stepwise", name="a", start=0.3, steps=3, block=9, seconds=0.1)
        if executor == "local"
        else fakes.cell("number", value=1)
    )
    store = Store(tmp_path)
    run_plan(fakes.plan(cell), store, jobs=1, executor=executor, progress=False)
    found = store.result(cell.key)["usage"]
    assert (found["own_process"], found["resumed"]) == (executor == "local", False)
    assert (found["calibration"] is not None) == (executor == "local")


def test_a_cell_that_goes_on_from_a_checkpoint_says_so(tmp_path):
    cell, store = fakes.cell("number", value=1), Store(tmp_path)
    (store.work(cell.key) / "checkpoint.pt").write_bytes(b"")
    run_plan(fakes.plan(cell), store, jobs=1, executor="inline", progress=False)
    assert store.result(cell.key)["usage"]["resumed"] is True
