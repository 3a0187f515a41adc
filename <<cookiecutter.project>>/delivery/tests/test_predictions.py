"""What was answered is in the log once, or counted as dropped; no request waits for it or fails.

And files are scored as the service would score their rows, wholly or not at all, and once.
"""

from __future__ import annotations

import datetime as dt
import errno
import hashlib
import hmac
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import httpx
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import pytest
import test_rollout
import test_serving
import yaml
from fsspec.implementations.local import LocalFileSystem
from model_delivery.bundle import launch
from model_delivery.bundle.candidate import Candidate, candidate_folder
from model_delivery.bundle.launch import Running
from model_delivery.contract.request import (
    JsonRow,
    Row,
    columns_of,
    draw_rows,
    request_json,
    request_model,
)
from model_delivery.contract.settings import DataContract, Environment, LogSettings
from model_delivery.files import read_json, seal, write_json
from model_delivery.gates import GATES
from model_delivery.project import Project, find_project
from model_delivery.protocols import UserError
from model_delivery.registry import Event, event_log
from model_delivery.releases import register
from model_delivery.report.verdict import Outcome, Verdict, fixed
from model_delivery.rollout import canary, host
from model_delivery.rollout import target as targets
from model_delivery.rollout.target import State, Target
from model_delivery.serving import answer
from model_delivery.watch import batch, log
from model_delivery.watch.log import MODEL_LOG, PredictionLog, keyed_hash
from pydantic import ValidationError
from test_rollout import fake_start, make_candidate

host_project, python = test_rollout.project, test_serving.python  # fixtures
BOOM = test_serving.BOOM
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
SERVICE = """
import zlib
import numpy as np
from model_delivery.serving import ModelService

class Service(ModelService):
    def load(self, folder):
        print("this is no score", flush=True)

    def score(self, columns):
        rows = zip(*(columns[name].tolist() for name in sorted(columns)))
        return np.array([zlib.crc32(repr([*map(str, row)]).encode()) / 2**33 for row in rows])
"""
"""A release whose scores follow from every digit of every column."""
DELIVERY = """
environments: {production: {target: batch}}
rollout: {shadow_rows: 40, requests_per_second: 100, min_requests: 20,
  shadow_distance: {max: 0.9, outcome: stop}, error_share: {max: 0.01, outcome: stop},
  p95_ms: {max: 900, outcome: stop}, score_distance: {max: 0.4, outcome: stop},
  memory_mb: {max: 500, outcome: stop}}
keep_releases: 2
start_timeout_seconds: 20
"""
N = 150
SAME = ("row", "digest", "shadow", "score", "columns")
KEY = ["at", "count", "model code"]


