"""The site: numbers and states of its rows, links, commands that select what they say, names, hostile texts."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import time
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from make_run import NETWORKS, Maker, make_run
from parsed import Page
from scipy import stats
from test_page import coloured, distilled_key
from typer.testing import CliRunner

import bench.report
from bench import suite as suites
from bench.cli import app
from bench.distilled import save
from bench.errors import UserError
from bench.report import place, reproduce, site
from bench.run import outputs

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs with one name: of the paper's preset as published, and of a laptop with a set, a log, a provenance."""
    folder = tmp_path_factory.mktemp("runs")
    bench.report.write(make_run(folder / "a" / "run", "paper", "paper", "dc"), pictures=False)
    out = make_run(folder / "b" / "run")
    bench.report.write(out, pictures=False)
    key = distilled_key(out, "dm", "cifar10", 10)
    cell = out / "cells" / key[:2] / key
    cell.mkdir(parents=True)
    save(cell / "set.safetensors", coloured(10))
    config = {"task": {"data": "0123abcd"}, "params": {"lr_img": 0.125}}
    provenance = {"commit": "feedbeef", "packages": {"torch": "9.9"}, "cpu": "Made <Up>", "dirty": False}
    result = {"key": key, "config": config, "provenance": provenance, "started": "2026-01-02T03:04:05+00:00"}
    (cell / "result.json").write_text(json.dumps(result))
    (cell / "log.jsonl").write_text(
        '{"step": 0, "loss": 4}\n{"step": 10, "loss": 1}\nbroken\n{"step": 20, "loss": 2}\n'
    )
    return [folder / "a" / "run", out]


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory):
    return site.write(runs, tmp_path_factory.mktemp("site")).parent


@pytest.fixture(scope="module")
def data(made):
    return embedded(made / "index.html")


def embedded(index):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', index.read_text()).group(1)
    )


def rows_of(data, view="accuracy"):
    return next(one for one in data["views"] if one["name"] == view)["rows"]


def row_of(data, run, method, dataset, ipc, view="accuracy"):
    (row,) = [
        row
        for row in rows_of(data, view)
        if (row["run"], row["method"], row["dataset"], row["ipc"]) == (run, method, dataset, ipc)
    ]
    return row


def page_of(made, row):
    return (made / unquote(row["page"])).read_text()


# ------------------------------------------------------------------------------------------------ numbers and states


