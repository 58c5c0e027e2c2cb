"""A real plug-in package, installed for these tests: found by name, listed, run, held against the kit.

Beside it stand packages that are wrong: one that does not import, and one that takes the name of a built-in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import bench.data
from bench.api import Method
from bench.data import lookup
from bench.errors import UserError
from bench.nets import spec as nets
from bench.registry import EVALUATORS, METHODS, Registry
from bench.suite.resolve import plugin
from bench.testing import check_dataset, check_evaluator, check_method, check_network

HERE = Path(__file__).parent
PLUGIN = HERE / "plugin"
THINGS = {
    "methods": "toy_mean", "evaluators": "toy_confidence", "datasets": "toy_stripes", "networks": "toy_net"
}  # fmt: skip

BUILT_IN = {"methods": "dm", "evaluators": "accuracy", "datasets": "digits", "networks": "convnet"}


def environment(*folders: Path) -> dict[str, str]:
    path = os.pathsep.join(str(folder) for folder in (*folders, HERE.parent))
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "160"}


def ddbench(*arguments: object, cwd: Path, folders: tuple[Path, ...]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from bench.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(*folders), timeout=300)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Install the package into a folder of its own, without a network."""
    source, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    shutil.copytree(PLUGIN, source)  # the build leaves files beside the source
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--disable-pip-version-check", "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """What an installation leaves of a package that raises when it is imported and claims the name of a built-in."""
    site = tmp_path_factory.mktemp("broken")
    (site / "ddbench_broken.py").write_text("raise ValueError('out of order')\n")
    (site / "ddbench_broken-1.0.dist-info").mkdir()
    (site / "ddbench_broken-1.0.dist-info" / "METADATA").write_text("Name: ddbench-broken\nVersion: 1.0\n")
    names = "out_of_order = ddbench_broken:THING\n{} = ddbench_broken:OTHER\n"
    groups = [f"[ddbench.{group}]\n" + names.format(name) for group, name in BUILT_IN.items()]
    (site / "ddbench_broken-1.0.dist-info" / "entry_points.txt").write_text("\n".join(groups))
    return site


def fresh(registry: Registry) -> Registry:
    """Return a registry that looks at the installed packages again."""
    return Registry(registry.kind, registry.builtin, registry.group)


@pytest.fixture
def known(installed, monkeypatch):
    """Make the package known to this process, in which the registries have looked already."""
    monkeypatch.syspath_prepend(installed)
    for registry in (METHODS, EVALUATORS, nets.NETWORKS, lookup.PLUGINS):
        monkeypatch.setitem(registry.__dict__, "targets", fresh(registry).targets)
    lookup.entries.cache_clear()
    yield
    lookup.entries.cache_clear()


# ---------------------------------------------------------------------------------------------- from outside


def test_all_four_run_in_a_suite_by_name(installed, tmp_path):
    shutil.copy(PLUGIN / "toy.yaml", tmp_path)
    done = ddbench("run", "toy.yaml", cwd=tmp_path, folders=(installed,))
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in next(tmp_path.glob("runs/*/records.jsonl")).read_text().splitlines()]
    found = {(r["method"], r["dataset"], r["network"], r["distil_network"], r["evaluator"]) for r in records}
    assert found == {
        (method, "toy_stripes", "toy_net", "toy_net-w8", evaluator)
        for method in ("random", "toy_mean")
        for evaluator in ("accuracy", "toy_confidence")
    }
    accuracy = [r["value"] for r in records if (r["method"], r["metric"]) == ("toy_mean", "accuracy")]
    assert len(accuracy) == 2
    assert all(0 <= value <= 1 for value in accuracy)


@pytest.mark.parametrize("what", THINGS)
def test_they_are_listed_and_a_broken_one_harms_nobody(what, installed, broken, tmp_path):
    done = ddbench("list", what, "--json", cwd=tmp_path, folders=(installed, broken))
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert rows[THINGS[what]]
    assert rows[BUILT_IN[what]]
    told = done.stderr if what == "datasets" else rows["out_of_order"] + done.stderr
    assert "'out_of_order' cannot be loaded from ddbench_broken:THING: ValueError: out of order" in told
    warned = f"ddbench: plug-in {what[:-1]} '{BUILT_IN[what]}' is ignored: the name is built in"
    assert warned in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


def test_a_suite_that_names_a_broken_one_says_so(broken, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "grid: {datasets: [digits], methods: [out_of_order, random], ipc: [1], network: out_of_order}\n"
        "evaluators: [out_of_order]\n"
    )
    done = ddbench("validate", "mine.yaml", cwd=tmp_path, folders=(broken,))
    assert done.returncode == 2
    for kind in ("method", "evaluator", "network"):
        assert f"{kind} 'out_of_order' cannot be loaded from ddbench_broken:THING" in done.stderr
    assert "a defect of that module" in done.stderr


# ---------------------------------------------------------------------------------------------- in this process


@pytest.mark.usefixtures("known")
def test_they_pass_the_kit(tmp_path, monkeypatch):
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path))
    check_method("toy_mean", {"noise": 0.2}, dataset="toy_stripes", network="toy_net")
    check_method("ddbench_toy.method:ToyMean", dataset="ddbench_toy.dataset:STRIPES", ipc=1)
    check_evaluator("toy_confidence", method="toy_mean", network="toy_net-w8")
    check_dataset("toy_stripes")
    check_network("toy_net")
    check_network("ddbench_toy.network:TOY_NET", shapes=[(1, 8, 8)])


@pytest.mark.usefixtures("known")
def test_a_network_by_module_and_attribute_takes_the_same_options():
    named = nets.resolve(nets.parse("ddbench_toy.network:TOY_NET-w8"), (1, 8, 8))
    assert (named.arch, named.width) == ("ddbench_toy.network:TOY_NET", 8)
    assert nets.label(named) == "ddbench_toy.network:TOY_NET-w8"
    assert nets.resolve(nets.parse(nets.label(named)), (1, 8, 8)) == named
    with pytest.raises(UserError, match="no norm 'bn'"):
        nets.resolve(nets.parse("toy_net-bn"), (1, 8, 8))


def test_a_plug_in_cannot_take_a_built_in_name(broken, monkeypatch):
    monkeypatch.syspath_prepend(broken)
    assert "dm" in {entry.name for entry in entry_points(group="ddbench.methods")}
    with pytest.warns(UserWarning, match="plug-in method 'dm' is ignored: the name is built in"):
        assert fresh(METHODS).targets["dm"] == METHODS.builtin["dm"]
    lookup.entries.cache_clear()
    monkeypatch.setattr(lookup, "PLUGINS", fresh(lookup.PLUGINS))
    with pytest.warns(UserWarning, match="plug-in dataset 'digits' is ignored: the name is built in"):
        assert bench.data.info("digits").classes == 10
    lookup.entries.cache_clear()


def test_what_is_not_of_its_kind_is_refused():
    with pytest.raises(UserError, match=r"is not a method .*subclass of bench.api.Method"):
        plugin(METHODS, "bench.registry:EVALUATORS", Method)
