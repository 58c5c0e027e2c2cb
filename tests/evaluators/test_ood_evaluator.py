"""The evaluator on real sets of digits, end to end, and what it does where something is missing or broken."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bench.data
import bench.report
from bench import suite
from bench.api import EvalSpec, NetSpec, TaskSpec
from bench.data import outside
from bench.errors import MissingData, UserError
from bench.nets import initialise, stack
from bench.report.layouts import LAYOUTS
from bench.report.measures import measure_tables
from bench.run import Store, run_plan
from bench.task import LiveTask
from bench.train.trainer import Handle
from evaluators import ood_metrics
from evaluators.ood import OOD, Chosen, OODParams, chosen_sets, compared, pictures
from evaluators.scores import SCORES, energy
from evaluators.seen import Network, exact

NET = NetSpec(norm="in", width=4, depth=2, pooling="avg")


def params(**fields):
    return OODParams.model_validate_json(json.dumps(fields))


def task_spec(dataset="digits", **fields):
    return TaskSpec(dataset=bench.data.info(dataset), ipc=1, network=NET, **fields)


def eval_spec(dataset="digits", **fields):
    return EvalSpec(task_spec(dataset, **fields), "random", 0, network=NET, recipe={"base": "review", "epochs": 2})


def network(dataset="digits", rngs=1, spec=NET):
    info = bench.data.info(dataset)
    found = stack(spec, info.shape, info.classes, [torch.Generator().manual_seed(i) for i in range(rngs)])
    return Handle(spec, *found, "loop")


# ------------------------------------------------------------------------------------ what a network says


@pytest.mark.parametrize("norm", ["in", "bn"])
def test_seen_is_what_the_network_says(norm):
    spec = NET.model_copy(update={"norm": norm})
    handle, info = network(spec=spec, rngs=2), bench.data.info("digits")
    images = torch.randn(30, *info.shape, generator=torch.Generator().manual_seed(7))
    for e in range(2):
        plain = bench.nets.build(spec, info.shape, info.classes)
        initialise(plain, torch.Generator().manual_seed(e))
        found = Network.of(handle, e).look(images.split(7))
        torch.testing.assert_close(found.logits.float(), plain.eval()(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.features.float(), plain.features(images), rtol=1e-5, atol=1e-5)
        assert (found.logits.dtype, found.features.dtype) == (torch.float64, torch.float64)


def test_a_head_that_is_not_linear_is_refused():
    handle = network()
    handle.module.head = nn.Identity()
    with pytest.raises(UserError, match="no linear layer"):
        Network.of(handle, 0)


def test_odins_step_is_the_published_one():
    data = bench.data.prepare(bench.data.load("debug"))
    one, pixels, temperature, step = Network.of(network("debug"), 0), data.test.pixels(slice(8)), 10.0, 0.01
    std = torch.tensor(data.info.std)[:, None, None]
    images = data.forward(pixels).requires_grad_()
    logits = one.head(exact(one.features(images)))
    F.cross_entropy(logits / temperature, logits.argmax(1)).backward()
    expected = images.detach() - step * images.grad.sign() / std
    found = one.stepped(pixels, data.forward, temperature, step)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert energy(one.look([found]).logits).mean() < energy(one.look([images]).logits).mean()
    with torch.no_grad():  # as in the evaluator
        assert torch.equal(one.stepped(pixels, data.forward, temperature, 0.0), data.forward(pixels))


# ------------------------------------------------------------------------------------ which sets


def test_sets_are_called_what_they_are():
    chosen = chosen_sets(params(sets=["gaussian", "mnist", "svhn", "cifar10", "debug"]), eval_spec("mnist"))
    assert [(one.name, one.group, one.noise) for one in chosen] == [
        ("gaussian", "synthetic", True), ("svhn", "shifted", False), ("cifar10", "far", False),
        ("debug", "synthetic", False),
    ]  # fmt: skip
    mine = {"data": "cifar100", "name": "others", "group": "other"}
    (one,) = chosen_sets(params(sets=[mine]), eval_spec("cifar10"))
    assert one == Chosen("others", "cifar100", "other")


@pytest.mark.parametrize(
    ("dataset", "other", "group"),
    [
        ("cifar10", "cifar100", "near"), ("cifar10", "cifar100_part", "near"), ("cifar100_part", "cifar10", "near"),
        ("cifar10", "tiny_imagenet_part", "near"), ("cifar10", "mnist", "far"), ("cifar100", "svhn", "far"),
        ("mnist", "fashion_mnist", "near"), ("fashion_mnist", "cifar10", "far"), ("digits", "mnist", "shifted"),
        ("cifar10", "cub200", "other"), ("debug", "mnist", "other"), ("digits", "blobs", "synthetic"),
    ],
)  # fmt: skip
def test_groups(dataset, other, group):
    assert outside.distance(bench.data.info(dataset), other) == group


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sets": ["jigsaw"]}, "methods train on this corruption"),
        ({"sets": ["gausian"]}, "unknown dataset 'gausian'"),
        ({"sets": ["digits"]}, "no OOD set is left for digits"),
        ({"sets": ["blobs", {"data": "debug", "name": "blobs"}]}, "two OOD sets are called 'blobs'"),
        ({"sets": ["folder:/nowhere"]}, "is not on this machine"),
    ],
)
def test_mistakes_show_while_planning(fields, message):
    with pytest.raises(UserError, match=message):
        OOD.needs(params(**fields), eval_spec())


def test_noise_of_normalised_values_needs_a_mean_and_a_deviation():
    with pytest.raises(UserError, match="no meaning under zca-kip"):
        OOD.needs(params(space="normalised"), eval_spec(preprocessing="zca-kip"))
    assert OOD.needs(params(space="normalised", sets=["debug"]), eval_spec(preprocessing="zca-kip"))
    assert set(OOD.needs(params(space="normalised"), eval_spec())) == {"outside/debug"}


def test_as_many_images_as_asked_for():
    spec = eval_spec()
    assert [OOD.needs(params(ratio=r), spec)["outside/debug"].params["count"] for r in (None, 0.2, 1)] == [
        None,
        71,
        355,
    ]


def test_missing_sets_are_an_error_or_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path))
    both = ["debug", "mnist", "folder:/nowhere"]
    assert set(OOD.needs(params(sets=both, missing="skip"), eval_spec())) == {"outside/debug"}
    text = "grid: {datasets: [digits], methods: [random], ipc: [1]}\nevaluators:\n"
    file = tmp_path / "suite.yaml"
    file.write_text(text + "  - {name: ood, params: {sets: [debug, mnist]}}\n")
    with pytest.raises(MissingData, match=r"suite.yaml:3: evaluators\[0\]: .*'mnist'.*ddbench data get mnist"):
        suite.plan(suite.load(file))
    file.write_text(text + "  - {name: ood, params: {sets: [debug, mnist], missing: skip}}\n")
    (cell,) = [cell for cell in suite.plan(suite.load(file)).cells if cell.kind == "evaluate"]
    assert set(cell.inputs) == {"distilled", "trained0", "outside/debug"}


@pytest.mark.parametrize("name", outside.NOISE)
def test_noise_is_made_as_pixels_or_as_normalised_values(name):
    task = LiveTask(task_spec("debug"))
    one = Chosen(name, name, "synthetic")
    as_pixels = pictures(one, params(ratio=0.5), task)
    assert as_pixels.shape == (50, 3, 8, 8)
    again = LiveTask(task_spec("debug"))
    direct = pictures(one, params(ratio=0.5, space="normalised"), again)
    values = outside.noise(name, 50, (3, 8, 8), LiveTask(task_spec("debug")).rng(f"ood/{name}"))
    torch.testing.assert_close(as_pixels, (values + 1) / 2)
    torch.testing.assert_close(again.data.forward(direct), values, rtol=1e-5, atol=1e-5)
    other = pictures(one, params(ratio=0.5), LiveTask(task_spec("debug", seed=1)))
    assert not torch.equal(other, as_pixels)


# ------------------------------------------------------------------------------------ end to end

SUITE = """
grid: {datasets: [digits], methods: [random], ipc: [1, 5], network: convnet-in-w8-d2}
evaluation: {network: convnet-in-w8-d2, recipe: {base: review, epochs: 30, lr: 0.1, augment: none}, replicates: 2}
evaluators:
  - accuracy
  - name: ood
    params:
      sets: [uniform, debug, digits, mnist, {data: debug, name: again, group: far}]
      scores: SCORES
      missing: skip
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDBENCH_DATA", str(out))  # no mnist here
        (out / "suite.yaml").write_text(SUITE.replace("SCORES", json.dumps(list(SCORES))))
        plan = suite.plan(suite.load(out / "suite.yaml"))
        run_plan(plan, Store(out / "out"), executor="inline", progress=False)
    return plan, bench.report.load(out / "out")


