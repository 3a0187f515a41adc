"""What this machine or project lacks, and the command that mends it."""

import shutil
import sys
from collections.abc import Callable
from typing import Any

from model_delivery.bundle.candidate import git
from model_delivery.project import Project
from model_delivery.protocols import UserError, user_module
from model_delivery.rollout.target import Target


def diagnose(project: Project) -> list[dict[str, Any]]:
    """Look at everything a delivery needs here, and go on after a finding."""
    target, names = Target(project, "production"), ("sources", "features", "model", "service")
    supported = (3, 11) <= sys.version_info[:2] < (3, 14)
    uv, commit = shutil.which("uv"), git(project, "rev-parse", "--short", "HEAD")
    free = shutil.disk_usage(project.root).free // 10**9
    more = f"{free} GB free, 3 needed; delete old candidates in .ml/candidates"
    start = "no commit; run `git init && git add . && git commit -m Start`"
    found = {
        "Python": (supported, sys.version.split()[0], "run `uv python install 3.13`"),
        "uv": (uv, uv, "not found; run `pipx install uv`"),
        "uv.lock": ((project.root / "uv.lock").exists(), "there", "run `uv sync` and commit it"),
        "git": (commit, f"at {commit}", start),
        "config": _tried(project.check_config, "four files, no mistake"),
        "code": _tried(lambda: [*map(user_module, names)], "can be imported"),
        "disk": (free >= 3, f"{free} GB free", more),
        # Not the bound method: to find the proxy reads the configuration, which may be broken.
        "port": _tried(lambda: target.proxy.check_port(), "free, or ours"),  # noqa: PLW0108
    }
    return [
        {"subject": subject, "ok": bool(ok), "sentence": good if ok else bad}
        for subject, (ok, good, bad) in found.items()
    ]


def _tried(look: Callable[[], object], good: str) -> tuple[bool, str, str]:
    try:
        look()
    except Exception as error:  # the user's own code may raise anything
        return False, good, str(error) if isinstance(error, UserError) else repr(error)
    return True, good, ""
