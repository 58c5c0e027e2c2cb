"""Every kind of claim where it holds, where it fails and where the data do not tell."""

from __future__ import annotations

import pandas as pd
import pytest
from make_run import make_run

import bench.report
from bench.errors import UserError
from bench.report import claims
from bench.report.claim_kinds import KINDS, Count, Number, Observed
from bench.report.claims import FAILS, HOLDS, UNKNOWN, decide

NAN = float("nan")


def observed(cells, measure="accuracy", width=0.01, timing=False, memory=()):
    """Return what a run offers, from {(dataset, ipc) or (dataset, ipc, network): {method: mean}}."""
    rows = []
    for place, means in cells.items():
        dataset, ipc, network = (*place, "convnet-in")[:3]
        for method, mean in means.items():
            own = {"dataset": dataset, "ipc": ipc, "network": network, "method": method, "mean": mean}
            spread = {"low": mean - width, "high": mean + width, "timing": timing}
            rows.append({**own, **spread, "measure": measure, "made": "review", "distilled": "convnet-in"})
    columns = ["measure", "dataset", "ipc", "network", "made", "method", "mean", "low", "high", "timing", "distilled"]
    return Observed(
        pd.DataFrame(rows, columns=columns), pd.DataFrame(memory, columns=["dataset", "method", "ipc", "oom"])
    )


def verdict(seen, kind, share, **test):
    return decide(KINDS[kind](seen, test), share)


def every_ipc(**means):
    return {("d", ipc): means for ipc in (1, 10, 50)}


@pytest.mark.parametrize(
    ("means", "width", "expected"),
    [
        ({"a": 0.9, "b": 0.5, "c": 0.4}, 0.01, HOLDS),
        ({"a": 0.4, "b": 0.5, "c": 0.9}, 0.01, FAILS),
        ({"a": 0.9, "b": 0.89, "c": 0.4}, 0.01, UNKNOWN),  # the intervals of a and b overlap
        ({"a": 0.9, "b": 0.5, "c": 0.4}, NAN, UNKNOWN),  # no intervals
        ({"a": 0.9, "b": 0.5}, 0.01, UNKNOWN),  # c was not measured
    ],
)
def test_ranked(means, width, expected):
    seen = observed(every_ipc(**means), width=width)
    test = {"measure": "accuracy", "method": "a", "among": ["a", "b", "c"], "rank": 1}
    assert verdict(seen, "ranked", "most", **test) == expected


def test_ranked_second_and_smallest():
    seen = observed(every_ipc(a=0.9, b=0.5, c=0.4))
    test = {"measure": "accuracy", "among": ["a", "b", "c"]}
    assert verdict(seen, "ranked", "all", method="b", rank=2, **test) == HOLDS
    assert verdict(seen, "ranked", "all", method="a", rank=2, **test) == FAILS
    assert verdict(seen, "ranked", "all", method="c", rank=1, smallest=True, **test) == HOLDS
    assert verdict(seen, "ranked", "all", method="a", rank=1, smallest=True, **test) == FAILS


def test_ranked_where():
    seen = observed({("d", 1): {"a": 0.9, "b": 0.1}, ("d", 10): {"a": 0.1, "b": 0.9}})
    test = {"measure": "accuracy", "method": "a", "among": ["a", "b"], "rank": 1}
    assert verdict(seen, "ranked", "all", where={"ipc": [1]}, **test) == HOLDS
    assert verdict(seen, "ranked", "all", cells=[["d", 10]], **test) == FAILS
    assert verdict(seen, "ranked", "all", cells=[["e", 1]], **test) == UNKNOWN
    assert verdict(seen, "ranked", "all", where={"dataset": ["e"]}, **test) == UNKNOWN


@pytest.mark.parametrize(
    ("a", "b", "width", "expected"),
    [(0.9, 0.5, 0.01, HOLDS), (0.5, 0.9, 0.01, FAILS), (0.9, 0.89, 0.01, UNKNOWN), (0.9, 0.5, NAN, UNKNOWN)],
)
def test_better(a, b, width, expected):
    seen = observed(every_ipc(a=a, b=b), width=width)
    assert verdict(seen, "better", "most", measure="accuracy", methods=["a"], than=["b"]) == expected


