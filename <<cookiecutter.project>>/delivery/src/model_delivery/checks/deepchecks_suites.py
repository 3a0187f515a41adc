# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["deepchecks==0.19.1", "jinja2>=3.1,<4", "numpy>=1.26,<2", "pandas>=2.2,<3",
#   "plotly>=5.24,<6", "pyarrow>=17,<23", "scikit-learn>=1.5,<1.8", "scipy>=1.13,<1.17",
#   "setuptools<81"]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# # A notebook server that Deepchecks names and never imports; it doubled the time to start.
# override-dependencies = ["jupyter-server; python_version < '3'"]
# ///
"""Measure tables and scores with Deepchecks, and judge nothing.

    uv run --script deepchecks_suites.py REQUEST.json ANSWER.json

Deepchecks 0.19 needs older numpy and scikit-learn than the project and is AGPL-3.0: it lives in
the environment that the block above describes, and talks in files. REQUEST names a suite, two
parquet files, columns and checks; ANSWER holds a finding for each check and column, or under
`refused` why there is none. The gate that asked compares the values with `config/gates.yaml`.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

# Before the import, which otherwise calls home.
os.environ["DISABLE_DEEPCHECKS_ANONYMOUS_TELEMETRY"] = "True"
os.environ["DISABLE_LATEST_VERSION_CHECK"] = "True"
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from deepchecks.tabular import Dataset, checks  # noqa: E402

ROWS = {"train": 20_000, "test": 8_000}
"""Sampled rows; more change the values little and cost time in proportion."""
FEWEST_ROWS = 100
"""A period with fewer sampled rows says nothing of the spread."""
Values = dict[str | None, tuple[Any, str]]
"""A number and what is behind it, by column; the key is None for the table as a whole."""


@dataclass(frozen=True)
class Measure:
    """How a check of Deepchecks becomes findings, and what its number is in words."""

    says: str
    make: Callable[[], Any]
    read: Callable[[Any], Values]
    pair: bool = False  # train and test are compared; else test alone is looked at
    spread: bool = False  # each training period is measured against the other rows too

    def findings(self, tables: Tables) -> list[dict[str, Any]]:
        """Measure the test rows, and for reference the training periods."""
        past = [self._values(tables, *parts) for parts in tables.periods] if self.spread else []
        found = []
        for column, (value, detail) in self._values(tables, tables.train, tables.test).items():
            told = [n for old in past if (n := number(old[column][0])) is not None]
            behind = f"{max(told):.3f} at most in a training period" if told else detail
            shown = "unknown" if number(value) is None else f"{value:.3f}"
            about = f"`{column}`: {self.says}" if column else self.says
            sentence = f"{about} {shown}" + (f", {behind}" if behind else "")
            finding = {"column": column, "value": number(value), "sentence": sentence}
            found.append(finding | {"past": told if self.spread else None})
        return found

    def _values(self, tables: Tables, before: pd.DataFrame, after: pd.DataFrame) -> Values:
        values = self.read(tables.run(self.make(), *([before, after] if self.pair else [after])))
        return values or {None: (0.0, "for there is no column of this kind")}


@dataclass
class Tables:
    """Sampled rows of both files, and how a check runs on them."""

    request: dict[str, Any]
    train: pd.DataFrame
    test: pd.DataFrame

    def run(self, check: Any, *parts: pd.DataFrame) -> Any:
        """Run a check and return its value."""
        options: dict[str, Any] = {"with_display": False}
        if self.request["suite"] == "model":
            options |= {"model_classes": [0, 1], "feature_importance": self.importance}
            names = ("_train", "_test") if len(parts) == 2 else ("",)
            for part, which in zip(parts, names, strict=True):
                scores = part[self.request["score"]].to_numpy(float)
                options[f"y_pred{which}"] = (scores >= 0.5).astype(int)
                options[f"y_proba{which}"] = np.column_stack([1 - scores, scores])
        return check.run(*(self._dataset(part) for part in parts), **options).value

    @cached_property
    def importance(self) -> pd.Series:
        """What each column alone tells of the label, as shares of 1; weak segments need it."""
        check = checks.FeatureLabelCorrelation()
        power = pd.Series(check.run(self._dataset(self.test), with_display=False).value) + 1e-6
        return power / power.sum()

    @cached_property
    def periods(self) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
        """For each training period with enough rows, the other rows and its own."""
        times = self.train[self.request["time"]]
        spans = [map(pd.Timestamp, span) for span in self.request["periods"]]
        inside = [(times >= start) & (times < end) for start, end in spans]
        enough = [own for own in inside if min(own.sum(), (~own).sum()) >= FEWEST_ROWS]
        return [(self.train[~own], self.train[own]) for own in enough]

    def _dataset(self, rows: pd.DataFrame) -> Dataset:
        return Dataset(
            rows[columns_of(self.request)],
            label=self.request["label"],
            features=[*self.request["numeric"], *self.request["categorical"]],
            cat_features=self.request["categorical"],
            datetime_name=self.request["time"],
            label_type="binary",
        )


def number(value: Any) -> float | None:
    """Return what JSON can hold: Deepchecks also says NaN, and "not_enough_samples"."""
    good = isinstance(value, (bool, int, float, np.number)) and np.isfinite(value)
    return float(value) if good else None


def plain(values: dict[str | None, Any]) -> Values:
    """Return values behind which there is no more to say."""
    return {column: (value, "") for column, value in values.items()}


def new_categories(value: Any) -> Values:
    """Return the share of test rows with a category that training does not have."""
    words = {n: ", ".join(map(str, found[:5])) for n, found in value["New categories"].items()}
    return {n: (value["Ratio of New Categories"][n], words[n]) for n in words}


def gain(value: Any) -> Values:
    """Return the share of the way from a small tree's ROC AUC to 1 that the model goes."""
    own, tree = (value["scores"]["roc_auc"][kind] for kind in ("Origin", "Simple"))
    return {None: ((own - tree) / (1 - tree), f"{own:.3f} where the tree has {tree:.3f}")}


