"""Rows drawn from the data contract: valid ones, and every kind of mistake."""

from __future__ import annotations

import datetime as dt
import math
import random
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from model_delivery.contract.request import request_json, request_model, to_columns
from model_delivery.contract.settings import Column, DataContract
from model_delivery.protocols import Columns

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

JsonRow = dict[str, Any]
_OPEN_SPAN = 1_000.0
"""How far a number is drawn from its one bound, or from 0 without any."""
_EDGE_TIMES = ("2012-02-29T00:00", "2013-12-31T23:59:59", "2000-01-01T00:00:00")
_EDGE_SHARE, _NULL_SHARE, _LEFT_OUT_SHARE = 0.1, 0.05, 0.05


def draw_rows(contract: DataContract, n: int, seed: int) -> list[JsonRow]:
    """Return n valid rows as JSON values; the same seed gives the same rows."""
    source = random.Random(seed)  # noqa: S311 (test data, no secret)
    return [draw_row(contract, source) for _ in range(n)]


def draw_row(contract: DataContract, source: random.Random) -> JsonRow:
    """Return a valid row: some values on the edge of their domain, some that may miss missing."""
    row: JsonRow = {}
    for name, spec in contract.inputs.items():
        chance = source.random() if spec.missing else 1.0
        if chance < _NULL_SHARE:
            row[name] = None
        elif chance >= _NULL_SHARE + _LEFT_OUT_SHARE:
            row[name] = _value(contract, spec, source)
    return row


def row_strategy(contract: DataContract) -> SearchStrategy[JsonRow]:
    """Return a Hypothesis strategy of valid rows, which it can shrink."""
    from hypothesis import strategies as st

    return st.randoms(use_true_random=False).map(partial(draw_row, contract))


def invalid_rows(contract: DataContract, seed: int) -> list[tuple[str, str, JsonRow]]:
    """Return rows with one mistake each, as (field, mistake, row)."""
    source = random.Random(seed)  # noqa: S311 (test data, no secret)
    wrong = []
    for name, spec in contract.inputs.items():
        row = {n: _value(contract, s, source) for n, s in contract.inputs.items()}
        if not spec.missing:
            wrong.append((name, "left out", {n: v for n, v in row.items() if n != name}))
            wrong.append((name, "null", row | {name: None}))
        for mistake, value in _mistakes(spec, row[name]).items():
            wrong.append((name, mistake, row | {name: value}))
    stranger = next(n for n in ("unknown", "unknown_column") if n not in contract.columns)
    wrong.append((stranger, "unknown field", row | {stranger: 1}))
    wrong.append((contract.target, "the target", row | {contract.target: True}))
    return wrong


def example(contract: DataContract, spec: Column) -> Any:
    """Return one plain valid value of a column: from its middle, or the first."""
    low, high = _span(spec)
    if spec.type == "number":
        return (low + high) / 2
    if spec.type == "timestamp":
        return f"{contract.as_of}T17:45:00"
    return spec.values[0] if spec.values else _value(contract, spec, random.Random(1))  # noqa: S311


def columns_of(rows: Sequence[JsonRow], contract: DataContract) -> Columns:
    """Return JSON rows as the service's column arrays."""
    request = request_json(contract)
    model = request_model(request)
    return to_columns(model.model_validate({"rows": list(rows)}).rows, request)


def _value(contract: DataContract, spec: Column, source: random.Random) -> Any:
    low, high = _span(spec)
    edge = source.random() < _EDGE_SHARE
    if spec.type == "number":
        return source.choice((low, high)) if edge else source.uniform(low, high)
    if spec.type == "integer":
        ends = math.ceil(low), math.floor(high)
        return source.choice(ends) if edge else source.randint(*ends)
    if spec.type == "category":
        if spec.values:
            return source.choice(spec.values)
        from rstr import Rstr

        return str(Rstr(source).xeger(spec.pattern or ""))
    if spec.type == "boolean":
        return source.random() < 0.5
    time = dt.datetime.combine(contract.as_of, dt.time())
    time -= dt.timedelta(minutes=source.randrange(2 * 365 * 24 * 60))
    return source.choice(_EDGE_TIMES) if edge else time.isoformat()


def _span(spec: Column) -> tuple[float, float]:
    low, high = spec.min, spec.max
    if low is None:
        low = (0.0 if high is None else high) - _OPEN_SPAN
    return low, low + 2 * _OPEN_SPAN if high is None else high


def _mistakes(spec: Column, value: Any) -> dict[str, Any]:
    """Return wrong values of a column by what is wrong with them."""
    wrong: dict[str, Any] = {}
    if spec.type == "number":
        wrong = {"text": str(value), "true": True, "Infinity": math.inf, "NaN": math.nan}
        if spec.min is not None:
            wrong["below the minimum"] = math.nextafter(spec.min, -math.inf)
        if spec.max is not None:
            wrong["above the maximum"] = math.nextafter(spec.max, math.inf)
    elif spec.type == "integer":
        wrong = {"text": str(value), "true": True, "a fraction": value + 0.5, "NaN": math.nan}
        wrong["below the minimum"] = -(2**63) - 1 if spec.min is None else math.ceil(spec.min) - 1
        wrong["above the maximum"] = 2**63 if spec.max is None else math.floor(spec.max) + 1
    elif spec.type == "category":
        texts = (f"{value}\n", f" {value}", f"{value}{value}", "", "\u0000", "no such value")
        known = map(re.escape, spec.values or ())
        good = re.compile(spec.pattern or "|".join(known))
        wrong = {f"the text {text!r}": text for text in texts if not good.fullmatch(text)}
        wrong |= {"a number": 7, "a list": [value]}
    elif spec.type == "timestamp":
        wrong = {"30 February": "2013-02-30T10:00:00", "hour 25": f"{value[:10]}T25:00:00"}
        wrong |= {"a zone": f"{value[:10]}T10:00:00Z", "a day": value[:10], "a number": 1e9}
    else:
        wrong = {"text": str(value).lower(), "a number": int(value)}
    return wrong
