"""Clean environments: what a service runs in, with the pins that ship and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from model_delivery.files import settle, sha256_json, temporary_folder
from model_delivery.project import Project
from model_delivery.protocols import Floats, UserError

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_OFFLINE = ("error sending request", "dns error", "failed to fetch", "connect error")


def run(command: list[str], cwd: Path, **options: Any) -> str:
    """Run a program and return what it printed; of one that fails, UserError has the last lines."""
    name = " ".join([Path(command[0]).name, *command[1:3]])
    try:
        options |= {"cwd": cwd, "capture_output": True, "text": True}
        return str(subprocess.run(command, check=True, **options).stdout)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not installed; see `ml doctor`") from None
    except subprocess.TimeoutExpired as late:
        raise UserError(f"`{name}` took more than {late.timeout} s, and was ended") from None
    except subprocess.CalledProcessError as error:
        said = f"{error.stdout}{error.stderr}".strip()
        tail = "\n".join(said.splitlines()[-8:])
        if any(hint in said.lower() for hint in _OFFLINE):
            tail += "\nno network? run it once where the package index can be reached"
        raise UserError(f"`{name}` failed:\n{tail}") from None


def program_python(program: Path, cwd: Path) -> str:
    """Return the Python of the environment that a program's first block describes.

    It is made on first use, from uv's cache if it can be, else from the index.
    """
    script = ["--script", str(program)]
    try:
        run(["uv", "sync", "--offline", *script], cwd)
    except UserError:
        run(["uv", "sync", *script], cwd)
    return run(["uv", "python", "find", *script], cwd).strip()


def export(project: Project, *form: str) -> str:
    """Return the service's part of the lock as uv writes it: every version with its hashes."""
    scope = ["--locked", "--no-default-groups", "--no-emit-workspace"]
    return run(["uv", "export", "-q", *scope, *form], project.root)


def service_environment(project: Project, ship: Path) -> Path:
    """Return the Python of a release's clean environment, made on first use.

    It is named by the pins and the interpreter. Every file is checked against its hash.
    """
    requirements = ship.resolve() / "requirements.txt"
    name = sha256_json([PYTHON, requirements.read_text()])[:16]
    final = project.work / "environments" / name
    if not final.exists():
        with temporary_folder(final.parent) as folder:
            run(["uv", "venv", "-q", "--relocatable", "--python", sys.executable, "made"], folder)
            into = ["--python", str(folder / "made" / "bin" / "python"), "--compile-bytecode"]
            pins = ["--require-hashes", "--no-deps", "-r", str(requirements)]
            run(["uv", "pip", "install", "-q", *into, *pins], folder)
            settle(folder / "made", final)
    return final / "bin" / "python"


def clean_variables(project: Project) -> dict[str, str]:
    """Return what a release sees of this process's variables: no token gets into it by chance."""
    kept = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", *project.delivery.variables)
    # Byte code would lie among the bytes that the digest names.
    own = {"PYTHONDONTWRITEBYTECODE": "1", "OTEL_SDK_DISABLED": "true"}
    own |= {name: os.environ[name] for name in kept if name in os.environ}
    return own | {"BENTOML_DO_NOT_TRACK": "True"}


def run_cleanly(
    project: Project, ship: Path, arguments: list[str], cwd: Path, given: str = "", **env: str
) -> str:
    """Run Python in the clean environment of a release, for two minutes at most."""
    command = [str(service_environment(project, ship)), *arguments]
    return run(command, cwd, input=given, env=clean_variables(project) | env, timeout=120)


def score_cleanly(project: Project, ship: Path, rows: pa.Table) -> Floats:
    """Return the scores that a release gives to rows of the contract, shape (n,)."""
    columns = {name: rows.column(name).to_pylist() for name in project.contract.inputs}
    given = json.dumps(columns, default=str)  # JSON keeps every digit of a number
    return np.array(json.loads(run_cleanly(project, ship, ["service.py"], ship, given)))
