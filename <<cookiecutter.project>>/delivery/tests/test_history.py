"""The past of a release as the log tells it, a mirror no delivery fails by; what GitHub lacks."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from model_delivery import history
from model_delivery.cli.main import app
from model_delivery.project import Project
from model_delivery.protocols import UserError, user_module
from model_delivery.registry import Event, event_log
from model_delivery.report.verdict import Outcome
from typer.testing import CliRunner, Result

A, B, C = ("a" * 64, "b" * 64, "b" + "c" * 63)


def event(digest: str, release: str, **fields: object) -> Event:
    facts = {"type": "registered", "digest": digest, "release": release, "as_of": "2013-08-01"}
    facts |= {"commit": "c0ffee", "trigger": "local", "blob": "f" * 64, "who": "ann"}
    return Event.model_validate(facts | fields)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project whose log holds three releases, moves, and a rollback with its reason."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "data.yaml").touch()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "late"\n')
    monkeypatch.chdir(tmp_path)
    moved = {"type": "promoted", "environment": "production"}
    first = {"parameters": {"trees": 10, "rate": 0.1}, "metrics": {"auc": [0.75, 0.7, 0.8]}}
    second = {"parameters": {"trees": 20, "rate": 0.1}, "metrics": {"auc": [0.77, None, None]}}
    back = {"type": "rolled_back", "previous": B, "reason": "error_share 0.2 > 0.01"}
    log = [
        event(A, "v1", **first, snapshot="20130801-0123456789ab", verdicts={"model": Outcome.PASS}),
        event(A, "v1", **moved),
        event(B, "v2", **second, against=A, verdicts={"model": Outcome.WARN}),
        event(B, "v2", **moved, previous=A),
        event(A, "v1", **moved | back),
        event(C, "v3", parameters={"[bold]odd": "\x1b[31m"}),
    ]
    for it in log:
        event_log(Project(tmp_path)).append(partial(same, it))
    return Project(tmp_path)


def same(event: Event, _: object) -> Event:
    return event


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["history", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_lineage_names_the_champion_beside_and_what_came_after(project: Project) -> None:
    log = event_log(project).events()
    events, shown = history.describe(log, "v2")
    assert events == [log[n] for n in (2, 0, 3, 4)]
    for said in (
        f"digest +{B[:12]} +{A[:12]}",
        "commit +c0ffee",
        f"against +{A[:12]} +none",
        "as_of +2013-08-01",
        "snapshot +20130801-0123456789ab",
        r"metric auc +0.77 \(– to –\) +0.75 \(0.7 to 0.8\)",
        "gate model +warn +pass",
        "parameter rate +0.1 +0.1",
    ):
        assert re.search(said, shown), said
    told = shown.partition("\n\n")[2].splitlines()
    assert all(line.endswith("(ann, local)") for line in told)
    assert re.search("v2  b{12}  registered   model warn", told[0])
    assert re.search("v2  b{12}  promoted     production", told[1])
    assert re.search(
        "v1  a{12}  rolled_back  production from b{12}  error_share 0.2 > 0.01", told[2]
    )


def test_a_first_release_was_judged_beside_nobody(project: Project) -> None:
    log = event_log(project).events()
    events, shown = history.describe(log, "aaa")
    assert events == [log[n] for n in (0, 1, 3, 4)]
    assert re.search(r"against +none\n", shown)


def test_a_comparison_has_what_differs(project: Project) -> None:
    events = json.loads(run("--compare", "v1", "v2", "--json"))
    assert [it["digest"] for it in events] == [A, B]
    shown = run("--compare", "v1", "v2")
    assert re.search("parameter trees +10 +20", shown)
    assert re.search(r"metric auc +0.75 \(0.7 to 0.8\) +0.77 ", shown)
    for same in ("rate", "as_of", "promoted"):
        assert same not in shown


def test_nothing_in_the_log_is_markup_or_a_control_character(project: Project) -> None:
    shown = run("--lineage", "v3")
    assert "[bold]odd" in shown
    assert r"\x1b[31m" in shown


def test_a_prefix_must_name_one_release(project: Project) -> None:
    events = event_log(project).events()
    assert history.find(events, "bc").release == "v3"
    with pytest.raises(UserError, match="more than one release `b`; `ml history` names"):
        history.find(events, "b")
    with pytest.raises(UserError, match="no release `v9`; `ml history` names"):
        history.find(events, "v9")


def test_an_empty_log_is_said(project: Project) -> None:
    for path in event_log(project).folder.iterdir():
        path.unlink()
    for options in ((), ("--ui",)):
        assert run(*options).strip() == history.EMPTY
    assert json.loads(run("--json")) == []
    with pytest.raises(UserError, match="no release `v1`"):
        run("--lineage", "v1")


def test_a_mirror_that_fails_is_one_line_without_the_password(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(history.SERVER, raising=False)
    history.mirror(project)  # not asked for: nothing happens
    assert not (project.work / "mlflow").exists()
    bin_ = project.root / "bin"
    bin_.mkdir()
    failing = (
        '#!/bin/sh\ncat >seen.json\necho "Trace\nno way to ${MLFLOW_TRACKING_URI}api"\nexit 1\n'
    )
    scripts = {"python": failing, "uv": f"#!/bin/sh\n[ $1 != python ] || echo {bin_}/python\n"}
    for name, script in scripts.items():
        (bin_ / name).write_text(script)
        (bin_ / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv(history.SERVER, "http://ann:secret@127.0.0.1:9/")
    with caplog.at_level(logging.WARNING):
        history.mirror(project)
    (message,) = caplog.messages
    assert "no way to the server/api; the next event tries again" in message
    assert "secret" not in message
    assert len(json.loads((project.work / "mlflow" / "seen.json").read_text())) == 6
    with pytest.raises(UserError, match="no way to the server"):
        run("--ui")


def test_a_mirror_without_uv_or_log_is_a_warning_too(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(history.SERVER, "http://127.0.0.1:9")
    monkeypatch.setenv("PATH", str(project.root))
    with caplog.at_level(logging.WARNING):
        history.mirror(project)
        (project.root / "pyproject.toml").unlink()
        history.mirror(project)
    assert ["uv is not installed" in caplog.messages[0], len(caplog.messages)] == [True, 2]


FAKE_GH = """#!{python}
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
words = sys.argv[1:]
if words[0] != "api" or "--method" in words:
    given = sys.stdin.read() if words[-2:] == ["--input", "-"] else ""
    with (folder / "calls").open("a") as calls:
        calls.write(json.dumps([words, given]) + "\\n")
    sys.exit("gh: Validation Failed (HTTP 422)" if (folder / "refuses").exists() else 0)
