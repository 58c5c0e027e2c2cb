"""Whole runs of tiny plans: what is computed, what is not, and how failures stay local."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest
import run_fakes as fakes

from bench.errors import UserError
from bench.run import Store, run_plan, states

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def run(cells, store, **options):
    events = []
    options = {"jobs": 2, "device": "cpu", "progress": False, "on_event": events.append, **options}
    summary = run_plan(fakes.plan(*cells), store, **options)
    summary.events = [(event.cell.label, event.state) for event in events if event.progress is None]
    summary.progress = [event.progress for event in events if event.progress is not None]
    return summary


def lines(store, name):
    return [json.loads(line) for line in (store.root / name).read_text().splitlines()]


def diamond(value=1):
    top = fakes.cell("number", value=value)
    left, right = (fakes.cell("number", value=v, inputs={"top": top}) for v in (10, 20))
    return [top, left, right, fakes.cell("number", value=100, inputs={"left": left, "right": right})]


# ------------------------------------------------------------------------------------ the course of a run


@pytest.mark.parametrize("executor", ["local", "inline"])
def test_plan_is_computed_in_order_and_recorded(store, executor):
    cells = diamond()
    summary = run(cells, store, executor=executor)
    assert (summary.counts, summary.exit_code, summary.failures) == ({"ok": 4}, 0, [])
    assert [row["value"] for row in lines(store, "records.jsonl")] == [1.0, 11.0, 21.0, 132.0]
    assert {row["state"] for row in lines(store, "states.jsonl")} == {"ok"}
    manifest = json.loads((store.root / "suite.json").read_text())
    assert (manifest["name"], [row["key"] for row in manifest["plan"]]) == ("fake", [cell.key for cell in cells])
    result = store.result(cells[3].key)
    assert set(result) == {
        "key", "kind", "label", "config", "inputs", "state", "seconds", "started", "finished", "provenance", "files",
        "measures", "usage", "digest",
    }  # fmt: skip
    assert result["provenance"]["device"] == "cpu"
    assert result["provenance"]["packages"]["torch"]
    assert {"cpu", "cores", "threads", "python", "ddbench"} <= set(result["provenance"])


def test_second_run_computes_nothing_and_touches_no_file(store):
    cells = diamond()
    run(cells, store)
    before = {name: (store.root / name).stat().st_mtime_ns for name in ("suite.json", "records.jsonl", "states.jsonl")}
    summary = run(cells, store)
    assert summary.counts == {"cached": 4}
    assert {state for _, state in summary.events} == {"cached"}
    assert before == {name: (store.root / name).stat().st_mtime_ns for name in before}


def test_a_cached_run_imports_no_torch_and_is_fast(store, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    cells = [fakes.cell("number", value=value) for value in range(300)]
    for cell in cells:
        store.publish(
            store.draft(cell.key),
            {"key": cell.key, "state": "ok", "seconds": 1.0, "config": cell.config, "measures": [fakes.measure(1.0)]},
        )
    program = f"""
