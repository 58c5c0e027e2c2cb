"""The time left, against simulated runs whose true end is known."""

from __future__ import annotations

import heapq
import itertools
from types import SimpleNamespace

import pytest

from bench.run import Event
from bench.run.job import Progress
from bench.run.tally import Tally

CACHED = "cached"


class Clock:
    """Seconds that pass when the simulation says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def cell(number, *, kind="distil", name="dm", weight=1.0, timed=False):
    return SimpleNamespace(
        key=f"{kind}{name}{number}{timed}",
        kind=kind,
        config={"method": name},
        coords={"dataset": "d"},
        weight=weight,
        timed=timed,
    )


def simulate(cells, seconds, jobs, pause=0.0):
    """Run cells, heaviest first, timed ones alone at the end; yield (true seconds left, seconds said to be left).

    seconds: cell -> seconds it takes, or CACHED. pause: what the runner takes between two starts.
    """
    clock = Clock()
    tally = Tally(cells, clock)
    for one in cells:
        if seconds(one) == CACHED:
            tally.note(Event(one, CACHED, seconds=1e6))
    waiting = sorted((one for one in cells if seconds(one) != CACHED), key=lambda one: (one.timed, -one.weight))
    running, order, said = [], itertools.count(), []
    while waiting or running:
        while waiting and len(running) < jobs and not (running and (waiting[0].timed or running[0][2].timed)):
            one = waiting.pop(0)
            tally.note(Event(one, "running"))
            clock.now += pause
            heapq.heappush(running, (clock.now + seconds(one), next(order), one))
        end, _, one = heapq.heappop(running)
        clock.now = max(clock.now, end)
        tally.note(Event(one, "ok", seconds=seconds(one)))
        said.append((clock.now, tally.time_left()))
    assert tally.time_left() == 0
    assert len(tally.finished) == len(cells)
    return [(clock.now - at, left) for at, left in said]


def within(said, factor, skip):
    """Assert that what was said lies within a factor of the truth, but for the last tenth; skip: share at the start."""
    whole = said[0][0]
    middle = [(true, left) for true, left in said if 0.1 * whole < true < (1 - skip) * whole]
    assert middle
    for true, left in middle:
        assert true / factor < left < true * factor, (true, left)


@pytest.mark.parametrize("jobs", [1, 4])
def test_seconds_that_follow_the_weights(jobs):
    cells = [cell(i, weight=1 + i % 7) for i in range(200)]
    within(simulate(cells, lambda one: 3 * one.weight, jobs), 1.2, 0.05)


@pytest.mark.parametrize("jobs", [1, 4])
def test_cells_that_all_take_the_same_whatever_their_weight(jobs):
    """Of many light cells none has run yet when the first heavy ones are done."""
    cells = [cell(i, weight=1000.0) for i in range(20)]
    cells += [cell(i, kind="prepare", weight=0.01) for i in range(500)]
    cells += [cell(i, kind="evaluate", weight=0.001) for i in range(500)]
    within(simulate(cells, lambda one: 0.003, jobs), 1.5, 0.0)


def test_light_cells_are_not_taken_for_heavy_ones():
    cells = [cell(i, weight=1000.0) for i in range(20)]
    cells += [cell(i, kind="evaluate", weight=0.001) for i in range(100)]
    within(simulate(cells, lambda one: 100.0 if one.kind == "distil" else 0.5, 2), 1.5, 0.0)


def test_the_runner_itself_takes_time():
    cells = [cell(i) for i in range(300)]
    within(simulate(cells, lambda one: 0.01, 4, pause=0.1), 1.3, 0.1)


def test_what_a_method_takes_is_measured_whatever_its_weight():
    cells = [cell(i, name=name) for i in range(50) for name in ("dm", "mtt")]
    within(simulate(cells, lambda one: 1.0 if one.config["method"] == "dm" else 60.0, 4), 1.5, 0.2)


def test_cells_that_are_there_already_count_for_nothing():
    cells = [cell(i, weight=1 + i % 5) for i in range(400)]
    said = simulate(cells, lambda one: CACHED if int(one.key[8:-5]) % 4 else 2.0, 2)
    within(said, 1.5, 0.2)
    assert said[0][1] < 400  # not the million seconds that the cached ones say they took


def test_timed_cells_run_alone():
    cells = [cell(i) for i in range(40)] + [cell(i, kind="evaluate", timed=True) for i in range(40)]
    within(simulate(cells, lambda one: 5.0, 4), 1.3, 0.05)


def test_nothing_is_said_before_something_was_computed():
    clock = Clock()
    one, two = cell(1), cell(2)
    tally = Tally([one, two], clock)
    assert tally.time_left() is None
    tally.note(Event(one, "cached"))
    assert tally.time_left() is None
    tally.note(Event(two, "running"))
    clock.now += 10
    tally.note(Event(two, "ok", seconds=10.0))
    assert tally.time_left() == 0


def test_a_running_cell_is_judged_by_its_steps():
    clock = Clock()
    cells = [cell(1), cell(2)]
    tally = Tally(cells, clock)
    tally.note(Event(cells[0], "running"))
    clock.now += 10
    tally.note(Event(cells[0], "ok", seconds=10.0))
    tally.note(Event(cells[1], "running"))
    for step in (500, 501, 510):  # continued from a checkpoint: the first steps were done before
        clock.now += 1 if step < 510 else 9
        tally.note(Event(cells[1], "running", progress=Progress("k", step, 1000)))
    assert tally.time_left() == pytest.approx(490)
    clock.now += 90
    assert tally.time_left() == pytest.approx(400)


def test_a_running_cell_without_steps_is_expected_to_take_what_others_took():
    clock = Clock()
    cells = [cell(1), cell(2)]
    tally = Tally(cells, clock)
    for one in cells:
        tally.note(Event(one, "running"))
    clock.now += 10
    tally.note(Event(cells[0], "ok", seconds=10.0))
    clock.now -= 6
    assert tally.time_left() >= 0


def test_damaged_cells_are_to_be_done_again_and_failed_ones_are_not():
    clock = Clock()
    cells = [cell(i) for i in range(4)]
    tally = Tally(cells, clock)
    tally.note(Event(cells[0], "running"))
    clock.now += 10
    tally.note(Event(cells[0], "ok", seconds=10.0))
    assert tally.time_left() == pytest.approx(30)
    tally.note(Event(cells[0], "damaged", "why"))
    clock.now += 5
    assert tally.time_left() == pytest.approx(40)
    tally.note(Event(cells[1], "failed", "why"))
    clock.now += 5
    assert tally.time_left() == pytest.approx(30)
    assert (len(tally.finished), tally.failed) == (1, 1)


def test_many_cells_at_once_cost_little(monkeypatch):
    """Groups are gone through once a second, not at every event."""
    clock, looks = Clock(), []
    cells = [cell(i) for i in range(1000)]
    tally = Tally(cells, clock)
    expected = tally._expected
    monkeypatch.setattr(tally, "_expected", lambda now: looks.append(now) or expected(now))
    for one in cells:
        tally.note(Event(one, "running"))
        clock.now += 0.01
        tally.note(Event(one, "ok", seconds=0.01))
        tally.time_left()
    assert len(looks) <= 12
