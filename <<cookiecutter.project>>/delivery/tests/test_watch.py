"""What becomes of accepted releases: each answer is logged once, files are scored as requests are.

Windows of the log and what came true lead to one decision, and `ml retrain` trains the champion's
commit once, when there is reason to, else says why not.
"""

from __future__ import annotations

import datetime as dt
import errno
import hashlib
import hmac
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fsspec
import httpx
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.json
import pyarrow.json as pj
import pyarrow.parquet as pq
import pytest
import test_rollout
import test_serving
import yaml
from fsspec.implementations.local import LocalFileSystem
from model_delivery import files, protocols, registry, releases
from model_delivery.bundle import launch
from model_delivery.bundle.candidate import Candidate, candidate_folder, uncommitted
from model_delivery.bundle.launch import Running
from model_delivery.cli import main, stages
from model_delivery.cli.doctor import check_schedules
from model_delivery.cli.main import app
from model_delivery.contract.limits import (
    DeepchecksLimits,
    Floor,
    Gates,
    ModelLimits,
    MonitorLimits,
)
from model_delivery.contract.request import (
    JsonRow,
    Row,
    columns_of,
    draw_rows,
    request_json,
    request_model,
    to_columns,
)
from model_delivery.contract.settings import (
    DataContract,
    Delivery,
    Environment,
    LogSettings,
    Retraining,
    RolloutLimits,
)
from model_delivery.files import read_json, seal, write_json
from model_delivery.gates import GATES
from model_delivery.gates import model as gate
from model_delivery.gates.model import Scored
from model_delivery.history import line
from model_delivery.project import Project, find_project, read_config
from model_delivery.protocols import UserError, ask_source
from model_delivery.registry import Event, event_log
from model_delivery.releases import State, register
from model_delivery.report.verdict import Check, Outcome, Trigger, Verdict, fixed
from model_delivery.rollout import canary, host
from model_delivery.rollout import target as targets
from model_delivery.rollout.target import Target
from model_delivery.serving import probabilities
from model_delivery.training.snapshot import Snapshot, inputs_hash, training_code
from model_delivery.watch import (
    batch,
    log,
    windows,
)
from model_delivery.watch import (
    monitor as monitoring,
)
from model_delivery.watch import (
    retrain as retraining,
)
from model_delivery.watch import (
    rows as reading,
)
from model_delivery.watch.log import MODEL_LOG, PredictionLog, keyed_hash
from model_delivery.watch.monitor import decide, monitor, over_all, watched
from model_delivery.watch.retrain import Because, Done, retrain, too_early
from model_delivery.watch.rows import Logged, join_labels, read_labels, read_log
from model_delivery.watch.windows import combined
from pydantic import ValidationError
from test_rollout import fake_start, make_candidate, until
from typer.testing import CliRunner

host_project, python = test_rollout.project, test_serving.python  # fixtures
BOOM = test_serving.BOOM
DIGEST = "d" * 64
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


def test_a_record_has_the_row_as_it_was_read_and_the_score_to_its_last_bit(
    contract: DataContract, few: list[JsonRow], make: Make, tmp_path: Path
) -> None:
    scores = [1 / (n + 3) for n in range(len(few))]
    before, predictions = dt.datetime.now(dt.UTC), make()
    predictions.add({b"x-request-id": b"a"}, valid(contract, few), scores, 0.0012345)
    predictions.add({b"x-shadow": b"1"}, valid(contract, few[:1]), [0.0], 0)
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
    predictions.add({b"x-request-id": b"good"}, read, [0.5], 0)
    until(lambda: len(records(tmp_path / "log")) == 1)
    full.append(True)
    predictions.add({b"x-request-id": b"torn"}, read, [0.5], 0)
    until(lambda: not full)
    predictions.add({b"x-request-id": b"good again"}, read, [0.5], 0)
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
    old, young, newest = (str(now - dt.timedelta(days=n)) for n in (32, 31, 1))
    for name in (old, young, newest, "2001-01-01-notes", "notes"):
        (folder / name / "below").mkdir(parents=True)
    predictions, read = make(keep_days=30), valid(contract, few[:1])

    def today() -> list[str]:  # and no other day: the writer removes some meanwhile
        return [path.read_text() for path in folder.glob(f"{now}/*.jsonl")]

    def add() -> int:
        before = sum(text.count("\n") for text in today())
        predictions.add({}, read, [0.5], 0)
        until(lambda: sum(text.count("\n") for text in today()) > before and predictions.day != "")
        return len(today())

    assert add() == 1
    until(lambda: not (folder / old).exists())
    monkeypatch.setattr(log, "MOST_BYTES", predictions.size + 1)
    assert [add(), add()] == [1, 2]
    assert {path.name for path in folder.iterdir()} == {
        str(now),
        newest,
        young,
        "2001-01-01-notes",
        "notes",
    }
    predictions.day, predictions.size = old, 0  # a clock set back is a day that changes, too
    assert add() == 3
    predictions.close()
    assert len({*folder.glob("*/*.jsonl")}) == 3
    assert len(records(folder)) == 4


@pytest.mark.parametrize(("clock", "kept"), [(2026, 3), (2099, 4), (2001, 4)])
def test_a_clock_that_is_wrong_once_removes_no_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: int, kept: int
) -> None:
    for day in ("2025-01-01", "2026-11-20", "2026-11-21", "2025-02-30"):
        (tmp_path / day).mkdir()

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Clock:
            return cls(clock, 11, 22, tzinfo=tz)

    monkeypatch.setattr(log.dt, "datetime", Clock)
    keep = 400 if clock == 2026 else 1000
    log.prune(LocalFileSystem(), str(tmp_path), keep)
    assert len([*tmp_path.iterdir()]) == kept
    (tmp_path / "2099-11-21").mkdir()  # what a wrong clock wrote the day before
    log.prune(LocalFileSystem(), str(tmp_path), keep)
    assert len([*tmp_path.iterdir()]) == kept + 1


def test_in_a_store_that_cannot_append_each_writing_is_an_object(
    contract: DataContract, few: list[JsonRow], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "STORE_PAUSE", 3600)
    monkeypatch.setattr(log, "MOST_WAITING", 100)
    store, read = fsspec.filesystem("memory"), valid(contract, few)
    store.pipe_file("/log/production/2001-01-01/old-1.jsonl", b"{}\n")
    for days in (1, 2):
        day = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=days)
        store.pipe_file(f"/log/production/{day}/new-1.jsonl", b"{}\n")
    predictions = make(folder="memory://log/production")
    for _ in range(2):
        predictions.add({}, read[:30], [0.5] * 30, 0)  # more than half of what may wait: at once
        predictions.add({}, read[:30], [0.5] * 30, 0)
        until(lambda: not predictions.lines)
    predictions.add({}, read[:1], [0.5], 0)
    predictions.close()
    objects = store.glob("/log/production/*/*.jsonl")
    lines = [line for path in objects for line in store.cat_file(path).splitlines()]
    assert len([json.loads(line) for line in lines]) == 123
    assert len(objects) >= 3
    assert "2001-01-01" not in str(objects)
    store.rm("/log", recursive=True)


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
    hashing = "log: {hashed: [kind]}\nkeep_releases"
    keyless = test_rollout.configured(host_project, "keep_releases", hashing)
    monkeypatch.delenv("ML_LOG_KEY")
    with pytest.raises(UserError, match=r"ML_LOG_KEY: not set, and `log\.hashed`"):
        test_rollout.deploy(keyless, a)
    host.stop(Target(keyless, "production"))
    host.start(Target(keyless, "production"))  # what was deployed is served, and hides what it must
    to = json.loads(given[-1][MODEL_LOG])
    assert (to["private"], to["hashed"], given[-1]["ML_LOG_KEY"]) == (["kind"], [], "")
    count = len(given)
    host.start(Target(keyless, "production"))
    assert len(given) == count, "without the key it is as good as it can be"
    monkeypatch.setenv("ML_LOG_KEY", "secret")
    for _ in range(2):
        host.start(Target(keyless, "production"))
        to = json.loads(given[-1][MODEL_LOG])
        assert (to["private"], to["hashed"], len(given)) == ([], ["kind"], count + 1)
    monkeypatch.delenv("ML_LOG_KEY")
    host.start(Target(keyless, "production"))
    assert len(given) == count + 1, "the one that runs has the key"


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


def test_a_relative_home_is_the_projects_wherever_a_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_HOME", "shared")
    assert Project(tmp_path).work == tmp_path / "shared"
    monkeypatch.setenv("ML_HOME", "")
    assert Project(tmp_path).work == tmp_path / ".ml"


