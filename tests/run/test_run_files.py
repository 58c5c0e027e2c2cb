"""Durable writes, the store and claims: nothing half written is ever taken for a result."""

from __future__ import annotations

import json
import os
import signal
import time
from multiprocessing import get_context

import pytest
import torch
from safetensors.torch import save_file

from bench.run import claims
from bench.run.atomic import atomic_write, write_json
from bench.run.store import Damaged, Store

KEY = "ab" * 10


def publish(store: Store, key: str = KEY, value: float = 1.0) -> bool:
    draft = store.draft(key)
    save_file({"x": torch.full((100,), value)}, draft / "tensors.safetensors")
    (store.work(key) / "log.txt").write_text("said\n")
    return store.publish(draft, {"key": key, "state": "ok", "measures": [value]})


# ------------------------------------------------------------------------------------ atomic writes


def test_atomic_write_replaces_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"old")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.write("not bytes")
    assert path.read_bytes() == b"old"
    with atomic_write(path, "w") as file:
        file.write("new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


CALLS = ("fsync", "replace", "rename", "unlink", "mkdir")


def die_at(count: int, action) -> int:
    """Run `action` in a forked process that ends as by a power cut at its `count`-th call into the file system."""
    process = os.fork()
    if process == 0:
        seen = 0

        def counted(original):
            def call(*args, **kwargs):
                nonlocal seen
                seen += 1
                if seen == count:
                    os._exit(9)
                return original(*args, **kwargs)

            return call

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_a_crash_at_any_call_leaves_a_whole_result_or_none(tmp_path):
    found = []
    for count in range(1, 100):
        store = Store(tmp_path / str(count))
        code = die_at(count, lambda store=store: publish(store))
        try:
            result = store.result(KEY)
        except Damaged as error:
            pytest.fail(f"half a result after call {count}: {error}")
        found.append(result is not None)
        if result is not None:
            store.verified(KEY)
        publish(store)  # the next try succeeds, whatever the first left
        assert store.result(KEY)["measures"] == [1.0]
        if code == 0:
            break
    assert code == 0
    assert found == sorted(found)
    assert found.count(False) >= 5
    assert found.count(True) >= 2


# ------------------------------------------------------------------------------------ store


def test_published_result_is_read_back(tmp_path):
    store = Store(tmp_path)
    assert store.result(KEY) is None
    assert publish(store)
    assert store.result(KEY)["files"]["tensors.safetensors"]["size"] > 400
    assert (store.verified(KEY) / "log.txt").read_text() == "said\n"
    assert not (tmp_path / "work" / KEY).exists()


def test_results_are_never_overwritten(tmp_path):
    store = Store(tmp_path)
    assert publish(store, value=1.0)
    assert not publish(store, value=2.0)
    assert store.result(KEY)["measures"] == [1.0]


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"xyz")


def spoil_header(path):
    content = bytearray(path.read_bytes())
    content[9:20] = b"\0" * 11
    path.write_bytes(content)


def remove(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def other_cell(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "key": "cd" * 10}))


def other_number(path):
    text = path.read_text()
    assert " 1.0" in text
    path.write_text(text.replace(" 1.0", " 1.5"))


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("tensors.safetensors", cut, "bytes instead of"),
        ("tensors.safetensors", lengthen, "bytes instead of"),
        ("tensors.safetensors", spoil_header, "damaged header"),
        ("tensors.safetensors", remove, "is missing"),
        ("result.json", cut, "not readable"),
        ("result.json", empty, "not readable"),
        ("result.json", remove, "result.json is missing"),
        ("result.json", other_cell, "another cell"),
        ("result.json", other_number, "the content of result.json changed"),
    ],
)
def test_damage_is_detected_and_moved_aside(tmp_path, name, damage, says):
    store = Store(tmp_path)
    publish(store)
    damage(store.cell(KEY) / name)
    with pytest.raises(Damaged, match=says):
        store.result(KEY)
    aside = store.discard(KEY)
    assert aside.parent == tmp_path / "corrupt"
    assert store.result(KEY) is None
    assert store.discard(KEY) is None
    publish(store)
    assert store.result(KEY)


def test_results_of_former_versions_are_read(tmp_path):
    """They have no digest of their own."""
    store = Store(tmp_path)
    publish(store)
    path = store.cell(KEY) / "result.json"
    result = json.loads(path.read_text())
    del result["digest"]
    path.write_text(json.dumps(result))
    assert store.result(KEY)["measures"] == [1.0]


def test_a_changed_byte_is_found_when_the_cell_is_used(tmp_path):
    store = Store(tmp_path)
    publish(store)
    path = store.cell(KEY) / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert store.result(KEY)  # a look at size and header does not see it
    with pytest.raises(Damaged, match=r"content of tensors\.safetensors changed"):
        store.verified(KEY)


