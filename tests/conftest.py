"""Generated projects to test, and the rule that a skipped test fails in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests import downloads
from tests.baking import BakedProject, Baker, template
from tests.harness.github import git

WHO = ("-c", "user.name=tester", "-c", "user.email=tester@example.org")


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
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BakedProject]:
    """Return a default render as a user has it after the printed steps: synced and committed.

    Shared: a test that changes it copies it first, with `copy`. From here on all that is installed
    comes with byte code.
    """
    project = Baker(tmp_path_factory.mktemp("ready")).bake()
    project.run("git", "init", "--quiet", "--initial-branch", "main")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    found = downloads.sync(project, shared / "downloads")
    project.run("git", "add", ".")
    who = ("-c", "user.name=tester", "-c", "user.email=tester@example.org")
    project.run("git", *who, "commit", "--quiet", "-m", "Start from the template")
    with pytest.MonkeyPatch.context() as patch:
        if found:
            patch.setenv("UV_CACHE_DIR", str(found))
        yield project


@pytest.fixture(scope="session")
def trained(ready: BakedProject, tmp_path_factory: pytest.TempPathFactory) -> BakedProject:
    """Return a project with data and a trained candidate, shared: add to `.ml`, change nothing."""
    project = ready.copy(tmp_path_factory.mktemp("trained"))
    project.ml("data")
    project.ml("train")
    return project


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the template as a repository of its own: its files as they are now, committed."""
    folder = tmp_path_factory.mktemp("ours") / "template"
    shutil.copytree(template(), folder)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", ".")
    git(folder, *WHO, "commit", "--quiet", "-m", "The template")
    return folder


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: of two workers one would end with them alone.

    The one that asserts deadlines comes last of them: eight deliveries at once are not beside it.
    """
    longest = ("test_deliveries.py", "test_workflows.py", "test_watching.py", "test_canary.py")
    places = {name: place for place, name in enumerate(longest)}
    items.sort(key=lambda item: places.get(item.path.name, len(longest)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure in CI: a promise that was not checked is not kept."""
    report = yield
    expected = hasattr(report, "wasxfail")
    if report.skipped and not expected and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report