def test_checkouts_that_share_what_serves_share_its_log(
    host_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_HOME", str(tmp_path / "shared" / ".ml"))
    log = "log: {folder: logs}\nkeep_releases"
    place = Target(test_rollout.configured(host_project, "keep_releases", log), "production")
    assert place.log == str(tmp_path / "shared" / "logs" / "production")


def test_a_mistake_between_keys_is_told_where_its_name_stands(tmp_path: Path) -> None:
    real = (find_project().root / "config" / "data.yaml").read_text()
    path = tmp_path / "config" / "data.yaml"
    lines = ["# of segmnt, `key` and the like", *real.splitlines()]
    place = next(n for n, line in enumerate(lines, 1) if line.startswith("segments: ["))
    lines[place - 1] = "segments: [segmnt]"
    files.write_atomic(path, "\n".join(lines))
    with pytest.raises(UserError, match=f"data.yaml:{place}: `the file`: `segmnt` is named as a"):
        read_config(tmp_path, "data", DataContract)


def test_a_file_of_settings_that_holds_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "gates.yaml").write_text("data: &data {rows: *data}\n")
    with pytest.raises(UserError, match=r"gates\.yaml: not YAML"):
        read_config(tmp_path, "gates", Gates)


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
def home(
    tmp_path: Path, contract: DataContract, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    monkeypatch.setattr(launch, "service_environment", lambda *_: Path(sys.executable))
    for module in (host, releases):
        monkeypatch.setattr(module, "limits_hash", lambda *_: "limits")
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
def target(home: Project, ship: Path) -> Target:
    return accept(home, release(home, ship, SERVICE))


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
    alone = [to_columns([row], request) for row in read]
    expected = [probabilities(service_of(target), columns, 1)[0] for columns in alone]
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
    home: Project,
    target: Target,
    rows: list[JsonRow],
    table: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ML_LOG_KEY", "secret")
    log = '{private: [amount], hashed: [kind, "model code", count]}'
    target = Target(configured(home.root, log), "production")
    done = predict(target, written(table))
    records = logged(target)
    assert [record["row"] for record in records] == [*range(N)]
    request = read_json(target.install(target.state().moves[0]) / "request.json")
    read = request_model(request).model_validate_json(json.dumps({"rows": rows})).rows
    to = target.project.delivery.log.model_copy(update={"folder": "served"})
    service = PredictionLog(to, done["digest"], request, lambda dropped: None)
    service.add({}, read, pq.read_table("scores.parquet")["score"].to_pylist(), 0.1)
    service.close()
    [segment] = Path("served").rglob("*.jsonl")
    for own, text in zip(records, segment.read_text().splitlines(), strict=True):
        other = json.loads(text)
        assert own.keys() == other.keys()
        assert [own[name] for name in SAME] == [other[name] for name in SAME]
        assert (own["id"], own["time"]) == (done["id"], done["time"])
        assert own["ms"] > 0
        assert own["columns"].keys() == request.keys() - {"amount"}
        secret = own["columns"]["count"]
        assert secret == keyed_hash(rows[own["row"]]["count"], "secret")
    monkeypatch.delenv("ML_LOG_KEY")
    with pytest.raises(UserError, match="ML_LOG_KEY: not set"):
        predict(target, "rows.parquet")
    slip = Target(configured(home.root, "{private: [amout]}"), "production")
    with pytest.raises(UserError, match=r"`log\.private`: `amout`: .*`amount`"):
        predict(slip, "rows.parquet")
    assert dt.datetime.fromisoformat(done["time"]).utcoffset() == dt.timedelta(0)


def test_a_runner_that_is_gone_afterwards_says_what_goes_with_it(
    target: Target, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    for runner, most in (("self-hosted", 0), ("github-hosted", 2)):
        monkeypatch.setenv("RUNNER_ENVIRONMENT", runner)
        lines = list[str]()
        batch.predict(target, written(table), "scores.parquet", lines.append)
        lost = [line.partition(": gone with this machine")[0] for line in lines if "gone" in line]
        assert lost == ["scores.parquet", target.log][:most]


def test_the_same_rows_by_the_same_release_count_once(
    home: Project, target: Target, ship: Path, table: pa.Table
) -> None:
    first, again = predict(target, written(table)), predict(target, written(table))
    assert first["id"] == again["id"]
    assert len(logged(target)) == N
    other = predict(target, written(table.slice(1)))
    newer = predict(accept(home, release(home, ship)), written(table))
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
        (renamed, "no column `amount`; is it `amout`"),
        (lambda table: table.rename_columns({"json": "weight"}), "no column `json`; it has at, "),
        (doubled, "more than one column `kind`"),
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


def test_values_of_private_and_hashed_columns_are_not_shown_to_who_reads_the_error(
    home: Project, target: Target, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a workflow, that is whoever may read its summary."""
    monkeypatch.setenv("ML_LOG_KEY", "secret")
    settings = configured(home.root, "{private: [amount], hashed: [kind]}")
    for column, value in {"amount": 100.1, "kind": "Smith", "count": -7}.items():
        source = written(change(column, 20, value)(table))
        with pytest.raises(UserError, match=f"row 20: `{column}` is ") as refused:
            predict(Target(settings, "production"), source)
        assert (str(value) in str(refused.value)) == (column == "count")


def test_no_schedule_scores_files_for_a_host(
    target: Target, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, workflow = written(table), "octo-org/flights/.github/workflows/{}.yml@refs/heads/main"
    monkeypatch.setenv("GITHUB_WORKFLOW_REF", workflow.format("batch"))
    assert predict(target, source)["rows"] == N
    Path("scores.parquet").unlink()
    monkeypatch.setattr(Target, "batch", False)
    with pytest.raises(UserError, match="production is of target `host`") as neutral:
        predict(target, source)
    assert (neutral.value.code, Path("scores.parquet").exists()) == (0, False)
    monkeypatch.setenv("GITHUB_WORKFLOW_REF", workflow.format("one-of-their-own"))
    assert predict(target, source)["rows"] == N


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
    home: Project, ship: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
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
            predict(accept(home, release(home, ship, service)), written(table))
        assert not Path("scores.parquet").exists()


def test_without_a_release_or_with_one_from_before(
    home: Project, ship: Path, table: pa.Table, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"production: nothing deployed.*`ml deploy --to production`"
    ):
        predict(Target(home, "production"), written(table))
    old = shutil.copytree(ship, tmp_path / "old")
    service = (old / "service.py").read_text().replace("--stream", "nothing else")
    (old / "service.py").write_text(service)
    with pytest.raises(UserError, match="from before `ml predict`; deploy one"):
        predict(accept(home, release(home, old)), written(table))


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
        batch.url_to_fs = lambda uri: (Killer(), os.path.abspath(uri))  # type: ignore[assignment]  # a stand-in
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
    home: Project, ship: Path, table: pa.Table
) -> None:
    target = Target(home, "production")
    assert status(home)["state"] == "nothing deployed"
    a = release(home, ship)
    assert deploy(home, a).outcome is Outcome.PASS
    assert status(home)["state"] == "batch"
    assert "`ml predict --in production`" in status(home)["note"]
    assert status(home)["arms"] == {}
    b = release(home, ship, SERVICE, against=a.digest)
    verdict = deploy(home, b)
    assert [check.name for check in verdict.checks] == ["shadow_answers", "shadow_distance"]
    assert predict(target, written(table))["digest"] == b.digest
    weight = target.folder / "releases" / a.digest / "ship" / "model" / "weight.txt"
    weight.write_text("0.02")
    blobs = home.work / "registry" / "blobs"
    blobs.rename(kept := home.work / "kept")
    with pytest.raises(UserError, match="missing or tampered with"):
        host.rollback(target, None)
    assert predict(target, "rows.parquet")["digest"] == b.digest
    kept.rename(blobs)
    assert host.rollback(target, None).digest == a.digest
    assert weight.read_text() == "0.01"
    host.stop(target)
    host.start(target)
    assert status(home)["state"] == "batch"
    assert predict(target, written(table))["digest"] == a.digest
    told = [(e.type, e.digest) for e in event_log(home).events() if e.environment]
    assert told == [("promoted", a.digest), ("promoted", b.digest), ("rolled_back", a.digest)]
    assert not (target.folder / "services").exists()
    with pytest.raises(UserError, match="was rolled back after it had served"):
        deploy(home, b)


def test_a_release_that_scores_drawn_rows_badly_is_not_accepted(
    home: Project, ship: Path, tmp_path: Path
) -> None:
    a = release(home, ship)
    deploy(home, a)
    constant = SERVICE.replace("zlib.crc32(repr([*map(str, row)]).encode()) / 2**33", "1.0")
    old = shutil.copytree(ship, tmp_path / "old")
    (old / "service.py").write_text((old / "service.py").read_text().replace("--stream", ""))
    for wrong, of, name, sentence in [
        (constant, ship, "shadow_distance", "from the champion's"),
        (constant.replace("1.0", "float('nan')"), ship, "shadow_answers", "no probabilities"),
        (SERVICE + "\n", old, "shadow_answers", "from before `ml predict`"),
    ]:
        verdict = deploy(home, release(home, of, wrong, against=a.digest))
        assert (verdict.outcome, verdict.decisive.name) == (Outcome.STOP, name)
        assert sentence in verdict.decisive.sentence
        assert status(home)["digest"] == a.digest
        assert event_log(home).events()[-1].type == "rolled_back"


def test_a_champion_that_drawn_rows_do_not_suit_is_said_not_to_be_compared(
    home: Project, ship: Path
) -> None:
    a = release(home, ship, SERVICE.replace("zlib.crc32", "no_such_name"))
    accept(home, a)
    verdict = deploy(home, release(home, ship, SERVICE, against=a.digest))
    assert (verdict.outcome, verdict.decisive.name) == (Outcome.WARN, "shadow_distance")
    assert verdict.decisive.sentence.startswith(
        "not compared: the champion gives drawn rows no score: "
    )
    assert status(home)["digest"] == verdict.subject != a.digest


def test_on_a_machine_that_is_gone_afterwards_the_log_is_the_truth(
    home: Project, ship: Path, table: pa.Table
) -> None:
    target, a = Target(home, "production"), release(home, ship)
    with host.rehearsal(target):
        deploy(home, a)
    [event] = [event for event in event_log(home).events() if event.environment]
    assert (event.type, event.rehearsed) == ("promoted", False)  # it is what scores
    shutil.rmtree(target.folder)
    assert predict(target, written(table))["digest"] == a.digest
    b = release(home, ship, SERVICE, against=a.digest)
    other = event.model_copy(update={"id": "x", "digest": "f" * 64})

    def meanwhile() -> None:
        with host.rehearsal(target):
            deploy(home, b)
            event_log(home).append(lambda _: other)

    with pytest.raises(UserError, match="was accepted meanwhile"):
        meanwhile()


def test_files_are_watched_by_the_log_where_the_machine_that_took_the_release_is_gone(
    home: Project, ship: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_ENVIRONMENT", "github-hosted")
    target, a = Target(home, "production"), release(home, ship)
    b = release(home, ship, SERVICE, against=a.digest)

    def watched_elsewhere() -> list[str | None]:
        shutil.rmtree(target.folder, ignore_errors=True)
        return [found and found.digest for found in watched(target)]

    assert watched_elsewhere() == [None, None]
    for goal, expected in ((a, [a.digest, None]), (b, [b.digest, a.digest])):
        with host.rehearsal(target):
            deploy(home, goal)
        assert watched_elsewhere() == expected
    monkeypatch.setenv("RUNNER_ENVIRONMENT", "self-hosted")
    assert watched_elsewhere() == [b.digest, None], "a rollback there goes by its own state"
    monkeypatch.setenv("RUNNER_ENVIRONMENT", "github-hosted")
    bytes_of_a = candidate_folder(home, a.digest), home.work / "registry" / "blobs"
    for folder in bytes_of_a:
        folder.rename(folder.with_name("away"))
    assert watched_elsewhere() == [b.digest, None], "nobody has its bytes"
    for folder in bytes_of_a:
        folder.with_name("away").rename(folder)
    with host.rehearsal(target):
        host.rollback(target, f"^{b.digest}")
    assert watched_elsewhere() == [a.digest, None], "what was taken back is no way back"


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


PASS, WARN, RETRAIN, INCONCLUSIVE, STOP, _ = Outcome
CONTRACT = DataContract.model_validate({
    "task": "binary", "target": "late", "time": "at", "key": ["at"], "as_of": "2013-08-01",
    "slack": 0.05,
    "columns": {
        "at": {"type": "timestamp"},
        "kind": {"type": "category", "values": ["a", "b"]},
        "size": {"type": "number", "min": 0, "max": 10_000, "missing": 0.1},
        "late": {"type": "boolean"},
    },
})  # fmt: skip
LIMITS = MonitorLimits.model_validate({
    "window_days": 7, "windows": 4, "needed": 2,
    "requests": {"min": 100, "outcome": "warn"}, "labels": {"min": 0.8, "outcome": "warn"},
    "scale": {"max": 2.5, "outcome": "stop"}, "refused": {"max": 0.2, "outcome": "stop"},
    "failed": {"max": 0.05, "outcome": "stop"},
    "feature_drift": {"max": 2, "outcome": "retrain"},
    "prediction_drift": {"max": 2, "outcome": "retrain"},
    "roc_auc": {"min": -0.03, "outcome": "retrain"},
    "calibration_error": {"max": 0.1, "outcome": "retrain"},
    "previous": {"min": -0.03, "outcome": "stop"}, "new_data": {"max": 2, "outcome": "retrain"},
})  # fmt: skip
START, AS_OF, DAYS = dt.date(2013, 8, 1), dt.date(2013, 8, 29), 28
NO_DEEPCHECKS = DeepchecksLimits(data={}, model={})
REST = {"log": LogSettings(), "rollout": RolloutLimits.model_construct(), "keep_releases": 2}
USUAL = {"`size`: 0.1": 1.0, "`score`: 0.1": 1.0}
RETRAINING = {"cron": "17 3 * * 1", "cooldown_days": 7, "most_a_month": 4}
HERE = find_project(Path(__file__))
A, B = "a" * 64, "b" * 64
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


def event(digest: str = A, as_of: dt.date = OLD, **fields: object) -> Event:
    facts = {"type": "registered", "digest": digest, "release": f"v1+{digest[:1]}", "blob": B}
    facts |= {"as_of": str(as_of), "commit": None, "trigger": "local"}
    return Event.model_validate(facts | fields)


def scored_rows(start: dt.date, days: int, a_day: int = 40) -> pd.DataFrame:
    """Return labelled rows, whose scores tell something of the label, and are calibrated."""
    random = np.random.default_rng(days)
    evidence = random.normal(0, 1.5, days * a_day)
    score = 1 / (1 + np.exp(1 - evidence))
    at = pd.Timestamp(start) + pd.to_timedelta(np.arange(days * a_day) * (24 * 60 // a_day), "min")
    frame = {"at": at, "kind": np.where(random.random(len(at)) < 0.3, "b", "a")}
    frame |= {"size": random.integers(50, 900, len(at)).astype(float)}
    return pd.DataFrame(frame | {"late": random.random(len(at)) < score, "score": score})


def usual(_: Path, asked: dict[str, Any]) -> list[dict[str, dict[str, float]]]:
    """Answer as Deepchecks does where nothing drifts: of each column that it is asked for."""
    names = [*asked["numeric"], *asked["categorical"]]
    known = {said: value for said, value in USUAL.items() if said.split("`")[1] in names}
    return [{windows.DRIFT: known}] * len(asked["tests"])


@dataclass(frozen=True)
class World:
    """A production that serves `A`, and came from `B`; and its source."""

    target: Target
    frame: pd.DataFrame
    sources: SimpleNamespace

    @property
    def project(self) -> Project:
        return self.target.project

    @property
    def log(self) -> Path:
        return Path(self.target.log)

    def serve(self, *digests: str) -> None:
        """Make an environment serve the first of some releases, the newest first."""
        known = {"type": "promoted", "environment": "production"}
        pairs = zip(digests, [*digests[1:], None], strict=True)
        moves = [event(one, previous=two, **known) for one, two in pairs]
        self.target.save(State(moves=moves))

    def write(self, frame: pd.DataFrame, name: str = "2013-08-01/w-1", **facts: Any) -> Path:
        """Append rows to a segment."""
        path = self.log / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as stream:
            for place, row in enumerate(frame.to_dict("records")):
                about = {"id": f"{name}-{place}", "row": 0, "digest": A, "shadow": False}
                about |= {"time": "2013-08-01T00:00:00.000000+00:00", "ms": 1.0} | facts
                columns = {k: v for k, v in row.items() if k not in ("late", "score")}
                columns["at"] = pd.Timestamp(columns["at"]).isoformat()
                found = {"score": row["score"], "columns": {k: none(v) for k, v in columns.items()}}
                stream.write(json.dumps(about | found) + "\n")
        return path

    def read(self, start: dt.date = START, end: dt.date = AS_OF) -> Logged:
        index = self.target.folder / "segments.json"
        return read_log(self.project, self.target.log, A, (start, end), index)

    def decide(self) -> tuple[str, dict[str, Check]]:
        """Return what monitoring decides, and its checks."""
        found = monitor(self.target, AS_OF)
        assert found.verdict is not None
        return found.decision, {check.name: check for check in found.verdict.checks}


def none(value: Any) -> Any:
    return None if pd.isna(value) else value


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    project = Project(tmp_path)
    model = ModelLimits.model_construct(segment_rows=100)
    place = Environment(target="host", port=3000)
    vars(project).update(
        contract=CONTRACT,
        about={"name": "small"},
        gates=Gates.model_construct(monitor=LIMITS, model=model, deepchecks=NO_DEEPCHECKS),
        delivery=Delivery.model_construct(environments={"production": place}, **REST),
    )
    frame = scored_rows(START, DAYS)
    sources = SimpleNamespace(labels=lambda since, as_of: frame[["at", "late"]])
    target = Target(project, "production")
    for digest in (A, B):
        release = Candidate(target.folder / "releases" / digest)
        release.ship.mkdir(parents=True)
        files.write_json(release.ship / "request.json", dict.fromkeys(CONTRACT.inputs))
        pq.write_table(
            pa.Table.from_pandas(scored_rows(dt.date(2013, 6, 1), 60)), release.path("train")
        )
        spans = {"train": ["2013-06-01T00:00:00", "2013-07-30T23:59:00"]}
        data = {"as_of": "2013-08-01", "spans": spans, "rows": {"train": 2400}, "excluded": {}}
        lineage = {"metrics": {"roc_auc": 0.8}, "data": data, "commit": None, "snapshot": "s"}
        files.write_json(release.folder / "lineage.json", lineage)
    made = World(target, frame, sources)
    made.serve(A)
    monkeypatch.setattr(protocols, "user_module", lambda _: sources)
    monkeypatch.setattr(reading, "user_module", lambda _: sources)
    monkeypatch.setattr(protocols, "WAITS", (0, 0))
    monkeypatch.setattr(windows, "ask", usual)
    return made


def test_a_log_is_read_in_any_form_and_each_row_counts_once(world: World) -> None:
    """By rows' own time, whatever day they were written on; of a repeat the last written."""
    half = len(world.frame) // 2
    path = world.write(world.frame[:half])
    with path.open("a") as stream:
        stream.write('{"id": "torn", "row": 0, "ti')
    again = world.frame[:10].assign(score=0.123)  # a request tried again, a day later, elsewhere
    later = world.write(again, "2013-08-02/w-2", time="2013-08-02T00:00:00.000000+00:00")
    later.write_text(later.read_text().replace("2013-08-02/w-2-", "2013-08-01/w-1-"))
    # A clock set back: the newest rows lie in the oldest folder, in the form of a batch.
    parquet = world.log / "1999-12-31" / "batch-0.parquet"
    parquet.parent.mkdir()
    records = [json.loads(line) for line in world.write(world.frame[half:], "x/y").open()]
    (world.log / "x" / "y.jsonl").unlink()
    pq.write_table(pa.Table.from_pylist(records), parquet)
    world.write(world.frame[:50], "2013-08-01/shadow", shadow=True)
    world.write(world.frame[:30], "2013-08-01/old", digest=B)
    (world.log / "2013-08-01" / "w-1.dropped").write_text("3\n4\n")
    (world.log / "2013-08-01" / "w-2.dropped").write_bytes(b"2\n\x00\xff\n")  # harmed by a disk
    logged = world.read()
    assert logged.rows.column_names == ["at", "kind", "size", "score"]
    assert logged.rows.select(["at"]).to_pandas()["at"].is_unique
    assert len(logged.rows) == len(world.frame)
    scores = logged.rows.column("score").to_numpy()
    assert (scores == 0.123).sum() == 10
    assert set(scores) == {0.123, *world.frame["score"][10:]}
    assert len(logged.times) == len(world.frame) + 30
    assert logged.found == {
        "unreadable": 1, "dropped": 9, "repeated": 10, "of other releases": 30
    }  # fmt: skip
    week = world.read(START, START + dt.timedelta(7))
    assert len(week.rows) == 7 * 40
    assert week.at.max() < np.datetime64("2013-08-08")


def test_a_segment_without_rows_of_the_span_is_not_read_again_unless_it_grew(world: World) -> None:
    first, second = world.frame[: 40 * 7], world.frame[40 * 21 :]
    path = world.write(first)
    world.write(second, "2013-08-02/w-1")
    assert len(world.read().rows) == len(first) + len(second)
    size = path.stat().st_size
    path.write_bytes(b"?" * (size - 1) + b"\n")  # would be an error
    assert len(world.read(dt.date(2013, 8, 20)).rows) == len(second)
    later = world.write(second[-9:].assign(at=pd.Timestamp("2013-08-28")), "2013-08-02/w-1", row=1)
    assert len(world.read(dt.date(2013, 8, 20)).rows) == len(second) + 9
    kept = files.read_json(world.target.folder / "segments.json")
    assert [one[0] for one in kept.values()] == [size, later.stat().st_size]
    with path.open("a") as stream:
        stream.write("{}\n")
    with pytest.raises(UserError, match=r"w-1\.jsonl:1: no JSON"):
        world.read(dt.date(2013, 8, 20))


def test_a_day_that_is_removed_while_the_log_is_read_is_no_finding(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, find = world.write(world.frame[:9]), LocalFileSystem.find
    gone.with_suffix(".dropped").write_text("3\n")
    world.write(world.frame[9:], "2013-08-02/w-1")

    def find_and_lose(*known: Any, **options: Any) -> Any:
        found = find(*known, **options)
        shutil.rmtree(gone.parent)
        return found

    monkeypatch.setattr(LocalFileSystem, "find", find_and_lose)
    read = world.read()
    assert len(read.rows) == len(world.frame) - 9
    assert (read.found["unreadable"], read.found["dropped"]) == (0, 0)


def test_a_broken_line_is_named_and_a_truncated_segment_is_a_finding(world: World) -> None:
    path = world.write(world.frame)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:6], lines[6][:40], *lines[7:]]) + "\n")
    with pytest.raises(UserError, match=r"2013-08-01/w-1\.jsonl:7: no JSON"):
        world.read()
    path.write_text("\n".join(lines) + "\n")
    (world.log / "2013-08-01" / "b-0.parquet").write_bytes(b"PAR1 and no more")
    (world.log / "2013-08-01" / "b-1.jsonl").touch()
    for _ in range(2):  # it is not forgotten
        decision, checks = world.decide()
        assert (decision, checks["log"].outcome) == ("watch", WARN)
        assert "1 unreadable" in checks["log"].sentence


