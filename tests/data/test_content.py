import json
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bench.data
from bench.data import arrays as arrays_module
from bench.data import cache, content, sources
from bench.errors import MissingData, UserError


def save(path, **found):
    np.savez(path, **found)
    return f"npz:{path}"


def test_content_is_what_it_says(arrays, tmp_path):
    """The documented definition of the hash, computed once more by hand."""
    import hashlib

    found = arrays()
    total = hashlib.sha256(b"ddbench content 1")
    for half in ("train", "test"):
        images = found[f"x_{half}"].transpose(0, 3, 1, 2)
        total.update(str(images.shape).encode())
        rows = [
            image.tobytes() + int(label).to_bytes(8, "little")
            for image, label in zip(images, found[f"y_{half}"], strict=True)
        ]
        total.update(b"".join(sorted(hashlib.sha256(row).digest() for row in rows)))
    assert bench.data.fingerprint(save(tmp_path / "a.npz", **found)) == total.hexdigest()


def test_order_does_not_matter_and_anything_else_does(arrays, tmp_path):
    found = arrays()
    order = np.random.default_rng(1).permutation(len(found["y_train"]))
    shuffled = {**found, "x_train": found["x_train"][order], "y_train": found["y_train"][order]}
    first, second = save(tmp_path / "a.npz", **found), save(tmp_path / "b.npz", **shuffled)
    assert bench.data.fingerprint(first) == bench.data.fingerprint(second)
    one, two = (arrays_module.canonical(sources.read_npz(tmp_path / name))[1] for name in ("a.npz", "b.npz"))
    assert np.array_equal(one.train.images, two.train.images)
    assert np.array_equal(one.train.labels, two.train.labels)

    seen = {bench.data.fingerprint(first)}
    pixel, label = found["x_test"].copy(), found["y_train"].copy()
    pixel[0, 0, 0, 0] ^= 1
    label[[0, -1]] = label[[-1, 0]]
    group = np.zeros(len(label), dtype=np.int64)
    changes = (
        {"x_test": pixel},
        {"y_train": label},
        {"g_train": group},
        {"x_train": found["x_train"].reshape(12, 5, 5, 3).swapaxes(1, 2)},
        {
            "x_train": found["x_test"],
            "y_train": found["y_test"],
            "x_test": found["x_train"],
            "y_test": found["y_train"],
        },
    )
    for number, change in enumerate(changes):
        seen.add(bench.data.fingerprint(save(tmp_path / f"c{number}.npz", **{**found, **change})))
    assert len(seen) == 1 + len(changes)


