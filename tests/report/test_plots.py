"""Plots: what is drawn is what the tables say, names do not overlap, files are there and repeat."""

from __future__ import annotations

import itertools

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_run import make_run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import bench.report
from bench.report import beside, grid, plots


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return bench.report.load(make_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def figures(run):
    with matplotlib.rc_context(plots.SETTINGS):
        return {plot.name: plot.draw() for plot in plots.all_plots(run)}


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def test_the_plots_of_a_run(figures):
    kinds = ("accuracy_ipc", "accuracy_time", "accuracy_memory", "cost_step", "cost_set_update", "cost_host_memory")
    for kind, dataset in itertools.product(kinds, ("mnist", "cifar10")):
        assert f"{kind}_{dataset}" in figures
    assert {"cross_arch_mnist_10", "cross_arch_cifar10_10", "anytime_cifar10_50_review"} <= set(figures)


def test_every_plot_names_its_preset(figures):
    for name, figure in figures.items():
        assert any("preset laptop" in text for text in texts(figure)), name


def test_accuracy_over_ipc_draws_means_and_intervals(run, figures):
    axes = figures["accuracy_ipc_mnist"].axes[0]
    found = grid.summary(run, "accuracy")
    for container in axes.containers:
        line, _, (bars,) = container
        rows = found[(found["dataset"] == "mnist") & (abs(100 * found["mean"] - line.get_ydata()[0]) < 1e-9)]
        label = rows["label"].iloc[0]
        own = found[(found["dataset"] == "mnist") & (found["label"] == label)].sort_values("ipc")
        assert line.get_xdata().tolist() == [1, 10, 50]
        assert line.get_ydata() == pytest.approx(100 * own["mean"].to_numpy())
        ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
        assert ends == [pytest.approx([100 * row.low, 100 * row.high]) for row in own.itertuples()]
    assert len(axes.containers) == 4
    assert {"random", "dc", "dsa", "dm", "full dataset"} <= set(texts(figures["accuracy_ipc_mnist"]))


def test_a_method_keeps_its_colour(run, figures):
    colours = {}
    for figure in figures.values():
        for text in figure.texts:
            if text.get_text() in run.labels:
                colours.setdefault(text.get_text(), set()).add(text.get_color())
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == len(colours) > 3


def test_the_name_of_an_axis_is_inside_the_picture(figures):
    logarithmic = [figure for figure in figures.values() if figure.axes[0].get_yscale() == "log"]
    assert logarithmic
    for figure in logarithmic:
        axes = figure.axes[0]
        before = axes.get_ylim()
        axes.set_ylim(4e-4, 1)  # the longest ticks that are common: 0.0005
        FigureCanvasAgg(figure).draw()
        assert axes.yaxis.label.get_window_extent().x0 >= 0
        assert axes._left_title.get_window_extent().x1 <= figure.bbox.x1
        axes.set_ylim(before)


def test_the_heatmap_prints_every_mean(run, figures):
    found = grid.summary(run, "cross_arch")
    expected = [f"{100 * mean:.1f}" for mean in found[found["dataset"] == "mnist"]["mean"]]
    written = texts(figures["cross_arch_mnist_10"])
    assert sorted(text for text in written if text.replace(".", "").isdigit()) == sorted(expected)


def test_files(run, tmp_path, monkeypatch):
    chosen = list(itertools.islice(plots.all_plots(run), 1))
    monkeypatch.setattr(plots, "all_plots", lambda results: iter(chosen))
    ((name, _),) = plots.write(run, tmp_path)
    first = (tmp_path / f"{name}.svg").read_bytes()
    assert first.startswith(b"<?xml")
    assert Image.open(tmp_path / f"{name}.png").width >= 800
    plots.write(run, tmp_path)
    assert (tmp_path / f"{name}.svg").read_bytes() == first


@pytest.fixture
def several(run, monkeypatch):
    """Four plots, which is enough for three processes."""
    chosen = list(itertools.islice(plots.all_plots(run), 4))
    monkeypatch.setattr(plots, "all_plots", lambda results: iter(chosen))
    monkeypatch.setattr(plots, "MANY", 4)
    monkeypatch.setattr(plots, "usable_cores", lambda: 3)
    monkeypatch.setattr(beside, "can_fork", lambda: True)
    return chosen


def test_several_processes_write_the_same_files(run, several, tmp_path, monkeypatch):
    names = plots.write(run, tmp_path / "many")
    monkeypatch.setattr(plots, "usable_cores", lambda: 1)
    assert plots.write(run, tmp_path / "one") == names
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 2 * len(several)
    assert files == sorted(path.name for path in (tmp_path / "many").iterdir())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes() for name in files)


def test_what_another_process_cannot_write_is_an_error_here(run, several, tmp_path, capfd):
    (tmp_path / f"{several[1].name}.png").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        plots.write(run, tmp_path)
    assert "Traceback" not in capfd.readouterr().err


@given(st.lists(st.floats(0, 300), max_size=20))
def test_names_do_not_overlap_and_keep_their_order(heights):
    places = plots.spread(heights, 15, 0, 300)
    ordered = [place for _, place in sorted(zip(heights, places, strict=True))]
    assert all(b - a >= 15 - 1e-6 for a, b in itertools.pairwise(sorted(places)))
    assert ordered == pytest.approx(sorted(places)) or len(set(heights)) < len(heights)
    assert all(-1e-6 <= place <= 300 + 1e-6 for place in places)
