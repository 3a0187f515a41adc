"""Strict YAML: every mistake is named with its file, its line and the nearest valid key."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from model_delivery.errors import UserError


class Strict(BaseModel):
    """Base of every configuration model: an unknown key is an error, values are fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Config = TypeVar("Config", bound=BaseModel)
Location = tuple[int | str, ...]


def load(path: Path, model: type[Config]) -> Config:
    """Read a YAML file into a pydantic model.

    Raises
    ------
    UserError
        Naming file, line and key of every mistake: not YAML, a key twice, an unknown key
        (with the nearest valid one), a value of the wrong type or out of its range.
    """
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `git checkout -- {path}`") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        raise UserError(f"{path}:{where}: not YAML ({error.problem})") from error
    lines: dict[Location, int] = {(): 1}
    if node is not None:
        _collect(node, (), lines, path)
    try:
        return model.model_validate({} if value is None else value)
    except ValidationError as error:
        messages = [_message(path, model, dict(problem), lines) for problem in error.errors()]
        raise UserError("\n".join(messages)) from error


def _collect(node: yaml.Node, at: Location, lines: dict[Location, int], path: Path) -> None:
    """Record the line of every key and item; refuse a key that stands twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = (*at, key.value)
            line = key.start_mark.line + 1
            if where in lines:
                first = lines[where]
                raise UserError(
                    f"{path}:{line}: `{key.value}` stands twice (first on line {first})"
                )
            lines[where] = line
            _collect(value, where, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*at, index)] = item.start_mark.line + 1
            _collect(item, (*at, index), lines, path)


def _message(
    path: Path, model: type[BaseModel], problem: dict[str, Any], lines: dict[Location, int]
) -> str:
    place: Location = tuple(problem["loc"])
    known = place
    while known not in lines:
        known = known[:-1]
    dotted = ".".join(str(part) for part in place) or "the file"
    where = f"{path}:{lines[known]}"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), _keys(model, place[:-1]), n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        return f"{where}: unknown key `{dotted}`{hint}"
    if problem["type"] == "missing":
        return f"{where}: `{dotted}` is missing"
    text = str(problem["msg"]).removeprefix("Value error, ")
    shown = repr(problem["input"]) if not isinstance(problem["input"], dict) else "this mapping"
    return f"{where}: `{dotted}`: {text} (found {shown:.80})"


def _keys(model: type[BaseModel], at: Location) -> list[str]:
    """Return the valid keys of the model that `at` leads to; empty where it has none."""
    current: Any = model
    for part in at:
        field = current.model_fields.get(str(part)) if _is_model(current) else None
        annotation = field.annotation if field else current
        current = next((kind for kind in _inside(annotation) if _is_model(kind)), None)
    return list(current.model_fields) if _is_model(current) else []


def _inside(annotation: Any) -> list[Any]:
    """Return an annotation and its type arguments: `dict[str, Column]` holds `Column`."""
    return [
        annotation,
        *(part for arg in getattr(annotation, "__args__", ()) for part in _inside(arg)),
    ]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
