"""The verdicts as text: a table of what changed with a summary for the terminal, Markdown, and JUnit XML.

Only what changed is listed: hundreds of numbers that stayed as they were are one number of the summary. JUnit has a
test case for each, because that is what its readers count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from bench.regression.baseline import Baseline
from bench.regression.compare import Finding, Verdict

HEADS = ("", "what", "baseline", "now", "change")
TITLES = {"cell": "cells with a result", "accuracy": "accuracies", "time": "times", "memory": "peaks of memory"}
VERDICTS: tuple[Verdict, ...] = ("ok", "better", "new", "skipped", "unclear", "worse", "missing")
QUIET = ("ok", "skipped", "new")
MANY = 3
"""New cells and numbers are named one by one up to this many."""


def changed(findings: Sequence[Finding]) -> list[Finding]:
    """Return what is worth a line: the failures first, then what may be one, then what became better."""
    return sorted((one for one in findings if one.verdict not in QUIET), key=lambda one: -VERDICTS.index(one.verdict))


def row(finding: Finding) -> tuple[str, ...]:
    """Return the texts of one line, see HEADS."""
    what = finding.name if finding.kind in ("cell", "accuracy") else f"{finding.kind} of {finding.name}"
    change = ", ".join(text for text in (finding.change, finding.reason) if text)
    return (finding.verdict, what, finding.before, finding.now, change)


def summary(findings: Sequence[Finding]) -> list[str]:
    """Return one line per kind with counts, then why some were not compared, then the verdict."""
    lines = []
    for kind, title in TITLES.items():
        counts = Counter(one.verdict for one in findings if one.kind == kind)
        parts = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]]
        if parts:
            lines.append(f"{title}: {', '.join(parts)}")
    skipped = Counter((one.kind, one.reason) for one in findings if one.verdict == "skipped")
    lines += [f"{count} {TITLES[kind]} not compared: {reason}" for (kind, reason), count in skipped.items()]
    for one in [one for one in findings if one.verdict == "new"][:MANY]:
        lines.append(f"new: {one.name}")
    failed = sum(one.failed for one in findings)
    lines.append(f"regression: {failed} of {len(findings)} checks failed" if failed else "no regression")
    return lines


def provenance(baseline: Baseline) -> list[str]:
    """Return where the baseline comes from, one line per run."""
    lines = []
    for origin in baseline.runs:
        commits = ", ".join(commit[:10] for commit in origin.get("commit", [])) or "unknown"
        begin = ", ".join(origin.get("started", [])) or "unknown time"
        where = "; ".join(origin.get("hardware", [])) or "unknown hardware"
        lines.append(
            f"baseline run: ddbench {', '.join(origin.get('ddbench', []))}, commit {commits}, {begin}, {where}"
        )
    return lines


def made(baseline: Baseline, path: Path) -> list[str]:
    """Return what was written, for the terminal."""
    names = {"cpu": "CPU time", "wall": "wall clock", "MiB": "memory"}
    spread = [
        f"{names[kind]} {100 * one.std:.1f} % over {one.over} ({one.df} degrees of freedom)"
        for kind, one in baseline.spread.items()
    ]
    counts = f"{len(baseline.cells)} cells, {len(baseline.accuracy)} accuracies, {len(baseline.costs)} costs"
    noise = f"noise: {', '.join(spread)}" if spread else "no noise was measured: time and memory will not be compared"
    return [f"{path}: {counts} of {len(baseline.runs)} runs", noise, *provenance(baseline)]


def markdown(findings: Sequence[Finding], baseline: Baseline) -> str:
    """Return the summary as Markdown, for a comment on a change or the summary of a CI job."""
    lines = [f"## ddbench check: {baseline.suite} ({baseline.preset})", "", f"**{summary(findings)[-1]}**", ""]
    rows = [row(one) for one in changed(findings)]
    if rows:
        lines += [_line(("verdict", *HEADS[1:])), _line(["---"] * len(HEADS)), *map(_line, rows), ""]
    lines += [f"- {text}" for text in (*summary(findings)[:-1], *provenance(baseline))]
    return "\n".join(lines) + "\n"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def junit(findings: Sequence[Finding]) -> bytes:
    """Return JUnit XML: one test case per verdict, named by what it is about, in classes by kind."""
    failed, skipped = (sum(wanted(one) for one in findings) for wanted in (lambda one: one.failed, _is_skipped))
    counts = {"tests": str(len(findings)), "failures": str(failed), "errors": "0", "skipped": str(skipped)}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "ddbench check", **counts})
    for one in findings:
        case = ElementTree.SubElement(suite, "testcase", {"classname": f"ddbench.{one.kind}", "name": one.name})
        text = ", ".join(part for part in row(one)[2:] if part)
        if one.failed:
            ElementTree.SubElement(case, "failure", {"message": f"{one.verdict}: {text}", "type": one.verdict})
        elif _is_skipped(one):
            ElementTree.SubElement(case, "skipped", {"message": one.reason})
        else:
            ElementTree.SubElement(case, "system-out").text = f"{one.verdict}: {text}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _is_skipped(finding: Finding) -> bool:
    return finding.verdict == "skipped"


def write(path: Path, content: str | bytes) -> None:
    """Write a report; its folder is made where missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
