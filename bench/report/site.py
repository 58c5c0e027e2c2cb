"""A static site of one or more runs: a leaderboard, a gallery of distilled sets, and a page for each method and task.

    index.html, gallery.html       what a reader sorts, filters and looks through
    pages/<run>/<place>.html       where the numbers of a method on a task come from, the command that makes them again
    pages/<run>/<suite>.yaml       the suite of the run, for that command; beside it records.jsonl and pictures/
    site.css, site.js

The site loads nothing from anywhere and asks for nothing (`file://` would refuse it): the rows are JSON inside the
page. It is made of the same tables as the report of a run.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

import bench
from bench.errors import UserError
from bench.report import leaderboard, page, reproduce, results
from bench.report.grid import WHOLE
from bench.report.leaderboard import Entry, Place, View
from bench.report.place import HEIGHT, RECORD, WIDTH, Places
from bench.report.results import DONE, Results
from bench.report.table import file_name

MARK = '<meta name="generator" content="ddbench'
"""What tells a site of ours from other files."""

COMPARABLE = "paper"
"""The preset whose numbers may be compared with published ones."""


@dataclass(frozen=True)
class Run:
    """A run of the site. name: what readers see; slug: its folder below `pages`."""

    name: str
    slug: str
    results: Results
    pages: dict[Place, str] = field(default_factory=dict)
    """File names of the pages, by place."""

    @property
    def title(self) -> str:
        """The title of its suite."""
        suite = json.loads((self.results.out / "suite.json").read_text(encoding="utf-8"))
        return str(suite.get("title") or self.results.suite)

    @property
    def suite_file(self) -> str:
        """The file with the suite, named so that a run of it bears the same name."""
        return f"{self.results.suite}.yaml"

    @property
    def comparable(self) -> bool:
        """Whether its numbers may stand beside published ones."""
        return self.results.preset == COMPARABLE

    def address(self, place: Place) -> str:
        """Return the address of the page of a place, as seen from the index."""
        return quote(f"pages/{self.slug}/{self.pages[place]}")


def write(folders: Sequence[Path], target: Path, reference: Path | None = None, *, pictures: bool = True) -> Path:
    """Write the site of some results folders into `target`; return the path of its index.

    reference: CSV of published accuracies filled by the user. pictures: show the distilled images.
    Raises `UserError` for folders without a run, and for a target that holds something else.
    """
    _check(target)
    loaded = [results.load(folder) for folder in dict.fromkeys(Path(folder).resolve() for folder in folders)]
    names = _names([run.out for run in loaded])
    runs = [Run(name, slug, run) for name, slug, run in zip(names, _slugs(names), loaded, strict=True)]
    views = leaderboard.views(loaded, _review(reference))
    for number, run in enumerate(runs):
        places = dict.fromkeys(entry.place for view in views for entry in view.entries if entry.run == number)
        run.pages.update(zip(places, (f"{slug}.html" for slug in _slugs(map(_words, places))), strict=True))
    _clear(target)
    cards = {run.slug: _run_folder(run, target, pictures) for run in runs}
    for number, run in enumerate(runs):
        _place_pages(run, target, [(view, _of_run(view, number)) for view in views], cards[run.slug])
    shown = [card for run in runs for card in cards[run.slug]]
    _render(target / "gallery.html", "site_gallery.html.j2", root="", runs=runs, cards=shown)
    common = {"root": "", "runs": runs, "counts": {run.slug: Counter(run.results.states["state"]) for run in runs}}
    _render(target / "index.html", "site_index.html.j2", data=_data(runs, views), **common)
    return target / "index.html"


def _review(reference: Path | None) -> pd.DataFrame | None:
    review, remark = page.read_reference(reference)
    if remark and remark[0] != "accuracy":
        raise UserError(f"a site shows published accuracies only, this is {remark[0]}", where=str(reference))
    return review


# ------------------------------------------------------------------------------------------------ names and files


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of paths, as many as tell them apart."""
    depths = [1] * len(folders)
    while True:
        names = ["/".join(folder.parts[-depth:]) for folder, depth in zip(folders, depths, strict=True)]
        counts = Counter(names)
        if max(counts.values(), default=1) == 1:
            return names
        depths = [depth + (counts[name] > 1) for name, depth in zip(names, depths, strict=True)]


def _slugs(texts: Iterable[str]) -> list[str]:
    """Return a file name for each text, different even where upper and lower case are the same."""
    taken: set[str] = set()
    slugs = []
    for text in texts:
        stem = file_name(text).strip(".")[:100] or "unnamed"
        slug, number = stem, 1
        while slug.lower() in taken:
            number += 1
            slug = f"{stem}-{number}"
        taken.add(slug.lower())
        slugs.append(slug)
    return slugs


def _words(place: Place) -> str:
    dataset, label, ipc = place
    return f"{dataset} {label} {'all' if ipc is None else f'ipc{ipc}'}"


