"""Reports of large runs: what they open, and how time and memory grow with the number of records.

What is wanted for 100,000 cells with 365,000 records: 10 s beside what plots and imports take whatever the size, in
500 MB. CPU seconds are compared with those of a smaller run, and memory is what Python allocates.
"""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest
from make_run import Maker

import bench.report
from bench.report import accuracy, claims, cost, measures, results

FEW, MANY = 10, 80
"""Seeds."""
BYTES = 500e6 / 365_000
NETWORKS = ("convnet-in", "alexnet-in", "resnet18-in")


def run_of(out, seeds):
    """Write a run of so many seeds, with cells that failed, as the runner leaves it."""
    maker = Maker("laptop")
    for method in ("random", "dm", "dc"):
        for ipc in (1, 10):
            for seed in range(seeds):
                one(maker, {"method": method, "label": method, "ipc": ipc, "seed": seed})
    maker.write(out)
    done = sum(state["state"] == "ok" for state in maker.states)
    (out / "environment.jsonl").write_text(json.dumps({"cells": done, "provenance": {"torch": "9.9"}}) + "\n")
    return out


def one(maker, own):
    coords = {"dataset": "cifar10", "settings": "modified", "distil_network": "convnet-in", **own}
    bad = own["method"] == "dc" and own["seed"] % 2
    distilled = maker.cell("distil", coords, {}, "failed" if bad else "ok", "RuntimeError: made up" if bad else "")
    for evaluator in ("accuracy", "cross_arch"):
        place = {**coords, "evaluator": evaluator, "network": "convnet-in"}
        inputs = {"distilled": distilled}
        for index, network in enumerate(NETWORKS[: 1 if evaluator == "accuracy" else None]):
            trained = {**place, "artifact": "networks", "network": network}
            inputs[f"trained{index}"] = maker.cell("prepare", trained, inputs, "skipped" if bad else "ok")
        cell = maker.cell("evaluate", place, inputs, "skipped" if bad else "ok")
        if not bad:
            maker.accuracies(place, cell, 0.5, NETWORKS[: len(inputs) - 1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return [run_of(tmp_path_factory.mktemp(f"seeds{seeds}"), seeds) for seeds in (FEW, MANY)]


def tables(out):
    run = results.load(out)
    makers = (accuracy.accuracy_tables, accuracy.cross_arch_tables, cost.cost_tables, measures.measure_tables)
    return [table for make in (*makers, claims.tables) for table in make(run)]


def test_time_grows_no_faster_than_the_run(runs):
    tables(runs[0])  # what is imported and opened once counts for neither
    seconds = []
    for out in runs:
        begin = time.process_time()
        tables(out)
        seconds.append(time.process_time() - begin)
    assert seconds[1] < 2 * MANY / FEW * seconds[0]


def test_memory_per_record_is_small(runs, monkeypatch):
    monkeypatch.setattr(results, "BLOCK", 500)  # in the run that is spoken of, too, a block is a small part of it
    tables(runs[0])
    tracemalloc.start()
    run = results.load(runs[1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(run.records) > 5000
    assert peak / len(run.records) < BYTES


def test_equal_texts_are_one_object(runs):
    records = results.load(runs[1]).records
    block = records["network"][: results.BLOCK]
    assert len({id(text) for text in block}) == len(set(block))


def test_no_cell_is_opened(runs, monkeypatch):
    opened = []
    monkeypatch.setattr(results, "stored", lambda out, key: opened.append(key) or {})
    page = bench.report.write(runs[1], pictures=False).read_text()
    assert not opened
    assert "<dt>torch</dt><dd>9.9</dd>" in page


def test_the_page_does_not_grow_with_the_failures(runs, monkeypatch):
    monkeypatch.setattr("bench.report.page.TROUBLES", 50)
    few, many = (bench.report.write(out, pictures=False).read_text() for out in runs)
    assert many.count('<td class="state">failed</td>') == 50 > few.count('<td class="state">failed</td>')


def test_lines_in_blocks_are_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "BLOCK", 4)
    for count in (0, 1, 4, 5, 9):
        rows = [{"value": index / 3, "ipc": index or None, "tags": {"b": index, "a": "x"}} for index in range(count)]
        (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert list(results._lines(tmp_path / "records.jsonl")) == rows
        found = results.frame(rows)
        assert list(found["value"]) == [index / 3 for index in range(count)]
        assert list(found["tags"]) == [f"a=x, b={index}" for index in range(count)]
        assert [None if value is None else int(value) for value in found["ipc"].replace({float("nan"): None})] == [
            index or None for index in range(count)
        ]
