"""A release takes only what its contract allows, and lets nothing out but probabilities.

Every kind of wrong request and seeded fault: in requests, the package and the running service.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import math
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import timeit
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_delivery import files
from model_delivery.bundle import launch
from model_delivery.bundle.candidate import Candidate, build_package, pack, unpack, write_ship
from model_delivery.bundle.launch import Running, free_port, processes
from model_delivery.contract.limits import Limit
from model_delivery.contract.request import (
    MOST_ROWS,
    JsonRow,
    Request,
    columns_of,
    draw_rows,
    example,
    request_json,
    request_model,
    to_columns,
)
from model_delivery.contract.settings import Column, DataContract
from model_delivery.files import SUMS, seal, write_json
from model_delivery.gates.shipped import check_package, is_plain, judge_service
from model_delivery.project import Project, find_project
from model_delivery.protocols import Floats, UserError, user_module
from model_delivery.report.verdict import Outcome
from model_delivery.serving import (
    REFUSAL,
    ModelService,
    create,
    probabilities,
    start_model,
    twin,
)
from model_delivery.training.scores import Trained
from pydantic import ValidationError

N = 40
NAN, BOOM, SHORT, ABOVE, STRICT = 101, 102, 103, 104, 105
"""Values of `count` that make the stub's model fail, each in its way."""
TEXT = {"content-type": "text/plain"}


def start(
    ship: Path, python: Path, log: Path, port: int = 0, timeout: float = 60, **options: Any
) -> Running:
    """Start a release by the Python of a test, instead of a clean environment's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "service_environment", lambda *_: python)
        patch.setattr(launch, "clean_variables", lambda _: {"PATH": os.environ["PATH"]})
        project = Project(log.parent)
        vars(project)["delivery"] = SimpleNamespace(start_timeout_seconds=timeout)
        return launch.start(project, ship, log, port, **options)


def test_an_environment_whose_interpreter_is_gone_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a system or uv has replaced its Python by a newer one."""
    ship, made = tmp_path / "ship", list[Path]()
    files.write_atomic(ship / "requirements.txt", "bentoml==1")

    def run(command: list[str], cwd: Path, **_: object) -> str:
        if command[1] == "venv":
            made.append(python := cwd / "made" / "bin" / "python")
            time.sleep(0.2)
            python.parent.mkdir(parents=True)
            python.symlink_to(sys.executable)
        return ""

    monkeypatch.setattr(launch, "run", run)
    with ThreadPoolExecutor(3) as pool:  # as the services of the load gate start
        found = [*pool.map(lambda _: launch.service_environment(Project(tmp_path), ship), range(3))]
    assert len(made) == 1
    assert {python.exists() for python in found} == {True}
    found[0].unlink()
    found[0].symlink_to(tmp_path / "gone")
    assert launch.service_environment(Project(tmp_path), ship) == found[0] == found[1]
    assert found[0].exists()
    assert len(made) == 2


def test_who_is_given_more_rows_has_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = list[float]()
    monkeypatch.setattr(launch, "service_environment", lambda *_: tmp_path)
    monkeypatch.setattr(launch, "clean_variables", lambda _: {})
    monkeypatch.setattr(launch, "run", lambda *_, timeout, **__: times.append(timeout) or "")
    for given in ("", "x" * 40_000_000):
        launch.run_cleanly(Project(tmp_path), tmp_path, [], tmp_path, given)
    assert times == [launch.PATIENCE_SECONDS, launch.PATIENCE_SECONDS + 120]


def test_a_project_without_a_version_is_told_what_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "late"\ndynamic = ["version"]\n')
    with pytest.raises(UserError, match=r"pyproject\.toml: `project\.version` names releases"):
        _ = Project(tmp_path).about


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("logs") / "service.log"
    return path


