"""ci.yml, executed on generated projects: what a pull request gets to see.

The jobs run for real. Where a change cannot alter a job (its inputs are the same, to the byte),
the job is taken over from the green run instead of being run again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.baking import BakedProject, free_port
from tests.harness import FakeGitHub, PullRequest, Run, run_workflow
from tests.harness.github import git

SET_UP = {"test": "set-up", "candidate": "set-up"}
ASKED = {"candidate": "set-up"}  # where the tests are taken over
BESIDE = {"candidate": "set-up get:A"}  # the champion
GREEN = {"test": "success", "candidate": "success", "comment": "success", "gates": "success"}
HOSTILE = PullRequest(
    title='"; touch /tmp/hostile; $(touch hostile) `touch hostile` ${{ github.token }}',
    branch="hostile/$(touch${IFS}hostile)`id`|@everyone",
)
SHIP = "Ship up to the load test"
KEEP = "Keep the candidate for the next push, where no job that delivers looks"
WHO = ("-c", "user.name=tester", "-c", "user.email=tester@example.org")
QUICK: dict[str, dict[str, dict[str, object]]] = {
    "gates.yaml": {"deepchecks": {"data": {}, "model": {}}, "load": {"rounds": 4, "seconds": 0.2}},
    "delivery.yaml": {"rollout": {"shadow_rows": 20}},
}
"""What is not about the champion is left out where a test is about nothing else."""


@dataclass(frozen=True)
class Case:
    """A repository with a change that was proposed."""

    project: Path
    github: FakeGitHub

    def run(
        self,
        request: PullRequest = HOSTILE,
        action: str = "opened",
        taken: Mapping[str, Run] | None = None,
    ) -> Run:
        """Run ci.yml as a push to the pull request does."""
        event = request.event(self.project, self.github.repository, action)
        return run_workflow(self.project, "ci.yml", event, self.github, taken=taken)

    @property
    def comment(self) -> str:
        """The text of the one comment that there may be."""
        (comment,) = self.github.comments
        return comment.body


Propose = Callable[..., Case]


@pytest.fixture(scope="module")
def propose(ready: BakedProject, tmp_path_factory: pytest.TempPathFactory) -> Propose:
    """Return a function that commits changes, `{file: (old, new)}`, to a copy of the project."""

    def commit(changes: Mapping[str, tuple[str, str]]) -> Case:
        folder = tmp_path_factory.mktemp("case")
        project = folder / "project"
        git(folder, "clone", "--quiet", str(ready.path), str(project))
        for name, (old, new) in changes.items():
            file = project / name
            text = file.read_text() if file.exists() else ""
            assert text.count(old) == 1 or not text, f"{name}: {old}"
            file.write_text(text.replace(old, new) if text else new)
        loosen_load_limits(project / "config" / "gates.yaml")
        git(project, "add", ".")
        git(project, *WHO, "commit", "--quiet", "--allow-empty", "-m", "A change")
        return Case(project, FakeGitHub(folder / "github"))

    return commit


def loosen_load_limits(file: Path) -> None:
    """Make the limits of the load gate hold on a busy machine too.

    How fast the service is, `make bench` measures; here other tests may run beside it.
    """
    gates = yaml.safe_load(file.read_text())
    for limit in gates["load"].values():
        if isinstance(limit, dict):
            limit.update({k: v * 100 for k, v in limit.items() if k == "max"})
            limit.update({k: v / 100 for k, v in limit.items() if k == "min"})
    file.write_text(yaml.safe_dump(gates))


@pytest.fixture(scope="module")
def green(propose: Propose) -> tuple[Case, Run]:
    case = propose({})
    return case, case.run()


@pytest.fixture(scope="module")
def delivered(propose: Propose) -> tuple[Case, str]:
    """Return a pull request where a champion was delivered before, and that one's digest."""
    case = propose({"config/model.yaml": ("learning_rate: 0.05", "learning_rate: 0.2")})
    project, job = BakedProject(case.project), case.github.job()
    for name, changes in QUICK.items():
        file = case.project / "config" / name
        settings = yaml.safe_load(file.read_text())
        for part, change in changes.items():
            settings[part].update(change)
        file.write_text(yaml.safe_dump(settings))
    settings["environments"]["production"]["port"] = free_port()
    file.write_text(yaml.safe_dump(settings))
    git(case.project, "remote", "set-url", "origin", str(case.github.origin))
    project.run("uv", "sync", "--quiet")
    try:
        project.run("uv", "run", "ml", "ship", env=job)
    finally:
        project.ml("deploy", "--stop")
    file = case.project / "config" / "model.yaml"
    file.write_text(file.read_text().replace("learning_rate: 0.2", "learning_rate: 0.1"))
    git(case.project, *WHO, "commit", "--quiet", "--all", "-m", "Learn more slowly")
    state = json.loads((case.project / ".ml" / "production" / "state.json").read_text())
    return case, state["moves"][0]["digest"]


