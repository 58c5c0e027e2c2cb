"""The contracts: everything a method, an evaluator, an artifact or a dataset has to promise, and nothing else.

The harness owns the loop, the clock, the files and the randomness. What plugs into it is small:

    Method      task -> distilled set, one outer iteration at a time
    Evaluator   distilled set (and networks trained on it) -> measures
    Artifact    anything expensive and shared -> named tensors

Rules that the runner relies on:

1. Randomness comes from `task.rng(name)`; nobody touches a global generator or the clock.
2. Same parameters, task and seed give the same bytes, whatever ran before and however many cells run at once.
3. `state_dict` holds all that is needed to continue bit for bit (the harness keeps the generators).
4. `Params`, presets, `needs` and `trainings` are read while planning: they must not need torch.

This module imports no torch: plans are made of these types alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from bench.facts import (
    DatasetInfo,
    DistilledSet,
    Header,
    LabelKind,
    Need,
    NetSpec,
    Params,
    Preset,
    Record,
    TaskSpec,
    param,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bench.augment import Augment
    from bench.data import Prepared

__all__ = [
    "Artifact",
    "DatasetInfo",
    "Distillation",
    "DistilledSet",
    "EvalSpec",
    "Evaluation",
    "Evaluator",
    "Header",
    "LabelKind",
    "Measure",
    "Method",
    "Need",
    "NetSpec",
    "Params",
    "Preset",
    "Record",
    "Task",
    "TaskSpec",
    "Trained",
    "Training",
    "param",
]


# ---------------------------------------------------------------------------------------------- tasks


class Task(Protocol):
    """What a method, an artifact or an evaluator is given. The implementation is `bench.task.LiveTask`."""

    spec: TaskSpec
    device: torch.device
    folder: Path | None
    """Where an artifact that takes hours may keep what it needs to continue after a kill; None: nowhere."""

    @property
    def data(self) -> Prepared:
        """The dataset in the task's preprocessing, on the device."""

    @property
    def augment(self) -> Augment:
        """The augmentation used while distilling."""

    def rng(self, name: str) -> torch.Generator:
        """Return the generator for one purpose; it is seeded by the task's seed and the name."""

    def network(self, net: NetSpec | None = None) -> torch.nn.Module:
        """Build the network to distil with (or `net`) for this dataset, without initialising it."""

    def initialise(self, network: torch.nn.Module, rng: torch.Generator) -> None:
        """Draw fresh weights in place."""

    def artifact(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of what `needs` asked for under this name."""

    def artifact_slice(self, name: str, tensor: str) -> Any:
        """Return one tensor of an artifact that is read as it is indexed (`get_shape()`, `rows[i, j]`)."""

    def distilled(self, name: str | None = None) -> DistilledSet:
        """Return the distilled set under evaluation, or another one that the evaluator's `distillations` named."""

    def phase(self, name: Literal["data", "network", "set", "evaluation"]) -> AbstractContextManager[None]:
        """Book the time inside the block on a phase of the cost table; phases do not nest."""

    def report(self, step: int = 0, steps: int = 0, text: str = "") -> None:
        """Tell how far an artifact is, see `bench.run.job.Report`; methods leave that to the harness."""


# ---------------------------------------------------------------------------------------------- methods


class Method(ABC):
    """A distillation algorithm. The harness calls `start` once, then `step` `steps` times, then `export`."""

    Params: ClassVar[type[Params]]
    version: ClassVar[int] = 1
    title: ClassVar[str]
    citation: ClassVar[str]
    budget_free: ClassVar[bool] = False
    """True where the IPC means nothing (the whole dataset): such a method is planned once per dataset."""
    seed_free: ClassVar[bool] = False
    """True where the seed changes nothing of the set (it lies in a file): planned for the first seed of a suite."""
    augment: ClassVar[str] = "none"
    """Augmentation while distilling where the suite says nothing: none, dsa (by dataset), or explicit."""

    def __init__(self, params: Any) -> None:
        self.params = params

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return the paper's hyper-parameters for this dataset and IPC."""
        return Preset({}, None)

    @classmethod
    def settle(cls, params: Any, dataset: DatasetInfo, ipc: int | None) -> Any:
        """Return the parameters with what only planning can find out, such as the hash of a file they name."""
        return params

    @classmethod
    def preprocessing(cls, params: Any, dataset: DatasetInfo) -> str:
        """Return the preprocessing id this method distils in where the suite says nothing."""
        return "meanstd"

    @classmethod
    def network(cls, params: Any, dataset: DatasetInfo) -> NetSpec | None:
        """Return the network this method distils with where the suite says nothing; None: the field's ConvNet."""
        return None

    @classmethod
    def needs(cls, params: Any, spec: TaskSpec) -> Mapping[str, Need]:
        """Return the artifacts this method must have first, by the name it will ask for."""
        return {}

    @classmethod
    def native_recipe(cls, params: Any, spec: TaskSpec) -> Mapping[str, Any] | None:
        """Return the recipe the paper evaluates with (fields of `bench.train.recipe.Recipe`), if it has its own."""
        return None

    @classmethod
    def native_network(cls, params: Any, spec: TaskSpec) -> NetSpec | None:
        """Return the network the paper evaluates with, where it is not the one it distils with.

        It counts under `recipe: native` in suites that name no evaluation network.
        """
        return None

    @property
    @abstractmethod
    def steps(self) -> int:
        """Return the number of outer iterations (0 for a method that is done after `start`)."""

    @abstractmethod
    def start(self, task: Task) -> None:
        """Create the synthetic parameters and the optimisers."""

    def step(self) -> dict[str, float | Tensor]:
        """Do one outer iteration; return scalars to log (0-d tensors are read only when logged)."""
        raise AssertionError(f"{type(self).__name__} has no steps")

    @abstractmethod
    def export(self) -> DistilledSet:
        """Return the distilled set as it stands now."""

    def choices(self) -> Mapping[str, Any]:
        """Return what the method chose by itself for the sake of speed (compiled or not); kept with the result."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes from step to step: tensors, numbers and containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - methods without steps have no state
        """Continue from `state`, after `start`."""


# ---------------------------------------------------------------------------------------------- artifacts


class Artifact(ABC):
    """Something expensive and shared, computed once per content key and kept as safetensors."""

    Params: ClassVar[type[Params]]
    version: ClassVar[int] = 1
    title: ClassVar[str]

    def __init__(self, params: Any) -> None:
        self.params = params

    @classmethod
    def needs(cls, params: Any, spec: TaskSpec) -> Mapping[str, Need]:
        """Return other artifacts this one must have first."""
        return {}

    @abstractmethod
    def build(self, task: Task) -> Mapping[str, Tensor]:
        """Compute the tensors."""

    def choices(self) -> Mapping[str, Any]:
        """Return what was chosen for the sake of speed, after `build`; kept with the result."""
        return {}


# ---------------------------------------------------------------------------------------------- evaluators


@dataclass(frozen=True)
class Training:
    """A request for networks trained on the distilled set. Equal requests are trained once and shared.

    Those that differ only by the number of networks, and by whether weights are kept, are served by one training of
    the most networks.

    recipe: the resolved fields of `bench.train.recipe.Recipe`. snapshot: outer step of the distillation whose
    intermediate set is meant, None for the final one. weights: keep the weights, not only the logits on the test set.
    sets: names of the evaluator's `distillations`, to train on their union instead of the set under evaluation.
    rates: learning rates to try in place of the recipe's, see `bench.train.rates`; every network is kept at its best.
    """

    network: NetSpec
    recipe: Mapping[str, Any]
    replicates: int
    snapshot: int | None = None
    weights: bool = False
    sets: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class EvalSpec:
    """What an evaluator knows while planning: the task, the method, and the suite's evaluation defaults."""

    task: TaskSpec
    method: str
    method_steps: int
    network: NetSpec = field(default_factory=NetSpec)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    replicates: int = 5


@dataclass(frozen=True)
class Trained:
    """Networks trained on a distilled set, as an evaluator sees them.

    logits: float32 [E, N, K] on the test set after the last epoch. weights: stacked parameters and buffers
    [E, ...] where the request kept them. seconds: training time of all that were trained together, E or more.
    """

    training: Training
    logits: Tensor
    weights: Mapping[str, Tensor]
    seconds: float
    curves: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Distillation:
    """The measured course of the distillation: its log, its cost and its snapshots.

    profile: see `bench.profile.Profile.summary`. log: one mapping per logged step (`step`, `seconds`, losses).
    snapshots: outer step -> seconds of distillation until then.
    """

    profile: Mapping[str, Any]
    log: Sequence[Mapping[str, float]]
    snapshots: Mapping[int, float]
    path: Path | None = None


class Evaluation(Task, Protocol):
    """The task of an evaluator."""

    @property
    def eval_spec(self) -> EvalSpec:
        """What was known while planning."""

    @property
    def distillation(self) -> Distillation:
        """The measured course of the distillation."""

    def trained(self, training: Training) -> Trained:
        """Return the networks of one request that `trainings` made."""


@dataclass(frozen=True)
class Measure:
    """One measured number. Fractions are stored, percents only printed."""

    metric: str
    value: float
    unit: str = "fraction"
    network: str | None = None
    recipe: str | None = None
    selection: Literal["last", "best-val", "best-test"] | None = None
    replicate: int | None = None
    step: int | None = None
    tags: Mapping[str, str | int | float] = field(default_factory=dict)


class Evaluator(ABC):
    """Measures something on a distilled set, or on networks trained on it."""

    Params: ClassVar[type[Params]]
    version: ClassVar[int] = 1
    title: ClassVar[str]
    citation: ClassVar[str] = ""
    timed: ClassVar[bool] = False
    """True where wall clock or memory of the distillation is measured: its cell then runs alone on the device."""

    def __init__(self, params: Any) -> None:
        self.params = params

    @classmethod
    def trainings(cls, params: Any, spec: EvalSpec) -> Sequence[Training]:
        """Return the networks that must be trained on the set first."""
        return ()

    @classmethod
    def distillations(cls, params: Any, spec: EvalSpec) -> Mapping[str, Mapping[str, Any]]:
        """Return further sets to distil with the same method and parameters, by name: the fields of `TaskSpec` that
        differ. `dataset` is given by its name (see `bench.data.views`). A baseline names another `method`, and its
        `params` if the defaults will not do; networks trained on it are shared by all methods that it stands beside.
        """
        return {}

    @classmethod
    def snapshots(cls, params: Any, spec: EvalSpec) -> Sequence[int]:
        """Return the outer steps whose intermediate sets are needed."""
        return ()

    @classmethod
    def needs(cls, params: Any, spec: EvalSpec) -> Mapping[str, Need]:
        """Return the artifacts that must exist first, by the name `task.artifact` is asked with."""
        return {}

    @abstractmethod
    def evaluate(self, task: Evaluation) -> list[Measure]:
        """Measure. Raises `UserError` where the set cannot be evaluated this way."""
