"""Score column arrays with a release: `python -m model_delivery.serving.score SHIP IN OUT`.

IN is an `.npz` of the request's columns without pickle (an empty text is a missing category),
OUT an `.npy` of probabilities. Runs in the release's clean environment, with its `src` on the
path; needs neither BentoML nor a server.
"""

import importlib
import sys
from pathlib import Path

import numpy as np

from model_delivery.errors import UserError
from model_delivery.files import verify
from model_delivery.protocols import Columns, Floats


def score(ship: Path, columns: Columns) -> Floats:
    """Return the probabilities that a release gives, shape (n,), after its bytes were checked."""
    verify(ship)
    (module,) = (ship / "src").glob("*/service.py")
    service = importlib.import_module(f"{module.parent.name}.service").Service()
    service.load(ship / "model")
    return np.asarray(service.score(columns), np.float64)


def read_columns(path: Path) -> Columns:
    """Read what was written without pickle: texts become objects, empty ones None."""
    columns = dict(np.load(path, allow_pickle=False))
    for name, values in columns.items():
        if values.dtype.kind == "U":
            columns[name] = np.array([text or None for text in values.tolist()], object)
    return columns


if __name__ == "__main__":
    release, source, destination = map(Path, sys.argv[1:])
    try:
        np.save(destination, score(release, read_columns(source)), allow_pickle=False)
    except UserError as error:
        sys.exit(f"error: {error}")
