"""Tables by layout on made-up measures of an evaluator `toy`: sets a, b (far) and c (near), two scores, networks."""

from __future__ import annotations

import pytest
from make_run import Maker

import bench.report
from bench.report import measures
from bench.report.layouts import Layout, Shown
from bench.report.measures import measure_tables

METRICS = {"auroc": Shown("AUROC", "high"), "fpr95": Shown("FPR95", "low")}
LAYOUT = Layout(
    "Toy", METRICS, columns="set", means="group", noun="sets", only={"score": ("none", "msp")}, missing="skipped"
)
SETS = {"a": ("far", 0.9), "b": ("far", 0.5), "c": ("near", 0.6)}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Return a function: (layout, what to leave out) -> tables of the made-up run."""

    def make(layout, change=lambda maker: None):
        monkeypatch.setattr(measures, "LAYOUTS", {"toy": (layout,)})
        maker = Maker("laptop")
        for method, gain in {"dc": 0.0, "dm": 0.02}.items():
            for ipc in (1, 10):
                coords = {"dataset": "digits", "method": method, "label": method, "settings": "modified", "ipc": ipc}
                coords |= {"seed": 0, "distil_network": "convnet-in", "evaluator": "toy", "network": "convnet-in"}
                cell = maker.cell("evaluate", coords, {}, "ok")
                more = {"network": "convnet-in", "recipe": "review", "selection": "last"}
                for replicate in (0, 1):
                    for score in ("energy", "msp"):
                        for name, (group, level) in SETS.items():
                            tags = {"set": name, "group": group, "score": score}
                            value = level + gain + 0.1 * replicate - 0.3 * (score == "energy")
                            for metric, number in (("auroc", value), ("fpr95", 1 - value), ("aupr", 0.25)):
                                each = {**more, "replicate": replicate, "tags": tags}
                                maker.record(coords, cell, metric, number, "fraction", **each)
        change(maker)
        return measure_tables(bench.report.load(maker.write(tmp_path)))

    return make


def texts(table):
    return {row.header: [cell.text for cell in row.cells] for row in table.rows}


def test_columns_means_and_the_preferred_value(made):
    table, rest = made(LAYOUT)
    assert (table.name, table.title, table.index) == ("toy_digits", "Toy, digits", ("method", "IPC"))
    groups = [group for group, span in table.groups for _ in range(span)]
    assert groups == ["a", "a", "b", "b", "c", "c", "mean of 2 far sets", "mean of 2 far sets"]
    assert [title for _, title in table.columns] == ["AUROC", "FPR95"] * 4
    assert texts(table)["dc", "1"] == [
        "95.0 ± 7.1 %", "5.0 ± 7.1 %", "55.0 ± 7.1 %", "45.0 ± 7.1 %", "65.0 ± 7.1 %", "35.0 ± 7.1 %",
        "75.0 ± 7.1 %", "25.0 ± 7.1 %",
    ]  # fmt: skip
    assert "score: msp" in table.notes
    assert not table.notes[-1].startswith("no number")
    assert (rest.name, len(rest.columns)) == ("toy_measures_digits", 6)  # aupr, which the layout does not show


def test_the_mean_is_taken_within_each_network(made):
    def opposed(maker):
        for record in maker.records:
            if record["tags"]["group"] == "far":
                record["value"] = float((record["tags"]["set"] == "a") == (record["replicate"] == 0))

    table, _ = made(LAYOUT, opposed)
    assert texts(table)["dm", "1"][:1] + texts(table)["dm", "1"][6:7] == ["50.0 ± 70.7 %", "50.0 ± 0.0 %"]


def test_best_is_high_or_low_at_each_ipc(made):
    table, _ = made(LAYOUT)
    best = {row.header: [cell.best for cell in row.cells] for row in table.rows}
    assert all(best["dm", "1"] + best["dm", "10"])
    assert not any(best["dc", "1"] + best["dc", "10"])


def test_tags_as_rows_and_tags_that_split(made):
    layout = Layout("Toy", {"auroc": METRICS["auroc"]}, columns="set", rows={"score": "score"}, means="group")
    table, _ = made(layout)
    assert table.index == ("method", "IPC", "score")
    assert [row.header for row in table.rows[:4]] == [
        ("dc", "1", "energy"), ("dc", "1", "msp"), ("dc", "10", "energy"), ("dc", "10", "msp"),
    ]  # fmt: skip
    assert texts(table)["dc", "1", "energy"] == ["65.0 ± 7.1 %", "25.0 ± 7.1 %", "35.0 ± 7.1 %", "45.0 ± 7.1 %"]


def test_tags_a_layout_does_not_name_are_never_averaged_over(made):
    tables = made(Layout("Toy", {"auroc": METRICS["auroc"]}, columns="set", means="group"))[:2]
    assert ["score=energy" in table.notes for table in tables] == [True, False]
    assert ["score=msp" in table.notes for table in tables] == [False, True]
    assert len({table.name for table in tables}) == 2


def test_states_diverged_networks_and_reasons(made):
    def change(maker):
        for record in maker.records:
            if (record["label"], record["ipc"], record["replicate"]) == ("dc", 1, 0):
                record["tags"] = {**record["tags"], "diverged": 1}
        coords = {**maker.plan[0]["coords"], "label": "mtt", "method": "mtt"}
        maker.cell("evaluate", coords, {}, "oom", "out of memory")
        own = maker.plan[-2]["coords"]
        tags = {"score": "mahalanobis", "reason": "one image of each class"}
        maker.record(own, "x", "skipped", 1, "count", tags=tags)

    table = made(LAYOUT, change)[0]
    assert texts(table)["dc", "1"][0] == "95.0 ± 7.1 %†"
    assert texts(table)["dm", "1"][0] == "97.0 ± 7.1 %"
    assert set(texts(table)["mtt", "1"]) == {"oom"}
    assert table.notes[-2:] == (
        "† networks that diverged are among the mean",
        "no number for mahalanobis: one image of each class (dm IPC 10)",
    )
    csv = table.data
    assert {"low", "high", "head", "metric"} <= set(csv)
    assert (csv["state"] == "oom").sum() == 1


def test_a_run_without_measures_shows_its_states(made):
    def failed(maker):
        maker.records.clear()
        for state in maker.states:
            state |= {"state": "failed", "reason": "x"}

    (table,) = made(LAYOUT, failed)
    assert table.columns == (("", "AUROC"),)
    assert {cell.text for row in table.rows for cell in row.cells} == {"failed"}
    bench.report.table.markdown(table)


def test_a_layout_without_cells_gives_no_table(made):
    def nothing(maker):
        maker.records.clear()
        maker.plan.clear()
        maker.states.clear()

    assert made(LAYOUT, nothing) == []


def test_a_layout_of_metrics_that_nobody_asked_for_gives_no_table(made):
    assert [t for t in made(Layout("Other", {"unmeasured": METRICS["auroc"]})) if t.title.startswith("Other")] == []
