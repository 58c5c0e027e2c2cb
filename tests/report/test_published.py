"""The shipped numbers of others: complete, sane, unique; and reading a table the user filled."""

from __future__ import annotations

import pandas as pd
import pytest

from bench.errors import UserError
from bench.report import PUBLISHED, published
from bench.train.recipe import RECIPES


def test_every_row_has_a_source_and_sane_values():
    frame = published.load()
    assert len(frame) == 455
    assert frame["source"].str.len().min() > 10
    assert (frame["verified"] == "yes").all()
    assert frame["kind"].isin(["primary", "secondary", "reproduction"]).all()
    assert frame["mean"].between(0.01, 1).all()
    assert frame["std"].dropna().between(0, 0.05).all()
    assert not frame.apply(lambda column: column.astype(str).str.contains("memory")).any(axis=None)


def test_names_are_those_of_the_registries():
    frame = published.load()
    assert {"dc", "dsa", "dm", "mtt", "kip", "frepo", "random", "whole"} <= set(frame["method"])
    assert {"mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "tiny_imagenet"} <= set(frame["dataset"])
    assert frame["method"].str.fullmatch(r"[a-z0-9-]+").all()
    assert frame["dataset"].str.fullmatch(r"[a-z0-9_]+").all()
    assert frame["ipc"].isna().sum() == (frame["method"] == "whole").sum()
    assert frame["ipc"].dropna().between(1, 1250).all()


def test_no_number_is_given_twice():
    frame = published.load()
    assert not frame.duplicated(["method", "dataset", "ipc", "eval_net", "source"]).any()


def test_only_known_protocols_can_stand_beside_ours():
    frame = published.load()
    comparable = frame[frame["recipe"] != ""]
    assert set(comparable["recipe"]) <= set(RECIPES)
    assert (comparable["network"] == "convnet-in").all()
    assert (comparable["kind"] == "primary").all()
    assert not comparable.duplicated(["method", "dataset", "ipc", "network", "recipe"]).any()


def test_a_value_against_its_source():
    """Table 'Performance' of the readme of VICO-UoE/DatasetCondensation: DSA, CIFAR-10, 10 images per class."""
    found = published.beside("cifar10", "convnet-in", "review")
    row = found[(found["method"] == "dsa") & (found["ipc"] == 10)]
    assert row["mean"].tolist() == [pytest.approx(0.521)]


@pytest.mark.parametrize("shape", published.SHAPES)
def test_the_review_tables_are_empty_shapes(shape):
    path = PUBLISHED / f"review_{shape}.csv"
    assert set(pd.read_csv(path).columns) == published.SHAPES[shape]
    found, frame = published.read_reference(path)
    assert (found, len(frame)) == (shape, 0)


def test_a_filled_table_is_read_in_fractions(tmp_path):
    lines = (PUBLISHED / "review_accuracy.csv").read_text().splitlines()
    lines[1] = lines[1].replace(",,", ",95.5,0.25")
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    shape, frame = published.read_reference(tmp_path / "mine.csv")
    row = frame.iloc[0]
    assert (shape, len(frame)) == ("accuracy", 1)
    assert (row["method"], row["dataset"], row["ipc"]) == ("dd", "mnist", 1)
    assert (row["mean"], row["std"]) == pytest.approx((0.955, 0.0025))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("a,b\n1,2\n", "the columns are a,b"),
        ("method,dataset,ipc,mean,std\ndc,mnist,1,0.9,\n", "91.7, not 0.917"),
        ("method,dataset,ipc,mean,std\ndc,mnist,1,190,\n", "percents"),
        ("method,dataset,ipc,mean,std\ndc,mnist,1,high,\n", "numbers, or nothing"),
        ("method,dataset,ipc,mean,std\ndc,mnist,1,90,\ndc,mnist,1,91,\n", "given twice"),
        (b"\xff\xfe\x00", "not a CSV file"),
        ("", "not a CSV file"),
    ],
)
def test_bad_reference_files(tmp_path, text, words):
    path = tmp_path / "mine.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words):
        published.read_reference(path)
