"""One table, and how it is written: Markdown, LaTeX and CSV with the same rounding; HTML does it in its template.

A table is printed text with what the text was made of: every cell knows its number (for sorting), whether it is the
best of its column, and whether it is a measured value, a published one or the word for a missing one. The tidy frame
behind it goes to CSV in full precision together with the printed text.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import pandas as pd

DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table. kind: value, published, state (a word), empty."""

    text: str = DASH
    value: float | None = None
    best: bool = False
    kind: str = "empty"


@dataclass(frozen=True)
class Row:
    """One line: as many header texts as the table has index columns, then the cells. kind: method, bound, published."""

    header: tuple[str, ...]
    cells: tuple[Cell, ...]
    kind: str = "method"


@dataclass(frozen=True)
class Table:
    """A table ready to print.

    name: file name without ending. notes: what a reader must know, one sentence each. index: titles of the header
    columns. columns: (group, title); neighbours of one group share a heading. data: the tidy frame for the CSV.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    index: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    data: pd.DataFrame = field(compare=False)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The headings above the columns with the number of columns they span; empty where there are none."""
        spans = [(group, len(list(members))) for group, members in groupby(group for group, _ in self.columns)]
        return spans if any(group for group, _ in spans) else []


# ------------------------------------------------------------------------------------------------ numbers as text


def percent(mean: float, std: float | None = None) -> str:
    """Return `91.3 ± 0.4` for fractions, in percent with one decimal; without std where it is unknown."""
    if mean is None or math.isnan(mean):
        return "nan"
    return f"{100 * mean:.1f}" + ("" if std is None or math.isnan(std) else f" ± {100 * std:.1f}")


def significant(value: float, std: float | None = None, digits: int = 3) -> str:
    """Return a number with `digits` significant digits and no exponent from 0.0001 to ten million."""
    if value is None or math.isnan(value):
        return DASH
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    places = digits - 1 - exponent
    if not -4 <= exponent < 7:
        text = f"{value:.{digits - 1}e}"
    else:
        text = f"{round(value, places):,.{max(0, places)}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return text if std is None or math.isnan(std) else f"{text} ± {significant(std, digits=2)}"


# ------------------------------------------------------------------------------------------------ writing


def file_name(*parts: object) -> str:
    """Return a name for a file made of what its content is about; empty parts are left out."""
    texts = [re.sub(r"[^\w.=-]+", "-", str(part)).strip("-") for part in parts if not pd.isna(part)]  # type: ignore[call-overload]
    return "_".join(text for text in texts if text)


def markdown(table: Table) -> str:
    """Return the table as GitHub Markdown: title, notes, pipes; the best of a column in bold."""
    heads = [*table.index, *(f"{group} {title}".strip() for group, title in table.columns)]
    lines = [f"### {table.title}", "", *(f"{note}  " for note in table.notes), ""]
    lines += [_pipes(heads), _pipes(["---"] * len(table.index) + ["---:"] * len(table.columns))]
    for row in table.rows:
        cells = [f"**{cell.text}**" if cell.best else cell.text for cell in row.cells]
        lines.append(_pipes([*row.header, *cells]))
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """Return the table as LaTeX for the booktabs package, with title and notes as caption."""
    width = len(table.index)
    lines = [r"\begin{table}", r"  \centering", rf"  \caption{{{_tex('. '.join([table.title, *table.notes]))}}}"]
    lines += [rf"  \label{{tab:{table.name}}}", rf"  \begin{{tabular}}{{{'l' * width}{'r' * len(table.columns)}}}"]
    lines.append(r"    \toprule")
    if table.groups:
        heads = [rf"\multicolumn{{{span}}}{{c}}{{{_tex(group)}}}" for group, span in table.groups]
        lines.append("    " + " & ".join([*[""] * width, *heads]) + r" \\")
        lines.append("    " + " ".join(_rules(table.groups, width + 1)))
    lines.append("    " + " & ".join(_tex(text) for text in [*table.index, *(t for _, t in table.columns)]) + r" \\")
    lines.append(r"    \midrule")
    kind = None
    for row in table.rows:
        if row.kind == "bound" and kind not in (None, "bound"):
            lines.append(r"    \midrule")
        kind = row.kind
        cells = [rf"\textbf{{{_tex(cell.text)}}}" if cell.best else _tex(cell.text) for cell in row.cells]
        lines.append("    " + " & ".join([*map(_tex, row.header), *cells]) + r" \\")
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def write(table: Table, folder: Path) -> None:
    """Write `name.csv`, `name.md` and `name.tex` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table.name}.csv").write_text(table.data.to_csv(index=False, lineterminator="\n"), encoding="utf-8")
    (folder / f"{table.name}.md").write_text(markdown(table), encoding="utf-8")
    (folder / f"{table.name}.tex").write_text(latex(table), encoding="utf-8")


def _pipes(texts: list[str]) -> str:
    return "| " + " | ".join(text.replace("|", r"\|") for text in texts) + " |"


def _rules(groups: list[tuple[str, int]], first: int) -> list[str]:
    rules = []
    for _, span in groups:
        rules.append(rf"\cmidrule(lr){{{first}-{first + span - 1}}}")
        first += span
    return rules


TEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", DASH: "--", "≤": r"$\leq$", "†": r"$^\dagger$"}
TEX |= {"\N{NARROW NO-BREAK SPACE}": r"\,", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX |= {mark: "\\" + mark for mark in "&%$#_{}"}


def _tex(text: str) -> str:
    """Return the text with the characters that LaTeX gives a meaning escaped."""
    return "".join(TEX.get(letter, letter) for letter in text)
