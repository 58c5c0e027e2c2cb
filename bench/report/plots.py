"""Plots of a run, each as SVG and PNG: accuracy over IPC, time and memory, cost over IPC, transfer as a heatmap.

Every method keeps its colour and marker in all plots of a run (colours of Okabe and Ito, told apart by colour-blind
readers) and is named beside its line instead of in a legend. Error bars are the 95 % intervals of the tables. The
subtitle names the preset and what made the numbers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.report import cost, grid
from bench.report.beside import beside
from bench.report.results import Results, groups_of, summarise
from bench.report.table import DASH, file_name
from bench.run.provenance import usable_cores

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#8C6D31",
    "#882255",
    "#999933",
    "#332288",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLES = ("-", "--", ":", "-.")
BOUND = "#555555"
SETTINGS: dict[Any, Any] = {
    "font.size": 12.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.0,
    "axes.titlecolor": "#444444",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "svg.hashsalt": "ddbench",  # equal numbers give equal files
    "svg.fonttype": "none",  # text that can be searched and read aloud, in half the time of outlines
    "figure.facecolor": "white",
}
LEFT = 0.12
"""Share of the width left of the axes: room for ticks such as 0.0005 and the name of the axis."""
MANY = 8
"""Plots from which on several processes draw them."""
GAP = 15.0
"""Distance between two names beside lines, in points."""
LETTER = 0.0135
"""Width of a bold letter of a name, as a share of the figure's."""


@dataclass(frozen=True)
class Plot:
    """One figure. name: file name without ending. draw: makes it, which may be left to another process."""

    name: str
    title: str
    draw: Callable[[], Figure]