def test_networks_are_trained_once_for_accuracy_and_detection(results):
    plan, found = results
    assert Counter(cell.config.get("artifact") for cell in plan.cells if cell.kind == "prepare") == {
        "networks": 2, "outside": 1,
    }  # fmt: skip
    assert set(found.states["state"]) == {"ok"}
    trained = {cell.inputs["trained0"] for cell in plan.cells if cell.kind == "evaluate"}
    assert len(trained) == 2


def test_every_network_set_score_and_metric_is_measured(results):
    records = results[1].records
    detected = records[(records["evaluator"] == "ood") & records["metric"].isin(list(ood_metrics.measure([0], [1])))]
    lost = {1: {"mahalanobis", "rmds"}, 5: set()}
    for ipc, undefined in lost.items():
        here = detected[detected["ipc"] == ipc]
        tags = Counter(here["tags"])
        assert len(here) == 5 * 2 * 3 * (len(SCORES) - len(undefined))
        assert set(tags.values()) == {10}
        names = {dict(part.split("=") for part in text.split(", "))["score"] for text in tags}
        assert names == set(SCORES) - undefined
    assert "fit=synthetic, group=synthetic, ood=debug, score=knn" in set(detected["tags"])
    assert "group=far, ood=again, score=msp" in set(detected["tags"])
    assert detected["value"].between(0, 1).all()
    sizes = records[records["metric"].isin(["ood_images", "ind_images"])]
    assert dict(zip(sizes["tags"], sizes["value"], strict=True)) == {
        "": 355, "ood=uniform": 355, "ood=debug": 100, "ood=again": 100,
    }  # fmt: skip


