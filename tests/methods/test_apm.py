"""APM against a plain float64 loop over students, images and steps, closed forms, and the rules of its paper."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from test_dc import resume, run

import bench.train.trainer
from bench.errors import UserError
from bench.train import losses
from bench.train.recipe import label, resolve
from methods import teachers
from methods.apm import APM, FIELDS, ROWS, APMParams, images_at_once, merge, objective
from methods.teachers import Teachers

DOUBLE = torch.float64
STRATEGY = "dsa:color_crop_cutout_scale_rotate"
NETWORK = "convnet-in-w4-d2"
POOL = 3
_POOLS: dict[str, dict[str, torch.Tensor]] = {}


@pytest.fixture
def make(make_task):
    """Return a function that makes a task in float64 which has three teachers, the same for all with its network."""

    def made(network=NETWORK, dtype=DOUBLE, **arguments):
        if network not in _POOLS:
            params = Teachers.Params(teachers=POOL, epochs=8, batch=16)
            _POOLS[network] = Teachers(params).build(make_task(network=network, seed=5))
        return make_task(network=network, dtype=dtype, artifacts={"teachers": _POOLS[network]}, **arguments)

    return made


def small(**params):
    defaults = {"iterations": 9, "student_epochs": 4, "students": 2, "lr_net": 0.05, "batch_train": 4, "mid_gap": 1}
    return APMParams(**(defaults | {"lr_img": 2.0, "teachers": POOL} | params))


def reference(task, p, steps):
    """APM as its algorithm says, one student and one image at a time; returns images and losses."""
    classes, ipc = task.spec.dataset.classes, task.spec.ipc
    images = torch.stack([task.data.train.sample_class(c, ipc, task.rng("init")) for c in range(classes)]).flatten(0, 1)
    labels, velocity, found = torch.arange(classes).repeat_interleave(ipc), torch.zeros_like(images), []
    for iteration in range(steps):
        rows = torch.arange(len(images))
        if p.batch_syn is not None and p.batch_syn < len(images):
            rows = torch.randperm(len(images), generator=task.rng("rows"))[: p.batch_syn]
        if iteration % (p.mid_gap + 1) == 0:
            number = int(torch.randint(POOL, (), generator=task.rng("teachers")))
            teacher = task.network()
            state = {name: task.artifacts["teachers"][f"state/{name}"][number] for name in teacher.state_dict()}
            teacher.load_state_dict(state)
            teacher.eval()
            students = imitate(task, p, images[rows], teacher)
        total, gradient = torch.zeros((), dtype=DOUBLE), torch.zeros_like(images)
        for n in rows.tolist():
            image = images[n : n + 1].clone().requires_grad_()
            for student in students:
                distance = sum(abs(a - b) for a, b in zip(student(image)[0], teacher(image)[0], strict=True)) / classes
                loss = -(distance.log() if p.objective == "log" else distance) / len(rows)
                gradient[n] += torch.autograd.grad(loss, image)[0][0]
                total += loss.detach()
            loss = -p.ce * teacher(image)[0].log_softmax(0)[labels[n]] / len(rows)
            gradient[n] += torch.autograd.grad(loss, image)[0][0]
            total += loss.detach()
        velocity = p.momentum * velocity + gradient
        images = images - p.lr_img * (0.3 if iteration >= p.iterations // 2 else 1.0) * velocity
        found.append(total)
    return images, torch.stack(found)


def imitate(task, p, images, teacher):
    """Train a student with SGD written out; return K copies of it."""
    student, rng = task.network().train(), task.rng("student")
    task.initialise(student, rng)
    weights, targets, copies = list(student.parameters()), teacher(images).detach(), []
    velocity = [torch.zeros_like(weight) for weight in weights]
    for epoch in range(p.student_epochs + 1):
        rate = p.lr_net * (0.1 if epoch > p.student_epochs // 2 else 1.0)
        for batch in torch.randperm(len(images), generator=rng).split(p.batch_train):
            logits = student(task.augment(images[batch], rng))
            if p.student_loss == "l1":
                loss = (logits - targets[batch]).abs().mean()
            else:
                loss = -(targets[batch].softmax(1) * logits.log_softmax(1)).sum(1).mean()
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, v, gradient in zip(weights, velocity, gradients, strict=True):
                    v.mul_(0.9).add_(gradient + 5e-4 * weight)
                    weight -= rate * v
        if epoch and epoch % (p.student_epochs // p.students) == 0:
            copies.append(copy.deepcopy(student).eval())
    assert len(copies) == p.students
    return copies


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {}),
        ({}, {"augment": STRATEGY}),
        ({}, {"network": "convnet-bn-w4-d2"}),
        ({"batch_syn": 4, "update_syn": 3}, {"augment": STRATEGY}),
        ({"objective": "log"}, {}),
        ({"student_loss": "soft_ce", "students": 1, "mid_gap": 0}, {}),
    ],
)
def test_ten_steps_are_those_of_the_plain_loop(make, options, arguments):
    p = small(**options)
    images, log = run(APM(p), make(**arguments), 10)
    expected, losses_ = reference(make(**arguments), p, 10)
    torch.testing.assert_close(torch.stack([step["loss"] for step in log]), losses_, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(images, expected, rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------------------------------------ the derivative


@pytest.mark.parametrize("loss", ["l1", "soft_ce"])
def test_compiled_students_are_the_plain_ones(make, monkeypatch, compiles, loss):
    """Also in batches of 4 of 6 images, of which the second is filled up."""
    changes = {"batch_train": 4, "student_loss": loss}
    fast, plain = (APM(small(**changes)) for _ in range(2))
    fast.start(make())
    monkeypatch.setenv("DDBENCH_COMPILE", "0")
    plain.start(make())
    for _ in range(2):
        torch.testing.assert_close(fast.step()["loss"], plain.step()["loss"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(fast.set.images(), plain.set.images(), rtol=1e-8, atol=1e-10)
    assert fast.choices() == {"student": "compiled", "images in a pass": 2**14 // 64}
    assert plain.choices()["student"] == "plain: DDBENCH_COMPILE=0"


def prepared(make, method, **arguments):
    """Return a method after its first step, and its images."""
    run(method, make(**arguments), 1)
    return method, method.set.images().detach()


def test_the_derivative_does_not_depend_on_the_size_of_a_pass(make):
    method, images = prepared(make, APM(small()), ipc=4)
    rows = torch.arange(12)
    found = []
    for size in (1, 5, 6, 12):
        method.at_once = size
        found.append(method._objective(images, rows)[1])
    for other in found[:-1]:
        torch.testing.assert_close(other, found[-1], rtol=0, atol=4e-16)
    assert found[0].abs().max() > 1e-3


@pytest.mark.parametrize("stack", ["vmap", "loop"])
@pytest.mark.parametrize("network", [NETWORK, "convnet-bn-w4-d2"])
def test_one_backward_is_that_of_students_teacher_and_class_one_after_the_other(make, monkeypatch, stack, network):
    monkeypatch.setattr(bench.train.trainer, "choose_stack", lambda *_: stack)
    method, images = prepared(make, APM(small(students=3)), network=network)
    loss, derivative = method._objective(images, torch.arange(6))
    expected, total = torch.zeros_like(images), 0.0
    for k in range(3):
        student = make(network=network).network().eval()
        student.load_state_dict({name: rows[k] for name, rows in method.students.items()})
        leaf = images.clone().requires_grad_()
        part = -F.l1_loss(student(leaf), method.teacher(leaf))
        expected += torch.autograd.grad(part, leaf)[0]
        total += part.detach()
    leaf = images.clone().requires_grad_()
    part = 0.1 * F.cross_entropy(method.teacher(leaf), method.set.labels)
    expected += torch.autograd.grad(part, leaf)[0]
    torch.testing.assert_close(loss, total + part.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(derivative, expected, rtol=0, atol=1e-15)


def like_the_teacher(method):
    """Replace the students by copies of the teacher."""
    copies = method.params.students
    method.students = {name: torch.stack([tensor] * copies) for name, tensor in method.teacher.state_dict().items()}


def test_students_like_the_teacher_leave_only_the_class(make, monkeypatch):
    monkeypatch.setattr(bench.train.trainer, "choose_stack", lambda *_: "loop")  # bit for bit like the teacher
    method, images = prepared(make, APM(small()))
    like_the_teacher(method)
    leaf = images.clone().requires_grad_()
    expected = torch.autograd.grad(0.1 * F.cross_entropy(method.teacher(leaf), method.set.labels), leaf)[0]
    torch.testing.assert_close(method._objective(images, torch.arange(6))[1], expected, rtol=1e-12, atol=1e-16)
    for objective_ in ("sum", "log"):  # the logarithm of no distance at all is not infinite
        method, images = prepared(make, APM(small(ce=0.0, objective=objective_)))
        like_the_teacher(method)
        loss, derivative = method._objective(images, torch.arange(6))
        assert torch.isfinite(loss)
        assert not derivative.any()


def test_a_large_weight_is_class_impression_and_none_with_one_student_plain_disagreement(make):
    method, images = prepared(make, APM(small(ce=1e9)))
    leaf = images.clone().requires_grad_()
    impression = torch.autograd.grad(F.cross_entropy(method.teacher(leaf), method.set.labels), leaf)[0]
    torch.testing.assert_close(method._objective(images, torch.arange(6))[1] / 1e9, impression, rtol=1e-6, atol=1e-9)
    method, images = prepared(make, APM(small(ce=0.0, students=1)))
    student = make().network().eval()
    student.load_state_dict({name: rows[0] for name, rows in method.students.items()})
    leaf = images.clone().requires_grad_()
    disagreement = torch.autograd.grad(-F.l1_loss(student(leaf), method.teacher(leaf)), leaf)[0]
    torch.testing.assert_close(method._objective(images, torch.arange(6))[1], disagreement, rtol=1e-12, atol=1e-16)


def test_linear_networks_have_the_derivative_of_the_formula():
    rng = torch.Generator().manual_seed(0)
    u = torch.randn(6, 8, generator=rng, dtype=DOUBLE).requires_grad_()
    students, teacher = (
        torch.randn(3, 4, 8, generator=rng, dtype=DOUBLE),
        torch.randn(4, 8, generator=rng, dtype=DOUBLE),
    )
    labels, ce = torch.randint(4, (6,), generator=rng), 0.7
    for kind in ("sum", "log"):
        value = objective(torch.einsum("kcd,nd->knc", students, u), u @ teacher.T, labels, ce, kind).sum() / 6
        found = torch.autograd.grad(value, u)[0]
        for n, x in enumerate(u.detach()):
            expected = ce / 6 * teacher.T @ ((teacher @ x).softmax(0) - F.one_hot(labels[n], 4))
            for student in students:
                gap = (student - teacher) @ x
                weight = 1.0 if kind == "sum" else 4 / gap.abs().sum()
                expected = expected - weight / (6 * 4) * (student - teacher).T @ gap.sign()
            torch.testing.assert_close(found[n], expected, rtol=1e-12, atol=1e-14)


def test_an_offset_common_to_students_and_teacher_moves_only_the_class():
    rng = torch.Generator().manual_seed(0)
    students, teacher = (
        torch.randn(3, 6, 4, generator=rng, dtype=DOUBLE),
        torch.randn(6, 4, generator=rng, dtype=DOUBLE),
    )
    labels = torch.arange(6) % 4
    value = partial(objective, labels=labels, kind="sum")
    offset, same = torch.randn(4, generator=rng, dtype=DOUBLE), torch.full((4,), 1.5, dtype=DOUBLE)
    plain = value(students, teacher, ce=0.0)
    torch.testing.assert_close(value(students + offset, teacher + offset, ce=0.0), plain)
    with_class = value(students, teacher, ce=1.0)
    torch.testing.assert_close(value(students + same, teacher + same, ce=1.0), with_class)
    assert (value(students + offset, teacher + offset, ce=1.0) - with_class).abs().max() > 0.1


def test_images_that_were_not_drawn_get_no_derivative(make):
    method, images = prepared(make, APM(small(batch_syn=2)))
    rows = method._rows(6)
    assert len(rows) == 2
    derivative = method._objective(images, rows)[1]
    assert {int(n) for n in derivative.flatten(1).any(1).nonzero()} == set(rows.tolist())
    assert torch.equal(method._rows(2), torch.arange(2))


# ------------------------------------------------------------------------------------------------ students and rates


def test_snapshots_are_taken_at_equal_distances_up_to_the_last_epoch(make):
    """E = 10, K = 5: after epochs 2, 4, 6, 8, 10 counted from 0. E = 12 does not divide: five all the same."""
    for epochs, students, looks in ((10, 5, (2, 4, 6, 8, 10)), (12, 5, (2, 4, 7, 9, 12)), (4, 1, (4,))):
        method = APM(small(student_epochs=epochs, students=students))
        task = make()
        task.initialise = lambda network, rng: None
        method.start(task)
        method._take_teacher()
        method.network = Counting()
        task.augment = lambda images, rng: images
        found = method._imitate(method.set.images().detach())
        assert found["epoch"].tolist() == [look + 1 for look in looks]
    with pytest.raises(ValidationError, match="5 snapshots"):
        APMParams(student_epochs=4, students=5)


class Counting(torch.nn.Module):
    """A network whose buffer counts the epochs of two batches that it has seen."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3, dtype=DOUBLE))
        self.register_buffer("epoch", torch.zeros((), dtype=DOUBLE))

    def forward(self, images):
        self.epoch = self.epoch + 0.5
        return self.weight.expand(len(images), 3)


