"""Matching real and synthetic images: the parts that DC, DSA, DM and their descendants share.

One idea: images come in *groups* (all of one class, or any other set that is compared as a whole), and the matching
functions return the derivative with respect to the synthetic images *as the network sees them*. Whoever made these
images (pixels, an augmentation, a decoder) carries it back with `images.backward(derivative)`. So no matching
function knows how a set is stored, and each may free the graph of a group before it starts the next.

    match_gradients   gradients of the training loss, group by group (Zhao et al. 2021, dataset condensation)
    match_features    mean embeddings, group by group (Zhao and Bilen 2023, distribution matching)
    sample_real       a batch of real images per class, with one augmentation per class
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from bench.data import Batch
from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.api import Task
    from bench.augment import Draw
    from bench.compiled import Compiled
    from methods.matching_compiled import CompiledGradients

Classes = Literal["per_class", "joint", "auto"]
Distance = Literal["ours", "mse", "cos", "l1", "l1_mean"]


# ------------------------------------------------------------------------------------------------ gradient matching


def match_gradients(
    network: nn.Module,
    real: Batch,
    synthetic: Batch,
    *,
    distance: Distance = "ours",
    parameters: Sequence[str] | None = None,
    classes: Classes = "auto",
    chunk: int | None = None,
    fast: CompiledGradients | None = None,
) -> tuple[Tensor, Tensor]:
    """Compare the gradients that real and synthetic images of each group give the network's parameters.

    parameters: names of those that are compared; None for all that the distance counts.
    classes: `per_class` differentiates group by group, `joint` all groups in one pass; equal up to rounding, because
    no group sees another one (normalise with frozen statistics first where the network has BatchNorm). chunk: images
    in one joint pass, None for a good number; it bounds memory. fast: the same for this network, distance and
    parameters, compiled; it goes group by group.
    Returns the distance of each group, [G], and the derivative of their sum like `synthetic.images`, both detached.
    """
    if fast is not None and fast.possible(network, real, synthetic):
        return fast(real, synthetic)
    names = parameters or compared(network, distance)
    joint_real, joint_synthetic = _joint_sides(network, classes, synthetic.images)
    together = [*(real.counts if joint_real else ()), *(synthetic.counts if joint_synthetic else ())]
    groups = max(1, images_per_pass(chunk, real.images) // max(together)) if together else 1
    losses, derivatives = [], []
    for one_real, one_synthetic in zip(chunks(real, groups), chunks(synthetic, groups), strict=True):
        target = group_gradients(network, one_real, names, joint=joint_real)
        images = one_synthetic.images.detach().requires_grad_()
        gradient = group_gradients(
            network, one_synthetic._replace(images=images), names, joint=joint_synthetic, create_graph=True
        )
        loss = gradient_distance(target, gradient, distance)
        derivatives.append(torch.autograd.grad(loss.sum(), images)[0])
        losses.append(loss.detach())
    return torch.cat(losses), torch.cat(derivatives)


def compared(network: nn.Module, distance: Distance) -> list[str]:
    """Return the names of the parameters whose gradients a distance counts."""
    return [name for name, weight in network.named_parameters() if distance != "ours" or weight.dim() > 1]


def gradient_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor], kind: Distance = "ours") -> Tensor:
    """Return the distance [G] between two lists of gradients, each [G, *shape of the parameter].

    ours: sum over the rows of all parameters of one minus the cosine of the two rows (Zhao et al. 2021); a
    row holds what enters one output unit, and parameters of one dimension (biases, affine normalisation) do not
    count. mse: squared distance, cos: one minus cosine, l1: sum of absolute differences, all of all parameters as one
    vector. l1_mean: sum over rows of the mean absolute difference (Kim et al. 2022).
    """
    if kind == "ours":
        rows = [(a.flatten(2), b.flatten(2)) for a, b in zip(real, synthetic, strict=True) if a.dim() > 2]
        return torch.stack([(1 - _cosine(a, b)).sum(1) for a, b in rows]).sum(0)
    if kind == "l1_mean":
        pairs = zip(real, synthetic, strict=True)
        return torch.stack([(a - b).abs().flatten(1).sum(1) * a.shape[1] / a[0].numel() for a, b in pairs]).sum(0)
    a = torch.cat([gradient.flatten(1) for gradient in real], 1)
    b = torch.cat([gradient.flatten(1) for gradient in synthetic], 1)
    if kind == "l1":
        return (a - b).abs().sum(1)
    return (a - b).square().sum(1) if kind == "mse" else 1 - _cosine(a, b)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine along the last dimension. The authors add 1e-6 after the product of the norms: small gradients count less.

    `F.cosine_similarity` clamps each norm instead, which is another distance where gradients are small.
    """
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 1e-6)


