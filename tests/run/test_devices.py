"""Several GPUs on one machine: which are meant, who gets which, and what is refused before anything starts.

No GPU is needed: their number is made up, and an executor notes the device of every cell before it computes it on the
CPU.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from collections import defaultdict

import pytest
import run_fakes as fakes
from typer.testing import CliRunner

from bench.cli import app
from bench.errors import UserError
from bench.regression import measured
from bench.run import Store, devices, provenance, run_plan
from bench.run.executors import Inline, Local


@pytest.fixture
def machine(monkeypatch):
    """Return a function that gives this machine a number of GPUs."""
    monkeypatch.setattr(devices.provenance, "usable_cores", lambda: 5)
    return lambda gpus: monkeypatch.setattr(devices, "gpus", lambda: gpus)


@pytest.mark.parametrize(
    ("wanted", "jobs", "rooms"),
    [
        ("auto", None, {"cuda:0": 1, "cuda:1": 1, "cuda:2": 1}),
        ("cuda", None, {"cuda:0": 1, "cuda:1": 1, "cuda:2": 1}),
        ("cuda", 7, {"cuda:0": 3, "cuda:1": 2, "cuda:2": 2}),
        ("cuda", 2, {"cuda:0": 1, "cuda:1": 1}),
        ("cuda:2", 4, {"cuda:2": 4}),
        ("cuda:2,cuda:0", None, {"cuda:2": 1, "cuda:0": 1}),
        ("cuda:1,cuda:1", None, {"cuda:1": 1}),
        ("cpu", None, {"cpu": 5}),
        ("cpu", 2, {"cpu": 2}),
    ],
)
def test_devices_and_their_room(machine, wanted, jobs, rooms):
    machine(3)
    assert {device.name: device.room for device in devices.here(wanted, jobs)} == rooms


def test_without_a_gpu_auto_is_the_cpu(machine):
    machine(0)
    assert devices.here("auto") == [devices.Device("cpu", 5)]


@pytest.mark.parametrize(
    ("gpus", "wanted", "message"),
    [
        (2, "cuda:7", r"device 'cuda:7' is not available \(GPUs 0 to 1 are visible\)"),
        (2, "cuda:0,cuda:2", r"device 'cuda:2' is not available"),
        (0, "cuda", r"device 'cuda' is not available: torch sees no GPU \(use --device cpu\)"),
        (0, "cuda:0", "torch sees no GPU"),
        (2, "gpu", "unknown device 'gpu'"),
        (2, "cpu,cuda:0", "unknown device 'cpu,cuda:0'"),
        (2, "cuda:", "unknown device"),
    ],
)
def test_what_is_not_here_is_refused_before_any_cell_starts(machine, tmp_path, gpus, wanted, message):
    machine(gpus)
    cells = [fakes.cell("number", value=1)]
    with pytest.raises(UserError, match=message):
        run_plan(fakes.plan(*cells), Store(tmp_path), device=wanted, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac may have it")
def test_mps_is_of_macs(tmp_path):
    with pytest.raises(UserError, match="device 'mps' is not available: only Macs have it"):
        run_plan(fakes.plan(fakes.cell("number", value=1)), Store(tmp_path), device="mps", progress=False)


def test_the_devices_of_a_cluster_are_its_own_choice():
    assert devices.elsewhere("cuda", 9) == [devices.Device("cuda", 9)]
    with pytest.raises(UserError, match="those of one machine"):
        devices.elsewhere("cuda:0,cuda:1", 9)


@pytest.mark.parametrize("words", [["--dry-run"], []])
def test_the_command_line_refuses_too(tmp_path, words, monkeypatch, machine):
    suite = tmp_path / "tiny.yaml"
    suite.write_text("grid: {datasets: [debug], methods: [random], ipc: [1], seeds: 1}\nevaluators: [accuracy]\n")
    machine(2)
    command = ["run", str(suite), "--out", str(tmp_path / "out"), *words]
    done = CliRunner().invoke(app, [*command, "--device", "cuda:2"])
    assert isinstance(done.exception, UserError)
    assert str(done.exception) == "device 'cuda:2' is not available (GPUs 0 to 1 are visible)"
    assert not (tmp_path / "out").exists()
    if words:
        assert CliRunner().invoke(app, [*command, "--device", "cuda:1"]).exit_code == 0


def test_what_is_all_there_needs_no_device(machine, tmp_path):
    cells = [fakes.cell("number", value=1)]
    run_plan(fakes.plan(*cells), Store(tmp_path), device="cpu", executor="inline", progress=False)
    machine(0)
    assert run_plan(fakes.plan(*cells), Store(tmp_path), device="cuda", progress=False).counts == {"cached": 1}


# ------------------------------------------------------------------------------------ real runs, made-up GPUs


class Noting(Local):
    """Computes on the CPU what is meant for a GPU. at: device of each cell; seen: cells of a device at each start."""

    at: dict[str, str]
    seen: list[tuple[str, list]]

    def submit(self, job):
        self.at[job.key] = job.device
        together = [one.job for one in self._running.values() if self.at[one.job.key] == job.device]
        self.seen.append((job.device, [*together, job]))
        super().submit(dataclasses.replace(job, device="cpu"))


def run(cells, folder, **options):
    Noting.at, Noting.seen = {}, []
    store = Store(folder)
    summary = run_plan(fakes.plan(*cells), store, executor=f"{__name__}:Noting", progress=False, **options)
    assert summary.counts == {"ok": len(cells)}
    spans = {}
    for cell in cells:
        spans[cell.key] = [measure["value"] for measure in store.result(cell.key)["measures"]]
    return Noting.at, Noting.seen, spans


def whens(count, timed, seconds=0.05):
    return [fakes.cell("when", seconds=seconds, index=index, timed=timed(index)) for index in range(count)]


def test_every_gpu_has_one_cell_at_once(machine, tmp_path):
    machine(3)
    at, seen, spans = run(whens(12, lambda index: False), tmp_path, device="cuda")
    assert set(at.values()) == {"cuda:0", "cuda:1", "cuda:2"}
    assert [device for device, _ in seen[:3]] == ["cuda:0", "cuda:1", "cuda:2"]
    assert all(len(together) == 1 for _, together in seen)
    by_device = defaultdict(list)
    for key, device in at.items():
        by_device[device].append(spans[key])
    for found in by_device.values():
        found.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(found))


def test_timed_cells_are_alone_on_their_gpu_and_others_share_it(machine, tmp_path):
    machine(2)
    cells = whens(14, lambda index: index % 2 == 0)
    at, seen, spans = run(cells, tmp_path, device="auto", jobs=4)
    assert {len(together) for _, together in seen if not together[-1].timed} == {1, 2}
    assert all(len(together) == 1 or not any(job.timed for job in together) for _, together in seen)
    for one in (cell for cell in cells if cell.timed):
        begin, end = spans[one.key]
        others = [spans[key] for key, device in at.items() if device == at[one.key] and key != one.key]
        assert all(other[1] <= begin or other[0] >= end for other in others)


def test_timed_cells_on_different_gpus_run_at_once(machine, tmp_path):
    machine(2)
    _, seen, _ = run(whens(4, lambda index: True), tmp_path, device="cuda", jobs=6)
    assert [device for device, _ in seen[:2]] == ["cuda:0", "cuda:1"]
    assert all(len(together) == 1 for _, together in seen)


def test_some_of_several_gpus(machine, tmp_path):
    machine(4)
    at, _, _ = run(whens(4, lambda index: False, 0.0), tmp_path, device="cuda:3,cuda:1")
    assert set(at.values()) == {"cuda:1", "cuda:3"}


class Told(Inline):
    """Notes what reaches an executor that computes in this process."""

    def submit(self, job):
        assert job.device == "cpu"
        super().submit(job)


def test_auto_is_resolved_before_a_cell_starts(machine, tmp_path):
    machine(0)
    plan = fakes.plan(fakes.cell("number", value=1))
    assert run_plan(plan, Store(tmp_path), executor=f"{__name__}:Told", progress=False).counts == {"ok": 1}


# ------------------------------------------------------------------------------------ counting


def test_no_driver_no_question(tmp_path):
    """Without the driver of a GPU nobody imports torch to count them."""
    program = (
        "import sys; from bench.run import devices; devices.DRIVERS = ('/nowhere',); sys.executable = '/nowhere'\n"
        "print(devices.gpus(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False"]


@pytest.mark.parametrize(("answer", "found"), [("print(3)", 3), ("print(0)", 0), ("import sys; sys.exit(1)", None)])
def test_torch_is_asked_where_there_is_a_driver(monkeypatch, tmp_path, answer, found):
    """A driver with GPUs, one without, and a torch that does not import."""
    monkeypatch.setattr(devices, "DRIVERS", (str(tmp_path),))
    monkeypatch.setattr(devices, "COUNT", answer)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    if found is None:
        with pytest.raises(UserError, match="torch could not be asked for GPUs"):
            devices.gpus.__wrapped__()
    else:
        assert devices.gpus.__wrapped__() == found


def test_the_question_is_understood_by_torch(monkeypatch):
    """The same number in a process of its own as here."""
    import torch

    env = {**os.environ, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "")}
    done = subprocess.run([sys.executable, "-c", devices.COUNT], capture_output=True, text=True, env=env, check=True)
    assert int(done.stdout) == (torch.cuda.device_count() if env["CUDA_VISIBLE_DEVICES"] else 0)


# ------------------------------------------------------------------------------------ results know no number


def test_which_gpu_it_was_is_no_part_of_results(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    facts = [provenance.of_device(f"cuda:{index}") for index in range(3)]
    assert facts[0] == facts[1] == facts[2]
    assert (facts[0]["device"], facts[0]["gpu"]) == ("cuda", "made up")


def test_old_results_with_a_number_are_of_the_same_hardware():
    hardware = {measured._hardware({"provenance": {"device": name, "gpu": "made up"}}) for name in ("cuda", "cuda:1")}
    assert hardware == {"device cuda, gpu made up"}
