"""The rules of networks: what methods and the trainer do with every architecture, done with one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.lazy import torch
from bench.testing.planning import check_planning
from bench.testing.rules import elsewhere, ensure, one_thread

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.api import NetSpec

Shape = tuple[int, int, int]
CLASSES, IMAGES = 5, 4


def check_network(
    network: str, *, shapes: Sequence[Shape] = ((1, 8, 8), (3, 32, 32)), width: int | None = None, device: str = "cpu"
) -> None:
    """Check an architecture by its name or `module:attribute`; raise `AssertionError` for the first broken rule.

    shapes: of images to try, the first with every norm, others with its default one; those too small for it are left
    out. width: of the networks, where it has a choice; default: the least that all its norms allow.

    Checked in float64: described without torch; weights drawn by the generator that is handed in, all of them;
    `features`, `head` and `feature_size`; the same logits again and for each image alone in evaluation mode; gradients
    of gradients, which matching methods need; stacked networks under vmap like single ones; sizes that it claims.
    """
    from bench.nets import spec as nets

    check_planning(("network", network, None))
    known = nets.architecture(network)
    sizes = [shape for shape in shapes if min(shape[1:]) >= known.smallest]
    ensure(bool(sizes), f"network {network!r} takes none of the shapes {shapes}", "a network takes images of any size")
    with one_thread(device) as resolved, elsewhere(1, f"network {network!r}"):
        for shape in sizes:
            for norm in known.norms if shape == sizes[0] else known.norms[:1]:
                fields: dict[str, Any] = {"arch": network, "norm": norm}
                if known.width:
                    fields["width"] = width or known.width_step * nets.GROUPS
                spec = nets.resolve(nets.parse(fields), shape)
                _Check(spec, shape, resolved).run()
        _check_sizes(network, sizes[-1])


class _Check:
    """One network for one shape of images."""

    def __init__(self, spec: NetSpec, shape: Shape, device: str) -> None:
        from bench.nets import label

        self.spec, self.shape, self.device = spec, shape, device
        self.who = f"network {label(spec, shape)!r} for images {'x'.join(map(str, shape))}"
        rng = torch.Generator().manual_seed(7)
        self.images = torch.randn(IMAGES, *shape, generator=rng).double().to(device)

    def run(self) -> None:
        """Check everything."""
        network = self._drawn(0)
        self._check_weights(network)
        self._check_outputs(network)
        self._check_gradients(network)
        self._check_stack()

    def _drawn(self, seed: int) -> nn.Module:
        from bench import nets

        network = nets.build(self.spec, self.shape, CLASSES, self.device)
        nets.initialise(network, torch.Generator().manual_seed(seed), self.spec.init)
        return network.double()

    def _check_weights(self, network: nn.Module) -> None:
        drawn = "weights come from the generator that bench.nets.initialise is given, and from nothing else"
        weights = [state.clone() for state in network.parameters()]
        ensure(all(bool(w.isfinite().all()) for w in weights), f"{self.who} has weights that nobody draws", drawn)
        same = all(torch.equal(a, b) for a, b in zip(weights, self._drawn(0).parameters(), strict=True))
        ensure(same, f"{self.who} has other weights with the same generator", drawn)
        other = all(torch.equal(a, b) for a, b in zip(weights, self._drawn(1).parameters(), strict=True))
        ensure(not other, f"{self.who} has the same weights with another generator", drawn)

    def _check_outputs(self, network: Any) -> None:
        parts = "a network has features(images) [n, feature_size] and head, and is head after features"
        for name in ("features", "head", "feature_size"):
            ensure(hasattr(network, name), f"{self.who} has no {name}", parts)
        network.eval()
        with torch.no_grad():
            features, logits, again = network.features(self.images), network(self.images), network(self.images)
            size = (IMAGES, network.feature_size)
            ensure(tuple(features.shape) == size, f"{self.who}: features {tuple(features.shape)}, not {size}", parts)
            ensure(
                tuple(logits.shape) == (IMAGES, CLASSES), f"{self.who}: logits {tuple(logits.shape)} of "
                f"{IMAGES} images and {CLASSES} classes", parts,
            )  # fmt: skip
            ensure(bool(logits.isfinite().all()), f"{self.who} gives logits that are not finite", "logits are finite")
            ensure(
                torch.equal(logits, again), f"{self.who} gives other logits for the same images",
                "evaluation mode is deterministic",
            )  # fmt: skip
            ensure(_close(network.head(features), logits), f"{self.who} is not its head after its features", parts)
            alone = torch.cat([network(self.images[k : k + 1]) for k in range(IMAGES)])
            ensure(
                _close(alone, logits), f"{self.who} gives other logits for an image alone than in a batch",
                "in evaluation mode images do not see each other",
            )  # fmt: skip

    def _check_gradients(self, network: nn.Module) -> None:
        network.train()
        images = self.images.clone().requires_grad_()
        weights = dict(network.named_parameters())
        loss = torch.logsumexp(network(images), 1).sum()
        first = torch.autograd.grad(loss, list(weights.values()), create_graph=True, allow_unused=True)
        unused = [name for name, gradient in zip(weights, first, strict=True) if gradient is None]
        ensure(not unused, f"{self.who} does not use {', '.join(unused)}", "every weight has a part in the logits")
        (second,) = torch.autograd.grad(
            torch.stack([one.square().sum() for one in first]).sum(), [images], allow_unused=True
        )
        ensure(
            second is not None and bool(second.isfinite().all()) and bool(second.any()),
            f"{self.who} has no finite gradient of its gradient by the images, or one that is 0 everywhere",
            "matching methods differentiate through the gradient of the weights",
        )

    def _check_stack(self) -> None:
        """Ensure that two networks at once are the two networks, in both modes, with what they remember."""
        from bench import nets

        rngs = [torch.Generator().manual_seed(seed) for seed in range(2)]
        template, *drawn = nets.stack(self.spec, self.shape, CLASSES, rngs, self.device)
        weights, buffers = ({name: tensor.double() for name, tensor in one.items()} for one in drawn)
        for training in (True, False):
            template.train(training)
            try:
                logits, after = torch.vmap(nets.call, in_dims=(None, 0, 0, None))(
                    template, weights, buffers, self.images
                )
            except Exception as error:
                raise AssertionError(
                    f"{self.who} cannot be stacked: {type(error).__name__}: {error}\n  rule: networks work under "
                    "torch.vmap: nothing in place, no .item(), batch norm from bench.nets.layers"
                ) from error
            for e in range(2):
                single = self._drawn(e).train(training)
                ensure(
                    _close(single(self.images), logits[e]),
                    f"{self.who} gives other logits stacked than alone",
                    "a network is a function of its weights, buffers and images",
                )
                for name, buffer in single.named_buffers():
                    ensure(
                        _close(buffer, after[name][e]), f"{self.who}: {name} remembers something else stacked than "
                        "alone", "buffers are replaced, not written into: see bench.nets.layers.BatchNorm",
                    )  # fmt: skip


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-6, atol=1e-6)


def _check_sizes(name: str, shape: Shape) -> None:
    """Ensure that the sizes an architecture lets one choose change it."""
    from bench import nets
    from bench.nets.spec import architecture

    known = architecture(name)
    plain = nets.parameter_count(name, shape, CLASSES)
    if known.width:
        wider = nets.parameter_count({"arch": name, "width": 2 * known.width}, shape, CLASSES)
        ensure(wider > plain, f"network {name!r} is no larger with twice the width", "leave width None if it is fixed")
    if known.depth:
        other = known.depth(shape) - 1 or 2
        count = nets.parameter_count({"arch": name, "depth": other}, shape, CLASSES)
        ensure(count != plain, f"network {name!r} is the same with depth {other}", "leave depth None if it is fixed")
