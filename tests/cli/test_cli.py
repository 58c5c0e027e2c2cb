"""The command line from outside: help without heavy imports, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

VERBS = [
    "run", "plan", "status", "report", "show", "list", "describe", "validate", "doctor", "evaluate", "gc", "data",
    "inspect", "check", "import", "new", "convert-generator", "bench",
]  # fmt: skip
ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "pandas", "scipy", "matplotlib", "sklearn")
TINY = {
    "title": "tiny",
    "grid": {"datasets": ["digits"], "methods": ["random"], "ipc": [1], "seeds": 2, "network": "convnet-in-w4-d2"},
    "evaluation": {"network": "convnet-in-w4-d2", "recipe": {"base": "review", "epochs": 2}, "replicates": 2},
    "evaluators": ["accuracy"],
    "presets": {"laptop": {}},
    "default_preset": "laptop",
}


def ddbench(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from bench.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or ROOT, env=environment, timeout=300)


def cpu_of_children() -> float:
    """Return the seconds of CPU of all processes that were started here and have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file


@pytest.mark.parametrize("arguments", [[], *[[verb] for verb in VERBS], ["data", "info"]])
def test_help_is_fast_and_imports_nothing_heavy(arguments):
    code = (
        "import sys; sys.argv = ['ddbench', *sys.argv[1:]]\n"
        "from bench.cli import app\n"
        "try: app()\n"
        f"finally: print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    libraries = "import typer, rich.console, pydantic"  # what no command line of this kind can do without
    seconds: dict[str, list[float]] = {libraries: [], code: []}
    for _ in range(4):  # in turns and the best of a few: other processes share the cores
        for text, found in seconds.items():
            begin = cpu_of_children()
            done = subprocess.run(
                [sys.executable, "-c", text, *arguments, "--help"], capture_output=True, text=True, cwd=ROOT, timeout=60
            )
            found.append(cpu_of_children() - begin)
        assert done.returncode == 0, done.stderr
        assert "HEAVY []" in done.stdout
        if min(seconds[code]) < 2 * min(seconds[libraries]):
            break
    assert min(seconds[code]) < 4 * min(seconds[libraries])


def test_version():
    assert ddbench("--version").stdout.startswith("ddbench ")


def test_run_reports_and_a_second_run_is_cached(tiny, tmp_path):
    out = tmp_path / "out"
    first = ddbench("run", tiny, "--out", out)
    assert first.returncode == 0, first.stderr + first.stdout
    assert f"report: {out / 'report.html'}" in first.stdout.replace("\n", "")
    for name in ("records.jsonl", "states.jsonl", "suite.json", "report.html"):
        assert (out / name).is_file()
    records = (out / "records.jsonl").read_bytes()
    begin = cpu_of_children()
    second = ddbench("run", tiny, "--out", out)
    assert second.returncode == 0
    assert cpu_of_children() - begin < 2, "a cached run does nothing, in half a second; importing torch takes two"
    assert (out / "records.jsonl").read_bytes() == records
    assert ddbench("status", out).returncode == 0
    assert ddbench("report", out).returncode == 0
    assert "0 entries" in ddbench("gc", out).stdout
    stored = next((out / "cells").glob("*/*/set.safetensors"))
    shown = ddbench("show", stored, "--picture", tmp_path / "set.png")
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "set.png").is_file()


def test_records_do_not_depend_on_jobs_or_on_what_ran_before(tiny, tmp_path):
    together, alone, part = tmp_path / "two", tmp_path / "inline", tmp_path / "part"
    first = [(together, "--jobs", 2), (alone, "--executor", "inline"), (part, "--only", "seed=1")]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda words: ddbench("run", tiny, "--out", *words), first))
    ddbench("run", tiny, "--out", part)
    assert (together / "records.jsonl").read_text() == (alone / "records.jsonl").read_text()
    assert (together / "records.jsonl").read_text() == (part / "records.jsonl").read_text()


def test_plan_and_validate_import_no_torch(tiny):
    code = (
        "import sys; sys.argv = ['ddbench', *sys.argv[1:]]\n"
        "from bench.cli import app\n"
        "try: app()\n"
        f"finally: print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    for arguments in (["plan", tiny], ["validate", tiny], ["validate", ROOT / "suites/survey_table.yaml"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=60
        )
        assert "HEAVY []" in done.stdout, done.stdout + done.stderr


def test_the_report_is_imported_once_something_is_computed():
    code = (
        "import sys, threading\n"
        "from types import SimpleNamespace as Event\n"
        "from bench.cli.run import REPORT, prepare_report\n"
        "listen = prepare_report()\n"
        "listen(Event(state='cached'))\n"
        "assert threading.active_count() == 1\n"
        "listen(Event(state='running'))\n"
        "listen(Event(state='running'))\n"
        "assert threading.active_count() <= 2\n"
        "for other in set(threading.enumerate()) - {threading.main_thread()}: other.join()\n"
        "assert set(REPORT) <= sys.modules.keys()\n"
        "assert 'torch' not in sys.modules\n"  # else the report could not fork
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": {**TINY["grid"], "methods": ["herdin"]}}, "herding"),
        ({"gird": {}}, "grid"),
        ({"grid": {**TINY["grid"], "ipc": ["ten"]}}, "ipc"),
        ({"evaluators": ["acuracy"]}, "accuracy"),
    ],
)
def test_mistakes_are_named_with_their_place_and_the_nearest_name(tmp_path, change, message):
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump({**TINY, **change}))
    done = ddbench("run", file)
    assert done.returncode == 2
    assert message in done.stderr
    assert "bad.yaml:" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_files_are_one_line(tmp_path):
    for arguments in (
        ["run", tmp_path / "no.yaml"],
        ["status", tmp_path],
        ["show", tmp_path / "x"],
        ["describe", "dmm"],
    ):
        done = ddbench(*arguments)
        assert done.returncode == 2, arguments
        assert done.stderr.startswith("ddbench: ")
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["methods", "datasets", "networks", "evaluators", "suites", "presets"])
def test_list_prints_names_and_json(what):
    rows = json.loads(ddbench("list", what, "--json").stdout)
    assert rows
    assert all(rows.values())


@pytest.mark.parametrize("name", ["dm", "accuracy", "digits", "convnet"])
def test_describe(name):
    done = ddbench("describe", name)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 1


def test_doctor_names_versions_and_data():
    facts = json.loads(ddbench("doctor", "--json").stdout)
    assert facts["torch"]
    assert "data: digits" in facts
