"""A release made by hand, so that serving is tested without training anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import model_delivery
import pytest
from model_delivery.bundle.candidate import ENTRY, RUNTIME
from model_delivery.contract.request import request_json
from model_delivery.contract.settings import DataContract
from model_delivery.files import seal
from model_delivery.serving import ModelService
from model_delivery.training.snapshot import tree

# A service with a model of one number: 0.01 for each unit of `amount`, up to 1.
STUB = """
from pathlib import Path
from typing import Any

import numpy as np
from model_delivery.protocols import Columns, Floats
from model_delivery.serving import ModelService
from pydantic import TypeAdapter

NAN, BOOM, SHORT, ABOVE, STRICT = 101, 102, 103, 104, 105  # of `count`: each fails in its way


class Stub(ModelService):
    def load(self, folder: Path) -> None:
        self.weight = float((folder / "weight.txt").read_text())

    def score(self, columns: Columns) -> Floats:
        count = columns["count"][0]
        scores: Floats = np.minimum(columns["amount"] * self.weight, 1.0)
        if count == BOOM:
            raise RuntimeError("the model fell over")
        if count == STRICT:
            TypeAdapter(int).validate_python("ours, not the caller's")
        if count == SHORT:
            return scores[1:]
        return scores * {NAN: np.nan, ABOVE: 1000.0}.get(count, 1.0)


Service = Stub
"""


@pytest.fixture(scope="session")
def contract() -> DataContract:
    """Return a contract with every kind of column, and names that are no Python names."""
    columns = {
        "at": {"type": "timestamp"},
        "kind": {"type": "category", "values": ["a", "b c", "ü"]},
        "model code": {"type": "category", "pattern": "[A-Z]{2}[0-9]?", "missing": 0.1},
        "amount": {"type": "number", "min": 0.5, "max": 100, "unit": "kg"},
        "json": {"type": "number", "missing": 0.5},
        "count": {"type": "integer", "min": 0, "max": 1_000_000_000},
        "_flag": {"type": "boolean"},
        "late": {"type": "boolean"},
    }
    about = {"task": "binary", "target": "late", "time": "at", "key": ["at"]}
    return DataContract.model_validate(about | {"as_of": "2013-08-01", "columns": columns})


@pytest.fixture(scope="session")
def ship(contract: DataContract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sealed release of the stub."""
    folder: Path = tmp_path_factory.mktemp("release") / "ship"
    source = Path(model_delivery.__file__).parent
    sources = folder / "src" / "model_delivery"
    for path in (path for name in RUNTIME for path in tree(source / name)):
        copy = sources / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (folder / "src" / "stub").mkdir()
    (folder / "src" / "stub" / "__init__.py").touch()
    (folder / "src" / "stub" / "service.py").write_text(STUB)
    (folder / "model").mkdir()
    (folder / "model" / "weight.txt").write_text("0.01")
    (folder / "request.json").write_text(json.dumps(request_json(contract)))
    (folder / "service.py").write_text(ENTRY.format(package="stub"))
    seal(folder)
    return folder


@pytest.fixture(scope="session")
def stub(ship: Path) -> type[ModelService]:
    """Return the class that the release serves."""
    module: dict[str, Any] = {"__name__": "stub"}  # an import would leave byte code in the release
    exec((ship / "src" / "stub" / "service.py").read_text(), module)
    cls: type[ModelService] = module["Stub"]
    return cls