@pytest.mark.parametrize("damage", ["a byte of a page", "another table"])
def test_a_damaged_file_of_a_batch_is_counted_and_none_of_it_believed(
    world: World, damage: str
) -> None:
    world.write(world.frame)
    table = pj.read_json(next(world.log.glob("*/*.jsonl")))
    table = table if damage == "a byte of a page" else table.drop_columns("shadow")
    path = world.log / "2013-08-01" / "b-0.parquet"
    scores = table.column_names.index("score")
    pq.write_table(table, path, compression="none", write_page_checksum=True)
    if damage == "a byte of a page":
        content = bytearray(path.read_bytes())
        column = pq.ParquetFile(path).metadata.row_group(0).column(scores)
        content[column.data_page_offset + column.total_compressed_size // 2] ^= 0xFF
        path.write_bytes(content)
    decision, checks = world.decide()
    assert (decision, checks["log"].outcome) == ("watch", WARN)
    assert "1 unreadable" in checks["log"].sentence


def test_an_empty_log_is_silence_and_an_object_store_is_a_log(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    decision, checks = world.decide()
    assert (decision, checks["requests"].outcome) == ("watch", WARN)
    assert "roc_auc" not in checks
    store = fsspec.filesystem("memory")
    store.pipe_file("/logs/production/d/w-1.jsonl", world.write(world.frame).read_bytes())
    kept = LogSettings(folder="memory://logs")
    vars(world.project)["delivery"] = world.project.delivery.model_copy(update={"log": kept})
    assert world.decide()[0] == "ok"

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("the key expired")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store), "cat_file", refuse)
        with pytest.raises(UserError, match=r"w-1\.jsonl: this part .* \(PermissionError: the key"):
            world.decide()
    monkeypatch.setattr(type(store), "find", refuse)
    wrong = r"memory://logs/production: .* cannot be listed \(PermissionError: the key expired\)"
    with pytest.raises(UserError, match=wrong):
        world.decide()


