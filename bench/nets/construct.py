"""Building networks, drawing their weights, and running many of them at once.

All weights of a network come from one vector of uniform numbers of one generator, so a stack of E networks is one
[E, total] matrix whose rows depend on one generator each, and a single network is the same with one row. No global
generator is touched: modules are made on the meta device.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.api import NetSpec
from bench.errors import UserError
from bench.lazy import torch
from bench.nets.spec import Shape, architecture, parse, resolve

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

Tensors = dict[str, "Tensor"]

# ---------------------------------------------------------------------------------------------- building


def build(
    spec: NetSpec | str | Mapping[str, Any], shape: Shape, classes: int, device: torch.device | str = "cpu"
) -> nn.Module:
    """Return the network for images of `shape` with fresh running statistics and undrawn weights (NaN).

    Call `initialise` next, or load weights: the NaN make sure that neither is forgotten.
    Raises `UserError` if the network cannot be built for this shape.
    """
    network = _template(spec, shape, classes).to_empty(device=device)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(math.nan)
    _reset_buffers(network)
    return network


def parameter_count(spec: NetSpec | str | Mapping[str, Any], shape: Shape, classes: int) -> int:
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in _template(spec, shape, classes).parameters())


def multiply_adds(network: nn.Module, shape: Shape, weights: tuple[Tensors, Tensors] | None = None) -> int:
    """Return the multiply-adds of a forward pass of one image: of convolutions and linear layers, by counting.

    Runs one image through the network, which is faster than the meta device is at its first use (a second). A
    network without weights of its own, see `stack`, is given parameters and buffers of one.
    """
    total, training = 0, network.training

    def count(layer: Any, _: Any, output: Tensor) -> None:
        nonlocal total
        total += layer.weight[0].numel() * output.numel()  # what enters one output value, times the values

    layers = [layer for layer in network.modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))]
    if not layers:
        return 0
    hooks = [layer.register_forward_hook(count) for layer in layers]
    parameters, buffers = weights or (dict(network.named_parameters()), dict(network.named_buffers()))
    network.eval()
    with torch.no_grad():
        call(network, parameters, buffers, next(iter(parameters.values())).new_zeros(1, *shape))
    network.train(training)
    for hook in hooks:
        hook.remove()
    return total


def _template(spec: NetSpec | str | Mapping[str, Any], shape: Shape, classes: int) -> nn.Module:
    """Return the network on the meta device: all shapes, no numbers, no random draws."""
    resolved = resolve(parse(spec), shape)
    module, _, function = architecture(resolved.arch).build.partition(":")
    builder: Callable[..., nn.Module] = getattr(importlib.import_module(module), function)
    with torch.device("meta"):
        network = builder(resolved, shape, classes)
    names = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    network.tied = len(names) > len(list(network.parameters()))  # type: ignore[assignment]  # see `call`
    return network


def _reset_buffers(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if callable(reset := getattr(module, "reset_running_stats", None)):
            reset()
        elif module._buffers:
            # to_empty() has lost their values, and only running statistics can be made anew
            raise UserError(
                f"network part {name!r} ({type(module).__name__}) has buffers {sorted(module._buffers)}",
                hint="a network may only have running statistics (reset_running_stats) as buffers",
            )


# ---------------------------------------------------------------------------------------------- weights

_TWO_SIGMA = 0.9544997361036416
"""Probability of a normal number within two standard deviations."""
_TRUNCATED_STD = 0.8796256610342398
"""Standard deviation of a standard normal number truncated to two."""


def initialise(network: nn.Module, rng: Generator, kind: str = "torch") -> None:
    """Draw fresh weights in place from `rng` alone, and reset running statistics.

    kind: `torch`, the default of torch: weights and biases uniform within 1/sqrt(fan_in); `lecun`, the default of
    Flax: normal with variance 1/fan_in truncated at two standard deviations, biases 0; `xavier`: normal with
    variance 2/(fan_in + fan_out), biases 0. Norms start at weight 1, bias 0. The numbers are drawn on the device
    of `rng` and moved, so that a CPU generator gives the same network on every device.
    """
    drawn = _draw(network, [rng], kind)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(drawn[name][0])
    _reset_buffers(network)


def stack(
    spec: NetSpec | str | Mapping[str, Any],
    shape: Shape,
    classes: int,
    rngs: Sequence[Generator],
    device: torch.device | str = "cpu",
) -> tuple[nn.Module, Tensors, Tensors]:
    """Return (template, parameters, buffers) of E = len(rngs) networks: tensors [E, ...] by name.

    Network e is what `initialise` draws from `rngs[e]`, bit for bit. The template has shapes only (meta device);
    `call` runs it with the tensors of one network, and `torch.vmap` of `call` runs all of them.
    """
    resolved = resolve(parse(spec), shape)
    template = _template(resolved, shape, classes)
    parameters = {name: value.to(device) for name, value in _draw(template, rngs, resolved.init).items()}
    if not any(True for _ in template.buffers()):
        return template, parameters, {}
    one = build(resolved, shape, classes, device)
    buffers = {name: value.expand(len(rngs), *value.shape).clone() for name, value in one.named_buffers()}
    return template, parameters, buffers


def call(
    network: nn.Module, parameters: Tensors, buffers: Tensors, images: Tensor, *, features: bool = False
) -> tuple[Tensor, Tensors]:
    """Run a network with the given weights; return (logits, new buffers), or (features, new buffers).

    A pure function: nothing is written in place, so it may stand inside `torch.func.grad` and `torch.vmap`. The
    new buffers are the old ones except for batch norm in training mode. `functional_call` looks for weights with
    several names each time; that there are none was found out once, when the network was built.
    """
    state, tied = {**parameters, **buffers}, getattr(network, "tied", True)
    if features:
        from bench.nets.layers import Features

        state = {f"network.{name}": value for name, value in state.items()}
        output = torch.func.functional_call(Features(network), state, (images,), tie_weights=tied)
        return output, {name: state[f"network.{name}"] for name in buffers}
    # functional_call writes replaced buffers back into the mapping it was given
    output = torch.func.functional_call(network, state, (images,), tie_weights=tied)
    return output, {name: state[name] for name in buffers}


def _draw(network: nn.Module, rngs: Sequence[Generator], kind: str) -> Tensors:
    """Return the weights of len(rngs) networks, [E, ...] by name, on the device of the generators."""
    laws = _laws(network, kind)
    total = sum(shape.numel() for shape, law in laws.values() if callable(law))
    uniform = torch.stack([torch.rand(total, generator=rng, device=rng.device) for rng in rngs])
    drawn, start = {}, 0
    for name, (shape, law) in laws.items():
        if callable(law):
            drawn[name] = law(uniform[:, start : start + shape.numel()]).reshape(len(rngs), *shape)
            start += shape.numel()
        else:
            drawn[name] = uniform.new_full((len(rngs), *shape), law)
    return drawn


def _laws(network: nn.Module, kind: str) -> dict[str, tuple[torch.Size, float | Callable[[Tensor], Tensor]]]:
    """Return shape and law of each parameter, in their order: a constant, or uniform numbers -> weights."""
    from torch import nn

    from bench.nets.layers import BatchNorm

    norms = (nn.GroupNorm, nn.LayerNorm, BatchNorm, nn.modules.batchnorm._NormBase)
    laws: dict[str, tuple[torch.Size, float | Callable[[Tensor], Tensor]]] = {}
    for path, module in network.named_modules():
        for leaf, parameter in module.named_parameters(path, recurse=False):
            is_weight = leaf.endswith("weight")
            if isinstance(module, norms):
                laws[leaf] = (parameter.shape, 1.0 if is_weight else 0.0)
            elif isinstance(module, (nn.Linear, nn.Conv2d)):
                law = _law(kind, module.weight.shape) if is_weight or kind == "torch" else 0.0
                laws[leaf] = (parameter.shape, law)
            else:
                raise UserError(
                    f"no initialisation for {leaf!r} of {type(module).__name__}",
                    hint="a network is made of Linear, Conv2d and norms",
                )
    return laws


def _law(kind: str, weight: torch.Size) -> Callable[[Tensor], Tensor]:
    """Return the map from uniform numbers in [0, 1) to weights for a weight tensor of this shape."""
    fan_in = weight[1:].numel()
    fan_out = weight[0] * weight[2:].numel()
    if kind == "torch":
        bound = fan_in**-0.5
        return lambda uniform: uniform * (2 * bound) - bound
    if kind == "lecun":
        deviation = fan_in**-0.5 / _TRUNCATED_STD
        return lambda uniform: torch.special.ndtri(0.5 + _TWO_SIGMA * (uniform - 0.5)) * deviation
    if kind == "xavier":
        deviation = (2 / (fan_in + fan_out)) ** 0.5
        # 0 would become minus infinity; half the step of the generator is the smallest number that is not
        return lambda uniform: torch.special.ndtri(uniform.clamp(min=2.0**-25)) * deviation
    raise UserError(f"unknown initialisation {kind!r}", hint="known: torch, lecun, xavier")
