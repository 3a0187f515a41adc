"""A test that needs a Debian package says so; in CI, where it must run, a skip is a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.baking import ROOT, Done, environment

SEEDED = """
import pytest

@pytest.mark.debian("no-such-package", "neither-this")
def test_needs_packages(): ...

def test_skips():
    pytest.skip("a reason")

@pytest.mark.debian("dpkg")
@pytest.mark.xfail(reason="known", strict=True)
def test_fails_as_expected():
    assert False
"""


def run(folder: Path, ci: str) -> Done:
    """Run the seeded tests under the hooks of our own conftest."""
    (folder / "conftest.py").write_text(
        "from tests.conftest import pytest_runtest_makereport, pytest_runtest_setup\n"
    )
    (folder / "test_seeded.py").write_text(SEEDED)
    options = ["-rs", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(folder), str(folder)],
        env=environment({"CI": ci}) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.debian("dpkg")
def test_a_skip_names_the_command_that_ends_it(tmp_path: Path) -> None:
    done = run(tmp_path, "")
    assert done.returncode == 0, done.stdout
    assert "sudo apt-get install -y no-such-package neither-this" in done.stdout
    assert "2 skipped, 1 xfailed" in done.stdout


@pytest.mark.debian("dpkg")
def test_in_ci_a_skip_is_a_failure(tmp_path: Path) -> None:
    done = run(tmp_path, "true")
    assert done.returncode == 1, done.stdout
    assert "skipped, which CI does not allow" in done.stdout
    assert "apt-get install -y no-such-package neither-this" in done.stdout
    assert "1 failed, 1 xfailed, 1 error" in done.stdout
