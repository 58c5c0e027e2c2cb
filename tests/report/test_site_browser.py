"""The site in a browser: what it shows from `file://`, after clicks, from a link, and with hostile names.

Skipped where no Chromium is found; `CHROMIUM` names one that is not on the path.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess

import pytest
from make_run import Maker, make_run
from test_site import HOSTILE, embedded, rows_of

from bench.report import site

BROWSER = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path, and $CHROMIUM is not set")

ACTIONS = """
<script>
{
const log = [], board = document.getElementById("board");
const heads = () => [...board.tHead.rows[0].cells];
const body = () => [...board.tBodies[0].rows];
const head = name => heads().find(cell => cell.textContent === name);
const column = name => body().map(row => row.cells[head(name).cellIndex].firstChild?.textContent ?? "");
const note = what => log.push({
  what, hash: location.hash, rows: body().length, count: document.getElementById("count").textContent,
  sorted: heads().filter(cell => cell.ariaSort).map(cell => [cell.textContent, cell.ariaSort]),
  methods: column("method"), accuracies: head("accuracy") ? column("accuracy") : [],
  focus: document.activeElement.textContent, heads: heads().map(cell => cell.textContent),
});
const choose = (name, value) => {
  const field = document.querySelector(`[name=${name}]`) ?? document.getElementById(name);
  field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
};
note("start");
head("accuracy").querySelector("button").click();
note("sorted");
head("accuracy").querySelector("button").click();
note("turned");
choose("dataset", "cifar10");
choose("method", "D");
note("filtered");
document.querySelector("[type=reset]").click();
note("cleared");
choose("view", "cost");
note("cost");
addEventListener("hashchange", () => {
  note("link");
  const result = document.createElement("pre");
  result.id = "log";
  result.textContent = JSON.stringify(log);
  document.body.append(result);
});
location.hash = "#dataset=none+such";
}
</script>
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    maker = Maker("laptop")
    for ipc in range(600):
        coords = {
            "dataset": "<b>mnist",
            "method": "dm",
            "label": HOSTILE,
            "settings": "modified",
            "ipc": ipc + 1,
            "seed": 0,
        }
        distilled = maker.cell("distil", coords, {}, "ok")
        own = {**coords, "evaluator": "accuracy", "network": "convnet-in"}
        maker.accuracies(own, maker.cell("evaluate", own, {"distilled": distilled}, "ok"), 0.5, ("convnet-in",), 1)
    maker.write(folder / "hostile")
    runs = [make_run(folder / "run"), make_run(folder / "paper", "paper", "paper", "dc")]
    site.write(runs, folder / "site", pictures=False)
    site.write([folder / "hostile"], folder / "other", pictures=False)
    return folder


