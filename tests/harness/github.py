"""The part of GitHub that outlives a run: a repository, its releases, images, issues, comments."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from .events import Event, PullRequest, dispatch, push
from .repository import contains, git
from .results import Run

__all__ = ["Comment", "Event", "FakeGitHub", "PullRequest", "dispatch", "git", "push"]

SHORT = {
    "auth setup-git": "login",
    "api repos/REPOSITORY --jq .visibility": "plan",
    "api repos/REPOSITORY/issues": "issues",
    "api --paginate repos/REPOSITORY/releases": "releases",
    "release download model-store": "get",
    "release upload model-store": "put",
    "release create model-store": "store",
    "release create": "publish",
    "release upload": "add",
    "attestation verify": "verify",
    "label create": "label",
    "issue create": "open",
    "issue edit": "edit",
}
"""How `FakeGitHub.asked` calls what is asked of `gh`, by how it begins."""
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
    """Holds, in a folder, what runs of one repository share on GitHub.

    Any number of runs may use it at the same time.

    Attributes
    ----------
    folder
        Where it is kept.
    repository
        Its name, with the owner's.
    paid
        Whether the plan has what others have for public repositories only: attestations.
    api
        What `gh api PATH` answers, by path; any other is not found.
    """

    folder: Path
    repository: str = "octo-org/late-departures"
    paid: bool = False
    api: dict[str, Any] = field(default_factory=dict)

    @property
    def comments(self) -> list[Comment]:
        """Every comment, oldest first."""
        return [Comment(**comment) for comment in self._state("comments", [])]

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Every call of `gh` in order, refused ones too: `run`, `job` and its `words`."""
        return list(self._state("calls", []))

    @property
    def said(self) -> list[str]:
        """Every call of `gh` in order, as one line each."""
        return [" ".join(["gh", *call["words"]]) for call in self.calls]

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the registry's branch holds, the oldest first; nothing where there is none."""
        if not git(self.origin, "for-each-ref", "refs/heads/model-registry"):
            return []
        names = git(self.origin, "ls-tree", "--name-only", "model-registry", "events/").splitlines()
        return [json.loads(git(self.origin, "show", f"model-registry:{name}")) for name in names]

    def asked(self, run: Run) -> dict[str, str]:
        """Return what each job of a run asked of `gh`, in order and in a word each.

        `set-up` is what a job begins with that has its tools set up. The bytes of a digest are
        `A` for the one that was registered first, and so on.
        """
        made = [*dict.fromkeys(e["digest"] for e in self.events if e["type"] == "registered")]
        found: dict[str, list[str]] = {}
        for call in (one for one in self.calls if one["run"] == run.folder.name):
            line = " ".join(call["words"]).replace(self.repository, "REPOSITORY")
            word = next((SHORT[start] for start in SHORT if line.startswith(start)), line)
            for digest in re.findall(r"\b([0-9a-f]{64})(?:-\w+)?\.tar\.xz", line):
                word += f":{chr(ord('A') + made.index(digest)) if digest in made else '?'}"
            found.setdefault(call["job"], []).append(word)
        said = {job: " ".join(words) for job, words in found.items()}
        return {job: words.replace("login plan", "set-up") for job, words in said.items()}

    @property
    def releases(self) -> dict[str, dict[str, Any]]:
        """Each release by its tag: `title`, `notes`, `prerelease`, `latest`, and its `assets`."""
        return {
            tag: {**release, "assets": sorted(f.name for f in self.assets(tag).iterdir())}
            for tag, release in self._state("releases", {}).items()
        }

    def draft(self, tag: str, notes: str, hidden: bool = False) -> None:
        """Make the release of a tag without files, as people do in the web page, or a draft."""
        made = {"title": tag, "notes": notes, "latest": True, "prerelease": False}
        made |= {"draft": True} if hidden else {}
        self.assets(tag).mkdir(parents=True)
        releases = self._state("releases", {}) | {tag: made}
        (self.folder / "releases.json").write_text(json.dumps(releases))

    def assets(self, tag: str) -> Path:
        """Return the folder with the assets of a release."""
        return self.folder / "releases" / tag

    @property
    def attestations(self) -> dict[str, str]:
        """The name of each attested subject by its SHA-256."""
        return {found["sha256"]: found["name"] for found in self.statements}

    @property
    def statements(self) -> list[dict[str, str]]:
        """Every attested subject: `name`, `sha256`, and the `run` and `job` that attested it."""
        return list(self._state("attestations", []))

    @property
    def images(self) -> dict[str, dict[str, Any]]:
        """Each pushed image by its tag: `digest`, `labels` and `build-args`."""
        return dict(self._state("images", {}))

    @property
    def issues(self) -> list[dict[str, Any]]:
        """Every issue, oldest first: `number`, `title`, `body`, `state`, `labels`."""
        return list(self._state("issues", []))

    def _state(self, name: str, empty: Any) -> Any:
        file = self.folder / f"{name}.json"
        return json.loads(file.read_text()) if file.exists() else empty

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
        """The commit of each branch and tag and the SHA-256 of each asset of model-store."""
        form = "--format=%(objectname) %(refname)"
        listed = git(self.origin, "for-each-ref", form, "refs/heads", "refs/tags")
        rows = [row.split() for row in listed.splitlines()]
        assets = self.assets("model-store").glob("*")
        return {name: commit for commit, name in rows} | {
            file.name: sha256(file.read_bytes()).hexdigest() for file in assets
        }

    def open(self) -> None:
        """Let the stand-ins know what the test says of this repository."""
        _ = self.origin  # it is there before anyone logs in
        for name, value in (("api", self.api), ("plan", self.paid)):
            new = self.folder / f"{name}-{uuid.uuid4().hex}"
            new.write_text(json.dumps(value))
            new.rename(self.folder / f"{name}.json")

    def job(self) -> dict[str, str]:
        """Return the variables of a job that may write, for commands outside of a workflow."""
        self.open()
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
