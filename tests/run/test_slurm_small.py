"""Parts of the Slurm executor that need no Slurm: packing, commands, states, options, and the job on its node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_fakes as fakes
from hypothesis import given
from hypothesis import strategies as st

from bench.cli import run as command_line
from bench.errors import UserError
from bench.run import Store, run_plan, slurm, slurm_jobs
from bench.run.executors import EXECUTORS
from bench.run.job import Job

ROOT = Path(__file__).parents[2]


def job(key, weight=1.0, *, root="/store", kind="distil", device="cpu", threads=1, timed=False):
    return Job(Path(root), str(key), kind, str(key), {"threads": threads}, device=device, weight=weight, timed=timed)


def keys(packs):
    return [[job.key for job in cells] for cells in packs]


# ------------------------------------------------------------------------------------ packing


def test_short_cells_share_a_job_and_long_ones_do_not():
    options = slurm_jobs.Options(pack=10, time=60)
    jobs = [job("long", 2000), job("a", 300), job("b", 200), job("c", 200), job("d", 100)]
    assert keys(slurm_jobs.pack(jobs, lambda one: one.weight, options)) == [["long"], ["a", "b", "d"], ["c"]]


def test_a_job_holds_no_more_than_half_its_time_limit():
    jobs = [job(index, 100) for index in range(6)]
    assert [len(cells) for cells in slurm_jobs.pack(jobs, lambda one: one.weight, slurm_jobs.Options(time=10))] == [
        3,
        3,
    ]


def test_cells_of_unknown_duration_are_packed_by_number_longest_first():
    jobs = [job(index, index) for index in range(10)]
    packs = slurm_jobs.pack(jobs, lambda one: None, slurm_jobs.Options(cells=4))
    assert keys(packs) == [["9", "8", "7", "6"], ["5", "4", "3", "2"], ["1", "0"]]


def test_cells_that_ask_for_different_machines_never_share_a_job():
    jobs = [
        job("a"), job("gpu", device="cuda"), job("t1", timed=True), job("b"), job("wide", threads=4),
        job("t2", timed=True),
    ]  # fmt: skip
    packs = slurm_jobs.pack(jobs, lambda one: 1.0, slurm_jobs.Options())
    assert sorted(keys(packs)) == [["a", "b"], ["gpu"], ["t1"], ["t2"], ["wide"]]


@given(st.lists(st.tuples(st.floats(0.1, 3000), st.booleans()), max_size=40), st.integers(1, 8), st.integers(1, 60))
def test_every_cell_is_in_exactly_one_job_that_has_room_for_it(cells, most, minutes):
    options = slurm_jobs.Options(cells=most, pack=minutes)
    jobs = [job(index, weight) for index, (weight, _) in enumerate(cells)]
    known = {str(index): weight if told else None for index, (weight, told) in enumerate(cells)}
    packs = slurm_jobs.pack(jobs, lambda one: known[one.key], options)
    assert sorted(key for cells in keys(packs) for key in cells) == sorted(one.key for one in jobs)
    for members in keys(packs):
        unknown = sum(known[key] is None for key in members)
        full = sum(known[key] or 0.0 for key in members) + unknown * minutes * 60 / most
        assert len(members) == 1 or full <= minutes * 60 * (1 + 1e-6)


def test_durations_are_learned_by_kind_and_kept(tmp_path):
    rates = slurm_jobs.Rates(tmp_path)
    assert rates.seconds(job("a")) is None
    (tmp_path / "slurm").mkdir()
    for seconds in (10.0, 20.0, 600.0):
        rates.learn(job("a", 2.0), seconds)
    rates.keep()
    again = slurm_jobs.Rates(tmp_path)
    assert again.seconds(job("b", 5.0)) == 50.0
    assert again.seconds(job("c", 5.0, kind="evaluate")) is None
    again.file.write_text("torn")
    assert slurm_jobs.Rates(tmp_path).seconds(job("b")) is None


# ------------------------------------------------------------------------------------ commands, states, options


def test_the_command_asks_for_what_the_cells_need():
    folder = Path("/runs/my run/slurm/ab12")
    command = slurm_jobs.submission(slurm_jobs.Options(), [[job("a", threads=3)], [job("b", threads=3)]], folder)
    assert {"--array=0-1", "--cpus-per-task=3", "--time=240", "--signal=B:USR1@120", "--requeue"} <= set(command)
    assert not [word for word in command if word.startswith(("--gres", "--mem", "--partition", "--exclusive"))]
    assert command[-1] == f"exec {sys.executable} -m bench.run.slurm_node '/runs/my run/slurm/ab12'"
    given = slurm_jobs.Options(partition="gpu", memory="16G", cpus=8, sbatch="--account=me --qos 'very high'")
    command = slurm_jobs.submission(given, [[job("a", device="cuda", timed=True)]], folder)
    asked = {"--gres=gpu:1", "--mem=16G", "--partition=gpu", "--exclusive", "--cpus-per-task=8", "--account=me"}
    assert asked <= set(command)
    assert command[command.index("--qos") + 1] == "very high"


def test_states_are_read_as_squeue_writes_them():
    text = "17|0|RUNNING|None\n17|1|PENDING|Resources\n9|12|TIMEOUT|TimeLimit \nslurm_load_jobs error\n"
    assert slurm_jobs.parse_states(text) == {
        "17_0": ("RUNNING", "None"), "17_1": ("PENDING", "Resources"), "9_12": ("TIMEOUT", "TimeLimit"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ended", "state"), [("TIMEOUT", "timeout"), ("OUT_OF_MEMORY", "oom"), ("NODE_FAIL", "killed"), ("", "killed")]
)
def test_the_end_of_a_job_names_the_state_of_its_cell(ended, state):
    assert slurm_jobs.end_of(ended)[0] == state


@pytest.mark.parametrize(
    ("words", "said"),
    [({"time": "long"}, "time=long"), ({"partitoin": "gpu"}, "partitoin"), ({"cells": "0"}, "greater than or equal")],
)
def test_wrong_options_are_named(words, said):
    with pytest.raises(UserError, match=said):
        slurm_jobs.read_options(words)
    assert slurm_jobs.read_options({"time": "90", "partition": "gpu"}) == slurm_jobs.Options(time=90, partition="gpu")


def test_the_executor_is_registered_and_others_take_no_options(tmp_path):
    assert EXECUTORS.get("slurm") is slurm.Slurm
    with pytest.raises(UserError, match="executor 'local' has no options"):
        run_plan(fakes.plan(), Store(tmp_path), progress=False, options={"time": "5"})


def test_the_command_line_reads_pairs():
    assert command_line.pairs(["time=5", "sbatch=--qos=high"]) == {"time": "5", "sbatch": "--qos=high"}
    assert command_line.pairs(None) == {}
    with pytest.raises(UserError, match="not of the form KEY=VALUE"):
        command_line.pairs(["time"])


# ------------------------------------------------------------------------------------ the job on its node


class Node:
    """Runs the program of a job as Slurm would, with a scontrol that only notes its arguments."""

    def __init__(self, folder: Path) -> None:
        self.root, self.folder = folder / "store", folder / "store" / "slurm" / "batch"
        self.journal, self.tools = folder / "journal", folder / "tools"
        for path in (self.folder, self.journal, self.tools):
            path.mkdir(parents=True)
        (self.tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {self.tools}/calls\n')
        (self.tools / "scontrol").chmod(0o755)

    def write(self, *cells, **options):
        jobs = [
            {"root": str(self.root), "key": cell.key, "kind": cell.kind, "label": cell.label, "config": cell.config,
             "inputs": cell.inputs, "device": "cpu"}
            for cell in cells
        ]  # fmt: skip
        path = [str(ROOT), str(Path(fakes.__file__).parent)]
        given = slurm_jobs.Options(**options).model_dump()
        batch = {"path": path, "preload": ["bench.run.worker"], "options": given, "jobs": [jobs]}
        (self.folder / "batch.json").write_text(json.dumps(batch))

    def start(self, restarts=0):
        environment = {
            **os.environ, "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts),
            "FAKE_JOURNAL": str(self.journal), "PATH": f"{self.tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        return subprocess.Popen([sys.executable, "-m", "bench.run.slurm_node", str(self.folder)], env=environment)

    def signalled(self, number, file, restarts=0):
        """Start the job, send it a signal once a cell has written to its journal, and wait for its end."""
        process = self.start(restarts)
        deadline = time.monotonic() + 120
        while not (self.journal / file).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) == 0

    @property
    def calls(self):
        return (self.tools / "calls").read_text().split() if (self.tools / "calls").exists() else []

    def outcome(self, cell):
        return json.loads((self.folder / f"{cell.key}.json").read_text())


def test_a_warned_job_goes_back_into_the_queue_and_continues(tmp_path):
    node = Node(tmp_path)
    slow = fakes.cell("stepwise", name="slow", start=0.3, steps=30, block=1000, seconds=0.05)
    broken = fakes.cell("raises")
    node.write(broken, slow)
    node.signalled(signal.SIGUSR1, "slow")
    assert node.calls == ["requeue", "7"]
    assert node.outcome(broken)["state"] == "failed"
    assert not (node.folder / f"{slow.key}.json").exists()
    assert node.start(restarts=1).wait(60) == 0
    assert node.outcome(slow)["state"] == "ok"
    steps = [int(line.split()[1]) for line in (node.journal / "slow").read_text().splitlines()]
    assert steps == list(range(1, 31))
    assert node.calls == ["requeue", "7"]
    assert Store(node.root).result(slow.key)["usage"]["resumed"]


def test_a_job_that_is_taken_back_does_not_go_into_the_queue(tmp_path):
    node = Node(tmp_path)
    slow = fakes.cell("stepwise", name="slow", start=0.3, steps=100, block=1000, seconds=0.05)
    node.write(slow)
    node.signalled(signal.SIGTERM, "slow")
    assert node.calls == []
    assert (Store(node.root).work(slow.key) / "checkpoint.json").exists()


def test_a_cell_that_had_a_whole_job_and_kept_nothing_has_failed(tmp_path):
    node = Node(tmp_path)
    deaf = fakes.cell("deaf", seconds=60)
    node.write(deaf, warning=10, time=5)
    node.signalled(signal.SIGUSR1, "deaf")
    outcome = node.outcome(deaf)
    assert outcome["state"] == "timeout"
    assert "needs longer than the time limit of its Slurm job (5 min)" in outcome["reason"]
    assert Store(node.root).failure(deaf.key)["state"] == "timeout"
    assert node.calls == []


def test_a_cell_is_not_continued_for_ever(tmp_path):
    node = Node(tmp_path)
    slow = fakes.cell("stepwise", name="slow", start=0.3, steps=100, block=1000, seconds=0.05)
    node.write(slow, requeues=3)
    node.signalled(signal.SIGUSR1, "slow", restarts=3)
    assert node.outcome(slow)["state"] == "timeout"
    assert "stopped 4 times" in node.outcome(slow)["reason"]
