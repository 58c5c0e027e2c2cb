"""Latents of a generator in place of pixels: what GLaD learns (Cazenavette et al., CVPR 2023, arXiv 2305.01649).

The synthetic set is a pair (W, F): styles W+ [n, K + 1, w_dim], and the feature maps F after `layer` of the K synthesis
layers, which the later layers turn into images. Small `layer`: images as the generator would make them. Large `layer`:
as free as pixels. -1: styles alone.

Whoever differentiates sees images only. `images` decodes them without a graph; `update` takes the derivative by them
and carries it through the generator chunk by chunk, decoding each chunk once more. The result is the exact gradient
and does not depend on the chunks, and memory is that of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.data.imagenet import SUBSETS
from bench.distilled import LATENT, make_set
from bench.errors import UserError
from bench.lazy import torch
from methods.generator import ENCODER
from methods.parametrise import Parametrisation, budget, real_images

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api import DatasetInfo, DistilledSet, Method, Task

LIMIT = 10.0
"""Feature maps start within this on both sides of zero."""
INFINITE = 5.0
"""What an infinite value of a feature map starts from."""
AVERAGED = 1000
"""Noise vectors behind a mean style."""
MEANS = 256
"""Most real images behind a class mean, where rates are calibrated."""
IMAGENET = 1000
Shape = tuple[int, int, int]


class Latents(Parametrisation):
    """Styles and feature maps of a generator, the same number of each class.

    p: has the fields of `methods.glad.LatentParams`, and `lr_img` and `momentum`. Raises `UserError` where the task
    has no budget or the generator does not fit it.
    """

    def __init__(self, task: Task, tensors: Mapping[str, Tensor], p: Any) -> None:
        from bench.nets.prior import from_tensors

        self.task, self.prior, self.chunk, self.keep = task, from_tensors(tensors), p.decode_batch, p.keep_latents
        self.layer = depth(p.layer, len(self.prior.layers))
        per_class, present = budget(task), task.data.train.present
        self.labels = torch.tensor(present, device=task.device).repeat_interleave(per_class)
        self.counts = (per_class,) * len(present)
        self.crop = cropping(self.prior.shape, task.spec.dataset.shape)
        classes = torch.tensor(
            class_table(p.generator_classes, self.prior.classes, task.spec.dataset), device=task.device
        )[self.labels]
        with torch.no_grad():
            styles = self._styles(tensors, p.first, classes).contiguous()
            features = None if self.layer < 0 else self._features(styles, p.rand_f)
        self.styles = styles.requires_grad_()
        self.features = None if features is None else features.requires_grad_()
        self._images: Tensor | None = None
        self._optimise(p)

    def _optimise(self, p: Any) -> None:
        """Name what is learned, each part with its own rate. Styles alone take the rate of the feature maps."""
        self.learned = {"styles": self.styles}
        groups = [{"params": [self.styles], "lr": p.lr_img if self.features is None else p.lr_w}]
        if self.features is not None:
            self.learned["features"] = self.features
            groups.append({"params": [self.features], "lr": p.lr_img})
        if p.learn_g:
            weights = dict(self.prior.requires_grad_().named_parameters())
            self.learned |= {f"generator/{name}": weight for name, weight in weights.items()}
            groups.append({"params": list(weights.values()), "lr": p.lr_g})
        if p.calibrate:
            factor = self.calibration([group["lr"] / p.lr_img for group in groups])
            for group in groups:
                group["lr"] *= factor
        self.optimiser = torch.optim.SGD(groups, p.lr_img, momentum=p.momentum)

    # -------------------------------------------------------------------------------- first latents

    def _styles(self, tensors: Mapping[str, Tensor], first: str, classes: Tensor) -> Tensor:
        """Return the first styles: of random noise, of the class's mean, or of real images of the class."""
        task, rng, prior = self.task, self.task.rng("init"), self.prior
        precision = next(prior.parameters()).dtype

        def noise(rows: int) -> Tensor:
            return torch.randn(rows, prior.z_dim, generator=rng, dtype=precision, device=rng.device).to(task.device)

        if first == "random":
            return prior.map(noise(len(classes)), classes)
        if first == "mean":
            if max(self.counts) > 1:
                raise UserError("`first: mean` gives all images of a class the same latents", hint="use it with ipc 1")
            means = [prior.map(noise(AVERAGED), c.expand(AVERAGED)).mean(0) for c in classes]
            return torch.stack(means)
        weights = {name.removeprefix(ENCODER): value for name, value in tensors.items() if name.startswith(ENCODER)}
        if not weights:
            raise UserError(
                "`first: real` needs a generator with an encoder", hint="`generator: trained` has one, others have not"
            )
        from bench.nets.prior import Encoder

        with torch.device("meta"):
            encoder = Encoder(prior, len(weights["body.0.weight"]))
        encoder.load_state_dict(weights, assign=True)
        real = real_images(task, max(self.counts), rng)
        pixels = task.data.transform.inverse(real).to(precision)
        return prior.map(encoder(pixels * 2 - 1, classes)[0], classes)

    def _features(self, styles: Tensor, random: bool) -> Tensor:
        """Return the first feature maps: those of the styles, or noise of the same mean and deviation."""
        maps = torch.cat([self.prior.to_f(rows, self.layer) for rows in styles.split(self.chunk)])
        maps = maps.nan_to_num(0.0, INFINITE, -INFINITE).clamp(-LIMIT, LIMIT)
        if not random:
            return maps.contiguous()
        rng, rows = self.task.rng("features"), maps.flatten(1)
        noise = torch.randn(maps.shape, generator=rng, dtype=maps.dtype, device=rng.device).to(maps.device)
        return noise * _column(rows.std(1)) + _column(rows.mean(1))

    # -------------------------------------------------------------------------------- images

    def decode(self, styles: Tensor, features: Tensor | None = None) -> Tensor:
        """Return images in the task's space, [m, c, h, w]. They are never clamped."""
        images = self.prior(styles) if features is None else self.prior.from_f(styles, features, self.layer)
        return self.task.data.forward((self.crop(images) + 1) / 2)

    def images(self) -> Tensor:
        """Return the images, decoded once until the next `update`; a leaf."""
        if self._images is None:
            with torch.no_grad():
                self._images = torch.cat([self.decode(*part) for _, part in self._parts()])
            self._images.requires_grad_()
        return self._images

    def update(self, images: Tensor, derivative: Tensor) -> None:
        """Do one step of the optimiser, given the derivative of the loss by `images`, a function of `self.images()`."""
        decoded = self.images()
        decoded.grad = None
        images.backward(derivative)
        slope = torch.zeros_like(decoded) if decoded.grad is None else decoded.grad
        for tensor, gradient in zip(self.learned.values(), self.pull(slope), strict=True):
            tensor.grad = gradient
        self.optimiser.step()
        self._images = None

    def pull(self, slope: Tensor) -> list[Tensor]:
        """Return the gradient of <slope, images> by what is learned, `slope` being held fixed."""
        weights = [tensor for name, tensor in self.learned.items() if name.startswith("generator/")]
        latents, sums = [], [torch.zeros_like(weight) for weight in weights]
        for rows, (styles, features) in self._parts():
            leaves = [part.detach().requires_grad_() for part in (styles, features) if part is not None]
            images = self.decode(*leaves)
            found = torch.autograd.grad(images, [*leaves, *weights], slope[rows], materialize_grads=True)
            latents.append(found[: len(leaves)])
            for total, part in zip(sums, found[len(leaves) :], strict=True):
                total += part
        return [*(torch.cat(parts) for parts in zip(*latents, strict=True)), *sums]

    def _parts(self) -> Iterator[tuple[slice, tuple[Tensor, Tensor | None]]]:
        """Yield the latents, `chunk` images at a time, and which images they are."""
        for start in range(0, len(self.styles), self.chunk):
            rows = slice(start, start + self.chunk)
            yield rows, (self.styles[rows], None if self.features is None else self.features[rows])

    # -------------------------------------------------------------------------------- rates

    def calibration(self, rates: list[float]) -> float:
        """Return the factor on all rates with which a step moves the images as far as one of pixels at `lr_img` would.

        rates: of styles and feature maps, relative to `lr_img`. The gradient of feature maps has the scale of the
        generator. Along g, from the real class means to the images, a step of pixels moves them by g, one of latents by
        J R J' g, with J the derivative of the generator and R the rates; returned is the ratio of the two lengths.
        """
        real, _, counts = self.task.data.train.sample_classes(MEANS, self.task.rng("calibration"))
        means = torch.stack([images.mean(0) for images in real.split(list(counts))])
        slope = self.images().detach() - means.repeat_interleave(torch.tensor(self.counts, device=real.device), 0)
        steps = [rate * gradient for rate, gradient in zip(rates, self.pull(slope), strict=False)]
        moved = [self._pushed(latents, [step[rows] for step in steps]) for rows, latents in self._parts()]
        return float(slope.norm() / torch.cat(moved).norm())

    def _pushed(self, latents: Sequence[Tensor | None], steps: Sequence[Tensor]) -> Tensor:
        """Return J times `steps`, as the derivative of <J' u, steps> by u: what `steps` do to the images."""
        leaves = [part.detach().requires_grad_() for part in latents if part is not None]
        images = self.decode(*leaves)
        u = torch.zeros_like(images, requires_grad=True)
        pulled = torch.autograd.grad(images, leaves, u, create_graph=True, materialize_grads=True)
        used = [(part, step) for part, step in zip(pulled, steps, strict=True) if part.requires_grad]
        return torch.autograd.grad([part for part, _ in used], u, [step for _, step in used])[0]

    # -------------------------------------------------------------------------------- result and state

    def export(self, task: Task, method: Method, **fields: Any) -> DistilledSet:
        """Return the decoded images, and with `keep_latents` what they were decoded from."""
        extra = {LATENT + name: value.detach().float() for name, value in self.learned.items()} if self.keep else {}
        images = self.images().detach().clone()
        return make_set(task, method, **{"images": images, "labels": self.labels, "extra": extra, **fields})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        super().load_state_dict(state)
        self._images = None


