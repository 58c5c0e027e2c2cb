import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import accuracy_score, top_k_accuracy_score

from bench.api import EvalSpec, NetSpec
from bench.errors import UserError
from evaluators.accuracy import Accuracy, AccuracyParams
from evaluators.metrics import best, diverged, request, top_k


def random_logits(networks=2, images=50, classes=12):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(networks, images, classes, generator=rng), torch.randint(classes, (images,), generator=rng)


def test_top_k_is_that_of_scikit_learn():
    logits, labels = random_logits()
    for e in range(2):
        assert float(top_k(logits, labels)[e]) == pytest.approx(accuracy_score(labels, logits[e].argmax(1)), abs=1e-12)
        expected = top_k_accuracy_score(labels, logits[e].double().numpy(), k=5, labels=range(12))
        assert float(top_k(logits, labels, 5)[e]) == pytest.approx(expected, abs=1e-12)


def test_a_row_of_nan_is_wrong_whatever_its_label():
    logits, labels = torch.zeros(2, 4, 3), torch.zeros(4, dtype=torch.int64)
    logits[0] = math.nan
    logits[1, 0] = math.nan
    assert top_k(logits, labels).tolist() == [0.0, 0.75]
    assert top_k(logits, labels, 2).tolist() == [0.0, 0.75]
    assert diverged(logits).tolist() == [True, False]


def test_one_measure_per_network(evaluation):
    logits, labels = random_logits(classes=3)
    task = evaluation(labels, {None: logits})
    found = Accuracy(AccuracyParams()).evaluate(task)
    assert [m.metric for m in found] == ["accuracy", "accuracy"]
    assert [m.replicate for m in found] == [0, 1]
    assert [m.value for m in found] == top_k(logits, labels).tolist()
    assert {(m.network, m.recipe, m.selection, m.unit, m.step) for m in found} == {
        ("convnet-in-w4", "review", "last", "fraction", None)
    }
    assert all(m.tags == {} for m in found)


def test_storage_is_what_the_set_keeps_over_real_images(evaluation):
    logits, labels = random_logits(classes=3)
    task = evaluation(labels, {None: logits}, floats={"stored": 300, "decoded": 900, "raw": 200})
    (storage,) = [m for m in Accuracy(AccuracyParams()).evaluate(task) if m.metric == "storage"]
    assert (storage.value, storage.unit, storage.network, storage.replicate) == (1.5, "ratio", None, None)


def test_top5_for_more_than_ten_classes(evaluation):
    logits, labels = random_logits(classes=12)
    found = Accuracy(AccuracyParams()).evaluate(evaluation(labels, {None: logits}, classes=12))
    assert [m.metric for m in found] == ["accuracy"] * 2 + ["top5_accuracy"] * 2
    assert [m.value for m in found[2:]] == top_k(logits, labels, 5).tolist()


def test_a_diverged_network_is_tagged(evaluation):
    logits, labels = random_logits(classes=3)
    logits[1] = math.nan
    found = Accuracy(AccuracyParams()).evaluate(evaluation(labels, {None: logits}))
    assert [m.tags for m in found] == [{}, {"diverged": 1}]
    assert found[1].value == 0.0


def test_best_epochs_come_labelled_and_on_top(evaluation):
    logits, labels = random_logits(classes=3)
    curves = {
        "test_accuracy": torch.tensor([[0.5, 0.9, 0.7], [0.6, 0.2, 0.1]]),
        "val_accuracy": torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.4, 0.1]]),
    }
    assert best(curves, "best-test").tolist() == pytest.approx([0.9, 0.6])
    assert best(curves, "best-val").tolist() == pytest.approx([0.7, 0.6])
    task = evaluation(labels, {None: logits}, recipe={"select": "best-val"}, curves=curves)
    found = Accuracy(AccuracyParams()).evaluate(task)
    assert [(m.selection, m.replicate) for m in found] == [("last", 0), ("last", 1), ("best-val", 0), ("best-val", 1)]
    assert [m.value for m in found[2:]] == pytest.approx([0.7, 0.6])
    assert {m.recipe for m in found} == {"review(select=best-val)"}


def test_requests_are_complete_and_equal(evaluation):
    task = evaluation(torch.zeros(1), {})
    (training,) = Accuracy.trainings(AccuracyParams(), task.eval_spec)
    assert training.network == NetSpec(norm="in", width=4, depth=2, pooling="avg")
    assert training.recipe["epochs"] == 1000
    assert training.recipe["augment"] == "dsa"
    assert training == request(task.eval_spec, NetSpec(arch="convnet", norm="in", width=4))
    assert request(task.eval_spec, weights=True) == replace(training, weights=True)


def test_a_network_that_does_not_fit_is_refused(evaluation):
    spec = evaluation(torch.zeros(1), {}).eval_spec
    with pytest.raises(UserError, match="depth 9"):
        Accuracy.trainings(AccuracyParams(), EvalSpec(spec.task, "dm", 1, network=NetSpec(depth=9)))
