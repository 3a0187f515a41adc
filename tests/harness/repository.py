"""Git, as a person calls it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path


def contains(folder: Path, sha: str) -> bool:
    """Tell whether a repository holds a commit."""
    command = ["git", "-C", str(folder), "cat-file", "-e", f"{sha}^{{commit}}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def git(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run git in a folder and return what it printed."""
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **env} if env else None,
    )
    return done.stdout.strip()