def depth(layer: int | float, layers: int) -> int:
    """Return after how many of `layers` layers the feature maps are taken; a fraction is of all but the last."""
    if isinstance(layer, float):
        return round(layer * (layers - 1))
    if not -1 <= layer <= layers:
        raise UserError(f"the generator has {layers} layers, there is no feature map after {layer}")
    return layer


def class_table(given: Sequence[int] | None, known: int, info: DatasetInfo) -> Sequence[int]:
    """Return the generator's class for each of the dataset's. Raises `UserError` where that is not clear."""
    subset = SUBSETS.get(info.family)
    if given is None and known == info.classes:
        return range(known)
    if given is None and known == IMAGENET and subset:
        return subset.ids
    if given is None or len(given) != info.classes or not all(0 <= c < known for c in given):
        raise UserError(
            f"the generator knows {known} classes, {info.name} has {info.classes}",
            hint=f"give `generator_classes`, the generator's class (0 to {known - 1}) for each of them",
        )
    return given


def cropping(made: Shape, wanted: Shape) -> Callable[[Tensor], Tensor]:
    """Return what brings the generator's images to the dataset's shape: grey by the mean of the channels, the centre.

    Raises `UserError` where more than an eighth of a side would be cut off, or colours are missing.
    """
    (channels, *sides), (kept, *target) = made, wanted
    if not (kept in (1, channels) and all(7 * a <= 8 * b <= 8 * a for a, b in zip(sides, target, strict=True))):
        raise UserError(f"a generator of {_size(made)} images cannot stand for {_size(wanted)} ones")
    top, left = ((a - b) // 2 for a, b in zip(sides, target, strict=True))

    def crop(images: Tensor) -> Tensor:
        images = images[:, :, top : top + target[0], left : left + target[1]]
        return images if kept == channels else images.mean(1, keepdim=True)

    return crop


def _size(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]