def test_failures_are_kept_until_success(tmp_path):
    store = Store(tmp_path)
    assert store.failure(KEY) is None
    store.fail(KEY, "oom", "too much", "Traceback ...")
    assert store.failure(KEY)["reason"] == "too much"
    publish(store)
    assert store.failure(KEY) is None


def test_gc_removes_what_nobody_refers_to(tmp_path):
    store = Store(tmp_path)
    kept, gone, busy = "aa" * 10, "bb" * 10, "cc" * 10
    for key in (kept, gone):
        publish(store, key)
    for key in (kept, gone, busy):
        (store.work(key) / "checkpoint").write_bytes(b"x" * 1000)
    store.fail(gone, "failed", "why")
    before = store.gc({kept}, dry_run=True)
    assert store.result(gone)
    with store.claim(busy):
        removed = store.gc({kept})
        assert store.work(busy).joinpath("checkpoint").exists()
    assert removed.entries == 4  # cell, work and failure of the one, and what publishing left of the other
    assert removed.bytes > 2400
    assert before.entries == removed.entries + 1
    assert store.result(kept)
    assert store.result(gone) is None
    assert store.failure(gone) is None
    assert not (tmp_path / "work" / gone).exists()
    assert store.gc({kept}).entries == 1  # nobody computes `busy` any more


def test_tidying_removes_what_a_kill_just_after_publishing_leaves(tmp_path):
    """A claim and a work folder of a finished cell; those of cells at work and of unfinished ones stay."""
    store = Store(tmp_path)
    done, shared, unfinished = "aa" * 10, "bb" * 10, "cc" * 10
    for key in (done, shared):
        publish(store, key)
    for key in (done, shared, unfinished):
        (store.work(key) / "checkpoint").write_bytes(b"x")
        (tmp_path / "claims").mkdir(exist_ok=True)
        (tmp_path / "claims" / key).write_text(json.dumps(claims._machine()))  # its process is gone
    with store.claim(shared):
        store.tidy()
        assert {path.name for path in (tmp_path / "claims").iterdir()} == {shared, unfinished}
        assert {path.name for path in (tmp_path / "work").iterdir()} == {shared, unfinished}
    assert store.result(done)


# ------------------------------------------------------------------------------------ claims


def test_one_claim_at_a_time(tmp_path):
    path = tmp_path / "claims" / KEY
    with claims.acquire(path) as claim:
        assert claim is not None
        assert claims.acquire(path) is None
        assert claims.held(path)
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not claims.held(path)
    assert not path.exists()
    with claims.acquire(path) as claim:
        assert claim is not None


def _hold(path, ready):
    with claims.acquire(path):
        ready.set()
        time.sleep(600)


def test_the_claim_of_a_killed_process_is_free_at_once(tmp_path):
    context = get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "claim", ready))
    process.start()
    assert ready.wait(60)
    assert claims.acquire(tmp_path / "claim") is None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / "claim").exists()
    with claims.acquire(tmp_path / "claim") as claim:
        assert claim is not None


def test_claims_of_other_machines_live_by_their_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "WATCH", 0.1)
    path = tmp_path / "claim"
    write_json(path, {"host": "elsewhere", "pid": 1, "start": 0})
    assert claims.held(path)
    assert claims.acquire(path) is None
    os.utime(path, (time.time() - 61, time.time() - 61))
    assert not claims.held(path)
    with claims.acquire(path) as claim:
        assert claim is not None


def test_a_held_claim_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT", 0.02)
    path = tmp_path / "claim"
    with claims.acquire(path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - path.stat().st_mtime < 60


def test_a_claim_released_while_another_one_takes_it(tmp_path, monkeypatch):
    """The file vanishes between opening and locking it: a lock on the removed file would exclude nobody."""
    path, original = tmp_path / "claim", claims._lock
    path.write_text("")

    def lock(handle):
        monkeypatch.setattr(claims, "_lock", original)
        path.unlink()
        return original(handle)

    monkeypatch.setattr(claims, "_lock", lock)
    with claims.acquire(path):
        assert claims.held(path)


def test_claims_exclude_each_other_under_pressure(tmp_path):
    """Four processes take and release one claim; nobody ever meets another one inside."""
    path, inside = tmp_path / "claim", tmp_path / "inside"

    def visit(count):
        for _ in range(count):
            while (claim := claims.acquire(path)) is None:
                time.sleep(0.0005)
            with claim:
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                os.unlink(inside)

    context = get_context("fork")
    processes = [context.Process(target=visit, args=(40,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
