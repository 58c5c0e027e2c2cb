"""Selections against their definitions: brute force on small data, the invariances, and the published mistakes."""

import dataclasses
import itertools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from bench.api import Need
from bench.data import Split
from bench.distilled import decode, load, save
from bench.errors import UserError
from bench.registry import METHODS
from methods.dynamics import Dynamics, Record, el2n, grand
from methods.forgetting import Forgetting
from methods.herding import Herding, herd
from methods.kcenter import KCenter, cover
from methods.random import Random
from methods.whole import Whole

ALL = (Random, Herding, KCenter, Forgetting)
TRAINED = (Herding, KCenter, Forgetting)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dynamics(size, width=5, seed=0):
    """Results of a training that never took place; distinct counts, so that no choice is a tie."""
    rng = torch.Generator().manual_seed(seed)
    return {
        "features": torch.randn(size, width, generator=rng),
        "forgetting": torch.randperm(size, generator=rng),
        "learned": torch.ones(size, dtype=torch.bool),
    }


def reordered(dataset, order, labels=None):
    """The dataset with its training images in another order, or with other labels."""
    train = dataset.train
    split = Split(train.images[order], train.labels[order] if labels is None else labels)
    return dataclasses.replace(dataset, train=split)


def select(make_task, kind, dynamics, *, order=None, **options):
    """Run a method; `options` are those of the task, except those the method has."""
    own = {name: options.pop(name) for name in list(options) if name in kind.Params.model_fields}
    task = make_task(**options, artifacts={"dynamics": dynamics})
    if order is not None:
        task.dataset = reordered(task.dataset, order)
    method = kind(kind.Params(**own))
    assert method.steps == 0
    method.start(task)
    return method.export()


# ------------------------------------------------------------------------------------ what every selection promises


@pytest.mark.parametrize("kind", ALL)
def test_a_balanced_set_of_real_images(make_task, kind):
    task = make_task(ipc=4)
    made = select(make_task, kind, dynamics(60), ipc=4)
    assert torch.equal(made.labels, torch.arange(3).repeat_interleave(4))
    assert len(made.indices.unique()) == 12
    assert torch.equal(task.data.train.labels[made.indices], made.labels)
    assert torch.equal(made.images, task.data.train.images(made.indices))
    assert made.header.method in METHODS.names()
    assert made.header.floats == {"stored": 768, "decoded": 768, "raw": 768}


@pytest.mark.parametrize("kind", ALL)
def test_a_seed_decides_everything_and_no_global_generator_is_touched(make_task, kind):
    facts = dynamics(60)
    before = torch.random.get_rng_state()
    first = select(make_task, kind, facts, seed=3).indices
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(first, select(make_task, kind, facts, seed=3).indices)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("balance", ["class", "none"])
def test_small_sets_are_part_of_large_ones(make_task, kind, balance):
    facts = dynamics(60)
    large = select(make_task, kind, facts, ipc=8, balance=balance).indices
    for ipc in (1, 2, 5):
        small = select(make_task, kind, facts, ipc=ipc, balance=balance).indices
        groups = 3 if balance == "class" else 1
        assert torch.equal(small.view(groups, -1), large.view(groups, -1)[:, : ipc * 3 // groups])


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("ipc", [20, 21])
def test_a_budget_of_the_class_size_or_more_is_the_whole_class(make_task, kind, ipc):
    made = select(make_task, kind, dynamics(60), ipc=ipc)
    assert torch.equal(made.indices.sort().values, torch.arange(60))


@pytest.mark.parametrize("kind", ALL)
def test_a_class_smaller_than_the_budget_is_taken_whole(make_task, kind):
    made = select(make_task, kind, dynamics(28), per_class=(5, 20, 3), ipc=4)
    assert made.labels.bincount().tolist() == [4, 4, 3]
    assert len(made.indices.unique()) == 11


@pytest.mark.parametrize("kind", TRAINED)
def test_the_order_of_the_dataset_does_not_matter(make_task, kind):
    facts = dynamics(60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(9))
    moved = {name: tensor[order] for name, tensor in facts.items()}
    expected = select(make_task, kind, facts, ipc=6).indices
    found = select(make_task, kind, moved, ipc=6, order=order).indices
    assert torch.equal(order[found], expected)


@pytest.mark.parametrize("kind", [Herding, KCenter])
@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0), (7.3, 0), (1, 100), (50, -30)])
def test_scale_and_origin_of_the_features_do_not_matter(make_task, kind, scale, shift):
    facts = dynamics(60)
    moved = {**facts, "features": facts["features"] * scale + shift}
    expected = select(make_task, kind, facts, ipc=6).indices
    assert torch.equal(select(make_task, kind, moved, ipc=6).indices, expected)