def dump(path, tmp_path, part=""):
    """Return the document after its scripts ran; no script may complain."""
    options = [
        "--headless",
        "--disable-gpu",
        "--no-first-run",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path}",
    ]
    options += ["--no-sandbox", "--enable-logging=stderr"]  # containers often forbid the sandbox; the file is our own
    done = subprocess.run(
        [BROWSER, *options, "--virtual-time-budget=5000", "--dump-dom", f"{path.resolve().as_uri()}{part}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert "<html" in done.stdout, done.stderr
    return done.stdout


def body_rows(text):
    """Return the rows of the leaderboard as lists of texts."""
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    cells = [re.findall(r"<t[dh].*?</t[dh]>", row) for row in body.split("</tr>")[:-1]]
    return [[html.unescape(re.sub(r"<small>.*?</small>|<[^>]*>", "", cell)) for cell in row] for row in cells]


def test_a_link_restores_table_order_and_filters(made, tmp_path):
    text = dump(
        made / "site" / "index.html", tmp_path, "#dataset=cifar10&preset=laptop&sort=value+accuracy&order=ascending"
    )
    rows = [row for row in rows_of(embedded(made / "site" / "index.html")) if row["dataset"] == "cifar10"]
    rows = [row for row in rows if row["run"] == 0]
    numbers = sorted((row for row in rows if row["values"]), key=lambda row: row["values"]["accuracy"][1])
    states = [row for row in rows if row["state"]]
    shown = body_rows(text)
    assert [row[:4] for row in shown] == [
        [row["method"], "cifar10", str(row["ipc"] or "all"), row["values"]["accuracy"][0]] for row in numbers
    ] + [[row["method"], "cifar10", str(row["ipc"]), row["state"]] for row in states]
    assert len(states) > 3
    assert {row[5] for row in shown} == {"laptop ‡"}
    assert re.search(r'<th[^>]*aria-sort="ascending"[^>]*><button[^>]*>accuracy', text)
    assert re.search(r'<p id="warning" class="warning">', text)
    assert '<form id="filters" role="search" aria-label="Filters">' in text


def test_clicks_filters_and_links(made, tmp_path):
    index = made / "site" / "index.html"
    page = index.with_name("actions.html")
    page.write_text(index.read_text().replace("</body>", f"{ACTIONS}</body>"))
    found = re.search(r'<pre id="log">(.*?)</pre>', dump(page, tmp_path), re.DOTALL)
    steps = {step["what"]: step for step in json.loads(html.unescape(found.group(1)))}
    rows = rows_of(embedded(index))
    means = sorted((row["values"]["accuracy"][1], row["values"]["accuracy"][0]) for row in rows if row["values"])
    texts = [text for _, text in means]
    missing = [row["state"] for row in rows if not row["values"]]

    assert steps["start"]["rows"] == len(rows)
    assert steps["start"]["sorted"] == []
    assert [text.partition(" ")[0] for text in steps["sorted"]["accuracies"]] == [
        text.partition(" ")[0] for text in [*reversed(texts), *missing]
    ]
    assert steps["sorted"]["sorted"] == [["accuracy", "descending"]]
    assert steps["sorted"]["focus"] == "accuracy"  # the keyboard stays where it was
    assert sorted(steps["turned"]["accuracies"][: len(texts)]) == sorted(texts)
    assert steps["turned"]["accuracies"][0] == texts[0]
    assert steps["turned"]["accuracies"][len(texts) :] == missing
    assert steps["turned"]["sorted"] == [["accuracy", "ascending"]]
    assert set(steps["filtered"]["methods"]) == {"dc", "dm", "dsa", "random"}
    assert steps["filtered"]["rows"] == sum(row["dataset"] == "cifar10" and "d" in row["method"] for row in rows)
    assert steps["filtered"]["hash"] == "#sort=value+accuracy&order=ascending&dataset=cifar10&method=D"
    assert steps["cleared"]["rows"] == len(rows)
    assert steps["cleared"]["hash"] == "#sort=value+accuracy&order=ascending"
    assert "distillation: seconds" in steps["cost"]["heads"]
    assert steps["cost"]["hash"] == "#view=cost"
    assert steps["link"]["rows"] == 0
    assert steps["link"]["count"] == f"0 of {len(rows)} rows"


def test_names_of_a_run_are_text_and_long_tables_are_cut(made, tmp_path):
    text = dump(made / "other" / "index.html", tmp_path)
    assert "<title>Leaderboard</title>" in text
    outside = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    assert "<img" not in outside
    assert "<b>mnist" not in outside
    shown = body_rows(text)
    assert len(shown) == 500
    assert shown[0][:2] == [HOSTILE, "<b>mnist"]
    assert re.search(r'<button id="more" type="button">Show more of 600 rows</button>', text)


def test_the_gallery_filters(made, tmp_path):
    others = 'data-ipc="1" data-method="dm" data-preset="p" data-suite="s" data-run="r"'
    figures = "".join(
        f'<figure data-dataset="{dataset}" {others}>x</figure>' for dataset in ("mnist", "cifar10", "mnist")
    )
    page = made / "site" / "gallery.html"
    filled = page.with_name("filled.html")
    filled.write_text(
        page.read_text().replace('<div class="sets" id="cards">', f'<div class="sets" id="cards">{figures}')
    )
    text = dump(filled, tmp_path, "#dataset=mnist")
    assert re.findall(r'<figure data-dataset="(\w+)"[^>]*?( hidden="")?>', text) == [
        ("mnist", ""),
        ("cifar10", ' hidden=""'),
        ("mnist", ""),
    ]
    assert "2 of 3 sets" in text