def counted(task, method, steps):
    """Return the iterations at which students were trained, and the teachers of all iterations."""
    renewed, used, imitate_ = [], [], method._imitate
    method._imitate = lambda images: (renewed.append(method.done), imitate_(images))[1]
    method.start(task)
    for _ in range(steps):
        method.step()
        used.append(method.who)
    return renewed, used


@pytest.mark.parametrize("gap", [0, 2])
def test_students_are_renewed_every_gap_plus_one(make, gap):
    renewed, used = counted(make(ipc=1), APM(small(mid_gap=gap)), 8)
    assert renewed == list(range(0, 8, gap + 1))
    assert all(used[i] == used[i - 1] for i in range(8) if i not in renewed)


def test_the_released_code_changes_the_teacher_under_its_students_at_evaluations(make):
    few = {"student_epochs": 1, "students": 1, "mid_gap": 1000, "iterations": 200}
    twin = make(seed=1)
    draws = [int(torch.randint(POOL, (), generator=twin.rng("teachers"))) for _ in range(3)]
    assert draws[0] != draws[1] != draws[2]  # so that a change can be seen
    for faithful, expected in ((False, [draws[0]] * 102), (True, [draws[0]] * 50 + [draws[1]] * 50 + [draws[2]] * 2)):
        renewed, used = counted(make(ipc=1, seed=1), APM(small(faithful=faithful, **few)), 102)
        assert renewed == [0]
        assert used == expected