@pytest.mark.parametrize(("a", "b", "expected"), [(1.2, 1.0, HOLDS), (1.0, 1.2, FAILS), (1.05, 1.0, UNKNOWN)])
def test_single_times_differ_beyond_ten_percent(a, b, expected):
    seen = observed(every_ipc(a=a, b=b), "set update", NAN, timing=True)
    assert verdict(seen, "better", "most", measure="set update", methods=["a"], than=["b"]) == expected


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([(0.9, 0.5), (0.5, 0.9), (0.9, 0.5)], HOLDS),
        ([(0.9, 0.5), (0.9, 0.5), (0.9, 0.5)], FAILS),
        ([(0.9, 0.5), (0.9, 0.5), (0.6, 0.6)], UNKNOWN),
    ],
)
def test_not_all(means, expected):
    seen = observed({("d", ipc): {"a": a, "b": b} for ipc, (a, b) in enumerate(means)})
    assert verdict(seen, "better", "not all", measure="accuracy", methods=["a"], than=["b"]) == expected


@pytest.mark.parametrize(
    ("a", "b", "width", "expected"),
    [(0.9, 0.5, 0.01, HOLDS), (0.5, 0.9, 0.01, HOLDS), (0.9, 0.89, 0.01, FAILS), (0.9, 0.5, NAN, UNKNOWN)],
)
def test_differs(a, b, width, expected):
    seen = observed(every_ipc(a=a, b=b), width=width)
    assert verdict(seen, "differs", "most", measure="accuracy", methods=["a"], than=["b"]) == expected


@pytest.mark.parametrize(
    ("second", "width", "expected"),
    [
        (0.30, 0.01, HOLDS),  # half of the accuracy is lost
        (0.55, 0.01, FAILS),  # a twelfth
        (0.48, 0.01, UNKNOWN),  # a fifth, give or take
        (0.30, NAN, UNKNOWN),
    ],
)
def test_drops(second, width, expected):
    cells = {("d", 10, "x-in"): {"a": 0.6}, ("d", 10, "x-none"): {"a": second}}
    seen = observed(cells, "transfer", width)
    test = {"methods": ["a"], "pairs": [["x-in", "x-none"]], "by": 0.2}
    assert verdict(seen, "drops", "all", **test) == expected
    assert verdict(seen, "drops", "all", **test, distilled="-bn") == UNKNOWN


def test_drops_spares():
    cells = {("d", 10, "x-in"): {"a": 0.6, "b": 0.6}, ("d", 10, "x-none"): {"a": 0.3, "b": 0.59}}
    test = {"methods": ["a"], "spared": ["b"], "pairs": [["x-in", "x-none"]], "by": 0.2}
    assert verdict(observed(cells, "transfer"), "drops", "all", **test) == HOLDS
    cells["d", 10, "x-none"]["b"] = 0.3
    assert verdict(observed(cells, "transfer"), "drops", "all", **test) == FAILS


def test_any_drop_needs_clear_intervals():
    test = {"methods": ["a"], "pairs": [["x-in", "x-none"]], "by": 0.0}
    for second, expected in ((0.5, HOLDS), (0.59, UNKNOWN), (0.61, UNKNOWN), (0.7, FAILS)):
        seen = observed({("d", 10, "x-in"): {"a": 0.6}, ("d", 10, "x-none"): {"a": second}}, "transfer")
        assert verdict(seen, "drops", "all", **test) == expected


@pytest.mark.parametrize(("part", "expected"), [(0.05, HOLDS), (0.5, FAILS), (None, UNKNOWN)])
def test_ratio(part, expected):
    whole = observed(every_ipc(a=1.0), "outer step", NAN, timing=True).numbers
    parts = observed(every_ipc(a=part) if part else {}, "network update", NAN, timing=True).numbers
    seen = Observed(pd.concat([whole, parts]), pd.DataFrame())
    test = {"measure": "network update", "over": "outer step", "methods": ["a"], "at_most": 0.1}
    assert verdict(seen, "ratio", "all", **test) == expected