def hidden(world: World, **log: Any) -> None:
    changes = {"log": LogSettings(**log)}
    vars(world.project)["delivery"] = world.project.delivery.model_copy(update=changes)


def test_private_and_hashed_columns_are_left_out_and_hashed_keys_still_join(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyed = CONTRACT.model_copy(update={"key": ["at", "kind"]})
    vars(world.project)["contract"] = keyed
    labels = world.frame[["at", "kind", "late"]]
    world.sources.labels = lambda *_: labels
    monkeypatch.setenv("ML_LOG_KEY", "k")
    hidden(world, private=["size"], hashed=["kind"])
    shown = world.frame.drop(columns="size")
    world.write(shown.assign(kind=[keyed_hash(kind, "k") for kind in shown["kind"]]))
    decision, checks = world.decide()
    assert decision == "ok"
    assert checks["columns"].sentence == "1 columns as agreed"  # `at`
    assert checks["labels"].value == 1
    assert ("feature_drift" in checks, "prediction_drift" in checks) == (False, True)
    monkeypatch.setenv("ML_LOG_KEY", "another")
    assert world.decide()[1]["labels"].value == 0
    monkeypatch.delenv("ML_LOG_KEY")
    with pytest.raises(UserError, match="ML_LOG_KEY: not set"):
        world.decide()


def test_what_became_private_since_it_was_logged_is_not_unexpected(world: World) -> None:
    world.write(world.frame)
    hidden(world, private=["size"])
    decision, checks = world.decide()
    assert (decision, checks["columns"].outcome) == ("ok", PASS)


def test_a_number_that_is_no_longer_hashed_is_said_to_have_been(world: World) -> None:
    half = len(world.frame) // 2
    old = world.frame[:half]
    world.write(old.assign(size=[keyed_hash(size, "k") for size in old["size"]]))
    world.write(world.frame[half:], "2013-08-02/w-1")
    with pytest.raises(UserError, match=r"several types .* Put it back into `log\.hashed`"):
        world.decide()


def test_a_release_is_watched_by_the_contract_it_was_trained_under(world: World) -> None:
    """What is merged and not delivered yet says nothing of what serves."""
    world.write(world.frame)
    columns = CONTRACT.columns | {"new": CONTRACT.columns["size"]}
    later = CONTRACT.model_copy(update={"columns": columns})
    vars(world.project)["contract"] = later
    assert world.decide()[0] == "stop"  # of a release that kept none
    own = world.target.folder / "releases" / A / "contract.json"
    files.write_json(own, CONTRACT.model_dump(mode="json"))
    assert world.decide()[0] == "ok"
    assert world.project.contract is later
    found = CONTRACT.columns["size"].missing
    world.write(world.frame.assign(size=world.frame["size"].mask(world.frame.index % 4 == 0)))
    assert world.decide()[0] == "stop"
    often = columns["size"].model_copy(update={"missing": found + 0.25})
    more = CONTRACT.model_copy(update={"columns": columns | {"size": often}})
    vars(world.project)["contract"] = more
    assert world.decide()[0] == "ok", "shares, which are in no digest, are those of now"
    vars(world.project)["contract"] = CONTRACT.model_copy(update={"slack": 0.4})
    assert world.decide()[0] == "ok", "as the slack is"
    vars(world.project)["contract"] = more
    own.write_text('{"of": "another version"}')
    assert world.decide()[0] == "stop"


def test_labels_of_no_row_twice_and_against_each_other(world: World) -> None:
    world.write(world.frame)
    labels = world.frame[["at", "late"]]
    other = labels.assign(at=labels["at"] + pd.Timedelta("1s"))[:7]
    against = labels[:3].assign(late=~labels["late"][:3])
    world.sources.labels = lambda *_: pd.concat([labels, labels[:50], other, against])
    found, checks = read_labels(world.project, START, AS_OF)
    assert len(found) == len(labels) - 3 + 7
    conflict = checks[-1]
    assert (conflict.name, conflict.outcome) == ("label conflicts", WARN)
    assert conflict.sentence.startswith("6 labels contradict")
    assert conflict.sentence.endswith(": 2013-08-01")
    truth, unknown = join_labels(CONTRACT, world.read().rows, found)
    assert unknown == 7
    assert np.isnan(truth[:3]).all()
    assert (truth[3:] == world.frame["late"].to_numpy()[3:]).all()
    assert world.decide()[0] == "watch"


@pytest.mark.parametrize(
    ("labels", "check", "decision", "says"),
    [
        (lambda f: f.rename(columns={"late": "l"}), "label columns", "stop", "`late` is missing"),
        (lambda f: f.assign(late="yes"), "label types", "stop", "`late` is .*string"),
        (lambda f: None, "label types", "stop", "no table of at, late"),
        (lambda f: f[:0].astype(f.dtypes), "labels", "watch", "whose label arrived"),
        (lambda f: pd.DataFrame(columns=["at", "late"]), "labels", "watch", "whose label arrived"),
        (lambda f: f.assign(late=f["late"].astype("boolean").mask(f.index > 600)), "labels",
         "watch", "whose label arrived"),
    ],
)  # fmt: skip
def test_labels_that_are_no_labels(
    world: World, labels: Callable[[pd.DataFrame], Any], check: str, decision: str, says: str
) -> None:
    world.write(world.frame)
    world.sources.labels = lambda *_: labels(world.frame[["at", "late"]])
    found, checks = world.decide()
    assert found == decision
    assert checks[check].outcome is (STOP if decision == "stop" else WARN)
    assert re.search(says, checks[check].sentence)


def test_a_source_that_is_down_is_asked_three_times_and_never_ok(world: World) -> None:
    asked = list[dt.date]()

    def labels(since: dt.date, as_of: dt.date) -> pd.DataFrame:
        asked.append(since)
        raise ConnectionError("no route")

    world.write(world.frame)
    world.sources.labels = labels
    decision, checks = world.decide()
    assert asked == [START] * 3
    assert (decision, checks["labels"].outcome) == ("watch", INCONCLUSIVE)
    assert "no route" in checks["labels"].sentence
    halves = {"<html>an error's page</html>": "JSONDecodeError", '{"error": "late"}': "'rows'"}
    for half, why in halves.items():
        world.sources.labels = lambda *_, half=half: json.loads(half)["rows"]
        decision, checks = world.decide()
        assert (decision, checks["labels"].outcome) == ("watch", INCONCLUSIVE)
        assert re.match(f"sources.labels: .*{why}", checks["labels"].sentence)
    world.sources.labels = lambda *_: Path("labels-2013-11.parquet").read_bytes()
    decision, checks = world.decide()
    assert (decision, checks["labels"].outcome) == ("watch", INCONCLUSIVE)
    assert "labels-2013-11.parquet" in checks["labels"].sentence
    world.sources.NEEDS = ("NOT_SET_HERE",)
    decision, checks = world.decide()
    assert (decision, checks["labels"].outcome) == ("watch", INCONCLUSIVE)
    assert checks["labels"].sentence.startswith("sources.py needs the variable NOT_SET_HERE")
    del world.sources.labels, world.sources.NEEDS
    decision, checks = world.decide()
    assert (decision, checks["labels"].outcome) == ("watch", WARN)


def test_where_the_newest_day_is_not_known_no_older_decision_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write(world.frame)
    world.decide()
    kept = world.target.folder / "monitor" / "decision.json"
    assert kept.exists()

    def newest() -> dt.date:
        raise UserError("sources.newest(): no route")

    monkeypatch.setattr(monitoring, "first_unknown_day", newest)
    with pytest.raises(UserError, match="no route"):
        monitor(world.target, AS_OF)
    assert kept.exists()
    with pytest.raises(UserError, match="no route"):
        monitor(world.target)
    assert not kept.exists()


def test_a_categorical_of_pandas_is_a_key_of_labels_too(world: World) -> None:
    keyed = CONTRACT.model_copy(update={"key": ["at", "kind"]})
    vars(world.project)["contract"] = keyed
    labels = world.frame[["at", "kind", "late"]]
    world.sources.labels = lambda *_: labels.astype({"kind": "category"})
    found, checks = read_labels(world.project, START, AS_OF)
    assert [check.outcome for check in checks] == [PASS] * len(checks)
    assert (len(checks) > 0, len(found)) == (True, len(labels))


def late(frame: pd.DataFrame, days: int) -> Any:
    return frame["at"] >= pd.Timestamp(AS_OF) - pd.Timedelta(days, "D")


def seeded(name: str, days: int, value: Callable[[pd.DataFrame], Any]) -> Any:
    """Return what changes a column in the last days."""
    return lambda f: f.assign(**{name: f[name].mask(late(f, days), value(f))})


def two(f: pd.DataFrame) -> pd.DataFrame:
    """Return two rows of the last day that get the same score, as a probe asks."""
    return f[-2:].assign(score=f["score"].iloc[-1])


CHANGES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str, str]] = {
    "nothing": (lambda f: f, "ok", ""),
    "another unit": (seeded("size", 14, lambda f: 3 * f["size"]), "stop", "scale"),
    "another unit, a week": (seeded("size", 7, lambda f: 3 * f["size"]), "watch", "scale"),
    "missing": (seeded("size", 14, lambda f: f["size"].mask(f.index % 3 == 0)), "stop", "missing"),
    "gone": (seeded("size", 7, lambda f: np.nan), "stop", "columns"),
    "renamed": (
        lambda f: seeded("size", 7, lambda f: np.nan)(f.assign(big=f["size"].where(late(f, 7)))),
        "stop",
        "columns",
    ),
    "constant": (seeded("score", 7, lambda f: 0.5), "stop", "predictions"),
    "constant, lately": (seeded("score", 4, lambda f: 0.5), "stop", "predictions"),
    "two rows, often": (lambda f: pd.concat([f, *([two(f)] * 60)]), "ok", ""),
    "again and again": (
        lambda f: pd.concat([f, f[-120:].assign(score=0.5)]),
        "stop",
        "predictions",
    ),
    "no score": (
        seeded("score", 7, lambda f: f["score"].mask(f.index % 50 == 0, 7.0)),
        "stop",
        "predictions",
    ),
    "silence": (lambda f: f[~late(f, 7)], "watch", "requests"),
    "worse": (lambda f: f.assign(score=f["score"].iloc[::-1].to_numpy()), "retrain", "roc_auc"),
    "off": (lambda f: f.assign(score=f["score"] ** 3), "retrain", "calibration_error"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_has_its_decision(world: World, change: str) -> None:
    seed, decision, check = CHANGES[change]
    world.write(seed(world.frame))
    found, checks = world.decide()
    broken = {name for name, one in checks.items() if one.outcome is not PASS}
    assert found == decision, broken
    assert check in broken or not check


def test_drift_counts_in_two_windows_and_silence_of_deepchecks_is_inconclusive(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write(world.frame)
    moved = {"`kind`: 0.5": 4.0, "`size`: 0.1": 1.0, "`score`: 0.1": 1.0}
    answers: list[Any] = [{windows.DRIFT: USUAL}] * 4
    asked = list[Any]()
    monkeypatch.setattr(windows, "ask", lambda _, it: asked.append(it) or answers)
    for place, decision in enumerate(("watch", "retrain")):
        answers[3 - place] = {windows.DRIFT: moved}
        found = monitor(world.target, AS_OF)
        assert (found.decision, found.because) == (decision, "drift" if place else "")
    assert "in 2 of 4 windows: `kind`: 0.5" in found.reason
    assert (asked[0]["numeric"], asked[0]["categorical"]) == (["size", "score"], ["kind"])
    assert asked[0]["label"] is None, "nothing came true yet, when a window is judged"
    assert [len(one["tests"]) for one in asked] == [4, 4], "once, of all windows"
    world.write(world.frame[-1:].assign(at=pd.Timestamp("2013-08-28 23:59")), "2013-08-02/w-9")
    answers = [{windows.DRIFT: {"Deepchecks did not answer: oh": float("nan")}}] * 4
    decision, checks = world.decide()
    assert checks["feature_drift"].outcome is INCONCLUSIVE
    assert checks["prediction_drift"].outcome is INCONCLUSIVE
    assert decision == "watch"
    answers = [{windows.DRIFT: USUAL}] * 4
    decision, checks = world.decide()
    assert checks["prediction_drift"].outcome is PASS


def test_the_release_at_fault_is_rolled_back_if_there_is_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = dict(zip(world.frame["at"], world.frame["score"], strict=True))

    def score(_: Project, ship: Path, rows: pa.Table) -> Any:
        assert ship.parent.name == B
        return np.array([truth[at] for at in rows.select(["at"]).to_pandas()["at"]])

    monkeypatch.setattr(monitoring, "score_cleanly", score)
    worse = world.frame.assign(score=world.frame["score"].iloc[::-1].to_numpy())
    path = world.write(worse)
    assert world.decide()[0] == "retrain"  # nowhere to go back to
    world.serve(A, B)
    decision, checks = world.decide()
    assert (decision, checks["previous"].outcome) == ("rollback", STOP)
    assert monitor(world.target, AS_OF).because == A
    path.unlink()
    world.write(worse.assign(size=3 * worse["size"]))
    assert world.decide()[0] == "stop", "its requests are wrong, too"
    path.unlink()
    world.write(world.frame)
    assert world.decide()[0] == "ok"

    def fail(*_: object) -> Any:
        raise UserError("no such airport")

    with monkeypatch.context() as patch:
        patch.setattr(monitoring, "score_cleanly", fail)
        decision, checks = world.decide()
        assert (decision, checks["previous"].outcome) == ("watch", WARN)
        assert "gives no scores; no such airport" in checks["previous"].sentence
    hidden(world, private=["size"])
    path.unlink()
    world.write(worse.drop(columns="size"))
    found, checks = world.decide()
    assert (found, "previous" in checks) == ("retrain", False), "it cannot be asked without `size`"


def test_what_is_watched_and_what_there_is_to_go_back_to(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digests() -> list[str | None]:
        return [found and found.digest for found in watched(world.target)]

    assert digests() == [A, None]
    world.serve(A, B)
    assert digests() == [A, B]
    state = world.target.state()
    moves = [state.moves[0].model_copy(update={"type": "rolled_back"}), state.moves[1]]
    world.target.save(state, moves=moves, left=[B])
    assert digests() == [A, None], "what it came back from is no way back"
    failed = [moves[0].model_copy(update={"previous": "c" * 64}), moves[1]]
    world.target.save(state, moves=failed)
    assert digests() == [A, B], "what a canary took back was never served"
    world.target.save(state, trying=state.moves[0])
    assert digests() == [A, None], "a rollout is under way"
    world.target.save(state, moves=state.moves[:1])
    assert digests() == [A, None], "it is not installed any more"
    world.target.save(state, rehearsed=3001)
    assert digests() == [None, None]
    log = world.project.delivery.log.model_copy(update={"folder": "memory://log"})
    vars(world.project)["delivery"] = world.project.delivery.model_copy(update={"log": log})
    monkeypatch.setenv("RUNNER_ENVIRONMENT", "github-hosted")
    monkeypatch.setattr(monitoring, "champion", lambda *_: state.moves[0])
    assert digests() == [A, None], "it serves on another machine, which alone goes back"


@pytest.mark.parametrize(
    ("mixed", "days", "outcome", "windows"),
    [
        (0.0, 28, PASS, 1),
        (0.08, 28, PASS, 3),  # below the limit, but not its whole interval
        (1.0, 28, RETRAIN, 4),
        (1.0, 7, WARN, 1),  # all of it in one window
    ],
)
def test_what_came_true_is_judged_by_its_interval_and_by_windows(
    world: World, mixed: float, days: int, outcome: Outcome, windows: int
) -> None:
    frame, random = world.frame, np.random.default_rng(0)
    chosen = late(frame, days) & (random.random(len(frame)) < mixed)
    scores = frame["score"].mask(chosen, random.permutation(frame["score"])).to_numpy()
    at = frame["at"].to_numpy().astype("M8[D]")
    scored = Scored(frame["late"].to_numpy(float), scores, at, pa.table({}))
    part = (at - at[0]).astype(int) // 7
    found = over_all("roc_auc", LIMITS, scored, part, "said", 0.83)
    assert found.outcome is outcome, found
    assert f"{windows} of 4 windows alone" in found.sentence


def test_dates_a_week_apart_tell_of_decay_and_four_days_do_not(world: World) -> None:
    frame, at = world.frame, world.frame["at"].to_numpy().astype("M8[D]")
    labels, day = frame["late"].to_numpy(float), (at - at[0]).astype(int)
    scores = np.random.default_rng(0).permutation(frame["score"])
    some = (day >= 5) & (day < 9)  # of two windows
    few = LIMITS.model_copy(update={"requests": Floor(min=10, outcome="warn")})
    for rows, dates, outcome in ((day >= 0, at - day % 7, RETRAIN), (some, at, WARN)):
        scored = Scored(labels[rows], scores[rows], dates[rows], pa.table({}))
        found = over_all("roc_auc", few, scored, day[rows] // 7, "said", 0.83)
        assert found.outcome is outcome, found
        assert re.search("[24] of [24] windows alone", found.sentence), found


def test_a_segment_that_ranks_worse_is_a_warning_and_all_are_on_the_page(world: World) -> None:
    own = ModelLimits.model_construct(
        segment_rows=100,
        segment_roc_auc=Floor(min=0.7, outcome="stop"),
        segment_champion_difference=Floor(min=-0.02, outcome="stop"),
    )
    loose = LIMITS.model_copy(update={"roc_auc": Floor(min=-0.5, outcome="retrain")})
    gates = world.project.gates.model_copy(update={"model": own, "monitor": loose})
    cut = CONTRACT.model_copy(update={"segments": ["kind"]})
    vars(world.project).update(gates=gates, contract=cut)
    path = world.write(world.frame)
    decision, checks = world.decide()
    assert (decision, checks["segment_roc_auc"].outcome) == ("ok", PASS)
    path.unlink()
    scores, b = world.frame["score"], (world.frame["kind"] == "b").to_numpy()
    mixed = np.random.default_rng(0).permutation(scores[b])
    path = world.write(world.frame.assign(score=scores.mask(b, pd.Series(mixed, scores[b].index))))
    decision, checks = world.decide()
    assert (decision, checks["segment_roc_auc"].outcome) == ("watch", WARN)
    assert "kind b" in checks["segment_roc_auc"].sentence
    found = monitor(world.target, AS_OF).verdict
    assert found is not None
    [table] = [table for table in found.tables if table.columns[0] == "segment"]
    assert {row[0]: row[1] for row in table.rows} == {"kind a": (~b).sum(), "kind b": b.sum()}
    aucs = {row[0]: row[2] for row in table.rows}
    assert (aucs["kind b"] < 0.6, aucs["kind a"] > 0.75) == (True, True)
    assert "kind b" in (world.target.folder / "monitor" / "report.html").read_text()
    path.unlink()
    path = world.write(world.frame)
    late = world.frame[["at", "late"]].assign(late=world.frame["late"].astype(bool) & ~b)
    world.sources.labels = lambda *_: late
    check = world.decide()[1]["segment_roc_auc"]
    assert check.outcome is PASS, "that one cannot be judged is no reason to watch for good"
    assert "not judged, hardly any row of a class: kind b" in check.sentence
    hidden(world, hashed=["kind"])  # of which nobody could say what a weak one is
    path.unlink()
    world.write(world.frame.assign(kind=[keyed_hash(one, "k") for one in world.frame["kind"]]))
    assert not [name for name in world.decide()[1] if name.startswith("segment")]


def test_windows_of_another_release_are_not_judged(world: World) -> None:
    """After a rollout the old release's weeks say nothing of the new one."""
    broken = world.frame[:560].assign(score=0.5)
    world.write(broken, digest=B)
    world.write(world.frame[560:], "2013-08-15/w-1")
    decision, checks = world.decide()
    assert decision == "ok"
    assert "560 of other releases" in checks["log"].sentence


def test_where_no_row_is_the_releases_own_nothing_is_ok(world: World) -> None:
    world.write(world.frame, digest=B)
    decision, checks = world.decide()
    assert (decision, checks["judged"].outcome) == ("watch", WARN)


def answers(day: float, status: int, count: int, digest: str = A) -> list[dict[str, Any]]:
    """Return what the proxy logged so many days ago; without a digest, where no service gave it."""
    signed = {"X-Model-Digest": [digest]} if digest else {}
    at = dt.datetime.now(dt.UTC).timestamp() - 86_400 * day
    return [{"ts": at, "status": status, "resp_headers": signed}] * count


def answered(world: World, *logged: list[dict[str, Any]]) -> str:
    """Let a release that serves since five days answer; return what monitoring decides of it."""
    path, state = world.target.proxy.answers, world.target.state()
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(one) for some in logged for one in some]
    path.write_text("\n".join([*lines, '{"ts": 1, "st']))
    since = str(dt.datetime.now(dt.UTC) - dt.timedelta(days=5))
    moves = [move.model_copy(update={"time": since}) for move in state.moves]
    world.target.save(state, moves=moves)
    return world.decide()[0]


@pytest.mark.parametrize(
    ("code", "count", "decision"),
    [(400, 5, "ok"), (400, 30, "stop"), (502, 3, "ok"), (502, 9, "stop")],
)
def test_requests_that_are_refused_or_fail_on_several_days_stop(
    world: World, code: int, count: int, decision: str
) -> None:
    world.write(world.frame)
    days = [answers(day, code, count) + answers(day, 200, 120 - count) for day in (0, 2)]
    old = answers(7.5, code, 500) + answers(9, code, 500)
    assert answered(world, *days, old) == decision
    shutil.rmtree(world.target.folder / "monitor")
    odd = answered(world, days[0], answers(2, 200, 120), old)
    assert odd == ("ok" if decision == "ok" else "watch")
    found = world.decide()[1]["refused" if code == 400 else "failed"].sentence
    assert found.startswith("in 1 of 2 days: share of 120 ") == (odd == "watch")


def test_failures_count_for_the_release_that_served(world: World) -> None:
    world.write(world.frame)
    good = answers(0, 200, 120) + answers(1, 200, 120)
    other = [answers(day, 500, 90, digest=B) for day in (0, 1, 2)]
    before = [answers(day, 502, 90, digest="") for day in (5.5, 6)]
    assert answered(world, good, *other, *before) == "ok", "of a release that was rolled back"
    shutil.rmtree(world.target.folder / "monitor")
    silent = [answers(day, 502, 90, digest="") for day in (1, 2)]
    assert answered(world, good, *silent) == "stop", "no service answered, when it served"


def test_days_with_few_requests_or_yet_to_come_are_not_judged(world: World) -> None:
    world.write(world.frame)
    later = [answers(-day, 500, 90) for day in (1, 2)]
    few = [answers(day, 500, 14) for day in (1, 2)]  # of a window's 100 a day's part is 14.3
    assert answered(world, *later, *few) == "ok"
    assert not {"refused", "failed"} & {*world.decide()[1]}
    shutil.rmtree(world.target.folder / "monitor")
    daily = LIMITS.model_copy(update={"window_days": 1})
    gates = world.project.gates.model_copy(update={"monitor": daily})
    vars(world.project)["gates"] = gates
    assert answered(world, *[answers(day, 500, 120) for day in (0, 1)]) == "stop"


def test_of_a_log_that_rolled_over_the_days_counted_before_still_count(world: World) -> None:
    world.write(world.frame)
    assert answered(world, answers(1, 500, 90)) == "watch"
    assert answered(world, answers(0, 500, 90)) == "stop"
    assert answered(world) == "stop"
    kept = world.target.folder / "monitor" / "answers.json"
    found = files.read_json(kept)
    assert [day[:64] for day in found["days"]] == [A, A]
    old = {f"{A} 2013-08-01": [90, 0, 90]}
    files.write_json(kept, found | {"days": old})
    assert answered(world) == "ok"
    ahead = {f"{A} 2099-01-01": [90, 0, 90]}
    files.write_json(kept, {"until": 4e9, "days": ahead})  # of a clock that was
    assert answered(world, answers(0, 200, 90)) == "ok"
    assert list(files.read_json(kept)["days"].values()) == [[90, 0, 0]]


def test_failures_of_a_busy_day_count_though_more_answers_were_counted_before(
    world: World,
) -> None:
    world.write(world.frame)
    assert answered(world, answers(1, 500, 90), answers(0.001, 200, 900)) == "watch"
    assert answered(world, answers(0, 500, 90)) == "stop", "in a log that rolled over"
    kept = files.read_json(world.target.folder / "monitor" / "answers.json")
    assert sorted(kept["days"].values()) == [[90, 0, 90], [990, 0, 90]]


def test_what_rolled_over_since_the_last_look_counts_once(world: World) -> None:
    world.write(world.frame)
    counted, log = world.target.folder / "monitor" / "answers.json", world.target.proxy.answers
    before, since = answers(2, 500, 90), answers(1, 500, 90)
    assert answered(world, before) == "watch"
    rolled = "\n".join(map(json.dumps, [*before, *since]))
    log.with_name("access-2026-11-29T04-00-00.000.log").write_text(rolled)
    for day in (0.01, 0.001):
        assert answered(world, answers(day, 200, 90)) == "stop"
        days = files.read_json(counted)["days"].values()
        assert sum(failed for _, _, failed in days) == 180
    os.utime(log.with_name("access-2026-11-29T04-00-00.000.log"), (0, 0))
    files.write_json(counted, {"until": 1.0})
    assert answered(world, answers(0, 200, 90)) == "ok", "nobody wrote to it since"


def test_much_new_data_is_a_reason_to_train(world: World) -> None:
    world.write(world.frame.assign(at=world.frame["at"] + pd.Timedelta(120, "D")))
    found = monitor(world.target, AS_OF + dt.timedelta(120))
    assert (found.decision, found.because) == ("retrain", "data")
    assert "148 days since its data, which span 61" in found.reason


def check(name: str, outcome: Outcome) -> Check:
    return Check(name=name, outcome=outcome, sentence="said")


@pytest.mark.parametrize(
    ("outcomes", "name", "outcome"),
    [
        ([PASS, PASS, PASS, PASS], "scale", PASS),
        ([PASS, STOP, PASS, PASS], "scale", WARN),
        ([STOP, PASS, PASS, STOP], "scale", STOP),
        ([PASS, PASS, PASS, STOP], "columns", STOP),
        ([STOP, PASS, PASS, PASS], "columns", WARN),
        ([PASS, PASS, PASS, STOP], "predictions", STOP),
        ([PASS, PASS, RETRAIN, RETRAIN], "feature_drift", RETRAIN),
        ([PASS, PASS, INCONCLUSIVE, PASS], "feature_drift", INCONCLUSIVE),
        ([INCONCLUSIVE, PASS, PASS, RETRAIN], "feature_drift", INCONCLUSIVE),
        ([RETRAIN, RETRAIN, PASS, INCONCLUSIVE], "feature_drift", RETRAIN),
        ([STOP], "scale", WARN),
    ],
)
def test_one_odd_window_moves_nothing(
    outcomes: Sequence[Outcome], name: str, outcome: Outcome
) -> None:
    found = [
        [check(name, one).model_copy(update={"value": place})] for place, one in enumerate(outcomes)
    ]
    assert combined(name, found, LIMITS).outcome is outcome


@pytest.mark.parametrize(
    ("found", "earlier", "decision", "because"),
    [
        ({"a": PASS}, True, "ok", ""),
        ({"a": WARN}, True, "watch", ""),
        ({"a": INCONCLUSIVE, "roc_auc": RETRAIN}, True, "watch", ""),
        ({"roc_auc": RETRAIN, "new_data": RETRAIN}, True, "retrain", "decay"),
        ({"feature_drift": RETRAIN}, True, "retrain", "drift"),
        ({"new_data": RETRAIN}, True, "retrain", "data"),
        ({"previous": STOP, "roc_auc": RETRAIN}, True, "rollback", ""),
        ({"predictions": STOP}, False, "stop", ""),
        ({"predictions": STOP, "scale": STOP}, True, "stop", ""),
    ],
)
def test_a_verdict_has_one_decision(
    found: dict[str, Outcome], earlier: bool, decision: str, because: str
) -> None:
    verdict = Verdict(gate="monitor", checks=[check(*pair) for pair in found.items()])
    answer = decide(verdict, earlier)
    assert (answer.decision, answer.because) == (decision, because)


def test_killed_at_any_durable_write_a_rerun_finds_the_same(world: World) -> None:
    """By a signal that no process can answer, with the next file written and not in its place."""
    world.write(world.frame)
    decision, folder = answered(world, answers(0, 500, 90)), world.target.folder / "monitor"
    assert decision == "watch"

    def pages() -> dict[str, str]:
        """Return what was written, without the time and how long it took."""
        paths = [path for path in folder.rglob("*.*") if path.is_file()]
        read = {str(path.relative_to(folder)): path.read_text() for path in paths}
        clock = r'20..-..-..[T ]..:..(:..\+00:00)?|"seconds": [0-9.]+|[0-9]+ s\b'
        return {name: re.sub(clock, "", text) for name, text in read.items()}

    def killed(step: int) -> None:
        replace, count = os.replace, 0

        def dying(*arguments: Any, **options: Any) -> None:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*arguments, **options)

        os.replace = dying
        monitor(world.target, AS_OF)

    whole, wanted = pages(), read_json(folder / "decision.json")
    assert {"answers.json", "decision.json", "report.html", "report.md"} < {*whole}
    steps = 1 + 1 + 1 + 3 + 1  # index, answers, windows, report, decision
    for step in range(1, steps + 2):
        shutil.rmtree(folder)
        child = forked(killed, step)
        child.join(60)
        assert child.exitcode == (-signal.SIGKILL if step <= steps else 0), step
        assert (folder / "decision.json").exists() == (step > steps)
        assert monitor(world.target, AS_OF).decision == decision
        now = {name: text for name, text in pages().items() if ".new-" not in name}
        assert (now, read_json(folder / "decision.json")) == (whole, wanted), step


def test_what_killed_processes_left_is_removed_a_day_later(tmp_path: Path) -> None:
    now = time.time()
    for name, age, inner in ((".new-old", 2, 2), (".new-young", 0.5, 2), (".new-busy", 2, 0.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        os.utime(tmp_path / name / "file", (now, now - inner * 86_400))
        os.utime(tmp_path / name, (now, now - age * 86_400))
    files.write_atomic(tmp_path / "name", "text")
    assert {path.name for path in tmp_path.iterdir()} == {".new-young", ".new-busy", "name"}


class January(dt.datetime):
    """A clock that says a day of January."""

    today = 10

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> January:
        return cls(2026, 1, cls.today, tzinfo=tz)


def write_and_die(folder: Path, at: int, half: str) -> None:
    """Write four records and a count, and on a second day remove old ones; killed at an act."""
    request = json.loads(json.dumps(request_json(CONTRACT)))
    body = {"at": "2013-08-02T00:00:00", "kind": "a", "size": 1.0}
    [row] = request_model(request).model_validate_json(json.dumps({"rows": [body]})).rows
    put, rm, write = log._put, LocalFileSystem.rm, PredictionLog._write
    acts, written = 0, threading.Event()

    def dying(act: Callable[..., None], torn: Callable[..., None]) -> Callable[..., None]:
        def acted(*known: Any, **options: Any) -> None:
            nonlocal acts
            acts += 1
            if acts != at or half == "after":
                act(*known, **options)
            if acts == at and half == "torn":
                torn(*known)
            if acts == at:
                os.kill(os.getpid(), signal.SIGKILL)

        return acted

    def wrote(self: PredictionLog, lines: list[bytes]) -> None:
        write(self, lines)
        written.set()

    def add(name: str, rows: int = 1) -> None:
        written.clear()
        predictions.add({b"x-request-id": name.encode()}, [row] * rows, [0.5] * rows, 0.001)
        assert written.wait(PATIENCE)

    log._put = dying(put, lambda store, path, content, *_: put(store, path, content[:-1], True))
    LocalFileSystem.rm = dying(rm, lambda store, path: next(Path(path).iterdir()).unlink())
    PredictionLog._write, log.dt.datetime, log.PAUSE = wrote, January, 0.01
    to = LogSettings(folder=str(folder), keep_days=30)
    predictions = PredictionLog(to, A, request, lambda _: None)
    add("a")
    log.MOST_WAITING = 2
    add("dropped", rows=3)
    log.MOST_BYTES = 0
    add("b")
    January.today, log.MOST_BYTES = 11, 1_000_000
    add("c")
    add("d")
    predictions.close()


@pytest.mark.parametrize(
    ("half", "kept"), [("torn", [0, 1, 1, 2, 3, 3, 4]), ("after", [1, 1, 2, 3, 3, 4, 4])]
)
def test_a_killed_writer_loses_its_last_half_second_and_each_record_counts_once(
    world: World, half: str, kept: list[int]
) -> None:
    """Killed at each write: segments by size and by day, what was dropped, days that are old."""
    for at, whole in enumerate(kept, start=1):
        shutil.rmtree(world.log, ignore_errors=True)
        for name in ("2025-11-01/old-1", "2025-11-01/old-2", "2026-01-09/late-1"):
            world.write(world.frame[:1].assign(at=START - dt.timedelta(1)), name)
        child = forked(write_and_die, world.log, at, half)
        child.join(60)
        assert child.exitcode == (-signal.SIGKILL if at < len(kept) else 0)
        ids = [one["id"] for one in records(world.log) if len(one["id"]) == 1]
        assert sorted(ids) == ["a", "b", "c", "d"][:whole], "none missing before the last"
        assert len(world.read().rows) == whole
        assert dropped(world.log) in ((3,) if whole > 1 else (0, 3))
        again = forked(write_and_die, world.log, 0, half)  # clients ask again, by the same ids
        again.join(60)
        assert again.exitcode == 0
        assert len(world.read().rows) == 4
        assert {*world.log.glob("2025-*")} == set()


def test_the_verb_ends_neutral_without_a_target_and_by_its_verdict_with_one(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from model_delivery.cli import main

    monkeypatch.setattr(
        main, "_run", lambda *_: SimpleNamespace(project=world.project, as_of=AS_OF)
    )
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    worse = world.frame.assign(score=world.frame["score"].iloc[::-1].to_numpy())
    world.write(worse)
    done = CliRunner().invoke(app, ["monitor"])
    assert done.exit_code == 10
    assert "retrain: roc_auc" in done.stdout
    found = files.read_json(world.target.folder / "monitor" / "decision.json")
    assert (found["decision"], found["because"], found["digest"]) == ("retrain", "decay", A)
    assert found["as_of"] == "2013-08-29"
    page = (world.target.folder / "monitor" / "report.html").read_text()
    assert "Decision as of 2013-08-29: retrain" in page
    assert page.count("<figure>") == 4
    text = (world.target.folder / "monitor" / "report.md").read_text()
    assert (tmp_path / "summary").read_text() == f"{text}\n"
    assert "retrain" in text
    world.target.save(State())
    done = CliRunner().invoke(app, ["monitor", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["reason"] == "nothing deployed, nothing watched"
    lines = (tmp_path / "output").read_text().splitlines()
    report = f"report={world.target.folder}/monitor/report.*"
    assert lines[:3] == ["decision=retrain", "because=decay", report]
    assert lines[3:] == ["decision=nothing deployed", "because=", "report="]
    last = (tmp_path / "summary").read_text().removeprefix(f"{text}\n")
    assert last == "    nothing deployed: nothing deployed, nothing watched\n"
    assert monitor(world.target, AS_OF).decision == "nothing deployed"


def test_a_day_that_the_source_does_not_know_is_refused(world: World) -> None:
    world.write(world.frame)
    world.sources.newest = lambda: AS_OF
    assert monitor(world.target).decision == "ok"
    with pytest.raises(UserError, match=r"--as-of 2013-08-30: .* before 2013-08-29"):
        monitor(world.target, AS_OF + dt.timedelta(days=1))


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"needed": 5}, "no finding could ever count"),
        ({"windows": 1, "needed": 1}, "labels that never arrive would not be missed"),
        ({"requests": {"min": 99, "outcome": "warn"}}, "so few scores may well be the same"),
    ],
)
def test_limits_by_which_nothing_is_found_or_chance_is_are_refused(
    limits: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        MonitorLimits.model_validate(LIMITS.model_dump(exclude_none=True) | limits)


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)
    return done.stdout.decode().strip()


def tell(project: Project, *events: Event) -> None:
    for one in events:
        event_log(project).append(lambda _, one=one: one)


def repository(root: Path, top: Path) -> Project:
    """Make a project whose production serves its first commit; a second one is not released."""
    shutil.copytree(HERE.root / "config", root / "config")
    # Not the limits that a team may have set.
    configure(Project(root), "delivery", lambda it: it.update(retraining=RETRAINING))
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


def configure(project: Project, name: str, edit: Callable[[Any], object]) -> None:
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
    assert (env["GITHUB_SHA"], env["ML_BECAUSE"], env["ML_SUCCEEDS"]) == (commit, "drift", A)
    assert (env["ML_HOME"], "VIRTUAL_ENV" in env) == (str(project.work), False)
    assert capfd.readouterr().err.count("its own words") == 1
    assert (project.root / "code").read_text() == "not committed"


@pytest.mark.parametrize(
    ("code", "ends", "said"),
    [
        (20, 20, "v1+a stays in production: a gate or the rollout says stop; `ml report`"),
        (30, 30, "v1+a stays in production: inconclusive"),
        (2, 2, "refused, as said above (of a command's options: deliver the newer `delivery/`"),
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
    told_twice = [
        one for made in retrained(days) for one in (made, made)[: 1 + bool(made.previous)]
    ]
    assert too_early(settings, told_twice, day) == said
    refused = {"type": "verdict", "trigger": "retraining", "digest": "none", "blob": ""}
    tried = [event(as_of=dt.date(2013, 10, one), **refused) for one in days]
    assert too_early(settings, tried, day) == said
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
    configure(project, "delivery", lambda it: it.update(retraining={"most_a_month": 1}))
    assert ask(Project(project.root), day, "person").sentence.startswith("budget spent")


def make_refused(project: Project, day: dt.date = NEW, outcome: Outcome = STOP) -> Candidate:
    """Leave a candidate as `ml ship` does whose model a gate judged."""
    staged = project.work / "staged"
    write_json(staged / "ship" / "model.json", {"of": str(day)})
    data = {"as_of": str(day), "spans": {"test": ["2013-07-01T00:00:00", "2013-07-31T23:59:00"]}}
    lineage = {"data": data, "snapshot": "s", "key": "k", "parameters": {}, "commit": "c" * 40}
    lineage |= {"code": inputs_hash(project)}
    write_json(staged / "lineage.json", lineage)
    made = Candidate(candidate_folder(project, seal(staged / "ship")))
    made.folder.parent.mkdir(exist_ok=True)
    files.settle(staged, made.folder)
    worse = Check(name="roc_auc", outcome=outcome, sentence="ranks badly", value=0.6, limit="≥ 0.7")
    made.save(Verdict(gate="model", subject=made.digest, checks=[worse]))
    files.write_atomic(project.work / "candidate", made.digest)
    return made


def test_a_model_that_a_gate_refused_was_tried_and_is_no_release(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a daily decision to retrain would train daily, as long as the model is not better."""
    made = list[Candidate]()

    def ship(home: Project, *_: object) -> int:
        made.append(make_refused(home))
        return 20

    monkeypatch.setattr(retraining, "_ship", ship)
    before, later = event_log(project).events(), NEW + dt.timedelta(1)
    assert ask(project, because="drift").code == 20
    told = event_log(project).events()
    assert told[:-1] == before
    assert (told[-1].verdicts, told[-1].environment) == ({"model": STOP}, None)
    assert "roc_auc (0.6, limit ≥ 0.7) ranks badly" in line(told[-1])
    assert line(told[-1]).endswith(", retraining: drift)")
    assert ask(project, later, "drift").sentence.startswith("cool-down of 7 days: one was tried")
    assert len(made) == 1
    assert ask(project, because="person").code == 20
    assert event_log(project).events() == told, "of the same day and model once"

    shutil.rmtree(made[0].folder)
    for name in (told[-1].release, made[0].digest, made[0].short, "none"):
        with pytest.raises(UserError, match="no release"):
            releases.find(told, name)
    assert registry.newest(told, digest=made[0].digest) is None
    assert releases.resolve(project, A).release == "v1+a"
    monkeypatch.setattr(retraining, "_ship", lambda *_: 0)
    assert "nothing was registered" in ask(project, force=True).sentence
    good = make_refused(project, outcome=PASS)
    verdict = good.verdict("model")
    assert verdict
    registered = register(project, good, {"model": verdict}, "local")
    assert registered.release == "v1.0.0+data.20131001.1"
    assert releases.resolve(project, registered.release).digest == made[0].digest


@pytest.mark.parametrize(
    ("day", "outcome", "code"),
    [(OLD, STOP, ""), (NEW, PASS, ""), (NEW, INCONCLUSIVE, ""), (NEW, STOP, "a person's")],
)
def test_what_trained_nothing_or_was_no_refusal_is_not_counted(
    project: Project, monkeypatch: pytest.MonkeyPatch, day: dt.date, outcome: Outcome, code: str
) -> None:
    """Where bad data trained nothing, the candidate is an earlier one; a rollout counts itself."""
    own = make_refused(project, day, outcome)
    if code:
        lineage = read_json(own.folder / "lineage.json")
        write_json(own.folder / "lineage.json", lineage | {"code": code})
    monkeypatch.setattr(retraining, "_ship", lambda *_: 20)
    before = event_log(project).events()
    assert ask(project).code == 20
    assert event_log(project).events() == before


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


def test_what_git_ignores_of_the_code_is_in_no_commit(project: Project) -> None:
    folder = project.root / training_code(project)[0]
    for place in (folder, folder / "__pycache__", folder / ".cache"):
        place.mkdir(parents=True)
        (place / "it.py").touch()
    git(project.root, "add", str(folder / "it.py"))
    git(project.root, "commit", "--quiet", "-m", "code")
    before = uncommitted(project)
    assert not [line for line in before if "it.py" in line]
    (project.root / ".gitignore").write_text("*.ml\n")
    (folder / "lookup.ml").touch()
    assert uncommitted(project) == [*before, f"!! {folder.relative_to(project.root)}/lookup.ml"]


def test_code_that_is_in_no_commit_is_not_lost_unasked(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining, "_ship", lambda *_: 20)
    other = SimpleNamespace(lineage={"code": "of what was edited", "changed_files": 1})
    monkeypatch.setattr(retraining, "champion_of", lambda _: other)
    with pytest.raises(UserError, match=r"v1\+a: its commit lacks some of the code"):
        ask(project)
    assert ask(project, force=True).code == 20
    [worktree] = project.work.glob("worktrees/*")
    other.lineage["code"] = inputs_hash(Project(worktree))
    assert ask(project).code == 20
    other.lineage |= {"code": "of an earlier commit that gave the same bytes", "changed_files": 0}
    assert ask(project).code == 20
    del other.lineage["code"]  # of a release by an older version
    assert ask(project).code == 20


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
    configure(project, "data", lambda it: it.update(as_of=it["as_of"] - dt.timedelta(days=1)))
    with pytest.raises(UserError, match=r"config/data.yaml here is not that of v1\+a"):
        ask(project, until="register")
    assert ask(project).code == 20  # it rolls out from the champion's commit


def forked(work: Callable[..., object], *arguments: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process  # type: ignore[return-value]  # to the stubs a ForkProcess is none


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


def test_killed_anywhere_when_it_tells_of_a_refusal_it_counts_once(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_refused(project)
    monkeypatch.setattr(retraining, "_ship", lambda *_: 20)
    run, calls = registry.run, 0

    def once(left: int) -> None:
        def die_at(command: list[str]) -> None:
            nonlocal calls
            calls += bool({"commit-tree", "push", "update-ref"} & {*command})
            if calls == left:
                os.kill(os.getpid(), signal.SIGKILL)

        def deadly(command: list[str], *rest: Any, **options: Any) -> str:
            die_at(command)
            said = run(command, *rest, **options)
            die_at(command)
            return said

        monkeypatch.setattr(registry, "run", deadly)
        ask(project)

    known = event_log(project).events()
    for left in range(1, 20):
        process = forked(once, left)
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        assert ask(project, because="person").code == 20
        told = event_log(project).events()
        assert told[:-1] == known
        day = NEW + dt.timedelta(1)
        assert too_early(Retraining(cooldown_days=0, most_a_month=2), told, day) == ""
        assert too_early(Retraining(cooldown_days=0, most_a_month=1), told, day)[:6] == "budget"
        git(project.root, "update-ref", registry.BRANCH, f"{registry.BRANCH}^")
        git(project.root, "update-ref", registry.SEEN, registry.BRANCH)
    assert left == 7, "before and after a commit, its push, and the note of what was seen"


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
    down = r"sources.extract: .* 3 times \(DriverError: no answ"
    with pytest.raises(UserError, match=down) as caught:
        ask_source("extract", 7)
    assert caught.value.code == 30
    for error in (UserError("no such day"), KeyError("x"), ValueError("x"), TypeError("x")):
        calls.clear()
        errors[:] = [error]
        with pytest.raises(type(error)):
            ask_source("extract", 7)
        assert calls == [7]
    errors[:] = [FileNotFoundError(2, "No such file", "loans.csv")]
    with pytest.raises(UserError, match=r"sources.extract: .*'loans.csv'; .* name data by a varia"):
        ask_source("extract", 7)


@pytest.mark.parametrize("name", ["extract", "labels", "newest"])
def test_a_variable_that_the_source_needs_is_named_whatever_asks_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WAREHOUSE", raising=False)
    sources = SimpleNamespace(NEEDS=("WAREHOUSE",), **{name: lambda: os.environ["WAREHOUSE"]})
    monkeypatch.setattr(protocols, "user_module", lambda _: sources)
    with pytest.raises(UserError, match=r"sources\.py needs the variable WAREHOUSE: set it"):
        ask_source(name)
    monkeypatch.setenv("WAREHOUSE", "address")
    assert ask_source(name) == "address"


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("x"), 2), (UserError("x", 30), 30), (UserError("x", 0), 0)]
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
    monkeypatch.setattr(stages, "unset_variables", list)
    asked = list[tuple[Any, ...]]()
    monkeypatch.setattr(stages.data, "take_snapshot", lambda *it: asked.append(it) or snapshot)
    monkeypatch.setattr(releases, "champion", lambda _: old)
    shutil.copytree(HERE.root / "config", tmp_path / "config")
    run = stages.Run(Project(tmp_path), event_, NEW)
    if nothing:
        with pytest.raises(UserError, match=f"newest row is of {end}") as caught:
            stages.extract(run)
        assert caught.value.code == 0
    else:
        assert stages.extract(run) is snapshot
    [(_, _, again, *_)] = asked
    assert again is (event_ == "retraining"), "the source may have been corrected since"


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
    lineage: dict[str, Any] = {"data": {"as_of": "2013-10-01"}, "snapshot": "s", "parameters": {}}
    write_json(tmp_path / "lineage.json", lineage)
    for because in ("drift", ""):
        monkeypatch.setenv("ML_BECAUSE", because)
        assert releases._facts(Candidate(tmp_path))["because"] == because
    assert releases._facts(Candidate(tmp_path))["reason"] == ""
    write_json(tmp_path / "lineage.json", lineage | {"changed_files": 2})
    assert releases._facts(Candidate(tmp_path))["reason"] == "2 changed files in no commit"


CRON = """on:
  schedule:
    - cron: {cron} # static, as GitHub wants it
jobs: {{}} # - cron is no schedule
"""


def test_a_schedule_that_is_not_the_settings_one_is_found_and_set(project: Project) -> None:
    wanted = {"retrain": "17 3 * * 1", "monitor": "27 4 * * *"}
    times = {name: {"cron": cron} for name, cron in wanted.items()}
    named = {"retraining": times["retrain"], "monitoring": times["monitor"]}
    configure(project, "delivery", lambda it: it.update(named))
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
    configure(project, "delivery", lambda it: it.update(retraining={"cron": cron}))
    with pytest.raises(UserError, match=r"delivery.yaml:\d+: `retraining.cron`"):
        _ = project.delivery