def group_gradients(
    network: nn.Module, batch: Batch, names: Sequence[str], *, joint: bool, create_graph: bool = False
) -> list[Tensor]:
    """Return the gradient of each group's mean cross-entropy, [G, *shape] for each named parameter.

    Labels may be classes or probabilities. create_graph: keep what is needed to differentiate by the images.
    """
    if joint:
        return _joint_gradients(network, batch, names)
    weights = [network.get_parameter(name) for name in names]
    pairs = zip(batch.images.split(list(batch.counts)), batch.labels.split(list(batch.counts)), strict=True)
    gradients = [
        torch.autograd.grad(F.cross_entropy(network(images), labels), weights, create_graph=create_graph)
        for images, labels in pairs
    ]
    return [torch.stack(column) for column in zip(*gradients, strict=True)]


def _joint_gradients(network: nn.Module, batch: Batch, names: Sequence[str]) -> list[Tensor]:
    """All groups at once; the graph exists exactly where `batch.images` requires a gradient."""
    constants = {name: weight.detach() for name, weight in network.named_parameters()}
    matched = {name: constants.pop(name) for name in names}

    def loss(weights: dict[str, Tensor], images: Tensor, labels: Tensor, share: Tensor) -> Tensor:
        logits = torch.func.functional_call(network, {**constants, **weights}, (images,))
        return (F.cross_entropy(logits, labels, reduction="none") * share).sum()

    # groups of one size after padding: a repeated last image with share 0 changes nothing
    largest, device = max(batch.counts), batch.images.device
    counts = torch.tensor(batch.counts, device=device)[:, None]
    position = torch.arange(largest, device=device)[None]
    index = counts.cumsum(0) - counts + position.minimum(counts - 1)
    share = (position < counts) / counts.to(batch.images.dtype)
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))(
        matched, batch.images[index], batch.labels[index], share
    )
    return [gradients[name] for name in names]


def _joint_sides(network: nn.Module, classes: Classes, images: Tensor) -> tuple[bool, bool]:
    """Say which side, real and synthetic, is differentiated for all groups in one pass.

    Never the synthetic side of a network with LayerNorm: vmap takes mean and deviation in the gradient of its weight
    for constants, and the second derivative is wrong without a word (torch 2.13).

    Measured for `auto`, ms of CPU per image update, one thread, 10 classes with 64 real images, ConvNet:

                                 IPC 1                      IPC 10
                                 per_class  joint   auto    per_class  joint   auto
        1x8x8,   width 32, D2           58     64     36           77     78     45
        3x32x32, width 64, D3         1327   1984   1169         1820   2375   1803

    On the real side a class is work enough, and the grouped convolutions behind vmap are slower than plain ones. On
    the synthetic side a small set is all overhead, which one pass pays once. The limit, counted in pixels of all
    synthetic images, lies between the measured 10,240 (joint faster) and 32,000 (equal). Not measured on a GPU.
    """
    possible = not any(isinstance(layer, torch.nn.LayerNorm) for layer in network.modules())
    if classes == "auto":
        return False, possible and len(images) * images[0, 0].numel() <= 16384
    return classes == "joint", possible and classes == "joint"