@pytest.mark.parametrize(
    ("means", "expected"),
    [({"a": 1.0, "b": 1.9}, HOLDS), ({"a": 1.0, "b": 2.1}, FAILS), ({"a": 1.0}, UNKNOWN)],
)
def test_alike(means, expected):
    seen = observed(every_ipc(**means), "set update", NAN, timing=True)
    assert verdict(seen, "alike", "most", measure="set update", methods=["a", "b"], factor=2.0) == expected


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ({("a", 10), ("a", 50), ("b", 50)}, HOLDS),
        ({("a", 50), ("b", 50)}, FAILS),
        ({("b", 50)}, FAILS),
        (set(), UNKNOWN),
    ],
)
def test_first_out_of_memory(out, expected):
    memory = [("d", method, ipc, (method, ipc) in out) for method in "ab" for ipc in (1, 10, 50)]
    test = {"method": "a", "among": ["a", "b"]}
    assert verdict(observed({}, memory=memory), "first_out_of_memory", "all", **test) == expected
    assert verdict(observed({}, memory=memory[:3]), "first_out_of_memory", "all", **test) == UNKNOWN


@pytest.mark.parametrize(
    ("yes", "no", "still_open", "share", "expected"),
    [
        (2, 0, 0, "most", UNKNOWN),  # too few
        (2, 1, 0, "most", HOLDS),
        (2, 2, 0, "most", FAILS),
        (1, 2, 0, "many", HOLDS),
        (1, 3, 0, "many", FAILS),
        (3, 0, 4, "most", UNKNOWN),  # most comparisons are open
        (1, 0, 1, "all", HOLDS),
        (5, 1, 0, "all", FAILS),
        (0, 0, 0, "all", UNKNOWN),
    ],
)
def test_decide(yes, no, still_open, share, expected):
    assert decide(Count(yes, no, still_open), share) == expected


def test_number_is_larger_only_beyond_both_intervals():
    assert Number(0.9, 0.8, 1.0) > Number(0.7, 0.6, 0.79)
    assert not Number(0.9, 0.8, 1.0) > Number(0.7, 0.6, 0.81)
    assert not Number(0.9, NAN, NAN) > Number(0.1, 0.0, 0.2)


# ------------------------------------------------------------------------------------------------ the shipped claims


def test_the_shipped_claims():
    found = claims.load()
    assert len(found) == 21
    assert {claim.test["kind"] for claim in found} == set(KINDS)
    assert all(claim.statement.endswith(".") and "2301.07014" in claim.source for claim in found)


@pytest.mark.parametrize(
    ("test", "words"),
    [("{kind: rankd, share: most}", "did you mean 'ranked'"), ("{kind: ranked, share: some}", "unknown share 'some'")],
)
def test_wrong_claims(tmp_path, test, words):
    path = tmp_path / "claims.yaml"
    path.write_text(f"source: s\nclaims:\n  - {{id: x, statement: y., test: {test}}}\n")
    with pytest.raises(UserError, match=words):
        claims.load(path)
    path.write_text("source: s\nclaims:\n" + 2 * "  - {id: x, statement: y., test: {kind: alike, share: all}}\n")
    with pytest.raises(UserError, match="given twice"):
        claims.load(path)


def test_claims_of_a_run(tmp_path):
    """The made-up run has DC and DSA at all places, DSA above DC, and none of the review's other methods."""
    run = bench.report.load(make_run(tmp_path))
    verdicts = {found.claim.id: found for found in claims.evaluate(run)}
    assert verdicts["dsa-transfers-better"].verdict == HOLDS
    assert verdicts["dsa-slower-than-dc"].verdict == HOLDS
    assert verdicts["dm-loop-is-update"].verdict == FAILS
    assert verdicts["frepo-best-in-most"].verdict == UNKNOWN
    assert verdicts["mtt-first-out-of-memory"].verdict == UNKNOWN
    made = claims.table(run, list(verdicts.values()))
    assert made.notes[0] == "preset: laptop"
    assert len(made.rows) == len(made.data) == 21


def test_sizes_of_networks_do_not_matter(tmp_path):
    run = bench.report.load(make_run(tmp_path))
    before = claims.evaluate(run)
    run.summaries.clear()
    run.records["network"] += "-w16"
    after = claims.evaluate(run)
    assert [found.verdict for found in before] == [found.verdict for found in after]
