import math

import pytest
import torch
import torch.nn.functional as F

from bench.errors import UserError
from bench.train.losses import compute, outlier_exposure, targets


@pytest.fixture
def logits():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def hard():
    return torch.tensor([0, 1, 2, 1, 0])


def test_hard_labels(logits, hard):
    loss, target = targets(hard, "hard", "auto", 3)
    assert loss == "ce"
    expected = -sum(math.log(math.exp(z[y]) / sum(math.exp(v) for v in z)) for z, y in zip(logits.tolist(), hard.tolist(), strict=True)) / 5  # fmt: skip  # noqa: E501
    assert float(compute(loss, logits, target)) == pytest.approx(expected, abs=1e-12)


def test_probabilities(logits):
    soft = torch.softmax(torch.arange(15.0, dtype=torch.float64).sin().view(5, 3), 1)
    loss, target = targets(soft, "probabilities", "auto", 3)
    assert loss == "soft_ce"
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(compute(loss, logits, target), expected)


def test_centred_labels_are_half_the_squared_error(logits):
    centred = torch.tensor([[0.6, -0.3, -0.3]] * 5, dtype=torch.float64)
    loss, target = targets(centred, "centred", "auto", 3)
    expected = sum(0.5 * sum((z - y) ** 2 for z, y in zip(zs, ys, strict=True)) for zs, ys in zip(logits.tolist(), centred.tolist(), strict=True)) / 5  # fmt: skip  # noqa: E501
    assert loss == "mse"
    assert float(compute(loss, logits, target)) == pytest.approx(expected, abs=1e-12)


def test_logits_are_compared_by_l1(logits):
    loss, target = targets(logits + 0.25, "logits", "auto", 3)
    assert loss == "l1"
    assert float(compute(loss, logits, target)) == pytest.approx(0.25)
    assert float(compute(loss, logits + 0.25, target)) == 0.0


def test_hard_labels_as_targets_of_other_losses(hard):
    assert torch.equal(targets(hard, "hard", "soft_ce", 3)[1], F.one_hot(hard, 3).float())
    torch.testing.assert_close(targets(hard, "hard", "mse", 3)[1], F.one_hot(hard, 3) - 1 / 3)


@pytest.mark.parametrize("kind", ["probabilities", "logits", "centred"])
def test_float_labels_can_be_hardened(kind):
    assert targets(torch.tensor([[0.1, 0.7, 0.2]]), kind, "ce", 3)[1].tolist() == [1]


def test_temperature_softens():
    _, target = targets(torch.tensor([[2.0, 0.0, 0.0]]), "logits", "soft_ce", 3, temperature=2.0)
    torch.testing.assert_close(target, torch.tensor([[1.0, 0.0, 0.0]]).softmax(1))


@pytest.mark.parametrize(("kind", "loss"), [("hard", "l1"), ("probabilities", "l1"), ("logits", "mse")])
def test_pairs_without_meaning_are_refused(kind, loss, hard):
    with pytest.raises(UserError, match=r"use loss: auto"):
        targets(hard if kind == "hard" else torch.ones(5, 3) / 3, kind, loss, 3)


def test_outlier_exposure_is_cross_entropy_with_the_uniform_label(logits):
    uniform = torch.full((5, 3), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(outlier_exposure(logits), F.cross_entropy(logits, uniform))
    assert float(outlier_exposure(torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64))) == pytest.approx(1.836513)
    assert float(outlier_exposure(torch.zeros(2, 7))) == pytest.approx(math.log(7))