@pytest.mark.parametrize("kind", ALL)
def test_equal_candidates_are_chosen_by_the_seed_not_by_their_place(make_task, kind):
    facts = {
        "features": torch.ones(60, 5),
        "forgetting": torch.zeros(60, dtype=torch.int64),
        "learned": torch.ones(60, dtype=torch.bool),
    }
    chosen = [tuple(select(make_task, kind, facts, seed=seed, ipc=5).indices.tolist()) for seed in range(8)]
    assert len(set(chosen)) == 8
    assert all(len(set(one)) == 15 for one in chosen)


@pytest.mark.parametrize("kind", ALL)
def test_without_balance_the_best_of_all_classes_are_taken(make_task, kind):
    facts = dynamics(60)
    facts["forgetting"] = torch.where(make_task().data.train.labels == 1, 100 + torch.arange(60), torch.arange(60))
    made = select(make_task, kind, facts, ipc=4, balance="none")
    assert len(made.indices.unique()) == 12
    assert torch.equal(made.labels, make_task().data.train.labels[made.indices])
    if kind is Forgetting:
        assert set(made.labels.tolist()) == {1}


@pytest.mark.parametrize("kind", ALL)
def test_the_file_gives_the_selection_back(make_task, kind, tmp_path):
    made = select(make_task, kind, dynamics(60))
    save(tmp_path / "set", made)
    back = load(tmp_path / "set")
    assert torch.equal(back.images, made.images)
    assert torch.equal(back.indices, made.indices)


def test_no_budget_no_selection(make_task):
    with pytest.raises(UserError, match="images per class"):
        select(make_task, Random, None, ipc=None)


def test_all_selections_and_budgets_share_one_training(make_task):
    found = set()
    for kind, ipc, preprocessing in itertools.product(TRAINED, (1, 50), ("meanstd", "zca-kip")):
        (need,) = kind.needs(kind.Params(), make_task(ipc=ipc, preprocessing=preprocessing).spec).values()
        found.add((need.artifact, *need.params.items(), *sorted(need.task.items(), key=str)))
    assert len(found) == 1
    need = Herding.needs(Herding.Params(epochs=2), make_task().spec)["dynamics"]
    assert need == Need("dynamics", {"epochs": 2}, {"ipc": None, "augment": "none", "preprocessing": "meanstd"})
    assert Dynamics.Params(**need.params).epochs == 2
    assert Random.needs(Random.Params(), make_task().spec) == {}


def test_planning_imports_no_torch():
    names = ["random", "herding", "kcenter", "forgetting", "whole", "dynamics"]
    code = f"import sys; {'; '.join(f'import methods.{name}' for name in names)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------ random


def test_random_is_exchangeable(make_task):
    pairs = dict.fromkeys(itertools.combinations(range(6), 2), 0)
    for seed in range(600):
        made = select(make_task, Random, None, classes=1, per_class=6, seed=seed)
        pairs[tuple(sorted(made.indices.tolist()))] += 1
    assert stats.chisquare(list(pairs.values())).pvalue > 0.01


def test_random_does_not_prefer_a_place_in_the_order(make_task):
    first = [int(select(make_task, Random, None, classes=2, per_class=5, seed=s).indices[2]) for s in range(500)]
    counts = list({index: first.count(index) for index in set(first)}.values())
    assert len(counts) == 5
    assert stats.chisquare(counts).pvalue > 0.01


# ------------------------------------------------------------------------------------ herding


def herd_plain(features, count, best=min):
    """The definition, one image at a time."""
    mean, total, chosen = features.mean(0), torch.zeros_like(features[0]), []
    for k in range(1, count + 1):
        free = [i for i in range(len(features)) if i not in chosen]
        chosen.append(best(free, key=lambda i: float((k * mean - total - features[i]).norm())))
        total = total + features[chosen[-1]]
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_herding_is_its_definition(make_task, seed):
    features = random(30, 4, seed=seed) + 3
    assert herd(features - features.mean(0), 30).tolist() == herd_plain(features, 30)


def test_herding_by_hand_and_not_with_the_argmax_of_deepcore():
    features = torch.tensor([[0.0], [1], [2], [3], [10]], dtype=torch.float64)
    centred = features - features.mean(0)
    assert features[herd(centred, 2)].flatten().tolist() == [3, 2]
    assert features[herd_plain(features, 1, best=max)].flatten().tolist() == [10]


