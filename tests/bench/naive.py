# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#   "fastapi>=0.120", "joblib>=1.5", "pandas>=2.3,<3",
#   "pyarrow>=21", "scikit-learn>=1.7,<2", "uvicorn>=0.38",
# ]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""What most tutorials build: a pandas pipeline in joblib behind FastAPI. The bar to clear.

uv run --script naive.py fit TRAIN.parquet TEST.parquet MODEL.joblib
uv run --script naive.py serve MODEL.joblib PORT
"""

# mypy: ignore-errors
# What it imports is in an environment of its own.

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import joblib
import pandas as pd
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder

TARGET = "late"
CATEGORIES = ["carrier", "origin", "dest"]
WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"]
NUMBERS = ["distance", *WEATHER, "month", "day", "weekday", "minute"]


class Flight(BaseModel):
    """One departure."""

    scheduled: str
    carrier: str
    flight: int
    origin: str
    dest: str
    distance: float
    temp: float | None = None
    dewp: float | None = None
    humid: float | None = None
    wind_dir: float | None = None
    wind_speed: float | None = None
    precip: float | None = None
    pressure: float | None = None
    visib: float | None = None


class Request(BaseModel):
    """Departures to score."""

    rows: list[Flight]


def add_clock(frame: pd.DataFrame) -> pd.DataFrame:
    """Return numbers and categories, with the parts of the schedule as columns."""
    when = pd.to_datetime(frame["scheduled"], format="ISO8601")
    parts = {"month": when.dt.month, "day": when.dt.day, "weekday": when.dt.dayofweek}
    minute = when.dt.hour * 60 + when.dt.minute
    frame = frame.assign(**parts, minute=minute)[NUMBERS + CATEGORIES]
    return frame.astype(dict.fromkeys(NUMBERS, float))


def fit(train_path: str, test_path: str, model_path: str) -> dict[str, float]:
    """Fit on the candidate's own training rows; return the ROC AUC on its own test rows."""
    train, test = pd.read_parquet(train_path), pd.read_parquet(test_path)
    unknown = {"handle_unknown": "use_encoded_value", "unknown_value": -1}
    columns = ColumnTransformer(
        [("categories", OrdinalEncoder(**unknown), CATEGORIES)], remainder="passthrough"
    )
    trees = HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=200,
        max_leaf_nodes=63,
        min_samples_leaf=200,
        l2_regularization=5.0,
        categorical_features=list(range(len(CATEGORIES))),
        random_state=0,
    )
    steps = [("clock", FunctionTransformer(add_clock)), ("columns", columns), ("trees", trees)]
    pipeline = Pipeline(steps).fit(train.drop(columns=TARGET), train[TARGET].astype(int))
    joblib.dump(pipeline, model_path)
    scores = pipeline.predict_proba(test.drop(columns=TARGET))[:, 1]
    return {"auc": float(roc_auc_score(test[TARGET].astype(int), scores))}


def serve(model_path: str, port: str) -> None:
    """Answer `POST /predict` until ended."""
    warnings.simplefilter("ignore")  # scikit-learn's own, one a request: that is not the model's
    pipeline, app = joblib.load(model_path), FastAPI()

    @app.post("/predict")
    def predict(request: Request) -> dict[str, Any]:
        frame = pd.DataFrame([row.model_dump() for row in request.rows])
        return {"release": "naive", "probability": pipeline.predict_proba(frame)[:, 1].tolist()}

    # Annotations that are text are looked up in the module, where `Request` is.
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    if verb == "serve":
        serve(*arguments)
    else:
        sys.stdout.write(json.dumps(fit(*arguments)) + "\n")