def expect(case: Case, run: Run, asked: Mapping[str, str] = ASKED, **results: str) -> None:
    """Assert the result of every job, success unless named, and what those asked that ran here."""
    assert run.results == GREEN | results, run.said
    assert case.github.asked(run) == asked


def report(run: Run) -> dict[str, Any]:
    """Return the report that the candidate's job uploaded, as data."""
    assert run.artifacts == {"report-1": "candidate"}
    kept = {file.name for file in run.artifact("report-1").iterdir()}
    assert kept == {"report.html", "report.json", "report.md"}
    return dict(json.loads((run.artifact("report-1") / "report.json").read_text()))


def outcomes(run: Run) -> dict[str, str]:
    """Return the outcome of each gate that ran."""
    return {verdict["gate"]: verdict["outcome"] for verdict in report(run)["verdicts"]}


def broken(run: Run, gate: str, outcome: str) -> set[str]:
    """Return the checks of a gate with an outcome."""
    (verdict,) = (v for v in report(run)["verdicts"] if v["gate"] == gate)
    return {check["name"] for check in verdict["checks"] if check["outcome"] == outcome}


def test_a_good_change_is_green_and_its_report_is_posted(green: tuple[Case, Run]) -> None:
    case, run = green
    expect(case, run, SET_UP)
    assert outcomes(run) == dict.fromkeys(("data", "model", "package", "api", "load"), "pass")
    (comment,) = case.github.comments
    assert (comment.number, comment.header, comment.updates) == (7, "report", 0)
    assert comment.body.startswith("✅ **This change may be merged: ")
    assert report(run)["subject"].removeprefix("sha256:")[:12] in comment.body
    assert "first delivery" in comment.body  # there is no champion: the registry is empty
    assert case.github.registry == {}
    assert comment.body == (run.artifact("report-1") / "report.md").read_text()
    assert comment.body.strip() in run.jobs["candidate"].summary


def test_limits_that_a_change_lowers_are_said_above_the_details(green: tuple[Case, Run]) -> None:
    case, _ = green  # `propose` loosens the limits of the load gate, and no other
    lowered = case.comment.partition("**Limits lowered by this change**")[2].partition("<details>")[
        0
    ]
    said = [line for line in lowered.splitlines() if line.startswith("- `")]
    assert "- `load.qps` min 200 → 2" in said
    assert "- `load.p95_ms` max 50 → 5,000" in said
    assert all(line.startswith("- `load.") for line in said)
    assert "was not compared" not in case.comment


def test_the_comment_leads_to_the_run_and_its_artifacts(green: tuple[Case, Run]) -> None:
    case, run = green
    address = f"https://github.com/{case.github.repository}/actions/runs/{run.folder.name}"
    assert f"[This run]({address}) · [its artifacts]({address}#artifacts)" in case.comment
    assert case.comment.count("```mermaid") == 2


def test_a_pull_request_has_few_jobs(green: tuple[Case, Run]) -> None:
    """GitHub bills each job rounded up to a minute; `make bench` says how many those are."""
    _, run = green
    assert len(run.jobs) <= 4


def test_a_hostile_title_or_branch_is_data(green: tuple[Case, Run]) -> None:
    case, run = green
    assert report(run)["branch"] == HOSTILE.branch
    assert "@everyone" not in case.comment  # would notify people
    assert not [f for f in run.folder.rglob("*hostile*") if f.name.startswith("hostile")]
    # The title is shown nowhere, so nothing of it can be carried out.
    shown = [text for job in run.jobs.values() for text in (job.log, job.summary)]
    shown += [file.read_text() for file in run.artifact("report-1").iterdir()]
    assert not [text for text in [*shown, case.comment] if "touch hostile" in text]


def test_the_comment_s_job_posts_and_does_nothing_else(green: tuple[Case, Run]) -> None:
    case, run = green
    assert [(step.name, step.result) for step in run.jobs["comment"].steps] == [
        ("Download the report", "success"),
        ("Post the report, or update the comment that is there", "success"),
    ]
    assert run.calls == []  # each action has a stand-in that knows what it may do
    # In the set-up; the comment's job asks `gh` nothing.
    assert case.github.asked(run).keys() == {"test", "candidate"}


