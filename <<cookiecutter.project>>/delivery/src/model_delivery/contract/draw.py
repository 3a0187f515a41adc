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
        mistakes = _mistakes(spec, row[name])
        if not spec.missing:
            wrong.append((name, "left out", {n: v for n, v in row.items() if n != name}))
            mistakes["null"] = None
        wrong += [(name, mistake, row | {name: value}) for mistake, value in mistakes.items()]
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
    return spec.values[0] if spec.values else _value(contract, spec, random.Random(1))  # noqa: S311 (no secret)


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
    if spec.type == "category":
        texts = (f"{value}\n", f" {value}", f"{value}{value}", "", "\u0000", "no such value")
        good = re.compile(spec.pattern or "|".join(map(re.escape, spec.values or ())))
        words = {f"the text {text!r}": text for text in texts if not good.fullmatch(text)}
        return words | {"a number": 7, "a list": [value]}
    if spec.type == "timestamp":
        times = {"30 February": "2013-02-30T10:00:00", "hour 25": f"{value[:10]}T25:00:00"}
        times |= {"a zone": f"{value[:10]}T10:00:00Z", "a day": value[:10]}
        return times | {"a number": 1e9}
    if spec.type == "boolean":
        return {"text": str(value).lower(), "a number": int(value)}
    low, high = spec.min, spec.max
    numbers: dict[str, Any] = {"text": str(value), "true": True, "NaN": math.nan}
    if spec.type == "integer":
        below = -(2**63) - 1 if low is None else math.ceil(low) - 1
        above = 2**63 if high is None else math.floor(high) + 1
        edges = {"below the minimum": below, "above the maximum": above}
        return numbers | {"a fraction": value + 0.5} | edges
    if low is not None:
        numbers["below the minimum"] = math.nextafter(low, -math.inf)
    if high is not None:
        numbers["above the maximum"] = math.nextafter(high, math.inf)
    return numbers | {"Infinity": math.inf}