@pytest.fixture
def few(contract: DataContract) -> list[JsonRow]:
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
    contract: DataContract, few: list[JsonRow], make: Make, tmp_path: Path
) -> None:
    scores = [1 / (n + 3) for n in range(len(few))]
    before, predictions = dt.datetime.now(dt.UTC), make()
    predictions.add({"x-request-id": "a"}, valid(contract, few), scores, 0.0012345)
    predictions.add({"x-shadow": "1"}, valid(contract, few[:1]), [0.0], 0)
    predictions.close()
    *found, last = records(tmp_path / "log")
    for place, (record, row, score) in enumerate(zip(found, few, scores, strict=True)):
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
    few: list[JsonRow],
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ML_LOG_KEY", "of the house")
    row = few[0] | {"model code": "AB1", "count": 0, "_flag": False, "at": "2013-07-01T17:45"}
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
    few: list[JsonRow],
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go, put, counts = threading.Event(), log._put, list[int]()

    def blocked(*args: Any) -> None:
        go.wait()
        put(*args)

    monkeypatch.setattr(log, "_put", blocked)
    predictions, read = make(counts.append), valid(contract, few)
    predictions.add({}, read[:1], [0.5], 0)
    until(lambda: not (predictions.waiting or predictions.lines))  # the writer is blocked
    for _ in range(log.MOST_WAITING // 40 + 3):
        predictions.add({}, read, [0.5] * 40, 0)
    assert len(predictions.lines) == log.MOST_WAITING
    assert counts == [40, 40, 40]
    go.set()
    predictions.close()
    assert len(records(tmp_path / "log")) == log.MOST_WAITING + 1
    assert dropped(tmp_path / "log") == 120


def test_a_folder_that_cannot_be_written_costs_records_and_one_line(
    contract: DataContract,
    few: list[JsonRow],
    make: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "log").write_text("a file, no folder")
    counts = list[int]()
    predictions, read = make(counts.append), valid(contract, few)
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
    few: list[JsonRow],
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
    predictions, read = make(), valid(contract, few[:1])
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
    few: list[JsonRow],
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, folder = dt.datetime.now(dt.UTC).date(), tmp_path / "log"
    old, young = (str(now - dt.timedelta(days=n)) for n in (31, 30))
    for name in (old, young, "2001-01-01-notes", "notes"):
        (folder / name / "below").mkdir(parents=True)
    predictions, read = make(keep_days=30), valid(contract, few[:1])

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
    contract: DataContract, few: list[JsonRow], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "STORE_PAUSE", 3600)
    monkeypatch.setattr(log, "MOST_WAITING", 100)
    store, read = fsspec.filesystem("memory"), valid(contract, few)
    store.pipe_file("/log/production/2001-01-01/old-1.jsonl", b"{}\n")
    predictions = make(folder="memory://log/production")
    for _ in range(2):
        predictions.add({}, read[:30], [0.5] * 30, 0)  # more than half of what may wait: at once
        predictions.add({}, read[:30], [0.5] * 30, 0)
        until(lambda: not predictions.lines)
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
    contract: DataContract, few: list[JsonRow], make: Make, tmp_path: Path, at: int, torn: str
) -> None:
    words = json.dumps(request_json(contract)), json.dumps({"rows": few[:1]})
    command = [sys.executable, "-c", DYING, str(tmp_path / "log"), str(at), torn, *words]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    before = len(records(tmp_path / "log"))
    assert before >= at - 1
    predictions = make()
    predictions.add({"x-request-id": str(before)}, valid(contract, few)[:1], [0.5], 0)
    predictions.close()
    found = [int(record["id"]) for record in records(tmp_path / "log")]
    assert sorted(found) == [*range(before + 1)]  # none twice, none missing before the last


def test_a_service_logs_what_it_answered_and_writes_the_rest_when_it_is_ended(
    ship: Path, contract: DataContract, python: Path, few: list[JsonRow], tmp_path: Path
) -> None:
    folder = tmp_path / "log"
    # By a URI it would be written only half a minute later.
    settings = LogSettings(folder=f"file://{folder}", private=["amount"]).model_dump()
    variables = {MODEL_LOG: json.dumps(settings | {"of a later machinery": 1})}
    with test_serving.start(ship, python, tmp_path / "s.log", variables=variables) as service:
        assert "\npredictions_dropped_total 0.0" in httpx.get(f"{service.url}/metrics").text
        with httpx.Client(base_url=service.url, headers={"x-request-id": "mine"}) as client:
            bad = client.post("/predict", json={"rows": [few[0] | {"count": BOOM}]})
            wrong = client.post("/predict", json={"rows": [few[0], {}]})
            assert (bad.status_code, wrong.status_code) == (500, 400)
            answer = client.post("/predict", json={"rows": few}).json()["probability"]
        drawn, slips = canary._ask(service, few[:5])
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
    host_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = list[dict[str, str]]()

    def start(*args: Any, variables: dict[str, str], **options: Any) -> Running:
        given.append(variables)
        return fake_start(*args, **options)

    monkeypatch.setattr(targets, "start", start)
    monkeypatch.setenv("ML_LOG_KEY", "secret")
    place, a = Target(host_project, "production"), make_candidate(host_project, "a")
    with host.rehearsal(place):
        test_rollout.deploy(host_project, a)
    assert given == [{}]
    shutil.rmtree(place.folder)
    test_rollout.deploy(host_project, a)
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
    host_project: Project, folder: str, expected: str
) -> None:
    log = f"log: {{folder: '{folder}'}}\nkeep_releases"
    place = Target(test_rollout.configured(host_project, "keep_releases", log), "production")
    assert place.log == expected.format(root=host_project.root)


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


