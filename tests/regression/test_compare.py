"""Planted losses are found, unchanged runs raise no alarm, and every verdict follows its rule."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import worlds
from scipy import stats as oracle

from bench.errors import UserError
from bench.regression import baseline, compare
from bench.regression.compare import Limits, check

SEEDS = range(20)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(1000 + seed)


def failed(run, known, **limits):
    return [one for one in check(run, known, Limits(**limits)) if one.failed]


@pytest.fixture(scope="module")
def known():
    return baseline.make([worlds.repeat(rng(-seed - 1)) for seed in range(5)])


# ------------------------------------------------------------------------------------ twenty of twenty


@pytest.mark.parametrize("seed", SEEDS)
def test_unchanged_repeats_raise_no_alarm(known, seed):
    assert failed(worlds.repeat(rng(seed)), known) == []


@pytest.mark.parametrize("ipcs", [worlds.IPCS, (1,), (50,)])
def test_five_points_less_are_found_in_twenty_of_twenty(known, ipcs):
    for seed in SEEDS:
        found = failed(worlds.lose(worlds.repeat(rng(seed)), "dsa", 5, ipcs), known)
        assert {(one.kind, one.verdict) for one in found} == {("accuracy", "worse")}
        assert all("of dsa" in one.name for one in found)
        assert len(found) == len(ipcs)


def test_a_method_at_half_the_speed_is_found_in_twenty_of_twenty(known):
    for seed in SEEDS:
        found = failed(worlds.slow(worlds.repeat(rng(seed)), "distil dm", 2), known)
        assert {one.kind for one in found} == {"time"}
        assert all(one.name.startswith("distil dm") for one in found)


def test_twice_the_memory_is_found(known):
    found = failed(worlds.slow(worlds.repeat(rng(0)), "distil dm", 1, memory=2), known)
    assert [(one.kind, one.before, one.now) for one in found] == [("memory", "40 MiB", "80 MiB")] * 3


# ------------------------------------------------------------------------------------ accuracy


def test_pairs_are_sets_then_networks():
    before = {0: {0: 0.5, 1: 0.7}, 1: {0: 0.6, 1: 0.6}}
    kind, differences = compare.paired(before, {0: {0: 0.4, 1: 0.7}, 1: {0: 0.6, 1: 0.4}})
    assert (kind, differences) == ("sets", pytest.approx([-0.05, -0.1]))
    kind, differences = compare.paired(before, {0: {0: 0.4, 1: 0.7, 2: 0.0}, 7: {0: 0.0}})
    assert (kind, differences) == ("networks", pytest.approx([-0.1, 0.0]))
    assert compare.paired(before, {7: {0: 0.5}}) is None


def test_the_same_digits_are_no_difference_whatever_the_spread():
    run = worlds.base()
    found = check(run, baseline.make([run]), Limits(margin=0, only_accuracy=True))
    assert {one.verdict for one in found} == {"ok"}


def small(differences: list[float]):
    """Return verdict and text for one method at one IPC with these differences between sets."""
    run = worlds.base(seeds=len(differences), replicates=1)
    where = next(iter(run.accuracy))
    run.accuracy = {where: run.accuracy[where]}
    known = baseline.make([run])
    run.accuracy[where] = {s: {0: own[0] + differences[s]} for s, own in run.accuracy[where].items()}
    (one,) = [one for one in check(run, known, Limits(only_accuracy=True)) if one.kind == "accuracy"]
    return one.verdict, one.change


def test_worse_needs_margin_and_interval():
    for differences in ([-0.03, -0.04, -0.05], [-0.01, -0.012, -0.011], [0.05, -0.15, -0.05], [0.03, 0.04, 0.05]):
        interval = oracle.ttest_1samp(differences, 0).confidence_interval(0.95)
        mean = np.mean(differences)
        outside = interval.high < 0 or interval.low > 0
        verdict, text = small(differences)
        beyond = ("worse" if mean < 0 else "better") if outside else "unclear"
        expected = beyond if abs(mean) > 0.02 else "ok"
        assert verdict == expected
        assert text == f"{100 * mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}] points"


def test_a_loss_of_one_set_alone_is_shown_and_does_not_fail():
    run = worlds.base()
    known = baseline.make([run])
    where = next(iter(run.accuracy))
    run.accuracy[where] = {0: run.accuracy[where][0], 1: {0: 0.1, 1: 0.1}}
    found = [one for one in check(run, known) if one.verdict != "ok"]
    assert [(one.kind, one.verdict, one.failed) for one in found] == [("accuracy", "unclear", False)]


def test_other_seeds_are_compared_by_welch():
    run = worlds.base(seeds=3)
    known = baseline.make([run])
    for where, values in run.accuracy.items():
        run.accuracy[where] = {seed + 10: own for seed, own in values.items()}
    run.cells = dict.fromkeys(known.cells, ("ok", ""))
    assert failed(run, known, only_accuracy=True) == []
    found = failed(worlds.lose(run, "kip", 30), known, only_accuracy=True)
    assert {one.name.split(" of ")[1][:3] for one in found} == {"kip"}


def test_single_sets_of_different_seeds_cannot_be_compared():
    run = worlds.base(seeds=1)
    known = baseline.make([run])
    run.accuracy = {where: {9: {0: 0.0}} for where in run.accuracy}
    found = [one for one in check(run, known, Limits(only_accuracy=True)) if one.kind == "accuracy"]
    assert {(one.verdict, one.reason) for one in found} == {
        ("skipped", "no common seed and a single set: nothing can be said")
    }


def test_one_network_without_any_spread_is_judged_by_the_margin():
    run = worlds.base(seeds=1, replicates=1)
    known = baseline.make([run])
    assert {one.verdict for one in failed(worlds.lose(run, "dm", 2.1), known, only_accuracy=True)} == {"worse"}
    assert failed(worlds.lose(run, "dm", -0.2), known, only_accuracy=True) == []


def one_set(kinds: int):
    """A run of one set that so many kinds of networks, two of each, were trained on; and its places."""
    run = worlds.base(seeds=1)
    where, values = next(iter(run.accuracy.items()))
    run.accuracy = {where._replace(network=f"network{k}"): copy.deepcopy(values) for k in range(kinds)}
    return run, list(run.accuracy)


def by_points(run, places, points):
    """Take points from each place, a little more from one of its two networks."""
    for where, lost in zip(places, points, strict=True):
        run.accuracy[where] = {0: {e: v - (lost + 0.08 * e) / 100 for e, v in run.accuracy[where][0].items()}}
    return run


@pytest.mark.parametrize(
    ("points", "verdicts"),
    [
        ([9, 0, 1, -1, 0], ["unclear", "ok", "ok", "ok", "ok"]),  # rounding moves single kinds of networks
        ([5, 4, 5, 6, 3], ["worse"] * 5),
        ([9, 9, -9, -9, 9], ["unclear", "unclear", "better", "better", "unclear"]),
        ([9, 0], ["worse", "ok"]),  # too few to tell
    ],
)
def test_kinds_of_networks_on_one_set_are_judged_together(points, verdicts):
    run, places = one_set(len(points))
    known = baseline.make([run])
    found = check(by_points(run, places, points), known, Limits(only_accuracy=True))
    assert [one.verdict for one in found if one.kind == "accuracy"] == verdicts
    mean = np.mean(points) + 0.04
    for one in found:
        assert (f"changed by {-mean:+.1f} points" in one.reason) == (one.verdict == "unclear")


# ------------------------------------------------------------------------------------ cells


def test_lost_cells_fail_and_new_ones_do_not(known):
    run = worlds.repeat(rng(0))
    run.cells["accuracy of dm, digits, ipc 1, seed 0"] = ("diverged", "loss is nan")
    del run.cells["accuracy of kip, digits, ipc 1, seed 1"]
    run.cells["accuracy of mtt, digits, ipc 1, seed 0"] = ("failed", "a new one may")
    found = {one.name: one for one in check(run, known) if one.kind == "cell" and one.verdict != "ok"}
    assert {name: (one.verdict, one.reason) for name, one in found.items()} == {
        "accuracy of dm, digits, ipc 1, seed 0": ("missing", "loss is nan"),
        "accuracy of kip, digits, ipc 1, seed 1": ("missing", "the run does not have this cell"),
        "accuracy of mtt, digits, ipc 1, seed 0": ("new", ""),
    }


def test_a_number_that_is_gone_fails(known):
    run = worlds.repeat(rng(0))
    gone = next(iter(run.accuracy))
    del run.accuracy[gone]
    assert [(one.kind, one.verdict) for one in failed(run, known)] == [("accuracy", "missing")]


def test_another_suite_is_refused(known):
    run = worlds.repeat(rng(0))
    run.preset = "paper"
    with pytest.raises(UserError, match=r"made_up \(paper\)"):
        check(run, known)


# ------------------------------------------------------------------------------------ time and memory


def test_the_band_is_the_t_bound_of_one_more_run(known):
    one = known.costs[0]
    logs = np.log(one.values["cpu"])
    spread = known.spread["cpu"]
    assert (spread.over, spread.df) == ("runs", 4 * len(known.costs))
    residuals = np.concatenate([np.log(c.values["cpu"]) - np.log(c.values["cpu"]).mean() for c in known.costs])
    assert spread.std == pytest.approx(math.sqrt((residuals**2).sum() / spread.df))
    assert one.spread["cpu"] == pytest.approx(logs.std(ddof=1))
    std = max(spread.std, one.spread["cpu"])
    expected = math.exp(oracle.t.ppf(1 - 0.01 / 24, spread.df) * std * math.sqrt(1 + 1 / 5))
    assert compare.band(one, "cpu", known, 2, 24) == pytest.approx(expected)


def test_the_band_of_a_single_run_comes_from_its_seeds():
    run = worlds.repeat(rng(0), worlds.base(seeds=4))
    known = baseline.make([run])
    spread, one = known.spread["cpu"], known.costs[0]
    assert (spread.over, spread.df, one.seeds) == ("seeds", 3 * len(run.costs), 4)
    std = max(spread.std, np.std(np.log([sample.cpu for sample in run.costs[0].samples]), ddof=1))
    expected = math.exp(oracle.t.ppf(1 - 0.01 / 24, spread.df) * std * math.sqrt(1 / 4 + 1 / 2))
    assert compare.band(one, "cpu", known, 2, 24) == pytest.approx(expected)


def test_false_alarms_of_the_band_are_as_rare_as_it_says():
    """One cost, no further limit: of 2000 unchanged runs about RISK are outside (binomial, six deviations)."""
    alarms, count = 0, 2000
    generator = np.random.default_rng(0)
    for _ in range(count):
        logs = generator.normal(0, 0.1, 6)
        spread = baseline.Spread(std=float(logs[:5].std(ddof=1)), df=4, over="runs")
        one = baseline.Known(
            name="a", digest="", hardware="", seeds=1, values={"cpu": np.exp(logs[:5]).tolist()}, seconds={}, spread={}
        )
        known = baseline.Baseline(
            suite="", preset="", runs=[], spread={"cpu": spread}, cells=[], accuracy=[], costs=[one]
        )
        alarms += math.exp(logs[5] - logs[:5].mean()) > compare.band(one, "cpu", known, 1, 1)
    assert abs(alarms - count * compare.RISK) < 6 * math.sqrt(count * compare.RISK)


@pytest.mark.parametrize(
    ("wall", "device", "kind"), [(False, "cpu", "cpu"), (True, "cpu", "wall"), (False, "cuda:0", "wall")]
)
def test_cpu_seconds_count_except_on_a_gpu_or_on_request(wall, device, kind):
    run = worlds.base()
    for cost in run.costs:
        cost.hardware = worlds.HARDWARE.replace("device cpu", f"device {device}")
    known = baseline.make([run])
    for cost in run.costs:
        cost.samples = [worlds.Sample(**{**vars(one), kind: 3 * getattr(one, kind)}) for one in cost.samples]
    assert {one.kind for one in failed(run, known, wall=wall)} == {"time"}
    assert (failed(run, known, wall=not wall) == []) == (device == "cpu")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda run: run.costs.clear(), "the run has no cells measured in processes of their own"),
        (lambda run: [setattr(cost, "name", "x") for cost in run.costs], "no cell of this name"),
        (lambda run: [setattr(cost, "digest", "x") for cost in run.costs], "the settings are others"),
        (lambda run: [setattr(cost, "hardware", "device cpu") for cost in run.costs], "other hardware: device cpu;"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_left_out_with_its_reason(known, change, reason):
    run = worlds.repeat(rng(0))
    change(run)
    found = [one for one in check(run, known) if one.kind in ("time", "memory")]
    assert {one.verdict for one in found} == {"skipped"}
    assert all(one.reason.startswith(reason) for one in found)
    assert {one.kind for one in check(run, known, Limits(only_accuracy=True))} == {"cell", "accuracy"}


def test_no_noise_measured_means_no_comparison():
    run = worlds.base(seeds=1)
    found = [one for one in check(run, baseline.make([run])) if one.kind in ("time", "memory")]
    assert {(one.verdict, one.reason) for one in found} == {("skipped", compare.NO_SPREAD)}


def test_short_cells_count_only_once_they_are_long():
    run = worlds.base()
    short = [worlds.Sample(100.0, 100.0, 0.05, 0.05, None), worlds.Sample(300.0, 300.0, 0.15, 0.15, None)]
    run.costs[0].samples = short
    known = baseline.make([run])
    assert known.costs[0].spread == {}
    assert known.spread["cpu"].std == 0.0  # what is short adds no noise
    times = [one for one in check(run, known) if one.kind == "time"]
    assert (times[0].verdict, times[0].reason) == ("ok", "less than 0.2 s")
    run.costs[0].samples = [worlds.Sample(2000.0, 2000.0, 4.0, 4.0, None)] * 2
    assert [one.name for one in failed(run, known)] == [run.costs[0].name]


def test_faster_is_reported_and_does_not_fail(known):
    found = check(worlds.slow(worlds.repeat(rng(0)), "distil dm", 0.3), known)
    assert [one.name for one in found if one.verdict == "better"] == [
        f"distil dm, digits, ipc {k}" for k in worlds.IPCS
    ]
    assert not [one for one in found if one.failed]
