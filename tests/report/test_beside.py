"""Parts of a report done at the same time: the same files, and errors are not lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest
from make_run import Maker
from test_page import coloured

import bench.report
from bench.distilled import save
from bench.report import beside


@pytest.fixture(params=[True, False], ids=["fork", "one after the other"])
def forks(request, monkeypatch):
    monkeypatch.setattr(beside, "can_fork", lambda: request.param)
    return request.param


def test_works_are_done_in_other_processes_while_the_block_runs(forks, tmp_path):
    def work(name):
        while forks and not (tmp_path / "block").exists():
            time.sleep(0.01)
        (tmp_path / name).write_text(str(os.getpid()))

    with beside.beside(tmp_path, partial(work, "one"), partial(work, "two")):
        (tmp_path / "block").touch()
    found = {int((tmp_path / name).read_text()) for name in ("one", "two")}
    assert found == {os.getpid()} if not forks else (len(found) == 2 and os.getpid() not in found)


def test_what_could_not_be_written_is_an_error_that_names_the_folder(forks, tmp_path, capfd):
    (tmp_path / "file").mkdir()
    with (
        pytest.raises(OSError, match=f"Is a directory: .*{tmp_path.name}"),
        beside.beside(tmp_path, partial((tmp_path / "file").write_text, "")),
    ):
        pass
    assert "Traceback" not in capfd.readouterr().err


def test_only_a_process_with_one_thread_and_another_core_forks(monkeypatch):
    monkeypatch.setattr(beside, "usable_cores", lambda: 2)
    monkeypatch.setattr(beside.sys, "platform", "linux")
    monkeypatch.setattr(beside.threading, "active_count", lambda: 1)
    assert beside.can_fork()
    with monkeypatch.context() as patch:
        patch.setattr(beside.threading, "active_count", lambda: 2)
        assert not beside.can_fork()
    with monkeypatch.context() as patch:
        patch.setattr(beside, "usable_cores", lambda: 1)
        assert not beside.can_fork()
    daemon = SimpleNamespace(daemon=True)  # a process of a pool, which may have no children
    monkeypatch.setattr(beside.multiprocessing, "current_process", lambda: daemon)
    assert not beside.can_fork()


PROGRAM = """
import sys
from pathlib import Path
import bench.report
from bench.report import beside
beside.usable_cores = lambda: 2
bench.report.write(Path(sys.argv[1]))
assert "torch" not in sys.modules
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")
def test_a_report_that_has_no_torch_has_its_sets_drawn_by_a_process_that_has(tmp_path):
    coords = {"dataset": "cifar10", "method": "dm", "label": "dm", "settings": "modified", "ipc": 10, "seed": 0}
    pages = []
    for name in ("alone", "beside"):
        maker = Maker("laptop")
        key = maker.cell("distil", {**coords, "distil_network": "convnet-in"}, {}, "ok")
        folder = maker.write(tmp_path / name) / "cells" / key[:2] / key
        folder.mkdir(parents=True)
        save(folder / "set.safetensors", coloured(10))
        (folder / "result.json").write_text(json.dumps({"provenance": {}}))
        if name == "alone":
            bench.report.write(tmp_path / name)  # this process has torch, so it draws them itself
        else:
            subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / name], check=True)
        assert (tmp_path / name / "pictures" / f"{key}.png").is_file()
        pages.append((tmp_path / name / "report.html").read_text())
    assert "data:image/png;base64," in pages[0]
    assert pages[0].split("<body", 1)[1] == pages[1].split("<body", 1)[1]
