"""The clock is a fake one that only moves when told, so that every second can be accounted for exactly."""

import json

import pytest
import torch

from bench import profile as module
from bench.profile import PHASES, Profile


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def tick(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def test_every_second_is_booked_once(clock):
    profile = Profile(clock=clock)
    clock.tick(50)  # before the start
    with profile:
        clock.tick(1)
        with profile.phase("data"):
            clock.tick(2)
        with profile.phase("set"):
            clock.tick(4)
        with profile.phase("data"):
            clock.tick(8)
    clock.tick(50)  # after the end
    summary = profile.summary()
    assert summary["seconds"] == 15
    assert summary["phases"] == {"data": 10, "network": 0, "set": 4, "evaluation": 0, "other": 1}


def test_medians_leave_the_warm_up_out(clock):
    profile = Profile(clock=clock, warmup=2)
    with profile:
        for seconds in (100, 50, 1, 2, 9):
            with profile.step():
                clock.tick(seconds)
                with profile.phase("network"):
                    clock.tick(2 * seconds)
            clock.tick(1000)  # between the steps
    summary = profile.summary()
    assert (summary["steps"], summary["warmup_steps"]) == (5, 2)
    assert summary["seconds_per_step"] == 6
    assert summary["phases_per_step"] == {"data": 0, "network": 4, "set": 0, "evaluation": 0}
    assert summary["seconds"] == 3 * 162 + 5000


def test_no_median_from_warm_up_steps_alone(clock):
    profile = Profile(clock=clock)
    with profile, profile.step():
        clock.tick(1)
    summary = profile.summary()
    assert (summary["steps"], summary["seconds_per_step"], summary["phases_per_step"]) == (1, None, {})


def test_untimed_stops_the_clock_everywhere(clock):
    profile = Profile(clock=clock, warmup=0)
    with profile, profile.step(), profile.phase("data"):
        clock.tick(1)
        with profile.untimed():
            clock.tick(10)
            with profile.untimed():
                clock.tick(10)
            assert profile.seconds == 1
            clock.tick(10)
        clock.tick(2)
    summary = profile.summary()
    assert summary["seconds"] == summary["phases"]["data"] == summary["seconds_per_step"] == 3


def test_phases_and_steps_do_not_nest(clock):
    profile = Profile(clock=clock)
    with profile:
        nested = pytest.raises(RuntimeError, match="'set' begins inside phase 'data'")
        with profile.phase("data"), nested, profile.phase("set"):
            pass
        with profile.step(), pytest.raises(RuntimeError, match="step"), profile.step():
            pass
        with pytest.raises(RuntimeError, match="unknown phase 'coffee'"), profile.phase("coffee"):
            pass
        with pytest.raises(RuntimeError, match="already running"), profile:
            pass
    with pytest.raises(RuntimeError, match="running"), profile.step():
        pass


def test_a_failure_books_its_phase_but_not_its_step(clock):
    profile = Profile(clock=clock, warmup=0)

    def fail():
        clock.tick(3)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), profile, profile.step(), profile.phase("set"):
        fail()
    summary = profile.summary()
    assert (summary["seconds"], summary["phases"]["set"], summary["steps"]) == (3, 3, 0)
    with profile, profile.step(), profile.phase("data"):  # and it can go on
        clock.tick(1)
    assert profile.summary()["seconds"] == 4


def test_phases_outside_the_run_are_free(clock):
    profile = Profile(clock=clock)
    with profile.phase("data"):
        clock.tick(5)
    assert profile.summary()["phases"]["data"] == 0


def test_totals_survive_a_resume(clock):
    def run(profile, durations):
        with profile:
            for seconds in durations:
                with profile.step(), profile.phase("set"):
                    clock.tick(seconds)

    whole = Profile(clock=clock)
    run(whole, [7, 1, 2])
    run(whole, [9, 3])  # its first step warms up again
    first = Profile(clock=clock)
    with first:
        for seconds in (7, 1, 2):
            with first.step(), first.phase("set"):
                clock.tick(seconds)
        state = json.loads(json.dumps(first.state_dict()))  # taken while it runs, as a checkpoint is
    clock.tick(1e6)  # the machine was off
    second = Profile(clock=clock)
    second.load_state_dict(state)
    run(second, [9, 3])
    expected, found = whole.summary(), second.summary()
    for key in ("seconds", "phases", "steps", "warmup_steps", "seconds_per_step", "phases_per_step"):
        assert found[key] == expected[key]
    assert found["seconds_per_step"] == 2
    assert found["warmup_steps"] == 2
    assert found["peak_host_MiB"] >= state["peaks"]["host"]
    with second, pytest.raises(RuntimeError):
        second.load_state_dict(state)


def test_peak_of_the_host_is_above_the_baseline_and_is_reset():
    def peak_of(mebibytes):
        profile = Profile()
        with profile:
            torch.ones(mebibytes * 2**18).sum()
        return profile.summary()["peak_host_MiB"]

    assert 100 <= peak_of(128) <= 256
    if "upper bound" in module.reset_host_peak():
        pytest.skip("the kernel does not let the high-water mark be reset")
    assert peak_of(1) < 60  # the 128 MiB before are forgotten


def test_a_kernel_without_reset_says_so(monkeypatch):
    class Closed:
        def __init__(self, path):
            pass

        def write_text(self, text):
            raise PermissionError

        def read_text(self):
            raise PermissionError

    monkeypatch.setattr(module, "Path", Closed)
    profile = Profile()
    with profile:
        pass
    summary = profile.summary()
    assert "upper bound" in summary["host_source"]
    assert summary["peak_host_MiB"] >= 0
    assert module.host_peak_mib() > 10


def test_no_device_peak_on_a_cpu():
    profile = Profile()
    with profile:
        pass
    assert profile.summary()["peak_device_MiB"] is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_phase_pays_for_the_device_work_it_started():
    profile = Profile("cuda", warmup=0)
    matrix = torch.randn(4096, 4096, device="cuda")
    with profile:
        with profile.phase("set"):
            for _ in range(20):
                matrix = matrix @ matrix / 64
        with profile.phase("data"):
            pass
    summary = profile.summary()
    assert summary["phases"]["set"] > 10 * summary["phases"]["data"]
    assert summary["peak_device_MiB"] >= 64


def test_the_phases_are_those_of_the_contract():
    assert PHASES == ("data", "network", "set", "evaluation")
