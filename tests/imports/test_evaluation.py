"""An imported set is worth what its tensors are worth: trained and tested by hand, in the space of the official code.

By hand means: the test images whitened or standardised here, in float64 and in the layout of that code (NHWC for KIP
and FRePo), and the tensors given to the trainer as they were before they were written to a file.
"""

import numpy as np
import official_files as official
import pytest
import torch

import bench.data
from bench import imports
from bench.api import NetSpec
from bench.distilled import decode, load, save
from bench.train.recipe import resolve
from bench.train.trainer import predict, train

SPEC = NetSpec(arch="convnet", width=8, depth=2)
INFO = bench.data.info("debug")


def pixels():
    """Training and test images in [0, 1], float64 [n, h, w, c]."""
    data = bench.data.load("debug")
    return [half.images.permute(0, 2, 3, 1).double().numpy() / 255 for half in (data.train, data.test)]


def whitening(covariance, ridge):
    vectors, values, _ = np.linalg.svd(covariance)
    return vectors @ np.diag((values + ridge) ** -0.5) @ vectors.T


def standardise(images, train):
    return (images - train.mean((0, 1, 2))) / train.std((0, 1, 2))


def meanstd(images, train):
    return (images - np.array(INFO.mean)) / np.array(INFO.std)


def kornia(images, train):
    """MTT: no standardising, covariance by n - 1, ridge 0.1."""
    rows, mean = images.reshape(len(images), -1), train.reshape(len(train), -1).mean(0)
    centred = train.reshape(len(train), -1) - mean
    matrix = whitening(centred.T @ centred / (len(train) - 1), 0.1)
    return ((rows - mean) @ matrix).reshape(images.shape)


def frepo(images, train):
    """FRePo: standardised channels, minus the mean image, ridge a tenth of the mean variance."""
    rows, base = (standardise(part, train).reshape(len(part), -1) for part in (images, train))
    centred = base - base.mean(0)
    covariance = centred.T @ centred / len(base)
    matrix = whitening(covariance, 0.1 * np.trace(covariance) / len(covariance))
    return ((rows - base.mean(0)) @ matrix).reshape(images.shape)


def kip(images, train):
    """KIP: standardised channels, every image to mean 0 and norm 1, second moment, ridge as above."""

    def unit(part):
        rows = standardise(part, train).reshape(len(part), -1)
        rows = rows - rows.mean(1, keepdims=True)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    base = unit(train)
    moment = base.T @ base / len(base)
    matrix = whitening(moment, 0.1 * np.trace(moment) / len(moment))
    return (unit(images) @ matrix).reshape(images.shape)