def test_herding_of_one_is_the_image_nearest_the_class_mean(make_task):
    facts, train = dynamics(60), make_task().data.train
    made = select(make_task, Herding, facts, ipc=1)
    for label in range(3):
        index = train.class_index(label)
        features = facts["features"][index]
        assert made.indices[label] == index[(features - features.mean(0)).norm(dim=1).argmin()]


def test_the_error_of_herding_falls_like_one_over_k_and_below_random():
    features = torch.rand(4000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = features - features.mean(0)
    counts = torch.arange(1, 201)[:, None]
    errors = (features[herd(features, 200)].cumsum(0) / counts).norm(dim=1)
    draws = [torch.randperm(4000, generator=torch.Generator().manual_seed(s))[:200] for s in range(50)]
    chance = torch.stack([(features[d].cumsum(0) / counts).norm(dim=1) for d in draws]).mean(0)
    assert (errors < chance / 2).all()
    grown = [float((counts[:, 0] * e)[100:].mean() / (counts[:, 0] * e)[8:24].mean()) for e in (errors, chance)]
    assert grown[0] < 1.5  # k times the error hardly moves: O(1/k)
    assert grown[1] > 2  # and grows like the root of k for random selection


# ------------------------------------------------------------------------------------ k-center


def radius(features, chosen):
    return float(torch.cdist(features, features[list(chosen)]).min(1).values.max())


def cover_plain(features, count, first):
    """The greedy rule with all distances."""
    distances, chosen = torch.cdist(features, features), [first]
    while len(chosen) < count:
        chosen.append(int(distances[:, chosen].min(1).values.argmax()))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_kcenter_is_the_greedy_rule(seed):
    features = random(30, 4, seed=seed)
    assert cover(features, 20, seed).tolist() == cover_plain(features, 20, seed)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_radius_is_at_most_twice_the_best_possible(seed, count):
    features = random(12, 2, seed=seed)
    best = min(radius(features, centres) for centres in itertools.combinations(range(12), count))
    for first in range(12):
        assert radius(features, cover(features, count, first).tolist()) <= 2 * best + 1e-12


def test_the_radius_never_grows():
    features = random(40, 3)
    order = cover(features, 40, 0).tolist()
    radii = [radius(features, order[:k]) for k in range(1, 41)]
    assert all(a >= b for a, b in itertools.pairwise(radii))
    assert radii[-1] < 1e-6


def test_the_first_centre(make_task):
    facts = dynamics(60)
    mean = select(make_task, KCenter, facts, ipc=1)
    assert torch.equal(mean.indices, select(make_task, Herding, facts, ipc=1).indices)
    other = {tuple(select(make_task, KCenter, facts, ipc=1, first="random", seed=s).indices.tolist()) for s in range(9)}
    assert len(other) == 9


# ------------------------------------------------------------------------------------ forgetting


@pytest.mark.parametrize(("history", "expected"), [("010110", 2), ("0000", 0), ("1111", 0), ("101010", 3), ("01", 0)])
def test_forgetting_counts_the_losses(history, expected):
    record = Record(3)
    for step in history:  # image 1 has the history, image 2 is always right, image 0 is never seen
        record.visit(torch.tensor([2, 1]), torch.tensor([True, step == "1"]))
    assert record.events.tolist() == [0, expected, 0]
    assert record.learned.tolist() == [False, "1" in history, True]


def test_forgetting_takes_the_largest_counts(make_task):
    facts, train = dynamics(60), make_task().data.train
    made = select(make_task, Forgetting, facts, ipc=5)
    for label in range(3):
        index = train.class_index(label)
        ranked = sorted(index.tolist(), key=lambda i: -int(facts["forgetting"][i]))
        assert made.indices.view(3, 5)[label].tolist() == ranked[:5]


def test_never_learned_is_forgotten_infinitely_often_or_never(make_task):
    facts = dynamics(60)
    never = facts["forgetting"] < 6  # the smallest counts
    facts["learned"] = ~never
    facts["forgetting"][never] = 0
    paper = select(make_task, Forgetting, facts, ipc=20, balance="none").indices
    assert never[paper[:6]].all()
    deepcore = select(make_task, Forgetting, facts, ipc=20, balance="none", never_learned="zero").indices
    assert never[deepcore[-6:]].all()
    assert int(facts["forgetting"][deepcore[0]]) == 59


# ------------------------------------------------------------------------------------ the training behind it


def by_hand(task, epochs, batch):
    """The same training as a list of what happened to every image."""
    network = task.network()
    task.initialise(network, task.rng("initialise"))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9, weight_decay=5e-4)
    train, history = task.data.train, {i: [] for i in range(task.data.train.size)}
    for _ in range(epochs):
        order = torch.randperm(train.size, generator=task.rng("order"))
        for begin in range(0, train.size, batch):
            index = order[begin : begin + batch]
            logits = network(train.images()[index])
            for i, logit in zip(index.tolist(), logits, strict=True):
                history[i].append(int(logit.argmax()) == int(train.labels[i]))
            optimiser.zero_grad()
            F.cross_entropy(logits, train.labels[index]).backward()
            optimiser.step()
    return network, history


