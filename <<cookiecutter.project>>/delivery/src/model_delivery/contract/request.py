"""The request: what a row must be to be scored, as `request.json` says, and such rows, drawn."""

import datetime as dt
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, FailFast, Field, PlainValidator, WithJsonSchema, create_model
from pydantic_core import PydanticCustomError

from model_delivery.contract.settings import Column, DataContract
from model_delivery.protocols import Columns, UserError

JsonRow = dict[str, Any]
MOST_ROWS = 1_000  # a longer list would hold up everybody else's request: about 4 ms are the bound
_DTYPES = {"number": "f8", "integer": "i8", "category": "O", "timestamp": "M8[us]", "boolean": "?"}
"""A snapshot's columns are of the same kinds: features see no difference."""
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2})?", re.ASCII)
_TIME_TEXT = "a local time such as 2013-07-01T17:45:00: with a T, whole seconds and no zone"
EPOCH, MICROSECOND = dt.datetime(1970, 1, 1), dt.timedelta(microseconds=1)
_OPEN_SPAN = 1_000.0  # how far a number is drawn from its one bound, or from 0 without any
_EDGE_TIMES = ("2012-02-29T00:00", "2013-12-31T23:59:59", "2000-01-01T00:00:00")
_EDGE_SHARE, _MISSING_SHARE = 0.1, 0.1
_TRIES = 100  # to draw a text that a pattern takes


class _Ordered(random.Random):
    """Chooses alike in all processes from what was a set of characters."""

    def choice(self, seq: Any) -> Any:
        plain = all(isinstance(one, str) for one in seq)
        return super().choice(sorted(seq) if plain else seq)


class Row(BaseModel, extra="forbid", strict=True, allow_inf_nan=False):
    """One row to score."""


class Request(BaseModel, extra="forbid", strict=True):
    """Rows to score together; they do not influence each other."""

    rows: Sequence[Any]


def request_json(contract: DataContract) -> dict[str, Any]:
    """Return the content of `request.json`: the domain and an example of each input column."""
    return {
        name: spec.model_dump(mode="json", exclude_none=True, exclude={"outside"})
        | {"missing": spec.missing > 0, "example": example(contract, spec)}
        for name, spec in contract.inputs.items()
    }


def request_model(request: Mapping[str, Any]) -> type[Request]:
    """Return the model of a request's body: 1 to `MOST_ROWS` rows, strictly of the contract.

    A column that the contract allows to miss may be left out or `null`. Columns are fields by
    alias (`c0`, `c1`, …), since a column may have any name and a Python attribute may not.
    Reading stops at the first row with a mistake, so that an answer stays short.
    """
    fields: dict[str, Any] = {f"c{n}": _field(*named) for n, named in enumerate(request.items())}
    row: Any = create_model("Row", __base__=Row, __doc__=Row.__doc__, **fields)
    example = {name: spec["example"] for name, spec in request.items()}
    rows = Field(min_length=1, max_length=MOST_ROWS, description="The rows, scored in their order.")
    listed: Any = Annotated[list[row], FailFast(), rows], Field(examples=[[example]])
    return create_model("Request", __base__=Request, __doc__=Request.__doc__, rows=listed)


def to_columns(rows: Sequence[Row], request: Mapping[str, Any]) -> Columns:
    """Return validated rows as column arrays, with the dtypes of a snapshot.

    A missing number is not-a-number, a missing category None. One row takes 10 µs of a request.
    """
    return as_arrays(zip(*[row.__dict__.values() for row in rows], strict=True), request)


def as_arrays(columns: Iterable[Sequence[Any]], request: Mapping[str, Any]) -> Columns:
    """Return the columns of a request, given in its order, as arrays."""
    return {
        name: np.array(values, _DTYPES[spec["type"]])
        for (name, spec), values in zip(request.items(), columns, strict=True)
    }


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


def _field(name: str, spec: Mapping[str, Any]) -> tuple[Any, Any]:
    unit = f"Unit: {spec['unit']}" if "unit" in spec else None
    described = Field(alias=name, title=name, description=unit, examples=[spec["example"]])
    kind, required = _kind(spec), not spec["missing"]
    return (Annotated[kind if required else kind | None, described], ... if required else None)


def _kind(spec: Mapping[str, Any]) -> Any:
    if spec["type"] == "number":
        return Annotated[float, Field(ge=spec.get("min"), le=spec.get("max"))]
    if spec["type"] == "integer":
        low, high = _whole(spec.get("min", -math.inf), spec.get("max", math.inf))
        return Annotated[int, Field(ge=low, le=high)]
    if spec["type"] == "timestamp":
        shown = {"type": "string", "pattern": f"^{_TIME.pattern}$", "description": _TIME_TEXT}
        return Annotated[int, PlainValidator(_wall_clock), WithJsonSchema(shown)]
    if spec["type"] == "boolean":
        return bool
    if "values" in spec:
        return Literal[tuple(spec["values"])]
    # A compiled pattern selects Python's own engine.
    whole = re.compile(rf"\A(?:{spec['pattern']})\Z")
    shown = {"type": "string", "pattern": f"^(?:{spec['pattern']})$"}
    return Annotated[str, Field(pattern=whole), WithJsonSchema(shown)]


def _wall_clock(value: object) -> int:
    """Read a local time as microseconds since 1970, which numpy takes five times as fast."""
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise PydanticCustomError("wall_clock", f"Input should be {_TIME_TEXT}")
    try:
        return (dt.datetime.fromisoformat(value) - EPOCH) // MICROSECOND
    except ValueError as error:
        raise PydanticCustomError("wall_clock", f"No such time: {error}") from None


def _value(contract: DataContract, spec: Column, source: random.Random) -> Any:
    edge = source.random() < _EDGE_SHARE
    if spec.type == "number":
        low, high = _span(spec)
        return source.choice((low, high)) if edge else source.uniform(low, high)
    if spec.type == "integer":
        ends = _whole(*_span(spec))
        return source.choice(ends) if edge else source.randint(*ends)
    if spec.type == "boolean":
        return source.random() < 0.5
    if spec.pattern:
        from rstr import Rstr  # no release carries it: none draws

        drawer = Rstr(_Ordered(source.random()))
        with suppress(LookupError):  # it does not know all forms
            for text in (str(drawer.xeger(spec.pattern)) for _ in range(_TRIES)):
                if spec.pattern.fullmatch(text):
                    return text
        why = "no value of it can be drawn, as of some that look ahead; use `values`, or another"
        raise UserError(f"config/data.yaml: pattern `{spec.pattern.pattern}`: {why}")
    if spec.values:
        return source.choice(spec.values)
    time = dt.datetime.combine(contract.as_of, dt.time())
    time -= dt.timedelta(minutes=source.randrange(2 * 365 * 24 * 60))
    return source.choice(_EDGE_TIMES) if edge else time.isoformat()


def _whole(low: float, high: float) -> tuple[int, int]:
    """Return the first and last whole number between two, of 64 bits as the column's array."""
    return math.ceil(max(low, -(2**63))), min(math.floor(min(high, 2**63)), 2**63 - 1)


def _span(spec: Column) -> tuple[float, float]:
    low = (spec.max or 0.0) - _OPEN_SPAN if spec.min is None else spec.min
    return low, low + 2 * _OPEN_SPAN if spec.max is None else spec.max
