"""What was answered is in the log once, or counted as dropped; no request waits for it or fails."""

from __future__ import annotations

import datetime as dt
import errno
import hashlib
import hmac
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pandas as pd
import pyarrow.json
import pytest
import test_rollout
import test_serving
import yaml
from model_delivery.bundle import launch
from model_delivery.bundle.launch import Running
from model_delivery.contract.request import JsonRow, Row, draw_rows, request_json, request_model
from model_delivery.contract.settings import DataContract, LogSettings
from model_delivery.project import Project, find_project
from model_delivery.protocols import UserError
from model_delivery.rollout import canary, target
from model_delivery.rollout.host import rehearsal
from model_delivery.rollout.target import Target
from model_delivery.watch import log
from model_delivery.watch.log import MODEL_LOG, PredictionLog, keyed_hash
from stub_service import BOOM
from test_rollout import deploy, fake_start, make_candidate

project, python = test_rollout.project, test_serving.python  # fixtures
DIGEST = "d" * 64
DYING = """
import itertools, json, os, signal, sys, time
from model_delivery.contract.request import request_model
from model_delivery.contract.settings import LogSettings
from model_delivery.watch import log

folder, at, torn, request, body = sys.argv[1:]
writes, put = itertools.count(1), log._put

def dying(store, path, content, append):
    last = next(writes) == int(at)
    put(store, path, content[: len(content) // 2] if last and torn else content, append)
    if last:
        os.kill(os.getpid(), signal.SIGKILL)

log._put, log.PAUSE = dying, 0.05
request = json.loads(request)
[row] = request_model(request).model_validate_json(body).rows
predictions = log.PredictionLog(LogSettings(folder=folder), "d" * 64, request, print)
for n in itertools.count():
    predictions.add({"x-request-id": str(n)}, [row], [0.5], 0.001)
    time.sleep(0.001)
"""


@pytest.fixture
def rows(contract: DataContract) -> list[JsonRow]:
    return draw_rows(contract, 40, seed=3)


Make = Callable[..., PredictionLog]


