"""What the template's own workflows run: a nightly's one issue, and the check of a release."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.baking import ROOT, BakedProject, Done
from tests.harness.github import git
from tools import demo, issue, release

TITLE, TEXT = "It fails", "What fails. The runs:"
WHO = ("-c", "user.name=tester", "-c", "user.email=tester@example.org")
FAKE_GH = """#!{python}
import json, pathlib, sys
file = pathlib.Path(__file__).with_name("issues.json")
issues = json.loads(file.read_text())
kind, verb, *words = sys.argv[1:]
options = dict(zip(words, words[1:]))
if kind == "api":
    path, _, asked = verb.partition("?")
    assert path == "repos/{{owner}}/{{repo}}/issues"
    asked = dict(one.split("=") for one in asked.split("&"))
    assert (asked["creator"], asked["state"]) == ("github-actions%5Bbot%5D", "open")
    ours = [i for i in issues if i["app"] and i["open"]]
    print(json.dumps([{{field: i[field] for field in ("number", "title", "body")}} for i in ours]))
else:
    assert kind == "issue"
    assert options["--body-file"] == "-"
    if verb == "create":
        new = {{"number": len(issues) + 1, "title": options["--title"], "app": True, "open": True}}
        issues.append(new)
    else:
        new = issues[int(words[0]) - 1]
    new["body"] = sys.stdin.read()
    file.write_text(json.dumps(issues))
    print(f"{{verb}} {{new['number']}}")
