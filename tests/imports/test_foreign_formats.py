"""What the official code wrote comes back: the same values, what they mean, and a header that says where from."""

import hashlib
import os

import numpy as np
import official_files as official
import pytest
import torch

import bench.data
from bench import imports
from bench.distilled import decode, load, save
from bench.errors import UserError

CLASSES = 10


def standard(shape=(3, 8, 8), per_class=1, seed=0):
    """Images as a method leaves them: standardised or whitened values, sorted by class."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn((CLASSES * per_class, *shape), generator=rng), torch.arange(CLASSES).repeat_interleave(per_class)


def soft(size=CLASSES, seed=1):
    return torch.randn((size, CLASSES), generator=torch.Generator().manual_seed(seed))


def as_bytes(shape=(3, 8, 8), size=CLASSES):
    rng = torch.Generator().manual_seed(2)
    return torch.randint(256, (size, *shape), generator=rng, dtype=torch.uint8)


def prepared(dataset="debug", kind="meanstd"):
    return bench.data.prepare(bench.data.load(dataset), kind)


# ---------------------------------------------------------------------------------------------- torch files


@pytest.mark.parametrize("write", [official.res, official.res_legacy])
def test_results_of_dc_are_read_in_both_layouts_of_torch(tmp_path, write):
    sets = [standard(seed=seed) for seed in range(3)]
    path = write(tmp_path, sets)
    for which, (images, labels) in enumerate(sets):
        made = imports.load(path, dataset="debug", which=which)
        assert made.images.equal(images)
        assert made.labels.equal(labels)
        header = made.header
        assert (header.preprocessing, header.label_kind, header.method, header.ipc) == (
            "meanstd",
            "hard",
            "imported",
            1,
        )
        assert header.native_recipe is None  # DC's, DSA's and DM's differ
        origin = header.provenance["imported"]
        assert (origin["format"], origin["set"]) == ("res", which)
        assert origin["sha256"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}


def test_who_made_it_brings_the_recipe_of_the_paper(tmp_path):
    path = official.res(tmp_path, [standard()])
    assert imports.load(path, dataset="debug", method="dsa").header.native_recipe == {"base": "dsa"}
    assert imports.load(path, dataset="debug", method="dc").header.native_recipe == {"base": "dc"}
    unknown = imports.load(path, dataset="debug", method="mine").header
    assert (unknown.method, unknown.native_recipe) == ("mine", None)


def test_torch_itself_reads_the_same_values(tmp_path):
    path = official.res_legacy(tmp_path, [standard(per_class=2)])
    images, labels = torch.load(path, weights_only=False)["data"][0]
    found = imports.read(path)
    assert found.images.equal(images)
    assert found.labels.equal(labels)


def test_numbers_of_older_numpy_and_tensors_of_other_devices(tmp_path):
    path = official.res_legacy(tmp_path, [standard()])
    data = path.read_bytes()
    assert data.count(b"numpy._core.multiarray\n") == 1
    old = data.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    path.write_bytes(old.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    assert b"cuda:0" in path.read_bytes()
    assert imports.read(path).images.equal(standard()[0])


def test_views_and_every_type_of_number_are_read_as_torch_reads_them(tmp_path):
    base = torch.randn(20, 3, 8, 8)
    views = [base[::2], base[5:15], base.transpose(2, 3)[:10], base[:1].expand(10, 3, 8, 8)]
    views += [base[:10].to(kind) for kind in (torch.float64, torch.float16, torch.bfloat16)]
    for number, images in enumerate(views):
        for zipped in (True, False):
            path = tmp_path / f"images_{number}{zipped}.pt"
            torch.save(images, path, _use_new_zipfile_serialization=zipped)
            torch.save(torch.arange(10, dtype=torch.int32), tmp_path / f"labels_{number}{zipped}.pt")
            assert imports.read(path).images.equal(torch.load(path).float()), (number, zipped)


def test_outliers_of_trustdd_and_its_own_constants(tmp_path):
    inside, outside = standard()[0], standard(seed=5)[0][:7]
    path = official.trustdd(tmp_path, [(inside, standard()[1])], [outside])
    made = imports.load(path, dataset="debug")
    assert made.images.equal(inside)
    assert made.outliers.equal(outside)
    assert (made.header.outlier_weight, made.header.method) == (0.5, "imported")
    constants = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    moved = imports.load(path, dataset="debug", constants=constants)
    info = bench.data.info("debug")
    mean, std, new_mean, new_std = (torch.tensor(part)[:, None, None] for part in (*constants, info.mean, info.std))
    torch.testing.assert_close(moved.images, (inside * std + mean - new_mean) / new_std)
    torch.testing.assert_close(moved.outliers, (outside * std + mean - new_mean) / new_std)
    assert "moved from mean and deviation" in moved.header.provenance["imported"]["notes"][0]


def test_constants_of_the_official_codes():
    known = imports.FORMATS
    cifar10, cifar100 = (bench.data.info(name) for name in ("cifar10", "cifar100"))
    assert known["pair"].constants == known["apm"].constants == {"cifar100": (cifar10.mean, cifar10.std)}
    trust = known["trustdd"].constants
    assert [round(value, 4) for value in (*trust["cifar10"][0], *trust["cifar10"][1])] == [
        0.4914, 0.4824, 0.4467, 0.2471, 0.2435, 0.2616,
    ]  # fmt: skip
    assert trust["cifar100"][1] == cifar100.std


def test_apm_has_logits(tmp_path):
    (images, _), logits = standard(), soft()
    path = official.apm(tmp_path, images, logits)
    with pytest.raises(UserError, match="does not tell which space"):
        imports.load(path, dataset="debug")
    made = imports.load(path, dataset="debug", zca=True)
    assert made.images.equal(images)
    assert made.labels.equal(logits)
    assert (made.header.preprocessing, made.header.label_kind) == ("zca-kornia", "logits")
    assert made.header.method == "apm"
    assert made.header.native_recipe["base"] == "apm"


@pytest.mark.parametrize("stored", [torch.tensor(0.028), 0.028], ids=["tensor", "number"])
def test_mtt_with_a_stored_rate(tmp_path, stored):
    images, labels = standard()
    made = imports.load(official.pair(tmp_path, images, labels, stored), dataset="debug", zca=True)
    assert made.images.equal(images)
    assert made.header.learned_rate == pytest.approx(0.028)
    assert (made.header.native_recipe, made.header.preprocessing) == ({"base": "mtt"}, "zca-kornia")
    assert made.extra["preprocessing/matrix"].equal(prepared(kind="zca-kornia").transform.matrix)
    assert set(made.header.provenance["imported"]["sha256"]) == {"images_best.pt", "labels_best.pt", "lr_best.pt"}


def test_mtt_without_its_rate_says_so_and_takes_one(tmp_path):
    path = official.pair(tmp_path, *standard())
    made = imports.load(path, dataset="debug", zca=False)
    assert (made.header.native_recipe, made.header.learned_rate) == (None, None)
    assert "learned rate" in made.header.provenance["imported"]["notes"][0]
    made = imports.load(path, dataset="debug", zca=False, rate=0.02)
    assert (made.header.native_recipe, made.header.learned_rate) == ({"base": "mtt"}, 0.02)
    assert imports.load(tmp_path, dataset="debug", zca=False).images.equal(made.images)  # by the folder


def test_tesla_has_probabilities(tmp_path):
    images, probabilities = standard()[0], soft().softmax(1)
    made = imports.load(official.pair(tmp_path, images, probabilities), dataset="debug", zca=False)
    assert made.labels.equal(probabilities)
    assert made.header.label_kind == "probabilities"


def test_labels_that_could_be_anything_must_be_said(tmp_path):
    path = official.pair(tmp_path, standard()[0], soft())
    with pytest.raises(UserError, match="label-kind logits"):
        imports.load(path, dataset="debug", zca=False)
    assert imports.load(path, dataset="debug", zca=False, label_kind="logits").labels.equal(soft())
    hard = imports.load(path, dataset="debug", zca=False, label_kind="hard")
    assert hard.labels.equal(soft().argmax(1))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_idc_stores_pixels_in_grids(tmp_path, factor):
    from methods.parametrise import decode_cells

    images, labels = torch.rand(20, 3, 8, 8), torch.arange(10).repeat_interleave(2)
    made = imports.load(official.idc(tmp_path, images, labels), dataset="debug", formation=factor)
    assert made.images.equal(images)
    assert made.labels.equal(labels.repeat(factor**2))
    assert decode(made).equal(prepared().forward(decode_cells(images, factor)))
    assert (made.header.method, made.header.ipc) == ("idc" if factor > 1 else "idc_i", 2)
    assert made.header.native_recipe["base"] == "idc"


def test_idc_must_be_told_its_factor(tmp_path):
    folder = tmp_path / "conv3in_grad_mse_nd2000_cut_niter2000_factor2_lr0.005_mix_ipc1"
    folder.mkdir()
    path = official.idc(folder, torch.rand(10, 3, 8, 8), torch.arange(10))
    with pytest.raises(UserError, match=r"--formation N.*folder's name says 2"):
        imports.load(path, dataset="debug")
    torch.save([standard()[0], torch.arange(10)], path)
    with pytest.raises(UserError, match="pixels lie in"):
        imports.load(path, dataset="debug", formation=2)


# ---------------------------------------------------------------------------------------------- NumPy and flax


@pytest.mark.parametrize("write", [official.frepo_npz, official.frepo_flax])
def test_frepo_in_both_layouts(tmp_path, write):
    images, labels = standard()[0], soft()
    made = imports.load(write(tmp_path, images, labels), dataset="debug")
    assert made.images.equal(images)
    assert made.labels.equal(labels)
    assert (made.header.preprocessing, made.header.label_kind) == ("zca-frepo", "centred")
    assert made.header.method == "imported"  # FRePo's and ISA's files are the same


def test_frepo_whitens_only_colour(tmp_path):
    images = standard((1, 8, 8))[0]
    made = imports.load(official.frepo_npz(tmp_path, images, soft()), dataset="digits")
    assert made.images.equal(images)
    assert made.header.preprocessing == "meanstd"


def test_kip_is_whitened_or_standardised_by_measured_constants(tmp_path):
    images, labels = standard()[0], soft()
    path = official.kip(tmp_path, images, labels)
    whitened = imports.load(path, dataset="debug", zca=True)
    assert whitened.images.equal(images)
    assert (whitened.header.preprocessing, whitened.header.method) == ("zca-kip", "kip")
    assert whitened.header.label_kind == "centred"
    plain = imports.load(path, dataset="debug", zca=False)
    real = bench.data.load("debug").train.images.double() / 255
    mean, std = real.mean((0, 2, 3))[:, None, None], real.std((0, 2, 3), correction=0)[:, None, None]
    torch.testing.assert_close(plain.images, prepared().forward((images * std + mean).float()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("suffix", ["npy", "npz", "pt", "safetensors"])
def test_bytes_become_the_images_a_dataset_would_have(tmp_path, suffix):
    pixels, labels = as_bytes(), torch.arange(10)
    path = tmp_path / f"images.{suffix}"
    if suffix == "npy":
        official.npy(tmp_path, official.nhwc(pixels), labels.numpy())
    elif suffix == "npz":
        np.savez_compressed(path, images=official.nhwc(pixels), labels=labels.numpy().astype(np.uint8))
    elif suffix == "pt":
        torch.save({"images": pixels, "labels": labels}, path)
    else:
        from safetensors.torch import save_file

        save_file({"images": pixels, "labels": labels}, path)
    for kind in ("meanstd", "zca-kornia", "none"):
        made = imports.load(path, dataset="debug", preprocessing=kind)
        assert made.images.equal(prepared(kind=kind).forward(pixels.float() / 255)), kind
    assert imports.load(path, dataset="debug").header.preprocessing == "meanstd"


def test_floats_between_0_and_1_are_pixels_only_if_that_is_said(tmp_path):
    pixels, labels = torch.rand(10, 3, 8, 8), np.arange(10)
    path = official.npy(tmp_path, pixels.numpy(), labels)
    for said in ({}, {"preprocessing": "meanstd"}):
        with pytest.raises(UserError, match=r"--pixels.*ddbench inspect"):
            imports.load(path, dataset="debug", **said)
    assert imports.load(path, dataset="debug", pixels=True).images.equal(prepared().forward(pixels))
    assert imports.load(path, dataset="debug", pixels=False, preprocessing="meanstd").images.equal(pixels)


def test_grey_images_need_no_channel(tmp_path):
    pixels = as_bytes((1, 8, 8))
    made = imports.load(official.npy(tmp_path, pixels[:, 0].numpy(), np.arange(10)), dataset="digits")
    assert made.images.equal(prepared("digits").forward(pixels.float() / 255))


def test_fortran_order_and_big_endian_arrays(tmp_path):
    images = standard()[0].numpy()
    path = official.npy(tmp_path, np.asfortranarray(images).astype(">f8"), np.arange(10.0))
    assert imports.load(path, dataset="debug", preprocessing="meanstd").images.equal(torch.from_numpy(images))


# ---------------------------------------------------------------------------------------------- folders


def test_folders_with_the_names_of_the_classes_and_with_others(tmp_path):
    pixels, labels = as_bytes(size=20), torch.arange(10).repeat(2)
    names = list(bench.data.load("debug").class_names)
    backwards = [f"class {9 - label}" for label in range(10)]
    for kind, chosen in (("same", names), ("other", backwards)):
        path = official.folders(tmp_path / kind, pixels, labels, chosen)
        made = imports.load(path, dataset="debug")
        order = labels if kind == "same" else 9 - labels  # other names count by their order
        expected = torch.cat([pixels[order == label] for label in range(10)])
        assert made.labels.equal(torch.arange(10).repeat_interleave(2)), kind
        assert made.images.equal(prepared().forward(expected.float() / 255)), kind
    (tmp_path / "other" / "set" / "class 9").rename(tmp_path / "other" / "set" / "pattern 9")
    official.picture(tmp_path / "other" / "set" / "eleventh" / "0.png", pixels[0])
    with pytest.raises(UserError, match="11 folders for the 10 classes"):
        imports.load(tmp_path / "other" / "set", dataset="debug")


def test_sre2l_folders_with_the_mean_of_the_stored_logits(tmp_path):
    pixels, labels = as_bytes(size=20), torch.arange(10).repeat_interleave(2)
    path = official.sre2l(tmp_path, pixels, labels)
    epochs = [torch.eye(10)[labels] * 8 + soft(20, seed=seed) for seed in (3, 4, 5)]
    stored = official.sre2l_labels(tmp_path, epochs)
    hard = imports.load(path, dataset="debug")
    assert (hard.header.label_kind, hard.labels.tolist()) == ("hard", labels.tolist())
    made = imports.load(path, dataset="debug", labels=stored)
    assert made.header.label_kind == "logits"
    assert made.labels.equal(sum(rows.half().float() for rows in epochs) / 3)
    assert made.images.equal(prepared().forward(pixels.float() / 255))
    assert imports.load(path, dataset="debug", labels=stored, label_kind="hard").labels.equal(labels)
    with pytest.raises(UserError, match="agree with the folders"):
        imports.load(path, dataset="debug", labels=stored, seed=7)


def test_labels_of_mixed_images_are_refused(tmp_path):
    path = official.sre2l(tmp_path, as_bytes(), torch.arange(10))
    stored = official.sre2l_labels(tmp_path, [torch.eye(10)], mixed=True)
    with pytest.raises(UserError, match="belong to no single image"):
        imports.load(path, dataset="debug", labels=stored)


def test_folders_with_one_file_of_soft_labels(tmp_path):
    path = official.folders(tmp_path, as_bytes(), torch.arange(10), [f"c{label}" for label in range(10)])
    np.save(path / "labels.npy", soft().softmax(1).numpy())
    made = imports.load(path, dataset="debug")
    assert made.labels.equal(soft().softmax(1))
    assert made.header.label_kind == "probabilities"


# ---------------------------------------------------------------------------------------------- ddbench's own, errors


def test_a_set_of_ddbench_is_taken_as_it_is(tmp_path):
    made = imports.load(official.res(tmp_path, [standard()]), dataset="debug")
    save(tmp_path / "own.safetensors", made)
    again = imports.load(tmp_path / "own.safetensors")
    assert again.images.equal(made.images)
    assert again.header == made.header == load(tmp_path / "own.safetensors").header
    with pytest.raises(UserError, match="of debug, not of digits"):
        imports.load(tmp_path / "own.safetensors", dataset="digits")
    with pytest.raises(UserError, match="leave zca out"):
        imports.load(tmp_path / "own.safetensors", zca=True)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"dataset": "digits"}, "holds images 3x8x8, those of digits are 1x8x8"),
        ({"dataset": None}, "of which dataset"),
        ({"which": 3}, "holds 1 sets, there is no set 3"),
        ({"formation": 2}, "grids of images are pixels"),
        ({"preprocessing": "zca"}, "unknown preprocessing"),
        ({"label_kind": "soft"}, "unknown kind of labels"),
        ({"label_kind": "logits"}, "the labels are classes"),
        ({"rate": -1.0}, "not a number above 0"),
        ({"zca": True, "preprocessing": "zca-kip"}, "which whitening"),
        ({"constants": ((0.5,), (0.5,))}, "mean and deviation of 3 channels"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(tmp_path, said, message):
    path = official.res(tmp_path, [standard()])
    with pytest.raises(UserError, match=message) as caught:
        imports.load(path, **{"dataset": "debug", **said})
    assert "\n" not in str(caught.value)


def test_what_is_no_set_is_named(tmp_path):
    torch.save([[torch.zeros(3)] * 4] * 2, tmp_path / "replay_buffer_0.pt")
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "net.pt")
    torch.save(torch.arange(10), tmp_path / "labels_best.pt")
    torch.save(torch.zeros(10, 3, 8, 8), tmp_path / "images_best.pt")
    torch.save(torch.arange(9), tmp_path / "labels_7.pt")
    torch.save(torch.zeros(10, 3, 8, 8), tmp_path / "images_7.pt")
    torch.save(torch.zeros(10, 3, 8, 8), tmp_path / "images_8.pt")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    expected = {
        "replay_buffer_0.pt": "a list of 2: not a distilled set",
        "net.pt": "the names weight, bias: no images and labels",
        "labels_best.pt": "name the file of the images",
        "images_7.pt": "not the labels of 10 images",
        "images_8.pt": "put labels_8.pt beside it",
        "text": "not a file that ddbench can read",
        "empty": "no folders of images",
        "missing": "there is no such file",
        "pipe": "neither a file nor a folder",
    }
    for name, message in expected.items():
        with pytest.raises(UserError, match=message):
            imports.read(tmp_path / name)
