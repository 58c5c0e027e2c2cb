"""IDC against a plain loop in float64 that steps class by class, closed forms, and the rules of its paper."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from test_dc import resume, run

import bench.augment
from bench.api import NetSpec
from bench.augment import Draw
from bench.distilled import decode, load, save
from methods.idc import IDC, IDCI, Deck, IDCParams, coast, eta, without_cutout
from methods.matching import gradient_distance

DOUBLE = torch.float64
STRATEGY = "idc:color_crop_cutout"


def small(**params):
    """Few images per batch, two updates per network, a step that moves the pixels by about a tenth."""
    defaults = {"iterations": 10, "inner_loop": 1, "batch_real": 6, "batch_train": 4, "n_data": 10, "lr_img": 5e-3}
    return IDCParams(**(defaults | {"lr_net": 0.05} | params))


def zoom(image, factor):
    """The cells of one stored image [c, h, w], one by one."""
    _, height, width = image.shape
    image = F.pad(image, (0, (factor - width % factor) % factor, 0, (factor - height % factor) % factor), value=0.5)
    tall, wide = math.ceil(height / factor), math.ceil(width / factor)
    cells = []
    for i in range(factor):
        for j in range(factor):
            cell = image[:, i * tall : (i + 1) * tall, j * wide : (j + 1) * wide]
            cells.append(F.interpolate(cell[None], (height, width), mode="bilinear")[0])
    return cells


def first_images(task, p):
    """One stored image after the other, one cell after the other."""
    ipc, factor, (_, height, width) = task.spec.ipc, p.factor, task.spec.dataset.shape
    stored = []
    for c in range(task.spec.dataset.classes):
        index = task.data.train.draw_class(c, ipc * factor**2, task.rng("init"))
        if p.choose == "first":
            index = torch.nonzero(task.data.train.labels == c)[: ipc * factor**2, 0]
        real = task.data.train.pixels(index)
        for n in range(ipc):
            image, top = torch.zeros_like(real[0]), 0
            for i in range(factor):
                tall, left = height // factor + (i < height % factor), 0
                for j in range(factor):
                    wide = width // factor + (j < width % factor)
                    for y in range(tall):
                        for x in range(wide):
                            source = real[(i * factor + j) * ipc + n]
                            image[:, top + y, left + x] = source[:, y * height // tall, x * width // wide]
                    left += wide
                top += tall
            stored.append(image)
    return torch.stack(stored)


class Cards:
    """Numbers without replacement, as a list."""

    def __init__(self, index, size, least):
        self.index, self.size, self.least, self.left = index.tolist(), size, least, []

    def deal(self, rng):
        if len(self.left) < self.least:
            self.left = [self.index[i] for i in torch.randperm(len(self.index), generator=rng).tolist()]
        batch, self.left = self.left[: self.size], self.left[self.size :]
        return torch.tensor(batch)


def distance(network, real, synthetic, label, p):
    """The distance of two batches of one class, tensor by tensor, row by row; the graph of the second is kept."""
    if p.match == "feat":
        maps = [network.features(side).mean(0) for side in (real, synthetic)]
        return (maps[0].detach() - maps[1]).square().sum()
    weights = [w for w in network.parameters() if w.dim() == 4 or (p.bias and w.dim() == 1) or (p.fc and w.dim() == 2)]
    sides = []
    for side in (real, synthetic):
        loss = F.cross_entropy(network(side), torch.full((len(side),), label))
        sides.append(torch.autograd.grad(loss, weights, create_graph=side is synthetic))
    total = torch.zeros((), dtype=real.dtype)
    for a, b in zip(*sides, strict=True):
        rows, gap = [side.reshape(len(side), -1) for side in (a.detach(), b)], (a.detach() - b).abs()
        if p.metric == "cos":
            norms = rows[0].square().sum(1).sqrt() * rows[1].square().sum(1).sqrt()
            total = total + (1 - (rows[0] * rows[1]).sum(1) / (norms + 1e-6)).sum()
        elif p.metric == "l1_mean":
            total = total + sum(gap[row].mean() for row in range(len(gap)))
        else:
            total = total + (gap if p.metric == "l1" else gap**2).sum()
    return total


def cutmix_loss(network, images, labels, p, rng):
    """The cross-entropy of both labels, weighted by what is seen of each."""
    if not p.cutmix:
        return F.cross_entropy(network(images), labels)
    used, lam, row, column = torch.rand(4, generator=rng).tolist()
    other = torch.randperm(len(images), generator=rng)
    side = images.shape[2]
    half = int(side * math.sqrt(1 - lam)) // 2 if used < p.cutmix else 0
    top, bottom = (min(max(int(row * side) + sign * half, 0), side) for sign in (-1, 1))
    left, right = (min(max(int(column * side) + sign * half, 0), side) for sign in (-1, 1))
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[other, :, top:bottom, left:right]
    share, logits = (bottom - top) * (right - left) / side**2, network(mixed)
    return (1 - share) * F.cross_entropy(logits, labels) + share * F.cross_entropy(logits, labels[other])


def train(task, network, optimiser, cards, augment, p, count):
    seen = 0
    while seen < count:
        index = cards.deal(task.rng("order"))
        images = augment(task.data.train.images(index), task.rng("augment network"))
        optimiser.zero_grad()
        cutmix_loss(network, images, task.data.train.labels[index], p, task.rng("cutmix")).backward()
        optimiser.step()
        seen += len(index)


def reference(task, p, steps):
    """IDC as its pseudo-code says: one optimiser for all images, which steps for every class in turn."""
    classes, ipc, factor, data = task.spec.dataset.classes, task.spec.ipc, p.factor, task.data
    stored = first_images(task, p).requires_grad_()
    images_optimiser = torch.optim.SGD([stored], lr=p.lr_img, momentum=p.momentum)
    real_cards = [Cards(data.train.class_index(c), p.batch_real, p.batch_real) for c in range(classes)]
    mixed_cards, losses = Cards(torch.arange(data.train.size), p.batch_train, 1), []
    names = [name for name in task.spec.augment.removeprefix("idc:").split("_") if name != "cutout" or not p.cutmix]
    augment = bench.augment.get("none" if names == ["none"] else "idc:" + "_".join(names))
    for _ in range(steps):
        network = task.network()
        task.initialise(network, task.rng("network"))
        optimiser = torch.optim.SGD(network.parameters(), p.lr_net, p.momentum_net, weight_decay=p.weight_decay_net)
        train(task, network, optimiser, mixed_cards, augment, p, p.early * data.train.size)
        with torch.no_grad():
            stored.clamp_(0, 1)
        total = 0.0
        for _ in range(p.inner_loop):
            batches = [cards.deal(task.rng("real")) for cards in real_cards]
            shape = (classes, *stored.shape[1:])
            draws = task.augment.draw(shape, task.rng("augment"), groups=classes, shared=True)
            for c in range(classes):
                mine = stored[c * ipc : (c + 1) * ipc]
                cells = [zoom(image, factor) for image in mine]
                synthetic = torch.stack([cell for k in range(factor**2) for cell in [each[k] for each in cells]])
                if len(synthetic) > p.batch_syn_max:
                    chosen = torch.randperm(len(synthetic), generator=task.rng("synthetic"))[: p.batch_syn_max]
                    synthetic = synthetic[chosen]
                both = torch.cat([data.train.images(batches[c]), data.forward(synthetic)])
                draw = Draw(1, True, draws.choice[c : c + 1], draws.uniform[c : c + 1])
                both = task.augment.apply(both, draw)
                loss = distance(network, both[: len(batches[c])], both[len(batches[c]) :], c, p)
                images_optimiser.zero_grad()
                loss.backward()
                images_optimiser.step()
                total += float(loss.detach()) / classes / p.inner_loop
            train(task, network, optimiser, mixed_cards, augment, p, p.n_data)
        losses.append(total)
    return stored.detach(), torch.tensor(losses, dtype=DOUBLE)


@pytest.mark.parametrize(
    ("options", "make"),
    [
        ({"inner_loop": 2}, {"augment": STRATEGY}),
        ({"classes": "joint", "inner_loop": 2}, {}),
        ({"classes": "per_class", "metric": "l1", "lr_img": 1e-3}, {"augment": STRATEGY}),
        ({"metric": "l1_mean", "lr_img": 1e-2, "bias": True, "fc": True}, {"augment": "idc:color_crop"}),
        ({"metric": "cos", "fc": True, "lr_img": 1e-2, "batch_syn_max": 5, "early": 1}, {"augment": STRATEGY}),
        ({"factor": 1, "n_data": 0, "choose": "first", "inner_loop": 3}, {"augment": STRATEGY}),
        ({"factor": 3, "cutmix": 0.0}, {"augment": STRATEGY, "ipc": 1}),
        ({"match": "feat", "lr_img": 1e-2}, {"augment": STRATEGY}),
        ({"momentum": 0.0, "lr_img": 1e-2}, {"network": NetSpec(norm="bn", width=4, depth=2)}),
    ],
)
def test_ten_steps_are_those_of_the_plain_loop(make_task, options, make):
    p, make = small(**options), {"dtype": DOUBLE, **make}
    method = IDC(p)
    _, log = run(method, make_task(**make), 10)
    expected, losses = reference(make_task(**make), p, 10)
    torch.testing.assert_close(method.set.pixels.detach(), expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(torch.stack([step["loss"] for step in log]), losses)
    assert (expected - first_images(make_task(**make), p)).abs().max() > 0.02  # they learned something


# ------------------------------------------------------------------------------------------------ classes in turn


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_coasting_is_one_optimiser_that_steps_class_by_class(momentum):
    """Check 10: a quadratic for each of ten classes."""
    classes, rate = 10, 0.1
    rng = torch.Generator().manual_seed(0)
    start, target = (torch.randn(classes * 2, 3, generator=rng, dtype=DOUBLE) for _ in range(2))
    plain = start.clone().requires_grad_()
    optimiser = torch.optim.SGD([plain], rate, momentum)
    fast = Grid(start, rate, momentum)
    for _ in range(5):
        for c in range(classes):
            mine = slice(2 * c, 2 * c + 2)
            optimiser.zero_grad()
            (plain[mine] - target[mine]).square().sum().backward()
            optimiser.step()
        turn = torch.arange(classes)
        coast(fast, turn)
        fast.optimiser.zero_grad()
        (fast.pixels - target).square().sum().backward()
        fast.optimiser.step()
        coast(fast, turn.flip(0))
        torch.testing.assert_close(fast.pixels, plain, rtol=1e-12, atol=1e-12)
    velocity = [o.state[x]["momentum_buffer"] for o, x in ((fast.optimiser, fast.pixels), (optimiser, plain))]
    torch.testing.assert_close(*velocity, rtol=1e-12, atol=1e-12)


class Grid:
    """What `coast` needs of a parametrisation."""

    def __init__(self, start, rate, momentum):
        self.pixels = start.clone().requires_grad_()
        self.optimiser = torch.optim.SGD([self.pixels], rate, momentum)


def test_between_two_turns_momentum_moves_an_image_by_its_geometric_sum():
    """S_C = 2 (1 - 2^-C) for a momentum of one half, of which the turn itself is the first term."""
    grid = Grid(torch.zeros(3, 1, dtype=DOUBLE), 1.0, 0.5)
    coast(grid, torch.arange(3))  # nothing moves yet
    grid.pixels.grad = torch.ones_like(grid.pixels)
    grid.optimiser.step()
    coast(grid, torch.tensor([2, 2, 2]))
    assert grid.pixels.flatten().tolist() == [-2 * (1 - 2**-3)] * 3
    assert grid.optimiser.state[grid.pixels]["momentum_buffer"].flatten().tolist() == [0.25] * 3


def test_a_deck_deals_everything_once_before_anything_twice():
    rng = torch.Generator().manual_seed(0)
    whole, all_of_it = Deck(torch.arange(10, 20), 4, whole=True), Deck(torch.arange(10, 20), 4, whole=False)
    for _ in range(3):
        first, second = whole.deal(rng), whole.deal(rng)
        assert (len(first), len(second)) == (4, 4)
        assert len({*first.tolist(), *second.tolist()}) == 8  # the last two wait for the next shuffle
        dealt = [all_of_it.deal(rng) for _ in range(3)]
        assert [len(batch) for batch in dealt] == [4, 4, 2]
        assert sorted(torch.cat(dealt).tolist()) == list(range(10, 20))
    assert sorted(Deck(torch.arange(3), 4, whole=True).deal(rng).tolist()) == [0, 1, 2]


# ------------------------------------------------------------------------------------------------ what is matched


def started(make_task, kind=IDC, params=None, **make):
    method = kind(params or small())
    method.start(make_task(**{"dtype": DOUBLE, **make}))
    method.task.initialise(method.model, method.task.rng("network"))
    return method


@pytest.mark.parametrize("options", [{"metric": m} for m in ("mse", "l1", "l1_mean", "cos")] + [{"match": "feat"}])
def test_a_copy_of_the_real_batch_has_distance_zero(make_task, options):
    """Up to rounding, which leaves the derivative of an absolute value anywhere; and up to the 1e-6 of the cosine."""
    method = started(make_task, params=small(**options), augment=STRATEGY)
    real, _ = method.draw_real()
    losses, derivative = method.match(real, real)
    rows = sum(len(method.model.get_parameter(name)) for name in method.compared)
    assert losses.abs().max() < (1e-4 * rows if options == {"metric": "cos"} else 1e-13)
    if options in ({"metric": "mse"}, {"match": "feat"}):
        assert derivative.abs().max() < 1e-13
    other = real._replace(images=real.images.flip(3))
    assert method.match(real, other)[0].min() > 1e-3


def test_the_order_of_images_within_a_batch_does_not_matter(make_task):
    method = started(make_task, augment=STRATEGY)
    real, draw = method.draw_real()
    images, counts = method.draw_synthetic()
    images = method.task.augment.apply(images, draw, counts=counts).detach()
    synthetic = real._replace(images=images, labels=method.set.labels, counts=counts)
    losses, derivative = method.match(real, synthetic)
    mixed = [torch.randperm(n) + sum(counts[:c]) for c, n in enumerate(counts)]
    order = torch.cat(mixed)
    turned = real._replace(images=torch.cat([part.flip(0) for part in real.images.split(list(real.counts))]))
    again, moved = method.match(turned, synthetic._replace(images=images[order]))
    torch.testing.assert_close(again, losses, rtol=1e-9, atol=0)
    torch.testing.assert_close(moved, derivative[order], rtol=1e-7, atol=1e-12)


def test_cosine_with_the_classifier_is_the_distance_of_dc_and_features_are_those_of_dm(make_task):
    from methods.matching import match_features, match_gradients

    method = started(make_task, IDC, small(metric="cos", fc=True, factor=1, n_data=0))
    real, _ = method.draw_real()
    synthetic = real._replace(images=method.set.images().detach(), labels=method.set.labels, counts=method.set.counts)
    for found, expected in zip(
        method.match(real, synthetic), match_gradients(method.model, real, synthetic), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    method.params = small(match="feat")
    mean = [torch.stack([method.model.features(part).mean(0) for part in side.images.split(list(side.counts))])
            for side in (real, synthetic)]  # fmt: skip
    torch.testing.assert_close(method.match(real, synthetic)[0], (mean[0] - mean[1]).square().sum(1).detach())
    for found, expected in zip(
        method.match(real, synthetic), match_features(method.model, real, synthetic), strict=True
    ):
        assert torch.equal(found, expected)


def test_convolutions_alone_are_compared_unless_asked(make_task):
    def dimensions(**options):
        method = started(make_task, params=small(**options))
        return [method.model.get_parameter(name).dim() for name in method.compared]

    assert dimensions() == [4, 4]  # one for each block
    assert sorted(dimensions(fc=True)) == [2, 4, 4]
    assert sorted(dimensions(bias=True)) == [1] * 7 + [4, 4]  # biases of three layers, scale and shift of two norms


def test_a_network_that_is_never_trained_is_a_random_one(make_task):
    method = IDC(small(n_data=0))
    _, log = run(method, make_task(), 1)
    fresh = make_task()
    network = fresh.network()
    fresh.initialise(network, fresh.rng("network"))
    assert log[0]["network_steps"] == 0
    for found, expected in zip(method.model.parameters(), network.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(ValidationError, match="metric: mse"):
        IDCParams(match="feat", metric="l1")
    with pytest.raises(ValidationError, match="bias needs another metric"):
        IDCParams(metric="cos", bias=True)


# ------------------------------------------------------------------------------------------------ the run


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(make_task):
    first, again, other = (run(IDC(small()), make_task(seed=seed, augment=STRATEGY), 3)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("options", [{}, {"batch_syn_max": 5, "momentum": 0.9, "early": 1}])
def test_a_resumed_run_ends_with_the_same_bytes(make_task, options):
    whole, _ = run(IDC(small(**options)), make_task(augment=STRATEGY), 4)
    assert torch.equal(resume(IDC(small(**options)), make_task, augment=STRATEGY), whole)


def test_pixels_are_clamped_at_the_beginning_of_an_outer_iteration_and_only_there(make_task):
    method = IDC(small(lr_img=0.2, inner_loop=3, n_data=0))
    seen = []
    plain = method.update_images

    def watched():
        seen.append(method.set.pixels.detach().clone())
        return plain()

    method.update_images = watched
    run(method, make_task(), 2)
    outside = [bool(((pixels < 0) | (pixels > 1)).any()) for pixels in seen]
    assert outside == [False, True, True, False, True, True]
    exported = method.export().images
    assert bool(((exported < 0) | (exported > 1)).any())


def test_classes_smaller_than_the_batch_are_taken_whole(make_task):
    method = IDC(small(n_data=0))
    _, log = run(method, make_task(per_class=(20, 8, 9)), 1)
    assert log[0]["real_images"] == 6 * 3
    method = IDC(small(n_data=0, batch_real=64, factor=1))
    _, log = run(method, make_task(per_class=(20, 8, 9)), 1)
    assert log[0]["real_images"] == 20 + 8 + 9


def test_what_is_logged(make_task):
    method = IDC(small(iterations=7, inner_loop=2, early=1))
    _, log = run(method, make_task(), 1)
    assert method.steps == 7
    assert {name: value for name, value in log[0].items() if name != "loss"} == {
        "real_images": 2 * 18, "synthetic_images": 2 * 24, "network_steps": 15 + 2 * 3,
    }  # fmt: skip
    assert not log[0]["loss"].requires_grad


def test_networks_are_trained_without_cutout_where_cutmix_is_on(make_task):
    assert started(make_task, augment=STRATEGY).augment_network.strategy == "idc:color_crop"
    assert started(make_task, params=small(cutmix=0.0), augment=STRATEGY).augment_network.strategy == STRATEGY
    kept = {"none": "none", "crop_flip": "crop_flip", "dsa:cutout": "none", "dsa:flip_cutout_scale": "dsa:flip_scale"}
    assert {name: without_cutout(name) for name in kept} == kept


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("family", "shape", "flag", "steps"),
    [
        ("cifar10", (3, 32, 32), 5e-3, (5e-4, 5e-3, 2.5e-2)),
        ("cifar100", (3, 32, 32), 5e-3, (5e-4, 5e-3, 2.5e-2)),
        ("svhn", (3, 32, 32), 5e-3, (5e-4, 5e-3, 2.5e-2)),
        ("mnist", (1, 28, 28), 1e-4, (1e-5, 1e-4, 5e-4)),
        ("fashion_mnist", (1, 28, 28), 1e-4, (7.65625e-6, 7.65625e-5, 3.828125e-4)),
    ],
)
def test_presets_have_the_step_the_code_really_takes(make_task, family, shape, flag, steps):
    info = make_task().spec.dataset.model_copy(update={"family": family, "shape": shape})
    for ipc, step in zip((1, 10, 50), steps, strict=True):
        assert eta(flag, info, ipc) == pytest.approx(step)
        for kind, factor in ((IDC, 2), (IDCI, 1)):
            preset = kind.preset(info, ipc)
            assert preset.params["lr_img"] == pytest.approx(step)
            assert preset.params["factor"] == factor
            assert preset.params["metric"] == ("l1" if "mnist" in family else "mse")
            assert preset.params["n_data"] == (2000 if "cifar" in family else 500)
            assert (preset.source is not None) == (family != "cifar100" or ipc == 10)
            assert preset.params.get("cutmix") == (0.0 if family == "mnist" and factor == 2 else None)


def test_large_images_have_the_setting_of_imagenet_without_a_source(make_task):
    info = make_task().spec.dataset.model_copy(update={"family": "imagenet10", "shape": (3, 224, 224)})
    preset = IDC.preset(info, 20)
    assert (preset.params["lr_img"], preset.params["factor"], preset.params["early"]) == (6e-3, 3, 10)
    assert (preset.params["iterations"], preset.source) == (500, None)
    assert IDCI.preset(info, 20).params["factor"] == 1


def test_defaults_are_the_papers():
    p = IDCParams()
    assert (p.iterations, p.inner_loop, p.factor, p.init, p.momentum, p.batch_real) == (2000, 100, 2, "mix", 0.5, 64)
    assert (p.lr_net, p.momentum_net, p.weight_decay_net, p.batch_syn_max, p.cutmix) == (0.01, 0.9, 5e-4, 128, 0.5)
    assert (IDC(p).steps, IDC.augment, IDCI.augment) == (2000, "idc-match", "idc:color_crop_cutout")
    assert all(field.description for field in IDCParams.model_fields.values())


@pytest.mark.parametrize(
    ("family", "side", "factor", "ipc", "changes"),
    [
        ("cifar10", 32, 2, 10, {}),
        ("mnist", 28, 1, 1, {}),
        ("mnist", 28, 2, 1, {"cutmix": 0.0}),
        ("svhn", 32, 2, 1, {}),
        ("svhn", 32, 1, 1, {"cutmix": 0.0, "augment": "idc:color_crop_cutout_scale_rotate"}),
        ("imagenet10", 224, 1, 1, {"cutmix": 1.0, "epochs": 3000}),
        ("imagenet10", 224, 1, 10, {"cutmix": 1.0, "epochs": 2000}),
        ("imagenet10", 224, 3, 10, {"cutmix": 1.0, "epochs": 1000}),
        ("imagenet10", 224, 3, 20, {"cutmix": 1.0, "epochs": 1000}),
    ],
)
def test_the_native_evaluation_is_the_papers(make_task, family, side, factor, ipc, changes):
    spec = make_task(ipc=ipc).spec
    info = spec.dataset.model_copy(update={"family": family, "shape": (3, side, side)})
    spec = spec.model_copy(update={"dataset": info})
    assert IDC.native_recipe(IDCParams(factor=factor), spec) == {"base": "idc", **changes}


def test_planning_needs_no_torch():
    code = "import sys, methods.idc, bench.train.batches; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------ the result


def test_the_result_is_a_valid_set_with_a_label_for_every_decoded_image(make_task, tmp_path):
    method = IDC(small())
    images, _ = run(method, make_task(shape=(3, 8, 8), augment=STRATEGY), 2)
    save(tmp_path / "set.safetensors", method.export())
    distilled = load(tmp_path / "set.safetensors")
    assert distilled.images.shape == (6, 3, 8, 8)
    assert distilled.labels.tolist() == [0, 0, 1, 1, 2, 2] * 4
    assert distilled.header.decoder == {"name": "multi_formation", "factor": 2}
    assert (distilled.header.method, distilled.header.native_recipe["base"]) == ("idc", "idc")
    assert distilled.header.floats == {"stored": 6 * 192, "decoded": 24 * 192, "raw": 6 * 192}
    decoded = decode(distilled)
    assert torch.equal(decoded[distilled.labels.argsort(stable=True)], images)
    method.step()
    assert torch.equal(distilled.images, load(tmp_path / "set.safetensors").images)


def test_learning_brings_the_gradients_of_all_images_closer(make_task):
    method = started(make_task, params=small(lr_img=1e-2, n_data=0, batch_real=20), dtype=torch.float32)
    method.real_images = method.synthetic_images = 0
    gaps = []
    for _ in range(15):
        gaps.append(float(method.match(*both_sides(method))[0].sum()))
        method.update_images()
    assert sum(gaps[-3:]) < 0.7 * sum(gaps[:3])


def both_sides(method):
    """All real images and the synthetic ones, as they are."""
    train = method.task.data.train
    index = torch.cat([train.class_index(c) for c in train.present])
    counts = tuple(len(train.class_index(c)) for c in train.present)
    real = method.draw_real()[0]._replace(images=train.images(index), labels=train.labels[index], counts=counts)
    images = method.set.images().detach()
    return real, real._replace(images=images, labels=method.set.labels, counts=method.set.counts)


def test_distances_of_other_norms_are_sums_over_rows():
    rng = torch.Generator().manual_seed(0)
    a, b = ([torch.randn(2, *s, generator=rng, dtype=DOUBLE) for s in ((3, 2, 2, 2), (4, 3), (5,))] for _ in range(2))
    for group in range(2):
        gaps = [(u - v)[group].abs() for u, v in zip(a, b, strict=True)]
        total = sum(float(gap.sum()) for gap in gaps)
        means = sum(float(row.mean()) for gap in gaps for row in gap)
        assert float(gradient_distance(a, b, "l1")[group]) == pytest.approx(total)
        assert float(gradient_distance(a, b, "l1_mean")[group]) == pytest.approx(means)
