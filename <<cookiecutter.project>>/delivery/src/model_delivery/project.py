"""A user's project as every verb sees it: its root, its four config files, its work folder."""

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from model_delivery.contract.config import Config, load
from model_delivery.contract.settings import DataContract, Delivery, Gates
from model_delivery.protocols import Strict, UserError, user_module, user_package


@dataclass(frozen=True)
class Project:
    """Paths and settings of one project; config files are read on first use."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / ".ml"

    @property
    def package(self) -> str:
        return user_package()

    @cached_property
    def about(self) -> dict[str, Any]:
        """The table `project` of pyproject.toml: name, version and the like."""
        text = (self.root / "pyproject.toml").read_text(encoding="utf-8")
        return dict(tomllib.loads(text)["project"])

    @cached_property
    def contract(self) -> DataContract:
        return self._read("data", DataContract)

    @cached_property
    def gates(self) -> Gates:
        return self._read("gates", Gates)

    @cached_property
    def delivery(self) -> Delivery:
        return self._read("delivery", Delivery)

    @cached_property
    def parameters(self) -> Strict:
        parameters: type[Strict] = user_module("model").Parameters
        return self._read("model", parameters)

    def check_config(self) -> None:
        """Read all four files, so that a mistake in any is found before work begins."""
        _ = self.contract, self.parameters, self.gates, self.delivery

    def _read(self, name: str, model: type[Config]) -> Config:
        path, here = self.root / "config" / f"{name}.yaml", Path.cwd()
        return load(path.relative_to(here) if path.is_relative_to(here) else path, model)


def find_project(start: Path | None = None) -> Project:
    """Return the project that `start` (default: the working directory) lies in."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "config" / "data.yaml").is_file():
            return Project(folder)
    raise UserError(f"{here}: not inside a project (no config/data.yaml here or above)")
