"""What a set was made for: the right space for every way of making one, and no verdict where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bench
import bench.data
from bench import inspection
from bench.inspection import CLEAR, Effort, Fit, decide, distance, inspect, label_kinds, lead, look, neighbours

SMALL = Effort(steps=25, replicates=2, width=16, test=200, norms=("none", "in"), depths=(0,))


@pytest.fixture(scope="module")
def digits():
    return bench.data.load("digits")


def drawn(digits, space, seed, ipc=1):
    """Return real images of every class, stored in a space: images, labels."""
    part, rng = bench.data.prepare(digits, space).train, torch.Generator().manual_seed(seed)
    index = torch.cat([part.draw_class(c, ipc, rng) for c in range(10)])
    return part.images(index), part.labels[index]


# ---------------------------------------------------------------------------------------------- the right space


@pytest.mark.parametrize(
    ("space", "seed"),
    [(space, seed) for space in ("none", "meanstd", "zca-kornia") for seed in range(5)]
    + [(space, seed) for space in ("zca-kip", "zca-frepo") for seed in range(2)],
)
def test_the_space_of_real_images(digits, space, seed):
    found = inspect(*drawn(digits, space, seed), digits, effort=SMALL, seed=seed)
    close = {"zca-kip", "zca-frepo"}  # the same ridge: on 64 pixels they differ little beside ten images
    if space in close:
        assert set(found.verdict("spaces")) <= close
        assert space in found.verdict("spaces")
    else:
        assert found.verdict("spaces") == [space]
    assert found.verdict("labels") == ["hard"]


@pytest.mark.parametrize("space", ["none", "meanstd", "zca-kornia"])
def test_the_space_of_learned_images(digits, space, tmp_path):
    task = bench.load_task("digits", 1, preprocessing=space, network="convnet-w16")
    made = bench.distil("dm", task, iterations=30, lr_img=0.1, store=tmp_path, progress=False)
    real = bench.distil("dm", task, iterations=0, lr_img=0.1, store=tmp_path, progress=False)
    assert float((made.images - real.images).abs().mean()) > 0.02  # they have moved
    found = inspect(made.images, made.labels, digits, effort=SMALL)
    assert found.verdict("spaces") == [space]
    others = [fit.distance for fit in found.spaces if fit.name != space]
    assert found.spaces[0].distance < min(others)


def test_noise_is_not_decided(digits):
    images = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 30
    found = inspect(images, torch.arange(10), digits, effort=SMALL)
    assert len(found.verdict("spaces")) > 1


def test_the_same_call_gives_the_same_numbers(digits):
    images, labels = drawn(digits, "meanstd", 0)
    first, again, other = (inspect(images, labels, digits, effort=SMALL, seed=seed) for seed in (1, 1, 2))
    values = lambda found: [(fit.name, fit.accuracy) for fit in found.spaces]  # noqa: E731
    assert values(first) == values(again) != values(other)


# ---------------------------------------------------------------------------------------------- labels and networks


def test_kinds_of_labels(digits):
    hot = torch.nn.functional.one_hot(torch.arange(10), 10).float()
    assert label_kinds(torch.arange(10)) == ["hard"]
    assert label_kinds(hot * 0.8 + 0.02)[0] == "probabilities"
    assert label_kinds(hot - 0.1)[0] == "centred"
    assert label_kinds(hot * 12 - 3)[0] == "logits"
    images, labels = drawn(digits, "meanstd", 0)
    found = inspect(images, (hot - 0.1)[labels], digits, effort=SMALL)
    assert {fit.name for fit in found.labels} == {"centred", "logits", "hard"}
    assert found.verdict("labels")[0] == "centred"
    wrong = inspect(
        images, torch.zeros(10, 10).scatter(1, labels[:, None], 1.0), digits, label_kind="hard", effort=SMALL
    )
    assert [fit.name for fit in wrong.labels] == ["hard"]


def test_the_grid_of_networks():
    found = inspection.networks(bench.data.info("digits"), Effort())
    assert {spec.depth for spec in found.values()} == {1, 2, 3}
    assert {spec.norm for spec in found.values()} == {"none", "in", "bn"}
    assert len(found) == 9
    assert inspection.kinds(bench.data.info("imagenette")) == ["meanstd", "none"]  # too large to whiten


# ---------------------------------------------------------------------------------------------- the pieces


def test_neighbours_are_those_of_numpy():
    images = torch.randn(4, 1, 5, 6, generator=torch.Generator().manual_seed(0)).cumsum(3).cumsum(2)
    values = images.numpy().astype("float64")
    values = values - values.mean()
    pairs = [(values[..., 1:], values[..., :-1]), (values[..., 1:, :], values[..., :-1, :])]
    expected = np.mean([(a * b).mean() for a, b in pairs]) / (values**2).mean()
    assert neighbours(images) == pytest.approx(expected, rel=1e-5)
    assert abs(neighbours(torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(1)))) < 0.05
    assert neighbours(torch.linspace(0, 1, 64).view(1, 1, 1, 64).expand(1, 1, 64, 64)) > 0.95


def test_values_with_the_whitening_undone_are_those_before_it(digits):
    prepared = bench.data.prepare(digits, "zca-frepo")
    pixels = prepared.train.pixels(slice(0, 200))
    transform = prepared.transform
    before = (pixels - transform.mean[:, None, None]) / transform.std[:, None, None]
    before = (before.flatten(1) - transform.centre).view_as(pixels)
    found = look(transform.forward(pixels), transform)
    assert found.inner_neighbours == pytest.approx(neighbours(before), abs=1e-4)
    assert found.inner_std.item() == pytest.approx(before.std(correction=0).item(), rel=1e-4)
    assert distance(found, found) == 0
    kip = bench.data.prepare(digits, "zca-kip")
    assert look(kip.transform.forward(pixels), kip.transform).spread < 1e-3  # every image has norm 1


def test_a_lead_and_its_error():
    rng = np.random.default_rng(0)
    first, other = rng.random((6, 40)), rng.random((6, 40))
    apart = first - other
    error = np.sqrt(apart.mean(1).var(ddof=1) / 6 + apart.mean(0).var(ddof=1) / 40)
    assert lead(torch.tensor(first), torch.tensor(other)) == pytest.approx((apart.mean(), error))


def fits(*rows):
    best = max(accuracy for _, accuracy, _ in rows)
    found = [Fit(name, accuracy, best - accuracy, 0.01, far) for name, accuracy, far in rows]
    return sorted(found, key=lambda fit: -fit.accuracy)


@pytest.mark.parametrize(
    ("rows", "verdict", "reason"),
    [
        ([("a", 0.8, 2.0), ("b", 0.5, 0.6)], ["a"], "decided by accuracy"),
        ([("a", 0.8, 2.0), ("b", 0.5, 0.1)], ["b"], "decided by the values; against accuracy"),
        ([("a", 0.8, 0.9), ("b", 0.75, 0.1)], ["b"], "decided by the values; accuracy alone leaves several"),
        ([("a", 0.8, 0.10), ("b", 0.75, 0.09)], ["b", "a"], "not decided"),
        ([("a", 0.8, 3.0), ("b", 0.75, 1.1)], ["b", "a"], "not decided"),  # the values fit neither
        ([("a", 0.12, 0.1), ("b", 0.11, 2.0)], ["a"], "decided by the values; no network learned"),
        ([("a", 0.14, 1.1), ("b", 0.08, 2.0)], ["a", "b"], "not decided; no network learned"),
    ],
)
def test_verdicts(rows, verdict, reason):
    found = fits(*rows)
    assert decide(found, 0.1).startswith(reason)
    assert [fit.name for fit in found if fit.fits] == verdict
    assert found[0].fits
    assert 0 < CLEAR < 1