def test_the_rate_of_the_images_falls_once_at_half(make):
    method = APM(small(iterations=9, momentum=0.5))
    method.start(make())
    rates = []
    for _ in range(method.steps):
        method.step()
        rates.append(method.set.optimiser.param_groups[0]["lr"])
    assert rates == [2.0] * 4 + [2.0 * 0.3] * 6
    assert method.set.optimiser.param_groups[0]["momentum"] == 0.5
    assert (APM(APMParams()).steps, 2500 // 2) == (2501, 1250)


def test_the_pass_follows_the_device_and_the_size_of_images(make):
    assert images_at_once(make(), 5) == 2**14 // 64
    method = APM(small(update_syn=3))
    method.start(make())
    assert method.at_once == 3


def test_disagreement_grows_between_renewals(make):
    method = APM(small(iterations=40, mid_gap=50, ce=0.0, lr_img=5.0))
    _, log = run(method, make(), 30)
    assert float(log[-1]["loss"]) < 1.5 * float(log[0]["loss"]) < 0


# ------------------------------------------------------------------------------------------------ result and state


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(make):
    arguments = {"augment": STRATEGY, "dtype": torch.float32}
    first, again, other = (run(APM(small()), make(seed=seed, **arguments), 3)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("network", [NETWORK, "convnet-bn-w4-d2"])
def test_a_resumed_run_ends_with_the_same_bytes(make, network):
    """The break is between two renewals: students and teacher must come back."""
    p, arguments = small(mid_gap=2, batch_syn=4), {"augment": STRATEGY, "network": network}
    whole, _ = run(APM(p), make(**arguments), 4)
    assert torch.equal(resume(APM(p), make, **arguments), whole)


def test_labels_are_the_logits_of_one_teacher_on_which_its_own_loss_is_none(make):
    method = APM(small())
    task = make(dtype=torch.float32)
    images, _ = run(method, task, 2)
    distilled = method.export()
    assert torch.equal(method.export().labels, distilled.labels)
    assert (distilled.header.method, distilled.header.label_kind) == ("apm", "logits")
    assert torch.equal(distilled.images, images)
    number = int(torch.randint(POOL, (), generator=make().rng("labels")))
    logits = teachers.read(make(dtype=torch.float32), number)(images)
    torch.testing.assert_close(distilled.labels, logits)
    loss, target = losses.targets(distilled.labels, "logits", distilled.header.native_recipe["loss"], 3)
    assert (loss, float(losses.compute(loss, logits, target))) == ("l1", pytest.approx(0, abs=1e-6))


def test_hard_labels_are_the_classes_of_the_same_images(make):
    soft, hard = APM(small()), APM(small(labels="hard"))
    images, same = (run(method, make(dtype=torch.float32), 2)[0] for method in (soft, hard))
    assert torch.equal(images, same)
    distilled = hard.export()
    assert (distilled.header.label_kind, distilled.labels.tolist()) == ("hard", [0, 0, 1, 1, 2, 2])
    assert distilled.header.native_recipe["loss"] == "ce"


# ------------------------------------------------------------------------------------------------ what is published


def test_the_native_recipe_is_that_of_a_student():
    """1001 epochs, of which the first 501 at the full rate."""
    from bench.train import schedule

    recipe = resolve(APM.native_recipe(APMParams(), None))
    assert (recipe, label(recipe)) == (resolve("apm"), "apm")
    rates = [schedule.factor(recipe, epoch, 1) for epoch in range(recipe.passes)]
    assert (len(rates), rates.count(1.0), rates[501]) == (1001, 501, pytest.approx(0.1))
    assert (recipe.momentum, recipe.weight_decay, recipe.batch, recipe.augment) == (0.9, 5e-4, 256, "dsa")
    tiny = resolve(APM.native_recipe(APMParams(lr_net=0.1, eval_epochs=600, student_loss="soft_ce"), None))
    assert (tiny.lr, tiny.epochs, tiny.loss) == (0.1, 601, "soft_ce")


def test_defaults_and_presets_are_those_of_the_table(make):
    p = APMParams()
    assert (p.students, p.student_epochs, p.mid_gap, p.ce, p.momentum, p.batch_train) == (5, 250, 2, 0.1, 0.5, 256)
    assert (p.teachers, p.train_epochs, p.train_lr, APM.augment) == (100, 100, 0.05, "dsa")
    assert all(field.description for field in APMParams.model_fields.values())
    info = make().spec.dataset
    for (family, ipc), row in ROWS.items():
        preset = APM.preset(info.model_copy(update={"family": family}), ipc)
        assert preset.params == dict(zip(FIELDS, row, strict=True))
        assert "A9" in preset.source
    assert APM.preprocessing(APMParams(zca=True), info) == "zca-kornia"


def test_other_presets_have_no_source_and_the_step_per_image_of_the_nearest_row(make):
    def preset(family, classes, ipc):
        found = APM.preset(make().spec.dataset.model_copy(update={"family": family, "classes": classes}), ipc)
        assert found.source is None
        return APMParams(**found.params)

    assert (preset("cifar10", 10, 10).lr_img, preset("cifar10", 10, 10).zca) == (pytest.approx(0.2), True)
    digits = preset("digits", 10, 100)
    assert (digits.lr_img, digits.zca, digits.batch_syn) == (pytest.approx(2.0), False, None)
    assert preset("tiny_imagenet", 200, 1).lr_img == pytest.approx(20 * 200 / 500)
    assert preset("tiny_imagenet", 200, 30).lr_net == 0.1
    for ipc in (1, 10, 50, 200, 1000):
        p = preset("svhn", 10, ipc)
        drawn = min(p.batch_syn or 10**9, 10 * ipc)
        assert p.lr_img / (drawn * 10) in (pytest.approx(1 / 5000), pytest.approx(1 / 25000))


# ------------------------------------------------------------------------------------------------ groups


def test_groups_are_slices_of_all_classes_in_the_order_of_classes():
    parts = [torch.arange(6.0).view(6, 1, 1, 1) + 10 * g for g in range(2)]  # three classes of two images
    assert merge(parts, 3).flatten().tolist() == [0, 1, 10, 11, 2, 3, 12, 13, 4, 5, 14, 15]


def test_a_set_in_groups_is_what_they_made_under_the_labels_of_one_teacher(make):
    p, task = small(groups=2), make(ipc=4, dtype=torch.float32)
    names = [name for name in APM.needs(p, task.spec) if name != "teachers"]
    parts = [torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(g)) for g in range(2)]
    task.artifacts |= {name: {"images": part} for name, part in zip(names, parts, strict=True)}
    method = APM(p)
    method.start(task)
    assert method.steps == 0
    distilled = method.export()
    assert torch.equal(distilled.images, merge(parts, 3))
    number = int(torch.randint(POOL, (), generator=make().rng("labels")))
    torch.testing.assert_close(distilled.labels, teachers.read(task, number)(distilled.images))


def test_groups_need_slices_with_seeds_of_their_own(make):
    spec = make(ipc=4, seed=3).spec
    needs = APM.needs(small(groups=2, labels="hard", eval_epochs=7), spec)
    assert list(needs) == ["teachers", "group 0", "group 1"]
    tasks = [needs[f"group {g}"].task for g in range(2)]
    assert tasks == [{"ipc": 2, "seed": 3}, {"ipc": 2, "seed": 1_000_003}]
    assert APMParams(**needs["group 0"].params) == small()  # how the whole is labelled is nothing to a slice
    assert needs["group 0"].params == needs["group 1"].params
    with pytest.raises(UserError, match="cannot be 3 equal groups"):
        APM.needs(small(groups=3), spec)
