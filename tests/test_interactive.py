"""ddbench from Python: the numbers of the command line, cached; torch datasets; pictures; a cheap import."""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

import bench
import bench.distilled
import bench.interactive
from bench.api import NetSpec, Params, param
from bench.cli import app
from bench.distilled import make_set
from bench.errors import MissingData, UserError
from bench.train import recipe, train
from methods.random import Random

ROOT = Path(__file__).parents[1]
TINY = "convnet-in-w4-d2"
RECIPE = {"base": "review", "epochs": 2}


@pytest.fixture
def task():
    return bench.load_task("debug", ipc=2, seed=3, network=TINY)


def accuracies(frame) -> list[float]:
    return frame[frame["metric"] == "accuracy"]["value"].tolist()


# ---------------------------------------------------------------------------------------------- numbers


def test_the_numbers_of_the_command_line_with_the_same_seed(task, tmp_path):
    suite = {
        "grid": {
            "datasets": ["debug"],
            "methods": [{"name": "dm", "params": {"iterations": 3}}],
            "ipc": [2],
            "seeds": [3],
            "network": TINY,
        },
        "evaluation": {"network": TINY, "recipe": RECIPE, "replicates": 2},
        "evaluators": ["accuracy", {"name": "krr", "params": {}}],
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(suite))
    app(
        ["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"), "--executor", "inline", "--device", "cpu"],
        standalone_mode=False,
    )
    lines = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    s = bench.distil("dm", task, iterations=3, store=tmp_path / "python", progress=False)
    (file,) = (tmp_path / "out").glob("cells/*/*/set.safetensors")
    assert torch.equal(s.images, bench.load(file).images)
    found = bench.evaluate(
        s, ["accuracy", "krr"], recipe=RECIPE, replicates=2, seed=3, store=tmp_path / "python", progress=False
    )
    theirs = {(line["metric"], line["replicate"], line["network"] or "", line["value"]) for line in lines}
    rows = zip(found["metric"], found["replicate"], found["network"], found["value"], strict=True)
    ours = {(metric, None if pd.isna(one) else int(one), network, value) for metric, one, network, value in rows}
    assert ours == theirs
    assert set(found["label"]) == {"dm"}
    assert {"accuracy", "krr"} <= set(found["evaluator"])


def test_finished_work_is_read_from_the_store(task, tmp_path, capfd):
    for attempt in range(2):
        s = bench.distil("dm", task, iterations=2, store=tmp_path)
        bench.evaluate(s, recipe=RECIPE, replicates=1, store=tmp_path)
        said = capfd.readouterr().err
        assert ("ok distil dm" in said, "ok accuracy of dm" in said) == (attempt == 0, attempt == 0)
    cells = list(tmp_path.glob("cells/*/*"))
    assert len(cells) == 1 + 3  # distilled; given, trained, measured


def test_choices_that_nobody_made_are_those_of_the_method(tmp_path):
    made = bench.distil(
        "kip", bench.load_task("debug", 1), store=tmp_path, progress=False, iterations=1, zca=True, batch=50
    )
    assert made.header.preprocessing == "zca-kip"
    chosen = bench.distil(
        "random",
        bench.load_task("debug", 1, preprocessing="none", network=NetSpec(width=4)),
        store=tmp_path,
        progress=False,
    )
    assert (chosen.header.preprocessing, chosen.header.network["width"]) == ("none", 4)


class Mine(Random):
    """A method of the user's own, whose result the test changes behind its back."""

    class Params(Params):
        """One number."""

        balance: str = "class"
        shift: float = param(0.0, "added to every image")

    change = 0.0

    def export(self):
        found = super().export()
        return make_set(
            self.task, self, images=found.images + self.params.shift + self.change, labels=found.labels, header={}
        )


def test_a_method_of_your_own_is_made_anew_each_time(task, monkeypatch):
    first = bench.distil(Mine, task, shift=1.0, progress=False)
    monkeypatch.setattr(Mine, "change", 5.0)
    again = bench.distil(f"{__name__}:Mine", task, shift=1.0, progress=False)
    assert torch.allclose(again.images - first.images, torch.tensor(5.0))


