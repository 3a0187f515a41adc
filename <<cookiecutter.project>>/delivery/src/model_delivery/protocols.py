"""What user and machinery agree on: types, the error a user can mend, what is asked of the code."""

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Columns = Mapping[str, NDArray[Any]]
"""A table as column arrays of equal length: float64, int64, object (str or None), datetime64."""
Floats = NDArray[np.float64]


class UserError(Exception):
    """Something the user can mend: what is wrong, where, and what to do; all else is a crash."""


class Strict(BaseModel):
    """Base of all settings and records: an unknown key is an error, values are fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FeatureBuilder(Protocol):
    """The user's `features.Features`, kept as text; `transform`, pure, is (n rows, k names)."""

    names: tuple[str, ...]

    @classmethod
    def fit(cls, columns: Columns) -> Self: ...
    def transform(self, columns: Columns) -> Floats: ...
    def save(self, folder: Path) -> None: ...
    @classmethod
    def load(cls, folder: Path) -> Self: ...


class Model(Protocol):
    """The user's `model.Model`, kept as text; `curve` holds losses by round.

    `stopping`, shape (n,), marks rows that may decide when to stop; scores have shape (n,).
    """

    curve: dict[str, list[float]]

    def fit(self, features: Floats, labels: Floats, stopping: NDArray[np.bool_]) -> Self: ...
    def predict(self, features: Floats) -> Floats: ...
    def save(self, folder: Path) -> None: ...
    @classmethod
    def load(cls, folder: Path) -> Self: ...


def user_package() -> str:
    """Return the import name of the user's package, the one that declares the entry point."""
    found = sorted({point.value for point in entry_points(group="model_delivery")})
    if len(found) != 1:
        wanted = f"expected one [project.entry-points.model_delivery], found {found}"
        raise UserError(f"pyproject.toml: {wanted}; run `uv sync` after mending it")
    return found[0]


def needed_variables() -> tuple[str, ...]:
    """Return which variables of the environment the user's `sources.extract` needs: `NEEDS`."""
    found = getattr(user_module("sources"), "NEEDS", ())
    return (found,) if isinstance(found, str) else tuple(found)


def user_module(name: str) -> ModuleType:
    """Import one of the user's modules: sources, features, model or service.

    `sources.extract(as_of)` returns the rows known before a day, with the contract's columns. The
    variables of the environment without which it cannot, if any, stand in `sources.NEEDS`, a tuple.
    """
    try:
        return importlib.import_module(f"{user_package()}.{name}")
    except OSError as error:  # a wheel needs a library of the system
        hint = "for libgomp.so.1 run `apt-get install libgomp1`"
        raise UserError(f"{name}.py cannot be imported: {error}; {hint}") from error
