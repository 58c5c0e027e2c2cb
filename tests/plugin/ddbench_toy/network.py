"""What planning knows of the toy network; it is built in another file, which may import torch."""

from bench.nets.spec import Architecture

TOY_NET = Architecture(
    "toy network: one hidden layer",
    "the tests of ddbench",
    "ddbench_toy.layers:toy_net",
    norms=("none",),
    width=16,
    smallest=1,
)
