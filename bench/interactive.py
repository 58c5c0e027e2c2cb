"""ddbench from Python and in notebooks: a few functions around the same planning, running and caching as the commands.

    import bench

    task = bench.load_task("cifar10", ipc=10)
    s = bench.distil("dm", task)                     # a DistilledSet; the same call again reads it from the store
    bench.evaluate(s, ["accuracy", "ood"])           # one row per measured number
    bench.save(s, "dm.safetensors")
    loader = DataLoader(bench.as_dataset(s), batch_size=64, shuffle=True)
    bench.show(s)                                    # a picture

Nothing here computes by itself: every call becomes a suite of plain values, which is planned and run like a suite file,
with the cells in this process. A number is therefore the one that the command line gives for the same seed, and is in
the store after that. The store is `python` in the cache folder of ddbench unless another folder is named.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import bench.augment
import bench.data
import bench.distilled
import bench.run
import bench.suite
from bench.api import DistilledSet, Method, NetSpec, TaskSpec
from bench.data import cache
from bench.errors import UserError
from bench.nets import spec as nets
from bench.registry import METHODS
from bench.run import outputs
from bench.suite import sets as suites
from bench.task import LiveTask

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image
    from torch.utils.data import TensorDataset

Network = str | Mapping[str, Any] | NetSpec
CHOICES = ("network", "preprocessing", "augment")
"""What a method chooses for itself where the user does not."""


class ChosenTask(LiveTask):
    """A task, and which of its fields somebody chose; where nobody did, a method takes its own choice."""

    def __init__(self, spec: TaskSpec, chosen: Mapping[str, Any], device: str) -> None:
        super().__init__(spec, device=device)
        self.chosen = dict(chosen)


def load_task(
    dataset: str,
    ipc: int,
    seed: int = 0,
    network: Network | None = None,
    preprocessing: str | None = None,
    augment: str | None = None,
    device: str = "cpu",
) -> ChosenTask:
    """Return the task of distilling a dataset to `ipc` images per class.

    network, preprocessing, augment: as in a suite; None leaves them to the method (for `task.data` and the rest of the
    task itself: convnet, meanstd, none). device: cpu, cuda, cuda:<k> or mps, also for what is done with the task.

        >>> task = bench.load_task("digits", ipc=1)
        >>> task.data.train.images().shape
        torch.Size([1442, 1, 8, 8])

    Raises `UserError` for unknown names, `MissingData` where the dataset is not on this machine.
    """
    info = bench.data.info(dataset)
    bench.data.require(dataset)
    given = None if network is None else nets.parse(network).model_dump(mode="json")
    chosen = dict(zip(CHOICES, (given, preprocessing, augment), strict=True))
    spec = TaskSpec(
        dataset=info,
        ipc=ipc,
        network=nets.resolve(nets.parse(network or "convnet"), info.shape),
        preprocessing=preprocessing or "meanstd",
        augment=bench.augment.resolve(augment or "none", info),
        seed=seed,
    )
    return ChosenTask(spec, chosen, device)


def distil(
    method: str | type[Method],
    task: LiveTask,
    *,
    progress: bool = True,
    store: Path | str | None = None,
    **params: Any,
) -> DistilledSet:
    """Return the set that a method makes for a task; what it needs first (experts, teachers) is made, too.

    method: a registered name, or a class or `module:attribute` of your own. params: parameters of the method, in place
    of the published ones or its defaults. store: folder of the results. progress: show it.

        >>> s = bench.distil("dm", bench.load_task("digits", ipc=1), iterations=5, progress=False)
        >>> s.images.shape
        torch.Size([10, 1, 8, 8])

    The set is on the CPU. That of a registered method is read from the store if it is there; one of your own is made
    each time: its code may have changed. Raises `UserError` for wrong parameters, and where the distillation fails.
    """
    name = method if isinstance(method, str) else f"{method.__module__}:{method.__qualname__}"
    spec = task.spec
    chosen = task.chosen if isinstance(task, ChosenTask) else {key: _plain(getattr(spec, key)) for key in CHOICES}
    grid = {
        "datasets": [spec.dataset.name],
        "methods": [{"name": name, "params": params, **chosen}],
        "ipc": [1 if spec.ipc is None else spec.ipc],
        "seeds": [spec.seed],
    }
    suite = bench.suite.from_values({"grid": grid}, "distil")
    own = store is None and name not in METHODS.targets
    with tempfile.TemporaryDirectory() if own else nullcontext(store) as folder:
        done, plan = _run(suite, folder, str(task.device), progress)
        (cell,) = (cell for cell in plan.cells if cell.kind == "distil")
        return bench.distilled.load(done.cell(cell.key) / "set.safetensors")


def evaluate(
    sets: DistilledSet | Path | str | Sequence[DistilledSet | Path | str],
    evaluators: Sequence[str | Mapping[str, Any]] | None = None,
    *,
    suite: Path | str | None = None,
    preset: str | None = None,
    dataset: str | None = None,
    preprocessing: str | None = None,
    recipe: str | Mapping[str, Any] | None = None,
    network: Network | None = None,
    replicates: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    store: Path | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Return what evaluators measure on one or several sets: one row per number, columns of `bench.api.Record`.

    sets: distilled sets, or files that `load` reads. evaluators: names, or mappings with `name` and `params`; default
    `accuracy`, or those of `suite`. The other arguments are the options of `ddbench evaluate`: without them the set's
    own recipe is used, or `review` where it has none, with five networks on the architecture it was made with.

        >>> s = bench.distil("random", bench.load_task("digits", ipc=1, network="convnet-w8"), progress=False)
        >>> quick = {"base": "review", "epochs": 5}
        >>> found = bench.evaluate(s, recipe=quick, replicates=3, progress=False)
        >>> len(found[found["metric"] == "accuracy"])
        3

    Fractions, not percent. Raises `UserError` where a set does not fit, or an evaluation fails.
    """
    folder = _folder(store)
    several = [sets] if isinstance(sets, DistilledSet | Path | str) else list(sets)
    files = [_file(one, folder, dataset, preprocessing) for one in several]
    asked = suites.around(
        files,
        "evaluate",
        evaluators=evaluators,
        dataset=dataset,
        preprocessing=preprocessing,
        recipe=recipe,
        network=None if network is None else nets.parse(network).model_dump(mode="json"),
        replicates=replicates,
        seed=seed,
        base=None if suite is None else bench.suite.load(suite, preset),
    )
    from bench.report.results import frame

    done, plan = _run(asked, folder, device, progress)
    lines = [line for cell in plan.cells for line in outputs.record_lines(plan, cell, done.result(cell.key) or {})]
    return frame([json.loads(line) for line in lines])


