"""Clean environments: what a service runs in, with the pins that ship and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from model_delivery.errors import UserError
from model_delivery.files import settle, sha256_bytes, temporary_folder
from model_delivery.project import Project

_NETWORK_HINTS = ("error sending request", "dns error", "failed to fetch", "connect error")


def run_uv(arguments: list[str], cwd: Path) -> str:
    """Run uv and return what it printed.

    Raises
    ------
    UserError
        With uv's own last lines, and a hint where the network was missing.
    """
    try:
        done = subprocess.run(["uv", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
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
