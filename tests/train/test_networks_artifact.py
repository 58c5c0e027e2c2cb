"""The artifact on real digits: what is kept, that it learns, and what it refuses."""

import json

import pytest
import torch
from plain_training import generators
from safetensors.torch import save_file

import bench.data
import bench.distilled
from bench.api import DistilledSet, Header, NetSpec, TaskSpec, Trained, Training
from bench.errors import Diverged, UserError
from bench.suite.keys import training_fields
from bench.task import LiveTask
from bench.train import predict
from bench.train.networks import Networks, NetworksParams, Watch, restore
from bench.train.recipe import resolve

NET = NetSpec(norm="in", width=8, depth=2)


@pytest.fixture(scope="module")
def digits():
    return bench.data.prepare(bench.data.load("digits"), "meanstd", "cpu")


@pytest.fixture
def make_task(tmp_path, digits):
    """Return a task whose distilled set is ten real images per class; `fields` change its header."""

    def make(seed=0, tensors=None, **fields):
        info = bench.data.info("digits")
        spec = TaskSpec(dataset=info, ipc=10, network=NET, seed=seed)
        index = torch.cat([digits.train.class_index(c)[:10] for c in range(10)])
        header = Header(
            **{
                "dataset": "digits", "classes": 10, "shape": info.shape, "preprocessing": "meanstd", "ipc": 10,
                "seed": 0, "method": "random", "method_version": 1, "params": {}, "network": {}, "augment": "none",
                **fields,
            }
        )  # fmt: skip
        parts = {"images": digits.train.images(index), "labels": digits.train.labels[index], **(tensors or {})}
        bench.distilled.save(tmp_path / "set.safetensors", DistilledSet(header, **parts))
        return LiveTask(spec, inputs={"distilled": tmp_path})

    return make


def build(task, **params):
    recipe = resolve({"base": "dc", "epochs": 30, **params.pop("recipe", {})})
    fields = {"network": NET.model_dump(), "recipe": recipe.model_dump(mode="json"), "replicates": 2, **params}
    return Networks(NetworksParams.model_validate_json(json.dumps(fields))).build(task)


def test_what_is_kept(make_task, digits):
    found = build(make_task(), weights=True)
    assert (found["logits"].shape, found["logits"].dtype) == ((2, digits.test.size, 10), torch.float32)
    assert found["seconds"].shape == ()
    assert 0 < float(found["seconds"]) < 60
    assert found["curve/loss"].shape == (2, 31)
    assert found["curve/epoch"].tolist() == list(range(1, 32))
    assert found["weights/head.weight"].shape[0] == 2
    assert not {name for name in build(make_task()) if name.startswith("weights/")}
    accuracy = (found["logits"].argmax(2) == digits.test.labels).float().mean(1)
    assert bool((accuracy > 0.3).all())  # chance is 0.1


def test_how_they_were_computed_is_told(make_task):
    recipe = resolve({"base": "dc", "epochs": 2}).model_dump(mode="json")
    made = Networks(NetworksParams(network=NET, recipe=recipe, replicates=2))
    assert made.choices() == {}
    made.build(make_task())
    assert made.choices()["stack"] in ("vmap", "loop")
    assert made.choices()["step"].startswith("plain: a short run")


def test_logits_are_those_of_the_kept_weights(make_task, digits):
    found = build(make_task(), weights=True, recipe={"epochs": 2})
    network = bench.nets.build(NET, (1, 8, 8), 10)
    network.load_state_dict({k.removeprefix("weights/"): v[1] for k, v in found.items() if k.startswith("weights/")})
    with torch.no_grad():
        expected = network.eval()(digits.test.images())
    torch.testing.assert_close(found["logits"][1], expected, rtol=1e-4, atol=1e-5)


def test_the_same_task_gives_the_same_bytes_and_networks_do_not_depend_on_their_number(make_task):
    first, again = build(make_task(), recipe={"epochs": 3}), build(make_task(), recipe={"epochs": 3})
    assert torch.equal(first["logits"], again["logits"])
    more = build(make_task(), recipe={"epochs": 3}, replicates=3)
    torch.testing.assert_close(first["logits"], more["logits"][:2], rtol=1e-3, atol=1e-4)
    other = build(make_task(seed=1), recipe={"epochs": 3})
    assert not torch.equal(first["logits"], other["logits"])


@pytest.mark.parametrize("select", ["best-test", "best-val"])
def test_selection_keeps_accuracies_beside_the_last_epoch(make_task, digits, select):
    found = build(make_task(), recipe={"epochs": 9, "select": select, "evaluations": 4})
    assert found["curve/selection_epoch"].tolist() == [3, 5, 8, 10]
    assert found["curve/test_accuracy"].shape == (2, 4)
    assert ("curve/val_accuracy" in found) == (select == "best-val")
    last = (found["logits"].argmax(2) == digits.test.labels).float().mean(1)
    torch.testing.assert_close(found["curve/test_accuracy"][:, -1], last)
    plain = build(make_task(), recipe={"epochs": 9})
    assert torch.equal(found["logits"], plain["logits"])  # looking changes nothing


