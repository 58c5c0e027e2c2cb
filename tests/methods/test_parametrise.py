"""Grids of images: decoding against loops over cells, what it keeps, and the sets that are stored this way."""

import json

import pytest
import torch
import torch.nn.functional as F
from test_dc import run
from test_idc import first_images, small, zoom

import bench.data
from bench.api import NetSpec, TaskSpec
from bench.distilled import as_dataset, decode, load, save
from bench.errors import UserError
from bench.report import pictures
from bench.task import LiveTask
from bench.train.networks import Networks, NetworksParams
from bench.train.recipe import resolve
from methods.dm import DM, DMParams
from methods.idc import IDC
from methods.parametrise import MultiFormation, compose, decode_cells

DOUBLE = torch.float64


def batch(n, shape=(2, 8, 8), seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


# ------------------------------------------------------------------------------------------------ decoding


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 7, 7), (2, 6, 9)])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_decoded_images_are_the_cells_one_after_the_other(shape, factor):
    images = batch(3, shape)
    cells = [zoom(image, factor) for image in images]
    expected = torch.stack([each[k] for k in range(factor**2) for each in cells])  # row k n + i: cell k of image i
    decoded = decode_cells(images, factor)
    assert decoded.shape == (3 * factor**2, *shape)
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-15)


def test_factor_one_is_the_identity_and_constants_stay_constant():
    images = batch(3)
    assert torch.equal(decode_cells(images, 1), images)
    grey = torch.full((2, 1, 9, 9), 0.3, dtype=DOUBLE)
    for factor in (1, 3):
        torch.testing.assert_close(decode_cells(grey, factor), torch.full((2 * factor**2, 1, 9, 9), 0.3, dtype=DOUBLE))


@pytest.mark.parametrize(("side", "pad", "cell"), [(32, 1, 11), (28, 2, 10), (224, 1, 75)])
def test_sides_that_the_factor_does_not_divide_are_padded_with_grey(side, pad, cell):
    black = torch.zeros(1, 1, side, side)
    decoded = decode_cells(black, 3)
    assert 3 * cell == side + pad
    padded = F.pad(black, (0, pad, 0, pad), value=0.5)
    expected = F.interpolate(padded[:, :, -cell:, -cell:], (side, side), mode="bilinear")
    assert torch.equal(decoded[-1:], expected)
    assert decoded[0].max() == 0
    assert decoded[-1].max() == 0.5


def test_decoding_is_linear_and_loses_nothing():
    a, b = batch(2), batch(2, seed=1)
    mixed = decode_cells(3 * a - 0.5 * b, 2)
    torch.testing.assert_close(mixed, 3 * decode_cells(a, 2) - 0.5 * decode_cells(b, 2), rtol=0, atol=1e-13)
    units = torch.eye(64, dtype=DOUBLE).view(64, 1, 8, 8)
    matrix = decode_cells(units, 2).view(4, 64, 64).transpose(0, 1).reshape(64, 256).T
    values = torch.linalg.svdvals(matrix)
    assert torch.linalg.matrix_rank(matrix) == 64
    assert float(values[0]) == pytest.approx(2.0)
    assert float(values[-1]) == pytest.approx(0.7197, abs=5e-5)


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("side", [6, 7, 8])
def test_composed_images_fill_the_grid(factor, side):
    images = torch.arange(2.0 * factor**2).view(-1, 1, 1, 1).expand(-1, 1, side, side)
    composed = compose(images, factor)
    assert composed.shape == (2, 1, side, side)
    if side % factor == 0:  # the two grids are the same: what went in comes out
        torch.testing.assert_close(decode_cells(composed, factor), images)
    assert composed[1].unique().tolist() == list(range(1, 2 * factor**2, 2))  # block k holds cell k of every image


# ------------------------------------------------------------------------------------------------ the set


def formation(task, **options):
    return MultiFormation(task, **{"factor": 2, "rate": 0.1, "momentum": 0.5, **options})


@pytest.mark.parametrize("choose", ["drawn", "first"])
@pytest.mark.parametrize(("factor", "shape"), [(1, (1, 8, 8)), (2, (3, 8, 8)), (3, (1, 8, 7))])
def test_a_mix_of_training_images_is_that_of_a_loop_over_pixels(make_task, choose, factor, shape):
    make = {"shape": shape, "dtype": DOUBLE}
    made = formation(make_task(**make), factor=factor, choose=choose)
    expected = first_images(make_task(**make), small(factor=factor, choose=choose))
    assert torch.equal(made.pixels.detach(), expected)


