"""Suites are checked completely: every mistake at once, with file, line, key path and the nearest valid name."""

from __future__ import annotations

import pickle

import pytest
from conftest import BASE, changed

import bench.suite
from bench.errors import UserError

pytestmark = pytest.mark.usefixtures("fakes")


def test_a_suite_and_its_defaults(write):
    suite = write.load()
    assert (suite.name, suite.preset, suite.presets, suite.title) == ("suite", "default", (), "A test")
    assert suite.spec.threads == 1
    assert suite.spec.limits.seconds is None
    assert [(v.label, v.task.ipc) for v in suite.variants] == [("fake", 1), ("fake", 10)]
    assert suite.resolved()["grid"]["ipc"] == [1, 10]


PRESETS = (
    BASE
    + """\
methods: {fake: {iterations: 5}}
presets:
  small:
    grid: {ipc: [1]}
    evaluation: {recipe: {epochs: 2}}
    methods: {fake: {rate: 0.2}}
  large:
    grid: {seeds: [7, 8, 9]}
    evaluators: []
default_preset: small
"""
)


def test_presets_are_laid_over(write):
    small, large = write.load(PRESETS), write.load(PRESETS, "large")
    assert small.preset == "small"
    assert small.presets == ("small", "large")
    assert [v.task.ipc for v in small.variants] == [1]
    assert small.spec.evaluation.recipe == {"base": "review", "epochs": 2}
    assert small.variants[0].recipe["epochs"] == 2
    assert (small.variants[0].params.iterations, small.variants[0].params.rate) == (5, 0.2)
    assert (large.variants[0].params.iterations, large.variants[0].params.rate) == (5, 0.1)
    assert list(large.spec.grid.all_seeds) == [7, 8, 9]
    assert large.evaluators == ()


def test_order_of_parameters(write):
    text = changed("[fake]", "[fake, {name: fake, label: other, params: {iterations: 7, rate: 0.7}}]", BASE)
    suite = write.load(text + "methods: {fake: {rate: 0.3}, other: {sizes: [9]}}\n")
    found = {(v.label, v.task.ipc): v.params for v in suite.variants}
    assert found["fake", 1].model_dump() == {"iterations": 100, "rate": 0.3, "sizes": (1, 2)}
    assert found["fake", 10].model_dump() == {"iterations": 100, "rate": 0.3, "sizes": (3,)}
    assert found["other", 10].model_dump() == {"iterations": 7, "rate": 0.3, "sizes": (9,)}


@pytest.mark.parametrize(
    ("dataset", "entry", "grid", "ipc", "settings"),
    [
        ("mnist", "fake", "", 10, "paper"),
        ("mnist", "fake", "", 5, "modified"),  # the paper does not say
        ("digits", "fake", "", 1, "paper"),  # a complete dataset, and the fake says its source
        ("mnist", "{name: fake, params: {rate: 0.5}}", "", 10, "paper"),  # the published value, said again
        ("mnist", "{name: fake, params: {rate: 0.6}}", "", 10, "modified"),
        ("mnist", "{name: fake, params: {iterations: 99}}", "", 10, "modified"),
        ("mnist", "fake", "network: convnet", 10, "paper"),  # what it would use anyway
        ("mnist", "fake", "network: convnet-bn", 10, "modified"),
        ("mnist", "{name: fake, network: mlp}", "", 10, "modified"),
        ("mnist", "fake", "augment: none", 10, "modified"),
        ("mnist", "fake", "augment: dsa", 10, "paper"),
        ("mnist", "fake", "preprocessing: none", 10, "modified"),
        ("mnist", "fake", "preprocessing: meanstd", 10, "paper"),
        ("cifar100_part", "fake", "", 10, "modified"),  # never put beside published numbers
    ],
)
def test_settings_tell_published_from_modified(write, dataset, entry, grid, ipc, settings):
    suite = write.load(f"""\
        title: x
        grid:
          datasets: [{dataset}]
          methods: [{entry}]
          ipc: [{ipc}]
          {grid}
        evaluators: []
    """)
    assert [v.settings for v in suite.variants] == [settings]


