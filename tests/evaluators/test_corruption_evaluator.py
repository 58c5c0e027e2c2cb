"""Corruptions against Pillow, SciPy, colorsys and closed forms; the evaluator against plain networks in a suite."""

from __future__ import annotations

import colorsys
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from safetensors.torch import load_file
from scipy import ndimage

import bench.data
import bench.nets
import bench.report
import bench.suite
from bench.api import NetSpec
from bench.errors import UserError
from bench.report.measures import measure_tables
from bench.run import Store, run_plan
from evaluators import distortions
from evaluators.corruption import Corruption, CorruptionParams, chosen, spoiled
from evaluators.distortions import COMMON, NOISE_STD, PUBLISHED, published_level


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def photos(n=6, channels=3, size=32):
    """Return smooth 8-bit images as pixels in [0, 1]."""
    noise = torch.rand(n, channels, size // 4, size // 4, generator=rng(1))
    smooth = torch.nn.functional.interpolate(noise, size=size, mode="bicubic").clamp(0, 1)
    return (smooth * 255).round() / 255


def as_pillow(pixels):
    arrays = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one[..., 0] if one.shape[2] == 1 else one) for one in arrays]


def from_pillow(images, like):
    arrays = np.stack([np.asarray(image) for image in images]).reshape(len(images), *like.shape[2:], like.shape[1])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255


def level(name, severity):
    return COMMON[name].levels[severity - 1]


# ------------------------------------------------------------------------------------------------ published


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_is_that_of_pillow_and_close_to_a_gaussian(channels):
    pixels = photos(channels=channels)
    blurred = PUBLISHED["blur"](pixels, published_level("blur", 32), rng())
    plain = [image.filter(ImageFilter.GaussianBlur(2)) for image in as_pillow(pixels)]
    assert torch.equal(blurred, from_pillow(plain, pixels))
    gauss = ndimage.gaussian_filter(pixels.numpy(), (0, 0, 2, 2), mode="nearest")
    away = np.abs(blurred.numpy() - gauss)
    assert away.mean() < 0.005
    assert away[..., 7:-7, 7:-7].max() < 0.02  # three boxes in place of a Gaussian repeat the border another way
    assert (pixels - blurred).abs().mean() > 0.03


def test_blur_keeps_the_mean():
    dark_frame = torch.nn.functional.pad(photos(size=16), (8, 8, 8, 8))
    blurred = PUBLISHED["blur"](dark_frame, 2.0, rng())
    assert blurred.mean().item() == pytest.approx(dark_frame.mean().item(), abs=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_invert_is_that_of_pillow_and_its_own_inverse(channels):
    pixels = photos(channels=channels)
    inverted = PUBLISHED["invert"](pixels, None, rng())
    torch.testing.assert_close(inverted, from_pillow([ImageOps.invert(i) for i in as_pillow(pixels)], pixels))
    twice = PUBLISHED["invert"](inverted, None, rng())
    assert torch.equal((twice * 255).round().byte(), (pixels * 255).round().byte())


def test_invert_commutes_with_normalisation():
    data = bench.data.prepare(bench.data.load("debug"), "meanstd", "cpu")
    pixels = data.test.pixels()
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (data.info.mean, data.info.std))
    inverted = data.forward(PUBLISHED["invert"](pixels, None, rng()))
    torch.testing.assert_close(inverted, (1 - 2 * mean) / std - data.forward(pixels), rtol=1e-5, atol=1e-5)