@pytest.fixture(scope="module")
def python(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert pytestconfig.cache is not None
    # BentoML's byte code is kept from run to run: half of a start is compiling it.
    kept = f"PYTHONPYCACHEPREFIX={pytestconfig.cache.mkdir('bytecode')}"
    program = f'exec env -u PYTHONDONTWRITEBYTECODE {kept} {sys.executable} "$@"'
    return fake_python(tmp_path_factory.mktemp("python"), program)


@pytest.fixture(scope="module")
def service(ship: Path, log: Path, python: Path) -> Iterator[Running]:
    with start(ship, python, log) as started:
        yield started


@pytest.fixture
def client(service: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url) as connected:
        yield connected


def predict(client: httpx.Client, *rows: JsonRow) -> httpx.Response:
    return client.post("/predict", json={"rows": rows})


@pytest.fixture(scope="module")
def rows(contract: DataContract) -> list[JsonRow]:
    return draw_rows(contract, N, seed=1)


@pytest.fixture(scope="module")
def scores(contract: DataContract, rows: list[JsonRow]) -> Floats:
    return np.minimum(columns_of(rows, contract)["amount"] * 0.01, 1.0)


class Case(NamedTuple):
    """What the gate judges a service by; each test breaks one part of it."""

    service: Running
    names: list[str]
    rows: list[JsonRow]
    scores: Floats

    def failed(self) -> dict[str, str]:
        """Return the sentence of each check that is no pass."""
        checks = judge_service(*self)
        return {check.name: check.sentence for check in checks if check.outcome != Outcome.PASS}


@pytest.fixture
def case(service: Running, contract: DataContract, rows: list[JsonRow], scores: Floats) -> Case:
    return Case(service, [*contract.inputs], rows, scores)


def test_the_gate_passes_a_good_service(case: Case) -> None:
    checks = judge_service(*case)
    assert [check.outcome for check in checks] == [Outcome.PASS] * 4, checks


def test_the_gate_sees_a_score_that_differs_in_its_last_bit(case: Case) -> None:
    skewed = case.scores.copy()
    skewed[7] = np.nextafter(skewed[7], 0)
    assert set(case._replace(scores=skewed).failed()) == {"equal scores"}


def test_the_gate_sees_a_valid_row_without_an_answer(case: Case) -> None:
    rows = [case.rows[0] | {"count": NAN}, *case.rows[1:]]
    found = case._replace(rows=rows).failed()
    assert set(found) == {"valid rows"}
    assert "500" in found["valid rows"]


Post = Callable[..., httpx.Response]


def forgiving(post: Post) -> Post:
    """Post rows without what is wrong in them, as a service that drops it would read them."""

    def forgive(client: httpx.Client, path: str, json: dict[str, list[JsonRow]]) -> httpx.Response:
        rows = [{k: v for k, v in row.items() if v != []} for row in json["rows"]]
        return post(client, path, json={"rows": rows})

    return forgive


def terse(post: Post) -> Post:
    """Take from an answer what is wrong."""

    def tell(client: httpx.Client, path: str, json: Any) -> httpx.Response:
        answer = post(client, path, json=json)
        return answer if answer.is_success else httpx.Response(answer.status_code, text="wrong")

    return tell


@pytest.mark.parametrize(
    ("fault", "said"), [(forgiving, "`model code` -> 200"), (terse, "`at` -> 400")]
)
def test_the_gate_sees_a_wrong_value_let_in_or_refused_without_its_name(
    case: Case, fault: Callable[[Post], Post], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpx.Client, "post", fault(httpx.Client.post))
    found = case.failed()
    assert set(found) == {"wrong values"}
    assert said in found["wrong values"]


def test_every_wrong_request_is_refused_by_name_and_is_no_line_of_the_log(
    service: Running, contract: DataContract, log: Path
) -> None:
    before, wrong = log.read_text(), wrong_requests(contract)
    assert len(wrong) >= 50
    assert let_in(service.url, wrong) == []
    assert log.read_text() == before


def test_a_wrong_request_let_in_or_refused_without_its_name_is_found(
    service: Running, contract: DataContract, rows: list[JsonRow]
) -> None:
    right = Wrong("let in", json.dumps({"rows": rows[:1]}).encode(), "amount")
    nameless = wrong_requests(contract)[-1]._replace(mistake="nameless", word="no such word")
    slips = let_in(service.url, [right, nameless])
    assert [slip.split(" ->")[0] for slip in slips] == ["let in", "nameless"]


def test_the_openapi_document_shows_the_contract(service: Running, contract: DataContract) -> None:
    assert misdescribed(service.url, contract) == set()
    columns = contract.columns
    wider = columns["amount"].model_copy(update={"max": 101.0})
    for change, parts in ({"amount": wider}, {"amount"}), ({"new": wider}, {"new", "required"}):
        other = contract.model_copy(update={"columns": columns | change})
        assert misdescribed(service.url, other) == parts


def test_the_gate_sees_a_stranger_and_a_dead_service(case: Case) -> None:
    stranger = replace(case.service, launch="another start")
    assert set(case._replace(service=stranger).failed()) == {"identity"}
    dead = replace(case.service, url=f"http://127.0.0.1:{free_port()}")
    assert set(case._replace(service=dead).failed()) == {"answered", "identity"}


@pytest.mark.parametrize(
    ("count", "line"),
    [
        (NAN, "no probabilities of 2 rows: [nan, nan]"),
        (ABOVE, "no probabilities of 2 rows: ["),
        (SHORT, "no probabilities of 2 rows: ["),
        (BOOM, "RuntimeError: the model fell over"),
        (STRICT, "failed on 2 rows"),
    ],
)
def test_what_is_no_probability_is_our_fault_and_in_the_log(
    client: httpx.Client, rows: list[JsonRow], log: Path, count: int, line: str
) -> None:
    before = len(log.read_text())
    assert predict(client, rows[0] | {"count": count}, rows[1]).status_code == 500
    assert line in log.read_text()[before:]
    assert predict(client, rows[0]).status_code == 200


def test_every_response_says_who_answers(
    service: Running, client: httpx.Client, rows: list[JsonRow]
) -> None:
    gets = ("/readyz", "/livez", "/metrics", "/docs.json", "/none", "/predict")
    answers = [client.get(path) for path in gets]
    answers += [predict(client), predict(client, rows[0] | {"count": BOOM})]
    answers.append(client.post("/predict", content=b"{}", headers=TEXT))
    assert [a.status_code for a in answers] == [200, 200, 200, 200, 404, 405, 400, 500, 415]
    for each in answers:
        assert each.headers["x-model-digest"] == service.digest
        assert each.headers["x-launch"] == service.launch


def test_a_client_that_stops_or_hangs_up_costs_two_seconds_and_no_line(
    service: Running, log: Path
) -> None:
    before = log.read_text()
    head = "POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    with socket.create_connection(address) as gone, socket.create_connection(address) as slow:
        for connection in (gone, slow):
            connection.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
        gone.close()
        slow.settimeout(10)
        answer = slow.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 504")
    assert log.read_text() == before


def test_metrics_count_refusals_too(client: httpx.Client) -> None:
    client.post("/predict", content=b"{}", headers=TEXT)
    assert 'http_response_code="415"' in client.get("/metrics").text


def test_a_port_in_use_is_refused_by_number(ship: Path, service: Running, tmp_path: Path) -> None:
    port = int(service.url.rpartition(":")[2])
    with pytest.raises(UserError, match=f"port {port} is in use"):
        start(ship, Path(sys.executable), tmp_path / "log", port)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["changed", "extra", "missing", "unsealed"])
