"""The past of a release as the log tells it, and a mirror that no delivery fails by."""

from __future__ import annotations

import json
import logging
import os
import re
from functools import partial
from pathlib import Path

import pytest
from model_delivery import history
from model_delivery.cli.main import app
from model_delivery.project import Project
from model_delivery.protocols import UserError
from model_delivery.registry import Event, event_log
from model_delivery.report.verdict import Outcome
from typer.testing import CliRunner

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