def test_noise_has_the_published_variance_and_is_clipped():
    pixels = torch.full((50, 3, 32, 32), 0.5)
    noise = PUBLISHED["noise"](pixels, published_level("noise", 32), rng()) - pixels
    assert noise.var().item() == pytest.approx(0.005, rel=0.02)  # 0.5 is 7 deviations from the ends: nothing is clipped
    assert noise.mean().item() == pytest.approx(0, abs=1e-3)
    at_end = PUBLISHED["noise"](torch.zeros(50, 3, 32, 32), NOISE_STD, rng())
    assert at_end.min() == 0
    assert (at_end == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert at_end.mean().item() == pytest.approx(NOISE_STD / math.sqrt(2 * math.pi), rel=0.02)


def test_levels_above_64_pixels_are_what_scaling_down_leaves():
    assert [published_level(name, 64) for name in ("noise", "blur", "invert")] == [math.sqrt(0.005), 2.0, None]
    source = np.random.default_rng(0)
    field = Image.fromarray(source.normal(0, 0.2, (375, 375)).astype(np.float32))
    left = np.asarray(field.resize((128, 128), Image.Resampling.BILINEAR))
    assert published_level("noise", 128) == pytest.approx(left.std(), rel=0.05)
    edge = np.zeros((375, 375), np.float32)
    edge[:, 180:] = 1
    before = Image.fromarray(ndimage.gaussian_filter(edge, 2)).resize((128, 128), Image.Resampling.BILINEAR)
    after = ndimage.gaussian_filter(np.asarray(Image.fromarray(edge).resize((128, 128))), published_level("blur", 128))
    assert np.abs(np.asarray(before) - after).max() < 0.03  # of a step of height 1


# ------------------------------------------------------------------------------------------------ common


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_gaussian_blur_is_that_of_scipy(severity):
    pixels, sigma = photos(), level("gaussian_blur", severity)
    blurred = distortions.gaussian_blur(pixels, sigma, rng())
    plain = ndimage.gaussian_filter(pixels.double().numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4)
    np.testing.assert_allclose(blurred.numpy(), plain, atol=1e-6)
    large = photos(n=2, size=64)
    plain = ndimage.gaussian_filter(large.double().numpy(), (0, 0, 2 * sigma, 2 * sigma), mode="nearest", truncate=4)
    np.testing.assert_allclose(distortions.gaussian_blur(large, sigma, rng()).numpy(), plain, atol=1e-6)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_defocus_is_a_smoothed_disk(severity):
    radius, sigma = level("defocus_blur", severity)
    place = np.arange(-8, 9)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).astype(float)
    line = np.exp(-0.5 * (np.array([-1, 0, 1]) / sigma) ** 2)
    line /= line.sum()
    kernel = ndimage.correlate(disk / disk.sum(), np.outer(line, line), mode="constant")
    assert kernel.sum() == pytest.approx(1)
    pixels = photos(n=2)
    plain = ndimage.correlate(pixels.double().numpy(), kernel[None, None], mode="mirror")
    np.testing.assert_allclose(distortions.defocus_blur(pixels, (radius, sigma), rng()).numpy(), plain, atol=1e-6)


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("name", ["brightness", "saturate"])
def test_light_and_colour_are_those_of_hsv(name, severity):
    pixels = photos(n=1, size=16)
    pixels[0, :, 0, :4] = torch.tensor([0.0, 1.0, 0.5, 0.25])  # grey pixels, black and white among them
    found = COMMON[name].apply(pixels, level(name, severity), rng())
    plain = pixels.double().clone()
    for i in range(16):
        for j in range(16):
            hue, saturation, value = colorsys.rgb_to_hsv(*plain[0, :, i, j].tolist())
            if name == "brightness":
                value = min(1, value + level(name, severity))
            else:
                factor, amount = level(name, severity)
                saturation = min(1, max(0, saturation * factor + amount))
            plain[0, :, i, j] = torch.tensor(colorsys.hsv_to_rgb(hue, saturation, value))
    torch.testing.assert_close(found.double(), plain, rtol=0, atol=2e-6)
    grey = photos(n=1, channels=1)
    torch.testing.assert_close(distortions.brightness(grey, 0.2, rng()), (grey + 0.2).clamp(max=1))


def test_contrast_by_hand():
    pixels = photos(n=2)
    found = distortions.contrast(pixels, 0.3, rng())
    for n in range(2):
        for c in range(3):
            mean = pixels[n, c].double().mean()
            plain = (pixels[n, c].double() - mean) * 0.3 + mean
            torch.testing.assert_close(found[n, c].double(), plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_and_pixelate_are_those_of_pillow(channels):
    pixels = photos(channels=channels)
    images = as_pillow(pixels)
    compressed = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=58)
        compressed.append(Image.open(buffer))
    assert torch.equal(COMMON["jpeg_compression"].apply(pixels, 58, rng()), from_pillow(compressed, pixels))
    boxes = [i.resize((24, 24), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX) for i in images]
    found = COMMON["pixelate"].apply(pixels, 0.75, rng())
    assert torch.equal(found, from_pillow(boxes, pixels))
    assert not torch.equal(found, pixels)


def test_rotate_turns_every_image_by_the_angle_one_way_or_the_other():
    pixels = photos(n=8, size=31)
    found = distortions.rotate(pixels, 20, rng())
    ways = []
    for one, turned in zip(pixels, found, strict=True):
        both = [ndimage.rotate(one.numpy(), angle, (1, 2), reshape=False, order=1) for angle in (-20, 20)]
        inner = (slice(None), slice(2, -2), slice(2, -2))  # SciPy treats the outermost ring in another way
        misses = [np.abs(turned.numpy() - plain)[inner] for plain in both]
        ways.append(int(np.argmin([miss.mean() for miss in misses])))
        assert np.median(misses[ways[-1]]) < 1e-5
        assert misses[ways[-1]].mean() < 0.01
    assert set(ways) == {0, 1}
    torch.testing.assert_close(distortions.rotate(pixels, 0, rng()), pixels, rtol=0, atol=1e-5)
    wide = distortions.rotate(photos(n=1, size=32)[:, :, :16], 90, rng())  # the middle square lies on its side
    square = photos(n=1, size=32)[:, :, :16, 8:24]
    turned = [torch.rot90(square, k, (2, 3)) for k in (1, 3)]
    assert min((wide[:, :, :, 8:24] - one).abs().max().item() for one in turned) < 1e-4


