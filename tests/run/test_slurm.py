"""The Slurm executor on a real Slurm: equal records, time limits, lost nodes, Ctrl-C.

Skipped where Slurm is not installed or may not be started here; `slurm_cluster.py` says what it needs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import run_fakes as fakes
import slurm_cluster
import slurm_runner

from bench.errors import UserError
from bench.run import Store, run_plan
from bench.run.executors import Local
from bench.run.slurm import Slurm

needs_slurm = pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing() or "Slurm is here")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with slurm_cluster.Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def cluster(slurm, monkeypatch, tmp_path):
    """A cluster with both nodes up, used by this process, and a journal for cells to write to."""
    for name in slurm_cluster.NODES:
        if name not in slurm.daemons:
            slurm.start_node(name)
    slurm_cluster.until(lambda: all(slurm.state(name) == "idle" for name in slurm_cluster.NODES), "the nodes")
    (tmp_path / "journal").mkdir()
    for name, value in {**slurm.environment, "FAKE_JOURNAL": str(tmp_path / "journal")}.items():
        monkeypatch.setenv(name, value)
    for name in ("poll", "look", "gather", "settle"):
        monkeypatch.setattr(Slurm, name, getattr(Slurm, name))  # put back afterwards
    monkeypatch.setattr(Local, "preload", Local.preload)
    slurm_runner.hurry()
    slurm.journal = tmp_path / "journal"
    return slurm


def run(cells, folder, /, executor="slurm", **options):
    store = Store(folder)
    given = {"options": {key: str(value) for key, value in options.items()}} if executor == "slurm" else {}
    summary = run_plan(fakes.plan(*cells), store, jobs=None, device="cpu", executor=executor, progress=False, **given)
    return store, summary


def steps(cluster, name="slow"):
    """Return (process, step) of every step a cell has done until now."""
    file = cluster.journal / name
    rows = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [(int(row[0]), int(row[1])) for row in rows if len(row) == 2]


def in_background(cells, folder, /, **options):
    """Start a run in a thread; return it and where its result will be."""
    found = {}
    thread = threading.Thread(target=lambda: found.update(end=run(cells, folder, **options)))
    thread.start()
    return thread, found


def undisturbed(cells, folder):
    """Return the records of the same plan, computed in this process and without pauses between steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FAKE_JOURNAL", raising=False)
        patch.setattr(time, "sleep", lambda seconds: None)
        return (run(cells, folder, executor="inline")[0].root / "records.jsonl").read_text()


@needs_slurm
def test_records_are_those_of_inline(cluster, tmp_path):
    """A dozen cells of three kinds, two that fail on their own, and what builds on the others."""
    first = [fakes.cell("drawn", seed=seed) for seed in range(4)] + [
        fakes.cell("number", value=value) for value in range(4)
    ]
    sums = [fakes.cell("number", value=9 + i, inputs={"a": first[4 + i], "b": first[5 + i]}) for i in range(2)]
    cells = [*first, *sums, fakes.cell("raises"), fakes.cell("kills_itself", signal="SIGSEGV")]
    store, summary = run(cells, tmp_path / "slurm", cells=6)
    assert summary.counts == {"ok": 10, "failed": 1, "killed": 1}
    assert (store.root / "records.jsonl").read_text() == undisturbed(cells[:-1], tmp_path / "inline")
    reasons = {cell.label: reason for cell, _, reason in summary.failures}
    assert "the answer is not 42" in reasons["raises"]
    slurm_cluster.until(lambda: {state for _, state, _ in cluster.jobs()} == {"COMPLETED"}, "the end of all jobs")
    batches = list((store.root / "slurm").glob("*/batch.json"))
    assert 2 <= len(batches) <= 4  # arrays, not a job for every cell
    assert "raises" in next((store.root / "slurm").glob(f"*/{cells[-2].key}.log")).read_text()
    assert (store.cell(first[0].key) / "log.txt").exists()
    assert run(cells[:10], tmp_path / "slurm")[1].counts == {"cached": 10}


