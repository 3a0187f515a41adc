"""What the replay does inside its project, by that project's own interpreter.

uv run python inside.py flights FOLDER        rows and bodies of each month
uv run python inside.py rest FOLDER MONTH N   rows after the first N of a month, for `ml predict`
uv run python inside.py curves FOLDER FROZEN  scores of the first champion and of monthly models
uv run python inside.py measure FOLDER LOG    metrics by month of what was answered; rows logged
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from model_delivery.contract.settings import DataContract
from model_delivery.project import find_project
from model_delivery.protocols import user_module
from model_delivery.training.scores import calibration_error, fit, roc_auc
from model_delivery.training.snapshot import take_snapshot

MOST_ASKED = 6_000  # of a month over HTTP: three times the usual, while a rollout goes on


def flights(folder: str) -> None:
    """Write the flights of each month in a random order, and the first ones as requests."""
    project, place = find_project(), Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    contract = project.contract
    year = within(user_module("sources").extract(dt.date(2014, 1, 1)), contract)
    for month, rows in year.groupby(year[contract.time].dt.strftime("%Y-%m")):
        mixed = rows.sample(frac=1, random_state=0)
        mixed.to_parquet(place / f"{month}.parquet", index=False)
        asked = mixed[list(contract.inputs)].head(MOST_ASKED).astype(object)
        plain = asked.where(asked.notna(), None).to_dict("records")
        bodies = [json.dumps({"rows": [row]}, default=pd.Timestamp.isoformat) for row in plain]
        (place / f"{month}.json").write_text(json.dumps(bodies))


def within(rows: pd.DataFrame, contract: DataContract) -> pd.DataFrame:
    """Return rows without the numbers that no request may carry, such as a gust of 1,000 mph."""
    for name in contract.of_type("number"):
        spec = contract.columns[name]
        low = -np.inf if spec.min is None else spec.min
        high = np.inf if spec.max is None else spec.max
        rows[name] = rows[name].where(rows[name].between(low, high))
    return rows


def rest(folder: str, month: str, first: str) -> None:
    """Write the inputs of the flights that were not asked over HTTP."""
    rows = pd.read_parquet(Path(folder) / f"{month}.parquet")
    inputs = list(find_project().contract.inputs)
    rows[inputs].iloc[int(first) :].to_parquet(Path(folder) / f"{month}-input.parquet")


def curves(folder: str, frozen: str) -> None:
    """Write metrics by month of a release, and of models trained at each first day of a month.

    The latter as `ml ship --as-of DAY` trains: without the test window that would judge them.
    ML_HOME leads the snapshots to a place of their own.
    """
    project, found = find_project(), dict[str, dict[str, dict[str, float]]]()
    ship = Path(frozen) / "ship" / "model"
    parts = user_module("features").Features.load(ship), user_module("model").Model.load(ship)
    months = sorted(path for path in Path(folder).glob("2013-??.parquet"))[1:]
    for path in months:
        rows = pd.read_parquet(path)
        trained = fit(project, take_snapshot(project, dt.date.fromisoformat(f"{path.stem}-01")))
        pairs = {"frozen": parts, "monthly": (trained.features, trained.model)}
        found[path.stem] = {
            name: metrics(rows, scored(rows, *pair)) for name, pair in pairs.items()
        }
    (Path(folder) / "curves.json").write_text(json.dumps(found))


def scored(rows: pd.DataFrame, features: Any, model: Any) -> np.ndarray:
    """Return a model's scores, shape (n,)."""
    inputs = {name: rows[name].to_numpy() for name in find_project().contract.inputs}
    scores: np.ndarray = model.predict(features.transform(inputs))
    return scores


def metrics(rows: pd.DataFrame, scores: np.ndarray) -> dict[str, float]:
    """Return how scores agree with what came true, over the flights that departed."""
    known = rows["late"].notna().to_numpy() & np.isfinite(scores)
    labels, ones = rows["late"][known].to_numpy(float), np.ones(known.sum())
    found = {"auc": roc_auc, "calibration": calibration_error}
    values = {name: metric(labels, scores[known], ones) for name, metric in found.items()}
    return values | {"rows": int(known.sum()), "late": float(labels.mean())}


def measure(folder: str, log: str) -> None:
    """Write metrics by month of what the service and `ml predict` answered, and rows logged."""
    place, found = Path(folder), json.loads((Path(folder) / "curves.json").read_text())
    lines = logged(Path(log))
    for month, names in found.items():
        rows, key = pd.read_parquet(place / f"{month}.parquet"), find_project().contract.key
        scores = np.full(len(rows), np.nan)
        for number, score in json.loads((place / f"{month}-answers.json").read_text()).items():
            scores[int(number)] = score
        batch = pd.read_parquet(place / f"{month}-output.parquet")
        joined = rows[key].merge(batch[[*key, "score"]], on=key, how="left")["score"].to_numpy()
        scores = np.where(np.isfinite(scores), scores, joined)
        names["delivered"] = metrics(rows, scores)
        names["asked"], names["failed"] = len(rows), int(np.isnan(scores).sum())
        names["logged"] = int((lines["month"] == month).sum())
    (place / "measured.json").write_text(json.dumps(found))


def logged(log: Path) -> pd.DataFrame:
    """Return each row of a prediction log once, with its month, by this program's own reading."""
    time, found = find_project().contract.time, []
    for path in sorted(log.glob("*/*.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        found += [(r["id"], r["row"], r["shadow"], r["columns"][time][:7]) for r in records]
    for path in sorted(log.glob("*/*.parquet")):
        table = pd.read_parquet(path)
        times = [str(columns[time])[:7] for columns in table["columns"]]
        found += zip(table["id"], table["row"], table["shadow"], times, strict=True)
    rows = pd.DataFrame(found, columns=["id", "row", "shadow", "month"])
    return rows[~rows["shadow"].astype(bool)].drop_duplicates(["id", "row"])


if __name__ == "__main__":
    called = {each.__name__: each for each in (flights, rest, curves, measure)}
    called[sys.argv[1]](*sys.argv[2:])
