"""Strict YAML: every mistake is named with its file, its line and its key."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from model_delivery.errors import UserError


class Strict(BaseModel):
    """Base of every configuration model: an unknown key is an error, values are fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Config = TypeVar("Config", bound=BaseModel)
Location = tuple[int | str, ...]


def load(path: Path, model: type[Config]) -> Config:
    """Read a YAML file into a pydantic model; a UserError names file, line and key of mistakes."""
    lines: dict[Location, int] = {(): 1}
    try:
        content = path.read_bytes()
        for where, line in _places(yaml.compose(content, Loader=yaml.SafeLoader), ()):
            if where in lines:
                twice = f"`{where[-1]}` stands twice (first on line {lines[where]})"
                raise UserError(f"{path}:{line}: {twice}")
            lines[where] = line
        return model.model_validate(yaml.safe_load(content) or {})
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `git checkout -- {path}`") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        raise UserError("\n".join(_message(path, e, lines) for e in error.errors())) from error


def _places(node: yaml.Node | None, at: Location) -> Iterator[tuple[Location, int]]:
    """Yield the location and the line of every key and item below a node."""
    items: list[tuple[int | str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.SequenceNode):
        items = [(place, value, value) for place, value in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        items = [(key.value, key, value) for key, value in node.value]
    for name, key, value in items:
        yield (*at, name), key.start_mark.line + 1
        yield from _places(value, (*at, name))


def _message(path: Path, problem: ErrorDetails, lines: dict[Location, int]) -> str:
    known = place = problem["loc"]
    while known not in lines:
        known = known[:-1]
    dotted = ".".join(map(str, place)) or "the file"
    text = problem["msg"].removeprefix("Value error, ")
    found = "" if isinstance(problem["input"], dict) else f" (found {problem['input']!r:.80})"
    return f"{path}:{lines[known]}: `{dotted}`: {text}{found}"
