"""The shape of a suite file: what may stand in it, as strict pydantic models.

    title: Short name of the table    # all but `grid` may be left out
    about: what it reproduces, hardware, expected hours, expected numbers with their source
    grid:
      datasets: [digits]              # names, folder:PATH, npz:PATH
      methods:                        # a name, or a mapping
        - random
        - {name: dm, label: dm-short, params: {iterations: 100}}
      ipc: [1, 10, 50]
      seeds: 3                        # 0, 1, 2; or a list
      network: convnet                # to distil with; null: the method's own
      preprocessing: null             # null: the method's own for the dataset
      augment: null                   # null: the method's own
    methods: {dsa: {iterations: 50}}  # parameters by method name or label, on top of the entries above
    evaluation:
      network: convnet                # null: that of the distillation, or the paper's under `native`
      recipe: review                  # name, {base: review, epochs: 100}; `native`: the method's own, else review
      recipes: {whole: whole}         # other recipes, by method name or label
      replicates: 5                   # networks per distilled set
    evaluators:
      - accuracy
      - {name: cross_arch, where: {ipc: [10]}, params: {...}}
    skip:
      - {method: dc, ipc: 50, reason: takes a week}
    threads: 1                        # per cell; part of every key, because it changes sums of floats
    limits: {seconds: 3600}           # a cell that takes longer is stopped
    presets:
      laptop: {...}                   # any of the above, laid over it: mappings key by key, lists replaced
    default_preset: laptop

A network or a recipe is a short name or a mapping of its fields. Parameters of a method are its class defaults,
then the published values for the dataset and IPC, then the suite's, then the preset's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], Field(strict=False)]
"""A list in the file, a tuple here; its items stay strict."""


def _named(value: Any) -> Any:
    """Turn the short form of an entry, a name, into the mapping it stands for."""
    return {"name": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    """Let a single value stand for a list of one."""
    return value if value is None or isinstance(value, list | dict) else [value]


Name = Annotated[str, Field(min_length=1, max_length=200)]
Some = Annotated[Many[Item] | None, BeforeValidator(_listed)]
Natural = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    """Frozen, strict, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class MethodEntry(Strict):
    """One row of the table: a method, perhaps under another label and with its own parameters or surroundings."""

    name: Name
    label: Name | None = None
    params: dict[str, Any] = {}
    network: str | dict[str, Any] | None = None
    preprocessing: str | None = None
    augment: str | None = None


class Where(Strict):
    """A choice of coordinates; a key that is not given matches everything."""

    dataset: Some[str] = None
    method: Some[str] = None
    label: Some[str] = None
    ipc: Some[int] = None
    seed: Some[int] = None

    def matches(self, coordinates: Mapping[str, Any]) -> bool:
        """Tell whether all given keys hold; a key that the coordinates lack does not."""
        for key in Where.model_fields:
            accepted = getattr(self, key)
            if accepted is not None and (key not in coordinates or coordinates[key] not in accepted):
                return False
        return True


class Skip(Where):
    """Coordinates left out, with the reason that tables show."""

    reason: str = "left out by the suite"


class EvaluatorEntry(Strict):
    """An evaluator, the part of the grid it applies to, and its parameters."""

    name: Name
    where: Where = Where()
    params: dict[str, Any] = {}


class Grid(Strict):
    """What is distilled: the product of datasets, methods, images per class and seeds."""

    datasets: Many[Name]
    methods: Many[Annotated[MethodEntry, BeforeValidator(_named)]]
    ipc: Many[Natural]
    seeds: Seed | Many[Seed] = 1
    network: str | dict[str, Any] | None = None
    preprocessing: str | None = None
    augment: str | None = None

    @property
    def all_seeds(self) -> Sequence[int]:
        """The seeds as a list; a number n stands for 0 .. n-1."""
        return range(self.seeds) if isinstance(self.seeds, int) else self.seeds


class Evaluation(Strict):
    """The protocol of all evaluators that do not bring their own."""

    network: str | dict[str, Any] | None = None
    recipe: str | dict[str, Any] = "review"
    recipes: dict[str, str | dict[str, Any]] = {}
    replicates: Natural = 5


class Limits(Strict):
    """What a cell may use."""

    seconds: Annotated[float, Field(gt=0)] | None = None


class SuiteSpec(Strict):
    """A suite file with one preset laid over it."""

    title: str = ""
    about: str = ""
    grid: Grid
    methods: dict[str, dict[str, Any]] = {}
    evaluation: Evaluation = Evaluation()
    evaluators: Many[Annotated[EvaluatorEntry, BeforeValidator(_named)]] = ()
    skip: Many[Skip] = ()
    threads: Natural = 1
    limits: Limits = Limits()


SHAPES: dict[str, type[Strict]] = {
    "": SuiteSpec,
    "grid": Grid,
    "grid.methods": MethodEntry,
    "evaluation": Evaluation,
    "evaluators": EvaluatorEntry,
    "evaluators.where": Where,
    "skip": Skip,
    "limits": Limits,
}
"""The model behind each mapping of a suite, by key path without indices; for the hint of an unknown key."""
