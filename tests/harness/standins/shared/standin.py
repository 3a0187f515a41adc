"""What the stand-ins have in common: the token's permissions, state on GitHub, outputs."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GITHUB = Path(os.environ["STANDIN_GITHUB"])
"""The folder that holds what runs share on GitHub."""
PRIVATE = os.environ.get("STANDIN_PRIVATE") == "true"
"""Whether strangers cannot see the repository."""


def may(permission: str, level: str) -> bool:
    """Tell whether the job's token has a permission, to `read` or to `write`."""
    return json.loads(os.environ["STANDIN_PERMISSIONS"]).get(permission) in ("write", level)


def require(permission: str, level: str = "write") -> None:
    """End with GitHub's answer unless the job's token has a permission."""
    if not may(permission, level):
        sys.exit(f"::error::HTTP 403: Resource not accessible by integration ({permission})")


@contextmanager
def state(name: str, empty: Any) -> Iterator[Any]:
    """Read what a JSON file of GitHub's holds, and keep what the body makes of it.

    Other jobs wait meanwhile. When the body ends with an error, nothing is changed.
    """
    file = GITHUB / name
    with (GITHUB / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        value = json.loads(file.read_text()) if file.exists() else empty
        yield value
        new = file.with_suffix(".new")
        new.write_text(json.dumps(value, indent=1))
        new.rename(file)


def output(name: str, value: str) -> None:
    """Set an output of the step, of any number of lines."""
    with Path(os.environ["GITHUB_OUTPUT"]).open("a") as outputs:
        outputs.write(f"{name}<<standin-end-of-value\n{value}\nstandin-end-of-value\n")
