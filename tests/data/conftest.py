"""Data tests keep their cache and their data root to themselves; real data is used where DDBENCH_DATA has it."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data import lookup

REAL = Path(os.environ.get("DDBENCH_DATA") or "/nonexistent")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty data root and an empty cache."""
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def real(monkeypatch):
    """Ask for a real dataset by name; skips where it is not on this machine."""

    def use(name: str) -> str:
        if not (REAL / f"{name}.npz").is_file():
            pytest.skip(f"{name}.npz is not in DDBENCH_DATA ({REAL})")
        monkeypatch.setenv("DDBENCH_DATA", str(REAL))
        return name

    return use


@pytest.fixture
def small(monkeypatch):
    """Shrink the declared sizes of a known dataset, so that a few images of the right format stand for it."""

    def shrink(name: str, train: int, test: int, **changes) -> str:
        entry = lookup.entries()[name]
        info = entry.info.model_copy(update={"train_size": train, "test_size": test, **changes})
        fields = {f: getattr(entry, f) for f in entry.__dataclass_fields__}
        monkeypatch.setitem(lookup.entries(), name, type(entry)(**{**fields, "info": info}))
        return name

    return shrink


@pytest.fixture
def arrays():
    """Make the arrays of an archive: `n` images of each of `classes` classes for training, one for testing."""

    def make(n=4, classes=3, size=5, channels=3, seed=0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        y_train, y_test = np.repeat(np.arange(classes), n), np.arange(classes)
        shape = (size, size, channels)
        return {
            "x_train": rng.integers(0, 256, (len(y_train), *shape), dtype=np.uint8),
            "y_train": y_train,
            "x_test": rng.integers(0, 256, (classes, *shape), dtype=np.uint8),
            "y_test": y_test,
        }

    return make


@pytest.fixture
def picture():
    """Write one image file of a plain colour, and return the colour."""

    def write(file: Path, colour=(10, 200, 30), size=(8, 8), mode="RGB"):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, colour).save(file)
        return colour

    return write
