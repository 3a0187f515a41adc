"""Rows drawn from the data contract: valid ones, and every kind of mistake."""

import datetime as dt
import math
import random
import re
from collections.abc import Sequence
from typing import Any

from rstr import Rstr

from model_delivery.contract.request import request_json, request_model, to_columns
from model_delivery.contract.settings import Column, DataContract
from model_delivery.protocols import Columns

JsonRow = dict[str, Any]
_OPEN_SPAN = 1_000.0
"""How far a number is drawn from its one bound, or from 0 without any."""
_EDGE_TIMES = ("2012-02-29T00:00", "2013-12-31T23:59:59", "2000-01-01T00:00:00")
_EDGE_SHARE, _MISSING_SHARE = 0.1, 0.1


def draw_rows(contract: DataContract, n: int, seed: int) -> list[JsonRow]:
    """Return n valid rows as JSON values; the same seed gives the same rows."""
    source = random.Random(seed)  # noqa: S311 (test data, no secret)
    return [draw_row(contract, source) for _ in range(n)]


def draw_row(contract: DataContract, source: random.Random) -> JsonRow:
    """Return a valid row: some values on the edge of their domain, some that may miss missing."""
    row: JsonRow = {}
    for name, spec in contract.inputs.items():
        if not spec.missing or source.random() >= _MISSING_SHARE:
            row[name] = _value(contract, spec, source)
        elif source.random() < 0.5:
            row[name] = None  # else it is left out
    return row


def invalid_rows(contract: DataContract, seed: int) -> list[tuple[str, str, JsonRow]]:
    """Return rows with one mistake each, as (field, mistake, row)."""
    source = random.Random(seed)  # noqa: S311 (test data, no secret)
    row = {name: _value(contract, spec, source) for name, spec in contract.inputs.items()}
    wrong = []
    for name, spec in contract.inputs.items():
        mistakes = _mistakes(spec, row[name])
        if not spec.missing:
            wrong.append((name, "left out", {n: v for n, v in row.items() if n != name}))
            mistakes["null"] = None
        wrong += [(name, mistake, row | {name: value}) for mistake, value in mistakes.items()]
    wrong.append(("no_such_column", "unknown field", row | {"no_such_column": 1}))
    wrong.append((contract.target, "the target", row | {contract.target: True}))
    return wrong


def example(contract: DataContract, spec: Column) -> Any:
    """Return one plain valid value of a column, always the same."""
    if spec.type == "number":
        return sum(_span(spec)) / 2
    return _value(contract, spec, random.Random(1))  # noqa: S311 (no secret)


def columns_of(rows: Sequence[JsonRow], contract: DataContract) -> Columns:
    """Return JSON rows as the service's column arrays."""
    request = request_json(contract)
    return to_columns(request_model(request).model_validate({"rows": rows}).rows, request)


def _value(contract: DataContract, spec: Column, source: random.Random) -> Any:
    edge = source.random() < _EDGE_SHARE
    if spec.type == "number":
        low, high = _span(spec)
        return source.choice((low, high)) if edge else source.uniform(low, high)
    if spec.type == "integer":
        low, high = _span(spec)
        ends = math.ceil(low), math.floor(high)
        return source.choice(ends) if edge else source.randint(*ends)
    if spec.type == "boolean":
        return source.random() < 0.5
    if spec.pattern:
        return str(Rstr(source).xeger(spec.pattern))
    if spec.values:
        return source.choice(spec.values)
    time = dt.datetime.combine(contract.as_of, dt.time())
    time -= dt.timedelta(minutes=source.randrange(2 * 365 * 24 * 60))
    return source.choice(_EDGE_TIMES) if edge else time.isoformat()


def _span(spec: Column) -> tuple[float, float]:
    low = (spec.max or 0.0) - _OPEN_SPAN if spec.min is None else spec.min
    return low, low + 2 * _OPEN_SPAN if spec.max is None else spec.max


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
