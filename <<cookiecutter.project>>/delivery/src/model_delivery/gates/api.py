"""The gate `api`: every right request is answered, every wrong one refused by name."""

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import httpx

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.launch import Running, start
from model_delivery.contract.draw import JsonRow, columns_of, draw_rows, invalid_rows
from model_delivery.contract.request import MOST_ROWS, request_json, request_model
from model_delivery.contract.settings import DataContract
from model_delivery.gates import fixed
from model_delivery.project import Project
from model_delivery.protocols import Floats, user_module
from model_delivery.report.verdict import Check, Verdict

JSON = "application/json"
VALID_ROWS = 200


class Wrong(NamedTuple):
    """A request that must be refused, and the word its refusal must hold."""

    mistake: str
    body: bytes
    word: str
    content_type: str = JSON


def check_api(project: Project, candidate: Candidate) -> Verdict:
    """Send valid and invalid requests, drawn from the data contract, to a candidate's service."""
    contract, folder = project.contract, candidate.ship / "model"
    rows = draw_rows(contract, VALID_ROWS, seed=0)
    features = user_module("features").Features.load(folder)  # training's own code, no service
    model = user_module("model").Model.load(folder)
    scores = model.predict(features.transform(columns_of(rows, contract)))
    with start(project, candidate.ship, project.work / "logs" / "api.log") as service:
        checks = judge_service(service, contract, rows, wrong_requests(contract, rows[-1]), scores)
    return Verdict(gate="api", checks=checks)


def judge_service(
    service: Running,
    contract: DataContract,
    rows: Sequence[JsonRow],
    wrong: Sequence[Wrong],
    scores: Floats,
) -> list[Check]:
    """Judge a running service by its answers; `scores`, shape (n,), are those of training."""
    answers, checks = list[httpx.Response](), list[Check]()
    client = httpx.Client(base_url=service.url, timeout=10, trust_env=False)
    client.event_hooks = {"response": [answers.append]}
    try:
        with client:
            checks += _right(client, service.digest[:12], rows, scores)
            checks += [_refusals(client, wrong), _described(client, contract)]
            for path in ("/readyz", "/no-such-page"):
                client.get(path)
    except (httpx.HTTPError, ValueError) as error:  # none, or one that is no JSON
        said = f"the service does not answer ({type(error).__name__}: {error})"
        checks.append(fixed("answered", False, said))
    own = {"x-model-digest": service.digest, "x-launch": service.launch}
    slips = [
        f"{answer.url} came from {answer.headers.get('x-model-digest')}"
        for answer in answers
        if not own.items() <= answer.headers.items()
    ]
    what = "responses name the candidate's digest and this start"
    return [*checks, _counted("identity", len(answers), slips, what)]


def wrong_requests(contract: DataContract, row: JsonRow) -> list[Wrong]:
    """Return wrong bodies, and every mistake in every column of a row."""
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


def _right(
    client: httpx.Client, release: str, rows: Sequence[JsonRow], scores: Floats
) -> Iterator[Check]:
    """Judge the answers to valid rows: one by one, then many together."""
    failed, differ = list[str](), list[str]()
    parts = [slice(at, at + 1) for at in range(len(rows))] + [slice(0, MOST_ROWS)]
    for part in parts:
        answer = client.post("/predict", json={"rows": rows[part]})
        wanted = {"release": release, "probability": scores[part].tolist()}
        asked = f"{len(rows[part])} rows from {json.dumps(rows[part.start])}"
        told = f"{asked} -> {answer.status_code} {answer.text:.200}"
        if answer.status_code != 200:
            failed.append(told)
        elif answer.json() != wanted:
            differ.append(f"{told}, in training {json.dumps(wanted):.200}")
    yield _counted("valid rows", len(parts), failed, "valid requests were answered")
    what = "answers hold exactly the scores of training's own code, bit for bit"
    yield _counted("equal scores", len(parts) - len(failed), differ, what)


def _refusals(client: httpx.Client, wrong: Sequence[Wrong]) -> Check:
    slips = []
    for request in wrong:
        kind = {"content-type": request.content_type}
        answer = client.post("/predict", content=request.body, headers=kind)
        if not 400 <= answer.status_code < 500 or request.word not in answer.text:
            told = f"{answer.status_code} {answer.text:.200}"
            slips.append(f"{request.mistake} -> {told} (expected 4xx naming `{request.word}`)")
    return _counted("wrong requests", len(wrong), slips, "wrong requests were refused by name")


def _described(client: httpx.Client, contract: DataContract) -> Check:
    """Judge the OpenAPI document: it must show the contract's columns."""
    row = request_model(request_json(contract)).model_json_schema()["$defs"]["Row"]
    answer = client.get("/docs.json")
    schema = answer.json()["components"]["schemas"]["Row"] if answer.is_success else {}
    wanted = row["properties"] | {"required": row["required"]}
    shown = schema.get("properties", {}) | {"required": schema.get("required")}
    slips = [
        f"`{name}` is {shown.get(name)}, in the contract {wanted.get(name)}"
        for name in wanted | shown
        if shown.get(name) != wanted.get(name)
    ]
    what = "parts of a row in the OpenAPI document are as in the contract"
    return _counted("OpenAPI", len(wanted | shown), slips, what)


def _counted(name: str, total: int, slips: Sequence[str], what: str) -> Check:
    """Judge things of which there must be some, and none may slip."""
    good, first = total - len(slips), f"; first: {slips[0]}" if slips else ""
    return fixed(name, not slips and total > 0, f"{good:,} of {total:,} {what}{first}", good)
