"""The registry keeps every event, names what was tampered with, and forgets no champion."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from model_delivery.bundle.candidate import Candidate, candidate_folder
from model_delivery.files import (
    read_json,
    seal,
    settle,
    sha256_file,
    temporary_folder,
    write_atomic,
)
from model_delivery.project import Project
from model_delivery.protocols import UserError
from model_delivery.registry import (
    DirectoryLog,
    Event,
    GitLog,
    blob_store,
    event_log,
    newest,
    next_move,
)
from model_delivery.releases import champion, register
from model_delivery.training.snapshot import inputs_hash


def event(**fields: object) -> Event:
    facts = {"type": "promoted", "digest": "a" * 64, "release": "v1", "as_of": "2013-08-01"}
    facts |= {"commit": None, "trigger": "local", "blob": "b" * 64, "environment": "production"}
    return Event.model_validate(facts | fields)


def add(log: DirectoryLog, **fields: object) -> Event:
    made = event(**fields)
    log.append(lambda _: made)
    return made


ROUNDS = int(os.environ.get("REGISTRY_ROUNDS", "3"))
"""How often each of eight writers writes, wherever the log lies."""
STRIDE = int(os.environ.get("FAULT_STRIDE", "3"))
"""A writer is killed after every so manieth git command; 1 for each of them."""


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever runs the tests may have a name, an editor and hooks in git; CI may have none."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")  # where an `origin` is shared


@pytest.fixture
def log(tmp_path: Path) -> DirectoryLog:
    return DirectoryLog(tmp_path / "events")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.1.0"\n')
    return Project(tmp_path)


def git(root: Path, *command: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *who, *command], cwd=root, check=True, capture_output=True)
    return done.stdout.decode().strip()


def repository(root: Path) -> Project:
    """Make a project with a commit."""
    git(root.parent, "init", "--quiet", "-b", "main", str(root))
    (root / "pyproject.toml").write_text('[project]\nversion = "1.1.0"\n')
    (root / ".gitignore").write_text(".ml/\n")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "start")
    return Project(root)


def clones(folder: Path, number: int, *options: str) -> list[Project]:
    """Make clones of one bare repository, `origin.git`."""
    if not (folder / "origin.git").exists():
        repository(folder / "source")
        git(folder, "clone", "--quiet", "--bare", "source", "origin.git")
    made = []
    for n in range(number):
        root = folder / f"clone{n}{''.join(options)}"
        git(folder, "clone", "--quiet", *options, (folder / "origin.git").as_uri(), str(root))
        made.append(Project(root))
    return made


def places(kind: str, folder: Path, number: int) -> list[Project]:
    """Return projects of so many writers to one log."""
    if kind == "origin":
        return clones(folder, number)
    if kind == "git":
        return [repository(folder / "project")] * number
    (folder / "project").mkdir()
    return [Project(folder / "project")] * number


def start(work: Callable[..., object], *arguments: object) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def make_candidate(
    project: Project, name: str, as_of: str = "2013-08-01", **ship: str
) -> Candidate:
    staged = project.work / "staged"
    (staged / "ship" / "model").mkdir(parents=True)
    for path, text in {"model/model.txt": name, "requirements.txt": "", **ship}.items():
        (staged / "ship" / path).write_text(text)
    lineage = {"data": {"as_of": as_of}, "commit": "c" * 40, "snapshot": "s", "parameters": {}}
    lineage["key"] = f"key of {name[:20]}"
    (staged / "lineage.json").write_text(json.dumps(lineage))
    folder = candidate_folder(project, seal(staged / "ship"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged.rename(folder)
    return Candidate(folder)


def test_events_keep_their_order_and_are_written_once(log: DirectoryLog) -> None:
    times = [f"{2030 - n}-01-01T00:00:00+00:00" for n in range(12)]  # a clock set back
    written = [add(log, time=time) for time in times]
    log.append(lambda _: written[3])
    assert [e.id for e in log.events()] == [e.id for e in written]
    assert log.events()[1].after == sha256_file(log.folder / "000001.json")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: p.write_text(p.read_text().replace("v1", "v9")), "event edited"),
        (Path.unlink, "event missing"),
        (lambda p: p.write_text('{"surprise": 1}'), r"not an event"),
    ],
)
def test_a_harmed_event_is_named(
    log: DirectoryLog, harm: Callable[[Path], object], message: str
) -> None:
    for _ in range(3):
        add(log)
    harm(log.folder / "000002.json")  # of the newest nothing tells
    with pytest.raises(UserError, match=rf"000002\.json: {message}"):
        log.events()


def test_who_loses_a_compare_and_set_decides_again(log: DirectoryLog) -> None:
    seen = []

    def decide(events: Sequence[Event]) -> Event:
        seen.append(len(events))
        if len(seen) == 1:
            add(log, release="the faster one")
        return event(release=f"after {len(events)}")

    log.append(decide)
    assert [e.release for e in log.events()] == ["the faster one", "after 1"]
    assert newest(log.events(), release="nobody") is None


def promote(log: DirectoryLog, digest: str, seen: Event | None) -> Event:
    """Make a digest the champion as a rehearsed delivery does, if what was seen still is."""
    before = seen.digest if seen else None
    move = event(digest=digest, release=digest, previous=before, who=f"writer {digest}")
    return log.append(partial(next_move, move, True))


def _write_many(project: Project, writer: int, losses: Path) -> None:
    log = event_log(project)
    for number in range(ROUNDS):
        seen = newest(log.events(), environment="production")
        while True:
            try:
                promote(log, f"{writer}.{number}", seen)
                break
            except UserError as error:
                with losses.open("a") as lost:
                    lost.write(f"{error}\n")
                seen = newest(log.events(), environment="production")


@pytest.mark.parametrize("kind", ["directory", "git", "origin"])
def test_eight_writers_at_once_lose_no_event_and_each_loser_says_so(
    tmp_path: Path, kind: str
) -> None:
    projects, losses = places(kind, tmp_path, 8), tmp_path / "losses"
    losses.touch()
    began = time.monotonic()
    writers = [start(_write_many, project, n, losses) for n, project in enumerate(projects)]
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 8
    events = event_log(projects[0]).events()
    said = losses.read_text().splitlines()
    print(f"{kind}: {len(events)} events, {len(said)} lost, {time.monotonic() - began:.1f} s")
    assert sorted(e.digest for e in events) == sorted(
        f"{w}.{n}" for w in range(8) for n in range(ROUNDS)
    )
    assert [e.previous for e in events] == [None, *(e.digest for e in events[:-1])]
    won = {f"production: {e.digest} was accepted meanwhile, by {e.who}" for e in events}
    assert {line.partition("; run ")[0] for line in said} <= won


@pytest.mark.parametrize("kind", ["directory", "git", "origin"])
def test_of_two_promotions_after_the_same_one_the_second_is_told_who_won(
    tmp_path: Path, kind: str
) -> None:
    mine, theirs = (event_log(project) for project in places(kind, tmp_path, 2))
    before = promote(mine, "a", None)
    seen = newest(theirs.events(), id=before.id)
    promote(mine, "b", newest(mine.events(), id=before.id))
    with pytest.raises(UserError, match="b was accepted meanwhile, by writer b; run c again"):
        promote(theirs, "c", seen)
    assert [e.digest for e in theirs.events()] == ["a", "b"]


def test_an_answer_that_was_lost_is_not_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = DirectoryLog(tmp_path / "events")
    write = DirectoryLog._write

    def cut(log: DirectoryLog, version: str, name: str, content: bytes) -> None:
        write(log, version, name, content)
        raise UserError("the connection broke")

    monkeypatch.setattr(DirectoryLog, "_write", cut)
    assert promote(log, "a", None).digest == "a"
    assert len(log.events()) == 1


def killed_writer(
    folder: Path, script: str, log: DirectoryLog, made: Event, **told: object
) -> int | None:
    """Append an event in a process whose git is a script that may kill it; return its exit code."""
    path = folder / "bin" / "git"
    path.parent.mkdir(exist_ok=True)
    path.write_text(script)
    path.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"GIT": shutil.which("git"), "CALLS": folder / "calls", **told}.items():
            patch.setenv(name, str(value))
        patch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        writer = start(log.append, lambda _: made)
        writer.join()
    return writer.exitcode


CUT = """#!/bin/sh
n=$(($(cat "$CALLS") + 1))
echo $n > "$CALLS"
"$GIT" "$@"
code=$?
[ $n = "$LAST" ] && kill -9 $PPID
exit $code
"""


@pytest.mark.parametrize("kind", ["git", "origin"])
def test_a_writer_killed_at_any_git_command_leaves_old_or_new(tmp_path: Path, kind: str) -> None:
    project, reader = places(kind, tmp_path, 2)
    kept, killed, cut_off = [add(event_log(reader)).id], True, 0
    for last in itertools.count(1, STRIDE):
        if not killed:
            break
        made, log = event(), event_log(project)
        (tmp_path / "calls").write_text("0")
        code = killed_writer(tmp_path, CUT, log, made, LAST=last)
        killed = code == -9
        assert killed or code == 0
        found = [e.id for e in event_log(reader).events()]
        assert found in (kept, [*kept, made.id])
        cut_off += found == kept
        log.append(lambda _, made=made: made)  # the same command again
        kept.append(made.id)
        assert [e.id for e in event_log(reader).events()] == kept
    print(f"{kind}: killed after {len(kept) - 2} git commands, {cut_off} times the old state")
    assert cut_off > 0


CUT_PUSH = """#!/bin/sh
case "$1" in push) ;; *) exec "$GIT" "$@" ;; esac
"$GIT" "$@" &
sleep "$DELAY"
kill -9 $! && echo cut > "$CALLS"
kill -9 $PPID
"""


def test_a_push_that_is_cut_at_any_moment_leaves_old_or_new(tmp_path: Path) -> None:
    """Of a push git itself, and its writer, are killed after ever more milliseconds."""
    project, reader = places("origin", tmp_path, 2)
    kept, new, calls = [add(event_log(reader)).id], list[bool](), tmp_path / "calls"
    for delay in range(0, 400, 10 * STRIDE):
        made, log = event(), event_log(project)
        calls.write_text("")
        assert killed_writer(tmp_path, CUT_PUSH, log, made, DELAY=delay / 1000) == -9
        found = [e.id for e in event_log(reader).events()]
        assert found in (kept, [*kept, made.id])
        new.append(found != kept)
        log.append(lambda _, made=made: made)  # the same command again
        kept.append(made.id)
        assert [e.id for e in event_log(reader).events()] == kept
        if not calls.read_text():  # the push had ended by itself
            break
    print(f"{len(new) - 1} pushes cut, of which {sum(new[:-1])} had arrived")
    assert len(new) > 1
    assert new[-1]


def test_the_users_tree_index_and_branches_are_left_alone(tmp_path: Path) -> None:
    for project in (*clones(tmp_path, 1), repository(tmp_path / "alone")):
        root = project.root
        hooks = root / ".git" / "hooks"
        hooks.mkdir(exist_ok=True)
        for name in ("pre-push", "pre-commit", "commit-msg", "post-commit", "prepare-commit-msg"):
            (hooks / name).write_text("#!/bin/sh\nexit 1\n")
            (hooks / name).chmod(0o755)
        (root / "staged.txt").write_text("staged")
        git(root, "add", "staged.txt")
        (root / "pyproject.toml").write_text("changed")

        def state(root: Path = root) -> list[str]:
            mine = "status --porcelain", "rev-parse HEAD", "symbolic-ref HEAD", "diff", "stash list"
            said = [git(root, *command.split()) for command in mine]
            index = sha256_file(root / ".git" / "index")
            fetched = (root / ".git" / "FETCH_HEAD").exists()
            return [*said, index, str(fetched), git(root, "rev-parse", "main")]

        before = state()
        add(event_log(project))
        add(event_log(project))
        assert len(event_log(project).events()) == 2
        assert state() == before


@pytest.mark.parametrize(
    "options", [["--depth=1"], ["--single-branch"], ["--depth=1", "--no-single-branch"]]
)
def test_a_clone_of_a_part_reads_and_writes(tmp_path: Path, options: list[str]) -> None:
    (whole,) = clones(tmp_path, 1)
    written = [add(event_log(whole)) for _ in range(2)]
    (part,) = clones(tmp_path, 1, *options)
    assert [e.id for e in event_log(part).events()] == [e.id for e in written]
    written.append(add(event_log(part)))
    add(event_log(whole))
    assert [e.id for e in event_log(part).events()][:3] == [e.id for e in written]


def test_an_origin_that_refuses_is_asked_five_times_and_quoted(tmp_path: Path) -> None:
    (project,) = clones(tmp_path, 1)
    add(event_log(project))
    hook = tmp_path / "origin.git" / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\necho >> {tmp_path}/asked\necho branch is protected >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(UserError, match=r"no event can be recorded:(.|\n)*branch is protected"):
        add(event_log(project))
    assert len((tmp_path / "asked").read_text().splitlines()) == 5
    hook.unlink()
    assert len(event_log(project).events()) == 1


def test_without_origin_in_reach_the_log_is_what_was_seen_and_takes_nothing(
    tmp_path: Path,
) -> None:
    (project,) = clones(tmp_path, 1)
    written = add(event_log(project))
    assert len(event_log(project).events()) == 1
    (tmp_path / "origin.git").rename(tmp_path / "away")
    git(tmp_path, "clone", "--quiet", str(project.root), "other")  # here it was never seen
    git(tmp_path / "other", "remote", "set-url", "origin", "../origin.git")
    with pytest.raises(UserError, match=r"out of reach(.|\n)*`gh auth setup-git`"):
        champion(Project(tmp_path / "other"))
    assert newest(event_log(project).events(), id=written.id)
    with pytest.raises(UserError, match="out of reach"):
        add(event_log(project))
    (tmp_path / "away").rename(tmp_path / "origin.git")
    add(event_log(project))
    assert len(event_log(project).events()) == 2


def _change(path: Path) -> None:
    path.write_text(path.read_text().replace("v1", "v9"))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: _change(folder / "000002.json"), r"000002\.json: event edited"),
        (lambda folder: _change(folder / "000003.json"), r"000003\.json: event edited"),
        (
            lambda folder: (folder / "000002.json").unlink(),
            r"000002\.json: event edited or removed",
        ),
        (
            lambda folder: (folder / "000003.json").unlink(),
            r"000003\.json: event edited or removed",
        ),
        (
            lambda folder: (folder / "000003.json").rename(folder / "000004.json"),
            r"000003\.json: event edited or removed",
        ),
        (
            lambda folder: shutil.copy(folder / "000003.json", folder / "000004.json"),
            r"000004\.json inserted",
        ),
        (lambda folder: (folder / "000004.json").write_text("{}"), r"000004\.json: not an event"),
        (lambda folder: (folder / "000009.json").write_text("{}"), r"000004\.json: event missing"),
    ],
)
def test_an_edited_branch_is_refused_until_it_is_mended(
    tmp_path: Path, harm: Callable[[Path], object], message: str
) -> None:
    project, editor = clones(tmp_path, 2)
    log = event_log(project)
    for kept in (DirectoryLog(log.folder), DirectoryLog(log.folder), log):
        add(kept)
    git(editor.root, "fetch", "--quiet")
    git(editor.root, "checkout", "--quiet", "model-registry")
    harm(editor.root / "events")
    git(editor.root, "add", "--all")
    git(editor.root, "commit", "--quiet", "-m", "edit")
    git(editor.root, "push", "--quiet", "origin", "model-registry")
    for seen in (project, *clones(tmp_path, 1, "--single-branch")):
        with pytest.raises(UserError, match=message):
            event_log(seen).events()
        with pytest.raises(UserError, match=message):
            add(event_log(seen))
    with pytest.raises(subprocess.CalledProcessError):  # it knows no better
        git(seen.root, "rev-parse", "refs/model-registry/seen")
    git(project.root, "push", "-f", "origin", "refs/model-registry/seen:refs/heads/model-registry")
    add(event_log(seen))
    assert len(event_log(project).events()) == 4


def test_a_branch_with_another_history_is_refused(tmp_path: Path) -> None:
    project, editor = clones(tmp_path, 2)
    for _ in range(2):
        add(event_log(project))
    event_log(project).events()
    git(editor.root, "fetch", "--quiet")
    git(editor.root, "push", "--quiet", "-f", "origin", "origin/model-registry~:model-registry")
    add(event_log(editor))
    with pytest.raises(UserError, match=r"events/000002\S*\.json: event edited or rem") as refused:
        event_log(project).events()
    with pytest.raises(UserError, match=r"events/000002\S*\.json: event edited or removed"):
        add(event_log(project))
    git(project.root, *str(refused.value).split("`")[1].split()[1:])
    assert len(event_log(project).events()) == 2


def test_the_log_moves_to_the_branch_and_to_origin_whole(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    kept = [add(event_log(project)) for _ in range(2)]
    repository(project.root)
    log = event_log(project)
    assert isinstance(log, GitLog)
    assert [e.id for e in log.events()] == [e.id for e in kept]
    kept.append(add(log))
    shutil.rmtree(log.folder)
    (other,) = clones(tmp_path, 1)
    git(project.root, "remote", "add", "origin", str(tmp_path / "origin.git"))
    assert [e.id for e in event_log(project).events()] == [e.id for e in kept]
    kept.append(add(event_log(project)))
    assert [e.id for e in event_log(other).events()] == [e.id for e in kept]


GH = f"""#!{sys.executable}
import os, shutil, sys, time
from pathlib import Path