def test_equal_images_have_equal_numbers(results):
    records = results[1].records
    both = [
        records[records["tags"] == f"group={g}, ood={o}, score=odin"]
        for g, o in (("synthetic", "debug"), ("far", "again"))
    ]
    assert len(both[0]) == 20
    assert both[0]["value"].tolist() == both[1]["value"].tolist()


def test_detection_on_five_images_per_class_works(results):
    """The distance to the classes in feature space tells noise from digits, whatever the confidence says."""
    records = results[1].records
    here = (records["metric"] == "auroc") & (records["ipc"] == 5)
    for name in ("uniform", "debug"):
        tags = f"fit=synthetic, group=synthetic, ood={name}, score=mahalanobis"
        assert records[here & (records["tags"] == tags)]["value"].min() > 0.9


def test_the_numbers_are_those_of_a_plain_computation(results, tmp_path):
    """Energy of the second network on `debug`, from the stored weights, images and the network itself."""
    plan, found = results
    cell = next(
        c for c in plan.cells if c.kind == "evaluate" and c.coords["evaluator"] == "ood" and c.coords["ipc"] == 5
    )
    store = Store(found.out)
    from safetensors.torch import load_file

    weights = load_file(store.verified(cell.inputs["trained0"]) / "tensors.safetensors")
    images = load_file(store.verified(cell.inputs["outside/debug"]) / "tensors.safetensors")["images"]
    info = bench.data.info("digits")
    plain = bench.nets.build("convnet-in-w8-d2", info.shape, 10).eval()
    plain.load_state_dict({k.removeprefix("weights/"): v[1] for k, v in weights.items() if k.startswith("weights/")})
    data = bench.data.prepare(bench.data.load("digits"))
    with torch.no_grad():
        inside, strange = (energy(plain(x)).double() for x in (data.test.images(), data.forward(images.float() / 255)))
    expected = ood_metrics.measure(inside, strange)
    records = found.records[(found.records["cell"] == cell.key) & (found.records["replicate"] == 1)]
    rows = records[records["tags"] == "group=synthetic, ood=debug, score=energy"]
    assert dict(zip(rows["metric"], rows["value"], strict=True)) == pytest.approx(expected, abs=1e-3)


