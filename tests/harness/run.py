"""Runs a workflow job by job and collects what came of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from . import log, sandbox, standins
from .github import Event, FakeGitHub, git
from .results import HarnessError, Job, LeftBehindError, Run
from .sandbox import seen
from .workflow import LABELS, alone, check_supported, order, permissions, read_yaml

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PASSED = (
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_NATIVE_TLS"),
    *("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"),  # some processors compute wrong results without
)
"""What a job keeps of this machine's environment: how to reach a registry, and to compute right."""

NO_LOGIN = '[url "file:///no-login/"]\n\tinsteadOf = https://github.com/\n'


@dataclass(frozen=True)
class _Scenario:
    """What the jobs of one run have in common."""

    project: Path
    workflow: dict[str, Any]
    event: Event
    github: FakeGitHub
    folder: Path
    actions: dict[tuple[str, str], Path]


def run_workflow(
    project: Path,
    name: str,
    event: Event,
    github: FakeGitHub,
    *,
    taken: Mapping[str, Run] | None = None,
) -> Run:
    """Run a workflow of a project on an event.

    Parameters
    ----------
    project
        A git repository; its HEAD is what jobs check out, whatever else lies in its folder.
    name
        The workflow's file name.
    event
        What starts it; see `PullRequest.event`.
    github
        What outlives the run: the comments, the repository that is `origin`, its releases.
    taken
        Jobs not to run again but to take over, with result, outputs and artifacts, from an
        earlier run whose inputs were the same.

    Returns
    -------
    Run
        Every job of the workflow.

    Raises
    ------
    HarnessError
        When act could not run a job.
    LeftBehindError
        When a job left processes running.
    """
    workflow = read_yaml(project / ".github" / "workflows" / name)
    check_supported(workflow)
    folder = github.next_run()
    actions = standins.prepare(project, workflow, folder / "actions")
    scenario = _Scenario(project, workflow, event, github, folder, actions)
    jobs: dict[str, Job] = {}
    for job in order(workflow):
        source = (taken or {}).get(job)
        jobs[job] = _take(source, job, folder) if source else _run_job(scenario, job, jobs)
    return Run(jobs, folder)


def _take(source: Run, job: str, folder: Path) -> Job:
    index = Run({}, folder).artifacts
    for name, owner in source.artifacts.items():
        if owner == job:
            shutil.copytree(source.artifact(name), folder / "artifacts" / name)
            index[name] = job
    (folder / "artifacts.json").write_text(json.dumps(index))
    return source.jobs[job]


def _run_job(scenario: _Scenario, job: str, past: Mapping[str, Job]) -> Job:
    started = time.monotonic()
    scratch = scenario.folder / "jobs" / job
    checkout = _checkout(scenario, job, scratch)
    text = alone(scenario.workflow, job, past, scratch)
    (scratch / "workflow.yml").write_text(text)
    (scratch / "event.json").write_text(json.dumps(scenario.event.payload))
    finished = sandbox.run(
        _command(scenario, scratch),
        scratch=scratch,
        folder=checkout,
        environment=_environment(scratch) | {"HOME": str(seen(_empty(scratch / "act")))},
        timeout=60 * float(scenario.workflow["jobs"][job]["timeout-minutes"]),
    )
    messages = log.read(finished.log)
    ended = scratch / "ended.json"
    end = json.loads(ended.read_text())[job] if ended.exists() else {}
    if end.get("result") not in ("success", "failure", "skipped"):
        raise HarnessError(
            f"job {job} was not run: {log.problems(messages) or finished.log[-3000:]}"
        )
    if finished.left:
        raise LeftBehindError(f"job {job} left processes running: {'; '.join(finished.left)}")
    return Job(
        id=job,
        result=end["result"],
        steps=log.steps(messages, job),
        outputs=end.get("outputs") or {},
        summary=log.summary(messages, job),
        log=log.printed(messages, job),
        seconds=round(time.monotonic() - started, 1),
    )


