"""The part of GitHub that outlives a run: a repository's name, its comments, and its events."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