def test_recipes(write):
    def recipe(text: str):
        return write.load(changed("{base: review, epochs: 3}", text)).variants[0].recipe

    assert recipe("review")["epochs"] == 1000
    assert recipe("native")["epochs"] == 7
    assert recipe("{base: native, steps: 5, lr: 1, schedule: cosine}")["epochs"] is None
    assert recipe("{base: native, steps: 5, lr: 1, schedule: cosine}")["lr"] == 1.0


def test_recipes_by_method_or_label(write):
    text = changed("[fake]", "[fake, {name: fake, label: other}, everything]")
    suite = write.load(text.replace("replicates: 2", "recipes: {fake: dc, other: {epochs: 9}}"))
    epochs = {v.label: v.recipe["epochs"] for v in suite.variants}
    assert epochs == {"fake": 300, "other": 9, "everything": 3}


def test_networks_follow_the_method_where_nothing_is_said(write):
    text = changed("  network: convnet-in-w8-d2\n", "", BASE).replace("network: convnet-in-w8-d2, ", "")
    variant = write.load(text).variants[0]
    assert variant.task.network.arch == "convnet"
    assert variant.task.network.width == 128
    assert variant.network == variant.task.network


def test_where_clauses_accept_one_value_or_several(write):
    suite = write.load(changed("[score]", "[{name: score, where: {ipc: 10, seed: [0, 1]}}]"))
    assert suite.evaluators[0].where.matches({"dataset": "digits", "method": "x", "label": "x", "ipc": 10, "seed": 1})
    assert not suite.evaluators[0].where.matches(
        {"dataset": "digits", "method": "x", "label": "x", "ipc": 1, "seed": 1}
    )


