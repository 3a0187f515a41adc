"""The part of GitHub that outlives a run: a repository, its comments, its releases, and events."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
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


NOTHING = "0" * 40
"""The commit before the first."""


@dataclass(frozen=True)
class FakeGitHub:
    """Holds, in a folder, what runs of one repository share on GitHub.

    Any number of runs may use it at the same time.
    """

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
            new = self.folder / f"origin-{uuid.uuid4().hex}"
            new.mkdir(parents=True)
            git(new, "init", "--quiet", "--bare", "--initial-branch", "main")
            git(new, "config", "uploadpack.allowAnySHA1InWant", "true")  # as GitHub does
            hook = new / "hooks" / "pre-receive"
            hook.parent.mkdir(exist_ok=True)
            hook.write_text(HOOK)
            hook.chmod(0o755)
            try:
                new.rename(bare)
            except OSError:  # another thread was first
                shutil.rmtree(new)
        return bare

    def receive(self, project: Path, *refs: str) -> None:
        """Take branches and tags of a project, as when a person pushes them."""
        may = {"STANDIN_PERMISSIONS": json.dumps({"contents": "write"})}
        git(project, "push", "--quiet", str(self.origin), *refs, env=may)

    def offer(self, project: Path, event: Event) -> None:
        """Make the commit of an event one that can be checked out.

        Raises
        ------
        LookupError
            When a branch or tag was never pushed.
        """
        if event.ref.startswith("refs/pull/"):  # these are GitHub's own: nobody pushes them
            git(self.origin, "fetch", "--quiet", str(project), f"+{event.sha}:{event.ref}")
            return
        known = git(self.origin, "for-each-ref", "--format=%(refname)").splitlines()
        if event.ref not in known or not contains(self.origin, event.sha):
            raise LookupError(f"{event.ref} at {event.sha[:12]} is not in origin; see `receive`")

    @property
    def registry(self) -> Mapping[str, str]:
        """The commit of each branch and the SHA-256 of each asset, by name."""
        form = "--format=%(objectname) %(refname)"
        listed = git(self.origin, "for-each-ref", form, "refs/heads", "refs/tags")
        rows = [row.split() for row in listed.splitlines()]
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
        number = 1 + sum(1 for _ in runs.iterdir())
        while True:
            try:
                (folder := runs / str(number)).mkdir()
            except FileExistsError:  # another run started just now
                number += 1
            else:
                return folder


@dataclass(frozen=True)
class Event:
    """What starts a workflow: name and payload as GitHub sends them, and the commit it is about."""

    name: str
    payload: dict[str, Any]
    ref: str
    sha: str


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


def contains(folder: Path, sha: str) -> bool:
    """Tell whether a repository holds a commit."""
    command = ["git", "-C", str(folder), "cat-file", "-e", f"{sha}^{{commit}}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def git(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run git in a folder and return what it printed."""
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **env} if env else None,
    )
    return done.stdout.strip()
