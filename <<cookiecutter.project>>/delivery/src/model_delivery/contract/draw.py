"""Rows drawn from the data contract: valid ones, and every kind of mistake."""

from __future__ import annotations

import datetime as dt
import math
import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from model_delivery.contract.data import Column, DataContract
from model_delivery.contract.request import request_json, request_model, to_columns
from model_delivery.protocols import Columns

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

JsonRow = dict[str, Any]
_OPEN_SPAN = 1_000.0
"""How far a number is drawn from its one bound, or from 0 without any."""
_EDGE_TIMES = ("2012-02-29T00:00", "2013-12-31T23:59:59", "2000-01-01T00:00:00")
_NULL_SHARE, _LEFT_OUT_SHARE = 0.05, 0.05


def draw_rows(contract: DataContract, n: int, seed: int) -> list[JsonRow]:
    """Return n valid rows as JSON values; the same seed gives the same rows.

    The first ones lie on the edges: all columns at their minimum, all at their maximum, each
    closed category's values in turn, everything `null` that may be, everything left out.
    """
    source = random.Random(seed)  # noqa: S311 (test data, no secret)
    inputs = contract.inputs
    edges = [{n: _edge(contract, spec, last) for n, spec in inputs.items()} for last in (0, -1)]
    whole = {name: example(contract, spec) for name, spec in inputs.items()}
    optional = {name for name, spec in inputs.items() if spec.missing}
    edges.append(whole | dict.fromkeys(optional))
    edges.append({name: value for name, value in whole.items() if name not in optional})
    for name, spec in inputs.items():
        edges += [whole | {name: value} for value in spec.values or ()]
    drawn = [_draw_row(contract, source) for _ in range(max(0, n - len(edges)))]
    return (edges + drawn)[:n]


def invalid_rows(contract: DataContract, seed: int) -> list[tuple[str, str, JsonRow]]:
    """Return rows with one mistake each, as (field, mistake, row)."""
    source = random.Random(seed)  # noqa: S311 (test data, no secret)
    wrong = []
    for name, spec in contract.inputs.items():
        row = {n: _draw(contract, s, source) for n, s in contract.inputs.items()}
        if not spec.missing:
            wrong.append((name, "left out", {n: v for n, v in row.items() if n != name}))
            wrong.append((name, "null", row | {name: None}))
        for mistake, value in _MISTAKES[spec.type](spec, row[name]):
            wrong.append((name, mistake, row | {name: value}))
    stranger = next(n for n in ("unknown", "unknown_column") if n not in contract.columns)
    wrong.append((stranger, "unknown field", row | {stranger: 1}))
    wrong.append((contract.target, "the target", row | {contract.target: True}))
    return wrong


def example(contract: DataContract, spec: Column) -> Any:
    """Return one plain valid value of a column."""
    if spec.type in ("number", "integer"):
        low, high = _span(spec)
        middle = (low + high) / 2
        return _within(spec, round(middle, 2) if spec.type == "number" else math.floor(middle))
    if spec.type == "category":
        return spec.values[0] if spec.values else _matching(spec, random.Random(0))  # noqa: S311
    return True if spec.type == "boolean" else f"{contract.as_of}T17:45:00"


def columns_of(rows: Sequence[JsonRow], contract: DataContract) -> Columns:
    """Return JSON rows as the service's column arrays."""
    request = request_json(contract)
    model = request_model(request)
    return to_columns(model.model_validate({"rows": list(rows)}).rows, request)


def row_strategy(contract: DataContract) -> SearchStrategy[JsonRow]:
    """Return a Hypothesis strategy of valid rows; columns that may miss are left out or null."""
    from hypothesis import strategies as st

    def values(spec: Column) -> SearchStrategy[Any]:
        low, high = _span(spec)
        start = dt.datetime.combine(contract.as_of, dt.time()) - dt.timedelta(days=730)
        kinds: dict[str, SearchStrategy[Any]] = {
            "number": st.floats(low, high),
            "integer": st.integers(math.ceil(low), math.floor(high)),
            "category": st.sampled_from(spec.values)
            if spec.values
            else st.from_regex(spec.pattern or "", fullmatch=True),
            "timestamp": st.datetimes(start, start + dt.timedelta(days=1_460)).map(
                lambda time: time.isoformat(timespec="seconds")
            ),
            "boolean": st.booleans(),
        }
        return kinds[spec.type] | st.none() if spec.missing else kinds[spec.type]

    inputs = contract.inputs
    return st.fixed_dictionaries(
        {name: values(spec) for name, spec in inputs.items() if not spec.missing},
        optional={name: values(spec) for name, spec in inputs.items() if spec.missing},
    )


