"""APM: Dataset Distillation via Adversarial Prediction Matching (Chen et al., arXiv 2312.08912).

A network trained on the synthetic set should predict like one trained on the real set. Students that imitate a
converged teacher on the current images are trained; then the images move to where these students and the teacher
disagree most while the teacher still recognises the class, and so on:

    J(u) = - sum_k |f_k(u) - f_T(u)|_1 / C + ce * CE(f_T(u), y),   mean over the images u

Every step of the images is single-level: students and teacher are frozen, so nothing is unrolled, and no image sees
another one. No real image is used after the start. Labels are the logits of a teacher on the final images.

`groups: G` distils G slices of IPC/G images of every class, independently and in parallel, and puts them together
(section on parallelisability): each is a cell of its own, the plain run with a seed of its own at IPC/G, with the
hyper-parameters given for the whole set. What the groups cost is in their cells, not in the cost table, which knows
the distillation alone.

Where this differs from the released code: the result is the last iterate and the teachers are those of their last
epoch, where the code takes the best on the test set; one teacher, drawn at the start, labels the set, where the code
draws one at each evaluation; exactly K students are kept also where K does not divide the epochs; the teacher stays
until the students are renewed. The last is not so in the code: every 50 iterations its evaluation replaces the teacher
under students that imitate the one before. `faithful` does the same. Logarithms, which the paper has and the code
leaves out, are `objective: log`; they are taken image by image, which is this benchmark's reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

import bench.api
from bench.api import DatasetInfo, DistilledSet, Need, Preset, TaskSpec, param
from bench.distilled import make_set
from bench.errors import UserError
from bench.lazy import F, torch
from methods import teachers
from methods.apm_student import StudentGradients
from methods.parametrise import Parametrised, budget

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.api import Task

CODE = "mchen725/DD_APM, distill.py"
TRAINING = teachers.CODE
TABLE = "arXiv 2312.08912, table A9"
MOMENTUM, DECAY = 0.9, 5e-4
"""Of the students, here and in the evaluation."""
EVALUATED = 50
"""Iterations between two evaluations of the released code."""
SEEDS_APART = 1_000_000
"""Group g of a run with seed s is the plain run with seed s + g * this."""

# dataset, IPC: lr_img, lr_net, eval_epochs, batch_syn, zca
ROWS: dict[tuple[str, int], tuple[float, float, int, int | None, bool]] = {
    ("cifar10", 50): (1.0, 0.02, 1000, None, True),
    ("cifar10", 500): (1.0, 0.02, 1000, 2500, True),
    ("cifar10", 1000): (1.0, 0.02, 600, 2500, True),
    ("cifar100", 10): (1.0, 0.02, 1000, None, True),
    ("cifar100", 50): (1.0, 0.04, 1000, 2500, True),
    ("cifar100", 100): (1.0, 0.04, 600, 2500, True),
    ("tiny_imagenet", 10): (20.0, 0.1, 1000, 500, False),
    ("tiny_imagenet", 50): (40.0, 0.1, 1000, 500, False),
    ("tiny_imagenet", 100): (40.0, 0.1, 600, 500, False),
}
FIELDS = ("lr_img", "lr_net", "eval_epochs", "batch_syn", "zca")
CLASSES = {"cifar10": 10, "cifar100": 100, "tiny_imagenet": 200}


class APMParams(bench.api.Params):
    """Hyper-parameters of APM."""

    iterations: int = param(2500, "image steps; they count from 0, so one more is done", source=TABLE, ge=0)
    lr_img: float = param(1.0, "rate of the images, times 0.3 from half of the iterations on", source=TABLE, ge=0)
    momentum: float = param(0.5, "momentum of the images", source=CODE, ge=0, lt=1)
    ce: float = param(0.1, "weight of the teacher's cross-entropy", source=TABLE, ge=0)
    objective: Literal["sum", "log"] = param("sum", "sum: as released; log: logarithm of each distance", source=CODE)
    batch_syn: int | None = param(None, "images per step; None: all of them", unit="images", source=TABLE, ge=1)
    update_syn: int | None = param(None, "images in one pass, any value is exact; None: by size and device", ge=1)
    students: int = param(5, "K, snapshots of a student's training", source=CODE, ge=1)
    student_epochs: int = param(250, "E: the last epoch; they count from 0, so E+1 are done", source=TABLE, ge=1)
    lr_net: float = param(0.02, "rate of the students, a tenth after half of the epochs", source=TABLE, gt=0)
    batch_train: int = param(256, "batch of the students", unit="images", source=CODE, ge=1)
    student_loss: Literal["l1", "soft_ce"] = param("l1", "how students imitate the teacher's logits", source=CODE)
    mid_gap: int = param(2, "students are renewed every mid_gap + 1 iterations, as in the code", source=TABLE, ge=0)
    init: Literal["real", "noise"] = param("real", "first images", source=CODE)
    labels: Literal["soft", "hard"] = param("soft", "soft: logits of a teacher; hard: the class", source=CODE)
    eval_epochs: int = param(1000, "epochs of the native evaluation; one more is done", source=TABLE, ge=1)
    zca: bool = param(False, "distil in ZCA-whitened space (kornia, eps 0.1)", source=TABLE)
    faithful: bool = param(False, "replace the teacher at evaluations as the released code does", source=CODE)
    groups: int = param(1, "slices of the set, distilled apart and in parallel", source="arXiv 2312.08912", ge=1)
    teachers: int = param(100, "teacher networks", source=TRAINING, ge=1)
    train_epochs: int = param(100, "epochs of each teacher", unit="epochs", source=TRAINING, ge=1)
    train_lr: float = param(0.05, "rate of the teachers", source=TRAINING, gt=0)
    train_batch: int = param(256, "batch of the teachers", unit="images", source=TRAINING, ge=1)
    train_images: int | None = param(None, "real images per class of the teachers", source="ours: fewer than all", ge=1)

    @model_validator(mode="after")
    def _enough_epochs(self) -> APMParams:
        if self.student_epochs < self.students:
            raise ValueError(f"student_epochs: {self.students} snapshots need as many epochs")
        return self


class APM(Parametrised):
    """Adversarial prediction matching."""

    Params = APMParams
    title = "APM: adversarial prediction matching"
    citation = "Chen et al., Dataset Distillation via Adversarial Prediction Matching, arXiv 2312.08912, 2023"
    augment = "dsa"

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return the authors' row; elsewhere, as no source, the nearest one with the same step of each image."""
        family, classes = dataset.family, dataset.classes
        if (family, ipc) in ROWS:
            return Preset(dict(zip(FIELDS, ROWS[family, ipc], strict=True)), TABLE)
        like = family if family in CLASSES else "cifar10"
        near = min((i for name, i in ROWS if name == like), key=lambda i: abs(math.log(i / ipc)))
        values = dict(zip(FIELDS, ROWS[like, near], strict=True))
        theirs = min(values["batch_syn"] or math.inf, near * CLASSES[like]) * CLASSES[like]
        ours = min(values["batch_syn"] or math.inf, ipc * classes) * classes
        values |= {"lr_img": values["lr_img"] * ours / theirs, "zca": values["zca"] and family == like}
        return Preset(values, None)

    @classmethod
    def preprocessing(cls, params: Any, dataset: DatasetInfo) -> str:
        """Return whitening where the parameters ask for it."""
        return "zca-kornia" if params.zca else "meanstd"

    @classmethod
    def needs(cls, params: Any, spec: TaskSpec) -> Mapping[str, Need]:
        """Ask for the teachers, which all IPC and seeds share, and for the slices of a set in groups."""
        p = params
        pool = teachers.need(p.teachers, p.train_epochs, p.train_lr, p.train_batch, p.train_images)
        if p.groups == 1:
            return {"teachers": pool}
        if not spec.ipc or spec.ipc % p.groups:
            raise UserError(f"{spec.ipc} images per class cannot be {p.groups} equal groups", hint="change `groups`")
        # what only the whole set knows is left out: slices that are distilled alike are one cell
        own = p.model_dump(exclude={"groups", "labels", "eval_epochs"})
        tasks = [{"ipc": spec.ipc // p.groups, "seed": spec.seed + g * SEEDS_APART} for g in range(p.groups)]
        return {"teachers": pool} | {group_name(g): Need("apm_slice", own, task) for g, task in enumerate(tasks)}

    @classmethod
    def native_recipe(cls, params: Any, spec: TaskSpec) -> Mapping[str, Any]:
        """Return the paper's evaluation: a student's training, longer."""
        p = params
        loss = p.student_loss if p.labels == "soft" else "ce"
        return {"base": "apm", "lr": p.lr_net, "epochs": p.eval_epochs + 1, "batch": p.batch_train, "loss": loss}

    @property
    def steps(self) -> int:
        """Return K+1; none where the groups have done them."""
        return super().steps if self.params.groups == 1 else 0

    # -------------------------------------------------------------------------------- start

    def start(self, task: Task) -> None:
        """Draw the first images, or take those of the groups; choose the teacher that labels the set."""
        p = self.params
        self.task = task
        self.labeller = self._draw_teacher("labels")
        if p.groups > 1:
            parts = [task.artifact(group_name(g))["images"] for g in range(p.groups)]
            self.merged = merge(parts, task.spec.dataset.classes)
            return
        self.set = self.parametrise(task)
        self.network = task.network()
        self.at_once = p.update_syn or images_at_once(task, p.students)
        self.done = 0
        self.student_gradients = self._student_gradients()

    def _student_gradients(self) -> StudentGradients:
        from bench import nets

        task, p = self.task, self.params
        images = min(p.batch_syn or len(self.set.labels), len(self.set.labels))
        renewals = math.ceil(self.steps / (p.mid_gap + 1))
        seen = 3 * renewals * (p.student_epochs + 1) * images  # in forward passes: forward and backward
        work = seen * nets.multiply_adds(self.network, task.spec.dataset.shape)
        size = min(p.batch_train, images)
        return StudentGradients(self.network, p.student_loss, size=size, work=work, device=task.device)

    def choices(self) -> Mapping[str, Any]:
        """Return what was chosen for speed."""
        if self.params.groups > 1:
            return {}
        return {"student": self.student_gradients.choice, "images in a pass": self.at_once}

    def _draw_teacher(self, stream: str) -> int:
        rng = self.task.rng(stream)
        return int(torch.randint(self.params.teachers, (), generator=rng, device=rng.device))

    # -------------------------------------------------------------------------------- one outer iteration

    def step(self) -> dict[str, float | Tensor]:
        """Do one image step, on new students where it is time for them."""
        p, task = self.params, self.task
        images = self.set.images()
        rows = self._rows(len(images))
        if p.faithful and self.done and self.done % EVALUATED == 0:
            self._take_teacher()
        if self.done % (p.mid_gap + 1) == 0:
            with task.phase("network"):
                self._take_teacher()
                self.students = self._imitate(images.detach()[rows])
        with task.phase("set"):
            loss, derivative = self._objective(images.detach(), rows)
            for group in self.set.optimiser.param_groups:
                group["lr"] = p.lr_img * (0.3 if self.done >= p.iterations // 2 else 1.0)
            self.set.update(images, derivative)
        self.done += 1
        return {"loss": loss}

    def _rows(self, count: int) -> Tensor:
        """Return the images of this iteration: all, or a random choice."""
        size, rng = self.params.batch_syn or count, self.task.rng("rows")
        if size >= count:
            return torch.arange(count, device=self.task.device)
        return torch.randperm(count, generator=rng, device=rng.device)[:size]

    def _take_teacher(self) -> None:
        self.who = self._draw_teacher("teachers")
        self.teacher = teachers.read(self.task, self.who)

    def _imitate(self, images: Tensor) -> dict[str, Tensor]:
        """Train a fresh student to predict the teacher's logits; return its K snapshots, [K, ...] by name.

        images: [b, c, h, w]. The teacher sees them as they are, the student augmented. Most time is spent here, so
        the loop is a plain one: `bench.train` for one network took 1.15 (100 images) to 2 times (10) as long.
        """
        from bench.train import losses

        p, task, rng, student = self.params, self.task, self.task.rng("student"), self.network
        logits = teachers.predict(self.teacher, images)
        loss, targets = losses.targets(logits, "logits", p.student_loss, logits.shape[1])
        task.initialise(student, rng)
        sgd = torch.optim.SGD(student.requires_grad_().train().parameters(), p.lr_net, MOMENTUM, weight_decay=DECAY)
        looks = {p.student_epochs * k // p.students for k in range(1, p.students + 1)}
        snapshots = []
        for epoch in range(p.student_epochs + 1):
            if epoch == p.student_epochs // 2 + 1:
                sgd.param_groups[0]["lr"] = p.lr_net * 0.1
            for batch in torch.randperm(len(images), generator=rng, device=rng.device).split(p.batch_train):
                seen = task.augment(images[batch], rng)
                if self.student_gradients:
                    self.student_gradients.set(seen, targets[batch])
                else:
                    sgd.zero_grad()
                    losses.compute(loss, student(seen), targets[batch]).backward()
                sgd.step()
            if epoch in looks:
                snapshots.append({name: tensor.clone() for name, tensor in student.state_dict().items()})
        student.requires_grad_(False).eval()
        return {name: torch.stack([snapshot[name] for snapshot in snapshots]) for name in snapshots[0]}

    def _objective(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return J, 0-d, and its derivative by all images, zero for those not in `rows`."""
        p, derivative, total = self.params, torch.zeros_like(images), images.new_zeros(())
        for part in rows.split(self.at_once):
            seen = images[part].requires_grad_()
            students = apply_all(self.network, self.students, seen, self.task.spec)
            value = objective(students, self.teacher(seen), self.set.labels[part], p.ce, p.objective).sum() / len(rows)
            derivative[part] = torch.autograd.grad(value, seen)[0]
            total += value.detach()
        return total, derivative

    # -------------------------------------------------------------------------------- result and state

    def export(self) -> DistilledSet:
        """Return the images with their labels."""
        p, task = self.params, self.task
        images = self.merged if p.groups > 1 else self.set.images().detach()
        if p.labels == "soft":
            labels, header = teachers.predict(teachers.read(task, self.labeller), images), {"label_kind": "logits"}
        else:
            classes = torch.arange(task.spec.dataset.classes, device=task.device)
            labels, header = classes.repeat_interleave(budget(task)), {}
        if p.groups > 1:
            return make_set(task, self, images=images, labels=labels, header=header)
        return self.set.export(task, self, labels=labels, header=header)

    def state_dict(self) -> dict[str, Any]:
        """Return images, momentum, and the teacher and students that are in use."""
        return {"set": self.set.state_dict(), "done": self.done, "teacher": self.who, "students": self.students}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, after `start`."""
        self.set.load_state_dict(state["set"])
        self.done, self.who = state["done"], state["teacher"]
        self.teacher = teachers.read(self.task, self.who)
        self.students = {name: tensor.to(self.task.device) for name, tensor in state["students"].items()}
        self.network.requires_grad_(False).eval()


# ------------------------------------------------------------------------------------------------ the objective


def objective(students: Tensor, teacher: Tensor, labels: Tensor, ce: float, kind: Literal["sum", "log"]) -> Tensor:
    """Return J of each image, [n], from the logits of students [K, n, C] and teacher [n, C], and the classes [n]."""
    distance = (students - teacher).abs().mean(2)
    if kind == "log":
        distance = distance.clamp_min(torch.finfo(distance.dtype).tiny).log()
    return ce * F.cross_entropy(teacher, labels, reduction="none") - distance.sum(0)


def apply_all(network: nn.Module, states: Mapping[str, Tensor], images: Tensor, spec: TaskSpec) -> Tensor:
    """Return the logits [K, n, C] of `network` with each of the K states, stacked by name, on the same images.

    By one vmap or one after the other: the limit of the trainer is right here, too. Measured for the whole derivative,
    K = 5, one thread, ms vmap / loop: 1x8x8, width 32, 10 images 57 / 91, 25: 35 / 42, 50: 35 / 30, 100: 34 / 24;
    3x32x32, width 128, 10 images 768 / 539. Not measured on a GPU, where few launches should win.
    """
    from bench import nets
    from bench.train.trainer import choose_stack

    def one(state: dict[str, Tensor]) -> Tensor:
        return nets.call(network, state, {}, images)[0]

    if choose_stack("auto", images.device, spec.network, spec.dataset.shape, len(images)) == "vmap":
        return torch.vmap(one)(dict(states))
    count = len(next(iter(states.values())))
    return torch.stack([one({name: rows[k] for name, rows in states.items()}) for k in range(count)])


def images_at_once(task: Task, students: int) -> int:
    """Return how many images go through the teacher and all students in one pass.

    A GPU wants few passes: 2**22 pixels in all networks together need below 12 GiB in the default ConvNet (by count,
    not measured). A CPU wants its cache: with 2**14 pixels a step took 0.75 (3x32x32, width 128) to 0.95 (1x8x8,
    width 32) of the time of one pass for all (K = 5, one thread).
    """
    pixels = 2**14 if task.device.type == "cpu" else 2**22 // (students + 1)
    return max(1, pixels // math.prod(task.spec.dataset.shape[1:]))


# ------------------------------------------------------------------------------------------------ groups


def group_name(group: int) -> str:
    """Return the name of an input of a set in groups."""
    return f"group {group}"


def merge(parts: Sequence[Tensor], classes: int) -> Tensor:
    """Return images sorted by class, those of each class in the order of the groups, from groups sorted by class."""
    return torch.cat([part.unflatten(0, (classes, -1)) for part in parts], 1).flatten(0, 1)