def test_tables(results):
    by_name = {table.name: table for table in measure_tables(results[1])}
    table = by_name["ood_digits"]
    assert [group for group, _ in table.groups] == ["uniform", "debug", "again", "mean of 2 synthetic sets"]
    assert [title for _, title in table.columns[:2]] == ["AUROC", "FPR95"]
    assert "score: msp" in table.notes
    assert "no number for mnist: not on this machine (random IPC 1, random IPC 5)" in table.notes
    assert any(note.startswith("no number for rmds: no spread") and "(random IPC 1)" in note for note in table.notes)
    by_score = by_name["ood_scores_digits"]
    assert by_score.index == ("method", "IPC", "score", "fitted on")
    assert len(by_score.rows) == 2 * len(SCORES) - 2
    assert len(LAYOUTS["ood"]) == 2


def test_a_set_the_method_learned_from_is_called_so(results, monkeypatch):
    """The artifacts and networks of the run again, with a header that names the set as the source of outliers."""
    plan, found = results
    cell = next(c for c in plan.cells if c.kind == "evaluate" and c.coords["evaluator"] == "ood")
    store = Store(found.out)
    inputs = {name: store.verified(key) for name, key in cell.inputs.items()}
    task = LiveTask.from_config(cell.config, inputs)
    made = task.distilled()
    header = made.header.model_copy(update={"params": {"source": "debug"}})
    monkeypatch.setattr(task, "distilled", lambda: replace(made, header=header))
    fields = {**cell.config["params"], "scores": ["msp"]}
    measures = OOD(OODParams.model_validate_json(json.dumps(fields))).evaluate(task)
    groups = {m.tags["ood"]: m.tags["group"] for m in measures if m.metric == "auroc"}
    assert groups == {"uniform": "synthetic", "debug": "seen", "again": "seen"}


# ------------------------------------------------------------------------------------ networks that diverged


def test_a_network_that_diverged_tells_nothing_apart(results, tmp_path):
    inside, strange = torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan, 5.0])
    found = list(compared(inside, strange, params(), {"score": "msp"}, 3))
    assert {m.metric: m.value for m in found} == pytest.approx(ood_metrics.measure([0, 0], [0, 0, 0]))
    assert {(m.replicate, m.tags["diverged"]) for m in found} == {(3, 1)}


def test_a_network_of_nan_is_measured_with_every_score():
    evaluator, handle = OOD(params(sets=["uniform"], scores=list(SCORES))), network(rngs=2)
    with torch.no_grad():
        handle.params["head.weight"][1] = math.nan
        handle.params["body.0.conv.weight"][1] = math.nan
    task = LiveTask(task_spec())
    evaluator._known = lambda one, _: evaluator_known(one, task)
    images = {Chosen("uniform", "uniform", "synthetic"): pictures(Chosen("uniform", "uniform", ""), params(), task)}
    (good, _), (lost, undefined) = (evaluator._network(task, handle, e, images) for e in range(2))
    assert undefined == {}
    assert {m.tags["score"] for m in lost} == set(SCORES)
    assert {m.value for m in lost if m.metric == "auroc"} == {0.5}
    assert all(m.tags["diverged"] == 1 for m in lost)
    assert not any("diverged" in m.tags for m in good)


def evaluator_known(one, task):
    from evaluators.scores import Known

    train = task.data.train
    return Known(one.head, one.look([train.images(slice(50))]), train.labels[:50])
