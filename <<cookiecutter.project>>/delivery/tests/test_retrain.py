"""`ml retrain` trains the champion's commit once, when there is reason to, else says why not."""

from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from model_delivery import protocols, releases
from model_delivery.bundle.candidate import Candidate
from model_delivery.cli import main, stages
from model_delivery.cli.doctor import check_schedules
from model_delivery.contract.settings import Retraining
from model_delivery.files import write_json
from model_delivery.gates import model as gate
from model_delivery.history import line
from model_delivery.project import Project, find_project
from model_delivery.protocols import NothingNewError, SourceError, UserError, ask_source
from model_delivery.registry import Event, event_log
from model_delivery.report.verdict import Trigger
from model_delivery.training.snapshot import Snapshot
from model_delivery.watch import retrain as retraining
from model_delivery.watch.retrain import Because, Done, retrain, too_early
from typer.testing import CliRunner

HERE = find_project(Path(__file__))
A, B, C = "a" * 64, "b" * 64, "c" * 64
OLD, NEW = dt.date(2013, 8, 1), dt.date(2013, 10, 1)
PATIENCE = 20
CURRENT = "config/gates.yaml", "config/delivery.yaml"
ML = """#!{python}
import json, os, subprocess, sys, time
status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True).stdout
home = os.environ["ML_HOME"]
known = {{"words": sys.argv[1:], "folder": os.getcwd(), "env": dict(os.environ), "status": status}}
with open(home + "/asked", "w") as stream:
    json.dump(known, stream)
print("its own words")
end = time.monotonic() + {patience}
while os.path.exists(home + "/wait") and time.monotonic() < end:
    time.sleep(0.01)
sys.exit(int(open(home + "/code").read()))
"""


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)
    return done.stdout.decode().strip()


def event(digest: str = A, as_of: dt.date = OLD, **fields: object) -> Event:
    facts = {"type": "registered", "digest": digest, "release": f"v1+{digest[:1]}", "blob": B}
    facts |= {"as_of": str(as_of), "commit": None, "trigger": "local"}
    return Event.model_validate(facts | fields)


def tell(project: Project, *events: Event) -> None:
    for one in events:
        event_log(project).append(lambda _, one=one: one)


def repository(root: Path, top: Path) -> Project:
    """Make a project whose production serves its first commit; a second one is not released."""
    shutil.copytree(HERE.root / "config", root / "config")
    (root / "pyproject.toml").write_text('[project]\nname = "late"\nversion = "1.0.0"\n')
    (root / ".gitignore").write_text(".ml/\n")
    (root / "uv.lock").touch()
    (root / "code").write_text("released")
    git(top, "init", "--quiet", "-b", "main")
    git(top, "add", ".")
    git(top, "commit", "--quiet", "-m", "one")
    project = Project(root)
    serves = {"type": "promoted", "environment": "production"}
    commit = git(top, "rev-parse", "HEAD")
    tell(project, event(commit=commit), event(commit=commit, **serves))
    (root / "code").write_text("not released")
    git(top, "commit", "--quiet", "-am", "two")
    (root / "code").write_text("not committed")
    return project


def install(project: Project, code: int = 0) -> None:
    """Put a program in the place of `ml`, which notes how it was called and ends with a code."""
    place = project.work / "environments" / "retraining" / "bin" / "ml"
    place.parent.mkdir(parents=True)
    place.write_text(ML.format(python=sys.executable, patience=PATIENCE))
    place.chmod(0o755)
    (project.work / "code").write_text(str(code))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    made, real = repository(tmp_path, tmp_path), retraining.run

    def run(command: list[str], *rest: Any, **options: Any) -> str:
        return "" if command[0] == "uv" else real(command, *rest, **options)

    monkeypatch.setattr(retraining, "run", run)
    return made