def tensor(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()


def original(space, per_class=2):
    """What a method might have learned: real images of each class in the space, a little changed; and their classes."""
    train, _ = pixels()
    labels = bench.data.load("debug").train.labels
    index = torch.cat([torch.nonzero(labels == c)[:per_class, 0] for c in range(10)])
    images = tensor(space(train, train))[index]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    return images + 0.1 * images.std() * noise, labels[index]


def logits(images, labels, test, recipe, **fields):
    """Train two networks and return their answers to the test images."""
    rngs = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    handle = train(SPEC, images, labels, resolve(recipe), rngs, info=INFO, **fields)
    return predict(handle, [test])


def compare(path, tmp_path, space, images, labels, recipe, *, kind="hard", exact=True, said=None, **fields):
    """Hold the imported set, written and read again, against the tensors by hand."""
    save(tmp_path / "set.safetensors", imports.load(path, dataset="debug", **(said or {})))
    made = load(tmp_path / "set.safetensors")
    prepared = bench.data.prepare(bench.data.load("debug"), made.header.preprocessing)
    found = logits(
        decode(made, prepared),
        made.labels,
        prepared.test.images(),
        recipe,
        label_kind=made.header.label_kind,
        rate=made.header.learned_rate,
        outliers=made.outliers,
        outlier_weight=made.header.outlier_weight,
    )
    train_pixels, test_pixels = pixels()
    test = tensor(space(test_pixels, train_pixels))
    expected = logits(images, labels, test, recipe, label_kind=kind, **fields)
    if exact:  # the same weights; only the test images went another way through float arithmetic
        same = logits(images, labels, prepared.test.images(), recipe, label_kind=kind, **fields)
        assert found.equal(same)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    answers, truth = bench.data.load("debug").test.labels, found.argmax(2)
    right = [(classes.argmax(2) == answers).sum(1).tolist() for classes in (found, expected)]
    assert right[0] == right[1]
    assert truth.unique().numel() > 1
    assert not found.allclose(logits(images * 1.3 + 0.2, labels, test, recipe, label_kind=kind, **fields), atol=0.02)


SHORT = {"epochs": 4, "augment": "none", "lr": 0.02}


@pytest.mark.parametrize("write", [official.res, official.res_legacy])
def test_dc(tmp_path, write):
    images, labels = original(meanstd)
    compare(write(tmp_path, [(images, labels)]), tmp_path, meanstd, images, labels, SHORT)


def test_mtt_whitened_at_its_learned_rate(tmp_path):
    images, labels = original(kornia)
    path = official.pair(tmp_path, images, labels, torch.tensor(0.03125))
    recipe = {"base": "mtt", **SHORT, "lr": "learned"}
    compare(path, tmp_path, kornia, images, labels, recipe, said={"zca": True}, rate=0.03125)


def test_tesla_probabilities(tmp_path):
    images, _ = original(meanstd)
    soft = torch.randn((20, 10), generator=torch.Generator().manual_seed(4)).mul(3).softmax(1)
    path = official.pair(tmp_path, images, soft)
    compare(path, tmp_path, meanstd, images, soft, SHORT, kind="probabilities", said={"zca": False})


def test_apm_logits(tmp_path):
    images, labels = original(kornia)
    soft = torch.eye(10)[labels] * 6 + torch.randn((20, 10), generator=torch.Generator().manual_seed(5))
    path = official.apm(tmp_path, images, soft)
    compare(path, tmp_path, kornia, images, soft, SHORT, kind="logits", said={"zca": True})


@pytest.mark.parametrize("write", [official.frepo_npz, official.frepo_flax])
def test_frepo_whitened_with_learned_labels(tmp_path, write):
    images, labels = original(frepo)
    soft = torch.eye(10)[labels] - 0.1 + 0.05 * torch.randn((20, 10), generator=torch.Generator().manual_seed(6))
    recipe = {"base": "frepo", "steps": 12, "warmup": 4, "batch": 10, "augment": "none", "lr": 0.01}
    compare(write(tmp_path, images, soft), tmp_path, frepo, images, soft, recipe, kind="centred")


def test_kip_whitened(tmp_path):
    images, labels = original(kip)
    soft = torch.eye(10)[labels] - 0.1
    path = official.kip(tmp_path, images, soft)
    recipe = {"base": "kip", "steps": 12, "batch": 10}
    compare(path, tmp_path, kip, images, soft, recipe, kind="centred", said={"zca": True})


def test_trustdd_with_its_outliers(tmp_path):
    images, labels = original(meanstd)
    outliers = torch.randn(images.shape, generator=torch.Generator().manual_seed(7))
    path = official.trustdd(tmp_path, [(images, labels)], [outliers])
    fields = {"outliers": outliers, "outlier_weight": 0.5}
    compare(path, tmp_path, meanstd, images, labels, SHORT, **fields)


def idc_by_hand(stored, factor):
    """Cut and enlarge one image at a time, cell by cell."""
    side, images = stored.shape[2] // factor, []
    for row in range(factor):
        for column in range(factor):
            for image in stored:
                cell = image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
                grown = torch.nn.functional.interpolate(cell[None], stored.shape[2:], mode="bilinear")[0]
                images.append(grown)
    return torch.stack(images)


def test_idc_decoded_and_normalised(tmp_path):
    stored, labels = original(lambda images, train: images)
    stored = stored.clamp(0, 1)
    path = official.idc(tmp_path, stored, labels)
    decoded = idc_by_hand(stored, 2).permute(0, 2, 3, 1).double().numpy()
    images = tensor(meanstd(decoded, None))
    said = {"formation": 2}
    compare(path, tmp_path, meanstd, images, labels.repeat(4), SHORT, exact=False, said=said)


@pytest.mark.parametrize("kind", ["npy", "folders"])
def test_raw_bytes(tmp_path, kind):
    data = bench.data.load("debug")
    index = torch.cat([torch.nonzero(data.train.labels == c)[:2, 0] for c in range(10)])
    raw, labels = data.train.images[index], data.train.labels[index]
    images = tensor(meanstd(official.nhwc(raw.double()) / 255, None))
    if kind == "npy":
        path = official.npy(tmp_path, official.nhwc(raw), labels.numpy())
    else:
        path = official.folders(tmp_path, raw, labels, list(data.class_names))
    compare(path, tmp_path, meanstd, images, labels, SHORT, exact=False)
