"""Draws and their use: siamese and per-image modes, groups, generators, strategies by name."""

import subprocess
import sys
from types import SimpleNamespace

import operations_by_hand as brute
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.augment import Augment, Draw, get, resolve
from bench.errors import UserError

FULL = "dsa:color_crop_cutout_flip_scale_rotate"
STRATEGIES = [FULL, "dsa-m:color_crop_rotate", "crop_flip", "dc:crop_scale_rotate", "dc:crop_noise",
              "frepo:flip_color_crop_rotate_translate_cutout", "dsa:rotate", "idc:flip_color_crop_scale_rotate_cutout",
              "idc:color_crop_cutout", "none"]  # fmt: skip
RGB, GREY = SimpleNamespace(flip=True, family="cifar10"), SimpleNamespace(flip=False, family="mnist")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n, shape=(3, 8, 8), seed=1):
    return torch.randn(n, *shape, generator=rng(seed), dtype=torch.float64)


def one_group(draw, index):
    """The draw of a single group."""
    return Draw(1, draw.shared, draw.choice[index : index + 1], draw.uniform[index : index + 1])


# ---------------------------------------------------------------------------------------------- siamese mode


@given(
    strategy=st.sampled_from([FULL, "dsa-m:scale_flip_crop", "crop_flip", "idc:color_crop_scale_rotate_cutout"]),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_siamese_batches_share_everything(strategy, sizes, seed):
    augment = get(strategy)
    draw = augment.draw((1, 3, 8, 8), rng(seed), shared=True)
    a, b = batch(sizes[0]), batch(sizes[1], seed=2)
    joint = augment.apply(torch.cat([a, b]), draw)
    assert torch.equal(joint, torch.cat([augment.apply(a, draw), augment.apply(b, draw)]))


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid")
@pytest.mark.parametrize("name", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_a_batch_of_one_grey_pixel_works(name):
    augment = get(f"dsa:{name}")
    for shared in (True, False):
        assert augment.apply(batch(1, (1, 1, 1)), augment.draw((1, 1, 1, 1), rng(), shared=shared)).shape == (
            1,
            1,
            1,
            1,
        )


def test_one_value_per_group_and_one_value_per_image():
    augment, same = get("dsa:rotate"), batch(1).expand(6, 3, 8, 8)
    shared = augment.apply(same, augment.draw(same.shape, rng(), groups=2, shared=True))
    each = augment.apply(same, augment.draw(same.shape, rng(), groups=2))
    assert len(shared.flatten(1).unique(dim=0)) == 2
    assert torch.equal(shared[:3], shared[:1].expand(3, 3, 8, 8))
    assert len(each.flatten(1).unique(dim=0)) == 6


def test_the_operation_is_one_per_group_and_parameters_vary_within():
    """Colours shift all images of ones, each by its own amount; a flip changes none."""
    augment = get("dsa:color_flip")
    ones = torch.ones(8, 3, 4, 4)
    for seed in range(20):
        out = augment.apply(ones, augment.draw(ones.shape, rng(seed), groups=2))
        for group in out.split(4):
            changed = (group != 1).flatten(1).any(1)
            assert changed.all() or not changed.any()
            if changed.all():
                assert len(group.flatten(1).unique(dim=0)) == 4


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seed", range(4))
def test_groups_together_equal_groups_alone(strategy, seed):
    augment = get(strategy)
    images = batch(15)
    for shared in (True, False):
        draw = augment.draw(images.shape, rng(seed), groups=5, shared=shared)
        alone = [augment.apply(part, one_group(draw, k)) for k, part in enumerate(images.split(3))]
        torch.testing.assert_close(augment.apply(images, draw), torch.cat(alone), rtol=1e-12, atol=1e-12)


@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=6), seed=st.integers(0, 1000),
       strategy=st.sampled_from([FULL, "dsa-m:color_crop", "dc:crop_rotate"]))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_groups_of_different_sizes(counts, seed, strategy):
    augment = get(strategy)
    images = batch(sum(counts))
    draw = augment.draw((len(counts), 3, 8, 8), rng(seed), groups=len(counts), shared=True)
    alone = [augment.apply(part, one_group(draw, k)) for k, part in enumerate(images.split(counts)) if len(part)]
    together = augment.apply(images, draw, counts=counts)
    torch.testing.assert_close(together, torch.cat([images[:0], *alone]), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------------- generators


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shared", [True, False])
def test_a_group_with_its_own_generator_is_a_batch_of_its_own(strategy, shared):
    augment = get(strategy)
    draw = augment.draw((12, 3, 8, 8), [rng(5), rng(6), rng(7)], groups=3, shared=shared)
    for index, seed in enumerate((5, 6, 7)):
        alone = augment.draw((4, 3, 8, 8), rng(seed), shared=shared)
        assert torch.equal(draw.choice[index], alone.choice[0])
        assert torch.equal(draw.uniform[index], alone.uniform[0])
    images = batch(12)
    whole = augment.apply(images, draw)
    if not shared:
        single = torch.cat([augment(part, rng(seed)) for part, seed in zip(images.split(4), (5, 6, 7), strict=True)])
        torch.testing.assert_close(whole, single, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_the_generator_decides(strategy):
    augment, images = get(strategy), batch(6)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augment(images, rng(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(augment(images, rng(3)), first)
    others = [augment(images, rng(seed)) for seed in range(4, 24)]
    assert (strategy == "none") == all(torch.equal(other, first) for other in others)


def test_none_draws_nothing():
    generator = rng()
    before = generator.get_state()
    images = batch(4)
    assert get("none")(images, generator) is images
    assert torch.equal(generator.get_state(), before)


def test_gradients_reach_the_images_through_every_strategy():
    for strategy in STRATEGIES[:-1]:
        augment = get(strategy)
        images = batch(4, (2, 5, 5)).requires_grad_()
        draw = augment.draw(images.shape, rng(8), groups=2)
        if strategy.startswith("dc:crop_"):  # the fill colour is a constant, as in the paper's code
            (gradient,) = torch.autograd.grad(augment.apply(images, draw).sum(), images)
            assert gradient.any()
        else:
            assert torch.autograd.gradcheck(lambda x, a=augment, d=draw: a.apply(x, d), (images,)), strategy


def test_modes():
    ordered = get("dsa-m:flip_color")
    images = batch(6)
    draw = ordered.draw(images.shape, rng(1))
    flip, color = (Augment(f"dsa:{name}") for name in ("flip", "color"))
    choice = torch.zeros(1, 1, dtype=torch.int64)
    expected = flip.apply(images, Draw(1, False, choice, draw.uniform[..., :1]))
    expected = color.apply(expected, Draw(1, False, choice, draw.uniform[..., 1:]))
    torch.testing.assert_close(ordered.apply(images, draw), expected)
    crop_flip, written_out = get("crop_flip"), get("dsa-m:crop_flip")
    assert torch.equal(crop_flip(images, rng(2)), written_out(images, rng(2)))


def test_idc_is_flip_color_one_of_the_rest_and_cutout():
    """Written out image by image: a choice for each batch, numbers for each image, in whatever order they are named."""
    augment, images = get("idc:cutout_rotate_scale_color_crop_flip"), batch(8)
    seen = set()
    for seed in range(12):
        draw = augment.draw(images.shape, rng(seed), groups=2)
        assert draw.uniform.shape == (2, 4, 1 + 3 + 2 + 2)
        expected = []
        for index, image in enumerate(images):
            group = index // 4
            u = draw.uniform[group, index % 4].double()
            choice = ("rotate", "scale", "crop")[int(draw.choice[group, 0])]  # as listed
            seen.add(choice)
            image = brute.DSA["color"](brute.DSA["flip"](image, u), u[1:])
            expected.append(brute.DSA["cutout"](brute.DSA[choice](image, u[4:]), u[6:]))
        torch.testing.assert_close(augment.apply(images, draw), torch.stack(expected), rtol=1e-6, atol=1e-6)
    assert seen == {"rotate", "scale", "crop"}


def test_idc_without_a_choice_is_all_in_turn():
    images = batch(6)
    for listed in ("color_crop_cutout", "flip_color", "color_crop"):
        assert torch.equal(get(f"idc:{listed}")(images, rng(3)), get(f"dsa-m:{listed}")(images, rng(3)))


def test_draws_must_fit():
    augment = get(FULL)
    each, shared = augment.draw((6, 3, 8, 8), rng(), groups=2), augment.draw((2, 3, 8, 8), rng(), groups=2, shared=True)
    for images, draw, counts in ((batch(4), each, None), (batch(6), each, [2, 4]), (batch(3), shared, None),
                                 (batch(4), shared, [1, 2]), (batch(4), shared, [4])):  # fmt: skip
        with pytest.raises(ValueError, match="groups"):
            augment.apply(images, draw, counts=counts)
    with pytest.raises(ValueError, match="equal size"):
        augment.draw((5, 3, 8, 8), rng(), groups=2)
    with pytest.raises(ValueError, match="generators"):
        augment.draw((6, 3, 8, 8), [rng(), rng()], groups=3)


# ---------------------------------------------------------------------------------------------- names


def test_names_become_explicit_without_torch():
    program = (
        "import sys, bench.augment\n"
        "from types import SimpleNamespace\n"
        "assert bench.augment.resolve('dsa', SimpleNamespace(flip=True)) == '" + FULL + "'\n"
        "assert not {'torch', 'scipy', 'pandas'} & set(sys.modules), 'heavy import'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("text", "rgb", "grey"),
    [
        ("dsa", FULL, "dsa:color_crop_cutout_scale_rotate"),
        ("dsa-m", FULL.replace("dsa", "dsa-m"), "dsa-m:color_crop_cutout_scale_rotate"),
        ("dc", "none", "dc:crop_scale_rotate"),
        ("frepo", "frepo:flip_color_crop_rotate_translate_cutout", "frepo:color_crop_rotate_translate_cutout"),
        ("idc", "idc:flip_color_crop_scale_rotate", "idc:color_crop_scale_rotate"),
        ("idc-match", "idc:color_crop_cutout", "idc:color_crop"),
        ("none", "none", "none"),
        ("None", "none", "none"),
        ("crop_flip", "crop_flip", "crop_flip"),
        ("dsa:crop_flip", "dsa:crop_flip", "dsa:crop_flip"),
        ("dc:crop_noise", "dc:crop_noise", "dc:crop_noise"),
    ],
)
def test_resolve(text, rgb, grey):
    assert (resolve(text, RGB), resolve(text, GREY)) == (rgb, grey)
    assert resolve(rgb, RGB) == rgb
    get(rgb), get(grey)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("das", ["'das'", "did you mean 'dsa'"]),
        ("dsa:colour", ["'colour'", "did you mean 'color'"]),
        ("dsa:", ["''"]),
        ("dsa:crop_crop", ["twice"]),
        ("dc:cutout", ["'cutout'"]),
        ("dsa_crop", ["unknown augmentation"]),
    ],
)
def test_unknown_names_are_refused(text, words):
    with pytest.raises(UserError) as error:
        resolve(text, RGB)
    assert all(word in str(error.value) for word in words), str(error.value)
    with pytest.raises(UserError):
        get(text)


def test_a_name_that_depends_on_the_dataset_is_not_explicit():
    with pytest.raises(UserError, match="dsa:color_crop_cutout_flip_scale_rotate"):
        get("dsa")
