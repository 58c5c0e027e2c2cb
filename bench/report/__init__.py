"""Reports: what a results folder says, as tables, plots, pictures and one HTML page that opens without a network.

    write(out)        -> tables/*.csv|md|tex, plots/*.svg|png, pictures/*.png, report.html
    load(out)         -> the same numbers as pandas frames
    up_to_date(out)   -> whether report.html was made from what the folder holds now

Everything is derived from the files of `bench.run.outputs` and the stored cells: nothing here measures. The
heavy libraries are imported inside the functions, so that a cached `ddbench run` pays for none of them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import bench

if TYPE_CHECKING:
    from bench.api import DistilledSet
    from bench.report.results import Results

__all__ = ["load", "picture", "up_to_date", "write"]

INPUTS = ("suite.json", "records.jsonl", "states.jsonl", "environment.jsonl")
PUBLISHED = Path(bench.__file__).parents[1] / "results" / "published"


def load(out: Path) -> Results:
    """Return the records, states and plan of a results folder. Raises `UserError` where it holds no run."""
    from bench.report import results

    return results.load(Path(out))


def write(out: Path, reference: Path | None = None, *, pictures: bool = True) -> Path:
    """Write all tables, plots, pictures and the page; return the path of `report.html`.

    reference: CSV of published numbers filled by the user, shaped like a `review_*.csv` of results/published.
    pictures: show the distilled images (needs torch). Raises `UserError` for a folder without a run or a reference
    that cannot be read.
    """
    from bench.report import page

    stamp = fingerprint(Path(out), reference)  # read first: what changes meanwhile makes the page out of date
    return page.write(Path(out), reference, stamp, pictures=pictures)


def up_to_date(out: Path, reference: Path | None = None) -> bool:
    """Return whether `report.html` was written from the present inputs by this version of the code."""
    try:
        with open(Path(out) / "report.html", encoding="utf-8") as file:
            return fingerprint(Path(out), reference) in file.read(300)
    except OSError:
        return False


def fingerprint(out: Path, reference: Path | None = None) -> str:
    """Return the sha256 over the inputs of the report and the code that writes it."""
    digest = hashlib.sha256(bench.__version__.encode())
    sources = [path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".j2", ".css", ".js")]
    inputs = [out / name for name in INPUTS] + ([Path(reference)] if reference else [])
    for path in [*sorted(sources), *sorted(PUBLISHED.glob("*")), *inputs]:
        there = path.is_file()
        digest.update(f"{path.name}:{path.stat().st_size if there else 'absent'}:".encode())
        if there:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def picture(distilled: DistilledSet, path: Path) -> Path:
    """Write a PNG of a distilled set, one row per class, and return its path. Raises `UserError` if it cannot be."""
    from bench.report import pictures

    return pictures.draw(distilled, Path(path))
