"""A generator trained on the dataset itself: the prior that GLaD needs where no public one fits.

GLaD (Cazenavette et al., CVPR 2023) learns latents of StyleGAN-XL, which exists for CIFAR-10 and ImageNet. This
artifact makes a small style-based generator (`bench.nets.prior.SmallPrior`) for any image size within minutes on a
CPU. It is a conditional variational autoencoder with that generator as its decoder:

    loss = sum over the image and its 2x2 and 4x4 averages of the mean |image - decoded| + kl * KL / values per image,

KL that of q(z | image, class) against N(0, I), with Adam and a running average of the weights. A VAE is stable, and
its encoder finds the latents of real images; its images are softer than those of an adversarial generator. `random`
keeps the weights as drawn, the control of the paper.

What the generator is worth is measured and kept beside it: `psnr` of test images that were encoded and decoded, and
`consistency`, the share of images drawn for a class that a network trained on the real images (`judge`: its own test
accuracy) takes for that class. Only training images shape the generator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import bench.api
from bench.api import Artifact, Need, NetSpec, Task, param
from bench.errors import UserError
from bench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.nets.prior import Encoder, SmallPrior

ENCODER = "encoder/"
AVERAGE = 0.999
"""Decay of the running average of the weights; less in the first steps."""
JUDGE = NetSpec(width=32)
JUDGE_EPOCHS = 10
JUDGED = 100
"""Images drawn per class to measure the consistency."""


class Generator(Artifact):
    """A small generator of the dataset's images.

    Tensors: those of `bench.nets.prior.to_tensors`; the 0-d `consistency` and `judge`, fractions; and of a trained one
    `encoder/<weight>` and the 0-d `psnr`, in dB.
    """

    title = "small generator"

    class Params(bench.api.Params):
        """Its size and its training; all of it is this benchmark's choice."""

        training: Literal["vae", "random"] = param("vae", "vae: as above; random: the weights as drawn")
        epochs: int = param(30, "passes over the training images", unit="epochs", ge=1)
        batch: int = param(64, "images per step", unit="images", ge=1)
        lr: float = param(2e-3, "first rate of Adam, which falls to 0 along a cosine", gt=0)
        kl: float = param(0.1, "weight of the KL divergence", ge=0)
        width: int = param(32, "channels at full resolution, twice as many at each smaller one", ge=1)
        largest: int = param(128, "most channels", ge=1)

    def build(self, task: Task) -> Mapping[str, Tensor]:
        """Draw, train, measure."""
        from bench.nets import prior

        p, info = self.params, task.spec.dataset
        channels = prior.default_channels(info.shape, p.width, p.largest)
        with torch.device("meta"):  # elsewhere torch would draw weights from its global generator
            network = prior.SmallPrior(info.shape, info.classes, channels)
            encoder = prior.Encoder(network, p.width)
        network = network.to_empty(device=task.device)
        prior.draw(network, task.rng("generator"))
        tensors: dict[str, Tensor] = {}
        if p.training == "vae":
            encoder = encoder.to_empty(device=task.device)
            prior.draw(encoder, task.rng("encoder"))
            train(task, network, encoder, p)
            tensors |= {ENCODER + name: weight.detach() for name, weight in encoder.state_dict().items()}
            tensors["psnr"] = psnr(task, network, encoder)
        tensors["consistency"], tensors["judge"] = consistency(task, network)
        if p.training == "vae":
            refuse_useless(float(tensors["consistency"]), float(tensors["judge"]), len(task.data.train.present))
        return {**prior.to_tensors(network), **tensors}


class GeneratorFile(Artifact):
    """A user's converted generator, copied into the results so that they say what they were made with.

    file: its name in the folder `generators` of the data, or a path; content: its hash when the plan was made.
    """

    title = "converted generator"

    class Params(bench.api.Params):
        """Which file."""

        file: str = param("", "name in the folder `generators` of the data, or a path")
        content: str | None = param(None, "hash of its tensors; None: it was not there when the plan was made")

    def build(self, task: Task) -> Mapping[str, Tensor]:
        """Read the file. Raises `UserError` if it is missing or has changed."""
        from bench.nets import prior_file

        return prior_file.load(prior_file.place(self.params.file), self.params.content)


