"""Metrics of detection against closed forms, a brute-force reading of their definitions, and known examples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.ood_metrics import measure

SIDES = {"auroc": "auroc", "aupr_in": "aupr_out", "aupr_out": "aupr_in"}
SIDES |= {"fpr95_ood_pos": "fpr95_id_pos", "fpr95_id_pos": "fpr95_ood_pos"}
scores = st.lists(st.integers(-5, 5), min_size=1, max_size=30)


def brute(inside, outside):
    """Return all metrics by their definitions, one threshold after the other."""

    def rates(known, strange):
        thresholds = sorted({*known, *strange}, reverse=True)
        return [
            (np.mean([t >= at for t in strange]), np.mean([s >= at for s in known]), sum(t >= at for t in strange), at)
            for at in thresholds
        ]

    def precision(known, strange):
        total, before = 0.0, 0.0
        for recall, _, hits, at in rates(known, strange):
            total += (recall - before) * hits / (hits + sum(s >= at for s in known))
            before = recall
        return total

    def fpr(known, strange):
        return next(false for recall, false, *_ in rates(known, strange) if recall >= 0.95)

    minus_in, minus_out = [-s for s in inside], [-t for t in outside]
    pairs = [(t > s) + 0.5 * (t == s) for s in inside for t in outside]
    return {
        "auroc": np.mean(pairs), "aupr_in": precision(minus_out, minus_in), "aupr_out": precision(inside, outside),
        "fpr95_ood_pos": fpr(inside, outside), "fpr95_id_pos": fpr(minus_out, minus_in),
    }  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(scores, scores)
def test_all_metrics_are_their_definitions(inside, outside):
    assert measure(inside, outside) == pytest.approx(brute(inside, outside), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(scores, scores)
def test_swapping_sides_swaps_the_metrics(inside, outside):
    swapped = measure([-t for t in outside], [-s for s in inside])
    assert measure(inside, outside) == pytest.approx({SIDES[name]: value for name, value in swapped.items()}, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(scores, scores)
def test_only_the_order_of_scores_counts(inside, outside):
    assert measure(np.exp(inside), np.exp(outside)) == pytest.approx(measure(inside, outside), abs=1e-12)


def test_four_and_four():
    found = measure([0, 1, 2, 3], [2, 3, 4, 5])
    assert found == pytest.approx(
        {"auroc": 0.875, "aupr_in": 0.8541667, "aupr_out": 0.8541667, "fpr95_ood_pos": 0.5, "fpr95_id_pos": 0.5}
    )
    found = measure([0, 1, 2, 3], [2, 3, 4, 5], area="trapezoid")
    assert found["aupr_in_trapezoid"] == found["aupr_out_trapezoid"] == pytest.approx(0.8958333)


def test_the_gaussian_example():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(0, 1, 9000), rng.normal(1.2, 1.3, 3000)
    found = measure(inside, outside)
    assert found["auroc"] == pytest.approx(0.769298037, abs=5e-10)
    assert (found["aupr_out"], found["aupr_in"]) == pytest.approx((0.612669594, 0.882779401), abs=5e-10)
    assert (found["fpr95_ood_pos"], found["fpr95_id_pos"]) == pytest.approx((0.821555556, 0.625333), abs=5e-7)
    area = measure(inside, outside, area="trapezoid")
    pair = (area["aupr_out_trapezoid"], area["aupr_in_trapezoid"])
    assert pair == pytest.approx((0.612602762, 0.882736392), abs=5e-10)
    near = measure(inside, outside, rule="nearest")
    pair = (near["fpr95_ood_pos_nearest"], near["fpr95_id_pos_nearest"])
    assert pair == pytest.approx((0.822222, 0.625667), abs=5e-7)


def test_perfect_and_constant_scores():
    perfect = measure([0.0, 0.1], [1.0, 2.0, 3.0])
    assert perfect == {"auroc": 1, "aupr_in": 1, "aupr_out": 1, "fpr95_ood_pos": 0, "fpr95_id_pos": 0}
    constant = measure([7.0] * 2, [7.0] * 3)
    assert constant == pytest.approx(
        {"auroc": 0.5, "aupr_in": 0.4, "aupr_out": 0.6, "fpr95_ood_pos": 1, "fpr95_id_pos": 1}
    )
    assert measure([7.0] * 4, [7.0] * 4, area="trapezoid")["aupr_in_trapezoid"] == pytest.approx(0.75)


def test_infinite_scores_have_a_place_and_nan_has_none():
    assert measure([-np.inf, 0], [1, np.inf])["auroc"] == 1
    assert measure([0, np.inf], [np.inf, np.inf])["auroc"] == pytest.approx(0.75)
    with pytest.raises(ValueError, match="1 of 3 scores are NaN"):
        measure([0, np.nan], [1])
    for empty in (([], [1.0]), ([1.0], [])):
        with pytest.raises(ValueError, match="both are needed"):
            measure(*empty)
