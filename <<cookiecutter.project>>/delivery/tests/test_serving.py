"""A release serves only its own bytes, says who it is, and lets nothing out but probabilities."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from mistakes import Wrong, let_in, misdescribed, wrong_requests
from model_delivery.bundle import launch
from model_delivery.bundle.launch import Running, free_port, processes
from model_delivery.contract.request import (
    JsonRow,
    columns_of,
    draw_rows,
    request_json,
    request_model,
)
from model_delivery.contract.settings import DataContract
from model_delivery.files import SUMS, seal
from model_delivery.gates.api import judge_service
from model_delivery.project import Project
from model_delivery.protocols import Floats, UserError
from model_delivery.report.verdict import Outcome
from model_delivery.serving import (
    REFUSAL,
    answer,
    create,
    start_model,
    twin,
)
from stub_service import ABOVE, BOOM, NAN, SHORT, STRICT, Stub

N = 40
TEXT = {"content-type": "text/plain"}


def start(
    ship: Path, python: Path, log: Path, port: int = 0, timeout: float = 60, **options: Any
) -> Running:
    """Start a release by the Python of a test, instead of a clean environment's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "service_environment", lambda *_: python)
        patch.setattr(launch, "clean_variables", lambda _: {"PATH": os.environ["PATH"]})
        return launch.start(Project(log.parent), ship, log, port, timeout, **options)


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
    ship: Path, tmp_path: Path, change: str
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
        create(Stub, copy)


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
    ship: Path, contract: DataContract, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Stub):
        def load(self, folder: Path) -> None:
            raise OSError("libgomp.so.1: cannot open shared object file")

    class NotANumber(Stub):
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
    ship: Path, contract: DataContract, rows: list[JsonRow]
) -> None:
    made = twin(Stub)()
    made.load(ship / "model")
    assert made.weight == 0.01  # type: ignore[attr-defined]  # it loads what the service loads
    request = request_json(contract)
    read = request_model(request).model_validate_json(json.dumps({"rows": rows})).rows
    assert answer(made, read, request) == [0.5] * N


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
