"""What the accuracy and the transfer tables share: the measured values, the gaps between them, and the words around.

A grid is made of values by (label, dataset, place), where the place is an IPC or a network, and of what the plan
wanted at the same places. Together they say what to print: a value, a value from fewer seeds than planned, or why
there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import pandas as pd

from bench.report.results import DONE, SUMMARY, Results, groups_of, rows_of, summarise
from bench.report.table import Cell, Row, percent

SELECTIONS = {
    "last": "accuracy after the last epoch (selection: last)",
    "best-val": "best epoch chosen on held-out training images (selection: best-val)",
    "best-test": "best epoch chosen on the test set (selection: best-test): optimistic, not comparable with last",
    "": "selection rule not recorded",
}
MADE = ["selection", "recipe", "network", "distil_network"]
WHERE = ["dataset", "method", "label", "settings", "ipc"]
WHOLE = "whole"
MARK = "†"
Place = tuple[str, str, Any]


def summary(results: Results, evaluator: str) -> pd.DataFrame:
    """Return the summarised final accuracies of an evaluator: columns MADE, WHERE, SUMMARY, diverged; fractions.

    diverged: how many of the n networks lost all predictions to NaN; they count as wrong on every test image.
    """
    if evaluator in results.summaries:
        return results.summaries[evaluator]
    records = results.of(evaluator)
    final = (records["metric"] == "accuracy") & records["step"].isna()
    # flags first: a column assigned to an empty frame would bring all its rows back
    flagged = records.assign(flag=records["tags"].str.contains("diverged=1", regex=False))[final]
    results.summaries[evaluator] = summarise(flagged, [*MADE, *WHERE]).rename(columns={"flagged": "diverged"})
    return results.summaries[evaluator]


def fits(planned: pd.DataFrame, distil_network: str) -> pd.Series:
    """Return which planned cells belong to a table of sets distilled with a network."""
    return planned["distil_network"].isin([distil_network, ""]) | (planned["method"] == WHOLE)


@dataclass(frozen=True)
class Grid:
    """Values and gaps of one table. place: the column that runs along the table, `ipc` or `network`."""

    values: dict[Place, Any]
    gaps: dict[Place, tuple[int, str]]
    frame: pd.DataFrame
    planned: pd.DataFrame
    place: str

    @classmethod
    def make(cls, frame: pd.DataFrame, planned: pd.DataFrame, place: str) -> Grid:
        """Index summarised values and planned cells. gaps: seeds planned and the word of the first missing one."""
        values = {_key(row, place): row for row in rows_of(frame)}
        gaps: dict[Place, tuple[int, str]] = {}
        for (label, dataset, at), cells in groups_of(planned, ["label", "dataset", place]):
            missing = cells[~cells["done"]]
            word = missing["word"].iloc[0] if len(missing) else ""
            gaps[label, dataset, None if pd.isna(at) or at == "" else at] = (cells["seed"].nunique(), word)
        return cls(values, gaps, frame, planned, place)

    def labels(self, order: Sequence[str]) -> list[str]:
        """Return the methods that have a value or a reason for none, the full dataset last."""
        have = {key[0] for key in self.values} | {key[0] for key, (_, word) in self.gaps.items() if word}
        return sorted((label for label in order if label in have), key=self.whole)

    def whole(self, label: str) -> bool:
        """Return whether a label is the full dataset."""
        return label in self._settings[""]

    @cached_property
    def _settings(self) -> dict[str, set[str]]:
        """The settings of every label; under the empty label those labels that are the full dataset."""
        found: dict[str, set[str]] = {"": set()}
        for row in chain(rows_of(self.frame), rows_of(self.planned)):
            if row.method == WHOLE:
                found[""].add(row.label)
            elif row.settings:
                found.setdefault(row.label, set()).add(row.settings)
        return found

    def cell(self, label: str, dataset: str, place: Any) -> Cell:
        """Return the value, complete or partial, or the word for why there is none.

        What has no place of its own stands at every one: the full dataset has no IPC, and one cell of the plan may
        cover all networks.
        """
        keys = [(label, dataset, place), (label, dataset, None)]
        row = next((self.values[key] for key in keys if key in self.values), None)
        wanted, word = next((self.gaps[key] for key in keys if key in self.gaps), (0, ""))
        if row is None:
            return Cell(word, kind="state") if word else Cell()
        text = percent(row.mean, row.std) + (MARK if row.diverged else "")
        if row.n_sets < wanted:
            return Cell(f"{text} ({row.n_sets} of {wanted} seeds)", row.mean, kind="partial")
        return Cell(text, row.mean, kind="value")

    def _measured(self, key: Place) -> bool:
        """Return whether there is a value at a place of the plan; at any place where the plan names none."""
        return key in self.values or (key[2] is None and any(key[:2] == known[:2] for known in self.values))

    def name(self, label: str) -> str:
        """Return the row header: the label, what it is if it is the bound, whose settings if the table mixes them."""
        if self.whole(label):
            return f"{label} (full dataset, upper bound)"
        own = self._settings.get(label, set())
        mixed = len(set().union(*(found for name, found in self._settings.items() if name))) > 1
        return f"{label} ({'/'.join(sorted(own))} settings)" if mixed and own else label

    def tidy(self) -> pd.DataFrame:
        """Return the rows of the CSV: every summarised value and every planned place without one."""
        cells = [self.cell(*_key(row, self.place)) for row in rows_of(self.frame)]
        states = ["partial" if cell.kind == "partial" else "ok" for cell in cells]
        rows = self.frame.assign(state=states, text=[cell.text for cell in cells])
        lost = self.planned[~self.planned["word"].isin(DONE)].drop_duplicates(["label", "dataset", self.place])
        lost = lost.loc[[row.Index for row in rows_of(lost) if not self._measured(_key(row, self.place))]]
        none: dict[str, Any] = {"state": lost["word"], "text": lost["word"], "selection": "", "recipe": ""}
        none |= dict.fromkeys(("n", "n_sets", "diverged"), 0)
        frame = pd.concat([rows, lost.assign(**none)[[c for c in rows if c in lost or c in none]]])
        return frame[[*WHERE, *MADE, *SUMMARY, "diverged", "state", "text"]].reset_index(drop=True)


def bold(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Mark the best measured method of every column; equal print means equally good."""
    best: dict[int, float] = {}
    for row in rows:
        for column, cell in enumerate(row.cells if row.kind == "method" else ()):
            if cell.value is not None:
                best[column] = max(best.get(column, -1.0), round(cell.value, 3))
    marked = []
    for row in rows:
        method = row.kind == "method"
        good = [method and c.value is not None and round(c.value, 3) == best[i] for i, c in enumerate(row.cells)]
        marked.append(replace(row, cells=tuple(replace(c, best=b) for c, b in zip(row.cells, good, strict=True))))
    return tuple(marked)


