"""The matching losses against closed forms, brute-force loops and finite differences."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.api import NetSpec
from bench.data import Batch
from bench.errors import UserError
from bench.nets import build, initialise
from methods.matching import (
    batch_norms,
    freeze_statistics,
    gradient_distance,
    group_gradients,
    group_means,
    match_features,
    match_gradients,
)
from methods.parametrise import Pixels

DOUBLE = torch.float64


def make_network(text="convnet-in", shape=(1, 8, 8), classes=3, seed=0, **sizes):
    arch, _, norm = text.partition("-")
    network = build(NetSpec(arch=arch, norm=norm or None, **sizes), shape, classes)
    initialise(network, torch.Generator().manual_seed(seed))
    return network.double()


def make_groups(counts, shape=(1, 8, 8), seed=0):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(sum(counts), *shape, generator=rng, dtype=DOUBLE)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Batch(images, labels, counts)


def random_gradients(seed, groups=2):
    rng = torch.Generator().manual_seed(seed)
    shapes = [(4, 3, 3, 3), (4,), (5, 2, 2), (3, 6), (3,)]
    return [torch.randn(groups, *shape, generator=rng, dtype=DOUBLE) for shape in shapes]


ROWS = 4 + 5 + 3


# ------------------------------------------------------------------------------------------------ distance


def test_distance_is_the_loop_over_rows():
    real, synthetic = random_gradients(0), random_gradients(1)
    expected = np.zeros(2)
    for a, b in zip(real, synthetic, strict=True):
        for group in range(2):
            if a.dim() > 2:
                for row_a, row_b in zip(a[group], b[group], strict=True):
                    u, v = row_a.numpy().ravel(), row_b.numpy().ravel()
                    expected[group] += 1 - u @ v / (np.linalg.norm(u) * np.linalg.norm(v) + 1e-6)
    np.testing.assert_allclose(gradient_distance(real, synthetic).numpy(), expected, rtol=1e-12)


def test_mse_and_cos_take_all_parameters_as_one_vector():
    real, synthetic = random_gradients(0), random_gradients(1)
    a = np.concatenate([g.flatten(1).numpy() for g in real], 1)
    b = np.concatenate([g.flatten(1).numpy() for g in synthetic], 1)
    np.testing.assert_allclose(gradient_distance(real, synthetic, "mse").numpy(), ((a - b) ** 2).sum(1), rtol=1e-12)
    cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) + 1e-6)
    np.testing.assert_allclose(gradient_distance(real, synthetic, "cos").numpy(), 1 - cosine, rtol=1e-12)


def test_equal_gradients_have_distance_zero_and_opposite_ones_two_per_row():
    real = random_gradients(0)
    smallest = min(float(g.flatten(2).norm(dim=-1).min()) for g in real if g.dim() > 2)
    assert gradient_distance(real, real).abs().max() <= ROWS * 1e-6 / smallest**2
    opposite = gradient_distance(real, [-g for g in real])
    torch.testing.assert_close(opposite, torch.full((2,), 2.0 * ROWS, dtype=DOUBLE), rtol=0, atol=1e-4)


def test_distance_ignores_scale_one_dimensional_parameters_and_the_order_of_units():
    real, synthetic = random_gradients(0), random_gradients(1)
    expected = gradient_distance(real, synthetic)
    torch.testing.assert_close(gradient_distance([7 * g for g in real], synthetic), expected, rtol=1e-5, atol=0)
    changed = [g if g.dim() > 2 else g + 5 for g in real]
    assert torch.equal(gradient_distance(changed, synthetic), expected)
    order = torch.tensor([2, 0, 1])
    shuffled = [[g[:, order] if g.shape[1] == 3 else g for g in side] for side in (real, synthetic)]
    torch.testing.assert_close(gradient_distance(*shuffled), expected)


def test_a_row_without_gradient_counts_one_and_stays_finite():
    real = [torch.zeros(1, 2, 3, dtype=DOUBLE)]
    synthetic = [torch.ones(1, 2, 3, dtype=DOUBLE, requires_grad=True)]
    distance = gradient_distance(real, synthetic)
    assert distance.item() == 2
    assert torch.autograd.grad(distance.sum(), synthetic)[0].abs().max() == 0
    zero = [torch.zeros(1, 2, 3, dtype=DOUBLE, requires_grad=True)]
    assert torch.isfinite(torch.autograd.grad(gradient_distance([torch.ones(1, 2, 3)], zero).sum(), zero)[0]).all()


# ------------------------------------------------------------------------------------------------ gradients


def test_gradients_of_a_linear_model_are_the_closed_form():
    network = nn.Linear(2, 2).double()
    batch = Batch(torch.randn(5, 2, dtype=DOUBLE), torch.tensor([0, 0, 1, 1, 1]), [2, 3])
    expected = []
    for label, images in enumerate(batch.images.split([2, 3])):
        wrong = network(images).softmax(1) - F.one_hot(torch.tensor(label), 2)  # p_ik - [k = c]
        expected.append(torch.stack([(wrong[:, k, None] * images).mean(0) for k in range(2)]))
    for joint in (False, True):
        weight, bias = group_gradients(network, batch, ["weight", "bias"], joint=joint)
        torch.testing.assert_close(weight, torch.stack(expected))
        assert bias.shape == (2, 2)


def test_mse_of_a_linear_model_is_the_squared_difference_of_mean_gradients():
    network = nn.Linear(2, 2).double()
    real = Batch(torch.randn(6, 2, dtype=DOUBLE), torch.tensor([0, 0, 0, 1, 1, 1]), [3, 3])
    synthetic = Batch(torch.randn(2, 2, dtype=DOUBLE), torch.tensor([0, 1]), [1, 1])
    expected = []
    for label in range(2):
        sides = []
        for batch in (real, synthetic):
            images = batch.images[batch.labels == label]
            wrong = network(images).softmax(1) - F.one_hot(torch.tensor(label), 2)
            sides.append(torch.cat([(wrong[:, :, None] * images[:, None]).mean(0).flatten(), wrong.mean(0)]))
        expected.append((sides[0] - sides[1]).square().sum())
    losses, _ = match_gradients(network, real, synthetic, distance="mse")
    torch.testing.assert_close(losses, torch.stack(expected).detach())


@pytest.mark.parametrize("kind", ["ours", "mse", "cos"])
@pytest.mark.parametrize(
    ("text", "sizes", "shape"),
    [
        ("convnet-in", {"width": 4, "depth": 2}, (1, 8, 8)),
        ("convnet-ln", {"width": 4, "depth": 2, "pooling": "max"}, (1, 8, 8)),
        ("convnet-none", {"width": 4, "depth": 1, "activation": "sigmoid"}, (3, 6, 8)),
        ("convnet-bn", {"width": 4, "depth": 2}, (1, 8, 8)),
        ("mlp", {"width": 8}, (1, 8, 8)),
        ("lenet", {}, (1, 28, 28)),
        ("resnet18-gn", {"width": 8}, (1, 8, 8)),
    ],
)
def test_joint_equals_class_by_class(text, sizes, shape, kind):
    network = make_network(text, shape, **sizes)
    real, synthetic = make_groups([5, 3, 4], shape), make_groups([2, 2, 1], shape, seed=1)
    if batch_norms(network):
        freeze_statistics(network, real.images, "batch")
    plain = match_gradients(network, real, synthetic, distance=kind, classes="per_class")
    for options in ({"classes": "joint"}, {"classes": "joint", "chunk": 10}, {"classes": "auto"}):
        losses, derivative = match_gradients(network, real, synthetic, distance=kind, **options)
        torch.testing.assert_close(losses, plain[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(derivative, plain[1], rtol=1e-8, atol=1e-12)


def test_soft_labels_are_probabilities():
    network = make_network(width=4, depth=1)
    real, synthetic = make_groups([4, 4, 4]), make_groups([2, 2, 2], seed=1)
    hot = [b._replace(labels=F.one_hot(b.labels, 3).double()) for b in (real, synthetic)]
    expected = match_gradients(network, real, synthetic)
    for classes in ("per_class", "joint"):
        for a, b in zip(match_gradients(network, *hot, classes=classes), expected, strict=True):
            torch.testing.assert_close(a, b)


def test_derivative_agrees_with_finite_differences():
    network = make_network("convnet-in", width=3, depth=1, activation="swish")
    real, synthetic = make_groups([4, 4]), make_groups([1, 2], seed=1)
    direction = torch.randn(synthetic.images.shape, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    _, derivative = match_gradients(network, real, synthetic)
    step = 1e-5
    ends = [
        match_gradients(network, real, synthetic._replace(images=synthetic.images + sign * step * direction))[0].sum()
        for sign in (1, -1)
    ]
    assert (derivative * direction).sum().item() == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("text", ["convnet-in", "convnet-bn", "convnet-none"])
def test_real_images_match_themselves(text):
    network = make_network(text, width=4, depth=2)
    real = make_groups([3, 3, 3])
    if batch_norms(network):
        freeze_statistics(network, real.images, "running")
    names = [name for name, weight in network.named_parameters() if weight.dim() > 1]
    squares = [g.flatten(2).square().sum(2) for g in group_gradients(network, real, names, joint=False)]
    losses, _ = match_gradients(network, real, real)  # not quite 0: the 1e-6 damps rows with small gradients
    torch.testing.assert_close(losses, sum((1e-6 / (n + 1e-6)).sum(1) for n in squares), rtol=1e-8, atol=1e-12)
    losses, derivative = match_gradients(network, real, real, distance="mse")
    assert losses.abs().max() < 1e-20
    assert derivative.abs().max() < 1e-12


def test_no_class_sees_another_one_and_duplicates_change_nothing():
    network = make_network(width=4, depth=2)
    real, synthetic = make_groups([4, 4, 4]), make_groups([2, 2, 2], seed=1)
    losses, derivative = match_gradients(network, real, synthetic, classes="joint")
    images = synthetic.images.clone()
    images[4:] += 1
    changed = match_gradients(network, real, synthetic._replace(images=images), classes="joint")
    torch.testing.assert_close(changed[1][:4], derivative[:4], rtol=1e-10, atol=1e-14)
    assert (changed[0][2] - losses[2]).abs() > 1e-3
    twice = Batch(synthetic.images.repeat_interleave(2, 0), synthetic.labels.repeat_interleave(2), [4, 4, 4])
    torch.testing.assert_close(match_gradients(network, real, twice)[0], losses, rtol=1e-10, atol=0)


# ------------------------------------------------------------------------------------------------ features


class Flat(nn.Module):
    """Images embedded as they are, or by a matrix."""

    def __init__(self, matrix=None):
        super().__init__()
        self.matrix = matrix

    def features(self, images):
        return images.flatten(1) if self.matrix is None else images.flatten(1) @ self.matrix.T


def test_features_of_a_linear_embedding_have_the_closed_form():
    matrix = torch.randn(5, 64, dtype=DOUBLE)
    real, synthetic = make_groups([4, 2, 3]), make_groups([1, 2, 2], seed=1)
    losses, derivative = match_features(Flat(matrix), real, synthetic, chunk=4)
    for label in range(3):
        means = [b.images[b.labels == label].flatten(1).mean(0) for b in (real, synthetic)]
        gap = matrix @ (means[1] - means[0])
        torch.testing.assert_close(losses[label], gap.square().sum())
        count = synthetic.counts[label]
        expected = (2 / count * matrix.T @ gap).expand(count, -1)
        torch.testing.assert_close(derivative[synthetic.labels == label].flatten(1), expected)


def test_equal_images_have_equal_features_whatever_their_order():
    network = make_network(width=4, depth=2)
    real, synthetic = make_groups([3, 3]), make_groups([3, 3], seed=1)
    losses, derivative = match_features(network, real, real)
    assert losses.max() < 1e-20
    assert derivative.abs().max() < 1e-10
    order = torch.tensor([2, 0, 1, 4, 5, 3])
    shuffled = match_features(network, real, synthetic._replace(images=synthetic.images[order]))[0]
    losses = match_features(network, real, synthetic)[0]
    assert losses.min() > 0
    torch.testing.assert_close(shuffled, losses)
    twice = Batch(synthetic.images.repeat_interleave(2, 0), synthetic.labels.repeat_interleave(2), [6, 6])
    torch.testing.assert_close(match_features(network, real, twice)[0], losses)


def test_batch_statistics_are_those_of_all_classes_unless_told_otherwise():
    network = make_network("convnet-bn", width=4, depth=1).train()
    real, synthetic = make_groups([4, 4, 4]), make_groups([2, 2, 2], seed=1)
    with torch.no_grad():
        gap = network.features(real.images).unflatten(0, (3, 4)).mean(1)
        gap -= network.features(synthetic.images).unflatten(0, (3, 2)).mean(1)
    expected = gap.square().sum(1)
    torch.testing.assert_close(match_features(network, real, synthetic, chunk=1)[0], expected)
    torch.testing.assert_close(match_features(network, real, synthetic, classes="joint")[0], expected)
    alone = match_features(network, real, synthetic, classes="per_class")[0]
    assert (alone - expected).abs().min() > 1e-6


def test_means_of_unequal_groups():
    values = torch.randn(6, 3, dtype=DOUBLE)
    expected = torch.stack([part.mean(0) for part in values.split([1, 3, 2])])
    torch.testing.assert_close(group_means(values, [1, 3, 2]), expected)


def test_mse_on_the_head_is_feature_matching_where_predictions_are_constant():
    network = make_network(width=4, depth=1)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()  # p = 1/K: the head's gradient is (p - e_c) times the mean feature
    real, synthetic = make_groups([4, 4, 4]), make_groups([2, 2, 2], seed=1)
    gradients, _ = match_gradients(network, real, synthetic, distance="mse")
    features, _ = match_features(network, real, synthetic)
    torch.testing.assert_close(gradients, features * (1 - 1 / 3))


# ------------------------------------------------------------------------------------------------ BatchNorm


def test_frozen_statistics_are_those_of_the_images():
    real = make_groups([5, 5])
    network = make_network("convnet-bn", width=4, depth=1)
    convolution, norm = (next(m for m in network.modules() if isinstance(m, nn.Conv2d)), batch_norms(network)[0])
    maps = convolution(real.images).transpose(0, 1).flatten(1).detach()
    freeze_statistics(network, real.images, "batch")
    torch.testing.assert_close(norm.running_mean, maps.mean(1))
    torch.testing.assert_close(norm.running_var, maps.var(1))
    assert (norm.momentum, norm.training, network.training) == (0.1, False, True)
    initialise(network, torch.Generator().manual_seed(0))
    network.double()
    freeze_statistics(network, real.images, "running")
    torch.testing.assert_close(norm.running_mean, 0.1 * maps.mean(1))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * maps.var(1))
    before = network(real.images[:2])
    torch.testing.assert_close(network(real.images)[:2], before)  # no batch statistics any more


# ------------------------------------------------------------------------------------------------ pixels


def test_images_start_from_different_training_images_of_their_class(make_task):
    task = make_task(classes=3, per_class=4, ipc=4)
    found = Pixels(task, init="real", rate=1.0, momentum=0.0)
    train = task.data.train
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for label in range(3):
        own = train.images(train.class_index(label))
        assert sorted(map(tuple, found.images()[found.labels == label].flatten(1).tolist())) == sorted(
            map(tuple, own.flatten(1).tolist())
        )


def test_noise_is_standard_normal_and_drawn_from_the_task(make_task):
    first, again, other = (
        Pixels(make_task(ipc=20, seed=seed), init="noise", rate=1.0, momentum=0.0).images() for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    count = first.numel()
    assert abs(first.mean()) < 5 / math.sqrt(count)
    assert abs(first.var() - 1) < 5 * math.sqrt(2 / count)


def test_a_set_that_cannot_be_made_says_why(make_task):
    with pytest.raises(UserError, match=r"class with 4 images; 5 .*lower `ipc`"):
        Pixels(make_task(per_class=4, ipc=5), init="real", rate=1.0, momentum=0.0)
    with pytest.raises(UserError, match="set `ipc`"):
        Pixels(make_task(ipc=None), init="real", rate=1.0, momentum=0.0)
    assert len(Pixels(make_task(per_class=4, ipc=5), init="noise", rate=1.0, momentum=0.0).labels) == 15
