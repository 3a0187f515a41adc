"""Strict YAML: every mistake is named with its file, its line and the nearest valid key."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from model_delivery.protocols import UserError

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
    except ValidationError as error:
        schema = model.model_json_schema()
        parts = [schema, *schema.get("$defs", {}).values()]
        keys = {key for part in parts for key in part.get("properties", ())}
        told = [f"{path}:{_message(problem, lines, keys)}" for problem in error.errors()]
        raise UserError("\n".join(told)) from error
    except (yaml.YAMLError, ValueError) as error:  # of a day such as 30 February, too
        raise UserError(f"{path}: not YAML: {error}") from error


def _places(node: yaml.Node | None, at: Location) -> Iterator[tuple[Location, int]]:
    """Yield the location and the line of every key and item below a node."""
    items: list[tuple[int | str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.SequenceNode):
        items = [(place, value, value) for place, value in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        items = [(k.value, k, v) for k, v in node.value if isinstance(k, yaml.ScalarNode)]
    for name, key, value in items:
        yield (*at, name), key.start_mark.line + 1
        yield from _places(value, (*at, name))


def _message(problem: ErrorDetails, lines: dict[Location, int], keys: set[str]) -> str:
    known = place = problem["loc"]
    while known not in lines:
        known = known[:-1]
    dotted = ".".join(map(str, place)) or "the file"
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), keys, n=1)
        text = f"unknown key; did you mean `{near[0]}`?" if near else "unknown key"
    found = "" if isinstance(problem["input"], dict) else f" (found {problem['input']!r:.80})"
    return f"{lines[known]}: `{dotted}`: {text}{found}"