def test_images_keep_their_labels_and_groups(arrays, tmp_path):
    found = arrays(n=20)
    found["x_train"][:, 0, 0, 0] = found["y_train"] * 10
    found["x_train"][:, 0, 0, 1] = np.arange(60)
    dataset = bench.data.load(
        save(tmp_path / "a.npz", **found, g_train=np.arange(60), class_names=np.array(list("abc")))
    )
    assert torch.equal(dataset.train.images[:, 0, 0, 0].long(), dataset.train.labels * 10)
    assert torch.equal(dataset.train.images[:, 1, 0, 0].long(), dataset.train.groups)
    assert dataset.test.groups is None
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.train.labels.dtype == dataset.train.groups.dtype == torch.int64
    assert dataset.info.shape == (3, 5, 5)
    assert (dataset.info.train_size, dataset.info.test_size, dataset.info.flip) == (60, 3, True)
    np.testing.assert_allclose(dataset.info.mean, found["x_train"].mean((0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(dataset.info.std, found["x_train"].std((0, 1, 2)) / 255, rtol=1e-12)


def test_reading_happens_once_and_again_after_a_change(arrays, tmp_path, monkeypatch):
    calls = []
    read = sources.read_npz
    monkeypatch.setattr(sources, "read_npz", lambda path: calls.append(path) or read(path))
    name = save(tmp_path / "a.npz", **arrays())
    first = bench.data.load(name)
    with monkeypatch.context() as patch:
        patch.setattr(np, "load", lambda *words, **more: pytest.fail("the file is not opened for what is known of it"))
        assert bench.data.fingerprint(name) == first.content
    assert torch.equal(bench.data.load(name).train.images, first.train.images)
    assert len(calls) == 1
    content.decoded_file(first.content).write_bytes(b"torn")
    assert torch.equal(bench.data.load(name).train.images, first.train.images)
    assert len(calls) == 2
    save(tmp_path / "a.npz", **arrays(seed=1))
    assert bench.data.fingerprint(name) != first.content
    assert len(calls) == 3


def test_works_without_a_writable_cache(arrays, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "file"))
    name = save(tmp_path / "a.npz", **arrays())
    assert bench.data.load(name).content == bench.data.fingerprint(name)


def test_facts_of_an_older_table_are_not_trusted(small, root, arrays):
    save(root / "svhn.npz", **arrays(n=2, classes=10, size=32))
    small("svhn", 20, 10)
    assert bench.data.load("svhn").info.train_size == 20
    small("svhn", 20, 10, content="0" * 64)
    with pytest.raises(UserError, match="not the published svhn"):
        bench.data.load("svhn")


def test_known_sets_without_a_declared_hash_record_theirs(small, root, arrays):
    save(root / "svhn.npz", **arrays(n=2, classes=10, size=32))
    with pytest.raises(UserError, match=r"svhn\.npz: this is not the published svhn: found 20 \+ 10.*73257 \+ 26032"):
        bench.data.load("svhn")
    small("svhn", 20, 10)
    assert bench.data.info("svhn").content is None
    assert bench.data.load("svhn").content == bench.data.fingerprint("svhn")
    assert "content checked" in bench.data.describe("svhn")["state"]


def test_foreign_content_under_a_known_name_is_refused(root, arrays):
    save(root / "mnist.npz", **arrays())
    assert bench.data.locate("mnist") == root / "mnist.npz"
    with pytest.raises(UserError, match=r"mnist\.npz: this is not the published mnist.*npz:PATH"):
        bench.data.load("mnist")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": None}, "no array x_train"),
        ({"x_train": np.zeros((12, 5, 5, 3))}, "train images are float64"),
        ({"x_test": np.zeros((3, 25), np.uint8)}, "test images are uint8 with 2 dimensions"),
        ({"x_test": np.zeros((3, 6, 5, 3), np.uint8)}, "test images have shape"),
        ({"x_train": np.zeros((12, 3, 5, 5), np.uint8)}, "one .grey. or three .RGB. channels in the last"),
        ({"y_train": np.zeros(12)}, "y_train is float64, not whole numbers"),
        ({"y_train": np.zeros(11, int)}, "12 images and labels of shape"),
        ({"y_train": np.repeat([0, 2], 6)}, "no training image of class 1"),
        ({"y_test": np.full(3, 7)}, "test labels lie in 7..7, but there are 3"),
        ({"y_test": np.full(3, -1)}, "test labels lie in -1"),
        ({"g_train": np.zeros(3, int)}, "groups of shape"),
        ({"x_test": np.zeros((0, 5, 5, 3), np.uint8), "y_test": np.zeros(0, int)}, "test has 0 images"),
    ],
)
def test_bad_archives_give_file_and_reason(arrays, tmp_path, change, message):
    found = {key: value for key, value in {**arrays(), **change}.items() if value is not None}
    with pytest.raises(UserError, match=message) as caught:
        bench.data.load(save(tmp_path / "bad.npz", **found))
    assert "bad.npz" in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_archives_never_give_a_traceback(arrays, tmp_path, data):
    path = tmp_path / "a.npz"
    save(path, **arrays())
    blob = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "flip", "junk"]))
    if kind == "cut":
        blob = blob[: data.draw(st.integers(0, len(blob) - 1))]
    elif kind == "flip":
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        blob = bytearray(data.draw(st.binary(max_size=200)))
    path.write_bytes(blob)
    with suppress(UserError):  # any other exception is a defect; a flipped bit in the padding harms nothing
        arrays_module.check(sources.read_npz(path), str(path))


def test_a_plain_npy_file_is_not_an_archive(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="not a readable"):
        bench.data.load(f"npz:{tmp_path}/a.npz")


def test_missing_own_data(tmp_path):
    for name in (f"npz:{tmp_path}/none.npz", f"folder:{tmp_path}/none"):
        assert bench.data.locate(name) is None
        for ask in (bench.data.require, bench.data.info, bench.data.fingerprint, bench.data.describe, bench.data.get):
            with pytest.raises(MissingData, match=r"none.*not on this machine"):
                ask(name)


