"""Readers and downloads of the published datasets in the form their authors give them out.

torchvision reads MNIST, Fashion-MNIST, SVHN and CIFAR and checks their md5 sums; the sets of image files (Tiny
ImageNet, CUB-200, ImageNet and its subsets) are listed here and decoded by `bench.data.sources`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import tv
from bench.data.arrays import Arrays, Split, channels_first
from bench.data.catalogue import Entry
from bench.data.sources import image_files, read_files, test_folder
from bench.errors import UserError

# ---------------------------------------------------------------------------------------------- through torchvision


def mnist(root: Path, entry: Entry) -> Arrays:
    """Read MNIST/raw as torchvision lays it out."""
    return _halves("MNIST", root, entry)


def fashion_mnist(root: Path, entry: Entry) -> Arrays:
    """Read FashionMNIST/raw as torchvision lays it out."""
    return _halves("FashionMNIST", root, entry)


def cifar10(root: Path, entry: Entry) -> Arrays:
    """Read the pickled batches cifar-10-batches-py/."""
    return _halves("CIFAR10", root, entry)


def cifar100(root: Path, entry: Entry) -> Arrays:
    """Read the pickled batches cifar-100-python/."""
    return _halves("CIFAR100", root, entry)


def svhn(root: Path, entry: Entry) -> Arrays:
    """Read train_32x32.mat and test_32x32.mat; torchvision moves the label 10 of the digit zero to 0."""
    halves = [_torchvision("SVHN", root, split=split) for split in ("train", "test")]
    train, test = (Split(np.ascontiguousarray(half.data), half.labels.astype(np.int64)) for half in halves)
    return Arrays(train, test, tuple("0123456789"))


def random_images(root: Path, entry: Entry) -> Arrays:
    """Read 300K_random_images.npy, uint8 [n, 32, 32, 3]; the last images are the test half."""
    path = root / entry.layouts[0].place
    try:
        images = channels_first(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"not a readable array: {error}", where=str(path)) from error
    parts = images[: -entry.info.test_size], images[-entry.info.test_size :]
    train, test = (Split(part, np.zeros(len(part), np.int64)) for part in parts)
    return Arrays(train, test, ("unlabelled",))


def _halves(name: str, root: Path, entry: Entry) -> Arrays:
    train, test = (_torchvision(name, root, train=train) for train in (True, False))
    splits = [Split(channels_first(half.data), np.asarray(half.targets, dtype=np.int64)) for half in (train, test)]
    return Arrays(splits[0], splits[1], tuple(train.classes))


def _torchvision(name: str, root: Path, **half: Any) -> Any:
    try:
        return getattr(tv.torchvision().datasets, name)(str(root), download=False, **half)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(
            f"{name} cannot be read: {error}", where=str(root), hint="delete it and get it again with ddbench data get"
        ) from error


# ---------------------------------------------------------------------------------------------- image files


def class_folders(path: Path, entry: Entry) -> Arrays:
    """Read train/<class>/ and val/<class>/ (or test/) below `path`, for the entry's classes in its order."""
    halves = (path / "train", test_folder(path))
    files = [[image_files(half / name) for name in entry.classes] for half in halves]
    return _read(files, entry.class_names, entry, path)


def imagenet(root: Path, entry: Entry) -> Arrays:
    """Read the entry's classes from a full or partial copy of ImageNet in imagenet/."""
    return class_folders(root / "imagenet", entry)


def tiny_imagenet(root: Path, entry: Entry) -> Arrays:
    """Read tiny-imagenet-200/: train/<class>/images/ and val/ with its annotations, or with class folders."""
    path = root / "tiny-imagenet-200"
    wnids = sorted(folder.name for folder in (path / "train").iterdir() if folder.is_dir())
    train = [image_files(path / "train" / wnid) for wnid in wnids]
    annotations = path / "val" / "val_annotations.txt"
    test: list[list[Path]] = [[] for _ in wnids]
    if annotations.is_file():
        for line in annotations.read_text().splitlines():
            file, wnid = line.split("\t")[:2]
            test[wnids.index(wnid)].append(path / "val" / "images" / file)
    else:
        test = [image_files(path / "val" / wnid) or image_files(path / "val" / "images" / wnid) for wnid in wnids]
    words = path / "words.txt"
    names = dict(line.split("\t", 1) for line in words.read_text().splitlines()) if words.is_file() else {}
    return _read([train, test], tuple(names.get(wnid, wnid) for wnid in wnids), entry, path)


def cub200(root: Path, entry: Entry) -> Arrays:
    """Read CUB_200_2011/ with the authors' lists of files, labels and split."""
    path = root / "CUB_200_2011"
    names, labels, split, classes = (
        dict(line.split(maxsplit=1) for line in (path / f"{part}.txt").read_text().splitlines() if line.strip())
        for part in ("images", "image_class_labels", "train_test_split", "classes")
    )
    order = sorted(classes, key=int)
    files: list[list[list[Path]]] = [[[] for _ in order], [[] for _ in order]]
    for image, name in names.items():
        files[0 if split[image].strip() == "1" else 1][order.index(labels[image].strip())].append(
            path / "images" / name.strip()
        )
    return _read(files, tuple(classes[number].strip() for number in order), entry, path)


def _read(files: Sequence[Sequence[Sequence[Path]]], names: tuple[str, ...], entry: Entry, where: Path) -> Arrays:
    channels, height, width = entry.info.shape
    return read_files(files, names, size=(height, width), channels=channels, where=where)


# ---------------------------------------------------------------------------------------------- downloads


def download_mnist(root: Path) -> None:
    """Fetch MNIST with torchvision."""
    _fetch("MNIST", root, train=True)


def download_fashion_mnist(root: Path) -> None:
    """Fetch Fashion-MNIST with torchvision."""
    _fetch("FashionMNIST", root, train=True)


def download_svhn(root: Path) -> None:
    """Fetch both halves of SVHN with torchvision."""
    _fetch("SVHN", root, split="train")
    _fetch("SVHN", root, split="test")


def download_cifar10(root: Path) -> None:
    """Fetch CIFAR-10 with torchvision."""
    _fetch("CIFAR10", root, train=True)


def download_cifar100(root: Path) -> None:
    """Fetch CIFAR-100 with torchvision."""
    _fetch("CIFAR100", root, train=True)


def download_imagenette2(root: Path) -> None:
    """Fetch ImageNette at full size with torchvision."""
    _fetch("Imagenette", root, split="train")


def download_imagewoof2(root: Path) -> None:
    """Fetch ImageWoof at full size from fast.ai."""
    _archive("https://s3.amazonaws.com/fast-ai-imageclas/imagewoof2.tgz", root)


def download_tiny_imagenet(root: Path) -> None:
    """Fetch Tiny ImageNet from Stanford."""
    _archive("http://cs231n.stanford.edu/tiny-imagenet-200.zip", root)


def download_cub200(root: Path) -> None:
    """Fetch CUB-200-2011 from Caltech."""
    _archive("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz", root)


def _fetch(name: str, root: Path, **half: Any) -> None:
    getattr(tv.torchvision().datasets, name)(str(root), download=True, **half)


def _archive(address: str, root: Path) -> None:
    tv.torchvision().datasets.utils.download_and_extract_archive(address, str(root))
