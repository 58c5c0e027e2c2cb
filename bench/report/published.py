"""Numbers others published, each with its source, and when they may stand beside ours.

A published number is comparable with a measured one only if both come from the same data, the same number of images,
the same networks and the same training of the evaluation network. The columns `network` and `recipe` of
`results/published/paper_accuracy.csv` say which of ours that is; where they are empty the source does not tell, and
the number is never shown beside ours. Files hold percents as printed by their source; frames hold fractions.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pandas as pd

from bench.errors import UserError
from bench.report import PUBLISHED
from bench.train import recipe as recipes

DATASETS = {
    "MNIST": "mnist",
    "FashionMNIST": "fashion_mnist",
    "SVHN": "svhn",
    "CIFAR10": "cifar10",
    "CIFAR100": "cifar100",
    "TinyImageNet": "tiny_imagenet",
    "ImageNet1K": "imagenet",
    "ImageNet-10": "imagenet_10",
    "ImageNet-100": "imagenet_100",
}
"""Names in the published tables -> names of `bench.data`; others are the same in lower case."""

REVIEW = ("convnet-in", "review")
"""Evaluation network and recipe of the accuracy table of Yu, Liu and Wang (2023), arXiv 2301.07014."""

SHAPES = {
    "accuracy": {"method", "dataset", "ipc", "mean", "std"},
    "cross_arch": {"method", "dataset", "ipc", "network", "mean", "std"},
    "cost": {"method", "dataset", "ipc", "metric", "value", "unit"},
}


@lru_cache(maxsize=1)
def load() -> pd.DataFrame:
    """Return the published accuracies with the names of the registries.

    Columns: method, dataset, ipc (Int64, missing for the whole dataset), mean and std (fractions, std may be
    missing), eval_net (in the words of the source), network and recipe (ours; empty where unknown), kind
    (primary: by the authors of the method; secondary: quoted; reproduction), source, verified, note.
    """
    frame = _read(PUBLISHED / "paper_accuracy.csv")
    frame["method"] = frame["method"].str.lower().str.replace("+", "-")
    frame["dataset"] = [DATASETS.get(name, name.lower()) for name in frame["dataset"]]
    frame["ipc"] = _number(frame["ipc"].replace("all", "")).astype("Int64")
    for column in ("mean", "std"):
        frame[column] = _number(frame[column]) / 100
    return frame


def beside(dataset: str, network: str, recipe: str) -> pd.DataFrame:
    """Return the published rows whose data, evaluation network and training are those of a table of ours.

    Distillation uses the same network as evaluation in all of these rows. A part of a dataset has no such rows.
    """
    frame = load()
    known = {name: recipes.label(recipes.resolve(name)) for name in frame["recipe"].unique() if name in recipes.RECIPES}
    same = frame["recipe"].map(known) == recipe  # several papers may share one way of training
    return frame[same & (frame["dataset"] == dataset) & (frame["network"] == network) & (frame["kind"] == "primary")]


def read_reference(path: Path) -> tuple[str, pd.DataFrame]:
    """Read a table that the user filled; return its shape (accuracy, cross_arch, cost) and its filled rows.

    Columns as in `SHAPES`; mean and std in the file are percents, in the frame fractions. Raises `UserError` for a
    missing file, other columns, and values that are no percents.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such file: {path}", where="--reference")
    try:
        frame = _read(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"not a CSV file: {error}", where=str(path)) from error
    shape = next((name for name, columns in reversed(SHAPES.items()) if columns <= set(frame.columns)), None)
    if shape is None:
        wanted = "; ".join(",".join(sorted(columns)) for columns in SHAPES.values())
        raise UserError(f"the columns are {','.join(frame.columns)}", where=str(path), hint=f"one of: {wanted}")
    numbers = ["value"] if shape == "cost" else ["mean", "std"]
    try:
        frame["ipc"] = _number(frame["ipc"]).astype("Int64")
        for column in numbers:
            frame[column] = _number(frame[column])
    except (ValueError, TypeError) as error:
        raise UserError(str(error), where=str(path), hint="numbers, or nothing where unknown") from error
    frame = frame[frame[numbers[0]].notna()].reset_index(drop=True)
    if shape != "cost" and len(frame):
        if not frame["mean"].between(0, 100).all() or frame["mean"].max() <= 1:
            raise UserError("the column mean must hold percents", where=str(path), hint="91.7, not 0.917")
        frame[numbers] /= 100
    if frame.duplicated([c for c in ("method", "dataset", "ipc", "network", "metric") if c in frame]).any():
        raise UserError("a cell is given twice", where=str(path))
    return shape, frame


def _read(path: Path) -> pd.DataFrame:
    """Read a CSV as text: nothing is guessed."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _number(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column.replace("", None))