def images_per_pass(chunk: int | None, images: Tensor) -> int:
    """Return how many images make a pass; by their pixels where `chunk` is None.

    A CPU wants the maps of a pass in its cache: with 2**15 pixels the features of 10 classes of 256 images took 0.7
    to 0.8 of the time of one pass for all (one thread; 1x8x8 at width 32, 3x32x32 at width 64). A GPU wants few
    passes: 2**21 pixels, or 2048 images of 32x32, need below 6 GiB in the default ConvNet (by count, not measured).
    """
    return chunk or max(1, (2**15 if images.device.type == "cpu" else 2**21) // images[0, 0].numel())


def chunks(batch: Batch, groups: int) -> Iterator[Batch]:
    """Cut a batch into batches of at most `groups` groups."""
    starts = list(accumulate(batch.counts, initial=0))
    for first in range(0, len(batch.counts), groups):
        counts = batch.counts[first : first + groups]
        part = slice(starts[first], starts[first + len(counts)])
        yield Batch(batch.images[part], batch.labels[part], counts)


# ------------------------------------------------------------------------------------------------ feature matching


def match_features(
    network: nn.Module,
    real: Batch,
    synthetic: Batch,
    *,
    classes: Classes = "auto",
    chunk: int | None = None,
    embed: Compiled | None = None,
) -> tuple[Tensor, Tensor]:
    """Compare the mean embeddings of real and synthetic images of each group by the squared Euclidean distance.

    classes: `joint` embeds all groups together, `per_class` one after the other. The two differ only for BatchNorm in
    train mode, where `joint` (and `auto`) take the statistics over all groups, as the paper does. Other networks
    embed about `chunk` images in one pass, None for a good number; it bounds memory. The real images of a group that
    is larger are embedded in several passes, since they need no graph. embed: the network's embedding, if it may be
    compiled.
    Returns the distance of each group, [G], and the derivative of their sum like `synthetic.images`, both detached.
    """
    size = None if batch_norms(network) else images_per_pass(chunk, real.images)
    if classes == "per_class":
        groups = 1
    elif size is None:
        groups = len(real.counts)
    else:
        groups = max(1, size // max(*real.counts, *synthetic.counts))
    function: Callable[[Tensor], Tensor] = network.features if embed is None else embed  # type: ignore[assignment]
    losses, derivatives = [], []
    for one_real, one_synthetic in zip(chunks(real, groups), chunks(synthetic, groups), strict=True):
        with torch.no_grad():
            target = group_means(in_passes(function, one_real.images, size, bool(embed)), one_real.counts)
        images = one_synthetic.images.detach().requires_grad_()
        loss = (group_means(function(images), one_synthetic.counts) - target).square().sum(1)
        derivatives.append(torch.autograd.grad(loss.sum(), images)[0])
        losses.append(loss.detach())
    return torch.cat(losses), torch.cat(derivatives)


def in_passes(embed: Callable[[Tensor], Tensor], images: Tensor, size: int | None, equal: bool) -> Tensor:
    """Return the embeddings of images, `size` at a time; None: all at once.

    equal: all passes have the same size, the last one is filled up with its last image.
    """
    if size is None or (len(images) <= size and not equal):
        return embed(images)
    parts = [*images.split(size)]
    missing = size - len(parts[-1]) if equal else 0
    parts[-1] = torch.cat([parts[-1], parts[-1][-1:].expand(missing, *images.shape[1:])])
    return torch.cat([embed(part) for part in parts])[: len(images)]


def group_means(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the mean of each group, [G, f], of values [n, f] sorted by group."""
    return torch.segment_reduce(values, "mean", lengths=torch.tensor(counts, device=values.device))


# ------------------------------------------------------------------------------------------------ batch normalisation


def batch_norms(network: nn.Module) -> list[Any]:
    """Return the network's batch normalisation layers: those with running statistics."""
    return [layer for layer in network.modules() if getattr(layer, "running_mean", None) is not None]


def freeze_statistics(network: nn.Module, images: Tensor, kind: Literal["batch", "running"]) -> None:
    """Normalise with statistics of `images` from here on, until `network.train()`; needs BatchNorm layers.

    batch: mean and variance of these images. running: one step of the running average towards them (momentum 0.1),
    as the released code of gradient matching does: a fresh network then keeps nine tenths of its initial 0 and 1.
    """
    layers = batch_norms(network)
    momenta = [layer.momentum for layer in layers]
    network.train()
    for layer in layers:
        layer.momentum = 1.0 if kind == "batch" else layer.momentum
    with torch.no_grad():
        network(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


# ------------------------------------------------------------------------------------------------ images


def sample_real(task: Task, count: int) -> tuple[Batch, Draw]:
    """Draw at most `count` real images of each class and one augmentation per class, see `siamese`."""
    return siamese(task, task.data.train.sample_classes(count, task.rng("real")))


def siamese(task: Task, real: Batch) -> tuple[Batch, Draw]:
    """Draw one augmentation per class and apply it to real images sorted by class.

    Returns the augmented images and the draw, which applied to synthetic images gives each class the same operation
    with the same value (siamese augmentation, Zhao and Bilen 2021).
    """
    images, labels, counts = real
    shape = (len(counts), *images.shape[1:])
    draw = task.augment.draw(shape, task.rng("augment"), groups=len(counts), shared=True)
    return Batch(task.augment.apply(images, draw, counts=counts), labels, counts), draw
