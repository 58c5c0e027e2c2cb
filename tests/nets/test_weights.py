"""Drawing weights, stacking networks and running the stack."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from bench import nets
from bench.api import NetSpec
from bench.errors import UserError
from bench.nets import construct
from bench.nets.layers import BatchNorm

CIFAR, SMALL = (3, 32, 32), (2, 8, 8)


def rng(seed):
    return torch.Generator().manual_seed(seed)


def make(name, shape=SMALL, classes=5, seed=0, kind="torch"):
    network = nets.build(name, shape, classes)
    nets.initialise(network, rng(seed), kind)
    return network


# ---------------------------------------------------------------------------------------------- one network


@pytest.mark.parametrize("name", ["convnet-bn", "resnet18", "lenet"])
def test_the_global_generator_is_neither_used_nor_moved(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make(name)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = make(name), make(name, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not any(
        torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True) if a.dim() > 1
    )


def test_undrawn_weights_are_loud():
    network = nets.build("convnet-bn-w8", SMALL, 5)
    assert all(torch.isfinite(buffer).all() for buffer in network.buffers())
    assert network(torch.zeros(2, *SMALL)).isnan().all()


def test_torch_kind_is_the_default_of_torch():
    """Same law as torch's own constructors: uniform within the same bound, weights and biases alike."""
    network, own = make("convnet-w128", CIFAR), torch.nn.Conv2d(128, 128, 3)
    conv = network.body[1].conv
    bound = (128 * 9) ** -0.5
    for drawn, reference in ((conv.weight, own.weight), (network.head.weight, torch.nn.Linear(2048, 5).weight)):
        limit = bound if drawn is conv.weight else 2048**-0.5
        values = drawn.detach().flatten().numpy()
        assert abs(values).max() <= limit
        assert abs(values).max() == pytest.approx(reference.abs().max().item(), rel=2e-3)
        assert stats.kstest(values, stats.uniform(-limit, 2 * limit).cdf).pvalue > 1e-3
    biases = torch.cat([make("convnet-w128", CIFAR, seed=s).body[1].conv.bias.detach() for s in range(8)]).numpy()
    assert stats.kstest(biases, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        ("lecun", lambda fan_in, fan_out: stats.truncnorm(-2, 2, scale=fan_in**-0.5 / stats.truncnorm(-2, 2).std())),
        ("xavier", lambda fan_in, fan_out: stats.norm(scale=(2 / (fan_in + fan_out)) ** 0.5)),
    ],
)
def test_lecun_and_xavier_laws(kind, law):
    network = make("convnet-w64", CIFAR, kind=kind)
    first, second = network.body[0].conv, network.body[1].conv
    for weight, fan_in, fan_out in ((second.weight, 576, 576), (first.weight, 27, 576), (network.head.weight, 1024, 5)):
        expected = law(fan_in, fan_out)
        values = weight.detach().flatten().numpy()
        assert stats.kstest(values, expected.cdf).pvalue > 1e-3
        assert values.std() == pytest.approx(expected.std(), rel=0.05)
    assert not any(part.bias.any() for part in (first, second, network.head))
    if kind == "lecun":
        assert second.weight.var().item() == pytest.approx(1 / 576, rel=0.05)


def test_norms_start_neutral_and_forget():
    network = make("convnet-bn-w8")
    network(torch.randn(4, *SMALL, generator=rng(5)))
    norm = network.body[0].norm
    assert norm.running_mean.any()
    with torch.no_grad():
        norm.weight.fill_(3.0)
    nets.initialise(network, rng(0))
    assert (norm.weight == 1).all()
    assert not norm.bias.any()
    assert not norm.running_mean.any()
    assert (norm.running_var == 1).all()


def test_foreign_parts_are_refused():
    with pytest.raises(UserError, match="Bilinear"):
        nets.initialise(torch.nn.Bilinear(2, 2, 2), rng(0))
    with pytest.raises(UserError, match="unknown initialisation 'kaiming'"):
        nets.initialise(torch.nn.Linear(2, 2), rng(0), "kaiming")


def test_batch_norm_is_torchs():
    ours, oracle = BatchNorm(3).double(), torch.nn.BatchNorm2d(3).double()
    generator = rng(3)
    for _ in range(3):
        maps = torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64) * 2 + 1
        torch.testing.assert_close(ours(maps), oracle(maps))
    torch.testing.assert_close(ours.eval()(maps), oracle.eval()(maps))
    torch.testing.assert_close(ours.running_var, oracle.running_var)


# ---------------------------------------------------------------------------------------------- stacks

ALL_NORMS = ["convnet-in", "convnet-bn", "convnet-ln", "convnet-gn", "convnet-none", "resnet18-bn", "vgg11-bn",
             "alexnet-none", "alexcifar", "frepo_conv-bn"]  # fmt: skip