def test_digits_and_debug_are_always_there():
    for name in ("digits", "debug"):
        bench.data.require(name)
        dataset = bench.data.load(name)
        info = bench.data.info(name)
        assert dataset.info == info  # sizes, shape and content are as declared
        mean, std = arrays_module.statistics(dataset.train.images.numpy())
        np.testing.assert_allclose([*mean, *std], [*info.mean, *info.std], atol=5e-5)
        assert str(dataset.train.images.shape[0]) in bench.data.get(name)


def test_digits_split_is_stratified_and_complete():
    from sklearn.datasets import load_digits

    dataset, raw = bench.data.load("digits"), load_digits()
    counts = np.bincount(raw.target)
    assert torch.bincount(dataset.test.labels).tolist() == [n // 5 for n in counts]
    ours = torch.cat([dataset.train.images, dataset.test.images]).flatten(1).float() * (16 / 255)
    labels = torch.cat([dataset.train.labels, dataset.test.labels])
    theirs = np.column_stack([raw.data, raw.target])
    both = np.column_stack([ours.round().numpy(), labels.numpy()])
    assert sorted(map(tuple, both)) == sorted(map(tuple, theirs))


def test_debug_groups_and_classes():
    dataset = bench.data.load("debug")
    assert torch.bincount(dataset.train.labels).tolist() == [30] * 10
    assert torch.bincount(dataset.train.groups).tolist() == [150] * 2
    means = torch.stack([dataset.train.images[dataset.train.labels == c].double().mean(0) for c in range(10)])
    distance = torch.cdist(dataset.test.images.double().flatten(1), means.flatten(1))
    assert (distance.argmin(1) == dataset.test.labels).double().mean() > 0.9  # learnable


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100_part", "tiny_imagenet_part"])
def test_real_data_has_the_declared_content(real, name):
    dataset = bench.data.load(real(name))
    assert dataset.content == bench.data.info(name).content == bench.data.fingerprint(name)
    if name in ("mnist", "cifar10"):
        mean, _ = arrays_module.statistics(dataset.train.images.numpy())
        np.testing.assert_allclose(mean, dataset.info.mean, atol=1e-4)
    if name == "cifar10":  # the field's constants are the mean of the images' own deviations, not the pixels'
        own = (dataset.train.images[:5000].double() / 255).flatten(2).std(2).mean(0)
        np.testing.assert_allclose(own, dataset.info.std, atol=4e-3)


def test_mnist_of_torchvision_and_of_an_archive_are_the_same(real, root, monkeypatch):
    archive = bench.data.load(real("mnist"))
    folder = bench.data.locate("mnist").parent / "MNIST"
    if not folder.is_dir():
        pytest.skip("no MNIST/raw beside mnist.npz")
    (root / "MNIST").symlink_to(folder)
    monkeypatch.setenv("DDBENCH_DATA", str(root))
    assert bench.data.locate("mnist") == root / "MNIST" / "raw"
    assert torch.equal(bench.data.load("mnist").train.images, archive.train.images)


def test_publish_is_whole_or_nothing(tmp_path):
    file = tmp_path / "a" / "b.json"
    cache.write_facts(file, "now", {"x": 1})
    assert cache.read_facts(file, "now") == {"x": 1}
    assert cache.read_facts(file, "later") is None

    def fails(path):
        with open(path, "w") as out:
            out.write("half")
        raise OSError("disk full")

    assert not cache.publish(file, fails)
    assert json.loads(file.read_text())["facts"] == {"x": 1}
    assert [path.name for path in file.parent.iterdir()] == ["b.json"]
    file.write_text("{torn")
    assert cache.read_facts(file, "now") is None


def test_facts_need_no_torch(arrays, tmp_path):
    name = save(tmp_path / "a.npz", **arrays())
    code = (
        "import sys, bench.data as d\n"
        f"d.fingerprint({name!r}), d.describe('mnist'), d.info('digits'), d.locate('digits'), d.names()\n"
        "print(sorted({'torch', 'pandas', 'scipy', 'matplotlib', 'sklearn', 'torchvision'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