answers = json.loads((folder / "answers").read_text())
path = words[1].removeprefix("repos/{{owner}}/{{repo}}")
if path not in answers:
    print('{{"message": "Not Found"}}', end="")
    sys.exit("gh: Not Found (HTTP 404)")
print(json.dumps(answers[path]))
"""
NO_LOGIN = "#!/bin/sh\necho 'To get started, please run:  gh auth login' >&2\nexit 4\n"
BARE: dict[str, object] = {
    "": {"default_branch": "main", "private": False, "owner": {"type": "User", "login": "ann"}},
    "user": {"id": 17},
    "/environments": {"environments": []},
    "/actions/variables?per_page=100": {"variables": []},
    "/actions/secrets?per_page=100": {"secrets": []},
    "/rulesets?per_page=100": [],
    "/actions/workflows/weekly.yml": {"state": "disabled_inactivity"},
    "/actions/workflows/weekly.yml/runs?event=schedule&per_page=1": {"workflow_runs": []},
}
REVIEWED = {"name": "production", "protection_rules": [{"type": "required_reviewers"}]}
WHOLE = BARE | {
    "/environments": {"environments": [{"name": "test"}, {"name": "staging"}, REVIEWED]},
    "/actions/variables?per_page=100": {
        "variables": [{"name": f"DEPLOY_RUNNER_{n}"} for n in ("TEST", "STAGING", "PRODUCTION")]
    },
    "/actions/secrets?per_page=100": {"secrets": [{"name": "SOURCE_KEY"}]},
    "/rulesets?per_page=100": [{"name": "one"}, {"name": "two"}],
    "/actions/workflows/weekly.yml": {"state": "active"},
    "/actions/workflows/weekly.yml/runs?event=schedule&per_page=1": {
        "workflow_runs": [{"created_at": "2026-11-20T04:17:00Z"}]
    },
}
PUT = ["api", "--method", "PUT", "repos/{owner}/{repo}/environments/"]
POST = ["api", "--method", "POST", "repos/{owner}/{repo}/rulesets", "--input", "-"]
ASKED = ["-f", "reviewers[][type]=User", "-F", "reviewers[][id]=17"]
CALLS = [
    ([*PUT[:3], f"{PUT[3]}test"], ""),
    ([*PUT[:3], f"{PUT[3]}staging"], ""),
    ([*PUT[:3], f"{PUT[3]}production", *ASKED], ""),
    (POST, '{"name": "one", "target": "tag"}'),
    (POST, '{"name": "two", "target": "branch"}'),
    (["workflow", "enable", "weekly.yml"], ""),
]
Doctor = Callable[..., Result]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Return a function that runs `ml doctor --github` where GitHub answers as given."""
    github = tmp_path / ".github"
    (github / "workflows").mkdir(parents=True)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "data.yaml").touch()
    (github / "workflows" / "ci.yml").write_text("on:\n  pull_request:\n")
    (github / "workflows" / "weekly.yml").write_text("on:\n  schedule:\n    - cron: 0 0 * * 1\n")
    rulesets = [{"name": "one", "target": "tag"}, {"name": "two", "target": "branch"}]
    (github / "rulesets.json").write_text(json.dumps(rulesets))
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(user_module("sources"), "NEEDS", ("SOURCE_KEY",), raising=False)
    put_gh(tmp_path, FAKE_GH.format(python=sys.executable))

    def look(answers: dict[str, object], *options: str, typed: str = "") -> Result:
        (tmp_path / "bin" / "answers").write_text(json.dumps(answers))
        return CliRunner().invoke(app, ["doctor", "--github", *options], input=typed)

    return look


