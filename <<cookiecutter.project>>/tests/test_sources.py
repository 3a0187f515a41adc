"""The source: what is extracted, and that no row sees its own future."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from model_delivery.project import Project
from model_delivery.protocols import UserError

from <<cookiecutter.package>> import sources
from <<cookiecutter.package>>.features import Features

pytestmark = pytest.mark.usefixtures("source")
KNOWN_ONLY_LATER = ("dep_time", "dep_delay", "arr_time", "arr_delay", "sched_arr", "air_time")


def flight(minute: int) -> pd.DataFrame:
    scheduled = pd.Timestamp("2013-05-01 10:00") + pd.Timedelta(minutes=minute)
    utc = scheduled.tz_localize("UTC") + pd.Timedelta(hours=4)
    row = {"scheduled": scheduled, "scheduled_utc": utc, "carrier": "UA", "flight": 1}
    return pd.DataFrame([row | {"origin": "EWR", "dest": "IAH", "distance": 1400.0, "late": True}])


def weather(hours_utc: list[int]) -> pd.DataFrame:
    times = [pd.Timestamp("2013-05-01", tz="UTC") + pd.Timedelta(hours=h) for h in hours_utc]
    values = {name: np.array(hours_utc, float) for name in sources.WEATHER}
    return pd.DataFrame({"origin": "EWR", "observed_utc": times} | values)


def test_extraction_has_exactly_the_contracts_columns(
    extraction: pd.DataFrame, project: Project
) -> None:
    assert list(extraction) == list(project.contract.columns)


def test_the_newest_day_is_the_one_after_the_last_row() -> None:
    last = sources.extract(sources.newest())["scheduled"].max()
    assert last.date() == sources.newest() - dt.timedelta(days=1) == dt.date(2013, 12, 31)


def test_labels_are_those_of_the_rows_that_were_known_by_then(extraction: pd.DataFrame) -> None:
    """Of flights from a day on, a day late; never of a cancelled one."""
    found = sources.labels(dt.date(2013, 2, 20), dt.date(2013, 2, 28))
    time = extraction["scheduled"]
    known = extraction[(time >= "2013-02-20") & (time < "2013-02-27")].dropna(subset=["late"])
    assert known["scheduled"].max() > pd.Timestamp("2013-02-26 20:00")
    order = ["scheduled", "carrier", "flight"]
    wanted = known[[*order, "late"]].astype({"late": bool}).sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(found.sort_values(order, ignore_index=True), wanted)


def test_nothing_known_only_after_departure_is_a_column_or_a_feature(
    extraction: pd.DataFrame, features: Features
) -> None:
    names = [*extraction, *features.names]
    assert not [n for n in names for late in KNOWN_ONLY_LATER if n.startswith(late)]
    assert "late" not in features.names


def test_as_of_is_exclusive(extraction: pd.DataFrame) -> None:
    assert extraction["scheduled"].max() < pd.Timestamp("2013-03-01")
    assert extraction["scheduled"].max() > pd.Timestamp("2013-02-28 20:00")


@pytest.mark.parametrize("day", ["2012-06-01", "2013-01-01", "2014-01-02", "2030-01-01"])
def test_a_day_outside_the_data_is_refused_with_its_span(day: str) -> None:
    with pytest.raises(UserError, match="spans 2013-01-01 to 2013-12-31"):
        sources.extract(dt.date.fromisoformat(day))


def test_late_means_more_than_fifteen_minutes(tmp_path: Path) -> None:
    given = sources._folder() / "flights.csv.zip"
    raw = pd.read_csv(given, nrows=5_000)
    path = tmp_path / "flights.csv"
    raw.to_csv(path, index=False)
    read = sources.read_flights(path)
    assert (read["late"].isna() == raw["dep_delay"].isna()).all()
    known = raw["dep_delay"].notna()
    assert (read.loc[known, "late"].astype(bool) == (raw.loc[known, "dep_delay"] > 15)).all()
    assert {True, False} == set(read.loc[known, "late"])


def test_scheduled_is_the_wall_clock_and_agrees_with_the_tables_own_hours() -> None:
    raw = pd.read_csv(sources._folder() / "flights.csv.zip", nrows=2_000)
    read = sources.read_flights(sources._folder() / "flights.csv.zip").head(2_000)
    clock = read["scheduled"].dt.hour * 100 + read["scheduled"].dt.minute
    assert (clock == raw["sched_dep_time"]).all()


@pytest.mark.parametrize(
    ("minute", "observed", "expected"),
    [
        (0, [11, 12, 13, 14], 13.0),  # 10:00 local is 14:00 UTC: 13:00 is exactly an hour old
        (59, [11, 12, 13, 14], 13.0),  # 14:59: the 14:00 observation is too new
        (60, [11, 12, 13, 14], 14.0),
        (0, [14, 15, 16], np.nan),  # only the future
        (0, [2, 3, 6], np.nan),  # older than six hours
    ],
)
def test_weather_is_the_newest_observation_at_least_an_hour_old(
    minute: int, observed: list[int], expected: float
) -> None:
    joined = sources.join_weather(flight(minute), weather(observed))
    assert len(joined) == 1
    np.testing.assert_equal(joined["temp"].iloc[0], expected)


def test_the_join_keeps_every_flight_once(extraction: pd.DataFrame) -> None:
    assert not extraction.duplicated(["scheduled", "carrier", "flight"]).any()
    table = sources.read_flights(sources._folder() / "flights.csv.zip")
    assert len(extraction) == (table["scheduled"] < "2013-03-01").sum()
