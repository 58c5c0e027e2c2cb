import numpy as np
import pytest
from scipy import stats as oracle

from bench.stats import paired, pooled_paired, summary, welch


def test_a_known_sample():
    # t(0.975, 4) = 2.776445; mean 3, std sqrt(2.5)
    found = summary([1, 2, 3, 4, 5])
    assert (found.mean, found.n, found.over) == (3.0, 5, "networks")
    assert found.std == pytest.approx(2.5**0.5)
    assert found.high - found.mean == pytest.approx(2.776445 * (2.5 / 5) ** 0.5, abs=1e-6)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_interval_is_that_of_scipy():
    values = np.random.default_rng(0).normal(0.5, 0.1, 7)
    found = summary(values)
    expected = oracle.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_with_several_sets_their_means_count():
    found = summary([0.1, 0.3, 0.5, 0.7, 0.9], groups=[1, 1, 2, 2, 2])
    expected = summary([0.2, 0.7])
    assert (found.n, found.over) == (2, "sets")
    assert (found.mean, found.std, found.low, found.high) == pytest.approx(
        (0.45, expected.std, expected.low, expected.high)
    )


def test_order_of_values_does_not_matter():
    a, b = summary([1, 2, 3, 5], groups=["x", "y", "x", "y"]), summary([1, 3, 2, 5], groups=["x", "x", "y", "y"])
    assert a == b


def test_one_set_falls_back_to_networks():
    assert summary([0.1, 0.2, 0.3], groups=[4, 4, 4]) == summary([0.1, 0.2, 0.3])


def test_equal_values_have_no_spread_not_even_that_of_rounding():
    found = summary([0.05] * 3)
    assert (found.std, found.low, found.high) == (0.0, found.mean, found.mean)


def test_n_too_small():
    found = summary([0.5])
    assert (found.mean, found.std, found.n, found.low, found.high) == (0.5, None, 1, None, None)
    assert paired([1.0], [0.5]).p is None
    assert paired([1.0], [0.5]).low is None


@pytest.mark.parametrize("bad", [[], [[1.0, 2.0]]])
def test_nothing_to_summarise(bad):
    with pytest.raises(ValueError, match="at least one value"):
        summary(bad)


def test_lengths_must_agree():
    with pytest.raises(ValueError):
        summary([1, 2, 3], groups=[0, 1])
    with pytest.raises(ValueError, match="equal lengths"):
        paired([1, 2], [1, 2, 3])


def test_paired_is_the_t_test_of_scipy():
    rng = np.random.default_rng(1)
    a = rng.normal(0, 1, 6)
    b = a + rng.normal(0.3, 0.2, 6)
    found, expected = paired(a, b), oracle.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert (found.mean, found.n) == (pytest.approx(np.mean(a - b)), 6)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    # by hand: t = mean / (std / sqrt n), two-sided
    t = found.mean / (found.std / 6**0.5)
    assert found.p == pytest.approx(2 * oracle.t.sf(abs(t), 5), abs=1e-12)


def test_equal_differences_have_no_spread():
    assert paired([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert paired([2.0, 3.0], [1.0, 2.0]).p == 0.0


def test_welch_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for n, m in [(2, 2), (5, 3), (8, 20)]:
        a, b = rng.normal(0.5, 0.1, n), rng.normal(0.4, 0.02, m)
        expected = oracle.ttest_ind(a, b, equal_var=False)
        interval = expected.confidence_interval(0.95)
        found = welch(a, b)
        assert (found.mean, found.n) == (pytest.approx(a.mean() - b.mean()), min(n, m))
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
        assert found.p == pytest.approx(expected.pvalue)


def test_welch_of_a_single_value_or_without_spread():
    assert welch([0.5], [0.1, 0.2]).low is None
    same = welch([0.5, 0.5], [0.4, 0.4])
    assert (same.low, same.high, same.p) == (pytest.approx(0.1), pytest.approx(0.1), 0.0)
    assert welch([0.5, 0.5], [0.5, 0.5]).p == 1.0


def test_one_place_pooled_is_the_paired_interval_of_scipy():
    a, b = np.random.default_rng(1).normal(0.5, 0.1, (2, 6))
    expected = oracle.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    (found,) = pooled_paired([a - b])
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, expected.pvalue))
    assert (found.low, found.high) == pytest.approx((paired(a, b).low, paired(a, b).high))


def test_pooled_places_are_a_linear_model_with_one_mean_each():
    rng = np.random.default_rng(2)
    places = [rng.normal(mean, 0.1, n) for mean, n in [(0.0, 2), (0.3, 4), (-0.2, 1), (0.1, 3)]]
    y = np.concatenate(places)
    x = np.repeat(np.eye(len(places)), [len(one) for one in places], axis=0)
    means, residual, *_ = np.linalg.lstsq(x, y, rcond=None)
    df = len(y) - len(places)
    errors = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * residual[0] / df)
    for found, mean, error in zip(pooled_paired(places), means, errors, strict=True):
        low, high = oracle.t.interval(0.95, df, loc=mean, scale=error)
        assert (found.mean, found.low, found.high) == pytest.approx((mean, low, high))
        assert found.p == pytest.approx(2 * oracle.t.sf(abs(mean) / error, df))


def test_pooled_without_two_pairs_anywhere_has_no_interval():
    found = pooled_paired([[0.1], [0.2]])
    assert [(one.mean, one.std, one.low, one.p) for one in found] == [(0.1, None, None, None), (0.2, None, None, None)]
    assert pooled_paired([[0.0, 0.0]])[0].p == 1.0
