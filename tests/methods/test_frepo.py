"""FRePo: the regression, LAMB, the pool and the labels, against closed forms and a plain reference in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from bench.nets import initialise
from methods.frepo import FRePo, Lamb, label_margin
from methods.krr import centred, solve


def method(**params):
    return FRePo(FRePo.Params(**({"iterations": 10, "batch": 24, "pool": 3, "width": 4, "depth": 2} | params)))


def features(n=12, q=5, seed=0):
    return torch.randn(n, q, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_dual_equals_primal():
    f_s, f_t = features(4, 9), features(6, 9, 1)
    y = features(4, 3, 2)
    ridge = 1e-3 * (f_s @ f_s.T).diagonal().mean()
    primal = f_t @ (f_s.T @ f_s + ridge * torch.eye(9, dtype=torch.float64)).inverse() @ f_s.T @ y
    torch.testing.assert_close(f_t @ f_s.T @ solve(f_s @ f_s.T, y, 1e-3), primal)


def test_scale_of_all_features_has_no_effect_and_no_gradient():
    f_s, f_t = features(4, 9).requires_grad_(), features(6, 9, 1).requires_grad_()
    y_s, y_t = features(4, 3, 2), features(6, 3, 3)

    def loss(s, t):
        return (t @ s.T @ solve(s @ s.T, y_s) - y_t).square().sum(1).mean() / 2

    value = loss(f_s, f_t)
    torch.testing.assert_close(loss(3 * f_s, 3 * f_t), value)
    by_s, by_t = torch.autograd.grad(value, [f_s, f_t])
    along_s, along_t = ((by * f.detach()).sum() for by, f in ((by_s, f_s), (by_t, f_t)))
    assert abs(along_s + along_t) < 1e-8
    assert abs(along_s) > 1e-6


def test_lamb_moves_every_tensor_by_the_rate_times_its_norm():
    tensors = [features(4, 9), features(4, 3, 1)]
    lamb = Lamb(tensors)
    for step in range(5):
        before = [t.clone() for t in tensors]
        lamb.step((features(4, 9, step + 5), features(4, 3, step + 9)), 1e-3)
        for old, new in zip(before, tensors, strict=True):
            assert (new - old).norm().item() == pytest.approx(1e-3 * old.norm().item(), rel=1e-9)


def test_lamb_direction_is_that_of_adam():
    start, gradients = features(4, 3), [features(4, 3, k + 1) for k in range(4)]
    own, moments = start.clone(), torch.nn.Parameter(start.clone())
    lamb, adam = Lamb([own], eps=1e-8), torch.optim.Adam([moments], lr=1.0, eps=1e-8)
    for gradient in gradients:
        before_own, before_adam = own.clone(), moments.detach().clone()
        lamb.step((gradient,), 0.01)
        moments.grad = gradient.clone()
        adam.step()
        a, b = own - before_own, moments.detach() - before_adam
        torch.testing.assert_close(a / a.norm(), b / b.norm())


def test_lamb_ignores_a_constant_factor_of_the_loss_and_stays_at_zero():
    a, b, zero = features(4, 3), features(4, 3), torch.zeros(3, dtype=torch.float64)
    first, second, third = Lamb([a], eps=0.0), Lamb([b], eps=0.0), Lamb([zero])
    for k in range(3):
        first.step((features(4, 3, k + 1),), 0.1)
        second.step((7 * features(4, 3, k + 1),), 0.1)
        third.step((torch.zeros(3, dtype=torch.float64),), 0.1)
    torch.testing.assert_close(a, b)
    assert torch.equal(zero, torch.zeros(3, dtype=torch.float64))


def test_label_margin_and_its_gradient():
    labels = torch.tensor([[0.9, -0.1, -0.1], [0.3, 0.2, 0.0]], dtype=torch.float64, requires_grad=True)
    value = label_margin(labels)
    assert value.item() == pytest.approx(-(1 / 3 + 0.1) / 2)
    (gradient,) = torch.autograd.grad(value, labels)
    expected = [[0, 0, 0], [-0.5, 0.5, 0]]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("classes", [3, 10, 12])
def test_first_labels_have_the_stated_norm(make_task, classes):
    fast = method()
    fast.start(make_task(classes=classes, per_class=5, ipc=1))
    expected = (1 - 1 / classes) * 10 / classes
    torch.testing.assert_close(fast.labels.detach().square().sum(1), torch.full((classes,), expected))


def test_pool_ages_and_replacement(make_task):
    fast = method(pool=10, max_age=100, width=2, depth=1)
    fast.start(make_task())
    assert fast.ages == list(range(0, 100, 10))
    fast.ages[4] = 100
    old = {k: v.clone() for k, v in fast.networks[4].state_dict().items()}
    fast._online(4)
    assert fast.ages[4] == 101
    trained = {k: v.clone() for k, v in fast.networks[4].state_dict().items()}
    assert any(not torch.equal(old[k], trained[k]) for k in old)
    fast._online(4)
    assert fast.ages[4] == 0
    assert not fast.optimisers[4].state
    assert not torch.equal(next(fast.networks[4].parameters()), next(iter(trained.values())))


def test_no_gradient_reaches_networks_from_the_images_step(make_task):
    fast = method(pool=1, max_age=-1 + 1)
    fast.start(make_task())
    fast.ages = [5]  # too old: the network step replaces it instead of training it
    fast.step()
    assert all(weight.grad is None for weight in fast.networks[0].parameters())


def test_meta_gradient_equals_central_differences(make_task):
    fast = method(flip=True)
    fast.start(make_task(dtype=torch.float64))
    fast.images = fast.images.detach().double().requires_grad_()
    fast.labels = fast.labels.detach().double().requires_grad_()
    network = fast.networks[0].double().eval()
    real, targets = features(7, network.feature_size), features(7, 3, 1)
    by_images, by_labels = torch.autograd.grad(fast._regression(network, real, targets), [fast.images, fast.labels])
    for tensor, gradient, place in ((fast.images, by_images, (1, 0, 3, 2)), (fast.labels, by_labels, (2, 1))):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor[place] += sign * 1e-6
                values.append(fast._regression(network, real, targets))
                tensor[place] -= sign * 1e-6
        assert gradient[place].item() == pytest.approx(((values[0] - values[1]) / 2e-6).item(), rel=1e-4, abs=1e-8)


def test_flip_of_symmetric_images_halves_the_ridge(make_task):
    fast = method(ridge=1e-2)
    fast.start(make_task(dtype=torch.float64))
    half = torch.randn(6, 1, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fast.images = torch.cat([half, half.flip(3)], 3)
    fast.labels = fast.labels.detach().double()

    class Symmetric:
        feature_size = 64

        def features(self, images):
            return images.flatten(1)

    real, targets = features(7, 64), features(7, 3, 1)
    doubled = method(ridge=1e-2, flip=True)
    doubled.images, doubled.labels, doubled.count = fast.images, fast.labels, 0
    halved = method(ridge=5e-3)
    halved.images, halved.labels, halved.count = fast.images, fast.labels, 0
    torch.testing.assert_close(
        doubled._regression(Symmetric(), real, targets), halved._regression(Symmetric(), real, targets)
    )


def half_squares(predicted, targets, real):
    return 0.5 * (predicted - targets).square().sum(1).mean()


def plain_run(fast, task, twin, loss=half_squares):
    """Ten steps from where `fast` has just started, everything spelled out; return losses, images, labels and ages.

    Explicit inverse, LAMB from its formula, networks trained with Adam. loss: of (predicted, targets, real features).
    """
    p, images, labels = fast.params, *(t.detach().double().clone().requires_grad_() for t in (fast.images, fast.labels))
    nets = [copy.deepcopy(network) for network in fast.networks]
    adams = [torch.optim.Adam(net.parameters(), lr=3e-4) for net in nets]
    ages, moments, losses = list(fast.ages), {}, []
    twin.rng("init")
    twin.rng("network").set_state(task.rng("network").get_state())
    for step in range(10):
        who = int(torch.randint(p.pool, (), generator=twin.rng("pool")))
        batch = twin.data.train.sample_mixed(p.batch, twin.rng("real"))
        net = nets[who].eval()
        f_t = net.features(batch.images).detach()
        f_s = net.features(torch.cat([images, torch.flip(images, [3])]))
        k = f_s @ f_s.T
        a = k + 1e-6 * k.trace() / len(k) * torch.eye(len(k), dtype=k.dtype)
        f = f_t @ f_s.T @ a.inverse() @ torch.cat([labels, labels])
        plain = loss(f, centred(batch.labels, 3, torch.float64), f_t)
        top = labels.sort(dim=1, descending=True).values
        margin = -torch.minimum(top[:, 0] - top[:, 1], torch.tensor(1 / 3)).mean()
        gradients = torch.autograd.grad(plain + margin, [images, labels])
        rate = 3e-5 + (3e-4 - 3e-5) * 0.5 * (1 + math.cos(math.pi * step / 10))
        with torch.no_grad():
            for tensor, g in zip((images, labels), gradients, strict=True):
                m, v = moments.get(id(tensor), (0.0, 0.0))
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                moments[id(tensor)] = m, v
                u = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-6)
                tensor -= rate * tensor.norm() / u.norm() * u
        if ages[who] > p.max_age:
            initialise(nets[who], twin.rng("network"), "lecun")
            adams[who], ages[who] = torch.optim.Adam(nets[who].parameters(), lr=3e-4), 0
        else:
            nets[who].train()
            adams[who].zero_grad()
            (0.5 * (nets[who](images.detach()) - labels.detach()).square().sum(1).mean()).backward()
            adams[who].step()
            ages[who] += 1
        losses.append(plain.detach())
    return losses, images.detach(), labels.detach(), ages


def check_ten_steps(make_task):
    task = make_task(dtype=torch.float64)
    fast = method(flip=True, max_age=4)
    fast.start(task)
    losses, images, labels, ages = plain_run(fast, task, make_task(dtype=torch.float64))
    for plain in losses:
        torch.testing.assert_close(fast.step()["loss"], plain, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(fast.images.detach(), images, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(fast.labels.detach(), labels, rtol=1e-5, atol=1e-7)
    assert fast.ages == ages
    return fast


def test_ten_steps_equal_a_plain_reference(make_task):
    assert check_ten_steps(make_task).choices()["features"].startswith("plain: a short run")


def test_ten_compiled_steps_equal_a_plain_reference(make_task, monkeypatch, compiles):
    """One compiled function serves all networks of the pool; 24 real images in passes of 5, the last one filled up."""
    monkeypatch.setattr("methods.frepo.images_per_pass", lambda chunk, images: 5)
    assert check_ten_steps(make_task).choices() == {"features": "compiled"}


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_blocks_of_distilled_images_change_no_gradient(make_task, chunk):
    found, seen = [], []
    for params in ({}, {"chunk": chunk}):
        fast, network = double(make_task(dtype=torch.float64), flip=True, **params)
        plain = network.features
        network.features = lambda images, plain=plain: (seen.append(len(images)), plain(images))[1]
        real, targets = features(7, network.feature_size), features(7, 3, 1)
        loss = fast._regression(network, real, targets)
        found.append((loss.detach(), *torch.autograd.grad(loss, [fast.images, fast.labels])))
    for whole, blocks in zip(*found, strict=True):
        torch.testing.assert_close(blocks, whole, rtol=1e-9, atol=1e-12)
    assert seen[0] == 12
    assert max(seen[1:]) == min(chunk, 12)
    assert sum(seen[1:]) == 2 * 12  # every block once without and once with its graph


def test_state_continues_bit_for_bit(make_task):
    def run(stop=None):
        task = make_task()
        fast = method(max_age=3)
        fast.start(task)
        for k in range(8):
            if k == stop:
                state = copy.deepcopy(fast.state_dict())
                generators = {name: rng.get_state() for name, rng in task._generators.items()}
                task = make_task()
                fast = method(max_age=3)
                fast.start(task)
                fast.load_state_dict(state)
                for name, value in generators.items():
                    task.rng(name).set_state(value)
            fast.step()
        return fast.export()

    whole, resumed = run(), run(stop=4)
    assert torch.equal(whole.images, resumed.images)
    assert torch.equal(whole.labels, resumed.labels)


# ------------------------------------------------------------------------------------ identities of the whole method


def double(task, **params):
    """A started method with everything in float64, and its first network in evaluation mode."""
    fast = method(**params)
    fast.start(task)
    fast.images, fast.labels = (t.detach().double().requires_grad_() for t in (fast.images, fast.labels))
    return fast, fast.networks[0].double().eval()


def test_a_fixed_network_gives_the_loss_and_gradient_of_kip_times_the_classes(make_task):
    from methods.kip import KIP

    task = make_task(dtype=torch.float64)
    fast, network = double(task, pool=1)
    kip = KIP(KIP.Params(labels="learned", chunk=5))
    kip.start(make_task(dtype=torch.float64))
    with torch.no_grad():
        kip.images.copy_(fast.images)
        kip.labels.copy_(fast.labels)
    kip.kernel = lambda x, z: network.features(x) @ network.features(z).T
    x_t, targets = task.data.train.images(), centred(task.data.train.labels, 3, torch.float64)
    loss = fast._regression(network, network.features(x_t).detach(), targets)
    gradients = torch.autograd.grad(loss, [fast.images, fast.labels])
    torch.testing.assert_close(3 * kip._gradient(x_t, targets), loss.detach(), rtol=1e-8, atol=0)
    for own, other in zip(gradients, (kip.images.grad, kip.labels.grad), strict=True):
        torch.testing.assert_close(3 * other, own, rtol=1e-5, atol=1e-8)


def test_loss_is_a_convex_quadratic_of_the_labels_with_the_label_solve_as_minimum(make_task):
    task = make_task(dtype=torch.float64)
    fast, network = double(task, ridge=1e-3)
    real = network.features(task.data.train.images()).detach()
    targets = centred(task.data.train.labels, 3, torch.float64)

    def loss(labels):
        fast.labels = labels
        return fast._regression(network, real, targets)

    a, b = features(6, 3), features(6, 3, 1)
    at_ends, middle = (loss(a) + loss(b)) / 2, loss((a + b) / 2)
    zero = loss(torch.zeros_like(a))
    torch.testing.assert_close(at_ends - middle, (loss((a - b) / 2) + loss((b - a) / 2)) / 2 - zero)
    assert at_ends > middle
    f_s = network.features(fast.images).detach()
    rows = real @ f_s.T @ solve(f_s @ f_s.T, torch.eye(6, dtype=torch.float64), 1e-3)
    best = torch.linalg.lstsq(rows, targets, driver="gelsd").solution.requires_grad_()
    (slope,) = torch.autograd.grad(loss(best), best)
    assert slope.abs().max() < 1e-9
    assert loss(best) < min(loss(a), loss(b))


def test_every_outer_step_moves_images_and_labels_by_the_rate_times_their_norms(make_task):
    fast = method()
    fast.start(make_task())
    for step in range(10):
        before = [tensor.detach().clone() for tensor in fast.learned]
        fast.step()
        rate = 3e-4 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 10)) / 2)
        for old, new in zip(before, fast.learned, strict=True):
            assert float((new.detach() - old).norm()) == pytest.approx(rate * float(old.norm()), rel=2e-3)


def test_lives_of_the_networks(make_task):
    """A life is max_age + 1 updates and the visit that ends it; ages at visits are even between 0 and max_age + 1."""
    fast = method(pool=2, max_age=10, width=1, depth=1)
    fast.start(make_task(shape=(1, 4, 4), ipc=1))
    rng, ages, replaced = torch.Generator().manual_seed(0), [], 0
    for _ in range(600):
        who = int(torch.randint(2, (), generator=rng))
        ages.append(fast.ages[who])
        fast._online(who)
        replaced += fast.ages[who] == 0
    assert abs(replaced - 600 / 12) <= 2
    assert sum(ages) / len(ages) == pytest.approx(5.5, abs=0.2)
    assert max(ages) == 11


def test_features_of_real_images_do_not_depend_on_their_batch(make_task):
    task = make_task(dtype=torch.float64)
    fast, network = double(task)
    fast.ages[0] = 0
    fast._online(0)  # running statistics of a batch that was seen
    network.eval()
    x = task.data.train.images(torch.arange(5))
    apart = torch.cat([network.features(image[None]) for image in x])
    torch.testing.assert_close(network.features(x), apart, rtol=1e-12, atol=1e-14)


def test_batch_norm_remembers_nine_tenths_of_the_batch(make_task):
    task = make_task(dtype=torch.float64)
    fast, network = double(task)
    maps = []
    norm = next(m for m in network.modules() if hasattr(m, "running_mean"))
    norm.register_forward_hook(lambda module, inputs, output: maps.append(inputs[0].detach()))
    fast._online(0)
    torch.testing.assert_close(norm.running_mean, 0.9 * maps[0].mean((0, 2, 3)))
    variance = maps[0].transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(norm.running_var, 0.1 + 0.9 * variance)


# ------------------------------------------------------------------------------------ networks, presets, protocol


@pytest.mark.parametrize(
    ("shape", "classes", "size", "parameters"),
    [((3, 32, 32), 10, 8192, 1_560_842), ((1, 28, 28), 10, 8192, None), ((3, 64, 64), 200, 16384, None),
     ((3, 128, 128), 10, 32768, None)],
)  # fmt: skip
def test_sizes_of_the_network(shape, classes, size, parameters):
    from bench.nets import construct, parameter_count

    evaluated = FRePo.network_of(FRePo.Params()).model_copy(update={"norm": "none"})
    assert construct._template(evaluated, shape, classes).feature_size == size
    if parameters:
        assert parameter_count(evaluated, shape, classes) == parameters


def preset(name, ipc):
    from bench.data import info

    found = FRePo.preset(info(name), ipc)
    params = FRePo.Params(**found.params)
    return params.flip, FRePo.preprocessing(params, info(name)), found.source is not None


@pytest.mark.parametrize(
    ("name", "ipc", "expected"),
    [("mnist", 1, (False, "meanstd", True)), ("fashion_mnist", 50, (False, "meanstd", True)),
     ("cifar10", 50, (True, "zca-frepo", True)), ("cifar10", 20, (True, "zca-frepo", False)),
     ("cifar100", 1, (True, "zca-frepo", True)), ("cifar100", 10, (False, "zca-frepo", True)),
     ("tiny_imagenet", 1, (True, "zca-frepo", True)), ("tiny_imagenet", 10, (False, "zca-frepo", True)),
     ("tiny_imagenet", 50, (False, "zca-frepo", False)), ("imagenette2", 1, (True, "meanstd", False)),
     ("svhn", 10, (False, "zca-frepo", False))],
)  # fmt: skip
def test_presets(name, ipc, expected):
    assert preset(name, ipc) == expected


@pytest.mark.parametrize(
    ("evaluation", "arch", "steps"),
    [("recipe: native", "frepo_conv", 1000), ("recipe: {base: native, steps: 5}", "frepo_conv", 5),
     ("recipe: native, network: lenet", "lenet", 1000), ("recipe: review", "convnet", None)],
)  # fmt: skip
def test_native_evaluation_in_a_suite(tmp_path, evaluation, arch, steps):
    """The network of the pool without norm, the authors' steps; a network that the suite names wins."""
    from bench import suite

    file = tmp_path / "suite.yaml"
    grid = "grid: {datasets: [digits], methods: [frepo], ipc: [1]}"
    file.write_text(f"{grid}\nevaluation: {{{evaluation}}}\nevaluators: [accuracy]")
    cells = {cell.kind: cell.config for cell in suite.plan(suite.load(file)).cells}
    found = cells["evaluate"]["eval"]
    assert (found["network"]["arch"], found["recipe"]["steps"]) == (arch, steps)
    assert cells["prepare"]["params"]["network"] == found["network"]
    if arch == "frepo_conv":
        assert (found["network"]["norm"], found["network"]["width"]) == ("none", 128)
        assert (found["recipe"]["optimiser"], found["recipe"]["augment"]) == ("adam", "frepo")