def test_validation_images_are_a_tenth_of_the_training_images(digits):
    (rng,) = generators(0)
    watch = Watch(resolve({"select": "best-val"}), digits, rng)
    assert len(watch.held_out.unique()) == round(digits.train.size / 10)


def test_a_set_of_another_space_is_refused(make_task):
    with pytest.raises(UserError, match="preprocessing of this set is zca-kip, that of the task meanstd"):
        build(make_task(preprocessing="zca-kip"))


def test_a_set_with_other_classes_is_refused(make_task):
    with pytest.raises(UserError, match="number of classes of this set is 11"):
        build(make_task(classes=11))


def test_divergence_of_all_networks_is_an_error(make_task):
    with pytest.raises(Diverged):
        build(make_task(), recipe={"lr": 1e30})


def test_learned_rate_and_ordered_steps_come_from_the_set(make_task):
    learned = build(make_task(learned_rate=0.02), recipe={"lr": "learned", "epochs": 2})
    assert torch.equal(learned["logits"], build(make_task(), recipe={"lr": 0.02, "epochs": 2})["logits"])
    ordered = {"steps": torch.arange(100).view(10, 10), "rates": torch.full((10,), 0.02)}
    found = build(make_task(tensors=ordered), recipe=resolve("dd").model_dump())
    assert found["curve/loss"].shape == (2, 1)


def test_float_labels_and_outliers_come_from_the_set(make_task, digits):
    soft = torch.nn.functional.one_hot(digits.train.labels[:100], 10).float()
    centred = {"images": digits.train.images()[:100], "labels": soft - 0.1}
    found = build(make_task(tensors=centred, label_kind="centred"), recipe={"epochs": 2})
    hard = {"images": digits.train.images()[:100], "labels": digits.train.labels[:100]}
    as_mse = build(make_task(tensors=hard), recipe={"epochs": 2, "loss": "mse"})
    torch.testing.assert_close(found["logits"], as_mse["logits"], rtol=1e-4, atol=1e-5)
    outliers = {"outliers": torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
    exposed = build(make_task(tensors=outliers, outlier_weight=0.5), recipe={"epochs": 2})
    assert not torch.equal(exposed["logits"], build(make_task(), recipe={"epochs": 2})["logits"])


def test_predict_does_not_depend_on_the_size_of_batches(make_task, digits):
    from bench.train import train

    recipe = resolve({"base": "dc", "epochs": 1})
    args = (digits.train.images()[:50], digits.train.labels[:50], recipe)
    spec = NET.model_copy(update={"norm": "bn"})
    handle = train(spec, *args, generators(0, 1), info=bench.data.info("digits"))
    whole, parts = (predict(handle, digits.test.batches(size)) for size in (10_000, 37))
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["in", "bn"])
def test_kept_weights_give_the_networks_back(make_task, digits, norm):
    net = NET.model_copy(update={"norm": norm})
    found = build(make_task(), network=net.model_dump(), weights=True, recipe={"epochs": 3})
    weights = {name.removeprefix("weights/"): value for name, value in found.items() if name.startswith("weights/")}
    request = Training(net, {}, 2, weights=True)
    handle = restore(Trained(request, found["logits"], weights, 0.0), digits.info)
    assert torch.equal(predict(handle, digits.test.batches(1000)), found["logits"])
    with pytest.raises(ValueError, match="no weights"):
        restore(Trained(request, found["logits"], {}, 0.0), digits.info)


def test_the_first_of_many_networks_are_those_of_a_smaller_request(make_task, tmp_path):
    """All that is kept: logits, weights, curves of the loss, of accuracies by epoch, and of rates that were tried."""
    recipe = resolve({"base": "dc", "epochs": 4, "select": "best-test"}).model_dump(mode="json")
    asked = {"recipe": recipe, "weights": True, "rates": [0.1, 0.01]}
    many, few = (build(make_task(), replicates=count, **asked) for count in (3, 2))
    save_file({name: tensor.contiguous() for name, tensor in many.items()}, tmp_path / "tensors.safetensors")
    training = Training(NET, recipe, 2, weights=True, rates=(0.1, 0.01))
    planned = {**training_fields(training), "input": "trained0"}
    task = LiveTask(make_task().spec, inputs={"trained0": tmp_path}, evaluation={"trainings": [planned]})
    found = task.trained(training)
    assert torch.equal(found.logits, few["logits"])
    for prefix, tensors in (("weights/", found.weights), ("curve/", found.curves)):
        assert {prefix + name for name in tensors} == {name for name in few if name.startswith(prefix)} != set()
        assert all(torch.equal(tensor, few[prefix + name]) for name, tensor in tensors.items())
