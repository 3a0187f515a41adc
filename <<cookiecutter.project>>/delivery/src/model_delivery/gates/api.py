"""The gate `api`: every right request is answered, every wrong one refused by name."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field, ValidationError

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.environment import service_environment
from model_delivery.contract.data import Column, DataContract
from model_delivery.contract.draw import JsonRow, columns_of, draw_rows, invalid_rows
from model_delivery.contract.request import MOST_ROWS, most_bytes
from model_delivery.gates import fixed, make_verdict
from model_delivery.project import Project
from model_delivery.protocols import Floats, user_module
from model_delivery.report.verdict import Check, Form, Table, Verdict
from model_delivery.serving.launch import Running, running

_JSON = "application/json"
_TIMEOUT = 10.0
_SEED = 0
_TYPES = {"number": "number", "integer": "integer", "boolean": "boolean"}
"""OpenAPI's name of each type; the others are strings."""


class Wrong(NamedTuple):
    """A request that must be refused, and the word its refusal must hold."""

    mistake: str
    body: bytes
    word: str
    content_type: str = _JSON


class Reply(Form):
    """The one form of a right answer."""

    release: str
    probability: list[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]]


class Answer(NamedTuple):
    """What came back; status 0 where nothing did."""

    status: int
    text: str

    def __str__(self) -> str:
        return f"{self.status} {self.text:.200}"


@dataclass
class Client:
    """One connection to a service, which notes every answer of somebody else."""

    service: Running
    answers: int = 0
    strangers: list[str] = field(default_factory=list)
    _connection: http.client.HTTPConnection | None = None

    def ask(
        self, method: str, path: str, body: bytes | None = None, content_type: str = _JSON
    ) -> Answer:
        """Send one request."""
        if self._connection is None:
            address = urlsplit(self.service.url).netloc
            self._connection = http.client.HTTPConnection(address, timeout=_TIMEOUT)
        try:
            self._connection.request(method, path, body, {"content-type": content_type})
            answer = self._connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return Answer(0, f"no answer ({type(error).__name__}: {error})")
        self.answers += 1
        who = (answer.getheader("x-model-digest"), answer.getheader("x-launch"))
        if who != (self.service.digest, self.service.launch):
            self.strangers.append(f"{method} {path} -> {answer.status} came from {who}")
        return Answer(answer.status, text)

    def predict(self, rows: Sequence[JsonRow]) -> Answer:
        """Ask for the probabilities of rows."""
        return self.ask("POST", "/predict", json.dumps({"rows": rows}).encode())

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def check_api(project: Project, candidate: Candidate, running: Running | None = None) -> Verdict:
    """Send valid and invalid requests, drawn from the data contract, to a candidate's service.

    Parameters
    ----------
    running
        A running service of the candidate, which is left running; None starts one.
    """
    started, limits = time.perf_counter(), project.gates.api
    rows = draw_rows(project.contract, limits.valid_rows, _SEED)
    wrong = wrong_requests(project.contract, rows[-1], limits.mistakes)
    with _service(project, candidate, running) as service:
        scores = expected(candidate, rows, project)
        checks, table = judge_service(service, project.contract, rows, wrong, scores)
    return make_verdict(project, "api", candidate.digest, checks, started, [table])


def judge_service(
    service: Running,
    contract: DataContract,
    rows: Sequence[JsonRow],
    wrong: Sequence[Wrong],
    scores: Floats,
) -> tuple[list[Check], Table]:
    """Judge a running service by its answers to right and wrong requests."""
    client = Client(service)
    checks = [*_right(client, rows, scores)]
    refused, table = _refusals(client, wrong)
    checks += [refused, *_described(client, contract), _identified(client)]
    client.close()
    return checks, table


def expected(candidate: Candidate, rows: Sequence[JsonRow], project: Project) -> Floats:
    """Return the scores that training's own code gives to rows, without the service."""
    folder = candidate.ship / "model"
    features = user_module("features").Features.load(folder)
    model = user_module("model").Model.load(folder)
    return np.asarray(model.predict(features.transform(columns_of(rows, project.contract))))


def wrong_requests(contract: DataContract, row: JsonRow, least: int) -> list[Wrong]:
    """Return wrong requests: every mistake in every column at least once, then more of them."""
    found = _wrong_bodies(row, most_bytes(contract.inputs))
    for seed in count(_SEED):
        for name, mistake, wrong in invalid_rows(contract, seed):
            body = json.dumps({"rows": [wrong]}).encode()
            found.append(Wrong(f"`{name}`: {mistake}", body, name))
        if len(found) >= least:
            return found
    raise AssertionError  # the count above has no end


def _wrong_bodies(row: JsonRow, most: int) -> list[Wrong]:
    right = json.dumps({"rows": [row]}).encode()
    form = b'--x\r\nContent-Disposition: form-data; name="rows"\r\n\r\n[]\r\n--x--\r\n'
    many = json.dumps({"rows": [row] * (MOST_ROWS + 1)}).encode()
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
        Wrong("the wrong content type", right, _JSON, "text/plain"),
        Wrong("a form", form, _JSON, "multipart/form-data; boundary=x"),
        Wrong("pickle", right, _JSON, "application/vnd.bentoml+pickle"),
        Wrong("a body too large", right.ljust(most + 1), "bytes"),
    ]


