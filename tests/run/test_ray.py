"""The Ray executor on a real Ray of two nodes: equal records, lost nodes and workers, time limits, Ctrl-C, GPUs.

Skipped where Ray is not installed. One cluster serves all tests; what the runs leave behind is looked for at the end.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
import ray_runner
import run_fakes as fakes
from typer.testing import CliRunner

import bench.run.ray
from bench.cli import app
from bench.errors import UserError
from bench.run import Store, run_plan
from bench.run.executors import Local

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)

PATIENCE = 120.0
"""Seconds after which a test gives up; nothing here takes a tenth of that on an idle machine."""


class Cluster:
    """Two nodes on this machine, with a CPU each; the head has two GPUs that are made up."""

    def __init__(self, folder):
        from ray.cluster_utils import Cluster

        self.journal = folder
        self.ray = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 2, "include_dashboard": False}
        )
        self.address = self.ray.address
        self.add()

    def add(self):
        """Add the second node and wait for it."""
        self.node = self.ray.add_node(num_cpus=1)
        self.ray.wait_for_nodes(PATIENCE)

    def lose(self):
        """Let the second node vanish."""
        self.ray.remove_node(self.node, allow_graceful=False)

    def steps(self, name):
        """Return (process, step) of every step a cell has done until now."""
        file = self.journal / name
        rows = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [(int(row[0]), int(row[1])) for row in rows if len(row) == 2]


def until(condition, what):
    """Wait for a condition."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A cluster; afterwards nothing of it is left."""
    import ray

    folder = tmp_path_factory.mktemp("journal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_JOURNAL", str(folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", os.path.dirname(__file__))  # a task of these tests is found there on the nodes
        cluster = Cluster(folder)
        try:
            yield cluster
            cells = {pid for file in folder.iterdir() for pid, _ in cluster.steps(file.name)}
        finally:
            ray.shutdown()
            cluster.ray.shutdown()
        until(lambda: not any(alive(pid) for pid in cells), "the ends of all cells")


@pytest.fixture
def cluster(started, monkeypatch):
    monkeypatch.setattr(Local, "preload", ("bench.run.worker",))  # no more than these cells need
    return started


def run(cells, folder, cluster=None, /, **options):
    store = Store(folder)
    if cluster:
        options = {"executor": "ray", "options": {"address": cluster.address}, **options}
    options = {"device": "cpu", "progress": False, **options}
    summary = run_plan(fakes.plan(*cells), store, **options)
    return store, summary


def in_background(cells, folder, cluster, /, **options):
    """Start a run in a thread; return it and where its result will be."""
    found = {}
    thread = threading.Thread(target=lambda: found.update(end=run(cells, folder, cluster, **options)))
    thread.start()
    return thread, found


def undisturbed(cells, folder):
    """Return the records of the same plan, computed in this process and without pauses between steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FAKE_JOURNAL", raising=False)
        patch.setattr(time, "sleep", lambda seconds: None)
        return (run(cells, folder, executor="inline")[0].root / "records.jsonl").read_text()


def reasons(summary):
    return {cell.label: (state, reason) for cell, state, reason in summary.failures}


# ------------------------------------------------------------------------------------ on a cluster


def test_records_are_those_of_inline(cluster, tmp_path):
    """Cells of three kinds, a timed one, two that fail on their own, and what builds on the others."""
    first = [fakes.cell("drawn", seed=seed) for seed in range(3)]
    first += [fakes.cell("number", value=value, timed=value == 0) for value in range(3)]
    sums = [fakes.cell("number", value=9, inputs={"a": first[3], "b": first[4]})]
    cells = [*first, *sums, fakes.cell("raises"), fakes.cell("kills_itself", signal="SIGSEGV")]
    store, summary = run(cells, tmp_path / "ray", cluster)
    assert summary.counts == {"ok": 7, "failed": 1, "killed": 1}
    assert "the answer is not 42" in reasons(summary)["raises"][1]
    assert "Segmentation fault" in reasons(summary)["kills_itself SIGSEGV"][1]
    assert (store.root / "records.jsonl").read_text() == undisturbed(cells[:-1], tmp_path / "inline")
    assert store.result(first[0].key)["usage"]["own_process"]
    assert (store.cell(first[0].key) / "log.txt").exists()
    assert run(cells[:7], tmp_path / "ray", cluster)[1].counts == {"cached": 7}


def test_cells_of_a_lost_node_are_done_elsewhere(cluster, tmp_path):
    """Two cells on two CPUs, one of them on the node that goes; it continues from its checkpoint."""
    names = ["node0", "node1"]
    cells = [ray_runner.slow(name, steps=60, start=0.3 + 0.1 * i, block=1) for i, name in enumerate(names)]
    thread, found = in_background(cells, tmp_path / "ray", cluster)
    until(lambda: all(len(cluster.steps(name)) > 3 for name in names), "both cells")
    cluster.lose()
    thread.join(PATIENCE)
    store, summary = found["end"]
    assert summary.counts == {"ok": 2}
    processes = {name: {process for process, _ in cluster.steps(name)} for name in names}
    assert sorted(len(found) for found in processes.values()) == [1, 2]
    assert all({step for _, step in cluster.steps(name)} == set(range(1, 61)) for name in names)
    assert all(len(cluster.steps(name)) < 70 for name in names)  # not from the beginning
    assert (store.root / "records.jsonl").read_text() == undisturbed(cells, tmp_path / "inline")
    cluster.add()


def test_progress_arrives_and_a_killed_worker_is_replaced(cluster, tmp_path):
    """The cell goes on until it has been heard of, and after that for as long as it takes to find its process."""
    cells = [ray_runner.slow("orphan", steps=100)]
    seen = []
    thread, found = in_background(cells, tmp_path / "ray", cluster, on_event=lambda event: seen.append(event.progress))
    until(lambda: any(one and one.step > 0 and one.steps == 100 for one in seen), "progress")
    first = cluster.steps("orphan")[0][0]
    psutil.Process(first).parent().parent().kill()
    thread.join(PATIENCE)
    assert found["end"][1].counts == {"ok": 1}
    assert any(one and one.text.startswith("sent again: ") for one in seen)
    assert not alive(first)
    assert len({process for process, _ in cluster.steps("orphan")}) == 2


def test_a_cell_that_is_lost_again_and_again_fails_with_a_reason(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.run.ray, "LOSSES", 2)
    cell = fakes.cell("kills_its_follower")
    store, summary = run([cell], tmp_path / "ray", cluster)
    state, reason = reasons(summary)["kills_its_follower"]
    assert (state, reason[:14]) == ("killed", "lost 2 times: ")
    assert "worker died" in reason
    assert store.failure(cell.key)["reason"] == reason


def test_a_cell_over_its_time_limit_ends(cluster, tmp_path):
    _, summary = run([fakes.cell("sleeps", seconds=600)], tmp_path / "ray", cluster, timeout=0.5)
    assert reasons(summary) == {"sleeps 600": ("timeout", "stopped after the time limit of 0.5 s")}


def test_ctrl_c_has_checkpoints_written_and_ends_the_cell(cluster, tmp_path):
    store = tmp_path / "ray"
    command = [sys.executable, ray_runner.__file__, str(store), "slow", cluster.address]
    runner = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    until(lambda: len(cluster.steps("slow")) > 3, "the cell")
    os.killpg(runner.pid, signal.SIGINT)
    assert runner.wait(PATIENCE) == 130, runner.stderr.read().decode()
    runner.stderr.close()
    before = cluster.steps("slow")
    assert not alive(before[0][0])
    _, summary = run([ray_runner.slow("slow")], store, cluster)
    assert summary.counts == {"ok": 1}
    assert 3 < len(before) < 60
    assert [step for _, step in cluster.steps("slow")] == list(range(1, 61))  # nothing twice, nothing left out


def computes_on_the_cpu(job, setting):
    """A task that has been given a GPU there is not."""
    import dataclasses

    assert job.device == "cuda"
    yield from COMPUTE(dataclasses.replace(job, device="cpu"), setting)


COMPUTE = bench.run.ray.compute


def test_every_gpu_has_one_cell(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.run.ray, "compute", computes_on_the_cpu)
    cells = [fakes.cell("visible_gpus", index=index) for index in range(3)]
    store, summary = run(cells, tmp_path, cluster, device="auto")
    assert summary.counts == {"ok": 3}
    values = [[measure["value"] for measure in store.result(cell.key)["measures"]] for cell in cells]
    assert {gpu for gpu, _ in values} <= {0, 1}
    assert len({follower for _, follower in values}) == 3


# ------------------------------------------------------------------------------------ what users may get wrong


@pytest.mark.parametrize(
    ("device", "threads", "message"),
    [
        ("cuda:1", 1, r"device 'cuda:1' is one of this machine \(Ray chooses"),
        ("mps", 1, "device 'mps' is one of this machine"),
        ("cpu", 64, "no node of the Ray cluster has 64 CPUs"),
    ],
)
def test_what_the_cluster_does_not_have(cluster, tmp_path, device, threads, message):
    cell = fakes.cell("number", value=1)
    cell.config["threads"] = threads
    with pytest.raises(UserError, match=message):
        run([cell], tmp_path, cluster, device=device)


def test_a_cluster_without_a_gpu(cluster):
    executor = bench.run.ray.Ray(None, print)
    executor._ray = type("Ray", (), {"cluster_resources": staticmethod(lambda: {"CPU": 4.0})})
    assert [(device.name, device.room) for device in executor.devices("auto", None)] == [("cpu", 4)]
    with pytest.raises(UserError, match="the Ray cluster has no GPU"):
        executor.devices("cuda", None)


def test_an_address_where_nobody_is(monkeypatch, tmp_path):
    import ray

    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        with pytest.raises(UserError, match=f"no Ray cluster at '{address}': Connection refused"):
            run([fakes.cell("number", value=1)], tmp_path, executor="ray", options={"address": address})


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "head:port", ":6379"])
def test_words_that_are_no_address(monkeypatch, address):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match="not the address of a Ray cluster"):
        bench.run.ray.connect(address)


def test_what_ray_refuses_is_told(monkeypatch):
    import ray

    def refuses(**options):
        raise ConnectionError("Could not find any running Ray instance.\nand more")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuses)
    with pytest.raises(UserError, match=r"no Ray cluster at 'auto': Could not find any running Ray instance\. \(`ray"):
        bench.run.ray.connect("auto")


def test_an_unknown_option(tmp_path):
    with pytest.raises(UserError, match="unknown option 'adress' of Ray"):
        run([fakes.cell("number", value=1)], tmp_path, executor="ray", options={"adress": "auto"})


def test_without_ray_the_run_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray cannot be imported: .* \(pip install .*\[ray\]"):
        run([fakes.cell("number", value=1)], tmp_path, executor="ray")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--address", "auto"], "--address is for --executor ray (this run is on local)"),
        (["--executor", "ray", "--slurm", "time=1"], "--slurm is for --executor slurm (this run is on ray)"),
    ],
)
def test_what_is_said_for_another_executor_is_refused(tmp_path, words, message):
    suite = tmp_path / "tiny.yaml"
    suite.write_text("grid: {datasets: [debug], methods: [random], ipc: [1], seeds: 1}\nevaluators: [accuracy]\n")
    done = CliRunner().invoke(app, ["run", str(suite), "--out", str(tmp_path / "out"), *words])
    assert str(done.exception) == message