def test_every_mean_and_interval_is_that_of_the_records(runs, data):
    for number, run in enumerate(runs):
        by_seed: dict = {}
        for line in (run / "records.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record["evaluator"] == "accuracy":
                key = (record["label"], record["dataset"], record["ipc"])
                by_seed.setdefault(key, {}).setdefault(record["seed"], []).append(record["value"])
        for key, seeds in by_seed.items():
            text, value, interval, _ = row_of(data, number, *key)["values"]["accuracy"]
            means = [np.mean(values) for values in seeds.values()]
            own = means if len(means) > 1 else next(iter(seeds.values()))
            low, high = stats.t.interval(0.95, len(own) - 1, np.mean(own), np.std(own, ddof=1) / math.sqrt(len(own)))
            assert value == pytest.approx(np.mean(means))
            assert text.startswith(f"{100 * value:.1f} ± {100 * np.std(own, ddof=1):.1f}")
            word = "sets" if len(means) > 1 else "networks"
            assert interval == f"95 %: {100 * low:.1f} to {100 * high:.1f}, {len(own)} {word}"
        assert len(by_seed) == sum(not row["state"] for row in rows_of(data) if row["run"] == number)


@pytest.mark.parametrize("view", ["accuracy", "cross_arch", "cost"])
def test_texts_are_those_of_the_tables(runs, data, view):
    texts = set()
    for file in (runs[1] / "tables").glob(f"{view}*.csv"):
        with open(file, newline="") as lines:
            texts |= {(row["label"], row["dataset"], row["ipc"], row["text"]) for row in csv.DictReader(lines)}
    shown = set()
    for row in rows_of(data, view):
        if row["run"] == 1:
            place = (row["method"], row["dataset"], "" if row["ipc"] is None else str(row["ipc"]))
            shown |= {(*place, text) for text, *_ in row["values"].values()}
            shown |= {(*place, row["state"])} if row["state"] else set()
    assert shown == texts


def test_cells_without_a_number_say_why(made, data):
    found = {
        (row["method"], row["ipc"]): (row["state"], row["reason"])
        for row in rows_of(data)
        if row["state"] and not row["run"]
    }
    assert found == {
        ("dc", 50): ("oom", "out of memory: can't allocate memory"),
        ("dsa", 1): ("diverged", "loss is nan"),
        **{("mtt", ipc): ("no data", "no data") for ipc in (1, 10, 50)},
    }
    text, _, _, kind = row_of(data, 0, "dm", "cifar10", 10)["values"]["accuracy"]
    assert text.endswith("(2 of 3 seeds)")
    assert kind == "partial"
    assert "out of memory: can&#39;t allocate memory" in page_of(made, row_of(data, 0, "dc", "cifar10", 50))
    assert "RuntimeError: a made-up &lt;failure&gt;" in page_of(made, row_of(data, 0, "dm", "cifar10", 10))


def test_published_numbers_stand_where_the_tables_have_them(runs, data):
    markdown = (runs[0] / "tables" / "accuracy.md").read_text()
    shown = {}
    for row in rows_of(data):
        for text, value, title, source in row["published"]:
            assert row["run"] == 0  # the laptop's are never comparable
            assert title == "published"
            assert "VICO-UoE/DatasetCondensation" in source
            assert value == pytest.approx(float(text.partition(" ")[0]) / 100)
            shown.setdefault(row["method"], []).append(text)
    lines = [line for line in markdown.splitlines() if ", published |" in line]
    expected = {}
    for line in lines:
        name, *cells = (part.strip() for part in line.strip("|").split("|"))
        expected[name.removesuffix(", published")] = [cell for cell in cells if cell != "\N{EN DASH}"]
    assert expected
    assert {method: sorted(texts) for method, texts in shown.items()} == {
        method: sorted(texts) for method, texts in expected.items()
    }


def test_only_the_paper_preset_is_comparable(made, data):
    assert [(run["preset"], run["comparable"]) for run in data["runs"]] == [("paper", True), ("laptop", False)]
    warning = "not comparable with published ones"
    assert warning in page_of(made, row_of(data, 1, "dm", "cifar10", 10))
    assert warning not in page_of(made, row_of(data, 0, "dm", "cifar10", 10))
    assert (made / "index.html").read_text().count("(not comparable with published numbers)") == 1


def test_the_users_reference(runs, tmp_path):
    reference = tmp_path / "mine.csv"
    reference.write_text("method,dataset,ipc,mean,std\ndc,cifar10,10,45.5,0.5\n")
    run = make_run(tmp_path / "run", "paper", "paper")
    found = embedded(site.write([run], tmp_path / "site", reference, pictures=False))
    (row,) = [row for row in rows_of(found) if any(one[2] == "review" for one in row["published"])]
    assert (row["method"], row["dataset"], row["ipc"]) == ("dc", "cifar10", 10)
    assert row["published"][-1][0] == "45.5 ± 0.5"
    reference.write_text("method,dataset,ipc,metric,value,unit\n")
    with pytest.raises(UserError, match="accuracies only"):
        site.write([run], tmp_path / "other", reference)
    assert not (tmp_path / "other").exists()


# ------------------------------------------------------------------------------------------------ pages


def test_every_page_is_well_formed_and_every_link_leads_somewhere(made):
    pages = {path.resolve(): Page(path.read_text()) for path in made.rglob("*.html")}
    assert len(pages) == 2 + 2 * (2 * (4 * 3 + 1) + 3)
    for path, page in pages.items():
        assert page.open == [], path
        for _, address in page.addresses:
            file, _, part = unquote(address).partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.is_relative_to(made.resolve()), address
            assert target.is_file(), address
            assert not part or part in pages[target].names, address
    for row in (row for view in embedded(made / "index.html")["views"] for row in view["rows"]):
        names = pages[(made / unquote(row["page"])).resolve()].names
        assert {"provenance", "command", "numbers"} <= names


def test_the_site_loads_nothing(made):
    for path in made.rglob("*"):
        if path.suffix in (".html", ".css", ".js"):
            assert not re.search(r"https?://|//cdn|@import|url\(|fetch\(|XMLHttp|innerHTML", path.read_text()), path


def test_provenance_of_a_cell(made, data):
    text = page_of(made, row_of(data, 1, "dm", "cifar10", 10))
    assert "<dt>sha256 of the data</dt><dd>0123abcd</dd>" in text
    assert "<dt>commit</dt><dd>feedbeef</dd>" in text
    assert "<dd>Made &lt;Up&gt;</dd>" in text
    assert "<dt>seeds</dt><dd>0, 1, 2</dd>" in text
    assert "&#34;lr_img&#34;: 0.125" in text
    assert "2026-01-02T03:04:05+00:00" in text
    without = page_of(made, row_of(data, 0, "dm", "cifar10", 10))
    assert "keeps records without the cells behind them" in without
    assert "No cell of this place was finished" in page_of(made, row_of(data, 0, "mtt", "cifar10", 10))


def test_all_numbers_of_a_place_are_on_its_page(made, data):
    for view in data["views"]:
        for row in view["rows"][::7]:
            text = page_of(made, row)
            for one, _, interval, _ in row["values"].values():
                assert f'<td class="value">{one}</td><td>{interval}</td>' in text


def test_all_records_of_a_place_are_on_its_page(runs, made, data):
    text = page_of(made, row_of(data, 1, "dsa", "mnist", 10))
    records = [json.loads(line) for line in (runs[1] / "records.jsonl").read_text().splitlines()]
    own = [r for r in records if (r["label"], r["dataset"], r["ipc"]) == ("dsa", "mnist", 10)]
    for seed in range(3):
        values = [r["value"] for r in own if r["evaluator"] == "accuracy" and r["seed"] == seed]
        assert f"seed {seed}: {', '.join(f'{100 * value:.1f}' for value in values)}" in text
    section = text[text.index('id="records"') :]
    assert section.count("<tr><td>") == len({tuple(str(r[name]) for name in place.RECORD) for r in own})
    assert (made / "pages" / "b-run" / "records.jsonl").read_bytes() == (runs[1] / "records.jsonl").read_bytes()


def test_the_gallery_shows_the_set_and_says_what_is_missing(made):
    text = (made / "gallery.html").read_text()
    (image,) = re.findall(r'<img src="([^"]+)" width="342" height="342" loading="lazy"', text)
    assert (made / image).is_file()
    assert text.count("cannot be read") == text.count("no picture: ") > 20
    assert "Run a/run has no pictures" in text
    assert image in page_of(made, row_of(embedded(made / "index.html"), 1, "dm", "cifar10", 10))


def test_the_curve_of_a_log(runs):
    places = place.Places(bench.report.load(runs[1]))
    (curve,) = places.curves(("cifar10", "dm", 10))
    assert (curve.name, curve.low, curve.high, curve.steps) == ("loss", "1.00", "4.00", "0 to 20")
    width, height = place.WIDTH, place.HEIGHT
    points = f"0.0,0.0 {width / 2:.1f},{height:.1f} {width:.1f},{height * 2 / 3:.1f}"
    assert curve.lines == (("seed 0", points),)
    assert places.curves(("cifar10", "dc", 10)) == []


def test_a_log_that_never_changes_or_is_not_finite_is_not_drawn():
    log = [{"step": float(step), "same": 1.0, "odd": float("nan"), "x": 1.0 / (step or math.inf)} for step in range(3)]
    assert place._curve("same", {"seed 0": log}) is None
    assert place._curve("odd", {"seed 0": log}) is None
    assert place._curve("x", {"seed 0": log}).low == "0"
    assert place._curve("x", {"seed 0": log[:1]}) is None


def test_cells_of_other_places_that_a_place_builds_on(tmp_path):
    maker = Maker("laptop")
    coords = {"dataset": "d", "method": "m", "label": "m", "settings": "modified", "ipc": 1, "seed": 0}
    shared = maker.cell("prepare", {**coords, "dataset": "other", "label": ""}, {}, "ok")
    half = maker.cell("distil", {**coords, "dataset": "d@half"}, {"experts": shared}, "ok")
    whole = maker.cell("distil", coords, {}, "ok")
    maker.cell("evaluate", {**coords, "evaluator": "accuracy"}, {"distilled": whole, "set a": half}, "ok")
    cells = place.Places(bench.report.load(maker.write(tmp_path))).cells(("d", "m", 1))
    assert [(cell.words.split(" ")[0], cell.own) for cell in cells] == [
        ("distil", True),
        ("evaluate", True),
        ("distil", False),
        ("prepare", False),
    ]
    assert [cell.key for cell in cells[2:]] == [half, shared]


# ------------------------------------------------------------------------------------------------ commands


@pytest.mark.parametrize(("name", "preset"), [("quickstart", None), ("survey_table", "laptop"), ("trustdd", "paper")])
def test_the_suite_of_a_run_plans_the_same_cells(tmp_path, name, preset):
    plan = suites.plan(suites.load(ROOT / "suites" / f"{name}.yaml", preset), skip_missing=True)
    (tmp_path / "suite.json").write_text("\n".join(outputs.manifest(plan)))
    file = tmp_path / f"{name}.yaml"
    file.write_text(reproduce.suite_text(tmp_path))
    again = suites.load(file)
    assert (again.name, again.preset) == (plan.suite.name, plan.suite.preset)
    found = suites.plan(again, skip_missing=True)
    places = [(cell.key, cell.coords, cell.also) for cell in (*plan.cells, *plan.skipped)]
    assert [(cell.key, cell.coords, cell.also) for cell in (*found.cells, *found.skipped)] == places


def test_a_command_selects_its_place_and_nothing_else():
    suite = suites.load(ROOT / "suites" / "survey_table.yaml", "laptop")
    plan = suites.plan(suite)
    places = {
        tuple(cell.coords[k] for k in ("dataset", "label", "ipc")) for cell in plan.cells if "label" in cell.coords
    }
    assert len(places) > 30
    for dataset, label, ipc in places:
        text, left = reproduce.command("x y.yaml", "laptop", {"dataset": dataset, "label": label, "ipc": ipc})
        words = shlex.split(text)
        assert words[:6] == ["ddbench", "run", "x y.yaml", "--preset", "laptop", "--only"]
        assert left == []
        chosen = suites.plan(suite, only=words[6]).cells
        own = {
            c.key
            for c in plan.cells
            if (c.coords["dataset"], c.coords.get("label"), c.coords["ipc"]) == (dataset, label, ipc)
        }
        built_on = {key for cell in chosen for key in cell.inputs.values()}
        assert own <= {cell.key for cell in chosen} <= own | built_on


def test_names_that_an_expression_cannot_hold_are_left_out():
    text, left = reproduce.command("s.yaml", "default", {"dataset": "d@rare(share=0.1)", "label": "a|b", "ipc": None})
    assert shlex.split(text) == ["ddbench", "run", "s.yaml", "--only", "dataset=d@rare(share=0.1),ipc=none"]
    assert left == ["label"]
    text, left = reproduce.command("s.yaml", "p", {"dataset": "a,b", "label": " spaced", "ipc": 1})
    assert shlex.split(text) == ["ddbench", "run", "s.yaml", "--preset", "p", "--only", "ipc=1"]
    assert left == ["dataset", "label"]


def test_the_command_stands_on_the_page_beside_its_suite(made, data):
    row = row_of(data, 1, "dm", "cifar10", 10)
    assert "<code>ddbench run made_up.yaml --preset laptop --only dataset=cifar10,label=dm,ipc=10</code>" in page_of(
        made, row
    )
    assert "ipc=none</code>" in page_of(made, row_of(data, 1, "whole", "cifar10", None))
    suite = yaml.safe_load((made / "pages" / "b-run" / "made_up.yaml").read_text())
    assert suite == {"presets": {"laptop": {}}, "default_preset": "laptop"}


# ------------------------------------------------------------------------------------------------ names and files


def test_hostile_labels_and_labels_that_share_a_file_name(tmp_path):
    labels = [HOSTILE, "a b", "a-b", "A-B", "..", "é|,", "x" * 300]
    maker = Maker("laptop")
    for label in labels:
        coords = {"dataset": "mnist", "method": "dm", "label": label, "settings": "modified", "ipc": 1, "seed": 0}
        distilled = maker.cell("distil", coords, {}, "ok")
        own = {**coords, "evaluator": "accuracy", "network": "convnet-in"}
        maker.accuracies(own, maker.cell("evaluate", own, {"distilled": distilled}, "ok"), 0.5, ("convnet-in",))
    index = site.write([maker.write(tmp_path / "run")], tmp_path / "site", pictures=False)
    assert [row["method"] for row in rows_of(embedded(index))] == labels
    pages = [row["page"] for row in rows_of(embedded(index))]
    assert len({page.lower() for page in pages}) == len(labels)
    for page in pages:
        assert (index.parent / unquote(page)).resolve().parent == index.parent.resolve() / "pages" / "run"
    for path in index.parent.rglob("*.html"):
        assert "<img src=x" not in path.read_text()
        assert Page(path.read_text()).open == []


def test_runs_with_one_name_and_a_run_given_twice(runs, made, data, tmp_path):
    assert [run["name"] for run in data["runs"]] == ["a/run", "b/run"]
    assert sorted(path.name for path in (made / "pages").iterdir()) == ["a-run", "b-run"]
    twice = embedded(site.write([runs[0], runs[0] / ".." / "run"], tmp_path / "site", pictures=False))
    assert [run["name"] for run in twice["runs"]] == ["run"]
    assert len(rows_of(twice)) == sum(row["run"] == 0 for row in rows_of(data))
    assert site._names([Path("/a/x/r"), Path("/b/x/r"), Path("/q")]) == ["a/x/r", "b/x/r", "q"]
    assert site._slugs(["a/r", "a-r"]) == ["a-r", "a-r-2"]


def test_the_same_runs_give_the_same_site_without_what_is_gone(runs, made, tmp_path):
    folder = tmp_path / "site"
    site.write(runs, folder)
    (folder / "pages" / "b-run" / "old.html").write_text("old")
    site.write(runs, folder)
    first, second = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (made, folder))
    assert first == second
    assert {path.name for path in runs[0].iterdir()} & {"pictures", "index.html"} == set()


