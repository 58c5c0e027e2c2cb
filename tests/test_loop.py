"""The loop around a method: log, snapshots, NaN guard, and continuing bit for bit after a kill."""

from __future__ import annotations

import math

import pytest
import torch

import bench.data
from bench.api import DistilledSet, Header, Method, NetSpec, Params, TaskSpec, param
from bench.distilled import load, make_header
from bench.errors import Diverged
from bench.loop import CHECKPOINT, LOG_LINES, distil, run
from bench.task import LiveTask, derive_seed


class Walk(Method):
    """Adds named noise to its images each step; can be told to fail."""

    class Params(Params):
        length: int = param(20, "outer steps")
        nan_loss: int = param(0, "step at which the loss is NaN")
        nan_image: bool = param(False, "whether the result is NaN")
        stop: int = param(0, "step at which the process is gone")

    title, citation = "walk", "none"

    @property
    def steps(self):
        return self.params.length

    def start(self, task):
        self.task, self.count = task, 0
        self.images = torch.zeros(10, 1, 8, 8)

    def step(self):
        self.count += 1
        if self.count == self.params.stop:
            raise KeyboardInterrupt
        self.images = self.images + torch.randn(self.images.shape, generator=self.task.rng("walk"))
        return {"loss": math.nan if self.count == self.params.nan_loss else self.images.square().mean()}

    def export(self):
        images = self.images / 0 if self.params.nan_image else self.images
        return DistilledSet(make_header(self.task, self), images.clone(), torch.arange(10))

    def state_dict(self):
        return {"images": self.images, "count": self.count}

    def load_state_dict(self, state):
        self.images, self.count = state["images"], state["count"]


def task(seed: int = 0) -> LiveTask:
    spec = TaskSpec(dataset=bench.data.info("digits"), ipc=1, network=NetSpec(width=4, depth=2), seed=seed)
    return LiveTask(spec)


def walk(**params) -> Walk:
    return Walk(Walk.Params(**params))


def test_seeds_of_different_purposes_are_unrelated():
    seeds = {derive_seed(seed, name) for seed in range(50) for name in ("init", "data", "init/1")}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_same_seed_same_bytes_other_seed_other_bytes():
    first, again, other = (distil(walk(), task(seed)).distilled.images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_log_has_the_first_and_last_step_and_a_bounded_length():
    course = distil(walk(length=5000), task())
    assert [course.log[0]["step"], course.log[-1]["step"]] == [1, 5000]
    assert len(course.log) <= LOG_LINES + 2
    assert all(a["seconds"] <= b["seconds"] for a, b in zip(course.log, course.log[1:], strict=False))
    assert course.profile["steps"] == 5000


@pytest.mark.parametrize("stop", [2, 7, 19, 20])
def test_a_stopped_run_continues_bit_for_bit(tmp_path, stop):
    whole = distil(walk(), task(), folder=tmp_path / "whole", snapshots=(3, 10))
    with pytest.raises(KeyboardInterrupt):
        distil(walk(stop=stop), task(), folder=tmp_path, snapshots=(3, 10), checkpoint_seconds=0)
    assert (tmp_path / CHECKPOINT).is_file()
    resumed = distil(walk(), task(), folder=tmp_path, snapshots=(3, 10), checkpoint_seconds=0)
    assert torch.equal(resumed.distilled.images, whole.distilled.images)
    assert [line["loss"] for line in resumed.log] == [line["loss"] for line in whole.log]
    assert list(resumed.snapshots) == [3, 10]
    for step in (3, 10):
        name = f"set@{step}.safetensors"
        assert torch.equal(load(tmp_path / name).images, load(tmp_path / "whole" / name).images)


def cut(content, state):
    return content[: len(content) // 2]


def flip(content, state):
    """Change one bit of one pixel; the file is read as before and says something else."""
    place = content.index(state["method"]["images"].numpy().tobytes())
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def nonsense(content, state):
    return b"half a checkpoint"


@pytest.mark.parametrize("damage", [cut, flip, nonsense])
def test_a_damaged_checkpoint_is_not_used(tmp_path, damage):
    with pytest.raises(KeyboardInterrupt):
        distil(walk(stop=7), task(), folder=tmp_path, checkpoint_seconds=0)
    file, steps = tmp_path / CHECKPOINT, []
    file.write_bytes(damage(file.read_bytes(), torch.load(file, weights_only=True)))
    found = distil(walk(), task(), folder=tmp_path, report=lambda step=0, *_: steps.append(step))
    assert torch.equal(found.distilled.images, distil(walk(), task()).distilled.images)
    assert steps[0] == 1


def test_nan_in_loss_or_result_is_reported_with_its_step():
    with pytest.raises(Diverged, match="loss is nan after outer step 5"):
        distil(walk(nan_loss=5), task())
    with pytest.raises(Diverged, match="images are not finite"):
        distil(walk(nan_image=True), task())


def test_header_says_what_was_distilled():
    header: Header = distil(walk(), task(seed=3)).distilled.header
    assert (header.dataset, header.ipc, header.seed, header.params["length"]) == ("digits", 1, 3, 20)


def test_a_cell_writes_set_and_log_and_says_where_the_set_comes_from(tmp_path):
    config = {"method": "random", "params": {}, "snapshots": [], "task": {"data": bench.data.fingerprint("digits")}}
    (tmp_path / "out").mkdir()
    result = run(config, task(), tmp_path / "work", tmp_path / "out")
    origin = load(tmp_path / "out" / "set.safetensors").header.provenance
    assert origin["data"] == bench.data.info("digits").content
    assert origin["ddbench"] == bench.__version__
    assert origin["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert result["steps"] == 0
    assert (tmp_path / "out" / "log.jsonl").is_file()
    assert "choices" not in result


def test_what_a_method_chose_stands_in_the_result(tmp_path):
    config = {"method": "dm", "params": {"iterations": 0, "batch_real": 4}, "snapshots": []}
    config["task"] = {"data": bench.data.fingerprint("digits")}
    (tmp_path / "out").mkdir()
    found = run(config, task(), tmp_path / "work", tmp_path / "out")["choices"]
    assert found["images in a pass"] == 512
    assert found["embedding"].startswith("plain: a short run")