def notes(results: Results, made: Sequence[str], frame: pd.DataFrame) -> list[str]:
    """Return what made the numbers of a table: preset, selection, recipe, networks, counts, settings."""
    selection, recipe, network, distil_network = made
    lines = [f"preset: {results.preset}", SELECTIONS.get(selection, f"selection: {selection}")]
    how = {"recipe": recipe, "evaluation network": network, "distilled with": distil_network}
    lines += ["; ".join(f"{name}: {text}" for name, text in how.items() if text)] if any(how.values()) else []
    own = frame[frame["method"] != WHOLE]
    own = own if len(own) else frame
    if len(own):
        lines += [_spread(over, rows) for over, rows in groups_of(own, "over")]
        settings = own["settings"].unique()
        if len(settings) == 1:
            words = {"paper": "hyper-parameters as published", "modified": "hyper-parameters differ from the papers"}
            lines.append(f"settings: {settings[0]} ({words.get(settings[0], 'unknown')})")
    if frame["diverged"].any():
        lines.append(f"{MARK} networks that diverged are among the mean: wrong on every test image")
    other = set(frame[(frame["method"] == WHOLE)]["recipe"]) - {recipe, ""}
    if other:
        lines.append(f"the full dataset is trained with recipe {', '.join(sorted(other))}")
    return lines


def _key(row: Any, place: str) -> Place:
    at = getattr(row, place)
    return row.label, row.dataset, None if pd.isna(at) or at == "" else at


def _spread(over: str, rows: pd.DataFrame) -> str:
    """Return in words what ± means for rows whose interval is over sets or over networks."""
    networks = _range((rows["n"] / rows["n_sets"]).round().astype(int), "network")
    if over == "networks":
        return f"mean ± sample standard deviation over {networks} trained on one set"
    return f"mean ± sample standard deviation over {_range(rows['n_sets'], 'set')}, each the mean of {networks}"


def _range(numbers: Iterable[int], word: str) -> str:
    low, high = min(numbers), max(numbers)
    text = f"{low}" if low == high else f"{low} to {high}"
    return f"{text} {word}" if high == 1 else f"{text} {word}s"