def test_a_folder_with_something_else_is_left_alone(runs, tmp_path):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not a site of ddbench"):
        site.write(runs, tmp_path)
    (tmp_path / "index.html").write_text("<p>my own page</p>")
    with pytest.raises(UserError, match="not a site of ddbench"):
        site.write(runs, tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        site.write(runs, tmp_path / "index.html")
    assert (tmp_path / "pages" / "mine.txt").read_text() == "mine"


def test_the_command_line(runs, tmp_path):
    done = CliRunner().invoke(app, ["report", "--site", str(tmp_path / "site"), *map(str, runs)])
    assert done.exit_code == 0, done.output
    assert done.output.split() == ["site:", str(tmp_path / "site" / "index.html")]
    missing = CliRunner().invoke(app, ["report", "--site", str(tmp_path / "other"), str(tmp_path)])
    assert isinstance(missing.exception, UserError)
    assert not (tmp_path / "other").exists()


def test_thousands_of_records_take_seconds(tmp_path):
    maker = Maker("laptop")
    for number in range(4 * 8 * 3 * 4):
        dataset, method, ipc, seed = number // 96, number // 12 % 8, (1, 10, 50)[number // 4 % 3], number % 4
        coords = {"dataset": f"d{dataset}", "method": f"m{method}", "label": f"m{method}", "settings": "modified"}
        coords |= {"ipc": ipc, "seed": seed, "distil_network": "convnet-in"}
        distilled = maker.cell("distil", coords, {}, "ok")
        for evaluator, networks in (("accuracy", ("convnet-in",)), ("cross_arch", NETWORKS)):
            own = {**coords, "evaluator": evaluator, "network": "convnet-in"}
            cell = maker.cell("evaluate", own, {"distilled": distilled}, "ok")
            maker.accuracies(own, cell, 0.5, networks, 2)
    assert len(maker.records) > 6000
    maker.write(tmp_path / "run")
    begin = time.process_time()
    site.write([tmp_path / "run"], tmp_path / "site", pictures=False)
    assert time.process_time() - begin < 8