def load(path: Path | str, dataset: str | None = None, **options: Any) -> DistilledSet:
    """Return the set in a file of ddbench, or in what another project released (see `bench.imports.load`)."""
    import bench.imports

    return bench.imports.load(path, dataset=dataset, **options)


def save(distilled: DistilledSet, path: Path | str) -> None:
    """Write a set as one self-describing safetensors file."""
    bench.distilled.save(path, distilled)


def as_dataset(distilled: DistilledSet) -> TensorDataset:
    """Return the set as a torch dataset of pairs (image, label), in the space of its preprocessing.

    Images are decoded; a set that points at training images needs the data. The tensors, for `bench.train.train` or a
    loop of your own, are its `tensors`.

        >>> s = bench.distil("random", bench.load_task("digits", ipc=1), progress=False)
        >>> images, labels = bench.as_dataset(s).tensors
        >>> images.shape, labels.tolist()
        (torch.Size([10, 1, 8, 8]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    header = distilled.header
    plain = distilled.images is not None and header.decoder["name"] == "pixels"
    data = None if plain else bench.data.prepare(bench.data.load(header.dataset), header.preprocessing)
    return bench.distilled.as_dataset(distilled, data)


def show(distilled: DistilledSet | Path | str, columns: int = 10, classes: int = 20) -> Image:
    """Return a picture of a set, one row per class; notebooks display it, `.show()` opens and `.save(...)` writes it.

    columns: images shown of each class. classes: how many classes are shown.
    """
    from bench.report import pictures

    return pictures.image(distilled if isinstance(distilled, DistilledSet) else load(distilled), columns, classes)


# ---------------------------------------------------------------------------------------------- running


def _folder(store: Path | str | None) -> Path:
    return cache.root() / "python" if store is None else Path(store).expanduser()


def _run(
    suite: bench.suite.Suite, store: Path | str | None, device: str, progress: bool
) -> tuple[bench.run.Store, bench.suite.Plan]:
    """Run a suite in this process. Raises `UserError` for the first cell without a result."""
    done, plan = bench.run.Store(_folder(store)), bench.suite.plan(suite)
    with _settings_kept():
        summary = bench.run.run_plan(plan, done, device=device, executor="inline", progress=progress)
    for cell, state, reason in summary.failures:
        failure = done.root / "failed" / f"{cell.key}.json"
        raise UserError(f"{state}: {reason}", where=cell.label, hint=f"traceback: {failure}")
    return done, plan


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Leave the process as it was: cells choose threads and precision for themselves."""
    threads, matmul, cudnn = (
        torch.get_num_threads(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )
    strict = torch.get_deterministic_debug_mode()
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
        torch.set_deterministic_debug_mode(strict)
        if torch.cuda.is_initialized():
            torch.cuda.set_device(gpu)


def _file(one: DistilledSet | Path | str, folder: Path, dataset: str | None, preprocessing: str | None) -> Path:
    """Return the file of a set; one in memory, or of another project, is written into the store under its hash."""
    import bench.imports

    if not isinstance(one, DistilledSet):
        if bench.imports.is_own(one):
            return Path(one)
        one = bench.imports.load(one, dataset=dataset, preprocessing=preprocessing)
    from bench.run.store import sha256

    (folder / "sets").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder / "sets") as draft:
        made = Path(draft) / "set.safetensors"
        bench.distilled.save(made, one)
        return made.replace(folder / "sets" / f"{sha256(made)[:20]}.safetensors")


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, NetSpec) else value
