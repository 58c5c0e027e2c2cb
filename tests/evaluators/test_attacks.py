"""Attacks against closed forms: Gaussian laws, log-odds, and attackers that must know nothing."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import log_softmax

from evaluators import attacks


def test_perfect_separation_and_none():
    member = np.repeat([True, False], 2000)
    assert attacks.auc(member * 1.0, member) == 1
    assert attacks.balanced_accuracy(member * 1.0, member) == 1
    assert attacks.true_positives(member * 1.0, member, 0.001)[0] == 1
    score = np.random.default_rng(0).normal(size=4000)
    assert abs(attacks.auc(score, member) - 0.5) < 4 * attacks.null_deviation(2000, 2000)
    assert attacks.auc(np.zeros(4000), member) == 0.5


def test_the_deviation_of_a_guess_is_that_of_a_simulation():
    rng, member = np.random.default_rng(1), np.repeat([True, False], [60, 90])
    found = [attacks.auc(rng.normal(size=150), member) for _ in range(2000)]
    assert np.std(found) == pytest.approx(attacks.null_deviation(60, 90), rel=0.06)


@pytest.mark.parametrize(
    ("shift", "area", "found"), [(0.5, 0.63816, (0.00480, 0.03390)), (1, 0.76025, (0.01830, 0.09236))]
)
def test_shifted_gaussians_have_their_closed_form(shift, area, found):
    n = 400_000
    quantiles = stats.norm.ppf((np.arange(n) + 0.5) / n)
    scores, member = np.concatenate([quantiles + shift, quantiles]), np.repeat([True, False], n)
    assert attacks.auc(scores, member) == pytest.approx(area, abs=1e-4)
    assert attacks.auc(scores, member) == pytest.approx(stats.norm.cdf(shift / math.sqrt(2)), abs=1e-5)
    for rate, expected in zip((0.001, 0.01), found, strict=True):
        value, low, high = attacks.true_positives(scores, member, rate)
        assert value == pytest.approx(expected, abs=1e-4)
        assert low < value < high
        assert value == pytest.approx(stats.norm.sf(stats.norm.isf(rate) - shift), abs=1e-4)


def test_rates_are_those_of_the_last_point_below_and_never_between():
    member = np.array([True] * 4 + [False] * 10)
    scores = np.array([9, 8, 3, 1, 7, 6, 5, 4, 2, 0, 0, 0, 0, 0.5])
    # one of ten non-members gives 10 %, which is not below 10 %: the point with no false alarm counts
    assert attacks.true_positives(scores, member, 0.1)[0] == 0.5
    assert attacks.true_positives(scores, member, 0.11)[0] == 0.5
    assert attacks.true_positives(scores, member, 0.45)[0] == 0.75
    with pytest.raises(ValueError, match="10 non-members are too few"):
        attacks.true_positives(scores, member, 0.01)
    found, reasons = attacks.summary(scores, member, (0.5, 0.01))
    assert [(name, tags) for name, _, tags in found] == [
        ("auc", {}), ("balanced_accuracy", {}), ("tpr", {"rate": 0.5}), ("tpr_low", {"rate": 0.5}),
        ("tpr_high", {"rate": 0.5}),
    ]  # fmt: skip
    assert len(reasons) == 1


def test_the_interval_is_that_of_clopper_and_pearson():
    member, scores = np.repeat([True, False], [20, 100]), np.concatenate([np.arange(20.0), np.full(100, 14.5)])
    value, low, high = attacks.true_positives(scores, member, 0.5)
    assert value == 5 / 20
    assert low == pytest.approx(stats.beta.ppf(0.025, 5, 16))
    assert high == pytest.approx(stats.beta.ppf(0.975, 6, 15))


def test_balanced_accuracy_is_the_best_of_all_thresholds():
    rng = np.random.default_rng(2)
    member, scores = rng.random(50) < 0.4, rng.normal(size=50)
    scores[member] += 0.7
    best = max(((scores >= t)[member].mean() + (scores < t)[~member].mean()) / 2 for t in [*scores, np.inf])
    assert attacks.balanced_accuracy(scores, member) == pytest.approx(best)


# ---------------------------------------------------------------------------------------------- trained attackers


@pytest.mark.parametrize("name", attacks.GRIDS)
def test_attackers_find_what_is_there(name):
    rng, member = np.random.default_rng(3), np.repeat([True, False], [150, 250])
    features = rng.normal(size=(400, 3))
    features[member, 0] += 3
    scores = attacks.trained_attack(name, features, member, grid=False, seed=0)
    assert np.isfinite(scores).all()
    assert attacks.auc(scores, member) > 0.9
    again = attacks.trained_attack(name, features, member, grid=False, seed=0)
    assert np.array_equal(scores, again)


def test_no_example_is_scored_by_an_attacker_that_was_trained_on_it(monkeypatch):
    """A nearest neighbour remembers its examples: on labels without meaning it must still be at one half."""
    monkeypatch.setitem(
        attacks.GRIDS, "neighbours", (attacks.KNeighborsClassifier, {}, {"n_neighbors": [1]}, {"n_neighbors": 1})
    )
    rng, member = np.random.default_rng(4), np.repeat([True, False], 1000)
    scores = attacks.trained_attack("neighbours", rng.normal(size=(2000, 2)), member, grid=False, seed=0)
    assert abs(attacks.auc(scores, member) - 0.5) < 4 * attacks.null_deviation(1000, 1000)


def test_the_search_takes_the_published_grid(monkeypatch):
    assert [len(attacks.GRIDS["logistic"][2]["C"]), *np.log10(attacks.GRIDS["logistic"][2]["C"])[[0, -1]]] == [
        10,
        -4,
        2,
    ]
    sizes = {name: math.prod(map(len, grid.values())) for name, (_, _, grid, _) in attacks.GRIDS.items()}
    assert sizes == {"logistic": 10, "mlp": 6, "forest": 36, "neighbours": 3}
    seen = []

    class Search(attacks.GridSearchCV):
        def fit(self, features, labels):
            super().fit(features, labels)
            seen.append((self.cv, self.best_params_))
            return self

    monkeypatch.setattr(attacks, "GridSearchCV", Search)
    rng, member = np.random.default_rng(5), np.repeat([True, False], 60)
    attacks.trained_attack("neighbours", rng.normal(size=(120, 2)), member, grid=True, seed=0)
    assert [cv for cv, _ in seen] == [3, 3]


# ---------------------------------------------------------------------------------------------- LiRA


def test_log_odds_are_those_of_scipy_and_ignore_constants():
    rng = np.random.default_rng(6)
    logits, labels = rng.normal(size=(2, 5, 4)), np.array([0, 3, 1, 1, 2])
    p = np.exp(log_softmax(logits, -1))
    own = p[:, range(5), labels]
    assert attacks.log_odds(logits, labels) == pytest.approx(np.log(own) - np.log(1 - own), abs=1e-9)
    assert attacks.log_odds(logits + 7, labels) == pytest.approx(attacks.log_odds(logits, labels))
    two = rng.normal(size=(5, 2))
    assert attacks.log_odds(two, labels % 2) == pytest.approx((two[:, 0] - two[:, 1]) * np.where(labels % 2, -1, 1))
    assert np.isfinite(attacks.log_odds(np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0]]), np.array([0, 0]))).all()
    assert attacks.margin(np.array([[1.0, 3.0, 2.0]]), np.array([2])) == pytest.approx([-1.0])


@pytest.fixture
def runs():
    """Return statistics [R, n] that are larger by one for members, and who is a member: exactly half of the runs."""
    rng = np.random.default_rng(7)
    member = rng.random((8, 300)).argsort(0).argsort(0) < 4
    centre = 3 * rng.normal(size=300)  # some images are easier than others: one threshold for all is nearly a guess
    return centre + 0.5 * rng.normal(size=(8, 300)) + member, member


def by_hand(statistic, member, target, i, variant):
    """Return the score of one example in one run, in plain Python."""
    others = [r for r in range(len(statistic)) if r != target]
    laws = []
    for side in (True, False):
        values = [statistic[r, i] for r in others if member[r, i] == side]
        centre = float(np.median(values))
        if variant.endswith("fixed"):
            residuals = []
            for j in range(statistic.shape[1]):
                of = [statistic[r, j] for r in others if member[r, j] == side]
                residuals += [value - np.median(of) for value in of]
            deviation = math.sqrt(sum(r * r for r in residuals) / len(residuals))
        else:
            deviation = float(np.std(values))
        laws.append((centre, deviation))
    x = statistic[target, i]
    if variant.startswith("offline"):
        return math.log(0.5 * math.erfc(-(x - laws[1][0]) / laws[1][1] / math.sqrt(2)))
    ratio = [-0.5 * ((x - c) / d) ** 2 - math.log(d) for c, d in laws]
    return ratio[0] - ratio[1]


@pytest.mark.parametrize("variant", ["online", "online-fixed", "offline", "offline-fixed"])
def test_scores_are_those_of_a_loop(runs, variant):
    statistic, member = (x[:, :12] for x in runs)
    scores = attacks.lira(statistic, member, variant)
    for target in (0, 5):
        for i in range(12):
            expected = by_hand(statistic, member, target, i, variant)
            assert scores[target, i] == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_lira_sees_what_one_threshold_does_not(runs):
    statistic, member = runs
    scores = attacks.lira(statistic, member)
    assert attacks.auc(scores, member) > 0.85
    assert attacks.auc(statistic, member) < 0.65
    nothing = np.random.default_rng(8).normal(size=statistic.shape)
    assert abs(attacks.auc(attacks.lira(nothing, member), member) - 0.5) < 4 * attacks.null_deviation(1200, 1200)


def test_the_ratio_changes_its_sign_with_the_sides(runs):
    statistic, member = runs
    assert attacks.lira(statistic, ~member) == pytest.approx(-attacks.lira(statistic, member))


def test_too_few_runs_are_refused(runs):
    statistic, member = runs
    with pytest.raises(ValueError, match="too few runs"):
        attacks.lira(statistic, np.ones_like(member))


def test_losses_are_cross_entropy_or_half_the_squared_error():
    from evaluators.membership import example_losses

    outputs, labels = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1])
    plain = -torch.from_numpy(log_softmax(outputs.double().numpy(), -1))[:, range(4), labels]
    assert torch.allclose(example_losses(outputs, labels, False), plain)
    for e in range(2):
        for i in range(4):
            target = [(k == int(labels[i])) - 1 / 3 for k in range(3)]
            expected = 0.5 * sum((float(o) - t) ** 2 for o, t in zip(outputs[e, i], target, strict=True))
            assert float(example_losses(outputs, labels, True)[e, i]) == pytest.approx(expected, rel=1e-5)
