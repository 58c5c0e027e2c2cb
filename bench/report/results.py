"""A results folder as pandas frames, and the word for every cell that has no number.

The runner writes one line per measured number and one per cell; here they become frames with one row per line. A cell
that could not run because an earlier one failed is shown with the state of the one that failed.

Files are read in blocks of lines, and equal texts become one object: a hundred thousand cells have a few hundred
different words.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic_core import from_json

from bench import stats
from bench.errors import UserError

OWN = ("dataset", "method", "label", "settings", "evaluator", "metric", "unit", "tags", "cell")
TEXTS = (*OWN, "network", "distil_network", "recipe", "selection")
RECORD_COLUMNS = ("suite", "preset", *TEXTS, "ipc", "seed", "replicate", "step", "value")
WHOLE_NUMBERS = ("ipc", "seed", "replicate", "step")
COORDS = ("dataset", "method", "label", "settings", "ipc", "seed", "distil_network", "evaluator", "network")
DONE = frozenset({"ok", "cached"})
SUMMARY = ("mean", "std", "n", "n_sets", "low", "high", "over")
BLOCK = 10_000
"""Lines read at once."""


@dataclass(frozen=True)
class Results:
    """What a run left behind.

    records: one row per measured number, columns of `bench.api.Record`; `tags` as text (`a=1, b=x`), texts that do
        not apply are empty, whole numbers that do not apply are missing.
    plan: one row per cell in the order of the plan: key, kind, cell (its words), timed, inputs (list of keys), COORDS;
        then what the suite leaves out, as distillations that are skipped.
    states: one row per cell: key, kind, cell, state, reason, seconds, COORDS; a cell no line tells of is `planned`.
    """

    out: Path
    suite: str
    preset: str
    records: pd.DataFrame
    plan: pd.DataFrame
    states: pd.DataFrame
    summaries: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)
    """What `bench.report.grid` and `cost` have summarised already, by evaluator."""

    @cached_property
    def labels(self) -> list[str]:
        """The methods as the suite calls them, in the order of the plan."""
        return [text for text in pd.unique(pd.concat([self.plan["label"], self.records["label"]])) if text]

    @cached_property
    def datasets(self) -> list[str]:
        """The datasets in the order of the plan."""
        return [text for text in pd.unique(pd.concat([self.plan["dataset"], self.records["dataset"]])) if text]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Whose settings each cell used, by key: paper or modified."""
        return dict(zip(self.plan["key"], self.plan["settings"], strict=True))

    @cached_property
    def environments(self) -> list[tuple[int, dict[str, Any]]]:
        """Where the finished cells were computed: (cells, provenance), by first appearance.

        Told by environment.jsonl; where that is missing or tells of other cells, by the cells themselves.
        """
        done = self.states["key"][self.states["state"].isin(DONE)]
        found = [(int(row["cells"]), dict(row["provenance"])) for row in _lines(self.out / "environment.jsonl")]
        return found if sum(count for count, _ in found) == len(done) else environments(self.out, done)

    @cached_property
    def _states(self) -> dict[str, tuple[str, str]]:
        return {row.key: (row.state, row.reason) for row in rows_of(self.states)}

    @cached_property
    def _inputs(self) -> dict[str, list[str]]:
        return dict(zip(self.plan["key"], self.plan["inputs"], strict=True))

    @cached_property
    def _left_out(self) -> pd.Series:
        """Whether each planned cell is a distillation that was skipped and that nothing builds on."""
        used = {key for inputs in self.plan["inputs"] for key in inputs}
        left = (self.plan["kind"] == "distil") & ~self.plan["key"].isin(used)
        return left & self.plan["key"].map(lambda key: self._states[key][0] == "skipped")

    def cause(self, key: str) -> tuple[str, str]:
        """Return (word, reason) of a cell; for a skipped one, those of the input it was skipped for."""
        state, reason = self._states.get(key, ("planned", ""))
        if state == "skipped":
            for parent in self._inputs.get(key, []):
                word, why = self.cause(parent)
                if word not in (*DONE, "planned"):
                    return word, why
            if reason.startswith("no data"):
                return "no data", reason
        return state, reason

    @cached_property
    def _rows(self) -> dict[Any, Any]:
        return dict(self.records.groupby("evaluator", sort=False).indices)

    def of(self, evaluator: str) -> pd.DataFrame:
        """Return the records of an evaluator."""
        return self.records.iloc[self._rows.get(evaluator, [])]

    def planned(self, evaluator: str) -> pd.DataFrame:
        """Return the planned cells of an evaluator with the columns COORDS, key, done and word.

        A distillation that no evaluation builds on was left out as a whole: it stands for all evaluators.
        """
        own = (self.plan["kind"] == "evaluate") & (self.plan["evaluator"] == evaluator)
        cells = self.plan[own | self._left_out]
        words = pd.Series([self.cause(key)[0] for key in cells["key"]], index=cells.index, dtype="object")
        return cells.assign(word=words, done=words.isin(DONE))


def load(out: Path) -> Results:
    """Read suite.json, records.jsonl and states.jsonl. Raises `UserError` where one is missing or damaged."""
    with _collector_at_rest():
        return _load(out)


