"""Scale: a season passes, a unit does not."""

from __future__ import annotations

import numpy as np
import pytest
from model_delivery.gates.scale import scale_ratio
from model_delivery.protocols import Columns, Floats

LIMIT = 2.0


def month(number: int, grid: float) -> Columns:
    """Return 3,000 temperatures in °F, and rain that is mostly none."""
    random = np.random.default_rng(number)
    warm = 30 + 8 * number + random.normal(0, 9 - number / 2, 3000)
    rain = np.where(random.random(3000) < 0.9, 0, random.integers(1, 60, 3000) / 100)
    return {"temp": np.round(warm / grid) * grid, "rain": rain}


@pytest.mark.parametrize("grid", [0.9, 1e-9])
def test_july_passes(grid: float) -> None:
    ratios = scale_ratio([month(n, grid) for n in range(1, 7)], month(7, grid))
    assert max(ratios.values()) < LIMIT


@pytest.mark.parametrize(
    ("column", "convert"),
    [
        ("temp", lambda f: (f - 32) * 5 / 9),
        ("temp", lambda f: f * 1.8),
        ("rain", lambda inches: inches * 25.4),
    ],
)
def test_another_unit_does_not(column: str, convert: object) -> None:
    assert callable(convert)
    july = month(7, 0.9)
    ratios = scale_ratio(
        [month(n, 0.9) for n in range(1, 7)], {column: convert(np.asarray(july[column]))}
    )
    assert ratios[column] > 2 * LIMIT


def test_without_a_grid_the_width_still_tells() -> None:
    values: Floats = np.asarray(month(7, 1e-9)["temp"])
    ratios = scale_ratio([month(n, 1e-9) for n in range(1, 7)], {"temp": values * 10})
    assert ratios["temp"] > 2 * LIMIT


def test_what_cannot_be_compared_is_not_a_number() -> None:
    few = {"temp": np.full(50, np.nan)}
    assert np.isnan(scale_ratio([month(1, 0.9), month(2, 0.9)], few)["temp"])
