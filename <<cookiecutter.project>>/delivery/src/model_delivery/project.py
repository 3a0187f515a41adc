"""A user's project as every verb sees it: its root, its four config files, its work folder."""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from model_delivery.contract.limits import Gates
from model_delivery.contract.request import request_json
from model_delivery.contract.settings import DataContract, Delivery
from model_delivery.protocols import Strict, UserError, user_module, user_package

Config = TypeVar("Config", bound=Strict)
Location = tuple[int | str, ...]
HINTS = {  # where pydantic's own words are those of Python
    "missing": "a key that is needed, and is missing",
    "model_type": "needs keys below it, not a value: ",
    "list_type": "needs a list, as [this, that]",
    "string_type": "needs a text: YAML reads no, on or 1 as something else, unless in quotes",
}


@dataclass(frozen=True)
class Project:
    """Paths and settings of one project; config files are read on first use."""

    root: Path

    @property
    def work(self) -> Path:
        """The folder of all that is made; ML_HOME, where several checkouts share what serves."""
        return self.root / (os.environ.get("ML_HOME") or ".ml")

    package = property(lambda self: user_package())

    @cached_property
    def about(self) -> dict[str, Any]:
        """The table `project` of pyproject.toml: name, version and the like."""
        about = dict(tomllib.loads((self.root / "pyproject.toml").read_text("utf-8"))["project"])
        if "version" not in about:
            raise UserError("pyproject.toml: `project.version` names releases, and is not there")
        return about

    contract = cached_property(lambda self: read_config(self.root, "data", DataContract))
    gates = cached_property(lambda self: read_config(self.root, "gates", Gates))
    delivery = cached_property(lambda self: read_config(self.root, "delivery", Delivery))

    @cached_property
    def parameters(self) -> Strict:
        parameters: type[Strict] = user_module("model").Parameters
        return read_config(self.root, "model", parameters)

    def under(self, **settings: Strict) -> "Project":
        """Return this project with another `contract` or `delivery`, and all else as read."""
        other = Project(self.root)
        vars(other).update(vars(self), **settings)
        return other

    def check_config(self) -> None:
        """Read all four files, so that a mistake in any is found before work begins."""
        _ = self.contract, self.parameters, self.gates, self.delivery
        request_json(self.contract)  # has an example of each column
        self.check_log()

    def check_log(self) -> None:
        """Refuse to keep from the prediction log, or to hash in it, what is no such column."""
        time, log = self.contract.time, self.delivery.log
        for kind, kept in (("private", {time, *self.contract.key}), ("hashed", {time})):
            for name in getattr(log, kind):
                if name in kept or name not in self.contract.inputs:
                    near = difflib.get_close_matches(name, self.contract.inputs, n=1)
                    why = "the log cannot do without it" if name in kept else "no input column"
                    why += f"; did you mean `{near[0]}`?" if near and name not in kept else ""
                    raise UserError(f"config/delivery.yaml: `log.{kind}`: `{name}`: {why}")


def find_project(start: Path | None = None) -> Project:
    """Return the project that `start` (default: the working directory) lies in."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "config" / "data.yaml").is_file():
            return Project(folder)
    raise UserError(f"{here}: not inside a project (no config/data.yaml here or above)")


def read_config(root: Path, name: str, model: type[Config]) -> Config:
    """Read a file of `config/`; a UserError names file, line and key of each mistake."""
    path, here = root / "config" / f"{name}.yaml", Path.cwd()
    path = path.relative_to(here) if path.is_relative_to(here) else path
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
        kinds = {part.get("title", ""): [*part.get("properties", ())] for part in parts}
        text = content.decode()
        told = [f"{path}:{_message(problem, lines, kinds, text)}" for problem in error.errors()]
        raise UserError("\n".join(told)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of 30 February, too
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


def _message(
    problem: ErrorDetails, lines: dict[Location, int], kinds: dict[str, list[str]], content: str
) -> str:
    known = place = problem["loc"]
    while known not in lines:
        known = known[:-1]
    dotted = ".".join(map(str, place)) or "the file"
    text = HINTS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    if problem["type"] == "model_type":
        text += ", ".join(f"`{key}`" for key in kinds.get(problem["ctx"]["class_name"], ()))
    if problem["type"] == "extra_forbidden":
        keys = {key for kind in kinds.values() for key in kind}
        near = difflib.get_close_matches(str(place[-1]), keys, n=1)
        text = f"unknown key; did you mean `{near[0]}`?" if near else "unknown key"
    found = "" if isinstance(problem["input"], dict) else f" (found {problem['input']!r:.80})"
    line = lines[known]
    if not place and (named := re.match(r"`(\w+)`", text)):  # of several keys together
        wanted = re.compile(rf"^[^#\n]*?\b{named[1]}\b", re.MULTILINE).search(content)
        line = content[: wanted.end()].count("\n") + 1 if wanted else line
    return f"{line}: `{dotted}`: {text}{found}"