def _empty(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _checkout(scenario: _Scenario, job: str, scratch: Path) -> Path:
    """Clone the commit, and only it, as a checkout on a new machine would."""
    _empty(scratch)
    steps = scenario.workflow["jobs"][job]["steps"]
    depths = [
        s.get("with", {}).get("fetch-depth", 1) for s in steps if "checkout@" in str(s.get("uses"))
    ]
    depth = ["--depth", str(depths[0])] if depths and int(depths[0]) else []
    folder = scratch / "checkout"
    source = f"file://{scenario.project.resolve()}"
    command = ["git", "clone", "--quiet", *depth, source, str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    git(folder, "checkout", "--quiet", "--detach")
    git(folder, "remote", "set-url", "origin", f"https://github.com/{scenario.github.repository}")
    _ = scenario.github.origin  # it is there before anyone logs in
    return folder


def _command(scenario: _Scenario, scratch: Path) -> list[str]:
    job = scratch.name
    nothing = scratch / "nothing"
    nothing.touch()
    command = [
        str(seen(_program("act"))),
        scenario.event.name,
        "--json",
        "--job",
        "harness-observer",
    ]
    command += ["--workflows", str(seen(scratch / "workflow.yml"))]
    command += ["--eventpath", str(seen(scratch / "event.json"))]
    command += ["--action-cache-path", str(seen(scratch / "work"))]
    command += ["--actor", scenario.github.repository.split("/")[0], "--defaultbranch", "main"]
    command += ["--rm", "--no-cache-server", "--action-offline-mode", "--pull=false"]
    command += ["--concurrent-jobs", "1", "--use-gitignore=false"]
    for flag in ("--env-file", "--input-file", "--secret-file", "--var-file"):
        command += [flag, str(seen(nothing))]
    command += ["--secret", "GITHUB_TOKEN=of-a-stand-in"]
    for label in LABELS:
        command += ["--platform", f"{label}=-self-hosted"]
    for (slug, ref), folder in scenario.actions.items():
        command += ["--local-repository", f"{slug}@{ref}={seen(folder)}"]
    number = scenario.folder.name
    environment = {
        **_environment(scratch),
        "ACT": "",  # a product must not be able to notice
        "CI": "true",
        "RUNNER_ENVIRONMENT": "github-hosted",
        "GITHUB_REPOSITORY": scenario.github.repository,
        "GITHUB_RUN_ID": number,
        "GITHUB_RUN_NUMBER": number,
        "STANDIN_RUN": str(seen(scenario.folder)),
        "STANDIN_GITHUB": str(seen(scenario.github.folder)),
        "STANDIN_PERMISSIONS": json.dumps(_granted(scenario, job)),
    }
    for key, value in environment.items():
        command += ["--env", f"{key}={value}"]
    return command


def _granted(scenario: _Scenario, job: str) -> dict[str, str]:
    """Return what the job's token may really do: a fork's pull request never writes."""
    head = scenario.event.payload.get("pull_request", {}).get("head", {}).get("repo", {})
    fork = head.get("full_name", scenario.github.repository) != scenario.github.repository
    granted = permissions(scenario.workflow, job)
    return {k: "read" if fork and v == "write" else v for k, v in granted.items()}


def _environment(scratch: Path) -> dict[str, str]:
    """Return the environment of a new machine, with what of this one it cannot do without."""
    programs = scratch / "bin"
    if not programs.exists():
        _empty(programs)
        _empty(scratch / "home")
        # A script and no link: Python looks for its library beside the name it was called by.
        python = programs / "python3"
        python.write_text(f"#!/bin/sh\nexec '{Path(sys.executable).resolve()}' \"$@\"\n")
        python.chmod(0o755)
        for name in ("uv", "uvx"):
            (programs / name).symlink_to(seen(_program(name)))
        shutil.copy(standins.GH, programs / "gh")
        # A private repository that nobody logged in to, and no way out to GitHub.
        (scratch / "home" / ".gitconfig").write_text(NO_LOGIN)
    return {
        **{key: os.environ[key] for key in PASSED if key in os.environ},
        "PATH": f"{seen(programs)}:{SYSTEM_PATH}",
        "HOME": str(seen(scratch / "home")),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "UV_CACHE_DIR": str(seen(_uv_folder("cache"))),
        "UV_PYTHON_INSTALL_DIR": str(seen(_uv_folder("python"))),
    }


@cache
def _program(name: str) -> Path:
    """Find a program beside this interpreter or on PATH."""
    uv = os.environ.get("UV")  # set by `uv run`; `uv` on PATH may be another tool's wrapper
    places = [Path(uv).with_name(name)] if uv else []
    places += [Path(sys.executable).with_name(name), Path(shutil.which(name) or "/nowhere")]
    for place in places:
        if place.exists():
            return place.resolve()
    raise HarnessError(f"{name} is not installed; `uv sync` in the template's folder brings act")


@cache
def _uv_folder(kind: str) -> Path:
    done = subprocess.run([_program("uv"), kind, "dir"], check=True, capture_output=True, text=True)
    folder = Path(done.stdout.strip())
    folder.mkdir(parents=True, exist_ok=True)
    return folder
