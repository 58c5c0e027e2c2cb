"""Datasets: known by name, checked by content, loaded as bytes, prepared on a device.

    info("cifar10")                              what is known of it (no torch)
    locate, require, fingerprint, describe, get  where it is, and whether it is what it should be (no torch)
    prepare(load("cifar10"), "meanstd", "cuda")  images on the device, sampled with generators passed in

The user's own data goes by `npz:PATH` or `folder:PATH`, for images of different sizes `folder:PATH@64`. Everything
but `load` and `prepare` works without importing torch.
"""

from bench.data.arrays import Split
from bench.data.content import describe, fingerprint, get, info
from bench.data.lookup import locate, names, require
from bench.data.prepared import Batch, Dataset, Part, Prepared, load, prepare
from bench.data.preprocess import KINDS as PREPROCESSINGS

__all__ = [
    "PREPROCESSINGS",
    "Batch",
    "Dataset",
    "Part",
    "Prepared",
    "Split",
    "describe",
    "fingerprint",
    "get",
    "info",
    "load",
    "locate",
    "names",
    "prepare",
    "require",
]
