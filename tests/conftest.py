"""Generated projects to test, and the rule that a skipped test fails in CI."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "<<cookiecutter.project>>"
Done = subprocess.CompletedProcess[str]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which a generated project finds its own interpreter.

    The template's virtual environment would stand in for the project's, and without byte code
    every import of the heavy libraries takes two to three times as long.
    """
    away = {"VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "GITHUB_EVENT_NAME"}
    return {k: v for k, v in os.environ.items() if k not in away} | dict(extra or {})


@dataclass(frozen=True)
class BakedProject:
    """A generated project and the commands a user would run in it."""

    path: Path

    @property
    def package(self) -> str:
        """The import name of the user's package."""
        entry = self.toml("pyproject.toml")["project"]["entry-points"]["model_delivery"]
        return str(entry["package"])

    def toml(self, name: str) -> dict[str, dict[str, dict[str, dict[str, str]]]]:
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

    def ml(self, *arguments: str, check: bool = True, timeout: float = 600) -> Done:
        """Run `uv run ml …`."""
        return self.run("uv", "run", "ml", *arguments, check=check, timeout=timeout)


class Baker:
    """Runs cookiecutter as a user does, apart from that user's own settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "out"
        self.output.mkdir()
        self.config = folder / "cookiecutter.yaml"
        self.config.write_text(
            f"cookiecutters_dir: '{folder / 'cookiecutters'}'\nreplay_dir: '{folder / 'replay'}'\n"
        )

    def cookiecutter(
        self,
        *arguments: str,
        typed: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run cookiecutter with `key=value` arguments, or with lines typed at its prompts."""
        options = ["--config-file", str(self.config), "--output-dir", str(self.output)]
        if typed is None:
            options.append("--no-input")
        return subprocess.run(
            [sys.executable, "-m", "cookiecutter", *options, str(ROOT), *arguments],
            input="".join(f"{line}\n" for line in typed or ()),
            env=environment(env),
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


@pytest.fixture
def baker(tmp_path: Path) -> Baker:
    """Return a baker with a folder of its own."""
    return Baker(tmp_path)


@pytest.fixture
def bake(baker: Baker) -> Callable[..., BakedProject]:
    """Return a function that generates a project from `key="value"` answers."""
    return baker.bake


@pytest.fixture(scope="session")
def baked(tmp_path_factory: pytest.TempPathFactory) -> BakedProject:
    """Return one default render, shared: do not write into it."""
    return Baker(tmp_path_factory.mktemp("baked")).bake()


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> BakedProject:
    """Return a default render as a user has it after the printed steps: synced and committed.

    Shared: a test that changes it copies it first (its environment is not relocatable: run
    `uv sync` in the copy).
    """
    project = Baker(tmp_path_factory.mktemp("ready")).bake()
    project.run("git", "init", "--quiet", "--initial-branch", "main")
    project.run("uv", "sync", "--quiet")
    project.run("git", "add", ".")
    who = ("-c", "user.name=tester", "-c", "user.email=tester@example.org")
    project.run("git", *who, "commit", "--quiet", "-m", "Start from the template")
    return project


def missing_packages(*packages: str) -> list[str]:
    """Return those Debian packages that are not installed here."""
    missing = []
    for package in packages:
        query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
        try:
            done = subprocess.run(query, capture_output=True, text=True, check=False)
        except FileNotFoundError:  # not a Debian
            return list(packages)
        if done.stdout != "installed":
            missing.append(package)
    return missing


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `debian(...)` whose packages are not here, naming them."""
    wanted = [str(name) for mark in item.iter_markers("debian") for name in mark.args]
    missing = missing_packages(*wanted)
    if missing:
        pytest.skip(f"sudo apt-get install -y {' '.join(missing)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure in CI: a promise that was not checked is not kept."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report
