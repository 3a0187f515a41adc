"""Requests are as strict as the contract; rows drawn from it are right, or wrong by name."""

from __future__ import annotations

import json
import timeit
from typing import Any

import numpy as np
import pytest
from mistakes import invalid_rows
from model_delivery.contract.request import (
    MOST_ROWS,
    Request,
    columns_of,
    draw_rows,
    example,
    request_json,
    request_model,
    to_columns,
)
from model_delivery.contract.settings import Column, DataContract
from pydantic import ValidationError

GOOD: dict[str, Any] = {
    "_flag": True,
    "count": 3,
    "json": None,
    "amount": 7,
    "model code": "AB1",
    "kind": "b c",
    "at": "2013-07-01T17:45",
}


@pytest.fixture(scope="module")
def request_(contract: DataContract) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(request_json(contract)))
    return content


@pytest.fixture(scope="module")
def model(request_: dict[str, Any]) -> type[Request]:
    return request_model(request_)


def mistakes(model: type[Request], body: str | bytes) -> list[tuple[Any, ...]]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(body)
    return [error["loc"] for error in caught.value.errors()]


def test_columns_have_a_snapshots_dtypes_whatever_the_order_of_fields(
    model: type[Request], request_: dict[str, Any]
) -> None:
    left_out = {name: value for name, value in GOOD.items() if name not in ("json", "model code")}
    body = json.dumps({"rows": [GOOD, left_out | {"at": "1969-12-31T23:59:59", "amount": 1e-0}]})
    columns = to_columns(model.model_validate_json(body).rows, request_)
    assert list(columns) == list(request_)
    assert {name: str(values.dtype) for name, values in columns.items()} == {
        "at": "datetime64[us]",
        "kind": "object",
        "model code": "object",
        "amount": "float64",
        "json": "float64",
        "count": "int64",
        "_flag": "bool",
    }
    assert columns["at"].tolist() == [
        np.datetime64("2013-07-01T17:45", "us").item(),
        np.datetime64("1969-12-31T23:59:59", "us").item(),
    ]
    assert columns["model code"].tolist() == ["AB1", None]
    assert np.isnan(columns["json"]).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("at", "2013-02-30T10:00:00"),
        ("at", "2013-07-01T17:45:00Z"),
        ("at", "2013-07-01T17:45:00.5"),
        ("at", "0000-01-01T00:00"),
        ("at", 1_372_700_000),
        ("kind", "A"),
        ("kind", None),
        ("model code", "AB\n"),
        ("model code", "xAB1"),
        ("amount", 0.4999),
        ("amount", True),
        ("amount", "7"),
        ("amount", float("nan")),
        ("json", float("inf")),
        ("json", 10**400),
        ("count", 3.0),
        ("count", False),
        ("count", 10**30),
        ("_flag", 1),
        ("more", 1),
    ],
)
def test_a_mistake_is_refused_by_the_fields_name(
    model: type[Request], field: str, value: Any
) -> None:
    assert mistakes(model, json.dumps({"rows": [GOOD | {field: value}]})) == [("rows", 0, field)]


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "{}", '{"rows": 1}', '{"rows": []}', '{"rows":[1]}']
)
def test_a_body_of_another_form_is_refused(model: type[Request], body: str) -> None:
    assert mistakes(model, body)[0] in [(), ("rows",), ("rows", 0)]


def test_too_many_rows_are_refused_and_an_answer_stays_short(model: type[Request]) -> None:
    assert mistakes(model, json.dumps({"rows": [GOOD] * (MOST_ROWS + 1)})) == [("rows",)]
    bad = GOOD | {"amount": None}
    assert mistakes(model, json.dumps({"rows": [bad] * MOST_ROWS})) == [("rows", 0, "amount")]


def test_the_schema_shows_types_ranges_units_and_an_example(model: type[Request]) -> None:
    schema = model.model_json_schema()
    row = schema["$defs"]["Row"]
    amount = row["properties"]["amount"]
    assert (amount["type"], amount["minimum"], amount["maximum"]) == ("number", 0.5, 100)
    assert amount["description"] == "Unit: kg"
    assert row["properties"]["kind"]["enum"] == ["a", "b c", "ü"]
    assert row["required"] == ["at", "kind", "amount", "count", "_flag"]
    example = schema["properties"]["rows"]["examples"][0]
    assert len(model.model_validate_json(json.dumps({"rows": example})).rows) == 1


def test_one_row_is_read_in_microseconds(model: type[Request], request_: dict[str, Any]) -> None:
    """7 columns take about 5 µs; the limit leaves room for a busy machine."""
    rows = model.model_validate_json(json.dumps({"rows": [GOOD]})).rows
    seconds = min(timeit.repeat(lambda: to_columns(rows, request_), number=50, repeat=50)) / 50
    assert seconds < 100e-6


def test_drawn_rows_are_valid_repeatable_and_reach_the_edges(contract: DataContract) -> None:
    rows = draw_rows(contract, 200, seed=3)
    assert rows == draw_rows(contract, 200, seed=3) != draw_rows(contract, 200, seed=4)
    columns = columns_of(json.loads(json.dumps(rows)), contract)
    assert (columns["amount"].min(), columns["amount"].max()) == (0.5, 100)
    assert (columns["count"].min(), columns["count"].max()) == (0, 1_000_000_000)
    assert set(columns["kind"]) == {"a", "b c", "ü"}
    assert None in [row.get("json", 0) for row in rows]
    assert any("json" not in row for row in rows)
    assert len(draw_rows(contract, 3, seed=3)) == 3


@pytest.mark.parametrize("seed", range(5))
def test_invalid_rows_are_refused_for_their_field_alone(contract: DataContract, seed: int) -> None:
    model = request_model(request_json(contract))
    seen = set()
    for field, mistake, row in invalid_rows(contract, seed):
        with pytest.raises(ValidationError) as caught:
            model.model_validate_json(json.dumps({"rows": [row]}))
        assert [error["loc"][-1] for error in caught.value.errors()] == [field], (mistake, row)
        seen.add((field, mistake))
    kinds = {mistake for _, mistake in seen}
    assert {"left out", "null", "30 February", "below the minimum", "above the maximum"} <= kinds
    assert {"the text ''", "a list", "NaN", "Infinity", "a zone", "unknown field"} <= kinds
    assert {field for field, _ in seen} >= set(contract.inputs)


def test_an_integer_without_bounds_has_64_bits(contract: DataContract) -> None:
    columns = contract.columns | {"count": Column(type="integer")}
    wide = contract.model_copy(update={"columns": columns})
    ends = [-(2**63), 2**63 - 1]
    assert columns_of([GOOD | {"count": end} for end in ends], wide)["count"].tolist() == ends
    model = request_model(request_json(wide))
    for value in (ends[0] - 1, ends[1] + 1):
        body = json.dumps({"rows": [GOOD | {"count": value}]})
        assert mistakes(model, body) == [("rows", 0, "count")]


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "number"},
        {"type": "number", "min": 5},
        {"type": "number", "max": -5},
        {"type": "number", "min": 0.001, "max": 0.002},
        {"type": "integer", "min": 2.5, "max": 3},
        {"type": "category", "pattern": "x|[a-c]+-?\\d{2,}"},
    ],
)
def test_an_example_lies_in_its_domain(contract: DataContract, spec: dict[str, Any]) -> None:
    column = Column.model_validate(spec)
    value = example(contract, column)
    if column.pattern:
        assert column.pattern.fullmatch(value)
    else:
        assert column.min is None or value >= column.min
        assert column.max is None or value <= column.max