def _draw_row(contract: DataContract, source: random.Random) -> JsonRow:
    row: JsonRow = {}
    for name, spec in contract.inputs.items():
        chance = source.random() if spec.missing else 1.0
        if chance < _NULL_SHARE:
            row[name] = None
        elif chance >= _NULL_SHARE + _LEFT_OUT_SHARE:
            row[name] = _draw(contract, spec, source)
    return row


def _draw(contract: DataContract, spec: Column, source: random.Random) -> Any:
    low, high = _span(spec)
    if spec.type == "number":
        value = source.uniform(low, high)
        return _within(spec, round(value, 2)) if source.random() < 0.5 else value  # short or long
    if spec.type == "integer":
        return source.randint(math.ceil(low), math.floor(high))
    if spec.type == "category":
        return source.choice(spec.values) if spec.values else _matching(spec, source)
    if spec.type == "boolean":
        return source.random() < 0.5
    minutes = source.randrange(2 * 365 * 24 * 60)
    time = dt.datetime.combine(contract.as_of, dt.time()) - dt.timedelta(minutes=minutes)
    return time.isoformat(timespec=source.choice(("minutes", "seconds")))


def _edge(contract: DataContract, spec: Column, last: int) -> Any:
    """Return the first (`last` is 0) or the last (-1) value of a domain."""
    if spec.type == "number":
        return _span(spec)[last]
    if spec.type == "integer":
        return (math.ceil(_span(spec)[0]), math.floor(_span(spec)[1]))[last]
    if spec.type == "category" and spec.values:
        return spec.values[last]
    if spec.type == "timestamp":
        return _EDGE_TIMES[last]
    return (False, True)[last] if spec.type == "boolean" else example(contract, spec)


def _span(spec: Column) -> tuple[float, float]:
    low, high = spec.min, spec.max
    if low is None:
        low = (0.0 if high is None else high) - _OPEN_SPAN
    return low, low + 2 * _OPEN_SPAN if high is None else high


def _within(spec: Column, value: float) -> float:
    low, high = _span(spec)
    return min(max(value, math.ceil(low) if spec.type == "integer" else low), high)


def _matching(spec: Column, source: random.Random) -> str:
    from rstr import Rstr

    return str(Rstr(source).xeger(spec.pattern or ""))


def _number_mistakes(spec: Column, value: float) -> list[tuple[str, Any]]:
    wrong: list[tuple[str, Any]] = [("text for a number", str(value)), ("true for a number", True)]
    if spec.min is not None:
        wrong.append(("below the minimum", math.nextafter(spec.min, -math.inf)))
    if spec.max is not None:
        wrong.append(("above the maximum", math.nextafter(spec.max, math.inf)))
    return [*wrong, ("NaN", math.nan), ("Infinity", math.inf), ("-Infinity", -math.inf)]


def _integer_mistakes(spec: Column, value: int) -> list[tuple[str, Any]]:
    low, high = spec.min, spec.max
    wrong: list[tuple[str, Any]] = [("text for an integer", str(value)), ("NaN", math.nan)]
    wrong += [("true for an integer", True), ("a fraction", value + 0.5)]
    wrong.append(("below the minimum", -(2**63) - 1 if low is None else math.ceil(low) - 1))
    wrong.append(("above the maximum", 2**63 if high is None else math.floor(high) + 1))
    return wrong


def _category_mistakes(spec: Column, value: str) -> list[tuple[str, Any]]:
    wrong: list[tuple[str, Any]] = [("a number for text", 7), ("a list for text", [value])]
    tries = (f"{value}\n", f" {value}", f"{value}{value}", "", "\u0000", "no such value")
    if spec.values:
        return [*wrong, *(("an unknown category", t) for t in tries if t not in spec.values)]
    bad = (t for t in tries if not re.fullmatch(spec.pattern or "", t))
    return [*wrong, *(("breaks the pattern", t) for t in bad)]


def _timestamp_mistakes(_: Column, value: str) -> list[tuple[str, Any]]:
    day = value[:10]
    texts = {
        "30 February": "2013-02-30T10:00:00",
        "hour 25": f"{day}T25:00:00",
        "a zone": f"{day}T10:00:00Z",
        "a day without time": day,
        "no time at all": "soon",
    }
    return [("a number for a time", 1_372_700_000), *texts.items()]


def _boolean_mistakes(_: Column, value: bool) -> list[tuple[str, Any]]:
    return [("text for a boolean", str(value).lower()), ("a number for a boolean", int(value))]


_MISTAKES: dict[str, Any] = {
    "number": _number_mistakes,
    "integer": _integer_mistakes,
    "category": _category_mistakes,
    "timestamp": _timestamp_mistakes,
    "boolean": _boolean_mistakes,
}
