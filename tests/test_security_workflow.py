"""security.yml, executed: what turns the audit of a pull request red.

The database of vulnerabilities cannot be reached from a test. A stand-in on this machine answers
in its form and writes down what it was asked; everything else of the job is real.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from tests.baking import BakedProject, free_port
from tests.harness import FakeGitHub, Job, PullRequest, run_workflow
from tests.harness.github import git

WHO = ("-c", "user.name=tester", "-c", "user.email=tester@example.org")
WORKFLOW = Path(".github/workflows/security.yml")
REVIEW = "Review the packages that the change brings"
UNPINNED = """\
name: Seeded
on: push
permissions: {}
concurrency: { group: seeded, cancel-in-progress: false }
jobs:
  seeded:
    name: Seeded
    runs-on: ubuntu-24.04
    timeout-minutes: 5
    steps:
      - name: By its tag
        uses: actions/setup-node@v4
"""


class Database(BaseHTTPRequestHandler):
    """Answers as OSV does: nothing about a package, or what is known about it."""

    vulnerable: ClassVar[set[str]]
    asked: ClassVar[set[str]]

    def do_POST(self) -> None:
        """Answer one question."""
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))
        package = question["package"]
        self.asked.add(package["name"])
        known = {"id": "TEST-1", "summary": "made up", "affected": [{"package": package}]}
        found = {"vulns": [known]} if package["name"] in self.vulnerable else {}
        answer = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Keep the tests' output free of requests."""


@contextmanager
def database(*vulnerable: str) -> Iterator[tuple[str, set[str]]]:
    """Serve a database that knows these packages as vulnerable: its address, and who was asked."""
    known = {"vulnerable": set(vulnerable), "asked": set[str]()}
    handler = type("Known", (Database,), known)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", known["asked"]
        server.shutdown()


def audit(
    ready: BakedProject, folder: Path, address: str, *, visibility: str = "public", seeded: str = ""
) -> tuple[Job, list[dict[str, Any]]]:
    """Run `audit` on a pull request; return the job, and the calls of actions that are recorded."""
    project = folder / "project"
    git(folder, "clone", "--quiet", str(ready.path), str(project))
    # The jobs that a pull request skips use actions in sub-folders, which have no stand-in.
    job, _, rest = (project / WORKFLOW).read_text().partition("\n  plan:")
    assert rest, "the first job is `audit`, the second `plan`"
    elsewhere = f"env:\n  PIP_AUDIT_OSV_URL: {address}\n\njobs:\n"
    (project / WORKFLOW).write_text(job.replace("jobs:\n", elsewhere))
    if seeded:
        (project / ".github/workflows/seeded.yml").write_text(seeded)
    git(project, "add", ".")
    git(project, *WHO, "commit", "--quiet", "-m", "A change")
    github = FakeGitHub(folder / "github")
    event = PullRequest().event(project, github.repository)
    event.payload["repository"]["visibility"] = visibility
    run = run_workflow(project, WORKFLOW.name, event, github)
    assert list(run.jobs) == ["audit"]
    return run.jobs["audit"], run.calls


def failed(job: Job) -> list[str]:
    """Return the names of the steps that failed."""
    return [step.name for step in job.steps if step.result == "failure"]


def test_a_project_as_generated_is_sound(ready: BakedProject, tmp_path: Path) -> None:
    with database() as (address, asked):
        job, calls = audit(ready, tmp_path, address)
    assert job.result == "success", job.log
    assert {"lightgbm", "deepchecks", "mlflow"} <= asked  # one of each set of packages
    assert {"late-departures", "model-delivery"}.isdisjoint(asked)
    assert [call["action"] for call in calls] == ["actions/dependency-review-action"]


def test_a_workflow_that_an_attacker_would_like_is_red(ready: BakedProject, tmp_path: Path) -> None:
    job, _ = audit(ready, tmp_path, "http://127.0.0.1:1", seeded=UNPINNED)
    assert failed(job) == ["Audit the workflows"]
    assert "unpinned-uses" in job.log


@pytest.mark.parametrize("package", ["lightgbm", "deepchecks"])
def test_a_package_with_a_known_vulnerability_is_red(
    ready: BakedProject, tmp_path: Path, package: str
) -> None:
    with database(package) as (address, _):
        job, _ = audit(ready, tmp_path, address)
    assert failed(job) == ["Look for known vulnerabilities in the locked packages"]
    assert "Found 1 known vulnerability in 1 package" in job.log
    assert "TEST-1" in job.log


def test_a_database_out_of_reach_is_red(ready: BakedProject, tmp_path: Path) -> None:
    """No answer is not "nothing known"."""
    job, _ = audit(ready, tmp_path, f"http://127.0.0.1:{free_port()}")
    assert failed(job) == ["Look for known vulnerabilities in the locked packages"]
    assert "Failed to establish a new connection" in job.log


def test_where_a_repository_is_not_public_its_new_packages_are_not_reviewed(
    ready: BakedProject, tmp_path: Path
) -> None:
    with database() as (address, _):
        job, calls = audit(ready, tmp_path, address, visibility="private")
    assert job.result == "success", job.log
    assert REVIEW not in [step.name for step in job.steps]
    assert calls == []