def test_several_sets_and_files_are_rows(task, tmp_path):
    first = bench.distil("random", task, store=tmp_path, progress=False)
    second = bench.distil("kcenter", task, store=tmp_path, progress=False, balance="none", epochs=1)
    bench.save(second, tmp_path / "second.safetensors")
    found = bench.evaluate(
        [first, tmp_path / "second.safetensors"], recipe=RECIPE, replicates=2, store=tmp_path, progress=False
    )
    assert found[found["metric"] == "accuracy"].groupby("label").size().to_dict() == {"random": 2, "kcenter": 2}


def test_the_store_is_in_the_cache_folder_of_the_user(task, tmp_path, monkeypatch):
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path))
    bench.distil("random", task, progress=False)
    assert len(list(tmp_path.glob("python/cells/*/*/set.safetensors"))) == 1


def test_settings_of_the_process_stay(task, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        bench.distil("random", task, store=tmp_path, progress=False)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------------------------------- sets


def test_a_set_is_a_torch_dataset_and_goes_into_the_trainer(task, tmp_path):
    s = bench.distil("random", task, store=tmp_path, progress=False)
    batches = list(DataLoader(bench.as_dataset(s), batch_size=8))
    assert [tuple(images.shape) for images, _ in batches] == [(8, 3, 8, 8), (8, 3, 8, 8), (4, 3, 8, 8)]
    assert torch.equal(torch.cat([images for images, _ in batches]), s.images)
    images, labels = bench.as_dataset(s).tensors
    rngs = [torch.Generator().manual_seed(0)]
    handle = train(NetSpec(width=4, depth=2), images, labels, recipe.resolve(RECIPE), rngs, info=task.spec.dataset)
    assert bool(handle.finite().all())


def test_a_set_that_points_at_training_images_is_opened(task, tmp_path):
    whole = bench.distil("whole", task, store=tmp_path, progress=False)
    images, labels = bench.as_dataset(whole).tensors
    assert torch.equal(images, task.data.train.images())
    assert torch.equal(labels, task.data.train.labels)


def test_a_picture(task, tmp_path):
    s = bench.distil("random", task, store=tmp_path, progress=False)
    picture = bench.show(s)
    assert picture.size == (2 * (24 + 2) + 2, 10 * (24 + 2) + 2)  # eight pixels are drawn as 24, with frames of two
    assert picture._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
    bench.save(s, tmp_path / "s.safetensors")
    assert bench.show(tmp_path / "s.safetensors", columns=1, classes=3).size == (28, 3 * 26 + 2)


# ---------------------------------------------------------------------------------------------- mistakes


def test_a_set_says_what_it_is_and_notebooks_show_it(task, tmp_path):
    made = bench.distil("random", task, store=tmp_path, progress=False)
    assert repr(made) == "DistilledSet(random on debug, seed 3: 20 images 3x8x8 in meanstd, hard labels)"
    assert made._repr_png_().startswith(b"\x89PNG")


def test_mistakes(task, tmp_path):
    with pytest.raises(UserError, match=r"distil: grid.methods\[0\].params.iteration: .*did you mean 'iterations'"):
        bench.distil("dm", task, iteration=3, store=tmp_path)
    with pytest.raises(UserError, match="unknown method 'dmm'"):
        bench.distil("dmm", task, store=tmp_path)
    with pytest.raises(UserError, match="unknown dataset"):
        bench.load_task("cifar", 1)
    with pytest.raises(MissingData):
        bench.load_task(f"npz:{tmp_path}/none.npz", 1)
    with pytest.raises(UserError, match=r"failed: .*traceback: "):
        bench.distil("glad_dm", task, generator="none.safetensors", iterations=1, store=tmp_path, progress=False)
    with pytest.raises(AttributeError, match="has no attribute 'destil'"):
        _ = bench.destil


def test_importing_the_package_imports_nothing():
    code = "import sys, bench; print('torch' in sys.modules, 'pandas' in sys.modules, 'distil' in dir(bench))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.split() == ["False", "False", "True"], done.stderr


# ---------------------------------------------------------------------------------------------- documentation


def test_the_examples_in_the_docstrings(tmp_path, monkeypatch):
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path))
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in finder.find(bench.interactive, globs={"bench": bench}):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
    assert runner.tries >= 9


def test_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "bench.load_task" in block)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert "accuracy" in capsys.readouterr().out
    assert names["images"].shape == (10, 1, 8, 8)