ONE_MISTAKE = [
    ("ipc: [1, 10]", "ipcs: [1, 10]", "suite.yaml:5: grid.ipcs: unknown key 'ipcs' (did you mean 'ipc'?)"),
    ("title: A test", "tilte: A test", "suite.yaml:1: tilte: unknown key 'tilte' (did you mean 'title'?)"),
    ("grid:\n", "grit:\n", "suite.yaml:2: grit: unknown key 'grit' (did you mean 'grid'?)"),
    ("  ipc: [1, 10]\n", "", "suite.yaml:2: grid: the key 'ipc' is missing"),
    ("[fake]", "[{label: a}]", "suite.yaml:4: grid.methods[0]: the key 'name' is missing"),
    ("[digits]", "[digit]", "suite.yaml:3: grid.datasets[0]: unknown dataset 'digit' (did you mean 'digits'?"),
    ("[fake]", "[fakes]", "suite.yaml:4: grid.methods[0]: unknown method 'fakes' (did you mean 'fake'?)"),
    ("[fake]", "['math:sqrt']", "suite.yaml:4: grid.methods[0]: 'math:sqrt' is not a method"),
    ("[fake]", "[':x']", "suite.yaml:4: grid.methods[0]: unknown method ':x' (known"),
    ("[fake]", "[{nme: fake}]", "suite.yaml:4: grid.methods[0].nme: unknown key 'nme' (did you mean 'name'?)"),
    ("[fake]", "[{name: fake, params: {iteration: 3}}]",
     "suite.yaml:4: grid.methods[0].params.iteration: unknown key 'iteration' (did you mean 'iterations'?)"),
    ("[fake]", "[{name: fake, params: {iterations: many}}]",
     'suite.yaml:4: grid.methods[0].params.iterations: must be a valid integer, not "many"'),
    ("[fake]", "[{name: fake, params: {rate: 0}}]",
     "suite.yaml:4: grid.methods[0].params.rate: must be greater than 0, not 0"),
    ("[fake]", "[{name: fake, params: {sizes: [1, x]}}]",
     'suite.yaml:4: grid.methods[0].params.sizes[1]: must be a valid integer, not "x"'),
    ("[fake]", "[fake, fake]", "suite.yaml:4: grid.methods[1]: 'fake' stands twice (give one of them a label"),
    ("[fake]", "[]", "suite.yaml:4: grid.methods: the list of methods is empty"),
    ("ipc: [1, 10]", "ipc: [1, 1]", "suite.yaml:5: grid.ipc[1]: 1 stands twice"),
    ("ipc: [1, 10]", "ipc: [0, 10]", "suite.yaml:5: grid.ipc[0]: must be greater than or equal to 1, not 0"),
    ("ipc: [1, 10]", "ipc: [1, 1.5]", "suite.yaml:5: grid.ipc[1]: must be a valid integer, not 1.5"),
    ("ipc: [1, 10]", "ipc: [1, 500]",
     "suite.yaml:5: grid.ipc[1]: 500 images per class are more than digits has (its smallest class has at most 144)"),
    ("ipc: [1, 10]", "ipc: 1", "suite.yaml:5: grid.ipc: must be a valid list, not 1"),
    ("seeds: 2", "seeds: 0", "suite.yaml:6: grid.seeds: there must be at least one seed"),
    ("seeds: 2", "seeds: [0, -1]",
     "suite.yaml:6: grid.seeds[1]: must be greater than or equal to 0, not -1"),
    ("seeds: 2", "seeds: no", "suite.yaml:6: grid.seeds: must be a valid integer, not \"no\" or must be a valid list"),
    ("seeds: 2", "seeds: 1000000000", "suite.yaml:2: grid: the grid has 2000000000 combinations"),
    ("network: convnet-in-w8-d2\n", "network: convnot\n", "suite.yaml:7: grid.network: unknown network 'convnot'"),
    ("network: convnet-in-w8-d2\n", "network: convnet-d9\n", "suite.yaml:7: grid.network: network convnet-in-d9"),
    ("network: convnet-in-w8-d2\n", "network: {arch: convnet, widht: 3}\n", "suite.yaml:7: grid.network: network"),
    ("network: convnet-in-w8-d2\n", "preprocessing: zca\n", "suite.yaml:7: grid.preprocessing: unknown preprocessing"),
    ("network: convnet-in-w8-d2,", "network: lenet-bn,", "suite.yaml:8: evaluation.network: network lenet"),
    ("{base: review, epochs: 3}", "revew",
     "suite.yaml:8: evaluation.recipe: unknown recipe 'revew' (did you mean 'review'?)"),
    ("{base: review, epochs: 3}", "{epoch: 3}",
     "suite.yaml:8: evaluation.recipe: unknown recipe field 'epoch' (did you mean 'epochs'?)"),
    ("{base: review, epochs: 3}", "{base: [a]}", "suite.yaml:8: evaluation.recipe: the base of a recipe"),
    ("replicates: 2", "recipes: {fke: dc}",
     "suite.yaml:8: evaluation.recipes.fke: there is no method or label 'fke' (did you mean 'fake'?)"),
    ("replicates: 2", "recipes: {fake: {epoch: 1}}",
     "suite.yaml:8: evaluation.recipes.fake: unknown recipe field 'epoch' (did you mean 'epochs'?)"),
    ("{base: review, epochs: 3}", "{augment: dsb}",
     "suite.yaml:8: evaluation.recipe: unknown augmentation 'dsb' (did you mean 'dsa'?)"),
    ("{base: review, epochs: 3}", "{base: native, epoch: 3}",
     "suite.yaml:8: evaluation.recipe: unknown recipe field 'epoch' (did you mean 'epochs'?)"),
    ("[score]", "[scores]", "suite.yaml:9: evaluators[0]: unknown evaluator 'scores' (did you mean 'score'?)"),
    ("[score]", "[{name: score, params: {tip: 1}}]",
     "suite.yaml:9: evaluators[0].params.tip: unknown key 'tip' (did you mean 'top'?)"),
    ("[score]", "[{name: score, where: {datasets: [digits]}}]",
     "suite.yaml:9: evaluators[0].where.datasets: unknown key 'datasets' (did you mean 'dataset'?)"),
    ("[score]", "[{name: score, where: {dataset: digts}}]",
     "suite.yaml:9: evaluators[0].where.dataset: there is no dataset 'digts' (did you mean 'digits'?)"),
    ("[score]", "[{name: score, where: {label: [fak]}}]",
     "suite.yaml:9: evaluators[0].where.label[0]: there is no label 'fak' (did you mean 'fake'?)"),
    ("[score]", "[{name: score, where: {ipc: ten}}]",
     'suite.yaml:9: evaluators[0].where.ipc: must be a valid integer, not "ten"'),
    ("[score]", "[score]\nmethods: {fke: {}}",
     "suite.yaml:10: methods.fke: there is no method or label 'fke' (did you mean 'fake'?)"),
    ("[score]", "[score]\nmethods: {fake: {iteration: 3}}",
     "suite.yaml:10: methods.fake.iteration: unknown key 'iteration' (did you mean 'iterations'?)"),
    ("[score]", "[score]\nskip: [{methd: fake}]",
     "suite.yaml:10: skip[0].methd: unknown key 'methd' (did you mean 'method'?)"),
    ("[score]", "[score]\nthreads: 0", "suite.yaml:10: threads: must be greater than or equal to 1, not 0"),
    ("[score]", "[score]\nlimits: {second: 3}",
     "suite.yaml:10: limits.second: unknown key 'second' (did you mean 'seconds'?)"),
    ("[score]", "[score]\npresets: [a]", "suite.yaml:10: presets: must be a mapping from names to presets"),
    ("[score]", "[score]\npresets: {a: 1}", "suite.yaml:10: presets.a: a preset must be a mapping"),
    ("[score]", "[score]\npresets: {laptop: {}}\ndefault_preset: laptp",
     "suite.yaml:11: default_preset: there is no preset 'laptp' (did you mean 'laptop'?)"),
    ("[score]", "[score]\npresets:\n  a:\n    grid:\n      ipcs: [1]\ndefault_preset: a",
     "suite.yaml:13: grid.ipcs: unknown key 'ipcs' (did you mean 'ipc'?)"),
    ("[score]", "[score]\npresets: {a: {presets: {}}}\ndefault_preset: a",
     "suite.yaml:10: presets: unknown key 'presets'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), ONE_MISTAKE)
def test_one_mistake_one_line(write, old, new, message):
    found = write.error(changed(old, new))
    assert found.startswith(message)
    assert "\n" not in found


def test_all_mistakes_at_once_and_once_each(write):
    text = """\
        title: 3
        grid:
          datasets: [digits, mnit]
          methods: [fake, {name: fake, label: other, params: {iterations: x}}, dmm]
          ipc: [1, ten, 1000]
          seeds: 2
          network: convnet-d8
        evaluation: {recipe: revw}
        evaluators: [scor, {name: score, params: {top: x, tp: 1}}]
        foo: 1
    """
    with pytest.raises(bench.suite.SuiteErrors) as caught:
        write.load(text)
    errors = [str(error).replace(str(write.file), "f") for error in caught.value.errors]
    for start in [
        "f:1: title: must be a valid string, not 3",
        "f:3: grid.datasets[1]: unknown dataset 'mnit'",
        "f:4: grid.methods[1].params.iterations: must be a valid integer",
        "f:4: grid.methods[2]: unknown method 'dmm'",
        'f:5: grid.ipc[1]: must be a valid integer, not "ten"',
        "f:7: grid.network: network convnet-in-d8",
        "f:8: evaluation.recipe: unknown recipe 'revw'",
        "f:9: evaluators[0]: unknown evaluator 'scor'",
        "f:9: evaluators[1].params.top: must be a valid integer",
        "f:9: evaluators[1].params.tp: unknown key 'tp'",
        "f:10: foo: unknown key 'foo'",
    ]:
        assert sum(error.startswith(start) for error in errors) == 1, start
    assert sum("1000 images per class are more than digits has" in error for error in errors) == 1
    assert len(errors) == 12
    assert str(caught.value) == "\n".join(str(error) for error in caught.value.errors)


def test_errors_survive_a_process_boundary(write):
    with pytest.raises(UserError) as caught:
        write.load(changed("[fake]", "[a, b]"))
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert len(again.errors) == 2


def test_files_and_presets_that_are_not_there(write, tmp_path):
    write()
    with pytest.raises(UserError, match=r"there is no suite file .*did you mean 'suite\.yaml'"):
        bench.suite.load(tmp_path / "suit.yaml")
    with pytest.raises(UserError, match=r"there is no preset 'smal' \(did you mean 'small'\?\)"):
        write.load(PRESETS, "smal")
    with pytest.raises(UserError, match="there is no preset 'laptop'"):
        write.load(BASE, "laptop")
    with pytest.raises(UserError, match="a suite must be a mapping"):
        write.load("[1, 2]\n")