def put_gh(folder: Path, script: str) -> None:
    (folder / "bin" / "gh").write_text(script)
    (folder / "bin" / "gh").chmod(0o755)


def calls(folder: Path) -> list[tuple[list[str], str]]:
    """Return the calls that changed something, with what each read."""
    file = folder / "bin" / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(words, given) for words, given in map(json.loads, lines)]


def said(done: Result) -> dict[str, tuple[bool, str]]:
    """Return each finding by its subject."""
    lines = [re.fullmatch(r"(ok|NO) +(.+?): (.+)", line) for line in done.stdout.splitlines()]
    return {line[2]: (line[1] == "ok", line[3]) for line in lines if line}


def test_a_repository_that_has_everything_is_well(doctor: Doctor) -> None:
    done = doctor(WHOLE)
    assert done.exit_code == 0, done.output
    assert all(ok for ok, _ in said(done).values())
    assert list(said(done)) == [
        *("default branch", "test", "staging", "reviewers", "production"),
        *("DEPLOY_RUNNER_TEST", "DEPLOY_RUNNER_STAGING", "DEPLOY_RUNNER_PRODUCTION"),
        *("SOURCE_KEY", "ruleset one", "ruleset two", "weekly.yml"),
    ]
    assert "2026-11-20T04:17:00Z" in said(done)["weekly.yml"][1]
    assert json.loads(doctor(WHOLE, "--json").stdout)[0]["subject"] == "default branch"


