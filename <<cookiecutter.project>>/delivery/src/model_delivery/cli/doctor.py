"""What this machine or project lacks, and the command that mends it."""

from __future__ import annotations

import importlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from model_delivery.errors import UserError
from model_delivery.project import Project, find_project

GIGABYTE = 1_000_000_000
FREE_DISK = 3 * GIGABYTE


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    ok: bool
    sentence: str


def diagnose() -> list[Finding]:
    """Look at everything a delivery needs here, and go on after a finding."""
    project = find_project()
    looks: list[Callable[[Project], Finding]] = [
        _python,
        _uv,
        _lock,
        _git,
        _config,
        _model_imports,
        _disk,
        _port,
    ]
    return [look(project) for look in looks]


def _python(project: Project) -> Finding:
    found = ".".join(str(part) for part in sys.version_info[:3])
    ok = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Finding("Python", ok, found if ok else f"{found}; run `uv python install 3.13`")


def _uv(project: Project) -> Finding:
    path = shutil.which("uv")
    return Finding("uv", path is not None, path or "not found; run `pipx install uv`")


def _lock(project: Project) -> Finding:
    ok = (project.root / "uv.lock").exists()
    sentence = "dependencies are locked" if ok else "missing; run `uv sync` and commit uv.lock"
    return Finding("uv.lock", ok, sentence)


def _git(project: Project) -> Finding:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=project.root, capture_output=True, text=True, check=False
    )
    ok = done.returncode == 0
    missing = "no commit yet; run `git init && git add . && git commit -m Start`"
    return Finding("git", ok, f"at commit {done.stdout.strip()}" if ok else missing)


def _config(project: Project) -> Finding:
    try:
        project.check_config()
    except UserError as error:
        return Finding("config", False, str(error))
    return Finding("config", True, "four files, no mistake")


def _model_imports(project: Project) -> Finding:
    """Import the user's model: a wheel may need a library of the system."""
    try:
        importlib.import_module(f"{project.package}.model")
    except (ImportError, OSError) as error:
        hint = "; run `apt-get install libgomp1`" if "libgomp" in str(error) else ""
        return Finding("model", False, f"cannot be imported: {error}{hint}")
    return Finding("model", True, "can be imported")


def _disk(project: Project) -> Finding:
    free = shutil.disk_usage(project.root).free
    said = f"{free / GIGABYTE:.0f} GB free"
    lacking = f"{said}, {FREE_DISK // GIGABYTE} GB needed; delete old candidates in .ml/"
    return Finding("disk", free >= FREE_DISK, said if free >= FREE_DISK else lacking)


def _port(project: Project) -> Finding:
    """A port in use is fine when it is this project's own production that answers."""
    from model_delivery.rollout.host import owns_port

    try:
        port = project.delivery.environments["production"].port
    except (UserError, KeyError):
        return Finding("port", False, "unknown: config/delivery.yaml cannot be read")
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    if not taken or owns_port(project, "production"):
        return Finding("port", True, f"{port} is {'this production' if taken else 'free'}")
    return Finding(
        "port", False, f"{port} is in use by a stranger; stop it or change config/delivery.yaml"
    )