store, fault = Path(os.environ["GH_STORE"]), os.environ.get("GH_FAULT", "")
_, verb, tag, *words = sys.argv[1:]
options = dict(w.lstrip("-").partition("=")[::2] for w in words if w.startswith("-"))
paths = [Path(w) for w in words if not w.startswith("-")]
with store.with_suffix(".calls").open("a") as calls:
    calls.write(verb + "\\n")
time.sleep(0.2 if fault == "slow" else 0)
seen = store.with_suffix(".calls").read_text()
if fault == "late" and (verb == "upload" and store.exists() and seen.count("upload") < 3
                        or verb == "download" and seen.count("download") < 5):
    sys.exit("release not found")
if fault in (verb, "offline"):
    sys.exit("error connecting to api.github.com")
release = store / tag
if verb == "create":
    if release.exists():
        sys.exit("a release with the same tag name already exists: " + tag)
    assert "prerelease" in options
    release.mkdir(parents=True)
elif not release.exists():
    sys.exit("release not found")
for path in paths:
    asset = release / path.name
    if asset.exists() and "clobber" not in options:
        sys.exit("asset under the same name already exists: " + path.name)
    content = path.read_bytes()
    asset.write_bytes(content[:-7] if fault == "truncate" else content)
if verb == "download":
    asset = release / options["pattern"]
    if not asset.exists():
        sys.exit("no assets match the file pattern" if any(release.iterdir()) else
                 "no assets to download")
    shutil.copy(asset, options["dir"])
