"""Tables of made-up runs: golden texts, rounding, missing cells, and when a published number may appear.

`PYTHONPATH=. python tests/report/make_run.py` renews the golden texts.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from make_run import IPCS, Maker, golden, make_run

import bench.report
from bench.errors import UserError
from bench.report import accuracy, cost, measures, table
from bench.report.table import Cell, Row, Table, percent, significant

GOLDEN = sorted((Path(__file__).parent / "golden").iterdir())
NOTES = ("preset: laptop",)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return golden(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return bench.report.load(make_run(tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_golden(texts, path):
    assert texts[path.name] == path.read_text()


def test_golden_is_complete(texts):
    assert sorted(texts) == [path.name for path in GOLDEN]


def cells(made: Table) -> dict[tuple[str, str, str], Cell]:
    """Return the cells of a table by (row header, group, column)."""
    return {
        (row.header[0], *column): cell
        for row in made.rows
        for column, cell in zip(made.columns, row.cells, strict=True)
    }


def small(out: Path, values: dict[tuple[str, int], list[float]], **maker_options) -> bench.report.results.Results:
    """Write and load a run of accuracies at cifar10 IPC 10: (label, seed) -> networks."""
    maker = Maker(maker_options.pop("preset", "paper"), **maker_options)
    for (label, seed), accuracies in values.items():
        coords = {"dataset": "cifar10", "method": label, "label": label, "settings": maker.settings, "ipc": 10}
        coords |= {"seed": seed, "distil_network": "convnet-in", "evaluator": "accuracy", "network": "convnet-in"}
        cell = maker.cell("evaluate", coords, {}, "ok")
        for replicate, value in enumerate(accuracies):
            more = {"recipe": maker.recipe, "selection": "last", "replicate": replicate}
            maker.record(coords, cell, "accuracy", value, "fraction", **more)
    return bench.report.load(maker.write(out))


def test_a_table_says_who_stores_more_than_real_images(tmp_path):
    run = small(tmp_path, {("dm", 0): [0.4], ("dm", 1): [0.4], ("poe", 0): [0.5], ("poe", 1): [0.5]})
    extra = [
        run.records.iloc[[0]].assign(metric="storage", label=label, method=label, value=value, unit="ratio")
        for label, value in (("dm", 1.0), ("dm", 1.001), ("poe", 2.0), ("poe", 2.0), ("elsewhere", 3.0))
    ]
    more = replace(run, records=pd.concat([run.records, *extra], ignore_index=True), summaries={})
    (made,) = accuracy.accuracy_tables(more)
    (note,) = [line for line in made.notes if "storage" in line]
    assert note == "storage, as a multiple of that of the real images: poe 2.00"
    assert not measures.plain_tables(more)
    (plain,) = accuracy.accuracy_tables(run)
    assert not any("storage" in line for line in plain.notes)


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (0.91349, 0.00451, "91.3 ± 0.5"),
        (0.9996, 0.0, "100.0 ± 0.0"),
        (0.0, None, "0.0"),
        (0.12345, float("nan"), "12.3"),
        (float("nan"), None, "nan"),
    ],
)
def test_percent(mean, std, text):
    assert percent(mean, std) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.0123"),
        (5.904, "5.90"),
        (99.96, "100.0"),
        (1234.5, "1\N{NARROW NO-BREAK SPACE}230"),
        (0, "0"),
        (0.00001234, "1.23e-05"),
        (12345678.0, "1.23e+07"),
        (-0.5, "-0.500"),
        (float("nan"), table.DASH),
    ],
)
def test_significant(value, text):
    assert significant(value) == text


@given(st.floats(1e-4, 1e6))
def test_significant_is_close(value):
    assert float(significant(value).replace("\N{NARROW NO-BREAK SPACE}", "")) == pytest.approx(value, rel=0.006)


def test_summary_is_that_of_the_sets(tmp_path):
    """Mean, deviation and interval against the textbook: the mean of each set is one observation."""
    run = small(tmp_path, {("dm", 0): [0.50, 0.54], ("dm", 1): [0.60, 0.62], ("dm", 2): [0.55, 0.55]})
    row = accuracy.accuracy_tables(run)[0].data.iloc[0]
    means = [0.52, 0.61, 0.55]
    low, high = scipy.stats.t.interval(0.95, 2, statistics.mean(means), statistics.stdev(means) / 3**0.5)
    assert (row["n"], row["n_sets"], row["over"]) == (6, 3, "sets")
    assert (row["mean"], row["std"]) == pytest.approx((statistics.mean(means), statistics.stdev(means)))
    assert (row["low"], row["high"]) == pytest.approx((low, high))


def test_single_network_has_no_deviation(tmp_path):
    made = accuracy.accuracy_tables(small(tmp_path, {("dm", 0): [0.5]}))[0]
    assert cells(made)["dm", "cifar10", "IPC 10"].text == "50.0"
    assert made.data["std"].isna().all()


def test_the_best_is_bold_and_equal_print_is_equally_good(tmp_path):
    made = accuracy.accuracy_tables(small(tmp_path, {("dc", 0): [0.5001], ("dm", 0): [0.5004], ("dsa", 0): [0.49]}))[0]
    assert [row.cells[0].best for row in made.rows] == [True, True, False]


def test_the_full_dataset_stands_at_every_ipc_and_is_never_the_best(run):
    made = accuracy.accuracy_tables(run)[0]
    bound = made.rows[-1]
    assert bound.kind == "bound"
    assert len({cell.text for cell in bound.cells[:3]}) == 1
    assert not any(cell.best for cell in bound.cells)


def test_selection_rules_never_share_a_table(tmp_path):
    run = small(tmp_path, {("dm", 0): [0.5]})
    more = run.records.assign(selection="best-test", value=0.9)
    run = replace(run, records=pd.concat([run.records, more]))
    made = accuracy.accuracy_tables(run)
    assert [(one.name, one.rows[0].cells[0].text) for one in made] == [
        ("accuracy_last_review_convnet-in_convnet-in", "50.0"),
        ("accuracy_best-test_review_convnet-in_convnet-in", "90.0"),
    ]
    assert any("optimistic" in note for note in made[1].notes)


def test_diverged_networks_are_marked(tmp_path):
    run = small(tmp_path, {("dm", 0): [0.5, 0.0]})
    run.records.loc[1, "tags"] = "diverged=1"
    made = accuracy.accuracy_tables(run)[0]
    assert made.rows[0].cells[0].text == "25.0 ± 35.4†"
    assert any(note.startswith("†") for note in made.notes)


def test_a_run_without_records_shows_its_states(tmp_path):
    make_run(tmp_path)
    (tmp_path / "records.jsonl").unlink()
    lines = [json.loads(line) for line in (tmp_path / "states.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(row | {"state": "failed", "reason": "x"}) + "\n" for row in lines)
    (tmp_path / "states.jsonl").write_text(text)
    run = bench.report.load(tmp_path)
    assert {cell.text for cell in cells(accuracy.accuracy_tables(run)[0]).values()} <= {"failed", table.DASH}
    assert {row.cells[0].text for row in cost.cost_tables(run)[0].rows} == {"failed"}
    bench.report.write(tmp_path, pictures=False)


def test_a_cell_no_line_tells_of_is_planned(tmp_path):
    make_run(tmp_path)
    (tmp_path / "records.jsonl").write_text("")
    (tmp_path / "states.jsonl").write_text("")
    made = accuracy.accuracy_tables(bench.report.load(tmp_path))[0]
    assert {cell.text for row in made.rows for cell in row.cells} == {"planned"}


def test_a_skipped_cell_is_shown_as_what_made_it_skip(run):
    words = {(row.label, row.ipc, row.seed): row.word for row in run.planned("accuracy").itertuples()}
    assert (words["dc", 50, 0], words["dm", 10, 1], words["dsa", 1, 2]) == ("oom", "failed", "diverged")
    assert words["mtt", 1, 0] == "no data"


def test_other_evaluators_get_a_plain_table(tmp_path):
    run = small(tmp_path, {("dm", 0): [0.5]})
    extra = run.records.assign(evaluator="other", metric="auroc", tags="scores=msp", value=0.75)
    run = replace(run, records=pd.concat([run.records, extra]))
    (made,) = measures.plain_tables(run)
    assert (made.name, made.columns, made.rows[0].cells[0].text) == (
        "other_measures_cifar10",
        (("", "auroc (scores=msp)"),),
        "75.0 %",
    )


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("suite.json", None, "holds no run"),
        ("suite.json", "{", "damaged"),
        ("suite.json", '{"preset": "x"}', "damaged"),
        ("records.jsonl", "{}\n{half", "records.jsonl:2"),
    ],
)
def test_damaged_folders(tmp_path, file, text, words):
    make_run(tmp_path)
    (tmp_path / file).unlink() if text is None else (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=words):
        bench.report.load(tmp_path)


# ------------------------------------------------------------------------------------------------ writing


def odd() -> Table:
    """Return a table of characters that formats give a meaning."""
    row = Row(("a|b_%",), (Cell("50 % & ±", 0.5, True, "value"), Cell()))
    return Table("odd", "t_1", ("n #1",), ("m",), (("", "x"), ("", "y")), (row,), pd.DataFrame({"a": [1]}))


def test_markdown_escapes_pipes():
    lines = table.markdown(odd()).splitlines()
    assert lines[-1] == rf"| a\|b_% | **50 % & ±** | {table.DASH} |"
    assert lines[-3] == "| m | x | y |"


def test_latex_escapes():
    text = table.latex(odd())
    assert r"a|b\_\% & \textbf{50 \% \& $\pm$} & -- \\" in text
    assert r"\caption{t\_1. n \#1}" in text
    assert r"\cmidrule" not in text


def test_csv_reads_back(texts, tmp_path):
    (tmp_path / "x.csv").write_text(texts["accuracy.csv"])
    frame = pd.read_csv(tmp_path / "x.csv")
    assert {"mean", "std", "n", "n_sets", "low", "high", "over"} <= set(frame.columns)
    measured = frame[frame["n"] > 0]
    assert measured["mean"].between(0, 1).all()
    assert (measured["low"] < measured["mean"]).all()
    assert len(measured) == len(IPCS) * 4 * 2 - 2 + 2


# ------------------------------------------------------------------------------------------------ published values

PAPER = {"settings": "paper", "recipe": "dc"}


def published(out: Path, label: str = "dc", **options) -> list[str]:
    """Return the published rows of the accuracy table of a run of one method at CIFAR-10 IPC 10."""
    review = options.pop("review", None)
    change = options.pop("change", {})
    run = small(out, {(label, 0): [0.44, 0.45]}, **{**PAPER, **options})
    run = replace(run, records=run.records.assign(**change))
    made = accuracy.accuracy_tables(run, review)
    return [f"{row.header[0]}: {row.cells[0].text}" for one in made for row in one.rows if row.kind == "published"]


def test_published_value_beside_ours(tmp_path):
    assert published(tmp_path) == ["dc, published: 44.9"]
    made = accuracy.accuracy_tables(bench.report.load(tmp_path))[0]
    assert any("VICO-UoE/DatasetCondensation" in note for note in made.notes)


def test_recipes_of_equal_content_match(tmp_path):
    assert published(tmp_path, "dsa", recipe="review") == ["dsa, published: 52.1"]


@pytest.mark.parametrize(
    "options",
    [
        {"settings": "modified"},
        {"recipe": "review"},
        {"recipe": "dc(epochs=100)"},
        {"change": {"network": "convnet-bn"}},
        {"change": {"distil_network": "convnet-bn"}},
        {"change": {"distil_network": "convnet-bn", "network": "convnet-bn"}},
        {"change": {"dataset": "digits"}},
        {"change": {"ipc": 11}},
        {"label": "frepo"},
    ],
    ids=str,
)
def test_published_value_is_hidden(tmp_path, options):
    assert published(tmp_path, **options) == []


def test_a_part_of_a_dataset_has_no_published_values(tmp_path, monkeypatch):
    info = accuracy.data.info("cifar10").model_copy(update={"complete": False})
    monkeypatch.setattr(accuracy.data, "info", lambda name: info)
    accuracy._complete.cache_clear()
    try:
        assert published(tmp_path) == []
    finally:
        accuracy._complete.cache_clear()


def test_review_values_come_from_the_users_file(tmp_path):
    review = pd.DataFrame({"method": ["dc"], "dataset": ["cifar10"], "ipc": [10], "mean": [0.45], "std": [0.005]})
    assert published(tmp_path, recipe="review", review=review) == ["dc, review: 45.0 ± 0.5"]
    assert published(tmp_path, recipe="review", settings="modified", review=review) == []


def test_review_transfer_values(tmp_path):
    run = bench.report.load(make_run(tmp_path, "paper", "paper"))
    review = {"method": ["dc"], "dataset": ["cifar10"], "ipc": [10], "network": ["convnet-bn"], "mean": [0.4]}
    made = accuracy.cross_arch_tables(run, pd.DataFrame({**review, "std": [float("nan")]}))
    rows = {row.header[0]: row for one in made for row in one.rows if row.kind == "published"}
    assert [cell.text for cell in rows["dc, review"].cells] == [*[table.DASH] * 2, "40.0", *[table.DASH] * 4]