def test_the_next_push_trains_nothing_twice_and_updates_the_same_comment(
    green: tuple[Case, Run],
) -> None:
    case, first = green
    assert first.jobs["candidate"].step(KEEP).result == "success"
    run = case.run(action="synchronize", taken={"test": first})
    expect(case, run)
    times = [{v["gate"]: v["finished"] for v in report(one)["verdicts"]} for one in (first, run)]
    for gate in ("model", "api", "load"):
        assert times[0][gate] == times[1][gate], f"{gate} judged the same candidate again"
    caches = json.loads((case.github.folder / "caches.json").read_text())
    assert [cache["key"][:13] for cache in caches].count("pr-candidate-") == 1  # the cache had it
    (comment,) = case.github.comments
    assert comment.updates == 1


NEEDY = {
    "src/late_departures/sources.py": (
        "LATE_MINUTES = 15\n",
        "LATE_MINUTES = 15\nNEEDS = ('WAREHOUSE',)\n",
    )
}
DRAWN = "; on rows drawn from the data contract: no quality was judged"


def test_a_fork_without_the_data_s_credentials_is_judged_on_drawn_rows(
    propose: Propose, green: tuple[Case, Run]
) -> None:
    case = propose(NEEDY)
    run = case.run(PullRequest(fork=True), taken={"test": green[1]})  # which skips what asks it
    expect(case, run, comment="skipped")
    first = run.jobs["candidate"].summary.splitlines()[0]
    assert first.startswith("⚠️ **This change may be merged, with ")
    assert f"{DRAWN}.**" in first
    assert report(run)["data"]["sample"] is True
    assert "roc_auc" in broken(run, "model", "warn")
    assert "not judged on sample rows" in run.jobs["candidate"].summary
    assert set(outcomes(run)) == {"data", "model", "package", "api", "load"}
    assert case.github.comments == []


def test_a_broken_service_is_red_on_drawn_rows_too(
    propose: Propose, green: tuple[Case, Run]
) -> None:
    old = "        return self.model.predict(self.features.transform(columns))\n"
    broken = (
        "        if 1 < len(columns['carrier']) < 1_000:\n            raise ValueError('some')\n"
    )
    case = propose({**NEEDY, "src/late_departures/service.py": (old, broken + old)})
    run = case.run(PullRequest(fork=True), taken={"test": green[1]})  # the gate is meant here
    expect(case, run, candidate="failure", comment="skipped", gates="failure")
    assert outcomes(run)["api"] == "stop"
    assert DRAWN in run.jobs["candidate"].summary.splitlines()[0]
    assert report(run)["data"]["sample"] is True


def test_a_failing_unit_test_is_red_whatever_the_model_is_worth(
    propose: Propose, green: tuple[Case, Run]
) -> None:
    test = '"""A test that fails."""\n\n\ndef test_that_fails() -> None:\n    assert 1 + 1 == 3\n'
    case = propose({"tests/test_that_fails.py": ("", test)})
    run = case.run(taken={"candidate": green[1]})  # `ml ship` reads nothing of tests/
    expect(case, run, {"test": "set-up"}, test="failure", gates="failure")
    assert run.jobs["test"].steps[-1].name == "Test"
    assert "1 failed" in run.jobs["test"].log
    assert case.comment.startswith("✅")


def test_the_machinery_is_tested_where_a_change_touches_it(
    propose: Propose, green: tuple[Case, Run], tmp_path: Path
) -> None:
    job = green[1].jobs["test"]
    last = job.steps[-1]
    assert (last.name, last.result) == ("Test the machinery where this changes it", "success")
    assert "config/gates.yaml | " in job.log  # which `propose` changed
    stub = tmp_path / "uv"
    stub.write_text("#!/bin/sh\necho asked: $*\n")
    stub.chmod(0o755)

    def tested(project: Path) -> bool:
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        said = BakedProject(project).run("make", "test-changed", env=env).stdout
        return "asked: run pytest delivery -n auto" in said

    project = propose({}).project
    assert tested(project)
    for path, touched in (
        ("src/late_departures/model.py", False),
        ("config/model.yaml", False),
        ("config/data.yaml", True),
        (".github/workflows/monitor.yml", True),
        ("delivery/src/model_delivery/files.py", True),
        ("uv.lock", True),
    ):
        with (project / path).open("a") as stream:
            stream.write("# a change\n")
        git(project, *WHO, "commit", "--quiet", "--all", "-m", path)
        assert tested(project) == touched, path
    shallow = tmp_path / "shallow"  # what came before is not known
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{project}", str(shallow))
    assert tested(shallow)


def test_a_model_below_its_minimums_stops_before_it_is_packaged(
    propose: Propose, green: tuple[Case, Run]
) -> None:
    case = propose({"config/model.yaml": ("learning_rate: 0.05", "learning_rate: 0.0001")})
    run = case.run(taken={"test": green[1]})  # the tests set a learning rate of their own
    expect(case, run, candidate="failure", gates="failure")
    assert run.jobs["candidate"].step(SHIP).result == "failure"
    assert outcomes(run) == {"data": "pass", "model": "stop"}
    assert "log_loss_gain" in broken(run, "model", "stop")
    assert run.jobs["candidate"].step(KEEP).result == "success"  # it is not trained again either
    assert case.comment.startswith("⛔ **This change must not be merged.** Gate `model`, check ")
    assert "Later gates did not run" in case.comment


