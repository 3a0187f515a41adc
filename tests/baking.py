"""Generated projects: how they are made, and the commands a user runs in them."""

from __future__ import annotations

import atexit
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tools import demo

ROOT = Path(__file__).resolve().parents[1]
Done = subprocess.CompletedProcess[str]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which a generated project finds its own interpreter.

    The template's virtual environment would stand in for the project's, and without byte code
    every import of the heavy libraries takes two to three times as long. Whoever runs the tests may
    be a job of a workflow: the project's commands are of no job, unless a test says so.
    """
    away = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH"}
    return {k: v for k, v in demo.environment().items() if k not in away} | dict(extra or {})


def free_port() -> int:
    """Return a port that nobody listens on, and that Linux gives to no connection meanwhile.

    Nor does a project's `ml`, whose services take theirs from 10,000 on: it may be minutes until
    an environment listens there.
    """
    for port in secrets.SystemRandom().sample(range(7_000, 10_000), 99):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("no free port")


@dataclass(frozen=True)
class BakedProject:
    """A generated project and the commands a user would run in it."""

    path: Path

    @property
    def package(self) -> str:
        """The import name of the user's package."""
        entry = self.toml("pyproject.toml")["project"]["entry-points"]["model_delivery"]
        return str(entry["package"])

    def toml(self, name: str) -> dict[str, Any]:
        """Return a parsed TOML file."""
        return tomllib.loads(self.text(name))

    def text(self, name: str) -> str:
        """Return a file's text."""
        return (self.path / name).read_text(encoding="utf-8")

    def files(self) -> list[Path]:
        """Return the project's files, relative and sorted: what git tracks, once it does."""
        if (self.path / ".git").exists():
            names = self.run("git", "ls-files", "-z").stdout.split("\0")
            return sorted(Path(name) for name in names if name)
        found = (file for file in self.path.rglob("*") if file.is_file())
        return sorted(file.relative_to(self.path) for file in found)

    def run(
        self,
        *command: str,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        timeout: float = 600,
    ) -> Done:
        """Run a command in the project; with `check`, a failure shows what it printed."""
        done = subprocess.run(
            command,
            cwd=self.path,
            env=environment(env),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def copy(self, folder: Path) -> BakedProject:
        """Return a copy below a folder, with an environment of its own: none can be moved."""
        path = folder / self.path.name
        shutil.copytree(self.path, path, ignore=shutil.ignore_patterns(".venv"))
        copy = BakedProject(path)
        copy.run("uv", "sync", "--quiet")
        return copy

    def ml(self, *arguments: str, check: bool = True, timeout: float = 600) -> Done:
        """Run `uv run ml …`."""
        return self.run("uv", "run", "ml", *arguments, check=check, timeout=timeout)


@cache
def template() -> Path:
    """Return a copy of the template's files as they are now, without what git ignores.

    Byte code or an editor's file in the working tree would be rendered too, and a file saved
    while the tests run would make two renders differ.
    """
    names = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
    listed = subprocess.run(names, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    copy = Path(tempfile.mkdtemp(prefix="template-"))
    atexit.register(shutil.rmtree, copy)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():  # a file that is removed is listed until the commit
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


class Baker:
    """Runs cookiecutter as a user does, apart from that user's own settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "out"
        self.output.mkdir()
        self.temporary = folder / "tmp"  # cookiecutter leaves each rendered hook in it
        self.temporary.mkdir()
        settings = folder / "settings.yaml"
        settings.write_text(
            f"cookiecutters_dir: '{folder / 'cookiecutters'}'\nreplay_dir: '{folder / 'replay'}'\n"
        )

        self.options = ["--config-file", str(settings), "--output-dir", str(self.output)]

    def cookiecutter(
        self,
        *arguments: str,
        typed: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run cookiecutter with `key=value` arguments, or with lines typed at its prompts."""
        options = self.options if typed else ["--no-input", *self.options]
        return subprocess.run(
            [sys.executable, "-m", "cookiecutter", *options, str(template()), *arguments],
            input="".join(f"{line}\n" for line in typed or ()),
            env=environment({"TMPDIR": str(self.temporary), **(env or {})}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def bake(self, **answers: str) -> BakedProject:
        """Generate a project from answers given as `key=value`."""
        done = self.cookiecutter(*(f"{key}={value}" for key, value in answers.items()))
        assert done.returncode == 0, done.stdout + done.stderr
        return BakedProject(self.output / answers.get("project", "late-departures"))
