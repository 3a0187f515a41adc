"""Each linter is proved to bite, and the template's own code is clean.

That the linters find nothing in either `.github/` is `test_workflows_static.py`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests import test_workflows_static as static
from tests.baking import ROOT, BakedProject, Done
from tests.workflow_rules import Tree

INSIDE = re.compile("^from model_delivery", re.MULTILINE)
CHECKOUT = "actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1"
SOUND = f"""\
name: Sound
on: push
permissions: {{}}
concurrency:
  group: sound
  cancel-in-progress: false
jobs:
  build:
    name: Build
    runs-on: ubuntu-24.04
    timeout-minutes: 5
    steps:
      - name: Check out the code
        uses: {CHECKOUT}
        with:
          persist-credentials: false
      - name: Say hello
        run: echo hello
"""

ACTION = """\
name: Set up
description: Install what is needed
runs:
  using: composite
  steps:
    - { name: Say hello, shell: bash, run: echo hello }
"""
DEPENDABOT = """\
version: 2
updates:
  - package-ecosystem: github-actions
    directory: /
    schedule: { interval: weekly }
    cooldown: { default-days: 7 }
    groups: { actions: { patterns: ["*"] } }
"""

# Each defect with the linter that is there to find it, and what it says.
DEFECTS = {
    "an action by its tag": (CHECKOUT, "actions/checkout@v7", "unpinned-uses"),
    "a token left behind": ("persist-credentials: false", "fetch-depth: 1", "artipacked"),
    "a title that becomes script": (
        "echo hello",
        "echo ${{ github.event.head_commit.message }}",
        "template-injection",
    ),
    "a permission too many": ("permissions: {}", "permissions: write-all", "excessive-permissions"),
    "an unknown context": (
        "run: echo",
        "env: {A: '${{ nosuch.value }}'}\n        run: echo",
        "undefined variable",
    ),
    "an unknown input": ("persist-credentials", "persist-credential", "persist-credential"),
    "a job without an end": ("    timeout-minutes: 5\n", "", "timeout"),
    "an unquoted variable": ("echo hello", "rm -r $HOME/x$1", "SC2086"),
    "a misspelt key": ("runs-on:", "run-on:", "run-on"),
}


def tree(
    folder: Path, workflow: str = SOUND, action: str = ACTION, dependabot: str = DEPENDABOT
) -> Tree:
    """Return a repository with one file of each kind, and the one rule that ours disable."""
    (folder / ".github/workflows").mkdir(parents=True)
    (folder / ".github/workflows/seeded.yml").write_text(workflow)
    (folder / ".github/actions/setup").mkdir(parents=True)
    (folder / ".github/actions/setup/action.yml").write_text(action)
    (folder / ".github/dependabot.yml").write_text(dependabot)
    shutil.copy(ROOT / ".github/zizmor.yml", folder / ".github")
    return Tree(folder)


def test_a_sound_workflow_passes(tmp_path: Path) -> None:
    static.test_linters_find_nothing(tree(tmp_path, SOUND))


@pytest.mark.parametrize("defect", sorted(DEFECTS))
def test_a_seeded_defect_is_found(tmp_path: Path, defect: str) -> None:
    old, new, says = DEFECTS[defect]
    assert SOUND.count(old) == 1
    with pytest.raises(AssertionError, match=says):
        static.test_linters_find_nothing(tree(tmp_path, SOUND.replace(old, new)))


def test_a_defect_of_an_action_is_found(tmp_path: Path) -> None:
    """One that no linter but its schema knows."""
    silent = ACTION.replace("description: Install what is needed\n", "")
    with pytest.raises(AssertionError, match="'description' is a required property"):
        static.test_linters_find_nothing(tree(tmp_path, action=silent))


def test_the_schema_of_dependabot_finds_something_by_itself(tmp_path: Path) -> None:
    long = DEPENDABOT.replace("default-days: 7", "default-days: 700")
    tree(tmp_path, dependabot=long)
    schema = ("--builtin-schema", "vendor.dependabot", ".github/dependabot.yml")
    with pytest.raises(AssertionError, match="700 is greater than the maximum"):
        static.tool("check-jsonschema", *schema, cwd=tmp_path)


@pytest.mark.parametrize(
    ("linter", "arguments", "defect"),
    [
        ("zizmor", ["--offline", ".github"], "an action by its tag"),
        ("actionlint", [".github/workflows/seeded.yml"], "an unknown context"),
        ("jactionlint", [".github/workflows/seeded.yml"], "a job without an end"),
        (
            "check-jsonschema",
            ["--builtin-schema", "vendor.github-workflows", ".github/workflows/seeded.yml"],
            "a misspelt key",
        ),
    ],
)
def test_each_linter_finds_something_by_itself(
    tmp_path: Path, linter: str, arguments: list[str], defect: str
) -> None:
    old, new, says = DEFECTS[defect]
    tree(tmp_path, SOUND.replace(old, new))
    with pytest.raises(AssertionError, match=says):
        static.tool(linter, *arguments, cwd=tmp_path)


def test_shellcheck_finds_something_by_itself(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="SC2086"):
        static.tool("shellcheck", "--shell", "bash", "-", cwd=tmp_path, given="rm -r $HOME/x$1\n")


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check"],
        ["ruff", "check"],
        ["mypy"],
        ["shellcheck", "tools/uv.sh", ".ci/run"],
    ],
    ids=" ".join,
)
def test_the_templates_own_code_is_clean(command: list[str]) -> None:
    static.tool(*command, cwd=ROOT)


def inside(ready: BakedProject, script: Path) -> Done:
    """Check the types of a script, beside its neighbours, by a project's own mypy and packages."""
    return ready.run("uv", "run", "mypy", str(script), env={"MYPYPATH": str(script.parent)})


def test_what_runs_inside_a_project_agrees_with_its_types(ready: BakedProject) -> None:
    """`make lint` leaves these out: what they import is installed there alone."""
    files = [file for file in (ROOT / "tests").rglob("*.py") if not file.match("test_*")]
    scripts = [file for file in files if INSIDE.search(file.read_text())]
    assert len(scripts) >= 6, scripts
    for script in scripts:
        inside(ready, script)


def test_a_script_that_uses_the_machinery_wrongly_is_found(
    ready: BakedProject, tmp_path: Path
) -> None:
    script = tmp_path / "inside.py"
    script.write_text("from model_delivery.project import find_project\n\nfind_project().path\n")
    with pytest.raises(pytest.fail.Exception, match="attr-defined"):
        inside(ready, script)
