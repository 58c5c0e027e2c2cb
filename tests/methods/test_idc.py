"""IDC against a plain loop in float64 that steps class by class, closed forms, and the rules of its paper."""

import math

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
    defaults = {"iterations": 10, "inner_loop": 2, "batch_real": 6, "batch_train": 4, "n_data": 10, "lr_img": 5e-3}
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
        for u, v in zip(a, b, strict=True):  # one output unit
            if p.metric == "mse":
                total = total + (u - v).square().sum()
            elif p.metric == "cos":
                total = total + 1 - (u * v).sum() / (u.norm() * v.norm() + 1e-6)
            else:
                total = total + ((u - v).abs().sum() if p.metric == "l1" else (u - v).abs().mean())
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
        ({}, {"augment": STRATEGY}),
        ({"classes": "joint"}, {}),
        ({"classes": "per_class", "metric": "l1", "lr_img": 1e-3}, {"augment": STRATEGY}),
        ({"metric": "l1_mean", "lr_img": 1e-2, "bias": True, "fc": True}, {"augment": "idc:color_crop"}),
        ({"metric": "cos", "fc": True, "lr_img": 1e-2, "batch_syn_max": 5, "early": 1}, {"augment": STRATEGY}),
        ({"factor": 1, "n_data": 0, "choose": "first"}, {"augment": STRATEGY}),
        ({"factor": 3, "cutmix": 0.0}, {"augment": STRATEGY, "ipc": 1}),
        ({"match": "feat", "lr_img": 1e-2}, {"augment": STRATEGY}),
        ({"momentum": 0.0}, {"network": NetSpec(norm="bn", width=4, depth=2)}),
    ],
)
def test_ten_steps_are_those_of_the_plain_loop(make_task, options, make):
    p, make = small(**options), {"dtype": DOUBLE, **make}
    method = IDC(p)
    _, log = run(method, make_task(**make), 10)
    expected, losses = reference(make_task(**make), p, 10)
    torch.testing.assert_close(method.set.pixels.detach(), expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(torch.stack([step["loss"] for step in log]), losses)
    start = first_images(make_task(**make), p)
    assert (expected - start).abs().max() > 0.02  # they learned something
