"""The conformance kit: every built-in passes, and every rule catches who breaks it, with a message that says so."""

from __future__ import annotations

import broken_plugins
import miniatures
import numpy as np
import pytest

import bench.data
import bench.distilled
from bench import api, nets, registry
from bench.data.catalogue import Entry
from bench.errors import UserError
from bench.loop import distil
from bench.nets.spec import Architecture
from bench.task import LiveTask
from bench.testing import check_dataset, check_evaluator, check_method, check_network, check_planning, rules
from methods.random import Random

MODULE = "broken_plugins"


REFUSED_IN_PLANS = {
    "WrongPreset": "refuses its preset for debug at IPC 1: iteration: unknown key",
    "TorchInPlans": "imports torch while it is planned",
    "MutePlans": "does not say what its parameter 'rate' means",
    "NeedsNothingKnown": "unknown artifact 'no_such_artifact'",
}


@pytest.fixture(scope="module", autouse=True)
def _planned():
    """Ask everything that is right in plans in one process without torch, so that it needs none of its own."""
    things = [("method", name, params) for name, params in miniatures.METHODS.items()]
    things += [("evaluator", name, some.get("params")) for name, some in miniatures.EVALUATORS.items()]
    things += [("network", name, None) for name in nets.names()]
    things += [("dataset", name, None) for name in ("debug", "digits")]
    kinds = {"method": api.Method, "evaluator": api.Evaluator, "network": Architecture, "dataset": Entry}
    for name, thing in vars(broken_plugins).items():
        for kind, base in kinds.items():
            own = issubclass(thing, base) and thing is not base if isinstance(thing, type) else isinstance(thing, base)
            if own and name not in (*REFUSED_IN_PLANS, "TrainsInPlans", "NO_SOURCE_DATA"):
                things.append((kind, f"{MODULE}:{name}", None))
    check_planning(*things)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "cache"))


def complaint(check, *arguments, **options) -> str:
    """Return what a check complains about."""
    with pytest.raises(AssertionError) as caught:
        check(*arguments, **options)
    assert "rule: " in str(caught.value) or "planned" in str(caught.value), str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- built-ins


def test_every_built_in_has_a_miniature():
    assert set(registry.METHODS.builtin) == {*miniatures.METHODS, "given"}
    assert set(registry.EVALUATORS.builtin) == set(miniatures.EVALUATORS)


@pytest.mark.parametrize("name", miniatures.METHODS)
def test_built_in_methods(name):
    check_method(name, miniatures.METHODS[name])


def test_a_given_set(tmp_path):
    file = tmp_path / "set.safetensors"
    spec = api.TaskSpec(dataset=bench.data.info("debug"), ipc=2, network=nets.parse("convnet-in-w4-d2"))
    bench.distilled.save(file, distil(Random(Random.Params()), LiveTask(spec)).distilled)
    check_method("given", {"file": str(file)})


@pytest.mark.parametrize("name", miniatures.EVALUATORS)
def test_built_in_evaluators(name):
    assert check_evaluator(name, **miniatures.EVALUATORS[name])


@pytest.mark.parametrize("name", nets.names())
def test_built_in_networks(name):
    large = name.startswith(("vgg", "resnet"))
    check_network(name, shapes=[(1, 8, 8)] if large else [(1, 8, 8), (3, 32, 32)])


@pytest.mark.parametrize("name", ["debug", "digits", "debug@rare(share=0.1)"])
def test_built_in_datasets(name):
    check_dataset(name)


def test_own_data(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (30, 6, 6, 3), dtype=np.uint8), np.arange(30) % 3
    np.savez(tmp_path / "mine.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
    check_dataset(f"npz:{tmp_path / 'mine.npz'}")


# ---------------------------------------------------------------------------------------------- methods


def test_a_method_that_is_right():
    check_method(broken_plugins.Right)
    check_method(f"{MODULE}:Right", {"iterations": 0}, dataset="digits", ipc=1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("GlobalTorch", "changes the global generator of torch"),
        ("GlobalNumpy", "changes the global generator of numpy"),
        ("GlobalPython", "changes the global generator of random"),
        ("Remembers", "other images when it is run again with the same seed"),
        ("Unseeded", "other images when it is run again with the same seed"),
        ("IgnoresSeed", "seeds 0 and 1 give the same set"),
        ("ExportCounts", "whatever was exported on the way"),
        ("TooMany", "stores 5760 floats for images, 2 images per class are 3840"),
        ("FalseBudget", "header.floats is what bench.distilled.budget counts"),
        ("OneClass", "has images of 1 of 10 classes"),
        ("ForgetsVelocity", "when it is stopped after step 2 of 4 and continued"),
        ("PicklesState", "has a state that cannot be written or read"),
        ("NanLabels", "labels are not finite after outer step 4"),
        ("LabelsBeyond", "hard labels must be 0 to 9, found 1 to 10"),
        ("KeepsGradient", "images of method 'broken_plugins:KeepsGradient' carry a gradient"),
        ("OtherSeedInHeader", "says seed 7, the task 0"),
        ("WritesIntoData", "writes into the real images"),
        *REFUSED_IN_PLANS.items(),
    ],
)
def test_a_method_that_breaks_a_rule(name, words):
    assert words in complaint(check_method, f"{MODULE}:{name}")


