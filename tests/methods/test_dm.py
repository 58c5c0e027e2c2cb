"""DM against a plain class loop in float64, closed forms, and the rules of its paper."""

import pytest
import torch
from test_dc import resume, run
from torch import nn

from bench.api import NetSpec
from methods.dm import DM, DMParams

DOUBLE = torch.float64
STRATEGY = "dsa:color_crop_cutout_flip_scale_rotate"


def small(**params):
    return DMParams(**({"iterations": 10, "batch_real": 6} | params))


def reference(task, p, steps, *, batch_norm=False):
    """DM as its pseudo-code says; with `batch_norm` one forward of all real and one of all synthetic images."""
    classes, ipc = task.spec.dataset.classes, task.spec.ipc
    images = torch.stack([task.data.train.sample_class(c, ipc, task.rng("init")) for c in range(classes)])
    velocity, losses = torch.zeros_like(images), []
    for step in range(steps):
        network = task.network()
        task.initialise(network, task.rng("network"))
        batches = [task.data.train.sample_class(c, p.batch_real, task.rng("real")) for c in range(classes)]
        draw = task.augment.draw((classes, *images.shape[2:]), task.rng("augment"), groups=classes, shared=True)
        leaf = images.clone().requires_grad_()
        groups = [torch.cat([batch, leaf[c]]) for c, batch in enumerate(batches)]
        counts = [len(group) for group in groups]
        augmented = task.augment.apply(torch.cat(groups), draw, counts=counts).split(counts)
        sides = [[part[:-ipc] for part in augmented], [part[-ipc:] for part in augmented]]
        if batch_norm:
            embedded = [network.features(torch.cat(side)).split([len(part) for part in side]) for side in sides]
        else:
            embedded = [[network.features(part) for part in side] for side in sides]
        loss = sum((a.detach().mean(0) - b.mean(0)).square().sum() for a, b in zip(*embedded, strict=True))
        gradient = torch.autograd.grad(loss, leaf)[0]
        velocity = gradient if step == 0 else p.momentum * velocity + gradient
        images = images - p.lr_img * velocity
        losses.append(loss.detach() / classes)
    return images.flatten(0, 1), torch.stack(losses)


