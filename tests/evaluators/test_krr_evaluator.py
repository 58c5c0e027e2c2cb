"""Kernel regression on a set, against scikit-learn's and a regression written out, for every kind of labels."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from bench.api import DistilledSet, Header
from bench.errors import UserError
from evaluators.krr import KernelRegression, KernelRegressionParams, regressed
from methods.kernels import kernel

RNG = torch.Generator().manual_seed(0)
PATTERNS = torch.randn(3, 1, 8, 8, generator=RNG)
TEST_LABELS = torch.arange(3).repeat(20)
TEST = PATTERNS[TEST_LABELS] + 1.5 * torch.randn(60, 1, 8, 8, generator=RNG)


def made(kind, labels, images=None):
    header = Header(
        dataset="tiny", classes=3, shape=(1, 8, 8), preprocessing="meanstd", ipc=2, seed=0, method="kip",
        method_version=1, params={}, network={}, augment="none", label_kind=kind,
    )  # fmt: skip
    if images is None:
        rng = torch.Generator().manual_seed(1)
        images = PATTERNS.repeat_interleave(len(labels) // 3, 0)
        images = images + 2 * torch.randn(images.shape, generator=rng)
    return DistilledSet(header, images, labels)


def measure(distilled, **params):
    test = SimpleNamespace(labels=TEST_LABELS, batches=lambda size: iter(TEST.split(size)))
    task = SimpleNamespace(
        distilled=lambda: distilled,
        data=SimpleNamespace(test=test),
        spec=SimpleNamespace(dataset=SimpleNamespace(classes=3)),
    )
    (found,) = KernelRegression(KernelRegressionParams(**params)).evaluate(task)
    assert (found.metric, found.unit, found.selection) == ("krr_accuracy", "fraction", "last")
    return found


HARD = torch.arange(3).repeat_interleave(4)
SOFT = torch.softmax(3 * torch.eye(3)[HARD] + torch.randn(12, 3, generator=torch.Generator().manual_seed(2)), 1)
KINDS = {
    "hard": (HARD, np.eye(3)[HARD] - 1 / 3),
    "centred": (2 * (SOFT - 0.2), 2 * (SOFT.double().numpy() - 0.2)),
    "probabilities": (SOFT, SOFT.double().numpy() - 1 / 3),
    "logits": (SOFT.log() + 7, SOFT.log().double().numpy() - SOFT.log().double().numpy().mean(1, keepdims=True)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["fc1", "conv1"])
def test_accuracy_is_that_of_a_plain_regression(kind, name):
    labels, plain = KINDS[kind]
    distilled = made(kind, labels)
    torch.testing.assert_close(regressed(distilled, 3), torch.from_numpy(plain), rtol=0, atol=2e-6)
    support, test = distilled.images.double(), TEST.double()
    gram = kernel(name)
    k_ss, k_ts = gram(support, support).numpy(), gram(test, support).numpy()
    alpha = 0.1 * np.trace(k_ss) / len(k_ss)
    predicted = KernelRidge(alpha=alpha, kernel="precomputed").fit(k_ss, plain).predict(k_ts).argmax(1)
    found = measure(distilled, kernel=name, ridge=0.1)
    assert found.value == pytest.approx((predicted == TEST_LABELS.numpy()).mean(), abs=1e-12)
    assert found.network == f"ntk-{name}"
    assert 0.4 < found.value < 1


def test_test_images_in_blocks_give_the_same():
    distilled = made("hard", HARD)
    assert measure(distilled, chunk=7) == measure(distilled)
    assert measure(distilled, kind="nngp").network == "nngp-fc1"


def test_a_set_of_all_training_images_interpolates():
    """The whole set as its own support: plain kernel regression, which at a small ridge gets every image right."""
    assert measure(made("hard", TEST_LABELS, TEST)).value == 1.0


def test_what_cannot_be_regressed_is_said():
    with pytest.raises(UserError, match="12 images"):
        measure(made("hard", HARD), largest=11)
    with pytest.raises(UserError, match="unknown kernel"):
        measure(made("hard", HARD), kernel="cnn")
    with pytest.raises(UserError, match="cannot be solved"):
        measure(made("hard", HARD, torch.full((12, 1, 8, 8), torch.nan)))