def test_dynamics_is_the_training_it_describes(make_task):
    def confused():  # random labels: nothing is learned for good
        task = make_task(ipc=None, network="convnet-bn-w4-d2")
        order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
        task.dataset = reordered(task.dataset, torch.arange(60), labels=task.dataset.train.labels[order])
        return task

    made = Dynamics(Dynamics.Params(epochs=6, batch=16, rate=0.3)).build(confused())
    task = confused()
    network, history = by_hand(task, 6, 16)
    events = [sum(a and not b for a, b in itertools.pairwise(h)) for h in history.values()]
    assert made["forgetting"].tolist() == events
    assert made["learned"].tolist() == [any(h) for h in history.values()]
    assert sum(events) > 0
    network.eval()
    with torch.no_grad():
        features = network.features(task.data.train.images())
        errors = network.head(features).softmax(1) - F.one_hot(task.data.train.labels)
    assert torch.allclose(made["features"], features, rtol=0, atol=1e-6)
    assert torch.allclose(made["el2n"], errors.norm(dim=1), atol=1e-6)
    per_epoch = torch.tensor([[h[epoch] for h in history.values()] for epoch in range(6)]).float().mean(1)
    assert torch.allclose(made["accuracy"], per_epoch)
    assert made["accuracy"][-1] > made["accuracy"][0]


def test_dynamics_fits_the_selections_and_the_file(make_task):
    from safetensors.torch import load as from_bytes
    from safetensors.torch import save as to_bytes

    made = from_bytes(to_bytes(Dynamics(Dynamics.Params(epochs=1, batch=25)).build(make_task(ipc=None))))
    for kind in TRAINED:
        assert len(select(make_task, kind, made).indices) == 6


def test_dynamics_augments_where_the_dataset_may_be_mirrored(make_task):
    pytest.importorskip("bench.augment")
    params = Dynamics.Params(epochs=1, batch=16)
    plain, augmented = (Dynamics(params).build(make_task(flip=flip))["features"] for flip in (False, True))
    assert not torch.equal(plain, augmented)
    off = Dynamics(Dynamics.Params(epochs=1, batch=16, augment="none")).build(make_task(flip=True))["features"]
    assert torch.equal(plain, off)


def test_el2n_is_bounded_and_right_at_its_ends():
    labels = torch.randint(7, (50,), generator=torch.Generator().manual_seed(0))
    scores = el2n(random(50, 7) * 20, labels)
    assert (scores >= 0).all()
    assert (scores <= 2**0.5 + 1e-12).all()
    sure = 100 * F.one_hot(labels, 7).double()
    assert torch.allclose(el2n(sure, labels), torch.zeros(50).double())
    assert torch.allclose(
        el2n(-sure + 100 * F.one_hot((labels + 1) % 7, 7), labels), torch.full((50,), 2**0.5).double()
    )
    uniform = el2n(torch.zeros(50, 7).double(), labels)
    assert torch.allclose(uniform, torch.full((50,), (1 - 1 / 7) ** 0.5).double())


def test_grand_is_the_gradient_norm_of_the_last_layer():
    head = torch.nn.Linear(6, 4).double()
    features, labels = random(10, 6), torch.arange(10) % 4
    scores = grand(head(features).detach(), labels, features)
    for feature, label, score in zip(features, labels, scores, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(head(feature), label), list(head.parameters()))
        assert torch.allclose(score, torch.cat([g.flatten() for g in gradients]).norm())


# ------------------------------------------------------------------------------------ whole


def test_whole_points_at_every_image(make_task, tmp_path):
    task = make_task(ipc=None)
    method = Whole(Whole.Params())
    method.start(task)
    made = method.export()
    assert Whole.budget_free
    assert method.steps == 0
    assert made.images is None
    save(tmp_path / "set", made)
    back = load(tmp_path / "set")
    assert torch.equal(decode(back, task.data), task.data.train.images())
    assert torch.equal(back.labels, task.data.train.labels)
    assert back.header.floats == {"stored": 3840, "decoded": 3840, "raw": 3840}
