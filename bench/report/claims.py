"""The review's statements in words, tested on a run: holds, does not hold, or not enough data.

The statements and their tests are data (`results/published/review_claims.yaml`); the kinds of tests are functions
(`bench.report.claim_kinds`). Only accuracies of the last epoch are used. What a run of another preset says about a
statement is a remark on that preset, so the table names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from bench.errors import UserError, nearest
from bench.report import PUBLISHED, cost, grid
from bench.report.claim_kinds import KINDS, Count, Observed
from bench.report.results import Results
from bench.report.table import Cell, Row, Table

FILE = PUBLISHED / "review_claims.yaml"
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "not enough data"
SHARES = ("all", "most", "many", "not all")
ENOUGH = {"most": 3, "many": 3}
"""Fewest decided comparisons for a statement about a share; half of all comparisons must be decided besides."""

MEASURES = {
    "seconds_per_step": "outer step",
    "seconds_per_step/set": "set update",
    "seconds_per_step/network": "network update",
}
SIZE = r"-[wd]\d+"
"""Width and depth in the name of a network: a statement about norms is one about networks of any size."""

RULE = (
    "a comparison counts only if the 95 % intervals do not overlap (single times: beyond 10 %), otherwise it is open; "
    "not enough data: fewer than half of the comparisons are decided, or fewer than 3 for most and many"
)


@dataclass(frozen=True)
class Claim:
    """A statement, how it was read, and its test: `kind` with arguments."""

    id: str
    statement: str
    source: str
    test: dict[str, Any]
    reading: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a run says about a claim."""

    claim: Claim
    verdict: str
    count: Count


def load(path: Path = FILE) -> list[Claim]:
    """Read the claims. Raises `UserError` for an unknown kind or share and for an id given twice."""
    content = yaml.safe_load(path.read_text())
    claims = [Claim(source=content["source"], **entry) for entry in content["claims"]]
    for claim in claims:
        kind, share = claim.test.get("kind"), claim.test.get("share")
        if kind not in KINDS:
            raise UserError(f"unknown kind {kind!r}", where=f"{path.name}: {claim.id}", hint=nearest(str(kind), KINDS))
        if share not in SHARES:
            raise UserError(f"unknown share {share!r}", where=f"{path.name}: {claim.id}", hint=", ".join(SHARES))
    if len({claim.id for claim in claims}) < len(claims):
        raise UserError("an id is given twice", where=path.name)
    return claims


def evaluate(results: Results, claims: list[Claim] | None = None) -> list[Verdict]:
    """Return the verdict on every claim."""
    seen = observe(results)
    verdicts = []
    for claim in load() if claims is None else claims:
        count = KINDS[claim.test["kind"]](seen, claim.test)
        verdicts.append(Verdict(claim, decide(count, claim.test["share"]), count))
    return verdicts


def decide(count: Count, share: str) -> str:
    """Return the verdict for the counts: see ENOUGH and the rules of `share` in the file of the claims."""
    decided = count.yes + count.no
    if share == "not all" and count.no:
        return HOLDS
    if not decided or decided < ENOUGH.get(share, 1) or 2 * decided < decided + count.open:
        return UNKNOWN
    if share == "not all":
        return UNKNOWN if count.open else FAILS
    holds = {"all": count.no == 0, "most": 2 * count.yes > decided, "many": 3 * count.yes >= decided}
    return HOLDS if holds[share] else FAILS


def observe(results: Results) -> Observed:
    """Return the numbers of a run as the tests read them. Of several labels of one method the plain one is used."""
    accuracy, transfer = grid.summary(results, "accuracy"), grid.summary(results, "cross_arch")
    costs = cost.summary(results.records, "cost")
    costs = costs[costs["column"].isin(MEASURES)]
    parts = [
        accuracy[accuracy["selection"] == "last"].assign(measure="accuracy", timing=False),
        transfer[transfer["selection"] == "last"].assign(measure="transfer", timing=False),
        costs.assign(measure=costs["column"].map(MEASURES), timing=True),
    ]
    numbers = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    sizes = {column: numbers[column].str.replace(SIZE, "", regex=True) for column in ("network", "distil_network")}
    numbers = numbers.assign(network=sizes["network"], made=numbers["recipe"], distilled=sizes["distil_network"])
    numbers["plain"] = numbers["label"] == numbers["method"]
    numbers = numbers[numbers["ipc"].notna()].sort_values("plain", ascending=False, kind="stable")
    place = ["measure", "dataset", "ipc", "network", "made", "method"]
    memory = results.states[results.states["kind"] == "distil"]
    memory = memory.assign(oom=memory["state"] == "oom")
    return Observed(numbers.drop_duplicates(place), memory[memory["ipc"].notna()])


def tables(results: Results) -> list[Table]:
    """Return the claims as a table, or none where the run says nothing about any of them."""
    verdicts = evaluate(results)
    return [table(results, verdicts)] if any(found.verdict != UNKNOWN for found in verdicts) else []


def table(results: Results, verdicts: list[Verdict]) -> Table:
    """Return the claims as a table: statement, verdict, how many comparisons, the numbers."""
    rows, tidy = [], []
    for found in verdicts:
        claim, count = found.claim, found.count
        words = claim.statement + (f" (read as: {claim.reading})" if claim.reading else "")
        counts = f"{count.yes} of {count.yes + count.no}" + (f", {count.open} open" if count.open else "")
        compared = count.yes + count.no + count.open
        kind = "state" if found.verdict == UNKNOWN else "value"
        numbers = Cell("; ".join(count.numbers[:3]) + _more(count.numbers))
        cells = (
            Cell(found.verdict, best=found.verdict == HOLDS, kind=kind),
            Cell(counts if compared else "none"),
            numbers,
        )
        rows.append(Row((words,), cells))
        own = {"id": claim.id, "statement": claim.statement, "reading": claim.reading, "source": claim.source}
        result = {"verdict": found.verdict, "yes": count.yes, "no": count.no, "open": count.open}
        tidy.append({**own, "preset": results.preset, **result, "numbers": "; ".join(count.numbers)})
    lines = (f"preset: {results.preset}", f"source: {verdicts[0].claim.source}" if verdicts else "", RULE)
    heads = (("", "verdict"), ("", "true in"), ("", "numbers"))
    title = "What the review says in words"
    return Table("claims", title, lines, ("statement",), heads, tuple(rows), pd.DataFrame(tidy))


def _more(numbers: list[str]) -> str:
    return f"; and {len(numbers) - 3} more" if len(numbers) > 3 else ""
