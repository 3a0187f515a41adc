"""Score rows with the very bytes that ship, in the clean environment they ship with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np

from model_delivery.bundle.environment import service_environment
from model_delivery.errors import UserError
from model_delivery.files import temporary_folder
from model_delivery.project import Project
from model_delivery.protocols import Columns, Floats


def write_columns(path: Path, columns: Columns) -> None:
    """Write columns as `.npz` without pickle; a missing category becomes the empty string."""
    plain = {
        name: np.array(["" if v is None else v for v in values], dtype=np.str_)
        if values.dtype == object
        else values
        for name, values in columns.items()
    }
    np.savez(path, allow_pickle=False, **plain)


def score_cleanly(project: Project, ship: Path, columns: Path) -> Floats:
    """Return the scores that a release gives to the rows of a `.npz` file, shape (n,).

    Raises
    ------
    UserError
        With the program's last lines, when the release cannot be loaded or refuses the rows.
    """
    python = service_environment(project, ship / "requirements.txt")
    with temporary_folder(project.work / "scores") as folder:
        scores = folder / "scores.npy"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {
            "PYTHONPATH": str((ship / "src").resolve()),
            "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        }
        program = ["-m", "model_delivery.serving.score"]
        done = subprocess.run(
            [str(python), *program, str(ship.resolve()), str(columns.resolve()), str(scores)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            tail = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise UserError(f"{ship}: cannot score in its clean environment:\n{tail}")
        return np.asarray(np.load(scores, allow_pickle=False), dtype=np.float64)
