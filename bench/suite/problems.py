"""Many mistakes at once: what is wrong in a suite is collected, then raised as one error with one line for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bench.errors import MissingData, UserError, nearest
from bench.suite.yaml import KeyPath

Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")


class SuiteErrors(UserError):
    """Several errors of one suite; `errors` holds them, the text has one line for each."""

    def __init__(self, errors: tuple[UserError, ...]) -> None:
        self.errors = errors
        super().__init__("\n".join(str(error) for error in errors))

    def __reduce__(self) -> tuple[object, ...]:
        return SuiteErrors, (self.errors,)


@dataclass(frozen=True)
class Fault:
    """One fault found by pydantic: where in the validated value, what, and the key if it is unknown or missing."""

    path: KeyPath
    what: str
    unknown: str | None = None
    missing: str | None = None


class Problems:
    """Errors that pile up while checking goes on; equal errors count once. `where` turns a key path into a place."""

    def __init__(self, where: Callable[[KeyPath], str]) -> None:
        self.where = where
        self._errors: dict[str, UserError] = {}

    def __len__(self) -> int:
        return len(self._errors)

    def add(self, path: KeyPath, what: str, hint: str | None = None, kind: type[UserError] = UserError) -> None:
        """Note one error at a key path."""
        error = kind(what, where=self.where(path), hint=hint)
        self._errors.setdefault(str(error), error)

    def attempt(self, path: KeyPath, function: Callable[..., Result], *arguments: Any) -> Result | None:
        """Return what the function returns; note a `UserError` it raises at `path`, and return None."""
        try:
            return function(*arguments)
        except UserError as error:
            what = f"{error.where}: {error.what}" if error.where else error.what
            self.add(path, what, error.hint, MissingData if isinstance(error, MissingData) else UserError)
            return None

    def add_faults(self, faults: list[Fault], model: type[BaseModel], place: Callable[[KeyPath], KeyPath]) -> None:
        """Note what pydantic found in parameters of `model`; `place` says where in the file each of them stands."""
        for fault in faults:
            known = fault.unknown is not None and len(fault.path) == 1
            hint = nearest(str(fault.unknown), model.model_fields) if known else None
            self.add(place(fault.path), fault.what, hint)

    def raise_all(self) -> None:
        """Raise what was noted: the error itself if there is one, `SuiteErrors` if there are more."""
        errors = tuple(self._errors.values())
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise SuiteErrors(errors)


def validate(model: type[Model], value: Any) -> tuple[Model | None, list[Fault]]:
    """Validate a plain value as if it were JSON (lists may be tuples, 1 may be a float); return model or faults."""
    try:
        return model.model_validate_json(json.dumps(value)), []
    except ValidationError as error:
        return None, [_fault(details) for details in error.errors(include_url=False)]


def _fault(details: Any) -> Fault:
    path: KeyPath = tuple(details["loc"])
    match details["type"]:
        case "extra_forbidden":
            return Fault(path, f"unknown key {path[-1]!r}", unknown=str(path[-1]))
        case "missing":
            return Fault(path[:-1], f"the key {path[-1]!r} is missing", missing=str(path[-1]))
    message = details["msg"].replace("Input should be", "must be").replace("array", "list").replace("object", "mapping")
    return Fault(path, f"{message}, not {shortened(details['input'])}")


def shortened(value: Any) -> str:
    """Return a value as text of at most 60 characters."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def call(who: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call into a method, evaluator or plug-in while planning; a defect there becomes a `UserError` naming it."""
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{who} fails while planning: {type(error).__name__}: {error}", hint="a defect of that plug-in or method"
        ) from error
