"""Which rows train, which decide when to stop, and which judge: always by time.

The test window is never seen by `fit`, not even as validation.
"""

import datetime as dt

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Times = NDArray[np.datetime64]
FEWEST_MONTHS = 4
STOPPING = np.timedelta64(28, "D")
LARGEST_STOPPING_SHARE = 0.2


def test_start(times: Times, as_of: dt.date) -> np.datetime64:
    """Return where the test window begins: a calendar month before `as_of`.

    Where all rows together span fewer than four months it is the last fifth of the span.
    """
    first, end = pd.Timestamp(times.min()), pd.Timestamp(as_of)
    if first.normalize() > end - pd.DateOffset(months=FEWEST_MONTHS):
        return (end - (end - first) / 5).to_datetime64()
    return (end - pd.DateOffset(months=1)).to_datetime64()


def stopping_rows(times: Times) -> NDArray[np.bool_]:
    """Mark the training rows, shape (n,), of the last four weeks, at most a fifth of all rows."""
    start = times.max() - STOPPING
    fifth = np.quantile(times.astype("datetime64[s]").astype(np.int64), 1 - LARGEST_STOPPING_SHARE)
    latest = np.datetime64(int(np.ceil(fifth)), "s")
    marked: NDArray[np.bool_] = times > max(start, latest)
    return marked


def periods(times: Times) -> list[tuple[np.datetime64, np.datetime64]]:
    """Return (start, exclusive end) of a span's months, or weeks where it has fewer than four.

    Drift is judged against the spread between these periods.
    """
    first, last = times.min().astype("datetime64[D]"), times.max().astype("datetime64[D]")
    starts = np.arange(first.astype("datetime64[M]"), last.astype("datetime64[M]") + 1)
    step = 1
    if len(starts) < FEWEST_MONTHS:
        starts, step = np.arange(first, last + 1, 7), 7
    ends = (starts + step).astype("datetime64[D]")
    return list(zip(starts.astype("datetime64[D]"), ends, strict=True))
