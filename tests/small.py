"""A repository that holds nothing but small workflows, to test the harness with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness import Event, FakeGitHub, Job, Run, dispatch, push, run_workflow
from tests.harness.github import git

WHO = ("-c", "user.name=A", "-c", "user.email=a@example.org")
CHECKOUT = {"name": "Check out", "uses": "actions/checkout@v0"}
LOGIN = "GH_TOKEN=of-a-stand-in gh auth setup-git"


def checkout(**inputs: Any) -> dict[str, Any]:
    """Return a step that checks out, without leaving its token behind."""
    given = {key.replace("_", "-"): value for key, value in inputs.items()}
    return {**CHECKOUT, "with": {"persist-credentials": False, **given}}


def use(action: str, *, id: str = "used", **inputs: Any) -> dict[str, Any]:
    """Return a step that uses an action."""
    given = {key.replace("_", "-"): value for key, value in inputs.items()}
    return {"name": f"Use {action}", "id": id, "uses": action, "with": given}


def run(command: str, **environment: str) -> dict[str, Any]:
    """Return a step that runs a command; `id` is `it`."""
    return {"name": "Run", "id": "it", "env": environment, "run": command}


def job(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a job; keys with a hyphen are written with an underscore."""
    given = {key.replace("_", "-"): value for key, value in more.items()}
    least = {"runs-on": "ubuntu-24.04", "timeout-minutes": 1, "permissions": {"contents": "read"}}
    return {**least, **given, "steps": list(steps)}


def workflow(on: Any = ("push", "workflow_dispatch"), **jobs: dict[str, Any]) -> str:
    """Return a workflow's text."""
    triggers = on if isinstance(on, dict) else list(on)
    # JSON is YAML.
    return json.dumps({"name": "Small", "on": triggers, "permissions": {}, "jobs": jobs})


def called(
    inputs: tuple[str, ...] = (), outputs: Mapping[str, str] | None = None, **jobs: Any
) -> str:
    """Return the text of a workflow that others call."""
    trigger = {
        "inputs": {name: {"type": "string", "required": True} for name in inputs},
        "outputs": {name: {"value": value} for name, value in (outputs or {}).items()},
    }
    return workflow({"workflow_call": trigger}, **jobs).replace("Small", "Called")


@dataclass(frozen=True)
class Repository:
    """A project, and its repository on GitHub."""

    folder: Path

    @property
    def project(self) -> Path:
        """The clone on somebody's laptop."""
        return self.folder / "project"

    @property
    def github(self) -> FakeGitHub:
        """What runs share."""
        return FakeGitHub(self.folder / "github")

    def commit(self, message: str = "One", **workflows: str) -> None:
        """Commit workflows, by their names without `.yml`, to the branch that is checked out."""
        place = self.project / ".github" / "workflows"
        if not place.exists():
            place.mkdir(parents=True)
            git(self.project, "init", "--quiet", "--initial-branch", "main")
        for name, text in workflows.items():
            (place / f"{name}.yml").write_text(text)
        git(self.project, "add", ".")
        git(
            self.project,
            *WHO,
            "commit",
            "--quiet",
            "--allow-empty",
            "--cleanup=verbatim",
            "-m",
            message,
        )

    def push(self, ref: str = "refs/heads/main") -> Event:
        """Push a branch or a tag, and return the event of it."""
        self.github.receive(self.project, ref)
        return push(self.project, self.github.repository, ref)

    def dispatch(self, **inputs: str) -> Event:
        """Return the event of a start by hand."""
        return dispatch(self.project, self.github.repository, inputs=inputs)

    def run(self, event: Event | None = None, **options: Any) -> Run:
        """Run `small.yml`, by default on a push of what is checked out to `main`."""
        return run_workflow(self.project, "small.yml", event or self.push(), self.github, **options)


def once(folder: Path, *steps: dict[str, Any], **more: Any) -> Job:
    """Run a workflow of one job on a push to `main`, and return that job."""
    repository = Repository(folder)
    repository.commit(small=workflow(only=job(*steps, **more)))
    return repository.run().jobs["only"]
