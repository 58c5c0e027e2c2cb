"""How the measures of each evaluator become tables: declared, one layout per table.

A layout says how the measures of an evaluator become a table with a row for each method and IPC: which metrics are
shown and which of two values is better, which tag heads groups of columns, which tags make rows of their own. Tags
that a layout does not name are never averaged over: they split the table. `bench.report.measures` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Shown:
    """A metric as a layout shows it: the title of its columns, and whether high or low values are the better ones."""

    title: str
    better: Literal["high", "low", ""] = ""


@dataclass(frozen=True)
class Layout:
    """One table of an evaluator.

    title: what the table is about.
    metrics: those shown, in this order.
    name: tells the tables of one evaluator apart in file names.
    columns: the tag whose values head a group of columns each.
    means: a tag that gathers those values; where it gathers several they get a further group of columns, the mean over
        them within every network. noun: what those values are, for its heading.
    rows: tags whose values make rows of their own, with the title of their header column.
    only: tag -> values by preference; the first that occurs is shown.
    missing: the metric that stands for what could not be measured, its tags saying what and why; it becomes notes.
    together: columns of MADE that may differ between the rows of one table.
    intervals: whether the 95 % intervals stand in the table.
    notes: further notes.
    """

    title: str
    metrics: Mapping[str, Shown]
    name: str = ""
    columns: str = ""
    means: str = ""
    noun: str = ""
    rows: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    missing: str = ""
    together: Sequence[str] = ()
    intervals: bool = False
    notes: tuple[str, ...] = ()


LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "ood": (
        Layout(
            "OOD detection by one score",
            {
                "auroc": Shown("AUROC", "high"),
                "fpr95_ood_pos": Shown("FPR95", "low"),
                "fpr95_ood_pos_nearest": Shown("FPR95, nearest", "low"),
            },
            columns="ood",
            means="group",
            noun="sets",
            only={"score": ("msp",)},
            missing="skipped",
            notes=("FPR95: test images flagged at the threshold that finds 95 % of the OOD images",),
        ),
        Layout(
            "AUROC of OOD detection by score",
            {"auroc": Shown("AUROC", "high")},
            name="scores",
            columns="ood",
            means="group",
            noun="sets",
            rows={"score": "score", "fit": "fitted on"},
        ),
    ),
    "subgroup": (
        Layout(
            "Accuracy by groups of test images",
            {
                "accuracy": Shown("accuracy", "high"),
                "class_min": Shown("worst class", "high"),
                "cluster_min": Shown("worst", "high"),
                "cluster_mean": Shown("mean", "high"),
                "cluster_gap": Shown("gap", "low"),
                "group_min": Shown("worst", "high"),
                "group_mean": Shown("mean", "high"),
                "group_gap": Shown("gap", "low"),
                "group_adjusted": Shown("adjusted", "high"),
                "small_groups": Shown("small groups"),
            },
            columns="groups",
            notes=(
                "groups: k-means of test pixels, of test features, or given with the data; gap: accuracy minus worst; "
                "adjusted: weighted as in training; the worst of small groups is low by chance",
            ),
        ),
    ),
    "corruption": (
        Layout(
            "Accuracy on corrupted test images",
            {"corruption_accuracy": Shown("accuracy", "high")},
            columns="corruption",
        ),
        Layout(
            "Accuracy on common corruptions, mean over severities",
            {
                "common_accuracy": Shown("accuracy", "high"),
                "mean_corruption_error": Shown("mean error", "low"),
                "relative_corruption_error": Shown("mean error minus clean error", "low"),
            },
            name="common",
            columns="corruption",
            notes=("mean error: over the corruptions of this table, not divided by that of a reference network",),
        ),
    ),
    "membership": (
        Layout(
            "Membership inference, AUC of the attack",
            {"mia_auc": Shown("AUC", "low"), "mia_auc_null": Shown("deviation of a guess")},
            columns="attack",
            missing="skipped",
            notes=("0.5 is a guess; members: training images, others: test images",),
        ),
        Layout(
            "Membership inference, members found at a low rate of false alarms",
            {"mia_tpr": Shown("found", "low")},
            name="tpr",
            columns="attack",
            rows={"rate": "false alarms"},
        ),
        Layout(
            "Accuracy on members and others",
            {"member_accuracy": Shown("members"), "other_accuracy": Shown("others", "high")},
            name="accuracy",
        ),
    ),
    "lira": (
        Layout(
            "Membership inference by LiRA",
            {"lira_auc": Shown("AUC", "low"), "lira_balanced_accuracy": Shown("balanced accuracy", "low")},
            columns="attack",
            missing="skipped",
            notes=("0.5 is a guess; threshold: one for all images",),
        ),
        Layout(
            "LiRA, members found at a low rate of false alarms",
            {
                "lira_tpr": Shown("found", "low"),
                "lira_tpr_low": Shown("95 % low"),
                "lira_tpr_high": Shown("95 % high"),
            },
            name="tpr",
            columns="attack",
            rows={"rate": "false alarms"},
        ),
    ),
    "ddranking": (
        Layout(
            "DD-Ranking scores",
            {
                "lrs": Shown("LRS", "high"),
                "ars": Shown("ARS", "high"),
                "hlr": Shown("HLR", "low"),
                "ior": Shown("IOR", "high"),
            },
            rows={"own": "own protocol", "baseline": "against"},
            together=("distil_network",),
            intervals=True,
            notes=(
                "HLR: points of accuracy lost to all real images on hard labels; IOR: points gained over random "
                "images under the own protocol; LRS and ARS: both in one, robust to soft labels and to augmentation; "
                "26.9 is the score of no difference",
                "selection last: rates chosen on real training images; best-test: rates and epochs on the test set",
            ),
        ),
        Layout(
            "Accuracies behind the DD-Ranking scores",
            {"accuracy": Shown("accuracy"), "rate": Shown("rate")},
            name="runs",
            columns="run",
            rows={"baseline": "against"},
            together=("distil_network", "recipe"),
            notes=(
                "own: the own protocol; turned: the same without augmentation, or with it where that has none; random: "
                "random images; hard: soft labels made hard; rate: mean learning rate that was chosen",
            ),
        ),
        Layout(
            "Differences behind the DD-Ranking scores",
            {"alpha": Shown("of LRS", "high"), "beta": Shown("of ARS", "high")},
            name="differences",
            rows={"own": "own protocol", "baseline": "against"},
            together=("distil_network",),
            intervals=True,
        ),
    ),
    "continual": (
        Layout(
            "Class-incremental learning",
            {
                "continual_accuracy": Shown("accuracy", "high"),
                "average_accuracy": Shown("average", "high"),
                "forgetting": Shown("forgetting", "low"),
            },
            columns="classes",
            rows={"steps": "steps"},
            notes=(
                "columns: accuracy on the classes seen so far; forgetting: that on classes when new minus at the end",
            ),
        ),
    ),
}
"""Evaluator -> its tables."""
