"""Features: each of them by hand, and equal in training, batch and service.

And properties of features and scores of every row that the data contract allows, by Hypothesis.
"""

from __future__ import annotations

import datetime as dt
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_delivery.contract.request import (
    columns_of,
    draw_row,
    request_json,
    request_model,
    to_columns,
)
from model_delivery.project import Project, find_project
from model_delivery.protocols import Columns, Floats

from <<cookiecutter.package>>.features import CATEGORIES, CLOCK, NUMBERS, Features, wall_clock
from <<cookiecutter.package>>.model import Model

CONTRACT = find_project().contract
Rows = list[dict[str, Any]]
valid_row = st.randoms().map(partial(draw_row, CONTRACT))
valid_rows = st.lists(valid_row, min_size=1, max_size=8)


@pytest.mark.parametrize("text", ["2013-07-01T17:45", "2012-02-29T00:00", "1969-12-31T23:59"])
def test_wall_clock_agrees_with_the_calendar(text: str) -> None:
    time = dt.datetime.fromisoformat(text)
    (row,) = wall_clock(np.array([text], "datetime64[us]"))
    shown = dict(zip(CLOCK, row, strict=True))
    assert (shown["month"], shown["day"]) == (time.month, time.day)
    assert shown["weekday"] == time.weekday()
    assert shown["minute_of_day"] == 60 * time.hour + time.minute


def test_one_column_for_each_name_in_order(features: Features, columns: Columns) -> None:
    matrix = features.transform(columns)
    assert matrix.shape == (len(columns["scheduled"]), len(features.names))
    assert features.names == CLOCK + NUMBERS + CATEGORIES
    for name in NUMBERS:
        np.testing.assert_array_equal(matrix[:, features.names.index(name)], columns[name])


def test_categories_are_places_in_the_sorted_vocabulary(
    features: Features, columns: Columns
) -> None:
    assert features.vocabularies["origin"] == ["EWR", "JFK", "LGA"]
    for name in CATEGORIES:
        words = features.vocabularies[name]
        assert words == sorted(set(words))
        codes = features.transform(columns)[:, features.names.index(name)]
        known = [None if np.isnan(code) else words[int(code)] for code in codes]
        assert known == columns[name].tolist()


def test_an_unseen_category_is_missing_and_not_another_one(
    features: Features, columns: Columns
) -> None:
    strange = {**columns, "dest": np.full(len(columns["dest"]), "XXX", object)}
    codes = features.transform(strange)[:, features.names.index("dest")]
    assert np.isnan(codes).all()
    rest = [i for i, name in enumerate(features.names) if name != "dest"]
    plain, changed = features.transform(columns), features.transform(strange)
    np.testing.assert_array_equal(plain[:, rest], changed[:, rest])


def test_saved_and_loaded_features_are_the_same(
    features: Features, columns: Columns, tmp_path: Path
) -> None:
    features.save(tmp_path)
    loaded = Features.load(tmp_path)
    assert loaded == features
    np.testing.assert_array_equal(loaded.transform(columns), features.transform(columns))


def test_training_batch_and_service_see_equal_values(
    extraction: pd.DataFrame, features: Features, columns: Columns, project: Project
) -> None:
    """Value by value: the training matrix, single rows of it, and rows read from JSON."""
    rows = slice(0, 200)
    training = features.transform({name: values[rows] for name, values in columns.items()})
    single = [
        features.transform({name: values[i : i + 1] for name, values in columns.items()})
        for i in range(200)
    ]
    np.testing.assert_array_equal(np.concatenate(single), training)

    known = extraction.dropna(subset=["late"]).iloc[::6].iloc[rows].drop(columns="late")
    times = known["scheduled"].dt.strftime("%Y-%m-%dT%H:%M:%S")
    sent = known.assign(scheduled=times).astype(object).where(known.notna(), None)
    body = json.dumps({"rows": sent.to_dict(orient="records")})
    request = request_json(project.contract)
    read = request_model(request).model_validate_json(body)
    served = features.transform(to_columns(read.rows, request))
    np.testing.assert_array_equal(served, training)


def score(features: Features, model: Model, given_rows: Rows) -> Floats:
    return model.predict(features.transform(columns_of(given_rows, CONTRACT)))


@given(given_rows=valid_rows)
def test_any_valid_row_gives_finite_features_and_a_probability(
    features: Features, model: Model, given_rows: Rows
) -> None:
    matrix = features.transform(columns_of(given_rows, CONTRACT))
    assert matrix.shape == (len(given_rows), len(features.names))
    assert not np.isinf(matrix).any()
    missing = {name for row in given_rows for name in CONTRACT.inputs if row.get(name) is None}
    for index, name in enumerate(features.names):
        if name not in (*missing, *features.vocabularies):  # an unseen category is missing too
            assert np.isfinite(matrix[:, index]).all()
    scores = model.predict(matrix)
    assert scores.shape == (len(given_rows),)
    assert ((scores >= 0) & (scores <= 1)).all()


@given(given_rows=valid_rows, seed=st.integers(0, 2**32 - 1))
def test_the_order_of_rows_does_not_matter(
    features: Features, model: Model, given_rows: Rows, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(given_rows))
    shuffled = score(features, model, [given_rows[i] for i in order])
    np.testing.assert_array_equal(shuffled, score(features, model, given_rows)[order])


@given(given_rows=valid_rows)
def test_the_size_of_a_batch_does_not_matter(
    features: Features, model: Model, given_rows: Rows
) -> None:
    alone = [score(features, model, [row])[0] for row in given_rows]
    np.testing.assert_array_equal(score(features, model, given_rows), alone)


@given(row=valid_row)
def test_the_flight_number_changes_nothing(
    features: Features, model: Model, row: dict[str, Any]
) -> None:
    other = row | {"flight": row["flight"] % 9999 + 1}
    np.testing.assert_array_equal(score(features, model, [row]), score(features, model, [other]))
