"""What the check says, read back: Markdown, JUnit XML, the terminal, exit codes."""

from __future__ import annotations

import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import worlds

from bench.cli import main
from bench.regression import baseline, compare, measured, show


@pytest.fixture(scope="module")
def findings():
    """One regression of each kind, one improvement, one new cell."""
    rng = np.random.default_rng(0)
    known = baseline.make([worlds.repeat(rng) for _ in range(4)])
    run = worlds.slow(worlds.lose(worlds.repeat(rng), "dsa", 8, (1,)), "distil dm, digits, ipc 1", 3, memory=2)
    worlds.lose(run, "random", -9, (50,))
    run.cells["accuracy of kip, digits, ipc 1, seed 0"] = ("oom", "out of memory | 3 GiB")
    run.cells["accuracy of mtt, digits, ipc 1, seed 0"] = ("ok", "")
    return compare.check(run, known), known


def test_markdown_lists_what_changed(findings):
    found, known = findings
    text = show.markdown(found, known)
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {5}
    verdicts = [row[0].strip() for row in rows[2:]]
    changed = [one for one in found if one.verdict in ("worse", "missing", "better")]
    assert sorted(verdicts) == sorted(one.verdict for one in changed)
    assert verdicts[-1] == "better"  # failures come first
    assert "out of memory \\| 3 GiB" in text
    assert f"**regression: {sum(one.failed for one in found)} of {len(found)} checks failed**" in text
    assert "cells with a result: 23 ok, 1 new, 1 missing" in text
    assert "new: accuracy of mtt, digits, ipc 1, seed 0" in text
    assert text.count("baseline run: ddbench 0.1.0") == 4


def test_junit_has_a_case_for_every_verdict(findings):
    found, _ = findings
    root = ElementTree.fromstring(show.junit(found))
    (suite,) = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    cases = list(suite)
    assert [case.get("name") for case in cases] == [one.name for one in found]
    assert {case.get("classname") for case in cases} == {f"ddbench.{kind}" for kind in show.TITLES}
    failures = {case.get("name") for case in cases if case.find("failure") is not None}
    assert failures == {one.name for one in found if one.failed}
    for element in (root, suite):
        assert int(element.get("tests")) == len(cases)
        assert int(element.get("failures")) == sum(case.find("failure") is not None for case in cases)
        assert int(element.get("skipped")) == 0
    message = next(case for case in cases if case.get("classname") == "ddbench.memory" and len(case.findall("failure")))
    assert "80 MiB" in message.find("failure").get("message")


def test_junit_tells_what_was_skipped():
    known = baseline.make([worlds.base()])
    run = worlds.base()
    run.costs = []
    root = ElementTree.fromstring(show.junit(compare.check(run, known)))
    skipped = root.findall(".//skipped")
    assert len(skipped) == int(root.get("skipped")) == len(known.costs) + len(known.costs) // 2
    assert {one.get("message") for one in skipped} == {"the run has no cells measured in processes of their own"}


def call(monkeypatch, *arguments):
    """Call the command line; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["ddbench", "check", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def test_exit_codes_and_files(tmp_path, monkeypatch, capsys):
    runs = {"good": worlds.base(), "again": worlds.base(), "bad": worlds.lose(worlds.base(), "dm", 5)}
    failed = worlds.base()
    failed.cells["accuracy of kip, digits, ipc 1, seed 0"] = ("failed", "made up")
    runs["failed"] = failed
    monkeypatch.setattr(measured, "read", lambda folder: runs[folder.name])
    known, markdown, junit = tmp_path / "baselines" / "b.json", tmp_path / "out" / "s.md", tmp_path / "out" / "c.xml"

    assert call(monkeypatch, "good", "--baseline", known) == 2
    assert "there is no baseline" in capsys.readouterr().err
    assert call(monkeypatch, "failed", "--update", "--baseline", known) == 2
    assert "--with-failures" in capsys.readouterr().err
    assert not known.exists()
    assert call(monkeypatch, "good", "again", "--update", "--baseline", known) == 0
    assert "24 cells, 12 accuracies, 24 costs of 2 runs" in capsys.readouterr().out
    assert call(monkeypatch, "good", "again", "--baseline", known) == 2
    assert "2 runs to compare" in capsys.readouterr().err

    assert call(monkeypatch, "good", "--baseline", known) == 0
    shown = capsys.readouterr().out
    assert shown.strip().endswith("no regression")
    assert "dm" not in shown  # what stayed as it was is not listed
    assert call(monkeypatch, "bad", "--baseline", known, "--markdown", markdown, "--junit", junit) == 1
    shown = capsys.readouterr().out
    assert "accuracies: 9 ok, 3 worse" in shown
    assert "regression: 3 of" in shown
    assert "**regression: 3 of" in markdown.read_text()
    assert ElementTree.parse(junit).getroot().get("failures") == "3"
    assert call(monkeypatch, "bad", "--baseline", known, "--margin", 5.5) == 0
    capsys.readouterr()
    runs["none"] = worlds.base()
    runs["none"].cells = {}
    runs["none"].accuracy = {}
    assert call(monkeypatch, "none", "--baseline", known, "--only-accuracy") == 1
    assert "and 6 more: see --markdown FILE" in capsys.readouterr().out  # 24 cells and 12 accuracies
    assert call(monkeypatch, "failed", "--baseline", known, "--only-accuracy") == 1
    shown = capsys.readouterr().out
    assert "times" not in shown
    assert "made up" in shown
