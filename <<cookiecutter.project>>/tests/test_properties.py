"""Properties of every row that the data contract allows, drawn by Hypothesis."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from model_delivery.contract.request import columns_of, draw_row
from model_delivery.project import find_project
from model_delivery.protocols import Floats

from <<cookiecutter.package>>.features import Features
from <<cookiecutter.package>>.model import Model

CONTRACT = find_project().contract
Rows = list[dict[str, Any]]
row = st.randoms().map(partial(draw_row, CONTRACT))
rows = st.lists(row, min_size=1, max_size=8)


def score(features: Features, model: Model, given_rows: Rows) -> Floats:
    return model.predict(features.transform(columns_of(given_rows, CONTRACT)))


@given(given_rows=rows)
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


@given(given_rows=rows, seed=st.integers(0, 2**32 - 1))
def test_the_order_of_rows_does_not_matter(
    features: Features, model: Model, given_rows: Rows, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(given_rows))
    shuffled = score(features, model, [given_rows[i] for i in order])
    np.testing.assert_array_equal(shuffled, score(features, model, given_rows)[order])


@given(given_rows=rows)
def test_the_size_of_a_batch_does_not_matter(
    features: Features, model: Model, given_rows: Rows
) -> None:
    alone = [score(features, model, [row])[0] for row in given_rows]
    np.testing.assert_array_equal(score(features, model, given_rows), alone)


@given(row=row)
def test_the_flight_number_and_the_label_change_nothing(
    features: Features, model: Model, row: dict[str, Any]
) -> None:
    other = row | {"flight": row["flight"] % 9999 + 1}
    np.testing.assert_array_equal(score(features, model, [row]), score(features, model, [other]))
