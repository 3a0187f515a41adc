"""Valid rows drawn from the data contract."""

import datetime as dt
import math
import random
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