def test_foreign_bytes_are_refused_before_anything_of_them_runs(
    ship: Path, stub: type[ModelService], tmp_path: Path, change: str
) -> None:
    copy = tmp_path / "ship"
    shutil.copytree(ship, copy)
    weight, code = copy / "model" / "weight.txt", copy / "src" / "stub" / "extra.py"
    if change == "changed":
        weight.write_text("0.02")
    elif change == "extra":
        code.write_text("raise SystemExit('loaded')")
    else:
        (weight if change == "missing" else copy / SUMS).unlink()
    named = {"extra": "extra.py", "unsealed": SUMS}.get(change, "weight.txt")
    with pytest.raises(UserError, match=named):
        start(copy, Path(sys.executable), tmp_path / "log")
    with pytest.raises(UserError, match=named):
        create(stub, copy)


def fake_python(folder: Path, script: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo no such module >&2; exit 3", r"(?s)code 3 .*no such module"),
        (f"echo '[E] {REFUSAL}: no memory'; sleep 60", "cannot start: no memory"),
        ("echo still loading; sleep 60", r"(?s)not ready within 0.5 s.*still loading"),
    ],
)
def test_a_service_that_does_not_come_up_says_why_and_is_gone(
    ship: Path, tmp_path: Path, script: str, said: str
) -> None:
    log = tmp_path / "logs" / "log"
    with pytest.raises(UserError, match=said):
        start(ship, fake_python(tmp_path, script), log, timeout=0.5)
    assert processes(log.parent) == []
    assert list(log.parent.iterdir()) == [log]


@pytest.mark.parametrize("times", [1, 2])
def test_a_port_of_its_own_that_another_service_just_took_is_tried_anew_once(
    ship: Path, python: Path, tmp_path: Path, times: int
) -> None:
    tries = tmp_path / "tries"
    script = f"""echo >> {tries}
[ $(wc -l < {tries}) -gt {times} ] || {{ echo 'zmq: Address already in use (tcp)'; exit 1; }}
exec {python} "$@" """
    if times == 1:
        with start(ship, fake_python(tmp_path, script), tmp_path / "logs" / "log") as service:
            assert service.answers()
    else:
        with pytest.raises(UserError, match="Address already in use"):
            start(ship, fake_python(tmp_path, script), tmp_path / "logs" / "log")
        assert processes(tmp_path) == []
    assert tries.read_text().count("\n") == 2
    assert [path for path in (tmp_path / "logs").iterdir() if path.is_dir()] == []


def test_a_stranger_that_takes_the_port_is_not_taken_for_the_service(
    ship: Path, tmp_path: Path
) -> None:
    answer = "HTTP/1.0 200 OK\\r\\nx-model-digest: other\\r\\nx-launch: other\\r\\n\\r\\n"
    program = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[-1])))\n"
        f"while True: c = s.accept()[0]; c.recv(999); c.sendall(b'{answer}'); c.close()"
    )
    (tmp_path / "stranger.py").write_text(program)
    python = fake_python(tmp_path, f'exec {sys.executable} {tmp_path}/stranger.py "$@"')
    port = free_port()
    with pytest.raises(UserError, match=f"{port}: another service answers there"):
        start(ship, python, tmp_path / "log", port)
    assert free_port(port) == port


