"""What anybody would expect of the fitted model: directions and minimum abilities."""

from __future__ import annotations

import numpy as np
from model_delivery.protocols import Columns, Floats

from <<cookiecutter.package>>.features import Features
from <<cookiecutter.package>>.model import Model


def at_hour(columns: Columns, hour: int) -> Columns:
    days = columns["scheduled"].astype("datetime64[D]")
    return {**columns, "scheduled": days + np.timedelta64(hour, "h")}


def test_delays_build_up_over_the_day(features: Features, model: Model, columns: Columns) -> None:
    """Directional: the same flights, scheduled in the evening, are late more often."""

    def mean(hour: int) -> float:
        return float(model.predict(features.transform(at_hour(columns, hour))).mean())

    assert mean(6) < mean(12) < mean(19)


def test_scores_of_late_flights_are_higher(
    features: Features, model: Model, columns: Columns
) -> None:
    """Minimum functionality: on its own rows it tells late from punctual clearly."""
    scores: Floats = model.predict(features.transform(columns))
    late = columns["late"].astype(bool)
    assert scores[late].mean() > scores[~late].mean() + 0.1


def test_the_year_does_not_matter(features: Features, model: Model, columns: Columns) -> None:
    """Invariance: 2019 has the weekdays and dates of 2013 and scores the same."""
    rows = {name: values[:500] for name, values in columns.items()}
    same_calendar = np.datetime64("2019-01-01") - np.datetime64("2013-01-01")
    later = {**rows, "scheduled": rows["scheduled"] + same_calendar}
    one, other = (model.predict(features.transform(each)) for each in (rows, later))
    np.testing.assert_array_equal(one, other)
