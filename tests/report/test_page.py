"""The page: self-contained, well-formed, escaped, up to date or not, fast; and the pictures in it."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from make_run import NETWORKS, Maker, make_run
from parsed import Page
from PIL import Image

import bench.report
from bench.api import DistilledSet, Header
from bench.distilled import save
from bench.errors import UserError
from bench.report import pictures, results
from bench.report.page import environment
from bench.tv import torchvision


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = make_run(tmp_path_factory.mktemp("run"))
    key = distilled_key(out, "dm", "cifar10", 10)
    cell = out / "cells" / key[:2] / key
    cell.mkdir(parents=True)
    save(cell / "set.safetensors", coloured(10))
    provenance = {"packages": {"torch": "9.9"}, "cpu": "Made <Up>", "dirty": False}
    (cell / "result.json").write_text(json.dumps({"provenance": provenance}))
    bench.report.write(out)
    return out


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.html").read_text()


def distilled_key(out, label, dataset, ipc):
    for line in (out / "states.jsonl").read_text().splitlines():
        state, coords = json.loads(line), json.loads(line)["coords"]
        if state["kind"] == "distil" and (coords["label"], coords["dataset"], coords["ipc"]) == (label, dataset, ipc):
            return state["key"]
    raise AssertionError


def coloured(ipc: int, **fields) -> DistilledSet:
    """Return a set in which class k is an even colour of red k/9 and green 1, in normalised space."""
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    labels = torch.arange(10).repeat(ipc)
    pixels = torch.zeros(10 * ipc, 3, 32, 32)
    pixels[:, 0] = labels[:, None, None] / 9
    pixels[:, 1] = 1
    images = (pixels - mean[:, None, None]) / std[:, None, None]
    header = Header(
        dataset="cifar10", classes=10, shape=(3, 32, 32), preprocessing="meanstd", ipc=ipc, seed=0, method="dm",
        method_version=1, params={}, network={}, augment="none", **fields,
    )  # fmt: skip
    return DistilledSet(header, images, labels, extra={"preprocessing/mean": mean, "preprocessing/std": std})


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_is_well_formed_and_loads_nothing(text, folder):
    page = Page(text)
    assert page.open == []
    for tag, address in page.addresses:
        if tag in ("img", "script", "link", "iframe", "object"):
            assert address.startswith("data:")
        elif not address.startswith("#") and address != "cells":
            assert (folder / address).exists(), address
    outside = re.sub(r"data:[\w/+;]+base64,[\w+/=]+", "", text)
    assert not re.search(r"https?://|@import|url\(|<link|src=\"(?!\")", outside)


def test_the_page_says_what_it_shows(text):
    assert "preset <b>laptop</b>" in text
    assert "not these numbers with published ones" in text
    for word in ("Accuracy", "Transfer to other networks", "Cost", "Claims", "Plots", "Distilled sets", "Environment"):
        assert re.search(rf"<h2 id=\"[\w-]+\">{word}</h2>", text), word


def test_the_paper_preset_carries_no_warning(tmp_path):
    page = bench.report.write(make_run(tmp_path, "paper", "paper"), pictures=False).read_text()
    assert "not these numbers with published ones" not in page


def test_every_cell_that_did_not_end_well_is_listed_with_its_reason(text, folder):
    section = text[text.index('id="states"') : text.index('id="environment"')]
    states = [json.loads(line) for line in (folder / "states.jsonl").read_text().splitlines()]
    bad = [row for row in states if row["state"] != "ok"]
    assert section.count("<tr><th") - 1 == len(bad)
    assert "RuntimeError: a made-up &lt;failure&gt;" in section
    assert "<failure>" not in text


def test_of_too_many_cells_those_that_failed_themselves_are_listed_and_the_others_counted(tmp_path, monkeypatch):
    out = make_run(tmp_path)
    states = Counter(json.loads(line)["state"] for line in (out / "states.jsonl").read_text().splitlines())
    own = sum(count for state, count in states.items() if state not in ("ok", "skipped"))
    monkeypatch.setattr("bench.report.page.TROUBLES", own + 1)
    page = bench.report.write(out, pictures=False).read_text()
    section = page[page.index('id="states"') : page.index('id="environment"')]
    listed = Counter(re.findall(r'<td class="state">(\w+)</td>', section))
    assert listed == {**{state: count for state, count in states.items() if state != "ok"}, "skipped": 1}
    assert f"And more: {states['skipped'] - 1} skipped." in section
    assert 'href="states.jsonl"' in section


def test_the_environment_is_that_of_the_cells(text):
    section = text[text.index('id="environment"') :]
    assert "<dt>torch</dt><dd>9.9</dd>" in section
    assert "Made &lt;Up&gt;" in section
    assert "<dt>dirty</dt><dd>no</dd>" in section


def test_where_the_runner_has_counted_environments_no_cell_is_opened(tmp_path, monkeypatch):
    run = results.load(make_run(tmp_path))
    done = int((run.states["state"] == "ok").sum())
    monkeypatch.setattr(results, "stored", lambda out, key: {"provenance": {"torch": "read"}})
    told = [{"cells": 2, "provenance": {"torch": "1.0"}}, {"cells": done - 2, "provenance": {"torch": "1.1"}}]
    for rows, words in ((told, f"1.1 ({done - 2} cells); 1.0 (2 cells)"), (told[:1], "read"), ([], "read")):
        (tmp_path / "environment.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        assert environment(results.load(tmp_path).environments) == [("torch", words)]


def test_links_to_what_failed_cells_left_behind(tmp_path):
    out = make_run(tmp_path)
    key = distilled_key(out, "dc", "cifar10", 50)
    (out / "failed").mkdir()
    (out / "failed" / f"{key}.json").write_text("{}")
    (out / "slurm" / "ab12").mkdir(parents=True)
    (out / "slurm" / "ab12" / f"{key}.log").write_text("job 7 on node1")
    page = bench.report.write(out, pictures=False).read_text()
    assert f'<a href="failed/{key}.json">failed</a>' in page
    assert f'<a href="slurm/ab12/{key}.log">slurm</a>' in page


def test_the_same_run_gives_the_same_page(folder, text):
    picture = next((folder / "pictures").glob("*.png"))
    before = picture.stat().st_mtime_ns
    bench.report.write(folder)
    assert (folder / "report.html").read_text() == text
    assert picture.stat().st_mtime_ns == before  # drawn once, kept under the key of its cell


def test_tables_of_an_earlier_report_are_removed(tmp_path):
    out = make_run(tmp_path)
    (out / "tables").mkdir()
    (out / "tables" / "old.csv").write_text("x")
    bench.report.write(out, pictures=False)
    assert not (out / "tables" / "old.csv").exists()


def test_the_users_reference_is_named(tmp_path):
    out = make_run(tmp_path / "run", "paper", "paper")
    reference = tmp_path / "mine.csv"
    reference.write_text("method,dataset,ipc,mean,std\ndc,cifar10,10,45.5,0.5\n")
    page = bench.report.write(out, reference, pictures=False).read_text()
    assert "from the user's file mine.csv" in page.replace("&#39;", "'")
    assert '<td class="published" data-value="0.455">45.5 ± 0.5</td>' in page


# ------------------------------------------------------------------------------------------------ up to date


def test_up_to_date(tmp_path):
    out = make_run(tmp_path / "run")
    assert not bench.report.up_to_date(out)
    bench.report.write(out, pictures=False)
    assert bench.report.up_to_date(out)
    reference = tmp_path / "mine.csv"
    reference.write_text("method,dataset,ipc,mean,std\n")
    assert not bench.report.up_to_date(out, reference)
    with open(out / "records.jsonl", "a") as file:
        file.write("\n")
    assert not bench.report.up_to_date(out)


def test_up_to_date_imports_nothing_heavy(folder):
    code = (
        f"import sys, bench.report; assert bench.report.up_to_date({str(folder)!r}); "
        "heavy = {'pandas', 'torch', 'scipy', 'matplotlib', 'jinja2', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        bench.report.write(tmp_path)
    assert not bench.report.up_to_date(tmp_path)


def test_fifty_thousand_records(tmp_path):
    maker = Maker("laptop")
    for number in range(5 * 12 * 3 * 5):
        dataset, method, ipc, seed = number // 180, number // 15 % 12, (1, 10, 50)[number // 5 % 3], number % 5
        coords = {"dataset": f"d{dataset}", "method": f"m{method}", "label": f"m{method}", "settings": "modified"}
        coords |= {"ipc": ipc, "seed": seed, "distil_network": "convnet-in"}
        distilled = maker.cell("distil", coords, {}, "ok")
        for evaluator, networks in (("accuracy", ("convnet-in",)), ("cross_arch", NETWORKS)):
            own = {**coords, "evaluator": evaluator, "network": "convnet-in"}
            cell = maker.cell("evaluate", own, {"distilled": distilled}, "ok")
            maker.accuracies(own, cell, 0.5, networks, 7)
    assert len(maker.records) >= 50_000
    maker.write(tmp_path)
    begin = time.process_time()
    bench.report.write(tmp_path, pictures=False)
    assert time.process_time() - begin < 5


# ------------------------------------------------------------------------------------------------ pictures


def test_a_picture_shows_the_decoded_pixels(folder, text):
    path = next((folder / "pictures").glob("*.png"))
    image = Image.open(path).convert("RGB")
    assert image.size == (10 * 34 + 2, 10 * 34 + 2)
    for label in range(10):
        assert image.getpixel((200, 2 + 34 * label + 16)) == (round(255 * label / 9), 255, 0)
    addresses = [
        address for tag, address in Page(text).addresses if tag == "img" and address.startswith("data:image/png")
    ]
    shown = [Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) for address in addresses]
    assert [one.size for one in shown] == [image.size]


def test_a_set_that_cannot_be_drawn_says_why(text):
    assert "no picture" in text
    assert "cannot be read" in text  # the other cells of the made-up run have no stored set


@pytest.mark.parametrize(("ipc", "width"), [(1, 1), (12, 10)])
def test_ten_images_of_each_class_at_most(tmp_path, ipc, width):
    path = bench.report.picture(coloured(ipc), tmp_path / "x.png")
    assert Image.open(path).size == (width * 34 + 2, 342)


def test_soft_labels_and_small_grey_images(tmp_path):
    labels = torch.eye(10).repeat(2, 1)
    header = coloured(1).header.model_copy(
        update={"shape": (1, 8, 8), "label_kind": "probabilities", "preprocessing": "none", "dataset": "digits"}
    )
    images = labels.argmax(1).float()[:, None, None, None].expand(-1, 1, 8, 8) / 9
    path = bench.report.picture(DistilledSet(header, images, labels), tmp_path / "x.png")
    image = Image.open(path).convert("L")
    assert image.size == (2 * 26 + 2, 10 * 26 + 2)
    assert [image.getpixel((10, 12 + 26 * label)) for label in range(10)] == [round(255 * k / 9) for k in range(10)]


def test_outliers_stand_below_the_images(tmp_path):
    distilled = coloured(3)
    distilled.outliers = distilled.images[:20] * 0 + 0.25  # two of each group
    path = bench.report.picture(distilled, tmp_path / "x.png")
    image = Image.open(path).convert("RGB")
    assert image.size == (3 * 34 + 2, 21 * 34 + 2)
    value = image.getpixel((18, 2 + 34 * 15 + 16))
    assert [image.getpixel((2 + 34 * column + 16, 2 + 34 * 20 + 16)) for column in range(3)] == [
        value,
        value,
        (255, 255, 255),
    ]
    assert image.getpixel((18, 2 + 34 * 10 + 16)) == (255, 255, 255)  # the gap
    assert value == image.getpixel((18, 2 + 34 * 11 + 16)) != (255, 255, 255)


@pytest.mark.parametrize(("channels", "rows", "width"), [(1, 3, 4), (3, 2, 1), (3, 10, 10)])
def test_images_stand_as_in_torchvisions_grid(channels, rows, width):
    tiles = torch.rand(rows * width, channels, 5, 7)
    expected = torchvision().utils.make_grid(tiles, nrow=width, padding=2, pad_value=1.0)
    assert torch.equal(pictures.grid(tiles, width), expected.permute(1, 2, 0))


def test_a_picture_of_an_unknown_decoder(tmp_path):
    with pytest.raises(UserError, match="unknown decoder"):
        bench.report.picture(coloured(1, decoder={"name": "none-such"}), tmp_path / "x.png")