def ask(
    project: Project,
    as_of: dt.date | None = NEW,
    because: Because = "schedule",
    until: str = "deploy",
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Done:
    return retrain(project, as_of, because, until, force, say)


def asked(project: Project) -> dict[str, Any]:
    return dict(json.loads((project.work / "asked").read_text()))


def change(project: Project, name: str, edit: Callable[[Any], object]) -> None:
    """Change a file of `config/`."""
    file = project.root / "config" / f"{name}.yaml"
    content = yaml.safe_load(file.read_text())
    edit(content)
    file.write_text(yaml.safe_dump(content))


def nothing_runs(*_: object) -> int:
    raise AssertionError("it trains")


def test_the_champions_commit_is_shipped_with_the_limits_of_now(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in CURRENT:
        with (project.root / name).open("a") as stream:
            stream.write("# of now\n")
    install(project)
    monkeypatch.setenv("VIRTUAL_ENV", "/ours")
    monkeypatch.setenv("GITHUB_SHA", "f" * 40)
    ask(project, because="drift", until="load")
    found, commit = asked(project), git(project.root, "rev-parse", "HEAD^")
    root, options = Path(found["folder"]), "--event retraining --as-of 2013-10-01 --until load"
    assert found["words"] == ["ship", *options.split()]
    assert (root / "code").read_text() == "released"
    assert [(root / name).read_text().endswith("# of now\n") for name in CURRENT] == [True, True]
    assert found["status"] == ""  # else the report calls them not committed
    env = found["env"]
    assert (env["GITHUB_SHA"], env["ML_BECAUSE"]) == (commit, "drift")
    assert (env["ML_HOME"], "VIRTUAL_ENV" in env) == (str(project.work), False)
    assert capfd.readouterr().err.count("its own words") == 1
    assert (project.root / "code").read_text() == "not committed"


@pytest.mark.parametrize(
    ("code", "ends", "said"),
    [
        (20, 20, "v1+a stays in production: a gate or the rollout says stop; `ml report`"),
        (30, 30, "v1+a stays in production: inconclusive"),
        (2, 2, "if `delivery/` was updated since its commit, deliver that first"),
        (1, 1, "`ml ship` ended with code 1"),
        (0, 0, "nothing was registered"),
        (10, 0, "nothing was registered"),
    ],
)
def test_what_ship_ended_with_is_told(project: Project, code: int, ends: int, said: str) -> None:
    install(project, code)
    before = event_log(project).events()
    done = ask(project)
    assert (done.code, said in done.sentence, done.digest) == (ends, True, ""), done
    assert event_log(project).events() == before


@pytest.mark.parametrize("code", [0, 10])
def test_what_came_of_it_is_read_in_the_log(
    project: Project, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def ship(home: Project, root: Path, words: list[str], *_: object) -> int:
        commit = git(root, "rev-parse", "HEAD")
        tell(home, event(B, NEW, trigger="retraining", commit=commit))
        if words[-1] == "deploy":
            moved = {"type": "promoted", "environment": "production"}
            tell(home, event(B, NEW, trigger="retraining", commit=commit, **moved))
        return code

    monkeypatch.setattr(retraining, "_ship", ship)
    done = ask(project, until="register")
    assert done == Done(0, f"v1+b ({B[:12]}) is in the log; `ml deploy v1+b` brings it on", B)
    assert ask(project) == Done(0, f"v1+b ({B[:12]}) is in production", B)
    assert ask(project).sentence == "no new data as of 2013-10-01: v1+b is of 2013-10-01"


def test_without_new_data_nothing_is_done(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining, "_ship", nothing_runs)
    before = event_log(project).events()
    for day, newest in ((OLD, NEW), (None, OLD), (dt.date(2013, 7, 1), NEW)):
        source = SimpleNamespace(newest=lambda day=newest: day)
        monkeypatch.setattr(protocols, "user_module", lambda _, it=source: it)
        done = ask(project, day, "person", force=True)
        assert (done.code, done.sentence[:11]) == (0, "no new data"), done
    assert event_log(project).events() == before
    assert not (project.work / "worktrees").exists()
    monkeypatch.setattr(protocols, "user_module", lambda _: SimpleNamespace(newest=lambda: NEW))
    with pytest.raises(AssertionError, match="it trains"):
        ask(project, None)


def test_a_source_without_its_newest_day_knows_all_until_today(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocols, "user_module", lambda _: SimpleNamespace())
    assert protocols.first_unknown_day() in (dt.date.today(), dt.date.today() - dt.timedelta(1))
    soon = SimpleNamespace(newest=lambda: dt.datetime(2013, 8, 1, 12))
    monkeypatch.setattr(protocols, "user_module", lambda _: soon)
    with pytest.raises(UserError, match=r"sources.newest\(\): returned datetime"):
        protocols.first_unknown_day()


def retrained(days: list[int], rolled_out: bool = True) -> list[Event]:
    """Return a log of retrainings as of days of October."""
    log = list[Event]()
    for day in days:
        about = {"digest": f"{day:064d}", "as_of": dt.date(2013, 10, day), "trigger": "retraining"}
        log.append(event(**about))
        if rolled_out:  # back at once, so the other one is what serves
            about |= {"digest": A, "previous": f"{day:064d}", "environment": "production"}
            log.append(event(**about | {"type": "rolled_back"}))
    return log


@pytest.mark.parametrize(
    ("days", "asked_for", "said"),
    [
        ([], 9, ""),
        ([1], 7, "cool-down of 7 days: one was tried as of 2013-10-01"),
        ([1], 8, ""),
        ([8, 1], 9, "cool-down of 7 days: one was tried as of 2013-10-08"),
        ([1, 8, 15], 22, "budget spent: 3 were tried in 30 days"),
        ([1, 8, 15], 30, "budget spent: 3 were tried in 30 days"),
        ([1, 8, 15], 31, ""),
    ],
)
def test_cool_down_and_budget_count_by_the_datas_time(
    days: list[int], asked_for: int, said: str
) -> None:
    settings, day = Retraining(cooldown_days=7, most_a_month=3), dt.date(2013, 10, asked_for)
    assert too_early(settings, retrained(days), day) == said
    assert too_early(settings, retrained(days, rolled_out=False), day) == ""  # may go on
    by_hand = [one.model_copy(update={"trigger": "local"}) for one in retrained(days)]
    assert too_early(settings, by_hand, day) == ""


def test_a_cool_down_holds_neither_a_person_nor_force_and_a_budget_only_yields_to_force(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining, "_ship", lambda *_: 0)
    champion, day = event_log(project).events()[-1], dt.date(2013, 10, 20)
    log = [one.model_copy(update={"commit": champion.commit}) for one in retrained([15])]
    back = [one.model_copy(update={"as_of": str(OLD)}) for one in log[1:]]
    tell(project, log[0], *back)
    said = list[str]()
    held = ask(project, day)
    assert (held.code, held.sentence[:9]) == (0, "cool-down"), held
    assert "--force skips it" in held.sentence
    assert "nothing was registered" in ask(project, day, "person", say=said.append).sentence
    assert [one.partition(";")[2] for one in said] == [" it goes on, as a person asks for it"]
    assert "nothing was registered" in ask(project, day, force=True).sentence
    change(project, "delivery", lambda it: it.update(retraining={"most_a_month": 1}))
    assert ask(Project(project.root), day, "person").sentence.startswith("budget spent")


def test_what_cannot_be_trained_here_is_said_with_what_mends_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining, "_ship", nothing_runs)
    moved = {"type": "promoted", "environment": "production"}
    git(project.root, "rm", "--quiet", "--cached", "uv.lock")
    git(project.root, "commit", "--quiet", "-m", "no lock")
    last = git(project.root, "rev-parse", "HEAD")
    for commit, told in (
        (None, "v1+b was delivered from no commit; commit the project, and `ml ship`"),
        ("d" * 40, "v1+b: its commit dddddddddddd is not in this clone; run `git fetch --unsh"),
        (last, f"v1+b: no uv.lock in its commit {last[:12]}; commit it, and deliver"),
    ):
        tell(project, event(B, commit=commit, **moved))
        with pytest.raises(UserError) as caught:
            ask(project)
        assert str(caught.value).startswith(told)
        assert caught.value.code == 2


def test_without_a_champion_or_a_repository_there_is_nothing_to_train_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    project = Project(tmp_path / "plain")
    shutil.copytree(HERE.root / "config", project.root / "config")
    with pytest.raises(UserError, match="production has no release to train again; deliver one"):
        ask(project, because="person")
    assert "deliver one" in ask(project, because="schedule").sentence  # no failure each week
    tell(project, event(type="promoted", environment="staging", commit="d" * 40))
    with pytest.raises(UserError, match="production has no release"):
        ask(project, because="drift")
    tell(project, event(type="promoted", environment="production", commit="d" * 40))
    with pytest.raises(UserError, match="is not in this clone"):
        ask(project)


def test_a_project_below_the_top_of_its_repository_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "models" / "late"
    made.mkdir(parents=True)
    project, roots = repository(made, tmp_path), list[Path]()
    monkeypatch.setattr(retraining, "_ship", lambda _, root, *rest: roots.append(root) or 20)
    assert ask(project).code == 20
    assert [(root / "code").read_text() for root in roots] == ["released"]


def test_what_could_not_be_deployed_from_here_is_not_trained(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining, "_ship", lambda *_: 20)
    change(project, "data", lambda it: it.update(as_of=it["as_of"] - dt.timedelta(days=1)))
    with pytest.raises(UserError, match=r"config/data.yaml here is not that of v1\+a"):
        ask(project, until="register")
    assert ask(project).code == 20  # it rolls out from the champion's commit


def forked(work: Callable[..., object], *arguments: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process  # type: ignore[return-value]


def wait(path: Path) -> None:
    """Return when a file is there; after a while the test goes on, and finds that it is not."""
    end = time.monotonic() + PATIENCE
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)


def test_two_at_once_train_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def ship(home: Project, root: Path, *_: object) -> int:
        with (home.work / "trained").open("a") as stream:
            stream.write("once\n")
        wait(home.work / "both")
        commit = git(root, "rev-parse", "HEAD")
        moved = {"type": "promoted", "environment": "production", "trigger": "retraining"}
        tell(home, event(B, NEW, commit=commit, **moved))
        return 0

    def second() -> None:
        said = ask(project, say=lambda _: (project.work / "both").touch())
        (project.work / "second").write_text(said.sentence)

    monkeypatch.setattr(retraining, "_ship", ship)
    project.work.mkdir()
    first = forked(lambda: ask(project, say=nothing_runs))
    wait(project.work / "trained")
    later = forked(second)
    for process in (first, later):
        process.join(60)
        assert process.exitcode == 0
    assert (project.work / "trained").read_text() == "once\n"
    assert (project.work / "second").read_text().startswith("no new data")


def test_while_ship_works_on_another_waits_though_the_first_was_killed(project: Project) -> None:
    install(project)
    (project.work / "wait").touch()
    first = forked(ask, project)
    wait(project.work / "asked")
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    told = list[str]()

    def let_it_end(sentence: str) -> None:
        told.append(sentence)
        (project.work / "wait").unlink()

    assert "nothing was registered" in ask(project, say=let_it_end).sentence
    assert told == ["another `ml retrain` is at work; this one waits, and looks then what is left"]


def test_killed_anywhere_a_rerun_does_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after each command and each copy; and within git, which then leaves a lock."""
    install(project, 20)
    acts = {"run": retraining.run, "git": retraining.git}
    copy, calls = shutil.copyfile, 0

    def deadly(act: Callable[..., Any], left: int) -> Callable[..., Any]:
        def wrapped(*words: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == left:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*words, **options)

        return wrapped

    def once(left: int) -> None:
        for name, act in acts.items():
            monkeypatch.setattr(retraining, name, deadly(act, left))
        monkeypatch.setattr(shutil, "copyfile", deadly(copy, left))
        ask(project)

    killed = 0
    for left in range(1, 20):
        process = forked(once, left)
        process.join(60)
        if process.exitcode == 0:
            break
        killed += process.exitcode == -signal.SIGKILL
        assert ask(project).code == 20
        assert (Path(asked(project)["folder"]) / "code").read_text() == "released"
    assert killed == left - 1 >= 8
    folder = Path(asked(project)["folder"])
    git(project.root, "worktree", "lock", str(folder))
    (folder / ".git").unlink()
    assert ask(project).code == 20
    assert len(git(project.root, "worktree", "list").splitlines()) == 2


def test_a_source_that_is_down_is_asked_three_times_and_a_mistake_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class DriverError(Exception):
        """As databases have their own."""

    calls, waits = list[int](), list[float]()
    errors = list[Exception]()

    def extract(day: int) -> str:
        calls.append(day)
        if errors:
            raise errors.pop(0)
        return "rows"

    monkeypatch.setattr(protocols, "user_module", lambda _: SimpleNamespace(extract=extract))
    monkeypatch.setattr(protocols.time, "sleep", waits.append)
    errors += [ConnectionError("refused"), DriverError("away")]
    assert ask_source("extract", 7) == "rows"
    assert (calls, len(waits), waits == sorted(waits)) == ([7, 7, 7], 2, True)
    errors += [TimeoutError(), ConnectionError(), DriverError("no answer")]
    with pytest.raises(SourceError, match=r"sources.extract: .* 3 times \(DriverError: no answ"):
        ask_source("extract", 7)
    for error in (UserError("no such day"), KeyError("x"), ValueError("x"), TypeError("x")):
        calls.clear()
        errors[:] = [error]
        with pytest.raises(type(error)):
            ask_source("extract", 7)
        assert calls == [7]


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("x"), 2), (SourceError("x"), 30), (NothingNewError("x"), 0)]
)
def test_the_process_ends_with_the_errors_code(
    monkeypatch: pytest.MonkeyPatch, error: UserError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == code
    assert capsys.readouterr().err == ("error x\n" if code else "x\n")


@pytest.mark.parametrize(
    ("event_", "end", "nothing"),
    [
        ("retraining", "2013-07-31T23:59:00", True),
        ("retraining", "2013-07-31T23:00:00", True),
        ("retraining", "2013-07-31T23:59:00.500000", False),
        ("retraining", "2013-09-30T00:00:00", False),
        ("delivery", "2013-07-31T23:59:00", False),
    ],
)
def test_a_later_day_without_a_later_row_is_no_new_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event_: Trigger, end: str, nothing: bool
) -> None:
    snapshot, old = Snapshot(tmp_path / "new"), Candidate(tmp_path / "old")
    for folder, data in ((snapshot.folder, None), (old.folder, "2013-07-31T23:59:00")):
        folder.mkdir()
        spans = {"spans": {"test": ["2013-07-01T00:00:00", data or end]}}
        write_json(folder / "manifest.json", spans)
        write_json(folder / "lineage.json", {"data": spans, "changed_files": 0})
    monkeypatch.setattr(stages, "needed_variables", tuple)
    monkeypatch.setattr(stages.data, "take_snapshot", lambda *_: snapshot)
    monkeypatch.setattr(releases, "champion", lambda _: old)
    shutil.copytree(HERE.root / "config", tmp_path / "config")
    run = stages.Run(Project(tmp_path), event_, NEW)
    if nothing:
        with pytest.raises(NothingNewError, match=f"newest row is of {end}"):
            stages.extract(run)
    else:
        assert stages.extract(run) is snapshot


def test_a_later_snapshot_is_compared_on_rows_that_the_champion_never_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of its test window that the champion was trained on do not count."""
    days = np.arange("2013-06-20", "2013-08-20", dtype="datetime64[D]").astype("datetime64[us]")
    target, time_ = HERE.contract.target, HERE.contract.time
    columns = {time_: days, target: days.astype(int) % 2 == 0, "score": np.full(len(days), 0.5)}
    candidate, champion = Candidate(tmp_path / "new"), Candidate(tmp_path / "old")
    champion.ship.mkdir(parents=True)
    candidate.folder.mkdir()
    pq.write_table(pa.table(columns), candidate.path("test"))
    (champion.ship / "request.json").write_text("{}")
    until = "2013-06-30T23:59:00"
    spans = {"data": {"spans": {"train": ["2013-01-01T00:00:00", until]}}}
    write_json(champion.folder / "lineage.json", spans)
    monkeypatch.setattr(gate, "score_cleanly", lambda *_: np.linspace(0, 1, len(days)))
    project = Project(tmp_path)
    limits = HERE.gates.model.model_copy(update={"segment_rows": 50})
    object.__setattr__(project, "gates", HERE.gates.model_copy(update={"model": limits}))
    object.__setattr__(project, "contract", HERE.contract)
    scored = gate.read_scored(project, candidate, champion)
    assert scored.champion is not None
    counted = np.isfinite(scored.champion)
    assert (days[counted].min(), counted.sum()) == (np.datetime64("2013-07-01"), 50)
    too_few = limits.model_copy(update={"segment_rows": 51})
    object.__setattr__(project, "gates", HERE.gates.model_copy(update={"model": too_few}))
    with pytest.raises(UserError, match=f"only 50 test rows are later .* \\(until {until}"):
        gate.read_scored(project, candidate, champion)


def test_a_retraining_keeps_its_commit_wherever_it_is_deployed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that deploys it has main checked out, whose code it is not of."""
    monkeypatch.setenv("GITHUB_SHA", "f" * 40)
    tell(project, event(B, NEW, trigger="retraining", commit="c" * 40, because="decay"))
    assert releases.resolve(project, B).commit == "c" * 40
    assert releases.resolve(project, A).commit == "f" * 40
    told = event_log(project).events()[-1]
    assert (line(told).endswith(", retraining: decay)"), told.because) == (True, "decay")
    assert line(event()).endswith(", local)")


def test_why_it_was_started_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lineage = {"data": {"as_of": "2013-10-01"}, "snapshot": "s", "parameters": {}}
    write_json(tmp_path / "lineage.json", lineage)
    for because in ("drift", ""):
        monkeypatch.setenv("ML_BECAUSE", because)
        assert releases._facts(Candidate(tmp_path))["because"] == because


CRON = """on:
  schedule:
    - cron: {cron} # static, as GitHub wants it
jobs: {{}} # - cron is no schedule
"""


def test_a_schedule_that_is_not_the_settings_one_is_found_and_set(project: Project) -> None:
    wanted = {"retrain": "17 3 * * 1", "monitor": "27 4 * * *"}
    times = {name: {"cron": cron} for name, cron in wanted.items()}
    named = {"retraining": times["retrain"], "monitoring": times["monitor"]}
    change(project, "delivery", lambda it: it.update(named))
    folder = project.root / ".github" / "workflows"
    folder.mkdir(parents=True)
    check_schedules(project)  # another system's workflows are its own
    for name, cron in wanted.items():
        (folder / f"{name}.yml").write_text(CRON.format(cron=f'"{cron}"'))
    check_schedules(project)
    for name, other in (("retrain", '"1 1 * * *"'), ("monitor", "2 2 * * *")):
        (folder / f"{name}.yml").write_text(CRON.format(cron=other))
        told = f"{name}.yml starts at other times than `{wanted[name]}`".replace("*", r"\*")
        with pytest.raises(UserError, match=f"^{told} .* run `ml doctor --fix`"):
            check_schedules(project)
        check_schedules(project, fix=True)
        assert (folder / f"{name}.yml").read_text() == CRON.format(cron=f'"{wanted[name]}"')
        check_schedules(project)


def test_doctor_names_a_wrong_schedule_and_sets_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.root)
    place = project.root / ".github" / "workflows" / "monitor.yml"
    place.parent.mkdir(parents=True)
    place.write_text(CRON.format(cron='"0 0 1 1 *"'))
    plain = CliRunner().invoke(main.app, ["doctor"])
    assert plain.exit_code == 2
    assert "NO  schedules: monitor.yml starts at other times than" in plain.stdout
    assert "0 0 1 1 *" in place.read_text()
    assert "ok  schedules: as config" in CliRunner().invoke(main.app, ["doctor", "--fix"]).stdout
    assert project.delivery.monitoring.cron in place.read_text()


def test_the_workflows_start_when_config_delivery_yaml_says() -> None:
    """`ml doctor --fix` sets them."""
    check_schedules(HERE)


@pytest.mark.parametrize("cron", ["", "daily", "1 2 3 4", "1 2 3 4 5 6", "* * * * * \n- x"])
def test_what_is_no_cron_line_is_refused_by_name(project: Project, cron: str) -> None:
    change(project, "delivery", lambda it: it.update(retraining={"cron": cron}))
    with pytest.raises(UserError, match=r"delivery.yaml:\d+: `retraining.cron`"):
        _ = project.delivery