@pytest.fixture
def project(
    tmp_path: Path, contract: DataContract, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    monkeypatch.setattr(launch, "service_environment", lambda *_: Path(sys.executable))
    monkeypatch.setattr(host, "limits_hash", lambda *_: "limits")
    monkeypatch.setattr(batch, "ROWS", 16)
    monkeypatch.setattr(batch, "ROUND", 2)
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "project"
    (root / "config").mkdir(parents=True)
    keyed = contract.model_copy(update={"key": KEY}).model_dump(mode="json", exclude_none=True)
    (root / "config" / "data.yaml").write_text(yaml.safe_dump(keyed))
    (root / "pyproject.toml").write_text('[project]\nversion = "1.1.0"\n')
    yield configured(root)
    fsspec.filesystem("memory").store.clear()


def configured(root: Path, log: str = "{}") -> Project:
    (root / "config" / "delivery.yaml").write_text(f"{DELIVERY}log: {log}\n")
    return Project(root)


def release(project: Project, ship: Path, service: str = "", against: str | None = None) -> Event:
    """Register a release with another service than the stub's, as if its gates had passed."""
    staged = project.work / "staged"
    shutil.copytree(ship, staged / "ship")
    if service:
        (staged / "ship" / "src" / "stub" / "service.py").write_text(service)
    lineage = {"data": {"as_of": "2013-08-01"}, "commit": "c" * 40, "snapshot": "s", "key": "k"}
    write_json(staged / "lineage.json", lineage | {"parameters": {}})
    candidate = Candidate(candidate_folder(project, seal(staged / "ship")))
    candidate.folder.parent.mkdir(parents=True, exist_ok=True)
    staged.rename(candidate.folder)
    about: dict[str, Any] = {"subject": candidate.digest, "limits": "limits", "against": against}
    checks = [fixed("c", True, "as it should be")]
    verdicts = {gate: Verdict(gate=gate, checks=checks, **about) for gate in GATES}
    candidate.save(verdicts["model"])
    return register(project, candidate, verdicts, "local")


def accept(project: Project, accepted: Event) -> Target:
    """Let production have accepted a release."""
    target = Target(project, "production")
    target.save(State(moves=[accepted.model_copy(update={"environment": "production"})]))
    return target


@pytest.fixture
def target(project: Project, ship: Path) -> Target:
    return accept(project, release(project, ship, SERVICE))


@pytest.fixture(scope="module")
def rows(contract: DataContract) -> list[JsonRow]:
    return draw_rows(contract, N, seed=3)


@pytest.fixture
def table(contract: DataContract, rows: list[JsonRow]) -> pa.Table:
    return pa.table({name: pa.array(values) for name, values in columns_of(rows, contract).items()})


def predict(target: Target, source: str, goal: str = "scores.parquet") -> dict[str, Any]:
    return batch.predict(target, source, goal, lambda said: None)


def written(table: pa.Table, name: str = "rows.parquet") -> str:
    pq.write_table(table, name)
    return name


def logged(target: Target) -> list[dict[str, Any]]:
    paths = sorted(Path(target.log).glob("????-??-??/*.parquet"))
    return [record for path in paths for record in pq.read_table(path).to_pylist()]


def service_of(target: Target) -> Any:
    """Return the service of the installed release, loaded in this process."""
    module = ModuleType("shipped")
    exec(SERVICE, module.__dict__)
    return module.__dict__["Service"]()


def test_scores_are_the_services_bit_for_bit(
    target: Target, contract: DataContract, rows: list[JsonRow], table: pa.Table
) -> None:
    [digest] = [move.digest for move in target.state().moves]
    request = read_json(target.install(target.state().moves[0]) / "request.json")
    read = request_model(request).model_validate_json(json.dumps({"rows": rows})).rows
    expected = [answer(service_of(target), [row], request)[0] for row in read]
    assert len(set(expected)) > N - 5
    strange = table.set_column(4, "json", pa.array(table["json"].to_numpy(), from_pandas=True))
    strange = strange.set_column(1, "kind", strange["kind"].dictionary_encode())
    fsspec.filesystem("memory").pipe("/in/rows.parquet", Path(written(strange)).read_bytes())
    table.to_pandas().to_csv("rows.csv", index=False)
    for source in (written(table), "memory://in/rows.parquet", "rows.csv"):
        assert predict(target, source)["rows"] == N
        found = pq.read_table("scores.parquet")
        assert found.column_names == [*KEY, "score", "digest"]
        assert found["score"].to_pylist() == expected, source
        assert found.select(KEY).equals(table.select(KEY)), source
        assert found["digest"].unique().to_pylist() == [digest]
    assert not [*Path().rglob("*.part")]


def test_the_log_has_the_rows_as_a_service_logs_them(
    project: Project,
    target: Target,
    rows: list[JsonRow],
    table: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ML_LOG_KEY", "secret")
    log = '{private: [amount], hashed: [kind, "model code", count]}'
    target = Target(configured(project.root, log), "production")
    done = predict(target, written(table))
    records = logged(target)
    assert [record["row"] for record in records] == [*range(N)]
    request = read_json(target.install(target.state().moves[0]) / "request.json")
    read = request_model(request).model_validate_json(json.dumps({"rows": rows})).rows
    to = target.project.delivery.log.model_copy(update={"folder": "served"})
    service = PredictionLog(to, done["digest"], request, lambda dropped: None)
    service.add({}, read, pq.read_table("scores.parquet")["score"].to_pylist(), seconds=0.1)
    service.close()
    [segment] = Path("served").rglob("*.jsonl")
    for own, line in zip(records, segment.read_text().splitlines(), strict=True):
        other = json.loads(line)
        assert own.keys() == other.keys()
        assert [own[name] for name in SAME] == [other[name] for name in SAME]
        assert (own["id"], own["time"]) == (done["id"], done["time"])
        assert own["ms"] > 0
        assert own["columns"].keys() == request.keys() - {"amount"}
        secret = own["columns"]["count"]
        assert secret == keyed_hash(rows[own["row"]]["count"], "secret")
    slip = Target(configured(project.root, "{private: [amout]}"), "production")
    with pytest.raises(UserError, match=r"`log\.private`: `amout`: .*`amount`"):
        predict(slip, "rows.parquet")
    assert dt.datetime.fromisoformat(done["time"]).utcoffset() == dt.timedelta(0)


def test_the_same_rows_by_the_same_release_count_once(
    project: Project, target: Target, ship: Path, table: pa.Table
) -> None:
    first, again = predict(target, written(table)), predict(target, written(table))
    assert first["id"] == again["id"]
    assert len(logged(target)) == N
    other = predict(target, written(table.slice(1)))
    newer = predict(accept(project, release(project, ship)), written(table))
    assert len({first["id"], other["id"], newer["id"]}) == 3
    assert len(logged(target)) == 3 * N - 1


def change(column: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        frame = table.to_pandas()
        frame[column] = frame[column].astype(object)
        frame.loc[row - 1, column] = value
        kind = pa.array([value]).type if isinstance(value, dt.datetime) else table[column].type
        new = pa.array(frame[column], kind, from_pandas=value is None)
        return table.set_column(table.column_names.index(column), column, new)

    return changed


def renamed(table: pa.Table) -> pa.Table:
    return table.rename_columns([name.replace("amount", "amout") for name in table.column_names])


def doubled(table: pa.Table) -> pa.Table:
    return table.append_column("kind", table["kind"])


def as_text(table: pa.Table) -> pa.Table:
    return table.set_column(5, "count", table["count"].cast("string"))


def twice(table: pa.Table) -> pa.Table:
    return change("count", 90, -1)(change("kind", 85, "c")(table))


HALF = dt.datetime(2013, 7, 1, 12, 0, 0, 500_000)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (renamed, "one column `amount`; is it `amout`"),
        (doubled, "one column `kind`"),
        (as_text, r"row 1: `count` is '\d+', but must be required, integer, min 0"),
        (change("kind", 77, "d"), r"row 77: `kind` is 'd', .*values \['a', 'b c', 'ü'\]"),
        (change("model code", 3, "ab"), r"row 3: `model code` is 'ab', .*pattern \[A-Z\]"),
        (change("amount", N, 100.1), "row 150: `amount` is 100.1, .*max 100"),
        (change("amount", 20, None), "row 20: `amount` is None, but must be required"),
        (change("amount", 20, float("nan")), "row 20: `amount` is nan, but must be required"),
        (change("json", 17, float("inf")), "row 17: `json` is inf, but must be number"),
        (change("at", 5, HALF), r"row 5: `at` is datetime.*500000\), but must be .*timestamp"),
        (twice, "row 85: `kind` is 'c'"),
        (lambda table: table.slice(0, 0), "no rows"),
    ],
)
def test_the_first_wrong_row_is_named_and_nothing_is_written(
    target: Target, table: pa.Table, harm: Callable[[pa.Table], pa.Table], message: str
) -> None:
    with pytest.raises(UserError, match=rf"^rows\.parquet: .*{message}"):
        predict(target, written(harm(table)))
    assert not Path("scores.parquet").exists()
    assert logged(target) == []
    assert [*target.folder.glob("batches/.new-*")] == []


def test_wrong_text_is_named_by_its_row(target: Target, table: pa.Table) -> None:
    frame = table.to_pandas().astype(object)
    frame.loc[130, "count"] = "many"
    frame.to_csv("rows.csv", index=False)
    with pytest.raises(UserError, match=r"rows\.csv: row 131: `count` is 'many', but .*integer"):
        predict(target, "rows.csv")
    Path("torn.csv").write_text(Path("rows.csv").read_text()[:-20])
    with pytest.raises(UserError, match=r"torn\.csv: CSV parse error"):
        predict(target, "torn.csv")


def test_what_cannot_be_read_or_written_is_said(target: Target, table: pa.Table) -> None:
    written(table)
    Path("torn.parquet").write_bytes(Path("rows.parquet").read_bytes()[:-9])
    Path("file").touch()
    for source, goal, message in [
        ("rows.txt", "scores.parquet", r"rows\.txt, .*in \.parquet or \.csv"),
        ("rows.parquet", "scores.csv", r"scores go to \.parquet"),
        ("none.parquet", "scores.parquet", r"none\.parquet: .*No such file"),
        ("nope://rows.parquet", "scores.parquet", r"nope://rows\.parquet: Protocol not known"),
        ("torn.parquet", "scores.parquet", r"torn\.parquet: .*[Pp]arquet"),
        ("rows.parquet", "file/scores.parquet", r"file/scores\.parquet: .*(exists|directory)"),
    ]:
        with pytest.raises(UserError, match=message):
            predict(target, source, goal)
    assert not Path("scores.parquet").exists()


def test_a_release_that_gives_no_probabilities_ends_it(
    project: Project, ship: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "PATIENCE_SECONDS", 5)
    for service, message in [
        (
            SERVICE.replace("2**33", "2**31"),
            r"ended while it scored .*no probabilities of \d+ rows",
        ),
        (SERVICE.replace("/ 2**33", "* float('nan')"), "no probabilities"),
        (SERVICE.replace("print(", "exit("), "ended while it scored"),
        (SERVICE.replace("rows =", "import time; time.sleep(99); rows ="), "ended while it scored"),
    ]:
        with pytest.raises(UserError, match=f"(?s){message}"):
            predict(accept(project, release(project, ship, service)), written(table))
        assert not Path("scores.parquet").exists()


def test_without_a_release_or_with_one_from_before(
    project: Project, ship: Path, table: pa.Table, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"production: nothing deployed.*`ml deploy --to production`"
    ):
        predict(Target(project, "production"), written(table))
    old = shutil.copytree(ship, tmp_path / "old")
    service = (old / "service.py").read_text().replace("--stream", "nothing else")
    (old / "service.py").write_text(service)
    with pytest.raises(UserError, match="from before `ml predict`; deploy one"):
        predict(accept(project, release(project, old)), written(table))


class Killer(LocalFileSystem):
    """A file system in which this process is killed at one act of those that last."""

    at = 0
    acts = 0

    def _act(self, half: Callable[[], object]) -> None:
        Killer.acts += 1
        if Killer.acts == Killer.at:
            half()
            os.kill(os.getpid(), signal.SIGKILL)

    def put_file(self, path: str, to: str, **options: Any) -> None:
        self._act(lambda: Path(to).write_bytes(Path(path).read_bytes()[:100]))
        super().put_file(path, to, **options)

    def mv(self, one: str, two: str, **options: Any) -> None:
        self._act(lambda: None)
        super().mv(one, two, **options)


def killed(target: Target, source: str, at: int) -> int:
    """Predict in a child that is killed at its so manieth act; return its exit code."""

    def work() -> None:
        Killer.at = at
        batch.url_to_fs = lambda uri: (Killer(), os.path.abspath(uri))  # type: ignore[assignment]
        predict(target, source)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def scorers(target: Target) -> list[int]:
    at = str(target.folder)
    found = psutil.process_iter(["cmdline", "cwd"])
    return [p.pid for p in found if "--stream" in (p.info["cmdline"] or ()) and at in p.info["cwd"]]


def test_killed_at_any_durable_act_a_rerun_converges(target: Target, table: pa.Table) -> None:
    expected, at, goal = predict(target, written(table)), 1, Path("scores.parquet")
    whole = pq.read_table(goal)
    while True:
        shutil.rmtree(target.log)
        goal.unlink()
        if killed(target, "rows.parquet", at) == 0:
            break
        assert not goal.exists()  # or it would be whole: it is the last
        assert len(logged(target)) in (0, N)
        until(lambda: not scorers(target))  # what scores does not outlive who asked
        assert predict(target, "rows.parquet")["id"] == expected["id"]
        assert pq.read_table(goal).equals(whole)
        assert len({(r["id"], r["row"]) for r in logged(target)}) == len(logged(target)) == N
        assert [*Path().rglob("*.part")] == []
        at += 1
    assert at == 5, "two files, each copied and moved"


def deploy(project: Project, goal: Event) -> Verdict:
    return host.deploy(Target(project, "production"), goal)


def status(project: Project) -> dict[str, Any]:
    return Target(project, "production").status()


def test_target_batch_is_deployed_to_and_rolled_back_without_anything_that_runs(
    project: Project, ship: Path, table: pa.Table
) -> None:
    target = Target(project, "production")
    assert status(project)["state"] == "nothing deployed"
    a = release(project, ship)
    assert deploy(project, a).outcome is Outcome.PASS
    assert status(project)["state"] == "batch"
    assert "`ml predict --in production`" in status(project)["note"]
    assert status(project)["arms"] == {}
    b = release(project, ship, SERVICE, against=a.digest)
    verdict = deploy(project, b)
    assert [check.name for check in verdict.checks] == ["shadow_answers", "shadow_distance"]
    assert predict(target, written(table))["digest"] == b.digest
    weight = target.folder / "releases" / a.digest / "ship" / "model" / "weight.txt"
    weight.write_text("0.02")
    with pytest.raises(UserError, match=r"weight\.txt: does not belong to"):
        host.rollback(target, None)
    assert predict(target, "rows.parquet")["digest"] == b.digest
    weight.write_text("0.01")
    assert host.rollback(target, None).digest == a.digest
    host.stop(target)
    host.start(target)
    assert status(project)["state"] == "batch"
    assert predict(target, written(table))["digest"] == a.digest
    told = [(e.type, e.digest) for e in event_log(project).events() if e.environment]
    assert told == [("promoted", a.digest), ("promoted", b.digest), ("rolled_back", a.digest)]
    assert not (target.folder / "services").exists()
    with pytest.raises(UserError, match="was rolled back at"):
        deploy(project, b)


def test_a_release_that_scores_drawn_rows_badly_is_not_accepted(
    project: Project, ship: Path, tmp_path: Path
) -> None:
    a = release(project, ship)
    deploy(project, a)
    constant = SERVICE.replace("zlib.crc32(repr([*map(str, row)]).encode()) / 2**33", "1.0")
    old = shutil.copytree(ship, tmp_path / "old")
    (old / "service.py").write_text((old / "service.py").read_text().replace("--stream", ""))
    for wrong, of, name, sentence in [
        (constant, ship, "shadow_distance", "from the champion's"),
        (constant.replace("1.0", "float('nan')"), ship, "shadow_answers", "no probabilities"),
        (SERVICE + "\n", old, "shadow_answers", "from before `ml predict`"),
    ]:
        verdict = deploy(project, release(project, of, wrong, against=a.digest))
        assert (verdict.outcome, verdict.decisive.name) == (Outcome.STOP, name)
        assert sentence in verdict.decisive.sentence
        assert status(project)["digest"] == a.digest
        assert event_log(project).events()[-1].type == "rolled_back"


def test_on_a_machine_that_is_gone_afterwards_the_log_is_the_truth(
    project: Project, ship: Path, table: pa.Table
) -> None:
    target, a = Target(project, "production"), release(project, ship)
    with host.rehearsal(target):
        deploy(project, a)
    [event] = [event for event in event_log(project).events() if event.environment]
    assert (event.type, event.rehearsed) == ("promoted", False)  # it is what scores
    shutil.rmtree(target.folder)
    assert predict(target, written(table))["digest"] == a.digest
    b = release(project, ship, SERVICE, against=a.digest)
    other = event.model_copy(update={"id": "x", "digest": "f" * 64})

    def meanwhile() -> None:
        with host.rehearsal(target):
            deploy(project, b)
            event_log(project).append(lambda _: other)

    with pytest.raises(UserError, match="was accepted meanwhile"):
        meanwhile()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "host"}, "needs a `port`"),
        ({"target": "batch", "port": 3000}, "no `port`"),
        ({"target": "batch", "load": True}, "no `port`, `load`"),
        ({"target": "batch", "canary": [{"weight": 0.1, "seconds": 1}]}, "or `canary`"),
    ],
)
def test_a_batch_environment_has_nothing_that_runs(settings: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Environment.model_validate(settings)