def need(name: str, epochs: int) -> Need:
    """Return the request for a generator: `trained` (for `epochs`), `random`, or the name of a converted one.

    It depends on neither the IPC nor the seed, network, preprocessing and augmentation of the asking task. Raises
    `UserError` for a file that is not a generator; one that is missing is an error when the artifact is built.
    """
    task = {"ipc": None, "seed": 0, "network": JUDGE, "preprocessing": "meanstd", "augment": "none"}
    if name == "trained":
        return Need("generator", {"training": "vae", "epochs": epochs}, task)
    if name == "random":
        return Need("generator", {"training": "random"}, task)
    from bench.nets import prior_file

    content = prior_file.known_content(prior_file.place(name))
    return Need("generator_file", {"file": name, "content": content}, task)


def train(task: Task, network: SmallPrior, encoder: Encoder, p: Any) -> None:
    """Train decoder and encoder in place; both end as the running average of their weights."""
    real, order, noise = task.data.train, task.rng("order"), task.rng("noise")
    weights: list[Tensor] = [*network.parameters(), *encoder.parameters()]
    averages = [weight.detach().clone() for weight in weights]
    optimiser = torch.optim.Adam(weights, p.lr, betas=(0.9, 0.99))
    total, step = p.epochs * math.ceil(real.size / p.batch), 0
    for _ in range(p.epochs):
        for index in torch.randperm(real.size, generator=order, device=order.device).to(task.device).split(p.batch):
            optimiser.param_groups[0]["lr"] = p.lr * (1 + math.cos(math.pi * step / total)) / 2
            images, labels = real.pixels(index) * 2 - 1, real.labels[index]
            mean, log_variance = encoder(images, labels)
            z = mean + torch.randn(mean.shape, generator=noise, device=noise.device) * (log_variance / 2).exp()
            decoded = network(network.map(z, labels))
            loss = difference(images, decoded) + p.kl * divergence(mean, log_variance) / images[0].numel()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            task.report(step, total, "steps of the generator")
            torch._foreach_lerp_(averages, [w.detach() for w in weights], 1 - min(AVERAGE, step / (step + 10)))
    with torch.no_grad():
        torch._foreach_copy_(weights, averages)


def difference(images: Tensor, decoded: Tensor) -> Tensor:
    """Return the mean absolute difference of the images, of their 2x2 and of their 4x4 averages, added up, 0-d."""
    error = images - decoded
    return torch.stack([(F.avg_pool2d(error, side) if side > 1 else error).abs().mean() for side in (1, 2, 4)]).sum()


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, I)) of each row, averaged, 0-d."""
    return (mean.square() + log_variance.exp() - log_variance - 1).sum(1).mean() / 2


def psnr(task: Task, network: SmallPrior, encoder: Encoder) -> Tensor:
    """Return the peak signal-to-noise ratio of test images that were encoded and decoded, in dB, 0-d."""
    test, errors = task.data.test, []
    with torch.no_grad():
        for index in torch.arange(test.size, device=task.device).split(500):
            pixels, labels = test.pixels(index), test.labels[index]
            decoded = network(network.map(encoder(pixels * 2 - 1, labels)[0], labels))
            errors.append((pixels - (decoded + 1).clamp(0, 2) / 2).square().flatten(1).mean(1))
    return -10 * torch.cat(errors).mean().log10()


def refuse_useless(consistency: float, judge: float, classes: int) -> None:
    """Raise `UserError` where images drawn for a class are hardly recognised: a fifth of the way from chance."""
    if consistency < 1 / classes + 0.2 * (judge - 1 / classes):
        raise UserError(
            f"the generator did not learn the classes: of the images drawn, {consistency:.1%} are taken for their own "
            f"(test images: {judge:.1%})",
            hint="train it for more epochs: `generator_epochs`",
        )


def consistency(task: Task, network: SmallPrior) -> tuple[Tensor, Tensor]:
    """Return the share of drawn images that a network trained on real ones gives their class, and its own accuracy."""
    from bench.train import predict
    from bench.train import train as train_network
    from bench.train.recipe import Recipe

    data, info, rng = task.data, task.spec.dataset, task.rng("judged")
    recipe = Recipe(epochs=JUDGE_EPOCHS, schedule="cosine", batch=64)
    judge = train_network(JUDGE, data.train.images(), data.train.labels, recipe, [task.rng("judge")], info=info)
    labels = torch.tensor(data.train.present, device=task.device).repeat_interleave(JUDGED)
    z = torch.randn(len(labels), network.z_dim, generator=rng, device=rng.device).to(task.device)
    with torch.no_grad():
        parts = zip(z.split(500), labels.split(500), strict=True)
        images = [data.forward((network(network.map(noise, classes)) + 1) / 2) for noise, classes in parts]
    right = predict(judge, images)[0].argmax(1) == labels
    accuracy = predict(judge, data.test.batches(1000))[0].argmax(1) == data.test.labels
    return right.float().mean(), accuracy.float().mean()