def test_noise_of_each_kind_has_its_moments():
    value = torch.full((40, 3, 32, 32), 0.4)
    shot = distortions.shot_noise(value, 100, rng()).double()
    assert shot.mean().item() == pytest.approx(0.4, abs=2e-3)
    assert shot.var().item() == pytest.approx(0.4 / 100, rel=0.03)
    torch.testing.assert_close((shot * 100).round() / 100, shot, rtol=0, atol=1e-6)
    speckle = distortions.speckle_noise(value, 0.1, rng())
    assert speckle.std().item() == pytest.approx(0.04, rel=0.02)
    assert torch.equal(distortions.speckle_noise(torch.zeros(1, 1, 8, 8), 0.1, rng()), torch.zeros(1, 1, 8, 8))
    impulse = distortions.impulse_noise(value, 0.07, rng())
    assert (impulse == 0).float().mean().item() == pytest.approx(0.035, rel=0.05)
    assert (impulse == 1).float().mean().item() == pytest.approx(0.035, rel=0.05)
    assert (impulse == value).float().mean().item() == pytest.approx(0.93, rel=0.01)


@pytest.mark.parametrize("name", COMMON)
@pytest.mark.parametrize("shape", [(3, 8), (3, 64), (1, 8), (1, 28)])
def test_every_corruption_fits_every_image(name, shape):
    if COMMON[name].colour and shape[0] == 1:
        return
    pixels = photos(n=3, channels=shape[0], size=shape[1])
    assert len(COMMON[name].levels) == 5
    changes = []
    for severity in range(1, 6):
        found = COMMON[name].apply(pixels, level(name, severity), rng(2))
        assert (found.shape, found.dtype) == (pixels.shape, torch.float32)
        assert found.min() >= 0
        assert found.max() <= 1
        changes.append((found - pixels).square().mean().item())
    assert min(changes) > 0
    # saturate first takes colour away and then adds some; of 8 pixels pixelate leaves 7, 7, 6, 6, 5, all alike
    if name != "saturate" and (name, shape[1]) != ("pixelate", 8):
        assert changes[4] > 1.2 * changes[0]


# ------------------------------------------------------------------------------------------------ the evaluator