@pytest.mark.parametrize("name", [*ALL_NORMS, "resnet18_ap-in", "mlp"])
def test_each_network_of_a_stack_depends_on_its_generator_alone(name):
    spec = nets.parse(f"{name}-w8")
    _, parameters, buffers = nets.stack(spec, SMALL, 5, [rng(4), rng(9)])
    for index, seed in enumerate((4, 9)):
        single = make(f"{name}-w8", seed=seed, kind=spec.init)
        assert list(dict(single.named_parameters())) == list(parameters)
        assert all(torch.equal(parameters[key][index], value) for key, value in single.named_parameters())
        assert all(torch.equal(buffers[key][index], value) for key, value in single.named_buffers())


def train_step(network, parameters, buffers, images, labels):
    """Return (gradient, new buffers) of the mean cross-entropy."""

    def loss(parameters):
        logits, new = nets.call(network, parameters, buffers, images)
        return F.cross_entropy(logits, labels), new

    return torch.func.grad(loss, has_aux=True)(parameters)


@pytest.mark.parametrize("name", ALL_NORMS)
def test_vmap_over_a_stack_equals_the_loop(name):
    """Three training steps of three networks on their own batches in float64: weights and running statistics."""
    seeds, generator = (1, 2, 3), rng(7)
    spec = nets.parse(f"{name}-w8")
    template, parameters, buffers = nets.stack(spec, SMALL, 5, [rng(seed) for seed in seeds])
    parameters, buffers = ({key: value.double() for key, value in part.items()} for part in (parameters, buffers))
    images = torch.randn(3, 3, 4, *SMALL, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (3, 3, 4), generator=generator)
    step = torch.vmap(lambda p, b, x, y: train_step(template, p, b, x, y))
    for batch, label in zip(images, labels, strict=True):
        gradient, buffers = step(parameters, buffers, batch, label)
        parameters = {key: value - 0.1 * gradient[key] for key, value in parameters.items()}
    for index, seed in enumerate(seeds):
        single = make(f"{name}-w8", seed=seed, kind=spec.init).double()
        optimiser = torch.optim.SGD(single.parameters(), lr=0.1)
        for batch, label in zip(images[:, index], labels[:, index], strict=True):
            optimiser.zero_grad()
            F.cross_entropy(single(batch), label).backward()
            optimiser.step()
        for key, value in [*single.named_parameters(), *single.named_buffers()]:
            stacked = (parameters | buffers)[key][index]
            torch.testing.assert_close(stacked, value.detach(), rtol=1e-9, atol=1e-11, msg=f"{key} of network {index}")


@pytest.mark.parametrize("name", ["convnet-bn-w8", "vgg11-in-w8"])
def test_call_changes_nothing_it_was_given(name):
    network = make(name)
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    before = {key: value.clone() for key, value in buffers.items()}
    images = torch.randn(4, *SMALL, generator=rng(2))
    logits, new = nets.call(network, parameters, buffers, images)
    features, also_new = nets.call(network, parameters, buffers, images, features=True)
    torch.testing.assert_close(network.head(features), logits)
    for key in buffers:
        assert torch.equal(buffers[key], before[key])
        assert not torch.equal(new[key], before[key])
        assert torch.equal(new[key], also_new[key])
    assert all(torch.equal(value, before[key]) for key, value in network.named_buffers())


def test_second_derivatives_exist_for_every_norm():
    """Gradient matching differentiates a gradient: finite differences in float64."""
    for norm in ("none", "in", "bn", "ln", "gn"):
        network = make(f"convnet-{norm}-w4-d1-swish", (1, 4, 4)).double()
        labels = torch.tensor([0, 1])

        def matching(images, network=network, labels=labels):
            loss = F.cross_entropy(network(images), labels)
            gradients = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
            return sum((gradient**2).sum() for gradient in gradients)

        images = torch.randn(2, 1, 4, 4, generator=rng(1), dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(matching, (images,), eps=1e-6, atol=1e-6, rtol=1e-4)


def test_build_accepts_names_mappings_and_specs():
    counts = {nets.parameter_count(form, SMALL, 5) for form in ("convnet-w8", {"width": 8}, NetSpec(width=8))}
    assert len(counts) == 1


def twice(spec, shape, classes):
    """Build a network that uses one layer twice, under two names."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
    network[3].weight = network[1].weight
    return network


def test_a_weight_with_two_names_never_becomes_two(monkeypatch):
    known = replace(construct.architecture("mlp"), build=f"{__name__}:twice")
    monkeypatch.setattr(construct, "architecture", lambda name: known)
    network, params, buffers = nets.stack("mlp", (2, 2, 2), 8, [rng(0)])
    one = {name: value[0] for name, value in params.items()}
    with pytest.raises(ValueError, match="tied"):
        nets.call(network, one, buffers, torch.zeros(3, 2, 2, 2))
