"""The registry keeps every event, names what was tampered with, and forgets no champion."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
from pathlib import Path

import pytest
from model_delivery.bundle.candidate import Candidate, candidate_folder
from model_delivery.digest import seal
from model_delivery.errors import UserError
from model_delivery.files import sha256_file
from model_delivery.project import Project
from model_delivery.registry.blobs import DirectoryBlobs
from model_delivery.registry.champion import champion, open_registry, register
from model_delivery.registry.log import DirectoryLog, Event, next_release, serving


def event(**fields: object) -> Event:
    facts = {
        "type": "promoted",
        "digest": "a" * 64,
        "release": "v1.0.0+data.20130801.1",
        "as_of": "2013-08-01",
        "commit": None,
        "who": "someone",
        "trigger": "local",
        "environment": "production",
    }
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


def make_candidate(project: Project, text: str = "tree", as_of: str = "2013-09-01") -> Candidate:
    staged = project.work / "staged" / text
    (staged / "ship" / "model").mkdir(parents=True)
    (staged / "ship" / "model" / "model.txt").write_text(text)
    (staged / "verdicts").mkdir()
    lineage = {"data": {"as_of": as_of}, "commit": "c" * 40, "snapshot": "20130901-x"}
    (staged / "lineage.json").write_text(json.dumps(lineage))
    folder = candidate_folder(project, seal(staged / "ship"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged.rename(folder)
    return Candidate(folder)


def test_events_come_back_in_the_order_they_were_written(log: DirectoryLog) -> None:
    written = [add(log, release=f"v{n}") for n in range(12)]
    assert [e.id for e in log.events()] == [e.id for e in written]
    assert log.events()[0].after == ""
    assert log.events()[1].after == sha256_file(log.folder / "000001.json")


def test_an_event_is_written_once_however_often_it_is_handed_in(log: DirectoryLog) -> None:
    made = event()
    for _ in range(3):
        log.append(lambda _: made)
    assert len(log.events()) == 1


def test_order_does_not_depend_on_the_clock(log: DirectoryLog) -> None:
    add(log, digest="a" * 64, time="2030-01-01T00:00:00.000+00:00")
    add(log, digest="b" * 64, time="2020-01-01T00:00:00.000+00:00")
    move = serving(log.events(), "production")
    assert move is not None
    assert move.digest == "b" * 64


def test_an_edited_event_is_named(log: DirectoryLog) -> None:
    for n in range(3):
        add(log, release=f"v{n}")
    path = log.folder / "000002.json"
    path.write_text(path.read_text().replace("v1", "v9"))
    with pytest.raises(UserError, match=r"000002\.json: event edited"):
        log.events()


def test_a_deleted_event_is_named(log: DirectoryLog) -> None:
    for n in range(3):
        add(log, release=f"v{n}")
    (log.folder / "000002.json").unlink()
    with pytest.raises(UserError, match=r"000002\.json: event missing"):
        log.events()


def test_an_unknown_field_is_refused_with_the_events_name(log: DirectoryLog) -> None:
    add(log)
    path = log.folder / "000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"surprise": 1}))
    with pytest.raises(UserError, match=r"000001\.json: not an event \(surprise"):
        log.events()


def _write_many(folder: Path, writer: int) -> None:
    for n in range(5):
        add(DirectoryLog(folder), release=f"writer {writer}, event {n}")


def test_eight_writers_at_once_lose_no_event(log: DirectoryLog) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(log.folder, n)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len({e.release for e in log.events()}) == 40


def test_who_loses_a_compare_and_set_decides_again(log: DirectoryLog) -> None:
    seen = []

    def decide(events: object) -> Event:
        seen.append(len(list(events)))  # type: ignore[call-overload]
        if len(seen) == 1:
            add(log, release="the faster one")
        return event(release=f"after {seen[-1]}")

    log.append(decide)
    assert seen == [0, 1]
    assert [e.release for e in log.events()] == ["the faster one", "after 1"]


def test_what_an_environment_serves_is_its_last_move() -> None:
    events = [
        event(type="registered", environment=None, digest="a" * 64),
        event(digest="a" * 64),
        event(digest="b" * 64, previous="a" * 64),
        event(digest="c" * 64, environment="staging"),
        event(type="rolled_back", digest="a" * 64, previous="b" * 64),
        event(type="verdict", digest="d" * 64),
    ]
    found = [serving(events[:n], "production") for n in range(len(events) + 1)]
    assert [e.digest[0] if e else None for e in found] == [None, None, "a", "b", "b", "a", "a"]


def test_release_names_count_per_version_and_data() -> None:
    events = [event(release="v1.0.0+data.20130801.1"), event(release="v1.0.0+data.20130801.1")]
    assert next_release(events, "1.0.0", "2013-08-01") == "v1.0.0+data.20130801.2"
    assert next_release(events, "1.0.0", "2013-09-01") == "v1.0.0+data.20130901.1"


def test_a_blob_is_the_same_bytes_for_the_same_content(project: Project) -> None:
    candidate = make_candidate(project)
    store = DirectoryBlobs(project.work / "blobs")
    first = store.put(candidate.digest, candidate.folder)
    for path in candidate.folder.rglob("*"):
        os.utime(path, (1, 1))
    assert store.put(candidate.digest, candidate.folder) == first
    store.get(candidate.digest, first, project.work / "back")
    assert (project.work / "back" / "ship" / "model" / "model.txt").read_text() == "tree"


@pytest.mark.parametrize(("harm", "message"), [("tamper", "tampered"), ("remove", "missing")])
def test_a_tampered_or_missing_blob_is_named_and_not_unpacked(
    project: Project, harm: str, message: str
) -> None:
    candidate = make_candidate(project)
    store = DirectoryBlobs(project.work / "blobs")
    checksum = store.put(candidate.digest, candidate.folder)
    path = store.folder / f"{candidate.digest}.tar.zst"
    if harm == "tamper":
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(UserError, match=f"{candidate.digest}.*{message}"):
        store.get(candidate.digest, checksum, project.work / "back")
    assert not (project.work / "back").exists()


def test_registering_twice_says_it_once(project: Project) -> None:
    candidate = make_candidate(project)
    first = register(project, candidate, [], "local")
    assert register(project, candidate, [], "local") == first
    assert first.release == "v1.1.0+data.20130901.1"
    assert len(open_registry(project).log.events()) == 1


def test_registering_again_mends_a_damaged_blob(project: Project) -> None:
    candidate = make_candidate(project)
    first = register(project, candidate, [], "local")
    blob = project.work / "registry" / "blobs" / f"{candidate.digest}.tar.zst"
    blob.write_bytes(b"damaged")
    again = register(project, candidate, [], "local")
    assert (again.blob, again.release) == (first.blob, first.release)
    assert open_registry(project).blobs.has(candidate.digest, again.blob or "")


def test_two_digests_of_the_same_version_get_two_names(project: Project) -> None:
    names = [register(project, make_candidate(project, t), [], "local").release for t in "ab"]
    assert names == ["v1.1.0+data.20130901.1", "v1.1.0+data.20130901.2"]


def test_a_champion_whose_folder_is_gone_comes_back_from_its_blob(project: Project) -> None:
    assert champion(project) is None
    candidate = make_candidate(project)
    registered = register(project, candidate, [], "local")
    move = registered.model_dump() | {"type": "promoted", "environment": "production", "id": "p"}
    open_registry(project).log.append(lambda _: Event.model_validate(move))
    candidate.folder.rename(project.work / "away")
    found = champion(project)
    assert found is not None
    assert found.digest == candidate.digest
    assert found.lineage["commit"] == "c" * 40


def test_a_full_disk_leaves_log_and_blobs_as_they_were(project: Project, tmp_path: Path) -> None:
    big = os.urandom(200_000).hex()
    candidate = make_candidate(project, "small")
    register(project, candidate, [], "local")
    other = make_candidate(project, "other")
    (other.folder / "curve.json").write_text(big)
    before = sorted(path.name for path in (project.work / "registry").rglob("*"))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(UserError, match="nothing was changed"):
            register(project, other, [], "local")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(path.name for path in (project.work / "registry").rglob("*")) == before
