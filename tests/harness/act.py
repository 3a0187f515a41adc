"""How act is called: on which event, with which stand-ins, and in whose place."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from . import programs
from .alone import OBSERVER
from .events import Event
from .github import FakeGitHub
from .hosts import SelfHosted
from .repository import git
from .sandbox import seen
from .workflow import LABELS


@dataclass(frozen=True)
class Setting:
    """What all calls of one run have in common: its workflow is the one that calls the others."""

    workflow: str
    event: Event
    github: FakeGitHub
    folder: Path
    actions: Mapping[tuple[str, str], Path]
    variables: Mapping[str, str]
    cold: bool


@dataclass(frozen=True)
class Part:
    """One job: id, what its token may do, folder, host, workflow, the mark of its processes."""

    job: str
    permissions: Mapping[str, str]
    scratch: Path
    host: SelfHosted | None
    file: str
    mark: str = field(default_factory=lambda: f"github_{uuid.uuid4()}")


def repository(setting: Setting, scratch: Path) -> Path:
    """Make the repository that act looks at: nothing but the commit that the run is about."""
    folder = scratch / "repository"
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet")
    (folder / ".git" / "HEAD").write_text(f"{setting.event.sha}\n")
    (scratch / "event.json").write_text(json.dumps(setting.event.payload))
    (scratch / "nothing").touch()
    (scratch / "act").mkdir()
    return folder


def own_environment(part: Part) -> dict[str, str]:
    """Return the environment of act itself."""
    own = {"HOME": str(seen(part.scratch / "act")), "RUNNER_TRACKING_ID": part.mark}
    return programs.environment(_machine(part)) | own


def words(setting: Setting, part: Part) -> list[str]:
    """Return the command that runs a job."""
    scratch = part.scratch
    command = [str(seen(programs.program("act"))), setting.event.name, "--json", "--job", OBSERVER]
    command += ["--workflows", str(seen(scratch / "workflow.yml"))]
    command += ["--eventpath", str(seen(scratch / "event.json"))]
    command += ["--action-cache-path", str(seen(scratch / "work"))]
    command += ["--actor", setting.github.repository.split("/")[0], "--defaultbranch", "main"]
    command += ["--rm", "--no-cache-server", "--action-offline-mode", "--pull=false"]
    command += ["--concurrent-jobs", "1", "--no-skip-checkout"]
    for flag in ("--env-file", "--input-file", "--secret-file", "--var-file"):
        command += [flag, str(seen(scratch / "nothing"))]
    command += ["--secret", "GITHUB_TOKEN=of-a-stand-in"]
    for key, value in setting.variables.items():
        command += ["--var", f"{key}={value}"]
    for label in LABELS:
        command += ["--platform", f"{label}=-self-hosted"]
    for (slug, ref), folder in setting.actions.items():
        command += ["--local-repository", f"{slug}@{ref}={seen(folder)}"]
    for key, value in _environment(setting, part).items():
        command += ["--env", f"{key}={value}"]
    return command


def _environment(setting: Setting, part: Part) -> dict[str, str]:
    number = setting.folder.name
    return {
        **programs.environment(_machine(part)),
        **({"UV_CACHE_DIR": str(seen(part.scratch / "downloads"))} if setting.cold else {}),
        **(part.host.variables if part.host else {}),
        "ACT": "",  # a product must not be able to notice
        "CI": "true",
        "RUNNER_ENVIRONMENT": "self-hosted" if part.host else "github-hosted",
        "RUNNER_TRACKING_ID": part.mark,
        "GITHUB_REPOSITORY": setting.github.repository,
        "GITHUB_RUN_ID": number,
        "GITHUB_RUN_NUMBER": number,
        "GITHUB_WORKFLOW_REF": (
            f"{setting.github.repository}/.github/workflows/{setting.workflow}@{setting.event.ref}"
        ),
        "STANDIN_RUN": str(seen(setting.folder)),
        "STANDIN_GITHUB": str(seen(setting.github.folder)),
        "STANDIN_JOB": part.job,
        "STANDIN_FILE": f".github/workflows/{part.file}",
        "STANDIN_PRIVATE": json.dumps(setting.event.private),
        "STANDIN_PERMISSIONS": json.dumps(_granted(setting, part)),
    }


def _machine(part: Part) -> Path:
    return part.host.folder if part.host else part.scratch


def _granted(setting: Setting, part: Part) -> dict[str, str]:
    """Return what the job's token may really do: a fork's pull request never writes."""
    head = setting.event.payload.get("pull_request", {}).get("head", {}).get("repo", {})
    fork = head.get("full_name", setting.github.repository) != setting.github.repository
    return {k: "read" if fork and v == "write" else v for k, v in part.permissions.items()}
