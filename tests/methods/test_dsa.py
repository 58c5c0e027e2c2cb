"""DSA: DC under a siamese augmentation."""

import pytest
import torch
from test_dc import reference, resume, run, small

from methods.dc import DC
from methods.dsa import DSA, DSAParams

STRATEGY = "dsa:color_crop_cutout_flip_scale_rotate"


def small_dsa(**params):
    return DSAParams(**small(**params).model_dump())


@pytest.mark.parametrize("classes", ["per_class", "joint", "auto"])
def test_ten_steps_are_those_of_the_plain_loop(make_task, classes):
    """The reference sends real and synthetic images of a class through the augmentation as one group."""
    p = small_dsa(classes=classes)
    make = {"dtype": torch.float64, "augment": STRATEGY}
    images, log = run(DSA(p), make_task(**make), 10)
    expected, losses = reference(make_task(**make), p, 10)
    torch.testing.assert_close(images, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(torch.stack([step["loss"] for step in log]), torch.tensor(losses, dtype=torch.float64))


@pytest.mark.parametrize("init", ["noise", "real"])
def test_without_augmentation_it_is_dc(make_task, init):
    dsa, _ = run(DSA(small_dsa(init=init)), make_task(augment="none"), 3)
    dc, _ = run(DC(small(init=init)), make_task(augment="none"), 3)
    assert torch.equal(dsa, dc)
    augmented, _ = run(DSA(small_dsa(init=init)), make_task(augment=STRATEGY), 3)
    assert not torch.equal(augmented, dc)


def test_a_resumed_run_ends_with_the_same_bytes(make_task):
    whole, _ = run(DSA(small_dsa()), make_task(augment=STRATEGY), 4)
    assert torch.equal(resume(DSA(small_dsa()), make_task, augment=STRATEGY), whole)


def test_the_network_is_trained_on_augmented_images(make_task, monkeypatch):
    task = make_task(augment=STRATEGY)
    augment = task.augment
    shared = []
    draw = type(augment).draw

    def spy(self, shape, rng, *, groups=1, shared_=None, **options):
        shared.append((groups, options.get("shared", False)))
        return draw(self, shape, rng, groups=groups, **options)

    monkeypatch.setattr(type(augment), "draw", spy)
    run(DSA(small_dsa(outer_loop=2, inner_loop=1, batch_train=256)), task, 1)
    assert shared == [(3, True), (1, False), (3, True)]  # siamese by class, non-siamese by batch


def test_defaults_are_the_papers():
    p = DSAParams()
    assert (p.iterations, p.lr_img, p.momentum, p.init, DSA.augment) == (1000, 0.1, 0.5, "real", "dsa")
    assert p.model_dump(exclude={"init"}) == DC.Params().model_dump(exclude={"init"})


def test_presets_are_those_of_dc(make_task):
    info = make_task().spec.dataset.model_copy(update={"family": "cifar10"})
    assert DSA.preset(info, 10).params == {"outer_loop": 10, "inner_loop": 50}
    assert "2102.08259" in DSA.preset(info, 10).source
    assert DSA.preset(info, 7).source is None


def test_the_result_is_named_after_the_method(make_task):
    method = DSA(small_dsa())
    run(method, make_task(augment=STRATEGY), 1)
    header = method.export().header
    assert (header.method, header.augment, header.native_recipe["base"]) == ("dsa", STRATEGY, "dsa")
