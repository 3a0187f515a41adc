"""Every kind of wrong request, and what a running service makes of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import httpx
from model_delivery.contract.request import (
    MOST_ROWS,
    JsonRow,
    draw_rows,
    request_json,
    request_model,
)
from model_delivery.contract.settings import Column, DataContract

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