@needs_slurm
def test_a_job_ended_by_its_time_limit_goes_on_from_its_checkpoint(cluster, tmp_path):
    """Slurm counts time limits in minutes and looks at them every half: the warning comes 15 to 45 s after the start.

    Earlier, and a cell on a busy machine would be warned before its first step.
    """
    cells = [slurm_runner.slow(steps=500)]
    store, summary = run(cells, tmp_path / "slurm", time=1, warning=45)
    assert summary.counts == {"ok": 1}
    done = [step for _, step in steps(cluster)]
    assert len({process for process, _ in steps(cluster)}) >= 2
    assert done == list(range(1, 501))  # nothing done twice, nothing left out
    assert len(list((store.root / "slurm").glob("*/batch.json"))) == 1  # the same job, back in the queue
    assert store.result(cells[0].key)["usage"]["resumed"]
    assert (store.root / "records.jsonl").read_text() == undisturbed(cells, tmp_path / "inline")


@needs_slurm
@pytest.mark.parametrize("how", ["crash", "stop_daemon"])
def test_cells_of_a_lost_node_are_done_elsewhere(cluster, tmp_path, how):
    """The power of a node goes, or its daemon alone, so that the cell it began goes on unseen."""
    cells = [slurm_runner.slow(f"cell{i}", steps=80, start=0.3 + 0.1 * i) for i in range(2)]
    thread, found = in_background(cells, tmp_path / "slurm", cells=1, cpus=2)
    slurm_cluster.until(lambda: all(len(steps(cluster, f"cell{i}")) > 5 for i in range(2)), "both cells")
    running = [node for _, state, node in cluster.jobs() if state == "RUNNING"]
    assert sorted(running) == ["node1", "node2"]
    getattr(cluster, how)("node1")
    cluster.call("scontrol", "update", "nodename=node1", "state=down", "reason=test")  # what Slurm does itself later
    thread.join(300)
    store, summary = found["end"]
    assert summary.counts == {"ok": 2}
    assert cluster.state("node1").startswith("down")
    logs = [path.read_text() for path in (store.root / "slurm").glob("*/[01].log")]
    nodes = sorted(line.split()[-1] for text in logs for line in text.splitlines() if " on node" in line)
    assert nodes == ["node1", "node2", "node2"] if how == "crash" else nodes[:2] == ["node1", "node2"]
    rows = steps(cluster, "cell0") + steps(cluster, "cell1")
    twice = len(rows) - len({(name, step) for name in range(2) for _, step in steps(cluster, f"cell{name}")})
    assert (twice > 0) == (how == "crash")  # nothing is done twice while its process lives
    assert (store.root / "records.jsonl").read_text() == undisturbed(cells, tmp_path / "inline")


@needs_slurm
def test_ctrl_c_has_checkpoints_written_and_leaves_nothing_in_the_queue(cluster, tmp_path):
    store = tmp_path / "slurm"
    runner = subprocess.Popen([sys.executable, slurm_runner.__file__, str(store)], start_new_session=True)
    slurm_cluster.until(lambda: len(steps(cluster)) > 5, "the cell")
    os.killpg(runner.pid, signal.SIGINT)
    assert runner.wait(120) == 130
    assert not [state for _, state, _ in cluster.jobs() if state in ("RUNNING", "PENDING")]
    before = len(steps(cluster))
    _, summary = run([slurm_runner.slow()], store)
    assert summary.counts == {"ok": 1}
    assert 5 < before < 60
    assert [step for _, step in steps(cluster)] == list(range(1, 61))


@needs_slurm
def test_a_job_that_is_lost_again_and_again_fails_with_a_reason(cluster, tmp_path, monkeypatch):
    """Jobs that cannot start: nothing is heard of them but their end."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    store, summary = run([fakes.cell("number", value=1)], tmp_path / "slurm")
    ((_, state, reason),) = summary.failures
    assert (state, "FAILED, 3 times" in reason) == ("killed", True)
    assert "/nonexistent/python" in (store.root / reason.partition("see ")[2]).read_text()


@needs_slurm
def test_a_refused_job_is_the_users_error(cluster, tmp_path):
    with pytest.raises(UserError, match="invalid partition specified: nowhere"):
        run([fakes.cell("number", value=1)], tmp_path / "slurm", partition="nowhere")


@needs_slurm
def test_a_job_that_could_never_start_is_the_users_error(cluster, tmp_path):
    with pytest.raises(UserError, match="never start the jobs: PartitionTimeLimit"):
        run([fakes.cell("number", value=1)], tmp_path / "slurm", partition="short")
    slurm_cluster.until(lambda: cluster.jobs()[-1][1] == "CANCELLED", "the end of the job")


def test_without_slurm_the_run_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch was not found"):
        run([fakes.cell("number", value=1)], tmp_path / "slurm")
    assert not (tmp_path / "slurm" / "slurm").exists()
