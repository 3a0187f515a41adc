"""Score column arrays with a release: `python -m model_delivery.serving.score SHIP IN OUT`.

Runs in the release's clean environment. IN is a `.npz` of columns (an empty string is a missing
category), OUT a `.npy` of scores; neither holds pickled objects.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import numpy as np

from model_delivery.protocols import Columns
from model_delivery.serving.service import ModelService, check_release


def read_columns(path: Path) -> Columns:
    """Return the columns of a `.npz` file, text as objects with None for what is missing."""
    with np.load(path, allow_pickle=False) as stored:
        return {
            name: np.array([str(v) or None for v in stored[name]], dtype=object)
            if stored[name].dtype.kind == "U"
            else stored[name]
            for name in stored.files
        }


def main() -> None:
    """Check the release, score the rows, write the scores."""
    ship, rows, scores = (Path(argument) for argument in sys.argv[1:4])
    check_release(ship)
    package = next(p.name for p in (ship / "src").iterdir() if p.name != "model_delivery")
    service: ModelService = import_module(f"{package}.service").Service()
    service.load(ship / "model")
    np.save(scores, service.score(read_columns(rows)), allow_pickle=False)


if __name__ == "__main__":
    main()
