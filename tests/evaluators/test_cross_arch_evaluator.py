import json

import pytest
import torch

from bench.api import NetSpec
from bench.errors import UserError
from bench.nets.spec import label
from evaluators.cross_arch import REVIEW, CrossArch, CrossArchParams


def test_nine_networks_of_the_review(evaluation):
    spec = evaluation(torch.zeros(1), {}).eval_spec
    found = CrossArch.trainings(CrossArchParams(), spec)
    assert tuple(label(t.network, (1, 8, 8)) for t in found) == (
        "convnet-none", "convnet-in", "convnet-bn", "alexnet-none", "alexnet-in", "resnet18-in", "resnet18-bn",
        "vgg11-in", "vgg11-bn",
    )  # fmt: skip
    assert len(REVIEW) == 9
    assert {t.replicates for t in found} == {2}


def test_any_list_with_widths():
    params = CrossArchParams.model_validate_json(
        json.dumps({"networks": ["convnet-bn-w8", "resnet18-in", {"arch": "mlp"}, "lenet"], "width": 16})
    )
    assert params.networks[2] == NetSpec(arch="mlp")


def test_width_is_for_those_that_have_one_and_name_none(evaluation):
    spec = evaluation(torch.zeros(1), {}).eval_spec
    params = CrossArchParams(networks=("convnet-bn-w8", "resnet18-in", "lenet"), width=16, replicates=7)
    found = CrossArch.trainings(params, spec)
    assert [t.network.width for t in found] == [8, 16, None]
    assert {t.replicates for t in found} == {7}


def test_measures_carry_their_network(evaluation):
    labels = torch.tensor([0, 1, 2])
    logits = torch.eye(3)[None].repeat(2, 1, 1)
    task = evaluation(labels, {None: logits})
    found = CrossArch(CrossArchParams(networks=("convnet-bn", "mlp"))).evaluate(task)
    assert [(m.network, m.replicate, m.value) for m in found] == [
        ("convnet-bn", 0, 1.0), ("convnet-bn", 1, 1.0), ("mlp", 0, 1.0), ("mlp", 1, 1.0)
    ]  # fmt: skip
    assert [t.network.arch for t in task.asked] == ["convnet", "mlp"]


def test_an_unknown_network_is_refused(evaluation):
    with pytest.raises(UserError, match="convnet"):
        CrossArch.trainings(CrossArchParams(networks=("convmet",)), evaluation(torch.zeros(1), {}).eval_spec)
