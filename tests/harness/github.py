"""The part of GitHub that outlives a run: a repository, its comments, its releases, and events."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

HOOK = """#!/bin/sh
case $STANDIN_PERMISSIONS in *'"contents": "write"'*) exit 0 ;; esac
echo "Permission to this repository denied" >&2
exit 1
"""


@dataclass(frozen=True)
class Comment:
    """A comment on a pull request: the header that finds it again, its text, how often changed."""

    number: int
    header: str
    body: str
    updates: int


@dataclass(frozen=True)
class FakeGitHub:
    """Holds, in a folder, what runs of one repository share on GitHub."""

    folder: Path
    repository: str = "octo-org/late-departures"

    @property
    def comments(self) -> list[Comment]:
        """Every comment, oldest first."""
        file = self.folder / "comments.json"
        return [Comment(**c) for c in json.loads(file.read_text())] if file.exists() else []

    @property
    def origin(self) -> Path:
        """The bare repository: only a token that may write contents may push to it."""
        bare = self.folder / "origin.git"
        if not bare.exists():
            bare.mkdir(parents=True)
            git(bare, "init", "--quiet", "--bare", "--initial-branch", "main")
            hook = bare / "hooks" / "pre-receive"
            hook.parent.mkdir(exist_ok=True)
            hook.write_text(HOOK)
            hook.chmod(0o755)
        return bare

    @property
    def registry(self) -> Mapping[str, str]:
        """The commit of each branch and the SHA-256 of each asset, by name."""
        form = "--format=%(objectname) %(refname)"
        rows = [row.split() for row in git(self.origin, "for-each-ref", form).splitlines()]
        assets = self.folder.glob("releases/*/*")
        return {name: commit for commit, name in rows} | {
            file.name: sha256(file.read_bytes()).hexdigest() for file in assets
        }

    def job(self) -> dict[str, str]:
        """Return the variables of a job that may write, for commands outside of a workflow."""
        return {
            "GITHUB_ACTIONS": "true",
            "GITHUB_REPOSITORY": self.repository,
            "GH_TOKEN": "of-a-stand-in",
            "STANDIN_GITHUB": str(self.folder),
            "STANDIN_PERMISSIONS": json.dumps({"contents": "write"}),
            "PATH": f"{Path(__file__).with_name('standins')}:{os.environ['PATH']}",
        }

    def next_run(self) -> Path:
        """Make the folder of the next run; its name is the run's number."""
        runs = self.folder / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        folder = runs / str(sum(1 for _ in runs.iterdir()) + 1)
        folder.mkdir()
        return folder


@dataclass(frozen=True)
class Event:
    """What starts a workflow: the event's name and the payload that GitHub would send."""

    name: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class PullRequest:
    """A pull request; a fork's head lies in another repository."""

    number: int = 7
    title: str = "A change"
    branch: str = "change"
    fork: bool = False

    def event(self, project: Path, repository: str, action: str = "opened") -> Event:
        """Return the event of a push to it: its head is the commit that is checked out."""
        sha = git(project, "rev-parse", "HEAD")
        owner, name = repository.split("/")
        head = f"stranger/{name}" if self.fork else repository
        base = {"full_name": repository, "default_branch": "main", "owner": {"login": owner}}
        request = {
            "number": self.number,
            "title": self.title,
            "body": self.title,
            "head": {
                "ref": self.branch,
                "sha": sha,
                "repo": {"full_name": head, "fork": self.fork},
            },
            "base": {"ref": "main", "sha": sha, "repo": base},
            "user": {"login": head.split("/", maxsplit=1)[0]},
        }
        payload = {"number": self.number, "repository": base, "pull_request": request}
        return Event("pull_request", {"action": action, **payload})


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder and return what it printed."""
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
