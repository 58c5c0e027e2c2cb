"""A tiny dataset for the tests of the trainer."""

from __future__ import annotations

import pytest
import torch

from bench.api import DatasetInfo


@pytest.fixture
def info() -> DatasetInfo:
    return DatasetInfo(
        name="tiny", title="tiny", source="made here", licence="none", classes=3, shape=(1, 8, 8), train_size=20,
        test_size=9, mean=(0.5,), std=(0.5,), constants_source="made here", flip=False, content=None, family="tiny",
    )  # fmt: skip


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 0, 1, 1, 2, 2, 0])