@pytest.fixture
def make(contract: DataContract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Return a way to begin a log in `tmp_path`, which is ended after the test."""
    monkeypatch.setattr(log, "PAUSE", 0.02)
    made = list[PredictionLog]()

    def begin(count: Callable[[int], None] = lambda _: None, **settings: Any) -> PredictionLog:
        to = LogSettings(**{"folder": str(tmp_path / "log")} | settings)
        made.append(PredictionLog(to, DIGEST, request_json(contract), count))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def valid(contract: DataContract, rows: list[JsonRow]) -> list[Row]:
    request = json.loads(json.dumps(request_json(contract)))
    return list(request_model(request).model_validate_json(json.dumps({"rows": rows})).rows)


def records(folder: Path) -> list[dict[str, Any]]:
    """Return what stands in whole lines; one that is no JSON is an error."""
    segments = [path.read_bytes() for path in sorted(folder.glob("*/*.jsonl"))]
    lines = [line for one in segments for line in one.splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def dropped(folder: Path) -> int:
    return sum(int(n) for path in folder.glob("*/*.dropped") for n in path.read_text().split())


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_record_has_the_row_as_it_was_read_and_the_score_to_its_last_bit(
    contract: DataContract, rows: list[JsonRow], make: Make, tmp_path: Path
) -> None:
    scores = [1 / (n + 3) for n in range(len(rows))]
    before, predictions = dt.datetime.now(dt.UTC), make()
    predictions.add({"x-request-id": "a"}, valid(contract, rows), scores, 0.0012345)
    predictions.add({"x-shadow": "1"}, valid(contract, rows[:1]), [0.0], 0)
    predictions.close()
    *found, last = records(tmp_path / "log")
    for place, (record, row, score) in enumerate(zip(found, rows, scores, strict=True)):
        moment, columns = dt.datetime.fromisoformat(record.pop("time")), record.pop("columns")
        assert before <= moment <= dt.datetime.now(dt.UTC)
        assert record == {
            "id": "a",
            "row": place,
            "digest": DIGEST,
            "shadow": False,
            "ms": 1.234,
            "score": score,
        }
        assert list(columns) == list(contract.inputs)
        at = dt.datetime.fromisoformat(row["at"]).isoformat()
        assert columns == dict.fromkeys(columns) | row | {"at": at}
    assert (last["shadow"], last["row"], len(last["id"])) == (True, 0, 32)
    [segment] = (tmp_path / "log").glob("*/*.jsonl")
    assert segment.parent.name == last["time"][:10]
    table = pyarrow.json.read_json(segment)
    assert table.column("score").to_pylist() == [*scores, 0.0]
    assert pd.read_json(segment, lines=True)["row"].tolist() == [*range(40), 0]


def test_private_columns_are_never_written_and_hashed_ones_only_with_a_key(
    contract: DataContract,
    rows: list[JsonRow],
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ML_LOG_KEY", "of the house")
    row = rows[0] | {"model code": "AB1", "count": 0, "_flag": False, "at": "2013-07-01T17:45"}
    hashed = ["model code", "count", "_flag", "at", "no such column"]
    predictions = make(private=["amount", "json"], hashed=hashed)
    both = [row, row | {"model code": None}]
    predictions.add({}, valid(contract, both), [0.1, 0.2], 0)
    predictions.close()
    first, second = (record["columns"] for record in records(tmp_path / "log"))
    assert first.keys() == contract.inputs.keys() - {"amount", "json"}
    texts = {"model code": "AB1", "count": "0", "_flag": "False", "at": "2013-07-01T17:45:00"}
    for name, text in texts.items():
        expected = hmac.new(b"of the house", text.encode(), hashlib.sha256).hexdigest()[:16]
        assert first[name] == expected
    assert second["model code"] is None
    stamp = pd.Timestamp("2013-07-01T17:45")  # as labels have it
    assert first["at"] == keyed_hash(stamp, "of the house") != keyed_hash(stamp, "")


def test_what_comes_too_fast_is_dropped_and_counted_and_nobody_waits(
    contract: DataContract,
    rows: list[JsonRow],
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go, put, counts = threading.Event(), log._put, list[int]()

    def blocked(*args: Any) -> None:
        go.wait()
        put(*args)

    monkeypatch.setattr(log, "_put", blocked)
    predictions, read = make(counts.append), valid(contract, rows)
    predictions.add({}, read[:1], [0.5], 0)
    until(lambda: not predictions.waiting)  # the writer has it, and is blocked
    for _ in range(log.MOST_WAITING // 40 + 3):
        predictions.add({}, read, [0.5] * 40, 0)
    assert len(predictions.waiting) == log.MOST_WAITING
    assert counts == [40, 40, 40]
    go.set()
    predictions.close()
    assert len(records(tmp_path / "log")) == log.MOST_WAITING + 1
    assert dropped(tmp_path / "log") == 120


def test_a_folder_that_cannot_be_written_costs_records_and_one_line(
    contract: DataContract,
    rows: list[JsonRow],
    make: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "log").write_text("a file, no folder")
    counts = list[int]()
    predictions, read = make(counts.append), valid(contract, rows)
    for n in range(1, 4):
        predictions.add({}, read, [0.5] * 40, 0)
        until(lambda n=n: sum(counts) == 40 * n)
    assert len(caplog.records) == 1
    assert str(tmp_path / "log") in caplog.text
    (tmp_path / "log").unlink()
    for n in (1, 2):
        predictions.add({}, read[:1], [0.5], 0)
        until(lambda n=n: len(records(tmp_path / "log")) == n)
    predictions.close()
    assert dropped(tmp_path / "log") == 120


def test_a_full_disk_tears_the_last_line_of_a_segment_only(
    contract: DataContract,
    rows: list[JsonRow],
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put, full = log._put, list[bool]()

    def half(store: Any, path: str, content: bytes, append: bool) -> None:
        tears = bool(full)
        put(store, path, content[: -9 if tears else None], append)
        if tears:
            full.clear()
            raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(log, "_put", half)
    predictions, read = make(), valid(contract, rows[:1])
    predictions.add({"x-request-id": "good"}, read, [0.5], 0)
    until(lambda: len(records(tmp_path / "log")) == 1)
    full.append(True)
    predictions.add({"x-request-id": "torn"}, read, [0.5], 0)
    until(lambda: not full)
    predictions.add({"x-request-id": "good again"}, read, [0.5], 0)
    predictions.close()
    first, second = (tmp_path / "log").glob("*/*.jsonl")
    assert first.read_bytes().endswith(b"\n") != second.read_bytes().endswith(b"\n")
    assert {one["id"] for one in records(tmp_path / "log")} == {"good", "good again"}
    assert dropped(tmp_path / "log") == 1


def test_segments_end_by_size_and_by_day_and_old_days_are_removed(
    contract: DataContract,
    rows: list[JsonRow],
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, folder = dt.datetime.now(dt.UTC).date(), tmp_path / "log"
    old, young = (str(now - dt.timedelta(days=n)) for n in (31, 30))
    for name in (old, young, "2001-01-01-notes", "notes"):
        (folder / name / "below").mkdir(parents=True)
    predictions, read = make(keep_days=30), valid(contract, rows[:1])

    def add() -> int:
        before = len(records(folder))
        predictions.add({}, read, [0.5], 0)
        until(lambda: len(records(folder)) > before and bool(predictions.day))
        return len(list(folder.glob(f"{now}/*.jsonl")))

    assert add() == 1
    monkeypatch.setattr(log, "MOST_BYTES", predictions.size + 1)
    assert [add(), add()] == [1, 2]
    assert {path.name for path in folder.iterdir()} == {
        str(now),
        young,
        "2001-01-01-notes",
        "notes",
    }
    predictions.day, predictions.size = old, 0  # a clock set back is a day that changes, too
    assert add() == 3
    predictions.close()
    assert len({*folder.glob("*/*.jsonl")}) == 3
    assert len(records(folder)) == 4


def test_in_a_store_that_cannot_append_each_writing_is_an_object(
    contract: DataContract, rows: list[JsonRow], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "STORE_PAUSE", 3600)
    monkeypatch.setattr(log, "MOST_WAITING", 100)
    store, read = fsspec.filesystem("memory"), valid(contract, rows)
    store.pipe_file("/log/production/2001-01-01/old-1.jsonl", b"{}\n")
    predictions = make(folder="memory://log/production")
    for _ in range(2):
        predictions.add({}, read[:30], [0.5] * 30, 0)  # more than half of what may wait: at once
        predictions.add({}, read[:30], [0.5] * 30, 0)
        until(lambda: not predictions.waiting)
    predictions.add({}, read[:1], [0.5], 0)
    predictions.close()
    objects = store.glob("/log/production/*/*.jsonl")
    lines = [line for path in objects for line in store.cat_file(path).splitlines()]
    assert len([json.loads(line) for line in lines]) == 121
    assert len(objects) >= 3
    assert "2001-01-01" not in str(objects)
    store.rm("/log", recursive=True)


@pytest.mark.parametrize(("at", "torn"), [(1, ""), (3, "torn")])
def test_a_killed_writer_loses_its_last_half_second_and_another_goes_on(
    contract: DataContract, rows: list[JsonRow], make: Make, tmp_path: Path, at: int, torn: str
) -> None:
    words = json.dumps(request_json(contract)), json.dumps({"rows": rows[:1]})
    command = [sys.executable, "-c", DYING, str(tmp_path / "log"), str(at), torn, *words]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    before = len(records(tmp_path / "log"))
    assert before >= at - 1
    predictions = make()
    predictions.add({"x-request-id": str(before)}, valid(contract, rows)[:1], [0.5], 0)
    predictions.close()
    found = [int(record["id"]) for record in records(tmp_path / "log")]
    assert sorted(found) == [*range(before + 1)]  # none twice, none missing before the last


def test_a_service_logs_what_it_answered_and_writes_the_rest_when_it_is_ended(
    ship: Path, contract: DataContract, python: Path, rows: list[JsonRow], tmp_path: Path
) -> None:
    folder = tmp_path / "log"
    # By a URI it would be written only half a minute later.
    settings = LogSettings(folder=f"file://{folder}", private=["amount"]).model_dump()
    variables = {MODEL_LOG: json.dumps(settings | {"of a later machinery": 1})}
    with test_serving.start(ship, python, tmp_path / "s.log", variables=variables) as service:
        assert "\npredictions_dropped_total 0.0" in httpx.get(f"{service.url}/metrics").text
        with httpx.Client(base_url=service.url, headers={"x-request-id": "mine"}) as client:
            bad = client.post("/predict", json={"rows": [rows[0] | {"count": BOOM}]})
            wrong = client.post("/predict", json={"rows": [rows[0], {}]})
            assert (bad.status_code, wrong.status_code) == (500, 400)
            answer = client.post("/predict", json={"rows": rows}).json()["probability"]
        drawn, slips = canary._ask(service, rows[:5])
        assert not slips
        launch.end(service.home)  # at once: nothing may be lost
    found = records(folder)
    assert [record["score"] for record in found] == [*answer, *drawn]
    assert [record["shadow"] for record in found] == [False] * 40 + [True] * 5
    assert {record["id"] for record in found[:40]} == {"mine"}
    assert len({record["id"] for record in found[40:]}) == 5
    assert all(0 < record["ms"] < 2000 for record in found)
    assert {record["digest"] for record in found} == {service.digest}
    assert {*found[0]["columns"]} == contract.inputs.keys() - {"amount"}
    assert dropped(folder) == 0


def test_an_environment_hands_its_log_to_its_services_and_a_rehearsal_none(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = list[dict[str, str]]()

    def start(*args: Any, variables: dict[str, str], **options: Any) -> Running:
        given.append(variables)
        return fake_start(*args, **options)

    monkeypatch.setattr(target, "start", start)
    monkeypatch.setenv("ML_LOG_KEY", "secret")
    place, a = Target(project, "production"), make_candidate(project, "a")
    with rehearsal(place):
        deploy(project, a)
    assert given == [{}]
    shutil.rmtree(place.folder)
    deploy(project, a)
    assert json.loads(given[-1][MODEL_LOG])["folder"] == str(place.folder / "predictions")
    assert given[-1]["ML_LOG_KEY"] == "secret"


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("logs", "{root}/logs/production"),
        ("/var/log/ml", "/var/log/ml/production"),
        ("s3://bucket/log/", "s3://bucket/log/production"),
    ],
)
def test_the_log_of_an_environment_lies_where_the_setting_says(
    project: Project, folder: str, expected: str
) -> None:
    log = f"log: {{folder: '{folder}'}}\nkeep_releases"
    place = Target(test_rollout.configured(project, "keep_releases", log), "production")
    assert place.log == expected.format(root=project.root)


def test_a_log_that_could_not_be_used_is_a_mistake_of_the_settings(tmp_path: Path) -> None:
    real = find_project(Path(__file__))
    shutil.copytree(real.root / "config", tmp_path / "config")
    path, contract = tmp_path / "config" / "delivery.yaml", real.contract
    settings = yaml.safe_load(path.read_text())
    other = next(name for name in contract.inputs if name not in (*contract.key, contract.time))
    for kind, name, said in (
        ("private", contract.key[-1], "the log cannot do without it"),
        ("private", contract.time, "the log cannot do without it"),
        ("hashed", contract.time, "the log cannot do without it"),
        ("hashed", contract.target, "no input column"),
        ("private", f"{other}x", f"no input column; did you mean `{other}`"),
    ):
        path.write_text(yaml.safe_dump(settings | {"log": {kind: [name]}}))
        with pytest.raises(UserError, match=f"delivery.yaml: `log.{kind}`: `{name}`: {said}"):
            Project(tmp_path).check_config()
    good = {"private": [other], "hashed": [name for name in contract.key if name != contract.time]}
    path.write_text(yaml.safe_dump(settings | {"log": good}))
    Project(tmp_path).check_config()