@contextmanager
def _service(project: Project, candidate: Candidate, given: Running | None) -> Iterator[Running]:
    if given is not None:
        yield given
        return
    python = service_environment(project, candidate.ship / "requirements.txt")
    log = project.work / "logs" / f"api-{candidate.short}.log"
    with running(candidate.ship, python, log) as service:
        yield service


def _right(client: Client, rows: Sequence[JsonRow], scores: Floats) -> Iterator[Check]:
    """Judge the answers to valid rows: one by one, then all together."""
    failed, differ = list[str](), list[str]()
    whole = [slice(at, at + MOST_ROWS) for at in range(0, len(rows), MOST_ROWS)]
    requests = [slice(at, at + 1) for at in range(len(rows))] + whole
    for part in requests:
        answer = client.predict(rows[part])
        answered = probabilities(answer, client.service.digest[:12])
        one = part.stop - part.start == 1
        name = json.dumps(rows[part.start]) if one else f"{len(rows[part])} rows together"
        if answered is None:
            failed.append(f"{name} -> {answer}")
        elif answered != scores[part].tolist():
            differ.append(f"{name} -> {answered[:3]}, in training {scores[part].tolist()[:3]}")
    good = len(requests) - len(failed)
    said = f"{good:,} of {len(requests):,} valid requests were answered with probabilities"
    yield fixed("valid rows", not failed, _first(said, failed), good)
    same = good - len(differ)
    said = f"{same:,} of {good:,} answers equal the scores of training's own code, bit for bit"
    yield fixed("equal scores", not differ and good > 0, _first(said, differ), same)


def probabilities(answer: Answer, release: str) -> list[float] | None:
    """Return the probabilities of a well-formed answer of this release, else None."""
    try:
        reply = Reply.model_validate_json(answer.text)
    except ValidationError:
        return None
    return reply.probability if (answer.status, reply.release) == (200, release) else None


def _refusals(client: Client, wrong: Sequence[Wrong]) -> tuple[Check, Table]:
    sent, refused, slips = Counter[str](), Counter[str](), list[str]()
    for request in wrong:
        answer = client.ask("POST", "/predict", request.body, request.content_type)
        kind = request.mistake.rpartition("`: ")[2]
        sent[kind] += 1
        named = request.word in answer.text
        if 400 <= answer.status < 500 and named:
            refused[kind] += 1
        else:
            why = "" if named else f" (does not name `{request.word}`)"
            slips.append(f"{request.mistake} -> {answer}{why}")
    said = f"{refused.total():,} of {len(wrong):,} wrong requests were refused by name"
    rows = [[kind, number, refused[kind]] for kind, number in sent.items()]
    check = fixed("wrong requests", bool(wrong) and not slips, _first(said, slips), refused.total())
    return check, Table(title="Wrong requests", columns=["mistake", "sent", "refused"], rows=rows)


def _described(client: Client, contract: DataContract) -> Iterator[Check]:
    """Judge the OpenAPI document: the contract's fields, their types, and the answer's."""
    answer = client.ask("GET", "/docs.json")
    try:
        document = json.loads(answer.text)
        schemas = document["components"]["schemas"]
        row = schemas["Row"]
        reply = _follow(document["paths"]["/predict"]["post"]["responses"]["200"], schemas)
    except (ValueError, KeyError, TypeError) as error:
        said = f"/docs.json -> {answer.status}: no such document ({type(error).__name__}: {error})"
        yield fixed("OpenAPI", False, said)
        return
    odd = [*_odd_fields(row, contract)]
    if set(reply.get("properties", {})) != {"release", "probability"}:
        odd.append(f"the answer is described with {sorted(reply.get('properties', {}))}")
    said = f"the OpenAPI document describes the {len(contract.inputs)} columns of the contract"
    yield fixed("OpenAPI", not odd, _first(said, odd), len(row.get("properties", {})))


def _follow(response: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = response["content"][_JSON]["schema"]
    name = schema.get("$ref", "").rpartition("/")[2]
    return schemas[name] if name else schema


def _odd_fields(row: Mapping[str, Any], contract: DataContract) -> Iterator[str]:
    fields, inputs = row.get("properties", {}), contract.inputs
    for name in sorted(set(fields) ^ set(inputs)):
        yield f"`{name}` is {'not in the contract' if name in fields else 'not described'}"
    needed = {name for name, spec in inputs.items() if not spec.missing}
    for name in sorted(set(row.get("required", ())) ^ needed):
        yield f"`{name}` is {'not ' if name in needed else ''}required"
    for name in sorted(set(fields) & set(inputs)):
        yield from _odd_field(name, fields[name], inputs[name])


def _odd_field(name: str, shown: Mapping[str, Any], spec: Column) -> Iterator[str]:
    schema = next((s for s in shown.get("anyOf", ()) if s.get("type") != "null"), shown)
    wanted = {"type": _TYPES.get(spec.type, "string"), "minimum": spec.min, "maximum": spec.max}
    for key, value in (wanted | {"enum": spec.values}).items():
        if value is not None and schema.get(key) != value:
            yield f"`{name}` has {key} {schema.get(key)}, in the contract {value}"


def _identified(client: Client) -> Check:
    client.ask("GET", "/readyz")
    client.ask("GET", "/no-such-page")
    own = client.answers - len(client.strangers)
    said = f"{own:,} of {client.answers:,} responses name the candidate's digest and this start"
    return fixed("identity", own > 0 and not client.strangers, _first(said, client.strangers), own)


def _first(said: str, slips: Sequence[str]) -> str:
    return f"{said}; first: {slips[0]}" if slips else said