def test_a_model_that_does_not_load_or_score_is_refused_at_start(
    ship: Path, stub: type[ModelService], contract: DataContract, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(stub):
        def load(self, folder: Path) -> None:
            raise OSError("libgomp.so.1: cannot open shared object file")

    class NotANumber(stub):
        def score(self, columns: Any) -> Floats:
            return super().score(columns) * np.nan

    for cls, reason in (
        (Broken, "libgomp.so.1"),
        (NotANumber, r"no probabilities of 1 rows: \[nan\]"),
    ):
        caplog.clear()
        with caplog.at_level(logging.ERROR), pytest.raises(Exception, match=reason):
            start_model(cls, ship, request_json(contract))
        assert REFUSAL in caplog.text
        assert re.search(reason, caplog.text)


def test_the_twin_differs_in_score_alone_and_never_has_the_digest(
    stub: type[ModelService], ship: Path, contract: DataContract, rows: list[JsonRow]
) -> None:
    made = twin(stub)()
    made.load(ship / "model")
    assert made.weight == 0.01  # type: ignore[attr-defined]  # it loads what the service loads
    request = request_json(contract)
    read = request_model(request).model_validate_json(json.dumps({"rows": rows})).rows
    assert probabilities(made, to_columns(read, request), N).tolist() == [0.5] * N


def test_a_release_scores_without_a_server_as_it_does_with_one(
    ship: Path, contract: DataContract, rows: list[JsonRow], scores: Floats
) -> None:
    columns = {name: values.tolist() for name, values in columns_of(rows, contract).items()}

    def score() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-B", "service.py"]
        sent = json.dumps(columns, default=str)
        told = {"cwd": ship, "input": sent, "capture_output": True, "text": True}
        return subprocess.run(command, check=False, **told)

    assert json.loads(score().stdout) == scores.tolist()
    (ship / "model" / "more").touch()
    assert "model/more" in score().stderr
    assert not score().stdout
    (ship / "model" / "more").unlink()


def test_the_release_is_as_it_was_sealed(ship: Path, service: Running) -> None:
    assert service.digest == seal(ship), "running it must write nothing into it"


def test_a_killed_arbiter_leaves_a_worker_and_stop_ends_that_too(service: Running) -> None:
    """The last test of this file: the service is gone after it."""
    min(processes(service.home), key=lambda process: process.create_time()).kill()
    assert service.answers()
    launch.end(service.home)
    assert not service.answers()
    assert processes(service.home) == []
    assert not service.home.exists()


JSON = "application/json"


class Wrong(NamedTuple):
    """A request that must be refused, and the word its refusal must hold."""

    mistake: str
    body: bytes
    word: str
    content_type: str = JSON


def wrong_requests(contract: DataContract) -> list[Wrong]:
    """Return wrong bodies, and every mistake in every column of a row."""
    row = whole_row(contract, seed=0)
    right = json.dumps({"rows": [row]}).encode()
    many = json.dumps({"rows": [row] * (MOST_ROWS + 1)}).encode()
    form = b'--x\r\nContent-Disposition: form-data; name="rows"\r\n\r\n[]\r\n--x--\r\n'
    columns = [
        Wrong(f"`{name}`: {mistake}", json.dumps({"rows": [wrong]}).encode(), name)
        for name, mistake, wrong in invalid_rows(contract, seed=0)
    ]
    return [
        Wrong("no rows", b'{"rows": []}', "rows"),
        Wrong(f"{MOST_ROWS + 1} rows", many, "rows"),
        Wrong("rows left out", b"{}", "rows"),
        Wrong("rows that are no list", b'{"rows": 1}', "rows"),
        Wrong("a row that is no object", b'{"rows": [1]}', "rows"),
        Wrong("an unknown field beside the rows", b'{"more": 1, ' + right[1:], "more"),
        Wrong("no JSON", right[:-2], "JSON"),
        Wrong("no body", b"", ""),
        Wrong("text that is no UTF-8", b'{"rows": "\xff"}', ""),
        Wrong("the wrong content type", right, JSON, "text/plain"),
        Wrong("a form", form, JSON, "multipart/form-data; boundary=x"),
        Wrong("pickle", right, JSON, "application/vnd.bentoml+pickle"),
        *columns,
    ]


def let_in(url: str, wrong: Iterable[Wrong]) -> list[str]:
    """Send wrong requests; return what a service says to those that it does not refuse by name."""
    slips = []
    with httpx.Client(base_url=url, timeout=10, trust_env=False) as client:
        for request in wrong:
            kind = {"content-type": request.content_type}
            answer = client.post("/predict", content=request.body, headers=kind)
            if not 400 <= answer.status_code < 500 or request.word not in answer.text:
                slips.append(f"{request.mistake} -> {answer.status_code} {answer.text:.200}")
    return slips


def misdescribed(url: str, contract: DataContract) -> set[str]:
    """Return the parts of a row that the OpenAPI document shows otherwise than the contract."""
    wanted = request_model(request_json(contract)).model_json_schema()["$defs"]["Row"]
    shown = httpx.get(f"{url}/docs.json", trust_env=False).json()["components"]["schemas"]["Row"]
    wanted, shown = (row["properties"] | {"required": row["required"]} for row in (wanted, shown))
    return {name for name in wanted | shown if shown.get(name) != wanted.get(name)}


def invalid_rows(contract: DataContract, seed: int) -> list[tuple[str, str, JsonRow]]:
    """Return rows with one mistake each, as (field, mistake, row)."""
    row, wrong = whole_row(contract, seed), []
    for name, spec in contract.inputs.items():
        mistakes = _mistakes(spec, row[name])
        if not spec.missing:
            wrong.append((name, "left out", {n: v for n, v in row.items() if n != name}))
            mistakes["null"] = None
        wrong += [(name, mistake, row | {name: value}) for mistake, value in mistakes.items()]
    wrong.append(("no_such_column", "unknown field", row | {"no_such_column": 1}))
    wrong.append((contract.target, "the target", row | {contract.target: True}))
    return wrong


def whole_row(contract: DataContract, seed: int) -> JsonRow:
    """Return a valid row in which no value misses."""
    every = {
        name: spec.model_copy(update={"missing": 0}) for name, spec in contract.columns.items()
    }
    return draw_rows(contract.model_copy(update={"columns": every}), 1, seed)[0]


def _mistakes(spec: Column, value: Any) -> dict[str, Any]:
    """Return wrong values of a column by what is wrong with them."""
    if spec.type == "category":
        good = spec.pattern or re.compile("|".join(map(re.escape, spec.values or ())))
        texts = (f"{value}\n", f" {value}", f"{value}{value}", "", "\u0000", "no such value")
        words = {f"the text {text!r}": text for text in texts if not good.fullmatch(text)}
        return words | {"a number": 7, "a list": [value]}
    if spec.type == "timestamp":
        times = {"30 February": "2013-02-30T10:00:00", "hour 25": f"{value[:10]}T25:00:00"}
        times |= {"a zone": f"{value[:10]}T10:00:00Z", "a day": value[:10]}
        return times | {"a number": 1e9}
    if spec.type == "boolean":
        return {"text": str(value).lower(), "a number": int(value)}
    wrong: dict[str, Any] = {"text": str(value), "true": True, "NaN": math.nan}
    if spec.type == "integer":
        wrong["a fraction"] = value + 0.5
        wrong["below the minimum"] = math.ceil(-(2**63) if spec.min is None else spec.min) - 1
        wrong["above the maximum"] = math.floor(2**63 - 1 if spec.max is None else spec.max) + 1
        return wrong
    wrong["Infinity"] = math.inf
    if spec.min is not None:
        wrong["below the minimum"] = math.nextafter(spec.min, -math.inf)
    if spec.max is not None:
        wrong["above the maximum"] = math.nextafter(spec.max, math.inf)
    return wrong


GOOD: dict[str, Any] = {
    "_flag": True,
    "count": 3,
    "json": None,
    "amount": 7,
    "model code": "AB1",
    "kind": "b c",
    "at": "2013-07-01T17:45",
}


@pytest.fixture(scope="module")
def request_(contract: DataContract) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(request_json(contract)))
    return content


