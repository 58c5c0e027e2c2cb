"""Readers of the open forms of data: `.npz` archives, folders of images, and the sets that need no file.

Every reader returns `Arrays`. Images are decoded with Pillow, several at a time. No torch here, so that facts on the
user's own data are found while planning.
"""

from __future__ import annotations

import importlib.util
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bench.data.arrays import Arrays, Split, channels_first
from bench.errors import UserError

NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
NPZ_HINT = "it needs uint8 images x_train, x_test [n, h, w, c] and whole-number labels y_train, y_test [n]"
DAMAGED = (OSError, ValueError, EOFError, TypeError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
TEST_NAMES = ("test", "val", "validation")

# ---------------------------------------------------------------------------------------------- npz


def read_npz(path: Path) -> Arrays:
    """Read an archive with x_train, y_train, x_test, y_test and, if there, class_names, g_train, g_test (groups).

    Images are uint8 [n, h, w, c] or [n, h, w]. Raises `UserError` where the file is damaged or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := [key for key in NPZ_KEYS if key not in archive.files]:
                raise UserError(f"no array {', '.join(missing)} in this archive", where=str(path), hint=NPZ_HINT)
            found = {key: archive[key] for key in archive.files if not key.startswith("_")}
    except DAMAGED as error:
        raise UserError(f"not a readable .npz archive: {error}", where=str(path), hint=NPZ_HINT) from error
    train, test = (_npz_half(found, half, path) for half in ("train", "test"))
    classes = int(train.labels.max(initial=-1)) + 1
    names = found.get("class_names", np.arange(classes))
    return Arrays(train, test, tuple(str(name) for name in names))


def _npz_half(found: dict[str, np.ndarray], half: str, path: Path) -> Split[np.ndarray]:
    labels = _whole(found[f"y_{half}"], f"y_{half}", path)
    groups = _whole(found[f"g_{half}"], f"g_{half}", path) if f"g_{half}" in found else None
    return Split(channels_first(found[f"x_{half}"]), labels, groups)


def _whole(values: np.ndarray, name: str, path: Path) -> np.ndarray:
    if values.dtype.kind not in "iu":
        raise UserError(f"{name} is {values.dtype}, not whole numbers", where=str(path), hint=NPZ_HINT)
    return values.astype(np.int64)


# ---------------------------------------------------------------------------------------------- folders of images


def read_folder(path: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> Arrays:
    """Read train/<class>/ and test/<class>/ (or val/) below `path`.

    size: (height, width) to scale and crop to; None: all images must have one size. channels: 1 or 3; None: grey if
    all images are. Raises `UserError` where a folder or an image is missing or damaged.
    """
    train, test = path / "train", test_folder(path)
    for half in (train, test):
        if not half.is_dir():
            raise UserError(
                f"no folder {half.name}/ here", where=str(path), hint="expected train/<class>/ and test/<class>/"
            )
    names = tuple(sorted(folder.name for folder in train.iterdir() if folder.is_dir()))
    strangers = {folder.name for folder in test.iterdir() if folder.is_dir()} - set(names)
    if strangers:
        raise UserError(f"class {min(strangers)!r} is in {test.name}/ but not in train/", where=str(path))
    files = [[image_files(half / name) for name in names] for half in (train, test)]
    return read_files(files, names, size=size, channels=channels, where=path)


def test_folder(path: Path) -> Path:
    """Return the folder of the test images below `path`, whatever it is called."""
    return next((path / name for name in TEST_NAMES if (path / name).is_dir()), path / "test")


def image_files(folder: Path) -> list[Path]:
    """Return all images below `folder`, by name; empty where there is no such folder."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)


def read_files(
    files: Sequence[Sequence[Sequence[Path]]],
    class_names: tuple[str, ...],
    *,
    size: tuple[int, int] | None,
    channels: int | None,
    where: Path,
) -> Arrays:
    """Decode `files[half][class]` (half 0: train, 1: test) to `Arrays`; `size` and `channels` as in `read_folder`."""
    flat = [[file for group in half for file in group] for half in files]
    if not flat[0] or not flat[1]:
        raise UserError("no images for training or for testing", where=str(where))
    if size is None or channels is None:
        found_size, found_channels = _common(flat[0] + flat[1], size, where)
        size, channels = size or found_size, channels or found_channels
    halves = []
    for half, group in zip(flat, files, strict=True):
        labels = np.repeat(np.arange(len(group), dtype=np.int64), [len(part) for part in group])
        halves.append(Split(_decode_all(half, size, channels), labels))
    return Arrays(halves[0], halves[1], class_names)


def _common(files: Sequence[Path], size: tuple[int, int] | None, where: Path) -> tuple[tuple[int, int], int]:
    """Return the common (height, width) and the channels of images, reading only their headers."""
    sizes, modes = set(), set()
    for file in files:
        with _open(file) as image:
            sizes.add((image.height, image.width))
            modes.add(image.mode)
    if size is None and len(sizes) > 1:
        raise UserError(
            f"images have {len(sizes)} different sizes", where=str(where), hint=f"give one size: folder:{where}@64"
        )
    return min(sizes), 1 if modes <= {"1", "L", "LA"} else 3


def _decode_all(files: Sequence[Path], size: tuple[int, int], channels: int) -> np.ndarray:
    out = np.empty((len(files), channels, *size), dtype=np.uint8)

    def decode(index: int) -> None:
        out[index] = _decode(files[index], size, channels)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without the interpreter lock
        for _ in pool.map(decode, range(len(files))):
            pass
    return out


def _decode(file: Path, size: tuple[int, int], channels: int) -> np.ndarray:
    """Return one image uint8 [c, h, w]; the largest centred part of the wanted proportions, scaled bilinearly."""
    with _open(file) as image:
        try:
            picture = image.convert("L" if channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"damaged image: {error}", where=str(file), hint="replace or remove it") from error
    if (picture.height, picture.width) != size:
        picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(*size, channels).transpose(2, 0, 1)


def _open(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"not a readable image: {error}", where=str(file), hint="replace or remove it") from error


# ---------------------------------------------------------------------------------------------- without files


def digits_home() -> Path:
    """Return the file of scikit-learn that holds the digits, without importing scikit-learn."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("scikit-learn, which holds the digits, is not installed", hint="pip install scikit-learn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return file if file.is_file() else Path(package.origin)


def digits() -> Arrays:
    """Return the 8x8 digits; every fifth image of each class, in file order, is for testing.

    The writers' images follow each other in the file, so both halves know all writers. Grey values 0..16 become
    0..255.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        held_out[np.flatnonzero(labels == label)[4::5]] = True
    return Arrays(
        Split(images[~held_out], labels[~held_out]),
        Split(images[held_out], labels[held_out]),
        tuple(str(name) for name in bunch.target_names),
    )


def debug_home() -> Path:
    """Return the file that makes the debug set: this one."""
    return Path(__file__)


def debug() -> Arrays:
    """Return 300 + 100 images 3x8x8 of ten classes: a fixed random pattern per class, mixed half and half with noise.

    Raw 64-bit words of PCG64 are used as bytes: this stream is the same in every NumPy, unlike derived draws.
    """
    source = np.random.PCG64(20240229)

    def noise(count: int) -> np.ndarray:
        return source.random_raw(count * 24).view(np.uint8).reshape(count, 3, 8, 8).astype(np.uint16)

    patterns = noise(10)

    def half(per_class: int) -> Split[np.ndarray]:
        labels = np.repeat(np.arange(10, dtype=np.int64), per_class)
        images = ((patterns[labels] + noise(len(labels))) // 2).astype(np.uint8)
        return Split(images, labels, np.arange(len(labels), dtype=np.int64) % 2)

    train, test = half(30), half(10)
    return Arrays(train, test, tuple(f"pattern {label}" for label in range(10)))