def _check(target: Path) -> None:
    """Raise `UserError` where something else than a site lies in the folder."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is not a folder", where="--site")
    if target.is_dir() and any(target.iterdir()):
        index = target / "index.html"
        if not index.is_file() or MARK not in index.read_text(encoding="utf-8", errors="replace")[:1000]:
            raise UserError(f"{target} holds something that is not a site of ddbench", where="--site", hint="a new one")


def _clear(target: Path) -> None:
    """Make the folder with what all pages share, without the pages of an earlier site."""
    shutil.rmtree(target / "pages", ignore_errors=True)
    target.mkdir(parents=True, exist_ok=True)
    templates = Path(__file__).parent / "templates"
    css = "".join((templates / name).read_text(encoding="utf-8") for name in ("report.css", "site.css"))
    (target / "site.css").write_text(css, encoding="utf-8")
    shutil.copyfile(templates / "site.js", target / "site.js")
    (target / "index.html").write_text(f'{MARK}">This site was not finished.', encoding="utf-8")


def _render(path: Path, template: str, **values: Any) -> None:
    text = page.templates().get_template(template).render(version=bench.__version__, **values)
    path.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------------ one run


@dataclass(frozen=True)
class Card:
    """A picture of the gallery; without an address, why there is none."""

    run: Run
    place: Place
    address: str
    width: int = 0
    height: int = 0
    reason: str = ""


def _run_folder(run: Run, target: Path, draw: bool) -> list[Card]:
    """Write what the pages of a run share: its suite, its records, its pictures; return the pictures."""
    folder = target / "pages" / run.slug
    folder.mkdir(parents=True)
    (folder / run.suite_file).write_text(reproduce.suite_text(run.results.out), encoding="utf-8")
    if (run.results.out / "records.jsonl").is_file():
        shutil.copyfile(run.results.out / "records.jsonl", folder / "records.jsonl")
    kept = run.results.out / "pictures"
    if not draw or not (kept.is_dir() or (run.results.out / "cells").is_dir()):
        return []
    from PIL import Image

    from bench.report import pictures

    keys = set(run.results.states["key"])
    (folder / "pictures").mkdir()
    for path in kept.glob("*.png"):  # drawn by the report of the run
        if path.stem in keys:
            shutil.copyfile(path, folder / "pictures" / path.name)
    cards = []
    for one in pictures.write(run.results, folder / "pictures"):
        place = (one.dataset, one.label, one.ipc)
        if place not in run.pages:
            continue
        if one.path is None:
            cards.append(Card(run, place, "", reason=one.reason))
            continue
        with Image.open(one.path) as image:
            address = quote(f"pages/{run.slug}/pictures/{one.path.name}")
            cards.append(Card(run, place, address, *image.size))
    return cards


def _of_run(view: View, number: int) -> dict[Place, list[Entry]]:
    found: dict[Place, list[Entry]] = {}
    for entry in view.entries:
        if entry.run == number:
            found.setdefault(entry.place, []).append(entry)
    return found


def _place_pages(
    run: Run, target: Path, views: Sequence[tuple[View, dict[Place, list[Entry]]]], cards: Sequence[Card]
) -> None:
    """Write the page of every place of a run."""
    template = page.templates().get_template("site_place.html.j2")
    places = Places(run.results)
    for place, name in run.pages.items():
        dataset, label, ipc = place
        cells = places.cells(place)
        command, left = reproduce.command(
            run.suite_file, run.results.preset, {"dataset": dataset, "label": label, "ipc": ipc}
        )
        text = template.render(
            version=bench.__version__,
            root="../../",
            run=run,
            place=place,
            entry=next(entry for _, entries in views for entry in entries.get(place, [])),
            views=[(view, entries[place]) for view, entries in views if place in entries],
            cards=[card for card in cards if card.place == place],
            curves=places.curves(place),
            size=(WIDTH, HEIGHT),
            command=command,
            left=left,
            facts=places.facts(place),
            cells=cells,
            kept=any(cell.saved for cell in cells),
            done=any(cell.state in DONE for cell in cells),
            heads=RECORD,
            lines=places.lines(place),
        )
        (target / "pages" / run.slug / name).write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------------ the data of the index


def _data(runs: Sequence[Run], views: Sequence[View]) -> dict[str, Any]:
    """Return what the script of the index reads."""
    return {
        "runs": [
            {
                "name": run.name,
                "suite": run.results.suite,
                "preset": run.results.preset,
                "comparable": run.comparable,
            }
            for run in runs
        ],
        "views": [
            {
                "name": view.name,
                "title": view.title,
                "tags": view.tags,
                "notes": list(view.notes),
                "columns": [{"id": name, **column._asdict()} for name, column in view.columns.items()],
                "rows": [_row(runs[entry.run], entry) for entry in view.entries],
            }
            for view in views
        ],
    }


def _row(run: Run, entry: Entry) -> dict[str, Any]:
    dataset, label, ipc = entry.place
    row = {name: value for name, value in asdict(entry).items() if name not in ("place", "method")}
    bound = entry.method == WHOLE
    return {**row, "dataset": dataset, "method": label, "ipc": ipc, "bound": bound, "page": run.address(entry.place)}
