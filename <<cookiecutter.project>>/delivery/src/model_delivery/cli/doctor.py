"""What this machine or project lacks, and the command that mends it."""

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from model_delivery.bundle.candidate import git
from model_delivery.errors import UserError
from model_delivery.project import Project
from model_delivery.rollout.target import Target

FREE_GIGABYTES = 3


class Finding(NamedTuple):
    """One thing that was looked at."""

    subject: str
    ok: bool
    sentence: str


def diagnose(project: Project) -> Iterator[Finding]:
    """Look at everything a delivery needs here, and go on after a finding."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    supported = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield _found("Python", supported, python, "run `uv python install 3.13`")
    uv = shutil.which("uv") or ""
    yield _found("uv", bool(uv), uv, "not found; run `pipx install uv`")
    lock = project.root / "uv.lock"
    yield _found("uv.lock", lock.exists(), "is there", "run `uv sync` and commit uv.lock")
    commit, start = git(project, "rev-parse", "--short", "HEAD"), "git add . && git commit -m Start"
    yield _found("git", bool(commit), f"at {commit}", f"no commit; run `git init && {start}`")
    yield _tried("config", project.check_config, "four files, no mistake")
    yield _tried("model", lambda: _import_model(project), "can be imported")
    free = shutil.disk_usage(project.root).free // 10**9
    mend = f"{FREE_GIGABYTES} needed; delete old candidates in .ml/candidates"
    yield _found("disk", free >= FREE_GIGABYTES, f"{free} GB free", f"{free} GB free, {mend}")
    proxy = Target(project, "production").proxy
    yield _tried("port", proxy.check_port, "free, or ours")


def _found(subject: str, ok: bool, good: str, bad: str) -> Finding:
    return Finding(subject, ok, good if ok else bad)


def _tried(subject: str, look: Callable[[], None], good: str) -> Finding:
    try:
        look()
    except UserError as error:
        return Finding(subject, False, str(error))
    return Finding(subject, True, good)


def _import_model(project: Project) -> None:
    """Import the user's model: a wheel may need a library of the system."""
    try:
        importlib.import_module(f"{project.package}.model")
    except (ImportError, OSError) as error:
        hint = "; run `apt-get install libgomp1`" if "libgomp" in str(error) else ""
        raise UserError(f"{project.package}.model cannot be imported: {error}{hint}") from error
