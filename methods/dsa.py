"""DSA: Dataset Condensation with Differentiable Siamese Augmentation (Zhao, Bilen; ICML 2021; arXiv 2102.08259).

DC whose real and synthetic images of a class go through the same random augmentation (one operation with one value
per class and image update) before their gradients are compared; the network is trained on images augmented
independently. Images start from training images. Networks trained later with the same augmentations profit.
The augmentation is the task's: `dsa` means the paper's operations for the dataset (no mirroring of digits).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from bench.api import TaskSpec, param
from methods.dc import CODE, DC, DCParams


class DSAParams(DCParams):
    """Hyper-parameters of DC; only the first images differ."""

    init: Literal["noise", "real"] = param("real", "first images: standard normal, or training images", source=CODE)


class DSA(DC):
    """Gradient matching under a siamese augmentation."""

    Params = DSAParams
    title = "DSA: gradient matching under siamese augmentation"
    citation = "Zhao, Bilen: Dataset Condensation with Differentiable Siamese Augmentation, ICML 2021, arXiv 2102.08259"
    augment = "dsa"
    published = "arXiv 2102.08259; " + CODE + ", readme and get_loops"

    @classmethod
    def native_recipe(cls, params: Any, spec: TaskSpec) -> Mapping[str, Any] | None:
        """Return the paper's evaluation: 1000 epochs under the same family of augmentations."""
        return {"base": "dsa"}