def test_evaluation_steps_by_the_number_of_images():
    from bench.api import NetSpec, TaskSpec
    from bench.data import info

    def steps(name, ipc):
        recipe = FRePo.native_recipe(FRePo.Params(), TaskSpec(dataset=info(name), ipc=ipc, network=NetSpec()))
        return recipe.get("steps")

    assert (steps("mnist", 1), steps("cifar100", 1), steps("cifar10", 50)) == (1000, 2000, 5000)
    assert (steps("cifar100", 50), steps("tiny_imagenet", 10), steps("cifar10", 3)) == (40000, 40000, None)


def test_whitened_colour_images_and_fixed_labels(make_task):
    task = make_task(shape=(3, 8, 8), preprocessing="zca-frepo")
    fast = method(learn_labels=False, flip=True)
    fast.start(task)
    first = fast.images.detach().clone()
    for _ in range(3):
        fast.step()
    made = fast.export()
    assert made.header.preprocessing == "zca-frepo"
    assert "preprocessing/matrix" in made.extra
    assert made.header.network["arch"] == "frepo_conv"
    assert made.header.network["norm"] == "bn"
    torch.testing.assert_close(made.labels, centred(torch.arange(3).repeat_interleave(2), 3, torch.float32) / 0.3**0.5)
    assert not torch.equal(made.images, first)


def test_more_images_than_an_online_batch_are_drawn_without_replacement(make_task):
    fast = method(online_batch=4, width=1, depth=1)
    fast.start(make_task())
    seen = []
    fast.networks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    fast.ages[0] = 0
    fast._online(0)
    assert len(seen[0]) == 4
    assert len(torch.unique(seen[0].flatten(1), dim=0)) == 4