def relative_loss(value: Any) -> Values:
    """Return the share of ROC AUC that is lost from training to test."""
    train, test = value.set_index("Dataset")["Value"][["Train", "Test"]]
    return {None: (1 - test / train, f"{train:.3f} in training, {test:.3f} in test")}


def weakest_segment(value: Any) -> Values:
    """Return the ROC AUC of the weakest pair of ranges, relative to that of all test rows."""
    worst = value["weak_segments_list"].sort_values("roc_auc Score").iloc[0]
    score, average = worst["roc_auc Score"], value["avg_score"]
    pairs = [(worst[name], worst[f"{name} Range"]) for name in ("Feature1", "Feature2")]
    where = " and ".join(sorted(f"`{name}` in {span!s:.80}" for name, span in pairs if name))
    return {None: (score / average, f"{score:.3f} where {where}, {average:.3f} in all")}


def one_drift(value: Any) -> Values:
    """Return the drift of the label or the score."""
    return {None: (value["Drift score"], "")}


DRIFT = {"pair": True, "spread": True}
MEASURES: dict[str, dict[str, Measure]] = {
    "data": {
        "PercentOfNulls": Measure(
            "share without a value",
            checks.PercentOfNulls,
            lambda v: plain(v.iloc[:, 0].to_dict()),
            spread=True,
        ),
        "IsSingleValue": Measure(
            "1 if there is a single value:",
            checks.IsSingleValue,
            lambda v: plain({name: float(kinds == 1) for name, kinds in v.items()}),
        ),
        "NewCategoryTrainTest": Measure(
            "share of new categories", checks.NewCategoryTrainTest, new_categories, pair=True
        ),
        "DateTrainTestLeakageOverlap": Measure(
            "share of test rows before the last training row",
            checks.DateTrainTestLeakageOverlap,
            lambda v: plain({None: v}),
            pair=True,
        ),
        "FeatureLabelCorrelation": Measure(
            "power to predict the label alone", checks.FeatureLabelCorrelation, plain
        ),
        "FeatureDrift": Measure(
            "drift",
            checks.FeatureDrift,
            lambda v: plain({name: one["Drift score"] for name, one in v.items()}),
            **DRIFT,
        ),
        "LabelDrift": Measure("drift of the label", checks.LabelDrift, one_drift, **DRIFT),
    },
    "model": {
        "SimpleModelComparison": Measure(
            "ROC AUC, as a share of the way from a tree of depth 3 to 1,",
            lambda: checks.SimpleModelComparison(strategy="tree", scorers=["roc_auc"]),
            gain,
            pair=True,
        ),
        "TrainTestPerformance": Measure(
            "share of ROC AUC lost",
            lambda: checks.TrainTestPerformance(scorers=["roc_auc"]),
            relative_loss,
            pair=True,
        ),
        "RocReport": Measure("ROC AUC", checks.RocReport, lambda v: plain({None: v[1]})),
        "CalibrationScore": Measure(
            "Brier score", checks.CalibrationScore, lambda v: plain({None: v[0]})
        ),
        "WeakSegmentsPerformance": Measure(
            "ROC AUC of the weakest segment as a share of that of all rows",
            # The search grows with the square of the features: all of them take a minute.
            lambda: checks.WeakSegmentsPerformance(
                n_top_features=4, alternative_scorer={"roc_auc": "roc_auc"}
            ),
            weakest_segment,
        ),
        "PredictionDrift": Measure(
            "drift of the score", checks.PredictionDrift, one_drift, **DRIFT
        ),
    },
}


def columns_of(request: dict[str, Any]) -> list[str]:
    """Return the names of features, label and time."""
    return [*request["numeric"], *request["categorical"], request["label"], request["time"]]


def read_rows(request: dict[str, Any], part: str) -> pd.DataFrame:
    """Return sampled rows of a file in their order, with the label as 0 or 1."""
    wanted = columns_of(request) + ([request["score"]] if request["suite"] == "model" else [])
    rows = pd.read_parquet(request[part], columns=wanted)
    rows = rows.sample(min(ROWS[part], len(rows)), random_state=0).sort_index()
    return rows.astype({request["label"]: int} | dict.fromkeys(request["categorical"], object))


def measured(measure: Measure, tables: Tables) -> list[dict[str, Any]]:
    """Run one check; what it raises becomes a finding that says so."""
    try:
        return measure.findings(tables)
    except Exception as error:  # whatever the library raises, the other checks still run
        said = f"did not run: {type(error).__name__}: {str(error).strip():.200}"
        return [{"column": None, "value": None, "past": None, "sentence": said}]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return a finding for each check and column, or why there is none."""
    known = MEASURES[request["suite"]]
    if unknown := [name for name in request["checks"] if name not in known]:
        return {"refused": f"no check `{unknown[0]}`; there are {', '.join(known)}"}
    tables = Tables(request, read_rows(request, "train"), read_rows(request, "test"))
    found = {name: measured(known[name], tables) for name in request["checks"]}
    return {"findings": [{"check": name} | one for name in found for one in found[name]]}


if __name__ == "__main__":
    asked, answered = map(Path, sys.argv[1:])
    answered.write_text(json.dumps(answer(json.loads(asked.read_text())), allow_nan=False))
