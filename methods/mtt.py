"""MTT: Dataset Distillation by Matching Training Trajectories.

Cazenavette, Wang, Torralba, Efros, Zhu, CVPR 2022 (arXiv 2203.11932). A student starts at an expert's weights after s
epochs on real data, takes N steps on the synthetic images, and should land where the expert is M epochs later:

    loss = ||theta_N - theta*||^2 / ||theta_0 - theta*||^2

Learned are the images and the student's learning rate.

Where this differs from the released code: the gradient of the N steps is recomputed step by step instead of stored
(`bench.unroll`), which is the same gradient with memory that does not grow with N; expert and start epoch are drawn
independently in every iteration, where the code passes through the buffer file by file; the result is the last
iterate, where the code keeps the best by test accuracy. CIFAR-100 is normalised with its own constants, and all seeds
share one expert buffer. BatchNorm normalises by the student's own batch and its running statistics are left alone:
the experts' snapshots do not have any. The extension to textures is not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from bench.api import DatasetInfo, DistilledSet, Need, Params, Preset, TaskSpec, param
from bench.lazy import F, torch
from methods import experts
from methods.parametrise import Parametrised

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api import Task
    from bench.augment import Draw
    from bench.unroll import Batch, Mode
    from bench.unroll_compiled import CompiledStep

COMMANDS = "commands of the MTT authors in DC-BENCH, methods/tm"
# dataset, IPC: syn_steps, expert_epochs, max_start_epoch, lr_img, lr_lr, lr_init, batch_syn, zca
ROWS: dict[tuple[str, int], tuple[int, int, int, float, float, float, int | None, bool]] = {
    ("cifar10", 1): (50, 2, 2, 1e2, 1e-7, 1e-2, None, True),
    ("cifar10", 10): (30, 2, 20, 1e2, 1e-5, 1e-3, None, True),
    ("cifar10", 50): (30, 2, 40, 1e3, 1e-5, 1e-3, None, False),
    ("cifar100", 1): (20, 3, 20, 1e3, 1e-5, 1e-2, None, True),
    ("cifar100", 10): (20, 2, 20, 1e3, 1e-5, 1e-2, None, False),
    ("cifar100", 50): (80, 2, 40, 1e3, 1e-5, 1e-2, 125, True),
    ("tiny_imagenet", 1): (10, 2, 10, 1e4, 1e-4, 1e-2, None, False),
    ("tiny_imagenet", 10): (20, 2, 40, 1e4, 1e-4, 1e-2, 200, False),
    ("tiny_imagenet", 50): (20, 2, 40, 1e4, 1e-4, 1e-2, 300, False),
}
# ten-class subsets of ImageNet at 128 pixels; the README's image rate for IPC 1 is another, corrected by its author
SUBSETS = ("imagenette", "imagewoof", "imagemeow", "imagesquawk", "imagefruit", "imageyellow")
SUBSET_ISSUE = "the MTT authors in issue 1 of mtt-distillation"
for subset in SUBSETS:
    ROWS[subset, 1] = (20, 2, 10, 1e5, 1e-6, 1e-2, None, False)
    ROWS[subset, 10] = (20, 2, 10, 1e5, 1e-6, 1e-2, 20, False)
FIELDS = ("syn_steps", "expert_epochs", "max_start_epoch", "lr_img", "lr_lr", "lr_init", "batch_syn", "zca")


class TrajectoryParams(Params):
    """Hyper-parameters that MTT and TESLA share."""

    iterations: int = param(5000, "outer iterations; one more is run, as in the released code", ge=0)
    syn_steps: int = param(20, "N, steps of the student", unit="steps", ge=1)
    expert_epochs: int = param(3, "M, epochs the expert is ahead", unit="epochs", ge=1)
    max_start_epoch: int = param(25, "start epochs are drawn below this", unit="epochs", ge=1)
    lr_img: float = param(1000.0, "rate of the images", gt=0)
    lr_lr: float = param(1e-5, "rate of the learned rate", ge=0)
    lr_init: float = param(0.01, "the student's rate at the start", gt=0)
    momentum: float = param(0.5, "momentum of both outer optimisers", source="MTT, released code", ge=0, lt=1)
    batch_syn: int | None = param(None, "images of one student step; None: all of them", unit="images", ge=1)
    zca: bool = param(False, "distil in ZCA-whitened space (kornia, eps 0.1)")
    init: Literal["real", "noise"] = param("real", "first images", source="MTT, released code")
    experts: int = param(100, "expert networks", source="MTT, released commands", ge=1)
    train_epochs: int = param(50, "epochs of each expert", unit="epochs", source="MTT, released commands", ge=1)
    train_lr: float = param(0.01, "rate of the experts", source="MTT, released code", gt=0)
    train_batch: int = param(256, "batch of the experts", unit="images", source="MTT, released code", ge=1)
    train_images: int | None = param(
        None, "real images per class of the experts; None: all", unit="images", source="ours: fewer", ge=1
    )

    @model_validator(mode="after")
    def _in_the_buffer(self) -> Any:
        last = self.max_start_epoch - 1 + self.expert_epochs
        if last > self.train_epochs:
            raise ValueError(
                f"train_epochs: max_start_epoch and expert_epochs read up to epoch {last} of {self.train_epochs}"
            )
        return self


class MTT(Parametrised):
    """Match the weights of a student on synthetic images with those of experts on real images.

    `sweep`: `exact` differentiates the whole student; `window` only its last `window` steps.
    """

    class Params(TrajectoryParams):
        """Hyper-parameters of MTT."""

        sweep: Literal["exact", "window"] = param("exact", "how far the gradient goes back", source="ours: window")
        window: int | None = param(None, "steps of `sweep: window`", unit="steps", ge=1)

    title = "MTT: matching training trajectories"
    citation = "Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR 2022, arXiv 2203.11932"
    augment: ClassVar[str] = "dsa"

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return the authors' commands; elsewhere the row nearest in IPC, of CIFAR-10 for other data, as no source."""
        row = ROWS.get((dataset.family, ipc))
        if row:
            return Preset(dict(zip(FIELDS, row, strict=True)), SUBSET_ISSUE if dataset.family in SUBSETS else COMMANDS)
        known = {size: row for (family, size), row in ROWS.items() if family == dataset.family}
        rows = known or {size: row for (family, size), row in ROWS.items() if family == "cifar10"}
        values = dict(zip(FIELDS, rows[min(rows, key=lambda size: abs(math.log(size / ipc)))], strict=True))
        return Preset(values if known else values | {"zca": False}, None)

    @classmethod
    def preprocessing(cls, params: Any, dataset: DatasetInfo) -> str:
        """Return whitening where the parameters ask for it."""
        return "zca-kornia" if params.zca else "meanstd"

    @classmethod
    def needs(cls, params: Any, spec: TaskSpec) -> Mapping[str, Need]:
        """Ask for the expert buffer; all IPC and seeds share it."""
        p = params
        return {"experts": experts.need(p.experts, p.train_epochs, p.train_lr, p.train_batch, p.train_images)}

    @classmethod
    def native_recipe(cls, params: Any, spec: TaskSpec) -> Mapping[str, Any]:
        """Return the paper's evaluation: the DSA trainer at the learned rate."""
        return {"base": "mtt"}

    def start(self, task: Task) -> None:
        """Draw the first images, set the student's rate, and open the expert buffer."""
        from bench.unroll import Flat

        p = self.params
        self.task = task
        self.set = self.parametrise(task)
        self.rate = torch.tensor(p.lr_init, dtype=self.set.images().dtype, device=task.device).requires_grad_()
        self.rate_optimiser = torch.optim.SGD([self.rate], lr=p.lr_lr, momentum=p.momentum)
        self.student = Flat(task.network().train())
        self.fast, self.graphs = self._compiled_step(), ""
        self.snapshots = task.artifact_slice("experts", "snapshots")
        self.left = torch.empty(0, dtype=torch.int64, device=task.device)

    def step(self) -> dict[str, float | Tensor]:
        """Do one outer iteration."""
        from bench.unroll import differentiate

        p, task = self.params, self.task
        images = self.set.images()
        self.seen = images.detach().requires_grad_()
        with task.phase("data"):
            start, goal = self._expert()
            chunks = [self._chunk() for _ in range(p.syn_steps)]
            draws = [self._draw(chunk) for chunk in chunks]
        scale = (start - goal).square().sum()
        labels = self._labels(goal)
        with task.phase("set"):
            sweep = differentiate(
                self._inner_loss,
                lambda weights: (weights - goal).square().sum() / scale,
                start,
                [self._batch(chunk, draw, labels) for chunk, draw in zip(chunks, draws, strict=True)],
                self.rate.detach().expand(p.syn_steps),
                [self.seen],
                mode=self._mode(),
                window=p.window if self._mode() == "window" else None,
                fast=self.fast,
            )
            self.graphs = sweep.graphs
            self.set.update(images, sweep.leaves[0] * self._image_scale())
            self.rate.grad = sweep.rates.sum()
            self.rate_optimiser.step()
        return {"loss": sweep.loss, "rate": self.rate.detach()}

    def choices(self) -> Mapping[str, Any]:
        """Return what was chosen for speed."""
        known = {"graphs": self.graphs} if self.graphs else {}
        return {"student": self.fast.choice, **known}

    def _compiled_step(self) -> CompiledStep:
        from bench import nets
        from bench.unroll_compiled import CompiledStep

        task, p = self.task, self.params
        batch = min(p.batch_syn or len(self.set.labels), len(self.set.labels))
        images = 12 * self.steps * p.syn_steps * batch  # in forward passes: 3 for each step, 9 for its adjoint
        work = images * nets.multiply_adds(self.student.network, task.spec.dataset.shape)
        return CompiledStep(self.student, exact=self._mode() != "identity", work=work, device=task.device)

    # -------------------------------------------------------------------------------- what TESLA changes

    def _mode(self) -> Mode:
        return "recompute" if self.params.sweep == "exact" else "window"

    def _image_scale(self) -> float:
        return 1.0

    def _labels(self, goal: Tensor) -> Tensor:
        return self.set.labels

    # -------------------------------------------------------------------------------- parts of one iteration

    def _expert(self) -> tuple[Tensor, Tensor]:
        """Return (theta_0, theta*), float [P] each, of a random expert and start epoch."""
        p, rng = self.params, self.task.rng("experts")
        who = int(torch.randint(p.experts, (), generator=rng, device=rng.device))
        begin = int(torch.randint(p.max_start_epoch, (), generator=rng, device=rng.device))
        rows = (self.snapshots[who, epoch] for epoch in (begin, begin + p.expert_epochs))
        start, goal = (row.to(self.task.device, self.rate.dtype) for row in rows)
        return start, goal

    def _chunk(self) -> Tensor:
        """Return the images of the next student step."""
        rng = self.task.rng("chunks")
        self.left, chunk = next_chunk(self.left, len(self.set.labels), self.params.batch_syn, rng)
        return chunk

    def _draw(self, chunk: Tensor) -> Draw:
        shape = (len(chunk), *self.seen.shape[1:])
        return self.task.augment.draw(shape, self.task.rng("augment"))

    def _batch(self, chunk: Tensor, draw: Draw, labels: Tensor) -> Callable[[], Batch]:
        return lambda: (self.task.augment.apply(self.seen[chunk], draw), labels[chunk])

    def _inner_loss(self, weights: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.student(weights, images), labels)

    # -------------------------------------------------------------------------------- result and state

    def export(self) -> DistilledSet:
        """Return images, labels and the learned rate."""
        header = {"learned_rate": self.rate.item()}
        return self.set.export(self.task, self, header=header)

    def state_dict(self) -> dict[str, Any]:
        """Return images, rate, both momenta and the rest of the current pass over the set."""
        return {
            "set": self.set.state_dict(),
            "rate": self.rate.detach().clone(),
            "rate_optimiser": self.rate_optimiser.state_dict(),
            "left": self.left,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.set.load_state_dict(state["set"])
        with torch.no_grad():
            self.rate.copy_(state["rate"])
        self.rate_optimiser.load_state_dict(state["rate_optimiser"])
        self.left = state["left"].to(self.task.device)


def next_chunk(left: Tensor, n: int, size: int | None, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return what is left of a pass over n images, and the next `size` of them; None: all.

    A pass is cut so that the short rest comes first; after its end the next one is drawn.
    """
    size = min(size or n, n)
    if not len(left):
        left = torch.randperm(n, generator=rng, device=rng.device)
    cut = (len(left) - 1) // size * size
    return left[:cut], left[cut:]
