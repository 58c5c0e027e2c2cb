"""CutMix against loops over pixels, and the rules of the paper that uses it."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bench.augment import cutmix
from bench.augment.cutmix import Cut, box, draw, mix


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(networks=2, n=5, shape=(3, 8, 8), seed=1):
    return torch.randn(networks, n, *shape, generator=rng(seed), dtype=torch.float64)


def one_hot(networks, n, classes=4):
    return torch.eye(classes, dtype=torch.float64)[torch.randint(classes, (networks, n), generator=rng(2))]


@settings(max_examples=80, deadline=None)
@given(
    lam=st.floats(0, 1, exclude_max=True, width=32),
    row=st.floats(0, 1, exclude_max=True, width=32),
    column=st.floats(0, 1, exclude_max=True, width=32),
    size=st.sampled_from([(8, 8), (7, 7), (6, 9), (1, 1)]),
)
def test_the_box_is_that_of_the_loop(lam, row, column, size):
    inside = box(torch.tensor([lam]), torch.tensor([[row, column]]), *size)
    ends = []
    for side, place in zip(size, (row, column), strict=True):
        length, middle = side * math.sqrt(1 - lam), side * place
        # rounding of float32 may decide what lies next to a whole number
        assume(all(x == round(x) or abs(x - round(x)) > 1e-5 for x in (length, middle)))
        half = int(length) // 2
        ends.append((max(int(middle) - half, 0), min(int(middle) + half, side)))
    for y in range(size[0]):
        for x in range(size[1]):
            assert bool(inside[0, y, x]) == (ends[0][0] <= y < ends[0][1] and ends[1][0] <= x < ends[1][1])


def test_mixing_is_the_loop_over_pixels_and_labels_weigh_what_is_seen():
    images, target = batch(), one_hot(2, 5)
    cut = draw(images.shape, 1.0, [rng(4), rng(11)])
    assert cut.inside.any(2).any(1).all()
    mixed, soft = mix(images, target, cut)
    for e in range(2):
        seen = int(cut.inside[e].sum()) / 64
        for i in range(5):
            other, pasted = int(cut.partner[e, i]), images[e, i].clone()
            for y in range(8):
                for x in range(8):
                    if cut.inside[e, y, x]:
                        pasted[:, y, x] = images[e, other, :, y, x]
            assert torch.equal(mixed[e, i], pasted)
            expected = (1 - seen) * target[e, i] + seen * target[e, other]
            torch.testing.assert_close(soft[e, i], expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(soft.sum(2), torch.ones(2, 5, dtype=torch.float64))


def test_lam_one_and_probability_zero_change_nothing():
    images, target = batch(), one_hot(2, 5)
    partner = torch.tensor([[4, 3, 2, 1, 0]] * 2)
    empty = Cut(partner, box(torch.ones(2), torch.full((2, 2), 0.5), 8, 8))
    for cut in (empty, draw(images.shape, 0.0, [rng(1), rng(2)])):
        mixed, soft = mix(images, target, cut)
        assert torch.equal(mixed, images)
        assert torch.equal(soft, target)


def test_a_box_at_the_border_counts_with_what_is_left_of_it():
    whole = box(torch.tensor([0.75]), torch.tensor([[0.5, 0.5]]), 8, 8)
    corner = box(torch.tensor([0.75]), torch.tensor([[0.0, 0.99]]), 8, 8)
    assert (int(whole.sum()), int(corner.sum())) == (16, 2 * 3)  # sides 8 sqrt(1/4) = 4; centre at row 0, column 7


def test_each_network_draws_from_its_own_generator():
    images, target = batch(3), one_hot(3, 5)
    together = mix(images, target, draw(images.shape, 0.5, [rng(5), rng(6), rng(7)]))
    for e, seed in enumerate((5, 6, 7)):
        alone = mix(images[e : e + 1], target[e : e + 1], draw(images[e : e + 1].shape, 0.5, [rng(seed)]))
        assert all(torch.equal(a[e], b[0]) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_how_often_and_how_much(probability):
    """lam is uniform: the box of an image of 64 pixels has (1 - lam) of its area where it is not cut off."""
    images = torch.zeros(1500, 2, 1, 64, 64, dtype=torch.float64)[:, :, :, :1, :1].expand(-1, -1, -1, 64, 64)
    inside = draw(images.shape, probability, [rng(seed) for seed in range(1500)]).inside
    used = inside.flatten(1).any(1).double().mean()
    # a box of less than two pixels is none: lam above 1 - (2/64)^2
    assert abs(float(used) - probability) < 4 * math.sqrt(probability * (1 - probability) / 1500) + 2e-3
    centred = box(torch.rand(1500, generator=rng(1)), torch.full((1500, 2), 0.5), 64, 64).double().mean()
    assert abs(float(centred) - 0.5) < 0.04


def test_only_the_generator_decides():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = cutmix.draw(batch().shape, 0.5, [rng(1), rng(2)])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, cutmix.draw(batch().shape, 0.5, [rng(1), rng(2)]), strict=True))