def write(results: Results, folder: Path) -> list[tuple[str, str]]:
    """Write all plots of a run; return (name, title) of each."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(SETTINGS):
        plots = list(all_plots(results))
        cores = usable_cores() if len(plots) >= MANY else 1
        first, *others = (plots[start::cores] for start in range(cores))
        with beside(folder, *(partial(_save, folder, share) for share in others)):
            _save(folder, first)
    return [(plot.name, plot.title) for plot in plots]


def _save(folder: Path, plots: Sequence[Plot]) -> None:
    for plot in plots:
        figure, file = plot.draw(), folder / plot.name
        FigureCanvasAgg(figure)
        packed = {"compress_level": 1}  # an eighth larger, a quarter of the time less
        figure.savefig(f"{file}.png", dpi=150, metadata={"Software": None}, pil_kwargs=packed)
        figure.savefig(f"{file}.svg", metadata={"Date": None, "Creator": None})


def all_plots(results: Results) -> Iterator[Plot]:
    """Yield the plots that the numbers of the run allow."""
    accuracy, costs = grid.summary(results, "accuracy"), cost.summary(results.records, "cost")
    methods = accuracy[accuracy["method"] != grid.WHOLE]
    for made, group in groups_of(methods, grid.MADE):
        single = methods[grid.MADE].drop_duplicates().shape[0] == 1
        for dataset, rows in groups_of(group, "dataset"):
            same = (accuracy["dataset"] == dataset) & (accuracy["network"] == made[2])
            bound = accuracy[same & (accuracy["method"] == grid.WHOLE) & (accuracy["selection"] == made[0])]
            ending = file_name(dataset, *(() if single else made))
            draw = partial(_Lines, results, dataset, _subtitle(results, made), ending)
            yield from accuracy_plots(draw, rows, bound, costs[costs["dataset"] == dataset])
    for (dataset, network), rows in groups_of(costs, ["dataset", "distil_network"]):
        draw = partial(_Lines, results, dataset, f"preset {results.preset}, distilled with {network}", dataset)
        yield from cost_plots(draw, rows)
    yield from anytime_plots(results)
    yield from heatmaps(results)


# ------------------------------------------------------------------------------------------------ lines


def accuracy_plots(draw: Any, rows: pd.DataFrame, bound: pd.DataFrame, costs: pd.DataFrame) -> Iterator[Plot]:
    """Yield accuracy over IPC, and over the seconds and memory of the distillation where they were measured."""
    plot = draw("accuracy_ipc", "Accuracy over images per class", "images per class", "test accuracy [%]")
    yield plot.finish(rows.assign(x=rows["ipc"].astype("float64")), "x", scale=100, bound=bound, ticks=True)
    memory = next((name for name in ("peak_device_MiB", "peak_host_MiB") if name in set(costs["column"])), "")
    axes = {
        "seconds": ("accuracy_time", "Accuracy over time to distil", "seconds to distil"),
        memory: ("accuracy_memory", "Accuracy over peak memory", f"peak {memory[5:].split('_')[0]} memory [MiB]"),
    }
    for metric, (name, title, words) in axes.items():
        spent = costs[costs["column"] == metric][["label", "ipc", "distil_network", "mean"]]
        joined = rows.merge(spent.rename(columns={"mean": "x"}), on=["label", "ipc", "distil_network"])
        joined = joined[joined["x"] > 0]
        if len(joined):
            plot = draw(name, title, f"{words} (numbers at points: images per class)", "test accuracy [%]")
            yield plot.finish(joined, "x", scale=100, bound=bound, points=True)


def cost_plots(draw: Any, costs: pd.DataFrame) -> Iterator[Plot]:
    """Yield seconds of an outer step and of the update of the set, and peak memory, over IPC."""
    axes = {
        "seconds_per_step": ("cost_step", "Time of an outer step", "seconds per outer step"),
        "seconds_per_step/set": ("cost_set_update", "Time to update the synthetic set", "seconds per outer step"),
        "peak_host_MiB": ("cost_host_memory", "Peak host memory", "MiB above the start"),
        "peak_device_MiB": ("cost_device_memory", "Peak device memory", "MiB"),
    }
    for metric, (name, title, words) in axes.items():
        rows = costs[(costs["column"] == metric) & costs["ipc"].notna() & (costs["mean"] > 0)]
        if len(rows):
            plot = draw(name, f"{title} over images per class", "images per class", words)
            plot.axes.set_yscale("log")
            yield plot.finish(rows.assign(x=rows["ipc"].astype("float64")), "x", ticks=True)


def anytime_plots(results: Results) -> Iterator[Plot]:
    """Yield accuracy over the seconds spent so far, where intermediate sets were evaluated; one plot per IPC."""
    records = results.records[(results.records["evaluator"] == "cost") & results.records["step"].notna()]
    by = ["dataset", "ipc", "distil_network", "recipe", "label"]
    accuracy = records[records["metric"] == "accuracy"].assign(flag=False)
    seconds = records[records["metric"] == "seconds"].groupby([*by[:3], "label", "step"])["value"].mean()
    if not len(accuracy) or not len(seconds):
        return
    found = summarise(accuracy, [*by, "network", "step"]).merge(
        seconds.rename("x").reset_index(), on=[*by[:3], "label", "step"]
    )
    for (dataset, ipc, network, recipe), rows in groups_of(found[found["x"] > 0], by[:4]):
        subtitle = _subtitle(results, ("last", recipe, rows["network"].iloc[0], network))
        draw = _Lines(
            results, f"{dataset}, IPC {ipc}", subtitle, file_name(dataset, ipc, recipe), "anytime",
            "Accuracy while distilling", "seconds since the start of the distillation", "test accuracy [%]",
        )  # fmt: skip
        yield draw.finish(rows, "x", scale=100)


class _Lines:
    """One plot with a line per method, its name beside the end of the line."""

    def __init__(
        self, results: Results, dataset: str, subtitle: str, ending: str, name: str, title: str, x: str, y: str
    ) -> None:
        self.results, self.name, self.title = results, f"{name}_{ending}", f"{title}, {dataset}"
        self.figure = Figure(figsize=(8, 5))
        self.axes = self.figure.add_axes((LEFT, 0.12, 0.82 - LEFT, 0.74))
        self.figure.text(LEFT, 0.945, self.title, fontsize=_title_size(self.title), fontweight="bold")
        words = f"{subtitle}; bars: 95 % interval, cut at the frame"
        self.axes.set_title("\n".join(textwrap.wrap(words, 100)), fontsize=9.5)
        self.axes.set(xlabel=x, ylabel=y)

    def finish(
        self,
        rows: pd.DataFrame,
        x: str,
        *,
        scale: float = 1.0,
        bound: pd.DataFrame | None = None,
        ticks: bool = False,
        points: bool = False,
    ) -> Plot:
        """Draw the lines of all methods and the bound; ticks: the x values are the ticks; points: write the IPC."""
        self.axes.set_xscale("log")
        if ticks:  # before anything is drawn: a single value has no range of its own
            self.axes.set_xlim(rows[x].min() / 1.2, rows[x].max() * 1.2)
        ends = []
        for label, line in groups_of(rows[rows[x].notna()], "label"):
            line = line.sort_values(x)
            index = self.results.labels.index(label)
            colour, mean = COLOURS[index % len(COLOURS)], scale * line["mean"]
            errors = [(mean - scale * line["low"]).clip(lower=0).fillna(0), (scale * line["high"] - mean).fillna(0)]
            style: dict[str, Any] = {"color": colour, "linestyle": STYLES[index // len(COLOURS) % len(STYLES)]}
            marker = MARKERS[index % len(MARKERS)]
            self.axes.errorbar(line[x], mean, yerr=errors, marker=marker, capsize=3, markersize=6, **style)
            ends.append((line[x].iloc[-1], mean.iloc[-1], label, colour))
            for at, height, ipc in zip(line[x], mean, line["ipc"], strict=True) if points else ():
                place = (5, -12)
                self.axes.annotate(str(ipc), (at, height), place, textcoords="offset points", fontsize=9, color=colour)
        if bound is not None and len(bound):
            height = scale * bound["mean"].mean()
            self.axes.axhline(height, color=BOUND, linewidth=1.2, linestyle=(0, (6, 3)))
            ends.append((None, height, "full dataset", BOUND))
        if ticks:
            values = sorted(rows[x].dropna().unique())
            self.axes.set_xticks(values, [f"{value:g}" for value in values])
            self.axes.xaxis.set_minor_locator(NullLocator())
        else:
            _plain_ticks(self.axes.xaxis)
        if self.axes.get_yscale() == "log":
            _plain_ticks(self.axes.yaxis)
        if scale == 100:  # the interval of two seeds can span many times the possible range
            heights = [end[1] for end in ends] + (scale * rows["mean"]).tolist()
            room = max(2.0, 0.08 * (max(heights) - min(heights)))
            self.axes.set_ylim(max(0.0, min(heights) - room), min(100.0, max(heights) + room))
        self.figure.set_size_inches(8, max(5.0, GAP * (len(ends) + 1) / 72 / 0.74))  # room for all names
        longest = max((len(label) for _, _, label, _ in ends), default=0)
        self.axes.set_position((LEFT, 0.12, 1 - LEFT - max(0.18, LETTER * (longest + 2)), 0.74))
        _name_lines(self.figure, self.axes, ends)
        return Plot(self.name, self.title, lambda: self.figure)


def _title_size(title: str) -> float:
    """Return the size at which a title has room: names of views of datasets can be long."""
    return min(14.0, 14.0 * 58 / len(title))


def _plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers: the powers of ten, on a short axis also 2 and 5 times those."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _name_lines(figure: Figure, axes: Axes, ends: Sequence[tuple[float | None, float, str, str]]) -> None:
    """Write the names right of the axes at the height of their last point, pushed apart where they would overlap."""
    axes.set_ylim(axes.get_ylim())
    box, point = axes.get_window_extent(), figure.dpi / 72
    starts = [axes.transData.transform((axes.get_xlim()[1] if x is None else x, y)) for x, y, _, _ in ends]
    places = spread([y for _, y in starts], GAP * point, box.y0, box.y1 - GAP / 2 * point)
    to_figure = figure.transFigure.inverted().transform
    for start, (_, _, label, colour), place in zip(starts, ends, places, strict=True):
        (begin, low), (end, high) = to_figure([tuple(start), (box.x1 + 10 * point, place)])
        figure.add_artist(Line2D((begin, end), (low, high), color=colour, linewidth=0.7, alpha=0.6))
        figure.text(end + 0.004, high, label, color=colour, fontweight="bold", va="center")


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return places near `heights` that keep the order, at least `gap` apart, within low to high where they fit."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    places = list(heights)
    below = low - gap
    for index in order:
        below = places[index] = max(places[index], below + gap)
    above = max(high, low + gap * (len(heights) - 1)) + gap
    for index in reversed(order):
        above = places[index] = min(places[index], above - gap)
    return places


# ------------------------------------------------------------------------------------------------ heatmaps


def heatmaps(results: Results) -> Iterator[Plot]:
    """Yield one heatmap per transfer table: methods x networks, the mean accuracy written into each field."""
    found = grid.summary(results, "cross_arch")
    fixed = ["selection", "recipe", "distil_network", "dataset", "ipc"]
    groups = list(groups_of(found[found["method"] != grid.WHOLE], fixed))
    mixed = len(groups) > len({key[3:] for key, _ in groups})
    for (selection, recipe, distil_network, dataset, ipc), rows in groups:
        networks = list(dict.fromkeys(rows["network"]))
        labels = [label for label in results.labels if label in set(rows["label"])]
        values = rows.pivot_table(index="label", columns="network", values="mean").reindex(labels, columns=networks)
        name = file_name("cross_arch", dataset, ipc, *((selection, recipe, distil_network) if mixed else ()))
        title = f"Transfer to other networks, {dataset}, IPC {ipc}"
        subtitle = _subtitle(results, (selection, recipe, "", distil_network))
        yield Plot(name, title, partial(_heatmap, values, title, subtitle))


def _heatmap(values: pd.DataFrame, title: str, subtitle: str) -> Figure:
    words = textwrap.wrap(f"{subtitle}; test accuracy [%]", 105)
    height = 1.9 + 0.2 * len(words) + 0.42 * len(values)
    figure = Figure(figsize=(8, height))
    left = max(0.17, LETTER * (max(map(len, values.index)) + 2))
    axes = figure.add_axes((left, 0.95 / height, 0.97 - left, 0.42 * len(values) / height))
    figure.text(0.03, 1 - 0.32 / height, title, fontsize=_title_size(title), fontweight="bold")
    figure.text(0.03, 1 - 0.45 / height, "\n".join(words), fontsize=10, color="#444444", va="top")
    numbers = 100 * values.to_numpy(dtype=float)
    axes.pcolormesh(numbers, cmap="cividis", edgecolors="face")  # no hairlines between fields
    axes.invert_yaxis()
    axes.grid(visible=False)
    middle = 0.45 * np.nanmin(numbers) + 0.55 * np.nanmax(numbers)
    rows, columns = (0.5 + np.arange(length) for length in numbers.shape)
    axes.set_xticks(columns, values.columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(rows, values.index)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, column in ((r, c) for r in range(numbers.shape[0]) for c in range(numbers.shape[1])):
        number = numbers[row, column]
        known = number == number
        dark = known and number < middle
        text = f"{number:.1f}" if known else DASH
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color="white" if dark else "black")
    return figure


def _subtitle(results: Results, made: Sequence[str]) -> str:
    selection, recipe, network, distil_network = made
    parts = [f"preset {results.preset}", {"last": "last epoch"}.get(selection, selection)]
    parts += [f"recipe {recipe}"] if recipe else []
    parts += [f"distilled with {distil_network}"] if distil_network else []
    parts += [f"evaluated with {network}"] if network and network != distil_network else []
    return ", ".join(part for part in parts if part)