@pytest.fixture(scope="module")
def model(request_: dict[str, Any]) -> type[Request]:
    return request_model(request_)


def mistakes(model: type[Request], body: str | bytes) -> list[tuple[Any, ...]]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(body)
    return [error["loc"] for error in caught.value.errors()]


def test_columns_have_a_snapshots_dtypes_whatever_the_order_of_fields(
    model: type[Request], request_: dict[str, Any]
) -> None:
    left_out = {name: value for name, value in GOOD.items() if name not in ("json", "model code")}
    body = json.dumps({"rows": [GOOD, left_out | {"at": "1969-12-31T23:59:59", "amount": 1e-0}]})
    columns = to_columns(model.model_validate_json(body).rows, request_)
    assert list(columns) == list(request_)
    assert {name: str(values.dtype) for name, values in columns.items()} == {
        "at": "datetime64[us]",
        "kind": "object",
        "model code": "object",
        "amount": "float64",
        "json": "float64",
        "count": "int64",
        "_flag": "bool",
    }
    assert columns["at"].tolist() == [
        np.datetime64("2013-07-01T17:45", "us").item(),
        np.datetime64("1969-12-31T23:59:59", "us").item(),
    ]
    assert columns["model code"].tolist() == ["AB1", None]
    assert np.isnan(columns["json"]).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("at", "2013-02-30T10:00:00"),
        ("at", "2013-07-01T17:45:00Z"),
        ("at", "2013-07-01T17:45:00.5"),
        ("at", "0000-01-01T00:00"),
        ("at", 1_372_700_000),
        ("kind", "A"),
        ("kind", None),
        ("model code", "AB\n"),
        ("model code", "xAB1"),
        ("amount", 0.4999),
        ("amount", True),
        ("amount", "7"),
        ("amount", float("nan")),
        ("json", float("inf")),
        ("json", 10**400),
        ("count", 3.0),
        ("count", False),
        ("count", 10**30),
        ("_flag", 1),
        ("more", 1),
    ],
)
def test_a_mistake_is_refused_by_the_fields_name(
    model: type[Request], field: str, value: Any
) -> None:
    assert mistakes(model, json.dumps({"rows": [GOOD | {field: value}]})) == [("rows", 0, field)]


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "{}", '{"rows": 1}', '{"rows": []}', '{"rows":[1]}']
)
def test_a_body_of_another_form_is_refused(model: type[Request], body: str) -> None:
    assert mistakes(model, body)[0] in [(), ("rows",), ("rows", 0)]


def test_too_many_rows_are_refused_and_an_answer_stays_short(model: type[Request]) -> None:
    assert mistakes(model, json.dumps({"rows": [GOOD] * (MOST_ROWS + 1)})) == [("rows",)]
    bad = GOOD | {"amount": None}
    assert mistakes(model, json.dumps({"rows": [bad] * MOST_ROWS})) == [("rows", 0, "amount")]


def test_the_schema_shows_types_ranges_units_and_an_example(model: type[Request]) -> None:
    schema = model.model_json_schema()
    row = schema["$defs"]["Row"]
    amount = row["properties"]["amount"]
    assert (amount["type"], amount["minimum"], amount["maximum"]) == ("number", 0.5, 100)
    assert amount["description"] == "Unit: kg"
    assert row["properties"]["kind"]["enum"] == ["a", "b c", "ü"]
    assert row["required"] == ["at", "kind", "amount", "count", "_flag"]
    example = schema["properties"]["rows"]["examples"][0]
    assert len(model.model_validate_json(json.dumps({"rows": example})).rows) == 1


def test_one_row_is_read_in_microseconds(model: type[Request], request_: dict[str, Any]) -> None:
    """7 columns take about 5 µs; the limit leaves room for a busy machine."""
    rows = model.model_validate_json(json.dumps({"rows": [GOOD]})).rows
    seconds = min(timeit.repeat(lambda: to_columns(rows, request_), number=50, repeat=50)) / 50
    assert seconds < 100e-6


def test_drawn_rows_are_valid_repeatable_and_reach_the_edges(contract: DataContract) -> None:
    rows = draw_rows(contract, 200, seed=3)
    assert rows == draw_rows(contract, 200, seed=3) != draw_rows(contract, 200, seed=4)
    columns = columns_of(json.loads(json.dumps(rows)), contract)
    assert (columns["amount"].min(), columns["amount"].max()) == (0.5, 100)
    assert (columns["count"].min(), columns["count"].max()) == (0, 1_000_000_000)
    assert set(columns["kind"]) == {"a", "b c", "ü"}
    assert None in [row.get("json", 0) for row in rows]
    assert any("json" not in row for row in rows)
    assert len(draw_rows(contract, 3, seed=3)) == 3