def test_names_and_what_they_stand_for(evaluation):
    grey, colour = bench.data.info("digits"), bench.data.info("debug")
    assert chosen(("published",), grey) == ["noise", "blur", "invert"]
    assert chosen(("invert", "published", "rotate"), grey) == ["invert", "noise", "blur", "rotate"]
    assert chosen(("common",), colour) == list(COMMON)
    assert chosen(("common",), grey) == [name for name in COMMON if name != "saturate"]
    with pytest.raises(UserError, match="needs colour, but digits is grey"):
        chosen(("saturate",), grey)
    with pytest.raises(UserError, match="did you mean 'gaussian_blur'"):
        chosen(("gausian_blur",), grey)
    (training,) = Corruption.trainings(CorruptionParams(), evaluation(torch.zeros(1), {}).eval_spec)
    assert training.weights
    for wrong in ({"severities": [6]}, {"severities": []}, {"corruptions": []}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CorruptionParams(**wrong)


def test_the_noise_belongs_to_the_test_set():
    digits, debug = (bench.data.prepare(bench.data.load(name), "meanstd", "cpu") for name in ("digits", "debug"))

    def noise(data, name="noise", severity=None, std=0.1):
        return torch.cat(list(spoiled(data, name, std, severity))) - data.test.images()

    assert torch.equal(noise(digits), noise(digits))
    assert noise(digits).shape == digits.test.images().shape
    common = noise(digits, "gaussian_noise", 1), noise(digits, "gaussian_noise", 2)
    middle = (digits.test.pixels()[:90, :1] - 0.5).abs() < 0.2  # where nothing is clipped
    differ = [one[:90, :1][middle] for one in (noise(digits), noise(debug), *common)]
    assert len(differ[0]) > 900
    for i, one in enumerate(differ):
        for other in differ[:i]:
            assert torch.corrcoef(torch.stack([one, other]))[0, 1].abs() < 0.1


@pytest.mark.parametrize("preprocessing", ["meanstd", "zca-kornia"])
def test_pixels_are_spoiled_before_the_preprocessing(preprocessing):
    data = bench.data.prepare(bench.data.load("digits"), preprocessing, "cpu")
    inverted = torch.cat(list(spoiled(data, "invert", None)))
    torch.testing.assert_close(data.to_pixels(inverted), 1 - data.test.pixels(), rtol=0, atol=1e-4)


SUITE = """\
title: Corruptions
grid: {datasets: [digits], methods: [random], ipc: [5], seeds: 1, network: convnet-in-w8-d2}
evaluation: {network: convnet-bn-w8-d2, recipe: {base: dc, epochs: 40}, replicates: 2}
evaluators:
  - accuracy
  - {name: corruption, params: {corruptions: [published, rotate, contrast], severities: [1, 5], best_of_networks: true}}
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Return the plan, the store and the measures of the evaluator."""
    folder = tmp_path_factory.mktemp("corruption")
    (folder / "suite.yaml").write_text(SUITE)
    plan = bench.suite.plan(bench.suite.load(folder / "suite.yaml"))
    store = Store(folder / "out")
    assert run_plan(plan, store, executor="inline", device="cpu", progress=False).exit_code == 0
    lines = [json.loads(line) for line in (folder / "out" / "records.jsonl").read_text().splitlines()]
    return plan, store, lines


def of(lines, metric, **tags):
    """Return the values of a metric with exactly these tags, by network."""
    return {r["replicate"]: r["value"] for r in lines if (r["metric"], r["tags"]) == (metric, tags)}


def test_accuracies_are_those_of_plain_networks(suite):
    plan, store, lines = suite
    cell = next(c for c in plan.cells if c.config.get("artifact") == "networks" and c.config["params"]["weights"])
    tensors = load_file(store.verified(cell.key) / "tensors.safetensors")
    info, test = bench.data.info("digits"), bench.data.load("digits").test
    inverted = [ImageOps.invert(Image.fromarray(one)) for one in test.images[:, 0].numpy()]
    blurred = [Image.fromarray(one).filter(ImageFilter.GaussianBlur(2)) for one in test.images[:, 0].numpy()]
    clean = of(lines, "accuracy")
    assert of(lines, "corruption_accuracy", corruption="clean") == clean
    for e in range(2):
        network = bench.nets.build(NetSpec(norm="bn", width=8, depth=2), info.shape, info.classes)
        network.load_state_dict({k.removeprefix("weights/"): v[e] for k, v in tensors.items() if "weights/" in k})
        network.eval()
        for name, images in (("invert", inverted), ("blur", blurred)):
            pixels = torch.from_numpy(np.stack([np.asarray(i) for i in images]))[:, None].float() / 255
            right = (network((pixels - info.mean[0]) / info.std[0]).argmax(1) == test.labels).double().mean()
            assert of(lines, "corruption_accuracy", corruption=name)[e] == pytest.approx(float(right), abs=1e-9)
        assert of(lines, "corruption_accuracy", corruption="invert")[e] < clean[e] - 0.2
        assert clean[e] > 0.4


def test_means_over_severities_and_corruptions(suite):
    _, _, lines = suite
    names = ("rotate", "contrast")
    each = {(n, s): of(lines, "severity_accuracy", corruption=n, severity=s) for n in names for s in (1, 5)}
    for e in range(2):
        by_name = {name: (each[name, 1][e] + each[name, 5][e]) / 2 for name in names}
        for name in names:
            assert of(lines, "common_accuracy", corruption=name)[e] == pytest.approx(by_name[name])
        error = 1 - sum(by_name.values()) / 2
        assert of(lines, "mean_corruption_error")[e] == pytest.approx(error)
        clean = of(lines, "accuracy")[e]
        assert of(lines, "relative_corruption_error")[e] == pytest.approx(error - (1 - clean))
    assert each["rotate", 5][0] < each["rotate", 1][0]


def test_the_best_network_has_records_of_its_own(suite):
    _, _, lines = suite
    noise = of(lines, "corruption_accuracy", corruption="noise")
    assert of(lines, "corruption_accuracy", corruption="noise", best_of=2) == {None: max(noise.values())}
    assert not of(lines, "mean_corruption_error", best_of=2)


def test_the_report_has_both_tables(suite):
    _, store, lines = suite
    tables = [t for t in measure_tables(bench.report.load(store.root)) if "best_of=2" not in t.notes]
    plain = next(table for table in tables if table.title == "Accuracy on corrupted test images, digits")
    assert plain.columns == tuple((name, "accuracy") for name in ("clean", "noise", "blur", "invert"))
    values = of(lines, "corruption_accuracy", corruption="blur").values()
    assert plain.rows[0].cells[2].value == pytest.approx(sum(values) / 2)
    common = next(table for table in tables if table.title.startswith("Accuracy on common corruptions"))
    assert [title for _, title in common.columns] == ["accuracy"] * 2 + ["mean error", "mean error minus clean error"]
    assert [group for group, _ in common.columns[:2]] == ["rotate", "contrast"]
    severities = next(table for table in tables if table.title == "Measures of corruption, digits")
    assert len(severities.columns) == 4