"""


class Repository:
    """A fake `gh` that keeps issues, and the tool run with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "gh").write_text(FAKE_GH.format(python=sys.executable))
        (folder / "gh").chmod(0o755)
        self.issues = []

    @property
    def issues(self) -> list[dict[str, Any]]:
        """Every issue, oldest first."""
        return list(json.loads((self.folder / "issues.json").read_text()))

    @issues.setter
    def issues(self, issues: list[dict[str, Any]]) -> None:
        (self.folder / "issues.json").write_text(json.dumps(issues))

    def report(self, run: str) -> Done:
        """Run the tool as the workflow does."""
        path = f"{self.folder}:{os.environ['PATH']}"
        return subprocess.run(
            [sys.executable, str(ROOT / "tools" / "issue.py"), TITLE, TEXT],
            env=os.environ | {"PATH": path, "RUN": run},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_a_first_failure_opens_an_issue_and_the_next_adds_its_run(repository: Repository) -> None:
    assert repository.report("run/1").stdout == "create 1\n"
    assert repository.report("run/2").stdout == "edit 1\n"
    (only,) = repository.issues
    assert only["title"] == TITLE
    assert only["body"] == f"{TEXT}\n\n- run/1\n- run/2\n"


def test_an_issue_that_is_closed_or_a_stranger_s_is_left_alone(repository: Repository) -> None:
    others = [
        {"number": 1, "title": TITLE, "body": "closed", "app": True, "open": False},
        {"number": 2, "title": TITLE, "body": "a stranger's", "app": False, "open": True},
        {"number": 3, "title": "Another", "body": "ours", "app": True, "open": True},
    ]
    repository.issues = others
    assert repository.report("run/1").stdout == "create 4\n"
    assert repository.issues[:3] == others


def test_an_issue_keeps_the_newest_runs_each_once() -> None:
    runs = [f"run/{number}" for number in range(issue.RUNS + 5)]
    lines = issue.body(TEXT, [*runs, runs[-1]]).splitlines()
    assert lines == [TEXT, "", *(f"- {run}" for run in runs[5:])]


def test_a_report_that_fails_is_red(repository: Repository) -> None:
    (repository.folder / "gh").write_text("#!/bin/sh\necho 'HTTP 403' >&2\nexit 1\n")
    done = repository.report("run/1")
    assert done.returncode == 1
    assert "HTTP 403" in done.stderr
    assert repository.report("").returncode == 2


CHANGELOG = """# Changelog

## Unreleased

- Not yet.

## 1.2.0 - 2026-11-30

- New.
- And more.

## 1.1.0 - 2026-11-29

- Old.

## 1.0.0 - 2026-11-28
"""


class Template:
    """A repository with the files that a release is checked by."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        git(folder, "init", "--quiet", "--initial-branch", "main")
        self.write("CHANGELOG.md", CHANGELOG)
        self.write("<<cookiecutter.project>>/README.md", "one\n")
        self.commit = self.save()

    def write(self, name: str, text: str) -> None:
        """Write a file."""
        (self.root / name).parent.mkdir(exist_ok=True)
        (self.root / name).write_text(text)

    def save(self) -> str:
        """Commit every file and return the commit."""
        git(self.root, "add", ".")
        git(self.root, *WHO, "commit", "--quiet", "--message", "x")
        return git(self.root, "rev-parse", "HEAD")

    def release(self, tag: str, commit: str, line: str = "{tag} {commit}\n") -> int:
        """Name a tag's commit in the list, commit that, and run the tool there."""
        self.write("tests/releases.txt", "# A comment.\n" + line.format(tag=tag, commit=commit))
        self.save()
        return release.main([tag, str(self.root / "notes.md")], self.root)


@pytest.fixture
def template(tmp_path: Path) -> Template:
    return Template(tmp_path)


def test_a_release_has_its_section_as_notes(template: Template) -> None:
    assert template.release("v1.2.0", template.commit) == 0
    assert (template.root / "notes.md").read_text() == "- New.\n- And more.\n"


@pytest.mark.parametrize(
    ("tag", "line", "says"),
    [
        ("v1.3.0", "{tag} {commit}\n", "CHANGELOG.md needs a section `## 1.3.0 - YYYY-MM-DD`"),
        ("v1.0.0", "{tag} {commit}\n", "CHANGELOG.md needs a section `## 1.0.0 - "),
        ("v1.2", "{tag} {commit}\n", "v1.2 is not vMAJOR.MINOR.PATCH"),
        ("v1.2.0", "v1.1.0 {commit}\n", "tests/releases.txt needs one line `v1.2.0 COMMIT`"),
        ("v1.2.0", "{tag} {commit}\n" * 2, "tests/releases.txt needs one line `v1.2.0 COMMIT`"),
        ("v1.2.0", "{tag} " + "0" * 40 + "\n", "is not in the history of v1.2.0"),
    ],
)
def test_a_tag_that_is_no_release_is_refused(
    template: Template, capsys: pytest.CaptureFixture[str], tag: str, line: str, says: str
) -> None:
    assert template.release(tag, template.commit, line) == 1
    assert says in capsys.readouterr().err
    assert not (template.root / "notes.md").exists()


def test_a_commit_that_makes_other_projects_is_refused(
    template: Template, capsys: pytest.CaptureFixture[str]
) -> None:
    template.write("<<cookiecutter.project>>/README.md", "two\n")
    assert template.release("v1.2.0", template.commit) == 1
    assert "makes other projects than v1.2.0" in capsys.readouterr().err


def test_every_release_so_far_has_notes() -> None:
    lines = (ROOT / "tests" / "releases.txt").read_text().splitlines()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    tags = [line.split(" ")[0] for line in lines if not line.startswith("#")]
    assert tags
    for tag in tags:
        assert release.notes(changelog, tag.removeprefix("v"))


def test_no_day_holds_a_project_back_once_it_is_lifted(baked: BakedProject, tmp_path: Path) -> None:
    for name in filter(lambda name: name.suffix in (".py", ".toml"), baked.files()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(baked.text(str(name)))
    assert demo.lift(tmp_path) == [
        "pyproject.toml",
        "delivery/src/model_delivery/checks/deepchecks_suites.py",
        "delivery/src/model_delivery/checks/mlflow_view.py",
    ]
    text = "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert "exclude-newer" not in text
    project = BakedProject(tmp_path)
    assert project.toml("pyproject.toml")["project"] == baked.toml("pyproject.toml")["project"]
    with pytest.raises(demo.DemoError, match="names a day"):  # nothing would be newer
        demo.lift(tmp_path)


def test_the_newest_versions_are_tested_and_shipped_in_a_fresh_project(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken: list[str] = []

    def record(*command: str, cwd: Path, capture: bool = False) -> str:
        taken.append(" ".join(command))
        if "cookiecutter" in command:
            project = Path(command[command.index("--output-dir") + 1]) / demo.PROJECT
            project.mkdir(parents=True)
            (project / "pyproject.toml").write_text('[tool.uv]\nexclude-newer = "2026"\n')
        elif command[:2] == ("uv", "sync"):
            assert "exclude-newer" not in (cwd / "pyproject.toml").read_text()
        return ""

    monkeypatch.setattr(demo, "run", record)
    (tmp_path / "newest" / demo.PROJECT / "old").mkdir(parents=True)
    assert demo.main(["newest", "--folder", str(tmp_path / "newest")]) == 0
    assert not (tmp_path / "newest" / demo.PROJECT / "old").exists()
    order = ["uv sync", "uv run pytest", "uv run ml ship --until register"]
    assert [command for command in taken if command.startswith("uv")] == order
    assert taken[-1].startswith("env MLFLOW_TRACKING_URI=sqlite:///")
    assert taken[-1].endswith("uv run ml history --ui")
