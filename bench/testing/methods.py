"""The rules of methods, checked on one distillation of a few images that is run again and again."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.api import Method
from bench.errors import Diverged, UserError
from bench.lazy import torch
from bench.registry import METHODS
from bench.suite.cells import Cell
from bench.suite.resolve import plugin
from bench.testing.planning import check_planning
from bench.testing.rules import Clock, elsewhere, ensure, limit, name_of, one_thread
from bench.testing.workbench import TINY, Workbench, ensure_data_untouched, plan

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api import DistilledSet

SHORTER = "a check takes about a second on the debug data: pass `params` with fewer steps and smaller batches"
STATE = "state_dict holds all that changes from step to step; load_state_dict puts it back after start"
FIELDS = ("images", "labels", "indices", "steps", "rates", "outliers")


def check_method(
    method: str | type[Method],
    params: Mapping[str, Any] | None = None,
    *,
    dataset: str = "debug",
    ipc: int = 2,
    network: str | None = None,
    device: str = "cpu",
) -> None:
    """Check a method by its name, `module:attribute` or class; raise `AssertionError` for the first broken rule.

    params: as in a suite; give those that make it short. network: to distil with; default: the method's own, or a tiny
    ConvNet. Checked: planning without torch; same seed, same bytes, whatever ran before; another seed, other images
    (unless no generator was asked for); global generators and real data untouched; a valid set within the budget, on
    the device and without gradients; export without side effects; stopping and continuing bit for bit; a second.
    """
    name = name_of(method, METHODS)
    check_planning(("method", name, params))
    kind: type[Method] = plugin(METHODS, name, Method)  # type: ignore[type-abstract]
    suite = {
        "grid": {
            "datasets": [dataset],
            "methods": [{"name": name, "params": dict(params or {})}],
            "ipc": [ipc],
            "seeds": [0, 1],
            "network": network or (None if _has_network(kind, params, dataset, ipc) else TINY),
        },
    }
    with tempfile.TemporaryDirectory() as temporary, one_thread(device) as resolved:
        folder = Path(temporary)
        cells = plan(folder, suite)
        _Check(f"method {name!r}", kind, cells, folder, resolved).run()


def _has_network(kind: type[Method], given: Mapping[str, Any] | None, dataset: str, ipc: int) -> bool:
    import bench.data

    info = bench.data.info(dataset)
    params = kind.settle(kind.Params.model_validate_json(json.dumps(given or {})), info, ipc)
    return kind.network(params, info) is not None


class _Check:
    """One method on the cells of two seeds."""

    def __init__(self, who: str, kind: type[Method], cells: list[Cell], folder: Path, device: str) -> None:
        self.who, self.kind, self.folder, self.device = who, kind, folder, device
        self.cells = cells
        self.seeds = {cell.coords["seed"]: cell for cell in cells if cell.kind == "distil"}
        self.limit = limit(device)

    def run(self) -> None:
        """Check everything."""
        first, task, begin = self._distil("first", 0, global_seed=1)
        _check_set(first, task, self.who)
        ensure_data_untouched(task, self.who)
        if 1 in self.seeds:
            other, _, _ = self._distil("other", 1, global_seed=2)
            ensure(
                not task.rng_state() or bool(_differences(first, other, header=False)),
                f"{self.who} asks for random numbers, but seeds 0 and 1 give the same set",
                "images depend on the seed of the task, through task.rng(name) alone",
            )
        again, _, end = self._distil("again", 0, global_seed=3, export_in_between=True)
        found = _differences(first, again)
        ensure(
            not found,
            f"{self.who} gives other {', '.join(found)} when it is run again with the same seed",
            "same parameters, task and seed give the same bytes, whatever ran before and whatever was exported on the "
            "way: no clock, no generator but task.rng(name), nothing kept between runs",
        )
        self._check_state(first)
        seconds = min(begin, end)
        ensure(
            seconds <= self.limit,
            f"{self.who} computes for {seconds:.1f} seconds, {self.limit:.1f} are allowed on this machine",
            SHORTER,
        )

    def _distil(
        self, name: str, seed: int, *, global_seed: int, export_in_between: bool = False
    ) -> tuple[DistilledSet, Any, float]:
        """Build what the method needs and run it to its end; return the set, its task, and the seconds of the run."""
        from bench.loop import distil

        cell = self.seeds[seed]
        with elsewhere(global_seed, self.who):
            bench = self._prepared(name, cell)
            task, method = bench.task(cell), self._method(cell)
            clock = Clock(self.limit, self.who, SHORTER)
            snapshots = [_middle(method)] if export_in_between and method.steps else []
            try:
                course = distil(method, task, folder=bench.folder / "course", snapshots=snapshots, report=clock)
            except Diverged as error:
                raise AssertionError(f"{self.who}: {error}\n  rule: what is logged and exported is finite") from error
            clock()
        return course.distilled, task, clock.seconds

    def _prepared(self, name: str, cell: Cell) -> Workbench:
        """Return a bench with everything that the cell builds on."""
        clock = Clock(self.limit, f"an artifact of {self.who}", SHORTER)
        bench = Workbench(self.folder / name, self.device, clock)
        (bench.folder / "course").mkdir(parents=True, exist_ok=True)
        needed = {cell.key}
        for one in reversed(self.cells):
            if one.key in needed:
                needed.update(one.inputs.values())
        for one in self.cells:
            if one.kind == "prepare" and one.key in needed:
                bench.make(one)
        return bench

    def _method(self, cell: Cell) -> Method:
        return self.kind(self.kind.Params.model_validate_json(json.dumps(cell.config["params"])))

    def _check_state(self, whole: DistilledSet) -> None:
        """Stop in the middle, continue with a fresh object, and compare with the set of the whole run."""
        from bench.loop import CHECKPOINT, distil
        from bench.run.job import Stopped

        cell = self.seeds[0]
        method = self._method(cell)
        if not method.steps:
            return
        middle, folder = _middle(method), self.folder / "state"
        bench = Workbench(self.folder / "first", self.device, Clock(self.limit, self.who, SHORTER))
        folder.mkdir()

        def stop(step: int = 0, steps: int = 0, text: str = "") -> None:
            if step == middle:
                raise Stopped

        with elsewhere(4, self.who):
            try:
                with contextlib.suppress(Stopped):
                    distil(method, bench.task(cell), folder=folder, report=stop)
                torch.load(folder / CHECKPOINT, weights_only=True, map_location="cpu")
            except Exception as error:
                what = f"{self.who} has a state that cannot be written or read: {type(error).__name__}: {error}"
                raise AssertionError(
                    f"{what}\n  rule: a state is made of tensors, numbers and containers; nothing is pickled"
                ) from error
        with elsewhere(5, self.who):
            seen: list[int] = []
            course = distil(
                self._method(cell), bench.task(cell), folder=folder, report=lambda step=0, *_: seen.append(step)
            )
        assert not seen or seen[0] == middle + 1, "the loop did not continue from the checkpoint"
        found = _differences(whole, course.distilled)
        ensure(
            not found, f"{self.who} gives other {', '.join(found)} when it is stopped after step {middle} of "
            f"{method.steps} and continued", STATE,
        )  # fmt: skip


def _middle(method: Method) -> int:
    return max(1, method.steps // 2)


# ---------------------------------------------------------------------------------------------- the set


def _tensors(distilled: DistilledSet) -> dict[str, Tensor]:
    named = {name: getattr(distilled, name) for name in FIELDS} | distilled.extra
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _differences(one: DistilledSet, other: DistilledSet, header: bool = True) -> list[str]:
    """Return the names of the parts that are not the same, bit for bit."""
    mine, theirs = _tensors(one), _tensors(other)
    found = [name for name in {**mine, **theirs} if not _same(mine.get(name), theirs.get(name))]
    return found + (["header"] if header and one.header != other.header else [])


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and one.shape == other.shape and _bytes(one) == _bytes(other)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def _check_set(distilled: DistilledSet, task: Any, who: str) -> None:
    """Ensure a valid set of this task within its budget, which a file gives back."""
    import bench.distilled

    for name, tensor in _tensors(distilled).items():
        ensure(not tensor.requires_grad, f"{name} of {who} carry a gradient", "export detaches what it hands out")
        ensure(
            tensor.device.type == task.device.type,
            f"{name} of {who} are on {tensor.device}, the task is on {task.device}",
            "tensors are made on task.device",
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "set.safetensors"
            bench.distilled.save(file, distilled)
            read = bench.distilled.load(file, task.device)
        images = bench.distilled.decode(distilled, task.data)
    except UserError as error:
        raise AssertionError(f"{who}: {error}\n  rule: export returns a valid set, see bench.distilled") from error
    found = _differences(distilled, read)
    ensure(not found, f"{', '.join(found)} of {who} change in a file", "plain JSON values in the header, plain tensors")
    ensure(bool(torch.isfinite(images).all()), f"decoded images of {who} are not finite", "images are finite numbers")
    _check_header(distilled, task, who)
    _check_budget(distilled, task, who)


def _check_header(distilled: DistilledSet, task: Any, who: str) -> None:
    """Ensure that the header says what the set was made for."""
    header, spec = distilled.header, task.spec
    wanted: dict[str, Any] = {
        "dataset": spec.dataset.name,
        "classes": spec.dataset.classes,
        "shape": tuple(spec.dataset.shape),
        "preprocessing": spec.preprocessing,
        "ipc": spec.ipc,
        "seed": spec.seed,
    }
    for name, value in wanted.items():
        ensure(
            getattr(header, name) == value,
            f"the header of {who} says {name} {getattr(header, name)!r}, the task {value!r}",
            "make_header and make_set fill it in from the task",
        )


def _check_budget(distilled: DistilledSet, task: Any, who: str) -> None:
    """Ensure that the set is not larger than asked for, and that its header counts right.

    Labels, rates and a second set of outliers are counted in the header but stand beside the budget of images.
    """
    import bench.distilled
    from bench.data.preprocess import PREFIX

    header, counted = distilled.header, bench.distilled.budget(distilled)
    ensure(
        header.floats == counted,
        f"the header of {who} counts {header.floats}, the set holds {counted}",
        "header.floats is what bench.distilled.budget counts",
    )
    if header.label_kind == "hard":
        present = distilled.labels.unique().numel()
        ensure(
            present == header.classes, f"the set of {who} has images of {present} of {header.classes} classes",
            "every class has an image",
        )  # fmt: skip
    if header.ipc is None:
        return
    decoder = sum(
        tensor.numel()
        for name, tensor in distilled.extra.items()
        if not name.startswith((PREFIX, bench.distilled.LATENT))
    )
    images, raw = counted["decoded"] if distilled.images is None else distilled.images.numel(), counted["raw"]
    ensure(
        images + decoder <= raw,
        f"the set of {who} stores {images + decoder} floats for images, {header.ipc} images per class are {raw}",
        "the budget is IPC real images per class",
    )
