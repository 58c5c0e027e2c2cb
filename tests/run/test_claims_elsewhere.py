"""Claims and results on file systems shared by machines: without common locks, with other clocks, with late news."""

from __future__ import annotations

import json
import os
import signal
import time
from multiprocessing import get_context

import pytest
import run_fakes as fakes

from bench.run import Store, claims, run_plan, slurm
from bench.run.atomic import write_json
from bench.run.job import Job, Outcome

HOURS = 3 * 3600
CONTEXT = get_context("fork")


@pytest.fixture
def no_locks(monkeypatch):
    """A file system on which processes do not see the locks of others."""
    monkeypatch.setattr(claims, "_lock", lambda handle: None)


def alone(path, inside, count):
    """Take and release a claim; fails where another process is inside at the same time."""
    for _ in range(count):
        while (claim := claims.acquire(path)) is None:
            time.sleep(0.0005)
        with claim:
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            os.unlink(inside)


def test_claims_exclude_each_other_without_locks(tmp_path, no_locks):
    processes = [CONTEXT.Process(target=alone, args=(tmp_path / "claim", tmp_path / "inside", 30)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4


def test_a_machine_of_the_same_name_is_another_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "WATCH", 0.1)
    path = tmp_path / "claim"
    write_json(path, {**claims._machine(), "pid": 1, "start": 0})
    assert not claims.held(path)  # nobody has the lock
    write_json(path, {**claims._machine(), "boot": "another kernel", "pid": 1, "start": 0})
    assert claims.held(path)
    assert claims.acquire(path) is None


@pytest.mark.parametrize("hours", [-HOURS, HOURS])
def test_the_clock_of_this_machine_decides_nothing(tmp_path, monkeypatch, hours):
    monkeypatch.setattr(claims, "WATCH", 0.1)
    claims._ahead.cache_clear()
    real, path = time.time, tmp_path / "claim"
    monkeypatch.setattr(time, "time", lambda: real() + hours)
    write_json(path, {"host": "elsewhere", "pid": 1, "start": 0})
    assert claims.held(path)
    os.utime(path, (real() - 61, real() - 61))
    assert not claims.held(path)
    with claims.acquire(path) as claim:
        assert claim is not None


def hold(path, ready):
    claims._machine = lambda: {"host": "elsewhere", "boot": ""}
    claims.HEARTBEAT = 0.05
    with claims.acquire(path):
        ready.set()
        time.sleep(600)


@pytest.mark.parametrize("hours", [-HOURS, HOURS])
def test_the_clock_of_the_file_system_may_jump(tmp_path, monkeypatch, no_locks, hours):
    """Whoever lives touches its claim again; who is dead does not, whatever the clock says later."""
    monkeypatch.setattr(claims, "WATCH", 60.0)
    path, ready = tmp_path / "claim", CONTEXT.Event()
    process = CONTEXT.Process(target=hold, args=(path, ready))
    process.start()
    try:
        assert ready.wait(60)
        for _ in range(5):
            os.utime(path, (time.time() + hours,) * 2)
            assert claims.acquire(path) is None
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    monkeypatch.setattr(claims, "WATCH", 0.1)
    os.utime(path, (time.time() + hours,) * 2)
    with claims.acquire(path) as claim:
        assert claim is not None


def test_who_was_replaced_leaves_the_claim_to_the_other(tmp_path):
    path = tmp_path / "claim"
    with claims.acquire(path) as claim:
        assert not claim.lost()
        path.write_text(json.dumps({"host": "elsewhere"}))
        assert claim.lost()
    assert json.loads(path.read_text()) == {"host": "elsewhere"}


@pytest.mark.parametrize(("replaced", "state"), [(False, "failed"), (True, "claimed")])
def test_a_failure_of_who_was_replaced_is_none(tmp_path, replaced, state):
    """The other one has emptied the work folder of this one, which says nothing about the cell."""
    from bench.run import worker

    cell = fakes.cell("stepwise", name="a", start=0.3, steps=3, block=9, seconds=0.0)
    claim = tmp_path / "claims" / cell.key

    def replace(step=0, steps=0, text=""):
        if replaced:
            claim.write_text(json.dumps({"host": "elsewhere"}))
        raise FileNotFoundError("draft")

    job = Job(tmp_path, cell.key, cell.kind, cell.label, cell.config, device="cpu")
    assert worker.execute(job, replace).state == state


def test_the_log_is_opened_though_another_runner_has_just_published_the_cell(tmp_path, monkeypatch):
    """Publishing removes the work folder, also under the feet of who is about to find the cell claimed or done."""
    from bench.run import child, worker

    job, found, removals = Job(tmp_path, "ab" * 10, "kind", "label", {}), worker.log_file, iter([True, True, False])

    def removed(job):
        file = found(job)
        if next(removals):
            file.parent.rmdir()
        return file

    monkeypatch.setattr(worker, "log_file", removed)
    os.close(child._open_log(job))
    assert found(job).exists()


def test_a_full_disk_leaves_no_claim_that_nobody_signed(tmp_path, monkeypatch):
    def full(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        claims.acquire(tmp_path / "claim")
    assert not list(tmp_path.iterdir())


class Late(Store):
    """A store that shows what is published elsewhere only to those who look again, as network file systems do."""

    def __init__(self, root, key):
        super().__init__(root)
        self.asked, self.other = set(), self.claim(key)

    def look_again(self, key):
        self.asked.add(key)

    def finished(self):
        return super().finished() & self.asked

    def result(self, key):
        return super().result(key) if key in self.asked else None

    def failure(self, key):
        """Release the claim of the other runner: this one has found it, and begins to wait."""
        self.other.__exit__(None, None, None)
        return super().failure(key)


def test_results_of_another_machine_are_seen_though_the_file_system_is_late(tmp_path):
    cell = fakes.cell("number", value=1)
    run_plan(fakes.plan(cell), Store(tmp_path), executor="inline", device="cpu", progress=False)
    summary = run_plan(fakes.plan(cell), Late(tmp_path, cell.key), executor="inline", device="cpu", progress=False)
    assert summary.counts == {"cached": 1}


def test_looking_again_touches_the_folder_and_needs_none(tmp_path):
    store, key = Store(tmp_path), "ab" * 10
    store.look_again(key)
    folder = store.cell(key).parent
    folder.mkdir(parents=True)
    os.utime(folder, (0, 0))
    store.look_again(key)
    assert folder.stat().st_mtime > 0


@pytest.mark.parametrize("hours", [-HOURS, HOURS])
def test_a_result_that_is_late_is_waited_for_by_one_clock(tmp_path, monkeypatch, hours):
    """The node says that it is finished; the time of its file, stamped elsewhere, decides nothing."""
    cell, now = fakes.cell("number", value=1), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    executor = slurm.Slurm(1, lambda progress: None)
    job = Job(tmp_path, cell.key, cell.kind, cell.label, cell.config)
    sent = slurm._Sent(tmp_path, {cell.key: job})
    file = tmp_path / f"{cell.key}.json"
    write_json(file, vars(Outcome(cell.key, "ok")))
    os.utime(file, (time.time() + hours,) * 2)
    assert executor._read(sent, cell.key) is None
    now[0] += executor.settle - 1
    assert executor._read(sent, cell.key) is None
    now[0] += 2
    assert executor._read(sent, cell.key).state == "ok"