@pytest.mark.parametrize("augment", ["none", STRATEGY])
@pytest.mark.parametrize("options", [{"classes": "per_class"}, {"classes": "joint"}, {}, {"chunk": 12}])
def test_ten_steps_are_those_of_the_plain_loop(make_task, augment, options):
    p, make = small(**options), {"dtype": DOUBLE, "augment": augment}
    images, log = run(DM(p), make_task(**make), 10)
    expected, losses = reference(make_task(**make), p, 10)
    torch.testing.assert_close(images, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(torch.stack([step["loss"] for step in log]), losses)


@pytest.mark.parametrize("chunk", [5, 6, None])
def test_compiled_steps_are_those_of_the_plain_loop(make_task, compiles, chunk):
    """Also where passes are filled up: of 6 real images per class with 5, and of all 18 with None."""
    make = {"dtype": DOUBLE, "augment": STRATEGY}
    method = DM(small(chunk=chunk))
    images, _ = run(method, make_task(**make), 5)
    expected, _ = reference(make_task(**make), small(), 5)
    assert method.choices() == {"embedding": "compiled", "images in a pass": chunk or 2**15 // 64}
    torch.testing.assert_close(images, expected, rtol=1e-8, atol=1e-10)


def test_short_runs_are_not_compiled(make_task):
    method = DM(small())
    method.start(make_task())
    assert method.choices()["embedding"].startswith("plain: a short run")


def test_bf16_stays_near_float32_and_float32_keeps_its_key(make_task):
    sets = [run(DM(small(precision=precision)), make_task(), 5)[0] for precision in ("fp32", "bf16")]
    start = run(DM(small()), make_task(), 0)[0]
    moved = [images - start for images in sets]
    assert 0 < (moved[1] - moved[0]).norm() < 0.2 * moved[0].norm()
    assert "precision" not in small().model_dump(mode="json")
    assert small(precision="bf16").model_dump(mode="json")["precision"] == "bf16"


@pytest.mark.parametrize("chunk", [1, None])
def test_batch_statistics_are_those_of_all_classes(make_task, chunk):
    make = {"dtype": DOUBLE, "network": NetSpec(arch="convnet", norm="bn", width=4, depth=2)}
    images, _ = run(DM(small(chunk=chunk)), make_task(**make), 5)
    expected, _ = reference(make_task(**make), small(), 5, batch_norm=True)
    torch.testing.assert_close(images, expected, rtol=1e-7, atol=1e-9)
    alone, _ = run(DM(small(classes="per_class")), make_task(**make), 5)
    expected, _ = reference(make_task(**make), small(), 5)
    torch.testing.assert_close(alone, expected, rtol=1e-7, atol=1e-9)
    assert (alone - images).abs().max() > 1e-4


class Embedding(nn.Module):
    """An embedding that does not change from iteration to iteration."""

    def __init__(self, function=lambda images: images.flatten(1)):
        super().__init__()
        self.features = function


def with_embedding(task, embedding):
    task.network = lambda: embedding
    task.initialise = lambda network, rng: None
    return task


@pytest.mark.parametrize("ipc", [1, 4])
def test_one_step_brings_the_mean_home_where_images_are_their_own_embedding(make_task, ipc):
    """The derivative for each image is 2 (mean_X - mean_B) / n."""
    task = with_embedding(make_task(ipc=ipc, per_class=10, dtype=DOUBLE), Embedding())
    images, _ = run(DM(small(lr_img=ipc / 2, momentum=0.0, batch_real=10)), task, 1)
    train = task.data.train
    expected = torch.stack([train.images(train.class_index(c)).mean(0) for c in range(3)])
    torch.testing.assert_close(images.unflatten(0, (3, ipc)).mean(1), expected)


def test_distilled_images_beat_greedily_chosen_ones(make_task):
    """Herding minimises the same distance over training images."""
    matrix = torch.randn(16, 64, generator=torch.Generator().manual_seed(3), dtype=DOUBLE) / 8
    embed = Embedding(lambda images: (images.flatten(1) @ matrix.T).relu())
    task = with_embedding(make_task(ipc=2, per_class=20, dtype=DOUBLE), embed)
    _, log = run(DM(small(lr_img=0.5, batch_real=20)), task, 100)
    herding, train = 0.0, task.data.train
    for label in range(3):
        features = embed.features(train.images(train.class_index(label)))
        chosen = []
        for _ in range(2):
            gaps = [((features[[*chosen, i]].mean(0) - features.mean(0)) ** 2).sum() for i in range(len(features))]
            chosen.append(int(torch.stack(gaps).argmin()))
        herding += float(((features[chosen].mean(0) - features.mean(0)) ** 2).sum()) / 3
    assert float(log[-1]["loss"]) < 0.5 * herding


def test_the_loss_falls_under_ever_new_networks(make_task):
    _, log = run(DM(small(lr_img=1.0, batch_real=20, init="noise")), make_task(ipc=1), 120)
    losses = torch.stack([step["loss"] for step in log])
    assert losses[-20:].mean() < 0.5 * losses[:20].mean()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(make_task):
    first, again, other = (run(DM(small()), make_task(seed=seed, augment=STRATEGY), 3)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_resumed_run_ends_with_the_same_bytes(make_task):
    whole, _ = run(DM(small()), make_task(augment=STRATEGY), 4)
    assert torch.equal(resume(DM(small()), make_task, augment=STRATEGY), whole)


def test_k_counts_from_zero_and_a_rate_of_zero_changes_nothing(make_task):
    method = DM(small(iterations=0, lr_img=0.0))
    assert method.steps == 1
    method.start(make_task())
    before = method.set.images().detach().clone()
    logged = method.step()
    assert torch.equal(method.set.images(), before)
    assert (logged["real_images"], logged["synthetic_images"]) == (18, 6)
    assert not logged["loss"].requires_grad


def test_defaults_are_the_papers():
    p = DMParams()
    assert (p.iterations, p.lr_img, p.momentum, p.batch_real, p.init) == (20000, 1.0, 0.5, 256, "real")
    assert (DM.augment, DM(p).steps) == ("dsa", 20001)
    assert all(field.description for field in DMParams.model_fields.values())


def test_presets_name_their_source_only_where_the_authors_give_the_setting(make_task):
    info = make_task().spec.dataset
    for family in ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "tiny_imagenet"):
        for ipc in (1, 10, 50):
            preset = DM.preset(info.model_copy(update={"family": family}), ipc)
            assert preset.params == {"lr_img": 1.0}
            assert (preset.source is not None) == family.startswith("cifar")
    assert DM.preset(info.model_copy(update={"family": "cifar10"}), 200).params == {"lr_img": 10.0}
    assert DM.preset(info.model_copy(update={"family": "cifar100"}), 125).params == {"lr_img": 1.0}


def test_the_result_is_a_valid_set(make_task):
    method = DM(small())
    images, _ = run(method, make_task(augment=STRATEGY), 1)
    distilled = method.export()
    method.step()
    assert torch.equal(distilled.images, images)
    assert (distilled.header.method, distilled.header.native_recipe["base"]) == ("dm", "dm")
