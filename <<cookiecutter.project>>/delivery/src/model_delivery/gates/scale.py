"""Has a column changed its unit? Drift cannot tell: July differs more from spring than °C from °F.

Two things do not follow the seasons. The *width* of a month's values stays within a narrow band,
and most columns are recorded on a *grid* (tenths of a degree, whole miles, known distances)
that a conversion leaves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_delivery.protocols import Columns, Floats

QUANTILES = (0.1, 0.9)
DECIMALS = 6
"""Values that agree to so many decimals are the same point of the grid."""
TINY = 0.1
"""Added to both shares of familiar values: a column without a grid gives 1, and none gives 11."""
FEWEST_VALUES = 100
"""A period with fewer finite values does not count."""


def scale_ratio(train_periods: Sequence[Columns], test: Columns) -> dict[str, float]:
    """Return how far each numeric column of `test` is from the scale of every training period.

    The larger of two ratios, each about 1 or less when nothing changed:

    - the width between the 10 % and the 90 % quantile, against the widest and the narrowest
      period: `max(width / widest, narrowest / width)`; left out where a width is zero,
    - the share of values that also occur in another period, in the period with the fewest,
      against that share in the test rows: `(least + 0.1) / (share + 0.1)`. Zeros do not count,
      for no factor moves them.

    Parameters
    ----------
    train_periods
        The training rows, one mapping for each month or week; columns of float64, shape (n,).
    test
        The rows to judge; every column of it is compared.

    Returns
    -------
    dict
        A ratio for each column; not-a-number where fewer than two periods, or the test rows,
        hold enough values. Multiplying a column by a constant c of 2 or more gives at least
        about c divided by the spread of the periods' widths, or 5 to 11 on a grid.

    Examples
    --------
    >>> random = np.random.default_rng(0)
    >>> months = [{"miles": random.integers(50, 900, 4000).astype(float)} for _ in range(5)]
    >>> july = {"miles": random.integers(50, 900, 4000).astype(float)}
    >>> round(scale_ratio(months, july)["miles"], 1)
    1.0
    >>> round(scale_ratio(months, {"miles": july["miles"] * 1.609344})["miles"], 1)
    11.0
    """
    return {
        name: _ratio([_finite(period[name]) for period in train_periods], _finite(values))
        for name, values in test.items()
    }


def _ratio(periods: list[Floats], test: Floats) -> float:
    periods = [values for values in periods if len(values) >= FEWEST_VALUES]
    if len(periods) < 2 or len(test) < FEWEST_VALUES:
        return float("nan")
    return max(_width_ratio(periods, test), _grid_ratio(periods, test))


def _width_ratio(periods: list[Floats], test: Floats) -> float:
    low, high = np.quantile(test, QUANTILES)
    widths = [float(np.subtract(*np.quantile(values, QUANTILES[::-1]))) for values in periods]
    width = float(high - low)
    if width <= 0 or min(widths) <= 0:
        return 0.0
    return max(width / max(widths), min(widths) / width)


def _grid_ratio(periods: list[Floats], test: Floats) -> float:
    periods = [moved for values in periods if len(moved := values[values != 0]) >= FEWEST_VALUES]
    test = test[test != 0]
    if len(periods) < 2 or len(test) < FEWEST_VALUES:
        return 0.0
    points = [np.unique(values) for values in periods]
    known, seen = np.unique(np.concatenate(points), return_counts=True)
    shared = known[seen > 1]
    least = min(_share(values, shared) for values in periods)
    return (least + TINY) / (_share(test, known) + TINY)


def _share(values: Floats, known: Floats) -> float:
    """Return the share of `values` that are among the sorted `known` ones."""
    if not len(known):
        return 0.0
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return float(np.mean(known[places] == values))


def _finite(values: NDArray[np.generic]) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    return np.asarray(np.round(numbers[np.isfinite(numbers)], DECIMALS))
