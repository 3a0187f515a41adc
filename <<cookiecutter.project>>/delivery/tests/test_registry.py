"""The registry keeps every event, names what was tampered with, and forgets no champion."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from model_delivery.bundle.candidate import Candidate, candidate_folder
from model_delivery.errors import UserError
from model_delivery.files import read_json, seal, sha256_file, temporary_folder, write_atomic
from model_delivery.project import Project
from model_delivery.registry import (
    DirectoryLog,
    Event,
    blob_store,
    champion,
    event_log,
    newest,
    register,
)


def event(**fields: object) -> Event:
    facts = {"type": "promoted", "digest": "a" * 64, "release": "v1", "as_of": "2013-08-01"}
    facts |= {"commit": None, "trigger": "local", "blob": "b" * 64, "environment": "production"}
    return Event.model_validate(facts | fields)


def add(log: DirectoryLog, **fields: object) -> Event:
    made = event(**fields)
    log.append(lambda _: made)
    return made


@pytest.fixture
def log(tmp_path: Path) -> DirectoryLog:
    return DirectoryLog(tmp_path / "events")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.1.0"\n')
    return Project(tmp_path)


def make_candidate(
    project: Project, name: str, as_of: str = "2013-08-01", **ship: str
) -> Candidate:
    staged = project.work / "staged"
    (staged / "ship" / "model").mkdir(parents=True)
    for path, text in {"model/model.txt": name, "requirements.txt": "", **ship}.items():
        (staged / "ship" / path).write_text(text)
    lineage = {"data": {"as_of": as_of}, "commit": "c" * 40, "snapshot": "s", "parameters": {}}
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


def _write_many(folder: Path) -> None:
    for _ in range(5):
        add(DirectoryLog(folder))


def test_eight_writers_at_once_lose_no_event(log: DirectoryLog) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(log.folder,)) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len({e.id for e in log.events()}) == 40


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


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"odd\.json: cannot be read as JSON"):
        read_json(tmp_path / "odd.json")
