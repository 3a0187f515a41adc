"""Clean environments: what a service runs in, with the pins that ship and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from model_delivery.errors import UserError
from model_delivery.files import settle, sha256_bytes, temporary_folder
from model_delivery.project import Project
from model_delivery.protocols import Columns, Floats

SECONDS = 120
"""The longest that a release may take to import, or to score a gate's rows."""
_NETWORK_HINTS = ("error sending request", "dns error", "failed to fetch", "connect error")


def run_uv(arguments: list[str], cwd: Path) -> str:
    """Run uv and return what it printed.

    Raises
    ------
    UserError
        With uv's own last lines, and a hint where the network was missing.
    """
    try:
        done = subprocess.run(
            ["uv", *arguments], cwd=cwd, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise UserError("uv is not installed; see `ml doctor`") from None
    if done.returncode == 0:
        return done.stdout
    tail = "\n".join(done.stderr.strip().splitlines()[-8:])
    offline = any(hint in done.stderr.lower() for hint in _NETWORK_HINTS)
    hint = "\nno network? run it once where the package index can be reached" if offline else ""
    raise UserError(f"`uv {' '.join(arguments[:2])}` failed:\n{tail}{hint}")


def export_requirements(project: Project) -> str:
    """Return the service's locked requirements, each pinned with its hashes."""
    flags = ["--locked", "--no-default-groups", "--no-emit-workspace", "--no-header"]
    return run_uv(["export", "-q", *flags, "--no-annotate"], project.root)


def service_environment(project: Project, requirements: Path) -> Path:
    """Return the Python of the clean environment for these requirements, made on first use.

    Environments are named by their requirements and interpreter, and shared by all candidates
    with the same ones. Every file is checked against its hash when it is installed.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = sha256_bytes(f"{python}\n{requirements.read_text()}".encode())[:16]
    final = project.work / "environments" / name
    if not (final / "complete").exists():
        with temporary_folder(final.parent) as folder:
            run_uv(
                ["venv", "-q", "--relocatable", "--python", sys.executable, str(folder / "v")],
                folder,
            )
            pins = ["--require-hashes", "--no-deps", "-r", str(requirements.resolve())]
            interpreter = str(folder / "v" / "bin" / "python")
            run_uv(
                ["pip", "install", "-q", "--compile-bytecode", "--python", interpreter, *pins],
                folder,
            )
            (folder / "v" / "complete").touch()
            settle(folder / "v", final)
    return final / "bin" / "python"


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
        command = [str(python), *program, str(ship.resolve()), str(columns.resolve()), str(scores)]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": SECONDS}
        try:
            done = subprocess.run(command, cwd=folder, env=environment, check=False, **options)
        except subprocess.TimeoutExpired:
            raise UserError(f"{ship}: scored for more than {SECONDS} s, and was ended") from None
        if done.returncode != 0:
            tail = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise UserError(f"{ship}: cannot score in its clean environment:\n{tail}")
        return np.asarray(np.load(scores, allow_pickle=False), dtype=np.float64)
