"""Kernels of infinitely wide networks: golden values, symmetry, gradients, and agreement of the two ways to compute.

The golden values are those of neural-tangents 0.6.5 in float64 with weight variance 2 and bias variance 0.01.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.utils._python_dispatch

from bench.errors import UserError
from methods import kernels
from methods.kernels import architecture, kernel

E = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64).view(3, 1, 1, 2)
FC = {
    "fc1": ((1.02, 0.33650874, 1.08819721, 2.02), (2.03, 0.34154026, 1.84649695, 4.03)),
    "fc2": ((1.03, 0.52076525, 1.15009075, 2.03), (3.06, 0.72808653, 2.57905168, 6.06)),
}
CONV = {
    "conv1": ((0.30911675, 0.21207378, 1.40888889), (0.60823351, 0.22224861, 2.80777778)),
    "conv2": ((0.24227648, 0.25353321, 1.07015432), (0.69682943, 0.35586788, 3.18046296)),
    "conv1-gap": ((0.19814004, 0.20417132, 0.58726349), (0.33434071, 0.21046798, 0.90178999)),
    "pooled": ((0.12436296, 0.12390341, 0.29206209), (0.32205407, 0.19157823, 0.75307966)),
}
POOLED = ("conv", "relu", "pool", "conv", "relu", "flatten", "dense")


@pytest.fixture(autouse=True)
def pooled(monkeypatch):
    known = architecture
    monkeypatch.setattr(kernels, "architecture", lambda name: POOLED if name == "pooled" else known(name))


def images(n: int, shape=(2, 4, 4), seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("name", "kind", "number"), [(n, k, i) for n in FC for i, k in enumerate(("nngp", "ntk"))])
def test_golden_values_of_dense_networks(name, kind, number):
    k = kernel(name, kind)(E, E)
    found = torch.stack([k[0, 0], k[0, 1], k[0, 2], k[2, 2]])
    torch.testing.assert_close(found, torch.tensor(FC[name][number], dtype=torch.float64), rtol=0, atol=6e-9)


@pytest.mark.parametrize(("name", "kind", "number"), [(n, k, i) for n in CONV for i, k in enumerate(("nngp", "ntk"))])
def test_golden_values_of_convolutional_networks(name, kind, number):
    i = torch.arange(4, dtype=torch.float64)
    a = (i[:, None] + 1) * (i + 1) / 16
    b = (-1.0) ** (i[:, None] + i)
    pair = torch.stack([a, b])[:, None]
    k = kernel(name, kind)(pair, pair)
    found = torch.stack([k[0, 0], k[0, 1], k[1, 1]])
    torch.testing.assert_close(found, torch.tensor(CONV[name][number], dtype=torch.float64), rtol=0, atol=6e-9)


@pytest.mark.parametrize("name", ["conv1", "conv3"])
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_pairs_of_pixels_agree_with_equal_pixels_where_both_apply(name, kind):
    x, z = images(3), images(2, seed=1)
    number = 1 if kind == "ntk" else 0
    pairs = kernels._pixel_pairs(x, z, architecture(name))[number]
    torch.testing.assert_close(pairs, kernel(name, kind)(x, z), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["fc1", "fc3", "conv2", "conv1-gap", "pooled"])
def test_symmetric_and_positive_semidefinite(name):
    x = images(6)
    k = kernel(name)(x, x)
    torch.testing.assert_close(k, k.T, rtol=1e-12, atol=1e-13)
    assert torch.linalg.eigvalsh(k).min() > -1e-10


def test_blocks_change_nothing(monkeypatch):
    x, z = images(5), images(4, seed=1)
    whole = kernel("conv1-gap")(x, z)
    monkeypatch.setattr(kernels, "BLOCK", 4 * 16**2)
    torch.testing.assert_close(kernel("conv1-gap")(x, z), whole, rtol=1e-13, atol=0)


def test_the_kernel_of_a_set_with_itself_computes_half_of_its_blocks(monkeypatch):
    x, weights, counted = images(5), torch.rand(5, 5, generator=torch.Generator().manual_seed(0)).double(), []
    monkeypatch.setattr(kernels, "BLOCK", 4 * 16**2)  # two by two images: three by three blocks
    cross = kernels._cross
    monkeypatch.setattr(kernels, "_cross", lambda *parts: (counted.append(parts), cross(*parts))[1])
    found, gradients = [], []
    for same in (False, True):
        leaf = x.clone().requires_grad_()
        found.append(kernel("pooled")(leaf, leaf if same else leaf.clone()))
        counted.append("end")
        gradients.append(torch.autograd.grad((found[-1] * weights).sum(), leaf)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)
    ends = [place for place, what in enumerate(counted) if what == "end"]
    assert (ends[0], ends[1] - ends[0] - 1) == (9, 9 + 6)  # nine of the second number are the first derivative's


@pytest.mark.parametrize("name", ["fc1", "conv1", "conv1-gap", "pooled"])
def test_gradient_equals_central_differences_also_where_images_coincide(name):
    x, z = images(3), images(3, seed=1)
    z[0] = x[0]
    k = kernel(name)

    def loss(support: torch.Tensor) -> torch.Tensor:
        return (k(support, support).tanh() @ torch.ones(3, 2, dtype=torch.float64)).sum() + k(z, support).tanh().sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    assert torch.isfinite(gradient).all()
    for place in [(1, 0, 1, 2), (2, 1, 3, 0)]:  # image 0 sits on a kink of the kernel
        step = torch.zeros_like(x)
        step[place] = 1e-6
        difference = (loss(x + step) - loss(x - step)) / 2e-6
        assert gradient[place].item() == pytest.approx(difference.item(), rel=2e-5, abs=1e-8)


def test_wide_finite_network_approaches_the_nngp():
    """Features of a network with N(0, 2/fan-in) weights and N(0, 0.1^2) biases: the kernel is their second moment."""
    rng = torch.Generator().manual_seed(0)
    x, width = images(4, (1, 1, 6)).flatten(1), 200_000

    def layer(h: torch.Tensor, out: int) -> torch.Tensor:
        w = torch.randn(h.shape[1], out, generator=rng, dtype=torch.float64) * math.sqrt(2 / h.shape[1])
        return h @ w + 0.1 * torch.randn(out, generator=rng, dtype=torch.float64)

    hidden = layer(x, width).relu()
    found = 2 * hidden @ hidden.T / width + 0.01
    exact = kernel("fc1", "nngp")(x.view(4, 1, 1, 6), x.view(4, 1, 1, 6))
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.02)


def test_empirical_tangent_kernel_approaches_the_ntk():
    """Sum over all parameters of the products of derivatives of one output, width 4096, NTK parametrisation."""
    rng = torch.Generator().manual_seed(0)
    x, width = images(3, (1, 1, 6)).flatten(1), 4096
    w1, w2 = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((6, width), (width, 1)))
    b1, b2 = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((width,), (1,)))

    def network(w1, b1, w2, b2, one):
        hidden = (one @ w1 * math.sqrt(2 / 6) + 0.1 * b1).relu()
        return (hidden @ w2 * math.sqrt(2 / width) + 0.1 * b2)[0]

    rows = []
    for one in x:
        slopes = torch.func.grad(network, argnums=(0, 1, 2, 3))(w1, b1, w2, b2, one)
        rows.append(torch.cat([slope.flatten() for slope in slopes]))
    found = torch.stack(rows) @ torch.stack(rows).T
    exact = kernel("fc1")(x.view(3, 1, 1, 6), x.view(3, 1, 1, 6))
    assert (found - exact).square().mean().sqrt() < 0.1 * exact.diagonal().mean()


def test_unknown_kernels_are_named():
    for name in ("fc", "conv", "cnn3", "fc2-gap"):
        with pytest.raises(UserError, match="unknown kernel"):
            architecture(name)


def test_memory_of_pooled_kernels_does_not_grow_with_the_number_of_pairs(monkeypatch):
    """Blocks are recomputed for the derivative: autograd keeps no array as large as that of a block."""
    x, z = images(6).requires_grad_(), images(6, seed=1)
    monkeypatch.setattr(kernels, "BLOCK", 4 * 16**2)  # two by two images
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = kernel("conv1-gap")(x, z)
    assert max(kept) < 4 * 16**2
    (blocked,) = torch.autograd.grad(found.tanh().sum(), x)
    monkeypatch.setattr(kernels, "BLOCK", 2**24)
    (whole,) = torch.autograd.grad(kernel("conv1-gap")(x, z).tanh().sum(), x)
    torch.testing.assert_close(blocked, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "convolutions", "pools"), [("myrtle5", 4, 2), ("myrtle7", 6, 2), ("myrtle10", 9, 2),
                                                            ("convnet", 4, 3), ("convnet3", 3, 3)])  # fmt: skip
def test_published_kernels(name, convolutions, pools):
    layers = architecture(name)
    assert (layers.count("conv"), layers.count("relu"), layers.count("pool")) == (convolutions, convolutions, pools)
    assert layers[-2:] == ("gap" if "myrtle" in name else "flatten", "dense")


def test_dense_kernels_need_no_array_of_pixels():
    """100 x 100 images of 3 x 32 x 32 values: a covariance for every pixel would be 80 MB."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    x = images(100, (3, 32, 32))
    with Watch():
        kernel("fc1")(x, x)
    assert max(sizes) <= x.numel()