"""


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project in a job on GitHub, with a stand-in for the program `gh`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gh").write_text(GH)
    (tmp_path / "bin" / "gh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("GH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setattr("time.sleep", lambda _: None)
    (project,) = clones(tmp_path, 1)
    return project


def asset_of(folder: Path, event: Event) -> Path:
    return folder / "store" / "model-store" / f"{event.digest}-{event.blob[:12]}.tar.xz"


def calls(folder: Path) -> list[str]:
    log = folder / "store.calls"
    said = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return said


def test_a_job_shares_blobs_as_assets_of_a_release(tmp_path: Path, shared: Project) -> None:
    candidate = make_candidate(shared, "a")
    first = register(shared, candidate, {}, "push")
    assert calls(tmp_path) == ["download", "upload", "create", "download", "upload", "download"]
    asset = asset_of(tmp_path, first)
    assert sha256_file(asset) == first.blob
    assert register(shared, candidate, {}, "push").id == first.id
    assert blob_store(shared).put(candidate.digest, candidate.folder) == first.blob
    assert "upload" not in calls(tmp_path)
    register(shared, make_candidate(shared, "b"), {}, "push")
    assert calls(tmp_path) == ["download", "upload", "download"]

    (other,) = clones(tmp_path, 1, "--single-branch")
    add(
        event_log(other),
        **first.model_dump() | {"type": "promoted", "environment": "production"} | {"id": "move"},
    )
    found = champion(other)
    assert found is not None
    assert (found.ship / "model" / "model.txt").read_text() == "a"
    assert calls(tmp_path) == ["download"]
    found.folder.rename(tmp_path / "away")
    champion(other)
    assert calls(tmp_path) == []  # what was got once is here


@pytest.mark.parametrize("fault", ["upload", "create", "download", "offline", "truncate"])
def test_a_blob_that_did_not_arrive_is_not_registered(
    tmp_path: Path, shared: Project, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = make_candidate(shared, "a")
    with monkeypatch.context() as patch:
        patch.setenv("GH_FAULT", fault)
        match = "did not arrive" if fault == "truncate" else "error connecting"
        with pytest.raises(UserError, match=match):
            register(shared, candidate, {}, "push")
    assert event_log(shared).events() == []
    monkeypatch.setenv("GH_FAULT", "slow")
    made = register(shared, candidate, {}, "push")  # over what was cut off, if it was
    assert blob_store(shared).has(candidate.digest, made.blob)


def test_what_github_shows_late_is_waited_for(
    tmp_path: Path, shared: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GH_FAULT", "late")
    made = register(shared, make_candidate(shared, "a"), {}, "push")
    first = ["download", "upload", "create", "download", "upload", "create", "download", "upload"]
    assert calls(tmp_path) == [*first, "download", "download"], "what was sent is not sent again"
    assert sha256_file(asset_of(tmp_path, made)) == made.blob


@pytest.mark.parametrize("fault", ["upload", "truncate"])
def test_other_bytes_of_a_digest_leave_those_that_the_log_names(
    tmp_path: Path, shared: Project, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where limits changed and nothing else did; else who is cut off leaves nothing to read."""
    candidate = make_candidate(shared, "a")
    first = register(shared, candidate, {}, "push")
    (candidate.folder / "verdicts").mkdir()
    (candidate.folder / "verdicts" / "data.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setenv("GH_FAULT", fault)
        with pytest.raises(UserError):
            blob_store(shared).put(candidate.digest, candidate.folder)
    (other,) = clones(tmp_path, 1, "--single-branch")
    blob_store(other).get(candidate.digest, first.blob, tmp_path / "back")
    assert (tmp_path / "back" / "ship" / "model" / "model.txt").read_text() == "a"
    assert blob_store(shared).put(candidate.digest, candidate.folder) != first.blob
    assert asset_of(tmp_path, first).exists()


@pytest.mark.parametrize("harm", ["remove", "tamper"])
def test_a_harmed_asset_is_named_and_mended(tmp_path: Path, shared: Project, harm: str) -> None:
    candidate = make_candidate(shared, "a")
    first = register(shared, candidate, {}, "push")
    asset = asset_of(tmp_path, first)
    asset.write_bytes(asset.read_bytes()[:-1] + b"!")
    if harm == "remove":
        asset.unlink()
    (other,) = clones(tmp_path, 1, "--single-branch")
    with pytest.raises(UserError, match=rf"{candidate.digest}.*run `ml deploy` where"):
        blob_store(other).get(candidate.digest, first.blob, tmp_path / "back")
    register(shared, candidate, {}, "push")
    blob_store(other).get(candidate.digest, first.blob, tmp_path / "back")
    assert (tmp_path / "back" / "ship" / "model" / "model.txt").read_text() == "a"


@pytest.mark.parametrize(("harm", "message"), [("tamper", "tampered"), ("remove", "missing")])
def test_a_harmed_blob_is_named_not_unpacked_and_mended(
    project: Project, harm: str, message: str
) -> None:
    candidate = make_candidate(project, "a")
    first, store = register(project, candidate, {}, "local"), blob_store(project)
    path = store.folder / f"{candidate.digest}.tar.xz"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    if harm == "remove":
        path.unlink()
    with pytest.raises(UserError, match=f"{candidate.digest}.*{message}"):
        store.get(candidate.digest, first.blob, project.work / "back")
    assert not (project.work / "back").exists()
    for file in candidate.folder.rglob("*"):
        os.utime(file, (1, 1))
    again = register(project, candidate, {}, "local")
    assert (again.blob, again.release) == (first.blob, first.release)
    store.get(candidate.digest, first.blob, project.work / "back")
    assert (project.work / "back" / "ship" / "model" / "model.txt").read_text() == "a"


def test_a_release_has_one_name_and_is_registered_once(project: Project) -> None:
    a, b = make_candidate(project, "a"), make_candidate(project, "b")
    c = make_candidate(project, "c", as_of="2013-09-01")
    names = [register(project, candidate, {}, "local").release for candidate in (a, b, c, a)]
    first = "v1.1.0+data.20130801.1"
    assert names == [first, "v1.1.0+data.20130801.2", "v1.1.0+data.20130901.1", first]
    assert len(event_log(project).events()) == 3


@pytest.mark.parametrize(
    ("same", "key", "commit"), [(True, "", "f"), (False, "", "c"), (False, "by its key", "f")]
)
def test_a_candidate_of_other_code_has_the_commit_of_its_training(
    project: Project, monkeypatch: pytest.MonkeyPatch, same: bool, key: str, commit: str
) -> None:
    monkeypatch.setenv("GITHUB_SHA", "f" * 40)
    candidate = make_candidate(project, "a")
    here = inputs_hash(project)
    candidate.lineage["code"] = here if same else "of another commit"
    assert register(project, candidate, {}, "local", key).commit == commit * 40


def test_a_user_without_a_name_is_told_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.delenv("GITHUB_TRIGGERING_ACTOR", raising=False)
    monkeypatch.setattr("getpass.getuser", nobody)
    assert event().who == f"user {os.getuid()}"


def test_a_name_is_not_given_twice_where_a_tag_had_it_first(project: Project) -> None:
    b = [register(project, make_candidate(project, name), {}, "local") for name in "ab"][1]
    tagged = b.model_dump() | {"type": "promoted", "environment": "production", "id": "tagged"}
    add(event_log(project), **tagged | {"release": "v2.0.0+data.20130801.2"})
    vars(project)["about"] = project.about | {"version": "2.0.0"}
    event = register(project, make_candidate(project, "c"), {}, "local")
    assert event.release == "v2.0.0+data.20130801.3"


def test_the_champion_is_the_last_move_and_comes_back_from_its_blob(project: Project) -> None:
    assert champion(project) is None
    for name in "ab":
        candidate = make_candidate(project, name)
        known = register(project, candidate, {}, "local").model_dump()
        moved = known | {"type": "promoted", "environment": "production", "id": name}
        add(event_log(project), **moved)
        add(event_log(project), **moved | {"environment": "staging", "digest": "d" * 64, "id": "s"})
    candidate.folder.rename(project.work / "away")
    found = champion(project)
    assert found is not None
    assert (found.digest, found.lineage["commit"]) == (candidate.digest, "c" * 40)


def test_a_full_disk_leaves_log_and_blobs_as_they_were(project: Project) -> None:
    register(project, make_candidate(project, "small"), {}, "local")
    other = make_candidate(project, os.urandom(200_000).hex())
    before = sorted(path.name for path in (project.work / "registry").rglob("*"))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(UserError, match="nothing was changed"):
            register(project, other, {}, "local")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(path.name for path in (project.work / "registry").rglob("*")) == before


def test_a_denied_read_is_not_blamed_on_the_folder_that_is_written(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), temporary_folder(tmp_path / "made"):
        raise PermissionError(errno.EACCES, "of another file")
    refused = pytest.raises(UserError, match="made: cannot be written")
    with refused, temporary_folder(tmp_path / "made"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [*(tmp_path / "made").iterdir()] == []


def test_an_exclusive_file_is_never_replaced(tmp_path: Path) -> None:
    write_atomic(tmp_path / "name", "first", exclusive=True)
    with pytest.raises(FileExistsError):
        write_atomic(tmp_path / "name", "second", exclusive=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("name", "first")]


def test_of_two_who_settle_the_same_folder_one_does(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_atomic(tmp_path / name / "who", name)
        settle(tmp_path / name, tmp_path / "made")
    assert (tmp_path / "made" / "who").read_text() == "first"
    with pytest.raises(FileNotFoundError):
        settle(tmp_path / "first", tmp_path / "elsewhere")


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"odd\.json: cannot be read as JSON"):
        read_json(tmp_path / "odd.json")