def _load(out: Path) -> Results:
    try:
        suite = from_json((out / "suite.json").read_bytes())
        plan, preset = suite["plan"], str(suite["preset"])
    except FileNotFoundError:
        raise UserError(f"{out} holds no run", hint="give the folder that `ddbench run` named as its results") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"damaged: {error!r}", where=str(out / "suite.json"), hint="run the suite again") from error
    planned, lines, more = {cell["key"] for cell in plan}, {}, []
    for row in _lines(out / "states.jsonl"):
        lines[row["key"]] = row.get("state", "planned"), row.get("reason") or "", row.get("seconds")
        if row["key"] not in planned:
            more.append(row)
    cells = _cells([*plan, *more])
    del plan
    states = cells.drop(columns=["inputs", "timed"])
    found = [lines.get(key, ("planned", "", None)) for key in cells["key"]]
    states[["state", "reason"]] = pd.DataFrame([one[:2] for one in found], columns=["state", "reason"], dtype="object")
    states["seconds"] = pd.Series([one[2] for one in found], dtype="float64")
    return Results(out, str(suite.get("name", out.name)), preset, frame(_lines(out / "records.jsonl")), cells, states)


def summarise(records: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return one row per group of `by` with SUMMARY over its values, grouped by seed (one seed, one set).

    n counts values (trained networks), n_sets the sets they were trained on. std and the 95 % interval low to high
    are over the means of the sets or over networks, as `over` says; NaN where there is only one. See
    `bench.stats.summary`. flagged counts the values whose `flag` (bool, a column of records) is set.
    """
    codes = records.groupby(by, sort=False, dropna=False).ngroup().to_numpy()
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    values, seeds, flags = (records[name].to_numpy()[order] for name in ("value", "seed", "flag"))
    rows = []
    for start, end in pairwise([*starts, len(order)]):
        own = seeds[start:end].tolist()
        one = stats.summary(values[start:end], groups=own)
        spread = (one.mean, one.std, end - start, len(set(own)), one.low, one.high, one.over)
        rows.append((*spread, int(flags[start:end].sum())))
    found = pd.DataFrame(rows, columns=[*SUMMARY, "flagged"])
    found = found.astype({**dict.fromkeys(("mean", "std", "low", "high"), "float64"), "over": "object"})
    return pd.concat([records[by].iloc[order[starts]].reset_index(drop=True), found], axis=1)


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """Iterate over the rows of a frame as named tuples."""
    return frame.itertuples()


def stored(out: Path, key: str) -> dict[str, Any]:
    """Return the `result.json` of a finished cell; nothing where the folder keeps none that can be read."""
    try:
        found = json.loads((out / "cells" / key[:2] / key / "result.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def environments(out: Path, keys: Iterable[str]) -> list[tuple[int, dict[str, Any]]]:
    """Return (cells, provenance) of the environments that stored cells were computed in, by first appearance."""
    found: dict[str, int] = {}
    for key in keys:
        text = json.dumps(stored(out, key).get("provenance", {}))
        found[text] = found.get(text, 0) + 1
    return [(count, json.loads(text)) for text, count in found.items()]


def groups_of(frame: pd.DataFrame, by: str | list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """Iterate over (key, rows) in the order of first appearance; a missing value is a key like any other."""
    return iter(frame.groupby(by, sort=False, dropna=False))


def frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return records as a frame, one row each; see `Results.records`. The rows are changed."""
    rows, parts = iter(rows), {name: [_column(name, pd.Series(dtype="object"))] for name in RECORD_COLUMNS}
    while block := list(islice(rows, BLOCK)):
        for row in block:
            tags = row.get("tags")
            row["tags"] = ", ".join(f"{name}={value}" for name, value in sorted(tags.items())) if tags else ""
        found = pd.DataFrame(block, columns=list(RECORD_COLUMNS), dtype="object")
        for name, column in parts.items():
            column.append(_column(name, found[name]))
    return pd.DataFrame({name: pd.concat(parts.pop(name), ignore_index=True) for name in RECORD_COLUMNS})


def _column(name: str, values: pd.Series) -> pd.Series:
    """Return a column of the records with the type it has; equal texts become one object."""
    if name in WHOLE_NUMBERS:
        return values.astype("Int64")
    if name == "value":
        return values.astype("float64")
    codes, texts = pd.factorize(values.to_numpy())  # -1, the last one, where there is none
    known = np.array([*texts, "" if name in TEXTS else None], dtype="object")
    return pd.Series(known[codes], dtype="object")


def _cells(plan: list[dict[str, Any]]) -> pd.DataFrame:
    columns = ["key", "kind", "cell", "timed", "inputs", *COORDS]
    cells = pd.DataFrame([_flat(cell) for cell in plan], columns=columns, dtype="object")  # faster than text columns
    for column in ("ipc", "seed"):
        cells[column] = cells[column].astype("Int64")
    return cells


def _flat(cell: dict[str, Any]) -> dict[str, Any]:
    coords, inputs = cell.get("coords", {}), cell.get("inputs", {})
    keys = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
    texts = {name: coords.get(name) or "" for name in COORDS if name not in ("ipc", "seed")}
    own = {"key": cell["key"], "kind": cell["kind"], "cell": cell.get("label", ""), "timed": bool(cell.get("timed"))}
    return {**own, "inputs": keys, **texts, "ipc": coords.get("ipc"), "seed": coords.get("seed")}


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Look for no cycles meanwhile: what is read has none, and the search costs half as much as the reading."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; none where there is no such file yet."""
    if not path.is_file():
        return
    number = 1
    with path.open("rb") as file:
        while block := list(islice(file, BLOCK)):
            try:
                rows = from_json(b"[%b]" % b",".join(block))  # at once: equal texts become one object
            except ValueError:
                rows = []
            yield from rows if len(rows) == len(block) else _one_by_one(path, number, block)
            number += len(block)


def _one_by_one(path: Path, number: int, lines: list[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the objects of the lines from `number` on. Raises `UserError` that names the first damaged one."""
    for index, line in enumerate(lines, number):
        try:
            yield from_json(line)
        except ValueError as error:
            raise UserError("not a JSON line", where=f"{path}:{index}", hint="run the suite again") from error
