"""Which rows train, which decide when to stop, and which judge: always by time.

The test window is never seen by `fit`, not even as validation.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.datetime64]
FEWEST_MONTHS = 4
STOPPING = np.timedelta64(28, "D")
LARGEST_STOPPING_SHARE = 0.2


def month_before(day: dt.date) -> dt.date:
    """Return the same day of the month before, or that month's last day.

    Examples
    --------
    >>> month_before(dt.date(2013, 8, 1)), month_before(dt.date(2013, 3, 31))
    (datetime.date(2013, 7, 1), datetime.date(2013, 2, 28))
    """
    first = day.replace(day=1)
    last_of_month_before = first - dt.timedelta(days=1)
    return last_of_month_before.replace(day=min(day.day, last_of_month_before.day))


def test_start(times: Times, as_of: dt.date) -> np.datetime64:
    """Return where the test window begins: a calendar month before `as_of`.

    Where all rows together span fewer than four months it is the last fifth of the span.
    """
    first, end = times.min(), np.datetime64(as_of, "s").astype(times.dtype)
    start: Any = as_of
    for _ in range(FEWEST_MONTHS):
        start = month_before(start)
    if first.astype("datetime64[D]") > np.datetime64(start):
        return np.datetime64(end - (end - first) // 5)
    return np.datetime64(month_before(as_of), "s").astype(times.dtype)


def stopping_rows(times: Times) -> NDArray[np.bool_]:
    """Mark the training rows of the last four weeks, at most a fifth of all rows.

    Parameters
    ----------
    times
        Shape (n,): the times of the training rows, in any order.
    """
    start = times.max() - STOPPING
    fifth = np.quantile(times.astype("datetime64[s]").astype(np.int64), 1 - LARGEST_STOPPING_SHARE)
    latest = np.datetime64(int(np.ceil(fifth)), "s")
    marked: NDArray[np.bool_] = times > max(start, latest)
    return marked


def periods(times: Times) -> list[tuple[str, np.datetime64, np.datetime64]]:
    """Return the months of a span, or its weeks where it has fewer than four months.

    Returns
    -------
    list of (name, start, end)
        `end` is exclusive. Drift is judged against the spread between these periods.
    """
    first, last = times.min().astype("datetime64[D]"), times.max().astype("datetime64[D]")
    months = np.arange(first.astype("datetime64[M]"), last.astype("datetime64[M]") + 1)
    if len(months) >= FEWEST_MONTHS:
        return [
            (str(m), m.astype("datetime64[D]"), (m + 1).astype("datetime64[D]")) for m in months
        ]
    week = np.timedelta64(7, "D")
    return [(str(day), day, day + week) for day in np.arange(first, last + 1, week)]
