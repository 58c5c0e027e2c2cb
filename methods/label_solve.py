"""LS: Label Solve (Nguyen, Chen, Lee, ICLR 2021, arXiv 2011.00050, section 3.2).

Real images stay as they are; their labels are the best that kernel ridge regression on them can use. With
B = K_ts A^-1 over the whole training set, Y_s* = argmin ||B Y - Y_t||^2, the least-squares solution of minimum norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from bench.api import DatasetInfo, DistilledSet, Method, NetSpec, Params, TaskSpec, param
from bench.distilled import make_set
from bench.lazy import torch
from methods.kernels import KERNELS, architecture, kernel
from methods.kip import KIP
from methods.krr import RIDGE, centred, solve
from methods.parametrise import Pixels

if TYPE_CHECKING:
    from bench.api import Task


class LabelSolve(Method):
    """Keep random real images and solve for their labels."""

    class Params(Params):
        """The kernel regression whose labels are solved for."""

        kernel: str = param("fc1", KERNELS)
        kind: Literal["ntk", "nngp"] = param("ntk", "which kernel of the infinitely wide network")
        ridge: float = param(RIDGE, "ridge relative to the mean diagonal", gt=0)
        zca: bool = param(False, "KIP's whitening, colour images only")
        chunk: int = param(1000, "training images per block; bounds memory, changes nothing", source="ours", ge=1)

    title = "LS: label solve"
    citation = "Nguyen, Chen, Lee, Dataset Meta-Learning from Kernel Ridge-Regression, ICLR 2021"
    steps = 0

    @classmethod
    def preprocessing(cls, params: Any, dataset: DatasetInfo) -> str:
        """Return KIP's whitening where the parameters ask for it."""
        return "zca-kip" if params.zca else "meanstd"

    @classmethod
    def native_recipe(cls, params: Any, spec: TaskSpec) -> Mapping[str, Any]:
        """Return KIP's training of a finite network."""
        return {"base": "kip"}

    @classmethod
    def native_network(cls, params: Any, spec: TaskSpec) -> NetSpec:
        """Return KIP's finite network."""
        return KIP.native_network(params, spec)

    def start(self, task: Task) -> None:
        """Draw the images and solve."""
        p, train = self.params, task.data.train
        architecture(p.kernel)
        self.task = task
        self.pixels = Pixels(task, init="real", rate=1.0, momentum=0.0).pixels.detach()
        support, gram = self.pixels.double(), kernel(p.kernel, p.kind)
        with task.phase("set"), torch.no_grad():
            eye = torch.eye(len(support), dtype=torch.float64, device=support.device)
            inverse = solve(gram(support, support), eye, p.ridge)
            index = torch.arange(train.size, device=task.device).split(p.chunk)
            rows = torch.cat([gram(train.images(part).double(), support) @ inverse for part in index])
            targets = centred(train.labels, task.spec.dataset.classes, torch.float64)
            solution = torch.linalg.lstsq(rows.cpu(), targets.cpu(), driver="gelsd").solution  # minimum norm: CPU only
        self.labels = solution.to(task.device)

    def export(self) -> DistilledSet:
        """Return the real images with the solved labels."""
        header = {"label_kind": "centred"}
        return make_set(self.task, self, images=self.pixels, labels=self.labels.float(), header=header)
