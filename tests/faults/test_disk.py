"""Disks that are full or must not be written, and damaged artifacts: one line says so, and nothing finished is lost."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "run"))

import run_fakes as fakes

from bench.errors import UserError
from bench.run import Store, run_plan


def run(cells, store, **options):
    return run_plan(fakes.plan(*cells), store, **{"jobs": 2, "device": "cpu", "progress": False, **options})


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KB; only who may mount has one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_store_that_must_not_be_written_is_one_line_and_can_still_be_read(small_disk):
    done, new = fakes.cell("number", value=1), fakes.cell("number", value=2)
    store = Store(small_disk / "store")
    run([done], store, executor="inline")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert run([done], store, executor="inline").counts == {"cached": 1}
    with pytest.raises(UserError, match=r"^the results folder .*store cannot be written: Read-only file system"):
        run([done, new], store, executor="inline")


def test_damage_in_a_store_that_must_not_be_written_is_one_line(small_disk):
    cell = fakes.cell("number", value=1)
    store = Store(small_disk / "store")
    run([cell], store, executor="inline")
    (store.cell(cell.key) / "result.json").write_text("{")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"^the results folder .*store cannot be written: Read-only file system"):
        run([cell], store, executor="inline")


def fill(path):
    """Write into a file until the disk is full."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_a_full_disk_loses_nothing_and_a_later_run_goes_on(small_disk, executor):
    store = Store(small_disk / "store")
    cells = [fakes.cell("number", value=value) for value in range(6)]
    run(cells, store, executor="inline")
    records = (store.root / "records.jsonl").read_bytes()
    for cell in cells[:2]:
        store.discard(cell.key)
    ballast, events = small_disk / "ballast", []
    fill(ballast)
    with pytest.raises(UserError, match="cannot be written: No space left on device") as caught:
        run(cells, store, executor=executor, on_event=events.append)
    assert "\n" not in str(caught.value)
    reasons = [event.reason for event in events if event.state == "failed"]
    assert len(reasons) == 2 or executor == "local"  # there the records are written while the cells still run
    assert all("the store cannot be used: [Errno 28] No space left on device" in reason for reason in reasons)
    for cell in cells[2:]:
        store.verified(cell.key)
    ballast.unlink()
    assert run(cells, store, executor=executor).counts == {"cached": 4, "ok": 2}
    assert (store.root / "records.jsonl").read_bytes() == records
    assert not list(store.root.glob("**/.tmp-*"))


@pytest.mark.parametrize("seed", range(3))
def test_artifacts_damaged_at_random_places_are_made_again(tmp_path, seed):
    """Bytes changed and files cut short: found at the next use, set aside, and the records come out the same."""
    top = [fakes.cell("drawn", seed=number) for number in range(3)]
    sums = [fakes.cell("number", value=i, inputs={"a": top[i], "b": top[i - 1]}) for i in range(3)]
    store, chance = Store(tmp_path / "store"), random.Random(seed)
    run([*top, *sums], store, executor="inline")
    records = (store.root / "records.jsonl").read_bytes()
    hurt = chance.sample(top, 2)
    for cell in hurt:
        file = store.cell(cell.key) / "tensors.safetensors"
        content = bytearray(file.read_bytes())
        if chance.random() < 0.5:
            del content[chance.randrange(len(content)) :]
        else:
            content[chance.randrange(len(content))] ^= 1 + chance.randrange(255)
        file.write_bytes(content)
    for cell in sums:
        store.discard(cell.key)
    assert run([*top, *sums], store, executor="inline").exit_code == 0
    assert (store.root / "records.jsonl").read_bytes() == records
    assert {path.name[:20] for path in (store.root / "corrupt").iterdir()} == {cell.key for cell in (*hurt, *sums)}
    for cell in (*top, *sums):
        store.verified(cell.key)
