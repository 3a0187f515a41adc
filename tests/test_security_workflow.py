"""security.yml, executed, a project's and the template's: what turns the audit of a change red.

The database of vulnerabilities cannot be reached from a test. A stand-in on this machine answers
in its form and writes down what it was asked. CodeQL, Scorecard and the review of new packages are
recorded; everything else of the jobs is real.
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
from tests.harness import FakeGitHub, Job, PullRequest, Run, push, run_workflow, schedule
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
    source: Path, folder: Path, address: str, *, visibility: str = "public", seeded: str = ""
) -> tuple[Job, list[dict[str, Any]]]:
    """Run `audit` on a pull request; return the job, and the calls of actions that are recorded."""
    project = folder / "project"
    git(folder, "clone", "--quiet", str(source), str(project))
    text = (project / WORKFLOW).read_text()
    elsewhere = f"env:\n  PIP_AUDIT_OSV_URL: {address}\n\njobs:\n"
    (project / WORKFLOW).write_text(text.replace("jobs:\n", elsewhere))
    if seeded:
        (project / ".github/workflows/seeded.yml").write_text(seeded)
    git(project, "add", ".")
    git(project, *WHO, "commit", "--quiet", "-m", "A change")
    github = FakeGitHub(folder / "github")
    event = PullRequest().event(project, github.repository)
    event.payload["repository"]["visibility"] = visibility
    run = run_workflow(project, WORKFLOW.name, event, github)
    others = {name: result for name, result in run.results.items() if name != "audit"}
    assert others == {"plan": "skipped", "scan": "skipped"}
    return run.jobs["audit"], run.calls


def look(source: Path, folder: Path, on: str, *, private: bool) -> Run:
    """Run `plan` and `scan`, on a push to `main` or by the schedule."""
    project, github = folder / "project", FakeGitHub(folder / "github")
    git(folder, "clone", "--quiet", str(source), str(project))
    github.receive(project, "HEAD:refs/heads/main")
    pushed = push(project, github.repository, "refs/heads/main", private=private)
    event = pushed if on == "push" else schedule(project, private=private)
    run = run_workflow(project, WORKFLOW.name, event, github)
    assert run.results["audit"] == "skipped"
    assert github.said == [f"gh api repos/{github.repository} --jq .visibility"]
    return run


def failed(job: Job) -> list[str]:
    """Return the names of the steps that failed."""
    return [step.name for step in job.steps if step.result == "failure"]


def test_a_project_as_generated_is_sound(ready: BakedProject, tmp_path: Path) -> None:
    with database() as (address, asked):
        job, calls = audit(ready.path, tmp_path, address)
    assert job.result == "success", job.log
    assert {"lightgbm", "deepchecks", "mlflow"} <= asked  # one of each set of packages
    assert {"late-departures", "model-delivery"}.isdisjoint(asked)
    assert [call["action"] for call in calls] == ["actions/dependency-review-action"]


def test_a_workflow_that_an_attacker_would_like_is_red(ready: BakedProject, tmp_path: Path) -> None:
    job, _ = audit(ready.path, tmp_path, "http://127.0.0.1:1", seeded=UNPINNED)
    assert failed(job) == ["Audit the workflows"]
    assert "unpinned-uses" in job.log


@pytest.mark.parametrize("package", ["lightgbm", "deepchecks"])
def test_a_package_with_a_known_vulnerability_is_red(
    ready: BakedProject, tmp_path: Path, package: str
) -> None:
    with database(package) as (address, _):
        job, _ = audit(ready.path, tmp_path, address)
    assert failed(job) == ["Look for known vulnerabilities in the locked packages"]
    assert "Found 1 known vulnerability in 1 package" in job.log
    assert "TEST-1" in job.log


def test_a_database_out_of_reach_is_red(ready: BakedProject, tmp_path: Path) -> None:
    """No answer is not "nothing known"."""
    job, _ = audit(ready.path, tmp_path, f"http://127.0.0.1:{free_port()}")
    assert failed(job) == ["Look for known vulnerabilities in the locked packages"]
    assert "Failed to establish a new connection" in job.log


def test_where_a_repository_is_not_public_its_new_packages_are_not_reviewed(
    ready: BakedProject, tmp_path: Path
) -> None:
    with database() as (address, _):
        job, calls = audit(ready.path, tmp_path, address, visibility="private")
    assert job.result == "success", job.log
    assert REVIEW not in [step.name for step in job.steps]
    assert calls == []


SCANS = [
    *("ossf/scorecard-action", "github/codeql-action/upload-sarif"),
    *("github/codeql-action/init", "github/codeql-action/analyze"),
]


def test_a_public_repository_is_scanned_on_a_push(ready: BakedProject, tmp_path: Path) -> None:
    run = look(ready.path, tmp_path, "push", private=False)
    assert run.results == {"audit": "skipped", "plan": "success", "scan": "success"}, run.said
    assert run.jobs["plan"].outputs == {"visibility": "public"}
    assert run.jobs["plan"].summary == ""
    assert [call["action"] for call in run.calls] == SCANS
    assert run.calls[2]["inputs"] == {"languages": "python, actions"}
    assert run.calls[0]["inputs"]["results_file"] == run.calls[1]["inputs"]["sarif_file"]


def test_where_a_repository_is_not_public_a_run_says_what_is_left_out(
    ready: BakedProject, tmp_path: Path
) -> None:
    run = look(ready.path, tmp_path, "schedule", private=True)
    assert run.results == {"audit": "skipped", "plan": "success", "scan": "skipped"}, run.said
    assert run.jobs["plan"].outputs == {"visibility": "private"}
    assert run.jobs["plan"].summary == (
        "Left out, as they would need a paid plan where a repository is not public: CodeQL, "
        "Scorecard, attestations, the review of new packages in pull requests. All else runs.\n"
    )
    assert run.calls == []


def test_the_template_is_sound(ours: Path, tmp_path: Path) -> None:
    with database() as (address, asked):
        job, calls = audit(ours, tmp_path, address)
    assert job.result == "success", job.log
    assert {"cookiecutter", "zizmor", "pytest"} <= asked
    assert "cookiecutter-model-delivery" not in asked
    assert [call["action"] for call in calls] == ["actions/dependency-review-action"]


def test_a_tool_of_the_template_with_a_known_vulnerability_is_red(
    ours: Path, tmp_path: Path
) -> None:
    with database("zizmor") as (address, _):
        job, _ = audit(ours, tmp_path, address, visibility="private")
    assert failed(job) == ["Look for known vulnerabilities in the tools"]
    assert "TEST-1" in job.log


def test_a_workflow_of_the_template_that_an_attacker_would_like_is_red(
    ours: Path, tmp_path: Path
) -> None:
    job, _ = audit(ours, tmp_path, "http://127.0.0.1:1", seeded=UNPINNED)
    assert failed(job) == ["Audit the workflows"]
    assert "unpinned-uses" in job.log