@pytest.mark.parametrize(("name", "words"), [("Slow", " seconds, 0.1 are allowed"), ("Endless", "of 1000000000")])
def test_a_method_that_takes_too_long(name, words, monkeypatch):
    monkeypatch.setattr("bench.testing.methods.limit", lambda device: 0.1)
    text = complaint(check_method, f"{MODULE}:{name}")
    assert words in text
    assert "pass `params` with fewer steps" in text


def test_the_limit_follows_the_machine(monkeypatch):
    for seconds, expected in ((rules.REFERENCE / 2, 1.0), (rules.REFERENCE * 3, 3.0)):
        monkeypatch.setattr(rules, "_workload", lambda device, seconds=seconds: seconds)
        assert rules.limit.__wrapped__("cpu") == pytest.approx(expected)


def test_a_method_that_no_suite_can_name():
    class Inner(broken_plugins.Right):
        pass

    assert "define it at the top of a module" in complaint(check_method, Inner)


def test_unknown_methods_are_an_error_of_the_user():
    with pytest.raises((UserError, AssertionError), match="did you mean 'random'"):
        check_method("randon")


# ---------------------------------------------------------------------------------------------- evaluators


def test_an_evaluator_that_is_right():
    (measure,) = check_evaluator(broken_plugins.RightEvaluator)
    assert (measure.metric, measure.unit) == ("hits", "fraction")
    check_evaluator(f"{MODULE}:Signed", signed=["hits"])
    check_evaluator(f"{MODULE}:OddUnit", units=["furlongs"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NanMeasure", "hits of evaluator 'broken_plugins:NanMeasure' is nan"),
        ("Percent", "fractions are stored as 0 to 1"),
        ("Signed", "differences are named in `signed`"),
        ("OddUnit", "has the unit 'furlongs'"),
        ("Twice", "measures {"),
        ("Nothing", "measures nothing"),
        ("NotAList", "returns a Measure"),
        ("DrawsGlobally", "changes the global generator of torch"),
        ("DrawsAnew", "measures something else when it looks at the same networks and set again"),
        ("SpoilsData", "writes into the real images or labels"),
        ("Unrecorded", "cannot be recorded"),
        ("TrainsInPlans", "epoch"),
    ],
)
def test_an_evaluator_that_breaks_a_rule(name, words):
    with pytest.raises(AssertionError) as caught:
        check_evaluator(f"{MODULE}:{name}")
    assert words in str(caught.value)


# ---------------------------------------------------------------------------------------------- networks


def test_a_network_that_is_right():
    check_network(f"{MODULE}:RIGHT_NETWORK")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NO_HEAD", "has no features"),
        ("WRONG_SIZE", "features (4, 8), not (4, 9)"),
        ("DROPOUT", "evaluation mode is deterministic"),
        ("SEES_BATCH", "images do not see each other"),
        ("UNUSED", "does not use spare.weight, spare.bias"),
        ("FLAT", "gradient"),
        ("UNSTACKABLE", "cannot be stacked"),
        ("FIXED_WIDTH", "is no larger with twice the width"),
    ],
)
def test_a_network_that_breaks_a_rule(name, words):
    assert words in complaint(check_network, f"{MODULE}:{name}", shapes=[(1, 8, 8)])


def test_a_network_whose_facts_need_torch():
    assert "imports torch while it is planned" in complaint(check_network, "broken_networks:right")


# ---------------------------------------------------------------------------------------------- datasets


def test_a_dataset_that_is_right():
    check_dataset(f"{MODULE}:RIGHT_DATA")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("UNSTABLE_DATA", "is not the same when it is read again"),
        ("GLOBAL_DATA", "changes the global generator of numpy"),
        ("FLOAT_DATA", "train images are float64"),
        ("LABEL_DATA", "train labels lie in 1..2"),
        ("LEAKING_DATA", "100% of the test images"),
        ("TWINS_DATA", "every class has a name of its own"),
        ("SIZED_DATA", "expected 21 + 10 images"),
        ("BYTES_DATA", "declares the mean 127.0000 of pixels"),
        ("NO_SOURCE_DATA", "does not say its source"),
    ],
)
def test_a_dataset_that_breaks_a_rule(name, words):
    assert words in complaint(check_dataset, f"{MODULE}:{name}")
