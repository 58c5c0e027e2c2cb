"""Both sides of every benchmark give the same result; `pytest tests/benchmarks --benchmark-enable` times them."""

from __future__ import annotations

import pickle

import pytest

import bench.benchmarks
from bench.benchmarks.case import Case

CASES = {case.name: case for case in bench.benchmarks.cases(quick=True)}


def test_names_are_unique_and_every_group_has_cases():
    found = bench.benchmarks.cases(quick=True)
    assert len(CASES) == len(found)
    assert {case.group for case in found} == set(bench.benchmarks.GROUPS)


def test_claims_are_made_for_full_sizes_only():
    assert any(case.target for case in bench.benchmarks.cases())
    assert not any(case.target or case.limit for case in CASES.values())


def test_cases_travel_to_the_processes_that_time_them():
    for case in [*bench.benchmarks.cases(), *CASES.values()]:
        assert pickle.loads(pickle.dumps(case)).name == case.name


@pytest.mark.parametrize("name", CASES)
def test_fast_and_plain_give_the_same(name):
    sides = CASES[name].make()
    if sides.check is None:
        pytest.skip("two different things, compared in time only")
    sides.check()


@pytest.mark.parametrize("side", ["fast", "plain"])
@pytest.mark.parametrize("name", CASES)
def test_speed(benchmark, name, side):
    case: Case = CASES[name]
    function = getattr(case.make(), side)
    if function is None:
        pytest.skip("only a limit in seconds is claimed")
    benchmark.group = case.name
    benchmark(function)