def test_a_renamed_column_stops_before_anything_is_trained(propose: Propose) -> None:
    old = '    return join_weather(known, read_weather(folder / "weather.csv"))[COLUMNS]\n'
    renamed = '    return joined.rename(columns={"distance": "miles"})\n'
    change = (old, old.replace("return", "joined =") + renamed)
    case = propose({"src/late_departures/sources.py": change})
    run = case.run()
    expect(case, run, SET_UP, test="failure", candidate="failure", gates="failure")
    assert run.jobs["test"].steps[-1].name == "Test"
    assert run.jobs["candidate"].step(SHIP).result == "failure"
    assert outcomes(run) == {"data": "stop"}
    assert case.comment.startswith("⛔ **This change must not be merged.** Gate `data`, check ")
    assert "distance" in case.comment
    assert "miles" in case.comment


def assets(case: Case, digest: str) -> list[str]:
    """Return the names of a digest's bytes in the store."""
    return [name for name in case.github.registry if re.fullmatch(rf"{digest}-\w+\.tar\.xz", name)]


def test_a_change_is_judged_beside_the_champion_and_the_registry_is_only_read(
    delivered: tuple[Case, str], green: tuple[Case, Run]
) -> None:
    case, champion = delivered
    before = case.github.registry
    [asset] = assets(case, champion)
    assert before.keys() == {"refs/heads/model-registry", asset}
    run = case.run(taken={"test": green[1]})  # the tests set a learning rate of their own
    expect(case, run, BESIDE)
    verdicts = {verdict["gate"]: verdict for verdict in report(run)["verdicts"]}
    assert {v["against"] for gate, v in verdicts.items() if gate in ("model", "load")} == {champion}
    assert report(run)["subject"] != champion
    assert "champion_difference" in {check["name"] for check in verdicts["model"]["checks"]}
    assert "qps_to_champion" in {check["name"] for check in verdicts["load"]["checks"]}
    assert "champion_difference" in case.comment
    assert champion[:12] in case.comment
    assert case.github.registry == before


def test_a_model_that_is_only_worse_than_the_champion_must_not_be_merged(
    delivered: tuple[Case, str], green: tuple[Case, Run]
) -> None:
    case, champion = delivered
    file = case.project / "config" / "model.yaml"
    text = file.read_text().replace("num_leaves: 63", "num_leaves: 3")
    file.write_text(text.replace("most_rounds: 600", "most_rounds: 30"))
    git(case.project, *WHO, "commit", "--quiet", "--all", "-m", "Few trees, of few leaves")
    try:
        run = case.run(taken={"test": green[1]})
    finally:
        git(case.project, "reset", "--quiet", "--hard", "HEAD~")
    expect(case, run, BESIDE, candidate="failure", gates="failure")
    assert outcomes(run) == {"data": "pass", "model": "stop"}
    assert broken(run, "model", "stop") <= {"champion_difference", "segment_champion_difference"}
    assert champion[:12] in case.comment


def test_a_champion_whose_asset_is_gone_is_named(
    delivered: tuple[Case, str], green: tuple[Case, Run]
) -> None:
    case, champion = delivered
    [asset] = assets(case, champion)
    (case.github.folder / "releases" / "model-store" / asset).unlink()
    (case.github.folder / "caches.json").unlink(missing_ok=True)  # where it would be, too
    run = case.run(PullRequest(fork=True), taken={"test": green[1]})  # its token reads, too
    expect(case, run, BESIDE, candidate="failure", comment="skipped", gates="failure")
    said = f"{champion}.tar.xz: missing or tampered with; run `ml deploy` where it was made"
    assert said in run.jobs["candidate"].log
    assert outcomes(run) == {"data": "pass"} | dict.fromkeys(
        ("model", "package", "api", "load"), "inconclusive"
    )


def test_without_a_lock_every_job_says_what_to_do(propose: Propose) -> None:
    case = propose({})
    git(case.project, "rm", "--quiet", "uv.lock")
    git(case.project, *WHO, "commit", "-qm", "No lock")
    run = case.run()
    stopped = {"test": "failure", "candidate": "failure", "gates": "failure"}
    expect(case, run, {}, comment="skipped", **stopped)
    for job in ("test", "candidate"):
        assert "uv.lock is missing: it is made by your first 'uv sync'" in run.jobs[job].log
        assert [step.result for step in run.jobs[job].steps] == ["success", "failure"]