@pytest.mark.parametrize("seed", range(5))
def test_invalid_rows_are_refused_for_their_field_alone(contract: DataContract, seed: int) -> None:
    model = request_model(request_json(contract))
    seen = set()
    for field, mistake, row in invalid_rows(contract, seed):
        with pytest.raises(ValidationError) as caught:
            model.model_validate_json(json.dumps({"rows": [row]}))
        assert [error["loc"][-1] for error in caught.value.errors()] == [field], (mistake, row)
        seen.add((field, mistake))
    kinds = {mistake for _, mistake in seen}
    assert {"left out", "null", "30 February", "below the minimum", "above the maximum"} <= kinds
    assert {"the text ''", "a list", "NaN", "Infinity", "a zone", "unknown field"} <= kinds
    assert {field for field, _ in seen} >= set(contract.inputs)


def test_an_integer_without_bounds_has_64_bits(contract: DataContract) -> None:
    columns = contract.columns | {"count": Column(type="integer")}
    wide = contract.model_copy(update={"columns": columns})
    ends = [-(2**63), 2**63 - 1]
    assert columns_of([GOOD | {"count": end} for end in ends], wide)["count"].tolist() == ends
    model = request_model(request_json(wide))
    for value in (ends[0] - 1, ends[1] + 1):
        body = json.dumps({"rows": [GOOD | {"count": value}]})
        assert mistakes(model, body) == [("rows", 0, "count")]


def test_an_integer_s_bounds_are_whole_numbers_of_64_bits(contract: DataContract) -> None:
    column = Column(type="integer", min=0, max=2.0**63)
    large = contract.model_copy(update={"columns": contract.columns | {"count": column}})
    assert columns_of(draw_rows(large, 200, seed=1), large)["count"].max() == 2**63 - 1
    assert mistakes(
        request_model(request_json(large)), json.dumps({"rows": [GOOD | {"count": 2**63}]})
    ) == [("rows", 0, "count")]
    with pytest.raises(ValidationError, match="no whole number is between"):
        Column(type="integer", min=0.2, max=0.8)
    with pytest.raises(ValidationError, match="64 bits"):
        Column(type="integer", min=2.0**63)


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "number"},
        {"type": "number", "min": 5},
        {"type": "number", "max": -5},
        {"type": "number", "min": 0.001, "max": 0.002},
        {"type": "integer", "min": 2.5, "max": 3},
        {"type": "category", "pattern": "x|[a-c]+-?\\d{2,}"},
        {"type": "category", "pattern": "(?!0)[01]"},  # every second one drawn is wrong
    ],
)
def test_an_example_lies_in_its_domain(contract: DataContract, spec: dict[str, Any]) -> None:
    column = Column.model_validate(spec)
    value = example(contract, column)
    if column.pattern:
        assert column.pattern.fullmatch(value)
    else:
        assert column.min is None or value >= column.min
        assert column.max is None or value <= column.max


def test_a_pattern_that_gives_no_rows_is_named(contract: DataContract) -> None:
    with pytest.raises(ValidationError, match=r"`pattern` has flags for all of it"):
        Column(type="category", pattern=re.compile("(?i)[a-z]"))
    ahead = Column(type="category", pattern=re.compile("(?=.*[0-9])[A-Z]{6}"))
    with pytest.raises(UserError, match=r"pattern `\(\?=.*no value of it can be drawn"):
        example(contract, ahead)


def test_a_pattern_is_drawn_alike_in_every_process(contract: DataContract) -> None:
    code = "from model_delivery.contract import request, settings\nimport random, sys\n"
    code += "spec = settings.Column(type='category', pattern=sys.argv[1])\n"
    code += "print(request._value(None, spec, random.Random(1)))"
    command = [sys.executable, "-c", code, "[^@ ]{40}"]
    drawn = {
        subprocess.check_output(command, env={"PYTHONHASHSEED": seed}, text=True) for seed in "12"
    }
    assert len(drawn) == 1


Edit = Callable[[Path], Any]
CHANGED = """
_transform = Features.transform
Features.transform = lambda self, columns: _transform(self, columns) + 1
"""


@pytest.fixture(scope="module")
def project() -> Project:
    return find_project(Path(__file__))


def fitted(project: Project) -> Trained:
    """A real model, fitted on rows drawn from the contract."""
    contract = project.contract
    columns = columns_of(draw_rows(contract, 800, seed=1), contract)
    first = columns[contract.time]
    labels = (first > np.median(first.astype(np.int64)).astype(first.dtype)).astype(float)
    features = user_module("features").Features.fit(columns)
    model = user_module("model").Model(project.parameters)
    model.fit(features.transform(columns), labels, np.arange(len(labels)) >= 600)
    scores = model.predict(features.transform(columns))
    table = pa.table({name: list(values) for name, values in columns.items()})
    table = table.append_column("score", pa.array(scores))
    return Trained(features, model, table, table, {})


