"""The minutes that GitHub would bill for a pull request, by jobs that run as they do there."""

from __future__ import annotations

import math
import subprocess

from tests.bench.subject import WHO, Subject, say
from tests.harness import FakeGitHub, PullRequest, run_workflow

AUDIT = 1
"""Minutes of the one job beside ci.yml, whose database of vulnerabilities is not asked here."""
MODEL = ("config/model.yaml", "learning_rate: 0.05", "learning_rate: 0.06")
MACHINERY = ("config/gates.yaml", "roc_auc: { min: 0.70", "roc_auc: { min: 0.71")
"""A change that the machinery's tests run for; most are as the one before, and need none."""


def job_seconds(subject: Subject, kind: str, cold: bool = False) -> dict[str, float]:
    """Return how long each job of ci.yml took for a change, with warm or empty download caches."""
    assert subject.project is not None
    folder = subject.folder / kind
    project = folder / "project"
    command = ["git", "clone", "--quiet", str(subject.project), str(project)]
    subprocess.run(command, check=True)
    path, old, new = MACHINERY if kind == "machinery" else MODEL
    text = (project / path).read_text()
    if text.count(old) != 1:
        raise RuntimeError(f"{path} has no `{old}` to change")
    (project / path).write_text(text.replace(old, new))
    subprocess.run(["git", *WHO, "commit", "-qam", "A change"], cwd=project, check=True)
    github = FakeGitHub(folder / "github")
    event = PullRequest().event(project, github.repository, "opened")
    run = run_workflow(project, "ci.yml", event, github, cold=cold)
    for name, job in run.jobs.items():
        if job.result != "success":
            say(job.log)
            raise RuntimeError(f"job {name} ended as {job.result}")
    return {name: job.seconds for name, job in run.jobs.items()}


def billed(jobs: dict[str, float]) -> tuple[int, str]:
    """Return minutes, each job rounded up as GitHub does, and how they come about."""
    whole = {name: math.ceil(took / 60) for name, took in jobs.items()} | {"audit": AUDIT}
    parts = (f"{name} {minutes}" for name, minutes in whole.items())
    return sum(whole.values()), ", ".join(parts)
