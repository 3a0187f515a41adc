"""What user and machinery agree on: types, the error a user can mend, what is asked of the code."""

import datetime as dt
import importlib
import os
import time
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
WAITS = (2, 8)
"""Seconds before a source that is down is asked again."""
MISTAKES = ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError


class UserError(Exception):
    """Something the user can mend: what is wrong, where, and what to do; all else is a crash.

    `code` is that of the process which ends with it: 2, but 30 where the source of rows is down
    (inconclusive), 1 where another process of ours crashed, 0 where there is nothing to do.
    """

    def __init__(self, said: str, code: int = 2) -> None:
        super().__init__(said)
        self.code = code


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
    """Return which variables of the environment the user's `sources.py` needs: `NEEDS`."""
    found = getattr(user_module("sources"), "NEEDS", ())
    return (found,) if isinstance(found, str) else tuple(found)


def unset_variables() -> list[str]:
    """Return which of them are not set; on GitHub a secret that a job may not have is empty."""
    return [name for name in needed_variables() if not os.environ.get(name)]


def check_variables() -> None:
    """Raise a UserError that names the first variable which the source needs and has not."""
    for name in unset_variables():
        raise UserError(f"sources.py needs the variable {name}: set it, or use `ml ship --sample`")


def ask_source(name: str, *arguments: Any) -> Any:
    """Call a function of the user's `sources.py`; what is no mistake in code is tried three times.

    Databases and services have errors of their own, so the mistakes are what is listed. A
    UserError with code 30 has the last error.
    """
    check_variables()
    ask = getattr(user_module("sources"), name)
    for wait in (*WAITS, None):
        try:
            return ask(*arguments)
        except FileNotFoundError as error:
            hint = "where `ml retrain` works is only what is committed: name data by a variable"
            raise UserError(f"sources.{name}: {error}; {hint}, see NEEDS") from error
        except (UserError, *MISTAKES, MemoryError, TypeError, ValueError):
            raise
        except Exception as error:
            if wait is None:
                tries, why = len(WAITS) + 1, f"{type(error).__name__}: {error}"
                said = f"sources.{name}: the source is down, asked {tries} times ({why})"
                raise UserError(f"{said}; run it again when it answers", 30) from error
            time.sleep(wait)


def first_unknown_day() -> dt.date:
    """Return the first day the user's source does not know yet: `newest()` of it, else today."""
    if not hasattr(user_module("sources"), "newest"):
        return dt.date.today()
    day = ask_source("newest")
    if type(day) is not dt.date:
        raise UserError(f"sources.newest(): returned {day!r}, and not a datetime.date")
    return day


def without_tokens() -> dict[str, str]:
    """Return this process's variables without a job's tokens, for packages that no lock names."""
    return {k: v for k, v in os.environ.items() if "TOKEN" not in k or "MLFLOW" in k}


def user_module(name: str) -> ModuleType:
    """Import one of the user's modules: sources, features, model or service.

    `sources.extract(as_of)` returns the rows known before a day, with the contract's columns. The
    variables of the environment without which it cannot, if any, stand in `sources.NEEDS`, a tuple.
    `sources.newest()`, if there is one, returns the first day that it does not know yet.
    """
    try:
        return importlib.import_module(f"{user_package()}.{name}")
    except OSError as error:  # a wheel needs a library of the system
        hint = "for libgomp.so.1 run `apt-get install libgomp1`"
        raise UserError(f"{name}.py cannot be imported: {error}; {hint}") from error
