"""What a machine has on it: the programs, and the environment of its jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

from . import standins
from .results import HarnessError
from .sandbox import PYTHON, seen

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PASSED = (
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_NATIVE_TLS"),
    *("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"),  # some processors compute wrong results without
)
"""What a job keeps of this machine's environment: how to reach a registry, and to compute right."""

NO_LOGIN = '[url "file:///no-login/"]\n\tinsteadOf = https://github.com/\n'

_INSTALLING = threading.Lock()


def environment(machine: Path) -> dict[str, str]:
    """Return the environment on a machine, with what of this one it cannot do without.

    Parameters
    ----------
    machine
        The folder that holds its programs and its home; they are made where they are missing.
    """
    with _INSTALLING:
        if not (machine / "bin").exists():
            _install(machine)
    return {
        **{key: os.environ[key] for key in PASSED if key in os.environ},
        "PATH": f"{seen(machine / 'bin')}:{SYSTEM_PATH}",
        "HOME": str(seen(machine / "home")),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "UV_CACHE_DIR": str(seen(_uv_folder("cache"))),
        "UV_PYTHON_INSTALL_DIR": str(seen(_uv_folder("python"))),
    }


def _install(machine: Path) -> None:
    (machine / "home").mkdir(parents=True)
    # A private repository that nobody logged in to, and no way out to GitHub.
    (machine / "home" / ".gitconfig").write_text(NO_LOGIN)
    new = machine / "bin"
    new.mkdir()
    # A script and no link: Python looks for its library beside the name it was called by.
    python = new / "python3"
    python.write_text(f"#!/bin/sh\nexec '{PYTHON}' \"$@\"\n")
    python.chmod(0o755)
    for name in ("uv", "uvx"):
        (new / name).symlink_to(seen(program(name)))
    standins.install(new)


@cache
def program(name: str) -> Path:
    """Find a program beside this interpreter or on PATH."""
    uv = os.environ.get("UV")  # set by `uv run`; `uv` on PATH may be another tool's wrapper
    places = [Path(uv).with_name(name)] if uv else []
    places += [Path(sys.executable).with_name(name), Path(shutil.which(name) or "/nowhere")]
    for place in places:
        if place.exists():
            return place.resolve()
    raise HarnessError(f"{name} is not installed; `uv sync` in the template's folder brings act")


def _uv_folder(kind: str) -> Path:
    done = subprocess.run([program("uv"), kind, "dir"], check=True, capture_output=True, text=True)
    folder = Path(done.stdout.strip())
    folder.mkdir(parents=True, exist_ok=True)
    return folder
