"""nightly.yml and release.yml of the template, executed; their tools have tests of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import FakeGitHub, Run, push, run_workflow, schedule
from tests.harness.github import git

WHO = ("-c", "user.name=tester", "-c", "user.email=tester@example.org")
TITLE = "The nightly run fails"


@pytest.fixture
def template(ours: Path, tmp_path: Path) -> Path:
    """Return a clone of the template, to be changed."""
    git(tmp_path, "clone", "--quiet", str(ours), "template")
    return tmp_path / "template"


def commit(folder: Path, message: str) -> None:
    git(folder, "add", ".")
    git(folder, *WHO, "commit", "--quiet", "-m", message)


def nightly(folder: Path, github: FakeGitHub, **tests: bool) -> Run:
    """Run nightly.yml where each of its two long jobs takes no time, and passes or not."""
    (folder / "Makefile").write_text(f"test-newest:\n\t{str(tests['newest']).lower()}\n")
    (folder / ".ci" / "run").write_text(f"#!/bin/sh\n[ $1 = test-all ] && {tests['all']}\n".lower())
    workflow = folder / ".github" / "workflows" / "nightly.yml"  # nobody is asked for root here
    text = workflow.read_text().replace("sudo sysctl", "echo sysctl")
    workflow.write_text(text.replace("sudo --preserve-env=CI ", ""))
    commit(folder, "Short tests")
    github.receive(folder, "HEAD:refs/heads/main")
    return run_workflow(folder, "nightly.yml", schedule(folder, private=False), github)


def test_a_night_that_fails_opens_one_issue_and_the_next_is_added_to_it(
    template: Path, tmp_path: Path
) -> None:
    github = FakeGitHub(tmp_path / "github")
    run = nightly(template, github, newest=True, all=True)
    assert run.results == {"newest": "success", "exhaustive": "success", "issue": "skipped"}
    assert github.issues == []
    pages = []
    for failing in ("newest", "exhaustive"):
        run = nightly(template, github, newest=failing != "newest", all=failing == "newest")
        done = dict.fromkeys(("newest", "exhaustive", "issue"), "success")
        assert run.results == done | {failing: "failure"}, run.said
        pages.append(f"https://github.com/{github.repository}/actions/runs/{run.folder.name}")
    [issue] = github.issues
    assert issue["title"] == TITLE
    assert issue["body"].splitlines()[-2:] == [f"- {page}" for page in pages]


@pytest.mark.parametrize(("tag", "result"), [("v9.9.9", "success"), ("v9.9.8", "failure")])
def test_a_tag_that_the_changelog_and_the_list_know_is_released(
    template: Path, tmp_path: Path, tag: str, result: str
) -> None:
    first, github = git(template, "rev-parse", "HEAD"), FakeGitHub(tmp_path / "github")
    with (template / "tests" / "releases.txt").open("a") as stream:
        stream.write(f"v9.9.9 {first}\n")
    changes = template / "CHANGELOG.md"
    changes.write_text(f"{changes.read_text()}\n## 9.9.9 - 2030-01-01\n\n- Something new.\n")
    commit(template, "Release 9.9.9")
    git(template, "tag", tag)
    github.receive(template, f"refs/tags/{tag}")
    event = push(template, github.repository, f"refs/tags/{tag}", private=False)
    run = run_workflow(template, "release.yml", event, github)
    assert run.results == {"release": result}, run.said
    notes = {tag: it["notes"] for tag, it in github.releases.items()}
    assert notes == ({"v9.9.9": "- Something new.\n"} if result == "success" else {})