@pytest.fixture(scope="module")
def candidate(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    """A candidate with its package."""
    folder = tmp_path_factory.mktemp("candidates")
    trained = fitted(project)
    write_ship(project, trained, folder / "new" / "ship")
    pq.write_table(trained.test, folder / "new" / "test.parquet")
    lineage = {"commit": None, "branch": None, "trained": "2013-08-01T00:00:00+00:00"}
    spans = {part: ["2013-01-01", "2013-07-01"] for part in ("train", "test")}
    data = {
        "as_of": "2013-08-01",
        "spans": spans,
        "rows": {"train": 600, "test": 200},
        "excluded": {},
    }
    lineage |= {"snapshot": "s", "data": data, "features": [], "parameters": {}}
    write_json(folder / "new" / "lineage.json", lineage)
    digest = seal(folder / "new" / "ship")
    (folder / "new").rename(folder / digest)
    made = Candidate(folder / digest)
    build_package(project, made)
    return made


def altered(project: Project, old: Candidate, ship: Edit, folder: Path) -> Candidate:
    """A whole candidate and package, but for an edit of what ships."""
    shutil.copytree(old.folder, folder / "new")
    ship(folder / "new" / "ship")
    digest = seal(folder / "new" / "ship")
    (folder / "new").rename(folder / digest)
    new = Candidate(folder / digest)
    (stale,) = new.package.glob("*.bento")
    unpack(stale, folder / "bento")
    stale.unlink()
    src = folder / "bento" / "src"
    shutil.rmtree(src)
    shutil.copytree(new.ship, src)
    shutil.copyfile(src / "requirements.txt", src.parent / "env/python/requirements.txt")
    new.bento.write_bytes(pack(src.parent))
    seal(new.package)
    return new


@pytest.fixture
def copy(candidate: Candidate, tmp_path: Path) -> Candidate:
    shutil.copytree(candidate.folder, tmp_path / candidate.digest)
    return Candidate(tmp_path / candidate.digest)


def red(project: Project, candidate: Candidate) -> set[str]:
    """The checks that stop."""
    verdict = check_package(project, candidate)
    wrong = [check for check in verdict.checks if check.outcome is not Outcome.PASS]
    assert {check.outcome for check in wrong} <= {Outcome.STOP}, wrong
    return {check.name for check in wrong}


def test_a_good_package_passes_every_check(project: Project, candidate: Candidate) -> None:
    verdict = check_package(project, candidate)
    assert verdict.outcome is Outcome.PASS, verdict.checks
    assert {"digest", "contents", "predictions"} <= {check.name for check in verdict.checks}


def test_a_whole_package_is_kept_and_a_damaged_one_built_again(
    project: Project, copy: Candidate
) -> None:
    sums = copy.package / "SHA256SUMS"
    stamp = sums.stat().st_mtime_ns
    build_package(project, copy)
    assert sums.stat().st_mtime_ns == stamp
    copy.bento.write_bytes(copy.bento.read_bytes()[:-1])
    build_package(project, copy)
    assert red(project, copy) == set()
    assert not list(copy.folder.parent.glob(".new-*"))


def test_the_bill_is_about_the_model(candidate: Candidate) -> None:
    bill = json.loads((candidate.package / "sbom.cdx.json").read_text())
    model = bill["metadata"]["component"]
    assert (model["type"], model["hashes"][0]["content"]) == (
        "machine-learning-model",
        candidate.digest,
    )
    (needs,) = (d["dependsOn"] for d in bill["dependencies"] if d["ref"] == model["bom-ref"])
    assert {part["bom-ref"] for part in bill["components"]} == set(needs)


def loose(package: Path, unpacked: Path) -> set[str]:
    """Return requirements that are no version with hashes, or are not exactly those of the bill."""
    (bento,) = package.glob("*.bento")
    unpack(bento, unpacked)
    text = (unpacked / "src" / "requirements.txt").read_text()
    assert (unpacked / "env" / "python" / "requirements.txt").read_text() == text
    pins = {line.split()[0]: line for line in text.replace("\\\n", "").splitlines()}
    bill = json.loads((package / "sbom.cdx.json").read_text())["components"]
    unlisted = pins.keys() ^ {f"{part['name']}=={part['version']}" for part in bill}
    return unlisted | {
        p for p, line in pins.items() if "==" not in p or "--hash=sha256:" not in line
    }


def test_every_requirement_is_pinned_with_hashes_and_is_in_the_bill(
    candidate: Candidate, tmp_path: Path
) -> None:
    pins = (candidate.ship / "requirements.txt").read_text()
    assert {"numpy", "fsspec"} <= {line.partition("==")[0] for line in pins.splitlines()}
    assert loose(candidate.package, tmp_path) == set()


def drop_component(package: Path) -> None:
    bill = json.loads((package / "sbom.cdx.json").read_text())
    bill["components"].pop()
    write_json(package / "sbom.cdx.json", bill)


def drop_hashes(ship: Path) -> None:
    path = ship / "requirements.txt"
    path.write_text(path.read_text().replace("--hash=sha256:", "--hash=md5:"))


def test_a_loose_or_unlisted_requirement_is_found(
    project: Project, candidate: Candidate, copy: Candidate, tmp_path: Path
) -> None:
    drop_component(copy.package)
    assert len(loose(copy.package, tmp_path / "unlisted")) == 1
    edits = exchange("requirements.txt", "==", ">="), drop_hashes
    for n, edit in enumerate(edits):
        (tmp_path / str(n)).mkdir()
        changed = altered(project, candidate, edit, tmp_path / str(n))
        assert loose(changed.package, tmp_path / f"unpacked {n}")


def test_the_service_keeps_this_projects_contract(
    project: Project, candidate: Candidate, tmp_path: Path
) -> None:
    """The contract's own columns: each mistake in each is refused by its name, and told of."""
    wrong = wrong_requests(project.contract)
    assert {*project.contract.inputs} <= {one.word for one in wrong}
    with launch.start(project, candidate.ship, tmp_path / "log") as service:
        assert let_in(service.url, wrong) == []
        assert misdescribed(service.url, project.contract) == set()


def zipped(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("data.pkl", content)
    return stream.getvalue()


def exchange(name: str, old: str, new: str) -> Edit:
    return lambda ship: (ship / name).write_text((ship / name).read_text().replace(old, new, 1))


def write(name: str, content: bytes) -> Edit:
    return lambda ship: (ship / name).write_bytes(content)


def change_behaviour(ship: Path) -> None:
    found = [(ship / "src").glob(f"*/features{end}") for end in (".py", "/__init__.py")]
    (path,) = itertools.chain(*found)  # a module, or a package
    path.write_text(path.read_text() + CHANGED)


SHIP_FAULTS: dict[str, tuple[Edit, set[str]]] = {
    "a pickle as text": (write("model/state.txt", pickle.dumps({"a": [1]}, 0)), {"contents"}),
    "a binary pickle as JSON": (write("model/state.json", pickle.dumps([1])), {"contents"}),
    "a zip of a pickle": (write("model/state.txt", zipped(pickle.dumps([1]))), {"contents"}),
    "a pickle": (write("model/model.pkl", pickle.dumps([1])), {"file_kinds", "contents"}),
    "a foreign file": (write("install.sh", b"id\n"), {"file_kinds"}),
    "a missing hash": (write("requirements.txt", b"numpy==2.4.6\n"), {"predictions"}),
    "an open version": (exchange("requirements.txt", "==", ">="), {"predictions"}),
    "changed features": (change_behaviour, {"predictions"}),
}


@pytest.mark.parametrize("fault", SHIP_FAULTS)
def test_what_ships_is_looked_into(
    fault: str, project: Project, candidate: Candidate, tmp_path: Path
) -> None:
    edit, expected = SHIP_FAULTS[fault]
    assert red(project, altered(project, candidate, edit, tmp_path)) == expected


def tamper_unsealed(package: Path) -> None:
    (bento,) = package.glob("*.bento")
    content = bytearray(bento.read_bytes())
    content[len(content) // 2] ^= 1
    bento.write_bytes(content)


def tamper_sealed(package: Path) -> None:
    (bento,) = package.glob("*.bento")
    folder = package.parent / "bento"
    unpack(bento, folder)
    path = folder / "src" / "request.json"
    path.write_text(path.read_text() + " ")
    bento.write_bytes(pack(folder))
    seal(package)


PACKAGE_FAULTS: dict[str, tuple[Edit, set[str]]] = {
    "a tampered byte": (tamper_unsealed, {"checksums"}),
    "a file too many": (lambda package: (package / "more").write_text(""), {"checksums"}),
    "no Bento": (lambda package: next(package.glob("*.bento")).unlink(), {"checksums"}),
    "a tampered byte under new checksums": (tamper_sealed, {"digest"}),
}


@pytest.mark.parametrize("fault", PACKAGE_FAULTS)
def test_the_package_is_looked_into(fault: str, project: Project, copy: Candidate) -> None:
    edit, expected = PACKAGE_FAULTS[fault]
    edit(copy.package)
    assert red(project, copy) == expected


def test_what_is_not_packaged_yet_is_no_damage(project: Project, copy: Candidate) -> None:
    shutil.rmtree(copy.package)
    with pytest.raises(UserError, match=f"{copy.short} is not packaged yet; run `ml package`"):
        check_package(project, copy)


def test_size_has_a_limit(project: Project, copy: Candidate) -> None:
    strict, small = Project(project.root), Limit(max=0.01, outcome="stop")
    limits = project.gates.package.model_copy(update={"megabytes": small})
    vars(strict)["gates"] = project.gates.model_copy(update={"package": limits})
    assert red(strict, copy) == {"megabytes"}


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "info",
    [
        member("src/link.txt", tarfile.SYMTYPE, "/etc/passwd"),
        member("src/link.txt", tarfile.LNKTYPE, "src/SHA256SUMS"),
        member("src/device.txt", tarfile.CHRTYPE),
        member("/tmp/absolute.txt"),
        member("src/../../outside.txt"),
        member("src/SHA256SUMS"),
    ],
    ids=["symlink", "hard link", "device", "absolute", "outside", "twice"],
)
def test_nothing_unsafe_is_unpacked(
    info: tarfile.TarInfo, project: Project, copy: Candidate, tmp_path: Path
) -> None:
    bento = copy.bento
    with tarfile.open(bento) as archive:
        # Only files lie in it, which have content.
        members = [(m, archive.extractfile(m).read()) for m in archive.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(bento, "w:xz", preset=1) as archive:
        for each, content in members:
            archive.addfile(each, io.BytesIO(content))
        archive.addfile(info)
    seal(copy.package)
    assert red(project, copy) == {"archive"}
    with pytest.raises(UserError, match="refused before unpacking"):
        unpack(bento, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sources_and_notes_are_no_pickles(project: Project) -> None:
    sources = [project.root / "src", project.root / "delivery"]
    texts = [path.read_bytes() for folder in sources for path in folder.rglob("*.py")]
    texts += [b"1. first\n2. second\n", b"", b".", b"[1, 2]", b"certifi\ncryptography\n"]
    assert all(is_plain(text) for text in texts)
    assert not is_plain(b"cos\nsystem\n(S'id'\ntR.")
