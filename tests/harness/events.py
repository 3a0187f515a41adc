"""What starts a workflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .repository import git

NOTHING = "0" * 40
"""The commit before the first."""


@dataclass(frozen=True)
class Event:
    """What starts a workflow: name and payload as GitHub sends them, and the commit it is about."""

    name: str
    payload: dict[str, Any]
    ref: str
    sha: str
    hidden: bool = False
    """Whether the repository is private, where the payload does not say it."""

    @property
    def private(self) -> bool:
        """Whether strangers cannot see the repository."""
        said: dict[str, Any] = self.payload.get("repository", {"private": self.hidden})
        return bool(said.get("private"))


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
        ref = f"refs/pull/{self.number}/merge"
        return Event("pull_request", {"action": action, **payload}, ref, sha)


def push(project: Path, repository: str, ref: str, *, private: bool = True) -> Event:
    """Return the event of a push: `ref` is the full name of a branch or a tag of the project."""
    sha = git(project, "rev-parse", f"{ref}^{{commit}}")
    parents = git(project, "rev-list", "--parents", "--max-count=1", sha).split()[1:]
    payload = {
        "ref": ref,
        "before": parents[0] if parents and ref.startswith("refs/heads/") else NOTHING,
        "after": sha,
        "created": False,
        "deleted": False,
        "forced": False,
        "head_commit": {"id": sha, "message": git(project, "log", "-1", "--format=%B", sha)},
        **_repository(repository, private),
    }
    return Event("push", payload, ref, sha)


def dispatch(
    project: Path,
    repository: str,
    ref: str = "refs/heads/main",
    inputs: Mapping[str, str] | None = None,
    *,
    private: bool = True,
) -> Event:
    """Return the event of somebody who starts a workflow by hand, with inputs, on a ref."""
    sha = git(project, "rev-parse", f"{ref}^{{commit}}")
    payload = {"ref": ref, "inputs": dict(inputs or {}), **_repository(repository, private)}
    return Event("workflow_dispatch", payload, ref, sha)


def schedule(project: Path, *, private: bool = True) -> Event:
    """Return the event of a schedule, on the default branch: it says nothing of the repository."""
    ref = "refs/heads/main"
    sha = git(project, "rev-parse", f"{ref}^{{commit}}")
    return Event("schedule", {"schedule": "17 3 * * 1"}, ref, sha, private)


def _repository(name: str, private: bool) -> dict[str, Any]:
    owner = name.split("/", maxsplit=1)[0]
    return {
        "repository": {
            "full_name": name,
            "default_branch": "main",
            "private": private,
            "visibility": "private" if private else "public",
            "owner": {"login": owner},
        },
        "sender": {"login": owner},
    }