def test_each_thing_that_is_missing_on_github_is_named(doctor: Doctor) -> None:
    about = {"default_branch": "trunk", "private": False, "owner": {"type": "User"}}
    done = doctor(BARE | {"": about})
    found = said(done)
    assert done.exit_code == 2
    hints = {f"DEPLOY_RUNNER_{name}" for name in ("TEST", "STAGING", "PRODUCTION")}
    assert {subject for subject, (ok, _) in found.items() if ok} == hints
    assert len(found) == 12
    assert "`gh variable set DEPLOY_RUNNER_TEST`" in found["DEPLOY_RUNNER_TEST"][1]
    assert "`gh secret set SOURCE_KEY`" in found["SOURCE_KEY"][1]
    assert "nobody is asked" in found["reviewers"][1]
    assert "disabled_inactivity, last run by schedule: none yet" in found["weekly.yml"][1]
    assert "trunk" in found["default branch"][1]


def test_what_a_plan_does_not_enforce_is_said(doctor: Doctor) -> None:
    """A private repository of a person, or of an organisation below Enterprise."""
    person = {"type": "User", "login": "ann"}
    team = {"type": "Organization", "login": "octo"}
    for owner, plan, enforced in (
        (person, {}, False),
        (team, {"plan": {"name": "free"}}, False),
        (team, {}, False),
        (team, {"plan": {"name": "enterprise"}}, True),
    ):
        about = {"default_branch": "main", "private": True, "owner": owner}
        found = said(doctor(WHOLE | {"": about, "orgs/octo": plan}))
        assert found["reviewers"][0] is enforced
        assert ("not enforced" in found["reviewers"][1]) is not enforced
    refused = {"": about | {"owner": person}, "/rulesets?per_page=100": None}
    del (answers := WHOLE | refused)["/rulesets?per_page=100"]
    found = said(doctor(answers, "--fix", typed="n\n"))
    assert found["rulesets"] == (False, "not shown: Not Found (HTTP 404)")
    assert found["weekly.yml"][0]  # it goes on after what it may not see


def test_fix_prints_the_calls_and_makes_them_only_if_asked_to(
    doctor: Doctor, tmp_path: Path
) -> None:
    done = doctor(BARE, "--fix", typed="n\n")
    shown = [line.strip() for line in done.stderr.splitlines() if "gh " in line]
    made = [shlex.join(["gh", *words]) for words, _ in CALLS]
    made[3:5] = [f"jq '.[{n}]' .github/rulesets.json | {call}" for n, call in enumerate(made[3:5])]
    assert shown == made
    assert done.exit_code == 2
    assert calls(tmp_path) == []
    done = doctor(BARE, "--fix", typed="y\n")
    assert done.exit_code == 0, done.output
    assert calls(tmp_path) == CALLS


def test_fix_asks_nothing_where_nothing_is_missing(doctor: Doctor, tmp_path: Path) -> None:
    done = doctor(WHOLE, "--fix")
    assert done.exit_code == 0, done.output
    assert calls(tmp_path) == []


def test_fix_takes_no_rule_of_an_environment_away(doctor: Doctor, tmp_path: Path) -> None:
    timed = {"name": "production", "protection_rules": [{"type": "wait_timer"}]}
    places = {"environments": [{"name": "test"}, {"name": "staging"}, timed]}
    done = doctor(WHOLE | {"/environments": places}, "--fix")
    assert done.exit_code == 2
    assert not said(done)["reviewers"][0]
    assert calls(tmp_path) == []


def test_a_call_that_github_refuses_is_named(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "bin" / "refuses").touch()
    done = doctor(BARE, "--fix", typed="y\n")
    assert isinstance(done.exception, UserError)
    assert str(done.exception) == "Validation Failed (HTTP 422)"
    assert calls(tmp_path) == CALLS[:1]


def test_without_gh_or_a_login_one_sentence_says_so(doctor: Doctor, tmp_path: Path) -> None:
    put_gh(tmp_path, NO_LOGIN)
    assert str(doctor(BARE).exception) == "nobody is logged in to GitHub: run `gh auth login`"
    (tmp_path / "bin" / "gh").unlink()
    assert str(doctor(BARE).exception) == "gh is not installed; see https://cli.github.com"