import sys, time
sys.path[:0] = {[str(ROOT), str(ROOT / "tests" / "run")]!r}
import run_fakes as fakes
from bench.run import Store, run_plan, states
plan = fakes.plan(*[fakes.cell("number", value=value) for value in range(300)])
store = Store({str(store.root)!r})
begin = time.process_time()  # others share the cores
summary = run_plan(plan, store)
assert summary.counts == {{"cached": 300}}, summary.counts
assert {{state for _, state, _ in states(plan, store)}} == {{"cached"}}
print(time.process_time() - begin)
from multiprocessing import forkserver
assert forkserver._forkserver._forkserver_pid is None
print([name for name in ("torch", "pandas", "scipy", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.split("\n")[:2]
    assert heavy == "[]"
    assert float(seconds) < 1.5, "a tenth of it on a quiet machine"


def test_results_do_not_depend_on_jobs_executor_or_order(tmp_path):
    cells = [fakes.cell("drawn", seed=seed, weight=float(seed % 3)) for seed in range(6)]
    options = [{"jobs": 1}, {"jobs": 4}, {"executor": "inline"}, {"jobs": 2}]
    plans = [cells, cells, cells, cells[::-1]]
    seen = []
    for index, (plan, option) in enumerate(zip(plans, options, strict=True)):
        store = Store(tmp_path / str(index))
        assert run(plan, store, **option).exit_code == 0
        hashes = [store.result(cell.key)["files"]["tensors.safetensors"]["sha256"] for cell in cells]
        seen.append((sorted(map(str, lines(store, "records.jsonl"))), hashes))
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert len(set(seen[0][1])) == 6  # and another seed is another result
    assert (tmp_path / "0" / "records.jsonl").read_bytes() == (tmp_path / "1" / "records.jsonl").read_bytes()


def test_cells_have_the_threads_of_their_configuration_whatever_the_machine(store, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # of the runner
    one, two = fakes.cell("threads", index=1), fakes.cell("threads", index=2)
    two.config["threads"] = 2
    run([one, two], store)
    assert [m["value"] for m in store.result(one.key)["measures"]] == [1, 1]
    assert [m["value"] for m in store.result(two.key)["measures"]] == [2, 1]


def test_timed_cells_run_alone(store):
    cells = [fakes.cell("when", seconds=0.05, index=index, timed=index % 2 == 0) for index in range(6)]
    run(cells, store, jobs=4)
    spans = [[m["value"] for m in store.result(cell.key)["measures"]] for cell in cells]
    for index in (0, 2, 4):
        begin, end = spans[index]
        assert all(other[1] <= begin or other[0] >= end for i, other in enumerate(spans) if i != index)


def test_overhead_of_a_trivial_cell_is_small(store):
    """Hundredths of a second of CPU, and no waiting for a clock that ticks five times a second."""
    run([fakes.cell("number", value=-1)], store)  # the fork server is warm from here on
    server = psutil.Process(forkserver._forkserver._forkserver_pid)
    crowd = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    cpu = wall = float("inf")
    deadline = time.monotonic() + 60
    for attempt in itertools.count():  # other work on the machine only ever adds time
        cells = [fakes.cell("number", value=100 * attempt + value) for value in range(10)]
        ends, begin = [time.monotonic()], time.process_time() + sum(server.cpu_times()[:4])
        run(cells, store, jobs=1, on_event=lambda event, ends=ends: ends.append(time.monotonic()))
        cpu = min(cpu, (time.process_time() + sum(server.cpu_times()[:4]) - begin) / len(cells))
        wall = min(wall, *(after - before for before, after in itertools.pairwise(ends[::2])))
        if cpu < 0.05 and wall < 0.1 * crowd:
            return
        assert time.monotonic() < deadline, f"{cpu:.3f} s of CPU, {wall:.3f} s per cell"


def test_output_of_a_cell_goes_to_its_log(store, capfd):
    cell = fakes.cell("talks")
    run([cell], store)
    assert (store.cell(cell.key) / "log.txt").read_text() == "to stdout\nto stderr\nfrom a program\n"
    assert capfd.readouterr().out == ""


# ------------------------------------------------------------------------------------ failures stay local


BAD = {
    "raises": ({}, "failed", "ValueError: the answer is not 42"),
    "not_a_number": ({}, "diverged", "accuracy is nan"),
    "allocates": ({}, "oom", "out of memory: "),
    "vanishes": ({}, "failed", "the process of the cell ended with exit code 3 and no result"),
    "kills_itself": ({"signal": "SIGKILL"}, "killed", "killed (signal 9): out of memory?"),
    "segfaults": ({"signal": "SIGSEGV"}, "killed", "killed (signal 11: Segmentation fault)"),
}


def test_bad_cells_hurt_nobody_else(store):
    bad = {
        name: fakes.cell("kills_itself" if name == "segfaults" else name, **params)
        for name, (params, _, _) in BAD.items()
    }
    good = diamond()
    after = fakes.cell("number", value=5, inputs={"a": bad["raises"]})
    summary = run([*bad.values(), after, *good], store)
    assert summary.exit_code == 1
    assert summary.counts["ok"] == 4
    found = {cell.key: (state, reason) for cell, state, reason in summary.failures}
    for name, (_, state, reason) in BAD.items():
        assert found[bad[name].key][0] == state
        assert found[bad[name].key][1].startswith(reason)
        assert "\n" not in found[bad[name].key][1]
    assert found[after.key] == ("skipped", "because raises failed")
    rows = {row["key"]: row["state"] for row in lines(store, "states.jsonl")}
    assert rows[bad["allocates"].key] == "oom"
    assert len(lines(store, "records.jsonl")) == 4
    assert "line" in store.failure(bad["raises"].key)["traceback"]
    log = (store.work(bad["raises"].key) / "log.txt").read_text()
    assert "about to fail" in log
    assert "Traceback" in log


def test_status_shows_failures_and_a_new_run_tries_again(store):
    bad, after = fakes.cell("raises"), None
    after = fakes.cell("number", value=5, inputs={"a": bad})
    plan = fakes.plan(bad, after, fakes.cell("number", value=1))
    run(plan.cells[:2], store)
    assert [(state, reason) for _, state, reason in states(plan, store)] == [
        ("failed", "ValueError: the answer is not 42"),
        ("skipped", "because raises failed"),
        ("planned", ""),
    ]
    assert ("raises", "running") in run(plan.cells, store).events


def test_fail_fast_starts_nothing_more(store):
    cells = [fakes.cell("raises", weight=9.0), fakes.cell("number", value=1)]
    summary = run(cells, store, jobs=1, fail_fast=True)
    assert summary.counts == {"failed": 1, "planned": 1}
    assert summary.exit_code == 1


@pytest.mark.parametrize("polite", [True, False])
def test_time_limit(store, polite, monkeypatch):
    monkeypatch.setattr("bench.run.executors.Local.grace", 0.3)
    cells = [fakes.cell("sleeps", seconds=600, polite=polite), fakes.cell("number", value=1)]
    begin = time.monotonic()
    summary = run(cells, store, timeout=2.0)  # enough for the other one on a machine with much to do
    assert summary.failures[0][1:] == ("timeout", "stopped after the time limit of 2 s")
    assert summary.counts == {"timeout": 1, "ok": 1}
    assert time.monotonic() - begin < 300


def test_progress_arrives(store):
    summary = run([fakes.cell("sleeps", seconds=0.5)], store)
    assert 1 <= len(summary.progress) <= 4  # limited in rate
    assert (summary.progress[0].step, summary.progress[0].steps, summary.progress[0].text) == (1, 2, "sleeping")


def test_unknown_device_and_executor_are_user_errors(store):
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        run([], store, device="gpu")
    with pytest.raises(UserError, match="did you mean 'local'"):
        run([], store, executor="locl")


# ------------------------------------------------------------------------------------ damage and other runners


def spoil(store, cell, name="data.bin"):
    path = store.cell(cell.key) / name
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)


def test_a_damaged_input_is_reported_and_computed_again(store):
    cells = diamond()
    run(cells, store)
    undisturbed = (store.root / "records.jsonl").read_bytes()
    store.discard(cells[1].key)  # will be computed again and reads the spoilt one
    spoil(store, cells[0])
    summary = run(cells, store)
    assert summary.exit_code == 0
    assert (cells[0].label, "damaged") in summary.events
    assert (store.root / "records.jsonl").read_bytes() == undisturbed
    assert len(list((store.root / "corrupt").iterdir())) == 2
    store.verified(cells[0].key)


def test_a_result_cut_short_is_computed_again_at_once(store):
    cells = diamond()
    run(cells, store)
    path = store.cell(cells[3].key) / "result.json"
    path.write_text(path.read_text()[:100])
    assert [state for _, state, _ in states(fakes.plan(*cells), store)] == ["cached"] * 3 + ["planned"]
    assert run(cells, store).counts == {"cached": 3, "ok": 1}


def test_two_runners_share_the_work(store, tmp_path):
    cells = [fakes.cell("counted", path=str(tmp_path / f"cell{index}")) for index in range(8)]
    summaries = []

    def runner():
        summaries.append(run(cells, store, jobs=1))

    threads = [threading.Thread(target=runner) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(tmp_path / f"cell{index}").read_text() for index in range(8)] == ["computed\n"] * 8
    assert [(sum(summary.counts.values()), summary.exit_code) for summary in summaries] == [(8, 0)] * 2
    assert len(lines(store, "records.jsonl")) == 8


def test_the_failure_of_another_runner_is_taken_over(store, monkeypatch):
    cell = fakes.cell("number", value=1)
    claim, waits = store.claim(cell.key), threading.Event()
    known = Store.failure
    monkeypatch.setattr(Store, "failure", lambda *words: (known(*words), waits.set())[0])

    def fail_later():
        waits.wait(60)  # until the runner has found the claim
        store.fail(cell.key, "diverged", "as seen elsewhere")
        claim.__exit__(None, None, None)

    thread = threading.Thread(target=fail_later)
    thread.start()
    summary = run([cell], store)
    thread.join()
    assert summary.failures[0][1:] == ("diverged", "as seen elsewhere")


def test_a_dead_runner_leaves_no_orphans(tmp_path):
    """A worker that never reports ends by itself when its runner is killed."""
    pid_file = tmp_path / "pid"
    program = f"""
import sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests" / "run")]!r}
import run_fakes as fakes
from bench.run import Store, run_plan
if __name__ == "__main__":
    run_plan(fakes.plan(fakes.cell("tells_pid", path={str(pid_file)!r})), Store({str(tmp_path / "s")!r}), device="cpu")
"""
    script = tmp_path / "script.py"
    script.write_text(program)
    runner = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    wait_for(lambda: pid_file.exists() and pid_file.read_text())
    worker = int(pid_file.read_text())
    runner.kill()
    runner.wait()
    wait_for(lambda: not alive(worker))


def wait_for(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it ended between the two looks
        return False
