"""Rows drawn from the contract are valid, wrong ones wrong in the one field they name."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_delivery.contract.data import Column, DataContract
from model_delivery.contract.draw import (
    columns_of,
    draw_rows,
    example,
    invalid_rows,
    row_strategy,
)
from model_delivery.contract.request import request_json, request_model
from pydantic import ValidationError


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
    assert {"an unknown category", "breaks the pattern", "NaN", "unknown field"} <= kinds
    assert {field for field, _ in seen} >= set(contract.inputs)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_strategy_gives_valid_rows(contract: DataContract, data: st.DataObject) -> None:
    rows = data.draw(st.lists(row_strategy(contract), min_size=1, max_size=5))
    assert len(columns_of(json.loads(json.dumps(rows)), contract)["at"]) == len(rows)


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
        assert re.fullmatch(column.pattern, value)
    else:
        assert column.min is None or value >= column.min
        assert column.max is None or value <= column.max
