"""The plain way to train one network, which the stacked trainer is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import bench.augment
import bench.nets
from bench.api import NetSpec


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def one_by_one(spec: NetSpec, info, images, labels, seed, *, rates, make, batch, augment="none", loss=F.cross_entropy,
               reset_after=None):  # fmt: skip
    """Train one network as any textbook does; `make(parameters, rate)` is its torch optimiser, one rate per epoch."""
    rng = torch.Generator().manual_seed(seed)
    network = bench.nets.build(spec, info.shape, info.classes)
    bench.nets.initialise(network, rng, spec.init)
    network = network.to(images.dtype).train()
    transform = bench.augment.get(augment)
    optimiser = make(network.parameters(), rates[0])
    for epoch, rate in enumerate(rates):
        if epoch == reset_after:
            optimiser = make(network.parameters(), rate)
        for group in optimiser.param_groups:
            group["lr"] = rate
        order = torch.randperm(len(images), generator=rng)
        for index in order.split(batch):
            x = images[index]
            x = transform.apply(x, transform.draw(x.shape, rng))
            optimiser.zero_grad()
            loss(network(x), labels[index]).backward()
            optimiser.step()
    return network.eval()
