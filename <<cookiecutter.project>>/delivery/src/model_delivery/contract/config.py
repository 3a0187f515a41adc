"""Strict YAML: every mistake is named with its file, its line and the nearest valid key."""

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from model_delivery.errors import UserError

UNKNOWN = "unknown_key"


class Strict(BaseModel):
    """Base of every configuration model: an unknown key is an error, values are fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, given: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in given if isinstance(given, dict) else ():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                hint = f"; did you mean `{near[0]}`?" if near else ""
                raise PydanticCustomError(UNKNOWN, "unknown key{hint}", {"key": key, "hint": hint})
        return given


Config = TypeVar("Config", bound=BaseModel)
Location = tuple[int | str, ...]


def load(path: Path, model: type[Config]) -> Config:
    """Read a YAML file into a pydantic model; a UserError names file, line and key of mistakes."""
    lines: dict[Location, int] = {(): 1}
    try:
        text = path.read_text(encoding="utf-8")
        _collect(yaml.compose(text, Loader=yaml.SafeLoader), (), lines, path)
        return model.model_validate(yaml.safe_load(text) or {})
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `git checkout -- {path}`") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        raise UserError(f"{path}:{where}: not YAML ({error.problem})") from error
    except ValidationError as error:
        messages = [_message(path, dict(problem), lines) for problem in error.errors()]
        raise UserError("\n".join(messages)) from error


def _collect(node: yaml.Node | None, at: Location, lines: dict[Location, int], path: Path) -> None:
    """Record the line of every key and item; refuse a key that stands twice."""
    items: list[tuple[int | str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.SequenceNode):
        items = [(place, value, value) for place, value in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        items = [(key.value, key, value) for key, value in node.value]
    for name, key, value in items:
        where, line = (*at, name), key.start_mark.line + 1
        if where in lines:
            twice = f"`{name}` stands twice (first on line {lines[where]})"
            raise UserError(f"{path}:{line}: {twice}")
        lines[where] = line
        _collect(value, where, lines, path)


def _message(path: Path, problem: dict[str, Any], lines: dict[Location, int]) -> str:
    place: Location = tuple(problem["loc"])
    place += (problem["ctx"]["key"],) if problem["type"] == UNKNOWN else ()
    known = place
    while known not in lines:
        known = known[:-1]
    dotted = ".".join(str(part) for part in place) or "the file"
    text = str(problem["msg"]).removeprefix("Value error, ")
    found = "" if isinstance(problem["input"], dict) else f" (found {problem['input']!r:.80})"
    return f"{path}:{lines[known]}: `{dotted}`: {text}{found}"
