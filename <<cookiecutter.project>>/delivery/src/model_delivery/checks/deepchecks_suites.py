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
    """How a check of Deepchecks becomes numbers."""

    make: Callable[[], Any]
    read: Callable[[Any], Values]
    pair: bool = False  # train and test are compared; else test alone is looked at
    spread: bool = False  # each training period is measured against the other rows too


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
    return {None: ((own - tree) / (1 - tree), f"ROC AUC {own:.3f} where a tree has {tree:.3f}")}


def relative_loss(value: Any) -> Values:
    """Return the share of ROC AUC that is lost from training to test."""
    train, test = value.set_index("Dataset")["Value"][["Train", "Test"]]
    return {None: (1 - test / train, f"ROC AUC {train:.3f} in training, {test:.3f} in test")}


def weakest_segment(value: Any) -> Values:
    """Return the ROC AUC of the weakest pair of ranges, relative to that of all test rows."""
    worst = value["weak_segments_list"].sort_values("roc_auc Score").iloc[0]
    score, average = worst["roc_auc Score"], value["avg_score"]
    pairs = [(worst[name], worst[f"{name} Range"]) for name in ("Feature1", "Feature2")]
    where = " and ".join(sorted(f"`{name}` in {span!s:.80}" for name, span in pairs if name))
    return {None: (score / average, f"ROC AUC {score:.3f} where {where}, {average:.3f} in all")}


DRIFT = {"pair": True, "spread": True}
MEASURES: dict[str, dict[str, Measure]] = {
    "data": {
        "PercentOfNulls": Measure(
            checks.PercentOfNulls, lambda v: plain(v.iloc[:, 0].to_dict()), spread=True
        ),
        "IsSingleValue": Measure(
            checks.IsSingleValue, lambda v: plain({n: float(kinds == 1) for n, kinds in v.items()})
        ),
        "NewCategoryTrainTest": Measure(checks.NewCategoryTrainTest, new_categories, pair=True),
        "DateTrainTestLeakageOverlap": Measure(
            checks.DateTrainTestLeakageOverlap, lambda v: plain({None: v}), pair=True
        ),
        "FeatureLabelCorrelation": Measure(checks.FeatureLabelCorrelation, plain),
        "FeatureDrift": Measure(
            checks.FeatureDrift,
            lambda v: plain({name: one["Drift score"] for name, one in v.items()}),
            **DRIFT,
        ),
        "LabelDrift": Measure(
            checks.LabelDrift, lambda v: plain({None: v["Drift score"]}), **DRIFT
        ),
    },
    "model": {
        "SimpleModelComparison": Measure(
            lambda: checks.SimpleModelComparison(strategy="tree", scorers=["roc_auc"]),
            gain,
            pair=True,
        ),
        "TrainTestPerformance": Measure(
            lambda: checks.TrainTestPerformance(scorers=["roc_auc"]), relative_loss, pair=True
        ),
        "RocReport": Measure(checks.RocReport, lambda v: plain({None: v[1]})),
        "CalibrationScore": Measure(checks.CalibrationScore, lambda v: plain({None: v[0]})),
        "WeakSegmentsPerformance": Measure(
            # The search grows with the square of the features: all of them take a minute.
            lambda: checks.WeakSegmentsPerformance(
                n_top_features=4, alternative_scorer={"roc_auc": "roc_auc"}
            ),
            weakest_segment,
        ),
        "PredictionDrift": Measure(
            checks.PredictionDrift, lambda v: plain({None: v["Drift score"]}), **DRIFT
        ),
    },
}


@dataclass
class Tables:
    """Sampled rows of both files, and how checks run on them."""

    request: dict[str, Any]
    train: pd.DataFrame
    test: pd.DataFrame

    def findings(self, name: str, measure: Measure) -> list[dict[str, Any]]:
        """Measure the test rows, and for reference the training periods, by column.

        Whatever the library raises is a finding without a value: the other checks still run.
        """
        try:
            values = self._values(measure, self.train, self.test)
            spread = self._periods() if measure.spread else []
            past = [self._values(measure, *parts) for parts in spread]
        except Exception as error:
            said = f"did not run: {type(error).__name__}: {str(error).strip():.200}"
            return [{"check": name, "column": None, "value": None, "past": None, "behind": said}]
        found = []
        for column, (value, behind) in values.items():
            told = [n for old in past if (n := number(old[column][0])) is not None]
            one = {"check": name, "column": column, "value": number(value), "behind": behind}
            found.append(one | {"past": told if measure.spread else None})
        return found

    def _values(self, measure: Measure, before: pd.DataFrame, after: pd.DataFrame) -> Values:
        parts = [before, after] if measure.pair else [after]
        options: dict[str, Any] = {"with_display": False}
        if self.request["suite"] == "model":
            options |= {"model_classes": [0, 1], "feature_importance": self.importance}
            for part, which in zip(
                parts, ("_train", "_test") if measure.pair else ("",), strict=True
            ):
                scores = part[self.request["score"]].to_numpy(float)
                options[f"y_pred{which}"] = (scores >= 0.5).astype(int)
                options[f"y_proba{which}"] = np.column_stack([1 - scores, scores])
        result = measure.make().run(*(self._dataset(part) for part in parts), **options)
        return measure.read(result.value) or {None: (0.0, "there is no column of this kind")}

    @cached_property
    def importance(self) -> pd.Series:
        """What each column alone tells of the label, as shares of 1; weak segments need it."""
        check = checks.FeatureLabelCorrelation()
        power = pd.Series(check.run(self._dataset(self.test), with_display=False).value) + 1e-6
        return power / power.sum()

    def _periods(self) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
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


def columns_of(request: dict[str, Any]) -> list[str]:
    """Return the names of features, label and time."""
    return [*request["numeric"], *request["categorical"], request["label"], request["time"]]


def read_rows(request: dict[str, Any], part: str) -> pd.DataFrame:
    """Return sampled rows of a file in their order, with the label as 0 or 1."""
    wanted = columns_of(request) + ([request["score"]] if request["suite"] == "model" else [])
    rows = pd.read_parquet(request[part], columns=wanted)
    rows = rows.sample(min(ROWS[part], len(rows)), random_state=0).sort_index()
    return rows.astype({request["label"]: int} | dict.fromkeys(request["categorical"], object))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return a finding for each check and column, or why there is none."""
    known = MEASURES[request["suite"]]
    if unknown := [name for name in request["checks"] if name not in known]:
        return {"refused": f"no check `{unknown[0]}`; there are {', '.join(known)}"}
    tables = Tables(request, read_rows(request, "train"), read_rows(request, "test"))
    found = [tables.findings(name, known[name]) for name in request["checks"]]
    return {"findings": [one for findings in found for one in findings]}


if __name__ == "__main__":
    asked, answered = map(Path, sys.argv[1:])
    answered.write_text(json.dumps(answer(json.loads(asked.read_text())), allow_nan=False))
