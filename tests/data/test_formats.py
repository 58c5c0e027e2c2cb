"""Readers of the published formats, each on a few images in exactly that format."""

import pickle
import struct

import numpy as np
import pytest
import scipy.io
import torch

import bench.data
from bench import tv
from bench.data import formats, imagenet, lookup
from bench.errors import UserError

RNG = np.random.default_rng(0)


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def idx(file, values):
    """Write the IDX format of MNIST."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    file.write_bytes(header + values.astype(np.uint8).tobytes())


def as_set(images, labels):
    """Return images with labels as a set, whatever their order."""
    return {(np.asarray(image).tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}


def holds(split, images, labels):
    """Check a loaded half against images [n, c, h, w]."""
    assert split.images.shape == images.shape
    assert as_set(split.images.numpy(), split.labels) == as_set(np.ascontiguousarray(images), labels)


def test_fashion_mnist(root, small):
    x, y = pixels(20, 28, 28), np.arange(20) % 10
    for prefix, part in (("train", slice(0, 20)), ("t10k", slice(0, 10))):
        idx(root / "FashionMNIST" / "raw" / f"{prefix}-images-idx3-ubyte", x[part])
        idx(root / "FashionMNIST" / "raw" / f"{prefix}-labels-idx1-ubyte", y[part])
    dataset = bench.data.load(small("fashion_mnist", 20, 10))
    holds(dataset.train, x[:, None], y)
    holds(dataset.test, x[:10, None], y[:10])
    assert dataset.class_names[9] == "Ankle boot"


def test_svhn(root, small, monkeypatch):
    monkeypatch.setattr(tv.torchvision().datasets.svhn, "check_integrity", lambda path, md5: True)
    x, y = pixels(20, 3, 32, 32), np.arange(20) % 10
    for half, part in (("train", slice(0, 20)), ("test", slice(0, 10))):
        stored = {"X": x[part].transpose(2, 3, 1, 0), "y": np.where(y[part] == 0, 10, y[part])[:, None]}
        scipy.io.savemat(root / f"{half}_32x32.mat", stored)
    dataset = bench.data.load(small("svhn", 20, 10))
    holds(dataset.train, x, y)
    holds(dataset.test, x[:10], y[:10])


@pytest.mark.parametrize(
    ("name", "folder", "key"),
    [("cifar10", "cifar-10-batches-py", "labels"), ("cifar100", "cifar-100-python", "fine_labels")],
)
def test_cifar(root, small, monkeypatch, name, folder, key):
    monkeypatch.setattr(tv.torchvision().datasets.cifar, "check_integrity", lambda path, md5=None: True)
    classes = bench.data.info(name).classes
    batches = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"] if name == "cifar10" else ["train", "test"]
    meta = ("batches.meta", "label_names") if name == "cifar10" else ("meta", "fine_label_names")
    (root / folder).mkdir()
    written = {}
    for batch in batches:
        written[batch] = pixels(classes, 3, 32, 32)
        content = {"data": written[batch].reshape(classes, -1), key: list(range(classes))}
        (root / folder / batch).write_bytes(pickle.dumps(content))
    names = [f"class {k}" for k in range(classes)]
    (root / folder / meta[0]).write_bytes(pickle.dumps({meta[1]: names}))
    train = np.concatenate([written[batch] for batch in batches[:-1]])
    dataset = bench.data.load(small(name, len(train), classes, content=None))
    holds(dataset.train, train, np.tile(np.arange(classes), len(batches) - 1))
    holds(dataset.test, written[batches[-1]], np.arange(classes))
    assert dataset.class_names == tuple(names)


def test_damaged_torchvision_files_give_a_remedy(root):
    (root / "cifar-10-batches-py").mkdir()
    (root / "cifar-10-batches-py" / "batches.meta").write_bytes(b"x")
    with pytest.raises(UserError, match=r"CIFAR10 cannot be read.*get it again"):
        bench.data.load("cifar10")


@pytest.mark.parametrize("annotated", [True, False])
def test_tiny_imagenet(root, small, picture, annotated):
    top = root / "tiny-imagenet-200"
    wnids, lines = ["n02", "n01"], []
    for number, wnid in enumerate(wnids):
        for k in range(2):
            picture(top / "train" / wnid / "images" / f"{wnid}_{k}.png", (number, k, 0), size=(64, 64))
        place = top / "val" / "images" if annotated else top / "val" / wnid / "images"
        picture(place / f"val_{number}.png", (number, 9, 0), size=(64, 64))
        lines.append(f"val_{number}.png\t{wnid}\t0\t0\t62\t62")
    if annotated:
        (top / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (top / "words.txt").write_text("n01\tgoldfish, Carassius\nn02\tbullfrog\nn03\tother\n")
    dataset = bench.data.load(small("tiny_imagenet", 4, 2, classes=2))
    assert dataset.class_names == ("goldfish, Carassius", "bullfrog")
    for half in (dataset.train, dataset.test):  # the first channel tells the folder: n02 is 0, n01 is 1
        assert torch.equal(half.images[:, 0, 0, 0].long(), 1 - half.labels)
    assert dataset.test.images[:, 1, 5, 5].tolist() == [9, 9]


def test_cub200_uses_the_authors_split(root, small, picture):
    top = root / "CUB_200_2011"
    names = ["001.Albatross/a.png", "001.Albatross/b.png", "002.Auklet/c.png", "002.Auklet/d.png"]
    for number, name in enumerate(names):
        picture(top / "images" / name, (number, 0, 0), size=(50, 40))
    for part, values in (
        ("images", names),
        ("image_class_labels", [1, 1, 2, 2]),
        ("train_test_split", [1, 0, 0, 1]),
    ):
        (top / f"{part}.txt").write_text("".join(f"{k + 1} {value}\n" for k, value in enumerate(values)))
    (top / "classes.txt").write_text("1 001.Albatross\n2 002.Auklet\n")
    dataset = bench.data.load(small("cub200", 2, 2, classes=2))
    assert dataset.train.images.shape == (2, 3, 32, 32)
    assert as_set(dataset.train.images[:, 0, 0, 0], dataset.train.labels) == as_set(np.uint8([0, 3]), [0, 1])
    assert as_set(dataset.test.images[:, 0, 0, 0], dataset.test.labels) == as_set(np.uint8([1, 2]), [0, 1])


def test_random_images_have_no_labels(root, small):
    x = pixels(9, 32, 32, 3)
    np.save(root / "300K_random_images.npy", x)
    dataset = bench.data.load(small("300k", 6, 3))
    holds(dataset.train, x[:6].transpose(0, 3, 1, 2), [0] * 6)
    holds(dataset.test, x[6:].transpose(0, 3, 1, 2), [0] * 3)
    (root / "300K_random_images.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"300K_random_images\.npy: not a readable array"):
        bench.data.load("300k")


@pytest.mark.parametrize("place", ["imagenet", "imagefruit"])
def test_imagenet_subset_takes_its_classes_in_the_papers_order(root, picture, place):
    wnids = imagenet.SUBSETS["imagefruit"].wnids
    for number, wnid in enumerate(wnids):
        picture(root / place / "train" / wnid / "a.JPEG", (20 * number, 0, 0), size=(150, 130))
        picture(root / place / "val" / wnid / "b.png", (20 * number, 0, 0), size=(128, 200))
    picture(root / place / "train" / "n00000001" / "stranger.png")
    assert bench.data.locate("imagefruit") == root / place
    dataset = bench.data.load("imagefruit")
    assert dataset.train.images.shape == (10, 3, 128, 128)
    for half in (dataset.train, dataset.test):
        off = half.images[:, 0].double().mean((1, 2)) - 20 * half.labels
        assert off.abs().max() < 3  # JPEG
    assert dataset.class_names[0] == "pineapple"
    assert (dataset.info.train_size, dataset.info.test_size) == (10, 10)
    assert bench.data.info("imagefruit").train_size == 13000


def test_folder_of_images(tmp_path, picture):
    top = tmp_path / "mine"
    for number, name in enumerate(("cat", "dog")):
        for k in range(3):
            picture(top / "train" / name / "deeper" / f"{k}.png", (number, k, 7), size=(6, 4))
        picture(top / "val" / name / "x.png", (number, 8, 7), size=(6, 4))
    (top / "train" / "cat" / "notes.txt").write_text("not an image")
    dataset = bench.data.load(f"folder:{top}")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.info.shape == (3, 4, 6)
    assert torch.equal(dataset.train.images[:, 0, 0, 0].long(), dataset.train.labels)
    assert sorted(dataset.train.images[:, 1, 3, 5].tolist()) == [0, 0, 1, 1, 2, 2]
    before = bench.data.fingerprint(f"folder:{top}")
    picture(top / "train" / "dog" / "more.png", (1, 5, 7), size=(6, 4))
    assert bench.data.fingerprint(f"folder:{top}") != before
    assert bench.data.load(f"folder:{top}@2").info.shape == (3, 2, 2)


def test_grey_folders_stay_grey(tmp_path, picture):
    for half in ("train", "test"):
        picture(tmp_path / half / "a" / "0.png", 200, mode="L")
    assert bench.data.info(f"folder:{tmp_path}").shape == (1, 8, 8)
    assert not bench.data.info(f"folder:{tmp_path}").flip
    picture(tmp_path / "train" / "a" / "1.png")
    assert bench.data.info(f"folder:{tmp_path}").shape == (3, 8, 8)


def test_scaling_crops_the_middle(tmp_path):
    """A wide image: left and right quarters are cut off, the middle half fills the square."""
    from PIL import Image

    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, :8], wide[:, 8:16], wide[:, 16:24], wide[:, 24:] = 10, 100, 200, 10
    for half in ("train", "test"):
        (tmp_path / half / "a").mkdir(parents=True)
        Image.fromarray(wide).save(tmp_path / half / "a" / "w.png")
    image = bench.data.load(f"folder:{tmp_path}@8").train.images[0, 0]
    assert image[:, 1:3].unique().tolist() == [100]  # the outermost columns also see the pixel beside the cut
    assert image[:, 5:7].unique().tolist() == [200]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda top, picture: (top / "test").rename(top / "tset"), "no folder test/ here"),
        (lambda top, picture: picture(top / "test" / "new" / "a.png"), "class 'new' is in test/ but not in train/"),
        (lambda top, picture: picture(top / "train" / "a" / "b.png", size=(9, 8)), r"2 different sizes.*@64"),
        (lambda top, picture: (top / "train" / "a" / "0.png").write_bytes(b"junk"), r"0\.png: not a readable image"),
        (lambda top, picture: (top / "train" / "a" / "0.png").unlink(), "no images for training"),
        (lambda top, picture: (top / "train" / "b").mkdir(), "no training image of class b"),
    ],
)
def test_bad_folders_give_place_and_reason(tmp_path, picture, break_it, message):
    top = tmp_path / "mine"
    for half in ("train", "test"):
        picture(top / half / "a" / "0.png")
    break_it(top, picture)
    with pytest.raises(UserError, match=message) as caught:
        bench.data.load(f"folder:{top}")
    assert str(top) in str(caught.value)


def test_cut_off_image_is_named(tmp_path, picture):
    for half in ("train", "test"):
        picture(tmp_path / half / "a" / "0.png", size=(64, 64))
    file = tmp_path / "train" / "a" / "0.png"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"0\.png: damaged image"):
        bench.data.load(f"folder:{tmp_path}")


def test_get_downloads_checks_and_says_where(root, small, monkeypatch):
    def fetch(place):
        test_fashion_mnist(place, small)

    monkeypatch.setattr(formats, "download_fashion_mnist", fetch)
    assert bench.data.get("fashion_mnist").startswith(f"{root / 'FashionMNIST' / 'raw'}, 20 + 10 images, content ")
    monkeypatch.setattr(formats, "download_fashion_mnist", lambda place: pytest.fail("downloaded twice"))
    bench.data.get("fashion_mnist")

    def offline(place):
        raise OSError("no network")

    monkeypatch.setattr(formats, "download_svhn", offline)
    with pytest.raises(UserError, match=r"'svhn' cannot be downloaded: no network.*put svhn\.npz"):
        bench.data.get("svhn")


def test_all_downloads_name_something_torchvision_has():
    datasets = tv.torchvision().datasets
    for name in ("MNIST", "FashionMNIST", "SVHN", "CIFAR10", "CIFAR100", "Imagenette"):
        assert hasattr(datasets, name)
    assert callable(datasets.utils.download_and_extract_archive)
    assert sum(bool(entry.download) for entry in lookup.entries().values()) == 9
