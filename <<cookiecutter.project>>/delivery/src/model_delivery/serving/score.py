"""Score column arrays with a release: `python -m model_delivery.serving.score SHIP IN OUT`.

IN is an `.npz` of the request's columns without pickle (an empty text is a missing category),
OUT an `.npy` of probabilities. Runs in the release's clean environment, with its `src` on the
path; needs neither BentoML nor a server.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np

from model_delivery.errors import UserError
from model_delivery.files import verify
from model_delivery.protocols import Columns, Floats
from model_delivery.serving.service import ModelService


def score(ship: Path, columns: Columns) -> Floats:
    """Return the probabilities that a release gives, shape (n,), after its bytes were checked."""
    verify(ship)
    service = find_service(ship)()
    service.load(ship / "model")
    return np.asarray(service.score(columns), np.float64)


def find_service(ship: Path) -> type[ModelService]:
    """Return the service class that a release's own package defines.

    Raises
    ------
    UserError
        When there is not exactly one.
    """
    packages = [path.parent for path in (ship / "src").glob("*/service.py")]
    modules = [importlib.import_module(f"{package.name}.service") for package in packages]
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, ModelService)
        and value.__module__ == module.__name__
    }
    if len(found) != 1:
        names = sorted(value.__name__ for value in found)
        raise UserError(f"{ship / 'src'}: expected one subclass of ModelService, found {names}")
    return found.pop()


def read_columns(path: Path) -> Columns:
    """Read what was written without pickle: texts become objects, empty ones None."""
    with np.load(path, allow_pickle=False) as stored:
        return {
            name: np.array([text or None for text in values.tolist()], dtype=object)
            if values.dtype.kind == "U"
            else values
            for name, values in stored.items()
        }


def main(arguments: list[str]) -> None:
    """Read, score, write."""
    ship, source, destination = (Path(argument) for argument in arguments)
    np.save(destination, score(ship, read_columns(source)), allow_pickle=False)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
