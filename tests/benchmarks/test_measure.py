"""Times and ratios of sides whose cost is known, and the files that come out."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import bench.benchmarks
from bench.benchmarks import side, table
from bench.benchmarks.case import Case, Sides
from bench.benchmarks.measure import measure
from bench.benchmarks.side import Here
from bench.cli import app
from bench.errors import UserError


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when a side works."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(side, "now", lambda: now.seconds)
    return now


def working(clock, *costs):
    """Return a function whose calls take these seconds, the last one from then on."""
    left = list(costs)

    def work():
        clock.seconds += left.pop(0) if len(left) > 1 else left[0]

    return work


def case(sides: Sides, **fields) -> Case:
    return Case("a case", "group", "one call", lambda: sides, **fields)


def test_the_ratio_is_plain_over_fast_and_the_first_call_stands_apart(clock):
    sides = Sides(working(clock, 9.0, 2.0), working(clock, 5.0), facts={"chunk": 3})
    row = measure(case(sides, target=2.0), 4, make=Here)
    assert (row.fast["first"], row.fast["median"], row.fast["least"]) == (9.0, 2.0, 2.0)
    assert (row.ratio["median"], row.ratio["low"], row.ratio["high"], row.ratio["of_least"]) == (2.5,) * 4
    assert (row.turns, row.holds, row.facts) == (4, True, {"chunk": 3})
    assert "whole" not in row.ratio


def test_a_claim_about_the_whole_run_pays_for_the_first_call(clock):
    """A tenth of the run: 10 x 5 s plain, 10 x 2 s + 7 s of compilation fast."""
    sides = Sides(working(clock, 9.0, 2.0), working(clock, 5.0))
    row = measure(case(sides, target=2.0, share=0.1), 3, make=Here)
    assert row.ratio["whole"] == pytest.approx(50 / 27)
    assert row.holds is False


def test_short_calls_are_repeated_until_they_can_be_timed(clock):
    calls = []
    sides = Sides(lambda: (calls.append(1), working(clock, 0.001)()))
    row = measure(case(sides, limit=0.0005), 5, make=Here)
    assert len(calls) == 2 + 5 * 20
    assert row.fast["median"] == pytest.approx(0.001)
    assert (row.ratio, row.plain, row.holds) == (None, None, False)


def test_quartiles_are_those_of_the_turns(clock):
    sides = Sides(working(clock, 9.0, 1.0), working(clock, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0))
    ratios = [1.0, 2.0, 3.0, 4.0, 5.0]  # without the long first call
    row = measure(case(sides), 5, make=Here)
    assert [row.ratio[name] for name in ("low", "median", "high")] == list(np.quantile(ratios, [0.25, 0.5, 0.75]))


def test_peak_memory_counts_what_a_call_held():
    held = 64 * 2**20
    sides = Sides(lambda: np.ones(held, dtype=np.uint8).sum(), lambda: time.sleep(0))
    row = measure(case(sides, memory=True), 1, make=Here)
    assert 60 < row.fast["peak_MiB"] < 90
    assert row.plain["peak_MiB"] < 20


@pytest.mark.parametrize(("seconds", "text"), [(12.345, "12.3 s"), (0.0123, "12.3 ms"), (4e-6, "4 us"), (2e-9, "2 ns")])
def test_durations(seconds, text):
    assert table.duration(seconds) == text


def test_only_names_a_group_or_a_case():
    augment = bench.benchmarks.cases("augment", quick=True)
    assert {one.group for one in augment} == {"augment"}
    assert [one.name for one in bench.benchmarks.cases("DSA flip", quick=True)] == ["DSA flip, 12 images"]
    with pytest.raises(UserError, match="called 'augmnt'"):
        bench.benchmarks.cases("augmnt")


def test_the_command_prints_and_keeps_the_table(tmp_path):
    done = CliRunner().invoke(
        app, ["bench", "--quick", "--only", "DSA scale", "--repeats", "2", "--threads", "1", "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in kept["rows"]] == ["DSA scale, 12 images", "DSA scale, parameters of 12 images"]
    assert kept["provenance"]["threads"] == 1
    assert kept["provenance"]["packages"]["torch"]
    for text in (done.output, (tmp_path / "bench.md").read_text()):
        assert "DSA scale, 12 images" in text
    assert "runnable processes" in (tmp_path / "bench.md").read_text()