def test_the_first_images_of_a_class_are_those_of_the_data_and_drawn_ones_follow_the_seed(make_task):
    first = [formation(make_task(seed=seed), choose="first", factor=1).pixels for seed in (0, 1)]
    assert torch.equal(*first)
    train = make_task().data.train
    assert torch.equal(first[0][2:4], train.pixels(train.class_index(1)[:2]))
    drawn = [formation(make_task(seed=seed), factor=1).pixels for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_whole_images_and_noise(make_task):
    task = make_task()
    whole, noise = formation(task, init="random").pixels, formation(task, init="noise").pixels
    real = task.data.train.pixels()
    assert all(any(torch.equal(image, other) for other in real) for image in whole.detach())
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert 0.2 < float(noise.detach().std()) < 0.28
    with pytest.raises(UserError, match=r"has a class with 20 images; 24 are to be drawn"):
        formation(make_task(ipc=6))


def test_images_are_preprocessed_and_sorted_by_class(make_task):
    task = make_task(shape=(3, 8, 8), preprocessing="zca-kornia")
    made = formation(task)
    assert made.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert made.counts == (8, 8, 8)
    decoded = task.data.forward(decode_cells(made.pixels, 2))
    for c in range(3):  # within a class cell by cell
        mine = [decoded[k * 6 + i] for k in range(4) for i in (2 * c, 2 * c + 1)]
        assert torch.equal(made.images()[8 * c : 8 * c + 8], torch.stack(mine))


def test_clamping_holds_the_pixels_and_keeps_them_learnable(make_task):
    made = formation(make_task())
    with torch.no_grad():
        made.pixels[0, 0, 0, 0], made.pixels[1, 0, 0, 0] = -0.5, 1.5
    made.clamp()
    assert made.pixels.detach()[:2, 0, 0, 0].tolist() == [0, 1]
    assert made.pixels.requires_grad
    assert made.pixels.is_leaf


def test_a_step_is_that_of_sgd_on_what_is_stored(make_task):
    made, other = formation(make_task(dtype=DOUBLE)), formation(make_task(dtype=DOUBLE))
    images = made.images()
    derivative = batch(24, (1, 8, 8)) - 0.5
    made.update(images, derivative)
    (other.images() * derivative).sum().backward()
    torch.testing.assert_close(made.pixels, other.pixels - 0.1 * other.pixels.grad)


@pytest.mark.parametrize("preprocessing", ["meanstd", "zca-kornia", "none"])
def test_stored_sets_decode_without_the_data(make_task, tmp_path, preprocessing):
    task = make_task(shape=(3, 8, 8), preprocessing=preprocessing)
    made, method = formation(task), IDC(small())
    save(tmp_path / "set.safetensors", made.export(task, method))
    distilled = load(tmp_path / "set.safetensors")
    decoded = decode(distilled)
    order = distilled.labels.argsort(stable=True)
    torch.testing.assert_close(decoded[order], made.images().detach())
    pairs = as_dataset(distilled)
    assert len(pairs) == 24
    assert pairs[6][1] == 0  # the second cell of the first image


def test_labels_given_for_the_images_stay_with_their_images(make_task):
    task = make_task()
    made = formation(task)
    soft = torch.arange(24.0)[:, None] + torch.tensor([0.0, 100.0, 200.0])
    distilled = made.export(task, IDC(small()), labels=soft, header={"label_kind": "logits"})
    for image, label in zip(made.images().detach(), soft, strict=True):
        place = int((distilled.labels == label).all(1).nonzero())
        assert torch.equal(decode(distilled)[place], image)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"factor": 0}, "factor of its decoder is 0"),
        ({"factor": True}, "factor of its decoder is True"),
        ({"factor": 3}, "for 24 labels"),
        ({"factor": 1}, "for 24 labels"),
    ],
)
def test_sets_whose_parts_do_not_fit_are_refused(make_task, fields, words):
    task = make_task()
    distilled = formation(task).export(task, IDC(small()))
    decoder = {"name": "multi_formation", **fields}
    distilled.header = distilled.header.model_copy(update={"decoder": decoder})
    with pytest.raises(UserError, match=words):
        decode(distilled)


def test_another_objective_works_on_grids_as_well(make_task):
    class Grids(DM):
        def parametrise(self, task):
            return formation(task, rate=self.params.lr_img)

    method = Grids(DMParams(iterations=3, batch_real=6, lr_img=0.01))
    images, _ = run(method, make_task(), 3)
    assert len(images) == len(method.set.labels) == 24
    assert decode(method.export()).shape == (24, 1, 8, 8)


def test_networks_are_trained_on_decoded_images_and_pictures_show_them(tmp_path):
    """Digits: each of 50 stored images holds four training images; networks must learn from those."""
    from PIL import Image

    net = NetSpec(norm="in", width=8, depth=2)
    task = LiveTask(TaskSpec(dataset=bench.data.info("digits"), ipc=5, network=net))
    save(tmp_path / "set.safetensors", formation(task).export(task, IDC(small())))
    distilled = load(tmp_path / "set.safetensors")
    assert (len(distilled.images), len(distilled.labels)) == (50, 200)
    recipe = resolve({"base": "idc", "epochs": 40}).model_dump(mode="json")
    params = {"network": net.model_dump(), "recipe": recipe, "replicates": 2}
    evaluation = LiveTask(task.spec, inputs={"distilled": tmp_path})
    found = Networks(NetworksParams.model_validate_json(json.dumps(params))).build(evaluation)
    accuracy = (found["logits"].argmax(2) == task.data.test.labels).float().mean(1)
    assert bool((accuracy > 0.3).all())  # chance is 0.1
    with Image.open(pictures.draw(distilled, tmp_path / "set.png")) as picture:
        assert picture.size == (2 + 10 * 26, 2 + 10 * 26)  # ten decoded images of each of ten digits, 24 pixels wide
