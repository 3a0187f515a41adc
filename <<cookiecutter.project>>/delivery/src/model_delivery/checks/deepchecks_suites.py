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

import json
import os
import sys
import warnings
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
"""A training period with fewer sampled rows says nothing of the spread."""


def gain(value: Any) -> dict[None, Any]:
    """Return the share of the way from a small tree's ROC AUC to 1 that the model goes."""
    own, tree = (value["scores"]["roc_auc"][kind] for kind in ("Origin", "Simple"))
    return {None: ((own - tree) / (1 - tree), f"ROC AUC {own:.3f} where a tree has {tree:.3f}")}


def relative_loss(value: Any) -> dict[None, Any]:
    """Return the share of ROC AUC that is lost from training to test."""
    train, test = value.set_index("Dataset")["Value"][["Train", "Test"]]
    return {None: (1 - test / train, f"ROC AUC {train:.3f} in training, {test:.3f} in test")}


def weakest_segment(value: Any) -> dict[None, Any]:
    """Return the ROC AUC of the weakest pair of ranges, relative to that of all test rows."""
    worst = value["weak_segments_list"].sort_values("roc_auc Score").iloc[0]
    score, average = worst["roc_auc Score"], value["avg_score"]
    pairs = [(worst[name], worst[f"{name} Range"]) for name in ("Feature1", "Feature2")]
    where = " and ".join(sorted(f"`{name}` in {span!s:.80}" for name, span in pairs if name))
    return {None: (score / average, f"ROC AUC {score:.3f} where {where}, {average:.3f} in all")}


READERS: dict[str, dict[str, Any]] = {
    "data": {
        "PercentOfNulls": lambda v: v.iloc[:, 0].to_dict(),
        "IsSingleValue": lambda v: {name: float(kinds == 1) for name, kinds in v.items()},
        "NewCategoryTrainTest": lambda v: dict(v["Ratio of New Categories"]),
        "FeatureLabelCorrelation": dict,
        "FeatureDrift": lambda v: {name: one["Drift score"] for name, one in v.items()},
        "LabelDrift": lambda v: {None: v["Drift score"]},
    },
    "model": {
        "SimpleModelComparison": gain,
        "TrainTestPerformance": relative_loss,
        "WeakSegmentsPerformance": weakest_segment,
        "PredictionDrift": lambda v: {None: v["Drift score"]},
    },
}
"""By check, how its result becomes a number by column; the key is None for all of them."""
ALONE = {"PercentOfNulls", "IsSingleValue", "FeatureLabelCorrelation", "WeakSegmentsPerformance"}
"""Checks that look at the test rows alone; the others compare them with the training rows."""
SPREAD = {"PercentOfNulls", "FeatureDrift", "LabelDrift", "PredictionDrift"}
"""Checks that measure each training period against the other training rows too."""
OPTIONS: dict[str, dict[str, Any]] = {
    "SimpleModelComparison": {"strategy": "tree", "scorers": ["roc_auc"]},
    "TrainTestPerformance": {"scorers": ["roc_auc"]},
    # The search grows with the square of the features: all of them take a minute.
    "WeakSegmentsPerformance": {"n_top_features": 4, "alternative_scorer": {"roc_auc": "roc_auc"}},
}


class Tables:
    """Sampled rows of both files, and how checks run on them."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.features = [*request["numeric"], *request["categorical"]]
        self.train, self.test = self._read("train"), self._read("test")

    def _read(self, part: str) -> pd.DataFrame:
        """Return sampled rows of a file in their order, with the label as 0 or 1."""
        label, scored = self.request["label"], self.request["suite"] == "model"
        wanted = [*self.features, label, self.request["time"]]
        wanted += [self.request["score"]] if scored else []
        rows = pd.read_parquet(self.request[part], columns=wanted)
        rows = rows.sample(min(ROWS[part], len(rows)), random_state=0).sort_index()
        return rows.astype({label: int} | dict.fromkeys(self.request["categorical"], object))

    def findings(self, name: str) -> list[dict[str, Any]]:
        """Measure the test rows, and for reference the training periods, by column.

        Whatever the library raises is a finding without a value: the other checks still run.
        """
        try:
            values = self._values(name, self.train, self.test)
            periods = self._periods() if name in SPREAD else []
            past = [self._values(name, *parts) for parts in periods]
        except Exception as error:
            said = f"did not run: {type(error).__name__}: {str(error).strip():.200}"
            return [{"check": name, "column": None, "value": None, "past": None, "behind": said}]
        found = []
        for column, value in values.items():
            shown, behind = value if isinstance(value, tuple) else (value, "")
            told = [n for old in past if (n := number(old[column])) is not None]
            one = {"check": name, "column": column, "value": number(shown), "behind": behind}
            found.append(one | {"past": told if name in SPREAD else None})
        return found

    def _values(self, name: str, before: pd.DataFrame, after: pd.DataFrame) -> dict[Any, Any]:
        parts = {"": after} if name in ALONE else {"_train": before, "_test": after}
        options: dict[str, Any] = {"with_display": False}
        if self.request["suite"] == "model":
            options |= {"model_classes": [0, 1], "feature_importance": self.importance}
            for which, part in parts.items():
                scores = part[self.request["score"]].to_numpy(float)
                options[f"y_pred{which}"] = (scores >= 0.5).astype(int)
                options[f"y_proba{which}"] = np.column_stack([1 - scores, scores])
        check = getattr(checks, name)(**OPTIONS.get(name, {}))
        value = check.run(*map(self._dataset, parts.values()), **options).value
        read = READERS[self.request["suite"]][name](value)
        return read or {None: (0.0, "there is no column of this kind")}

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
        label, time = self.request["label"], self.request["time"]
        return Dataset(
            rows[[*self.features, label, time]],
            label=label,
            features=self.features,
            cat_features=self.request["categorical"],
            datetime_name=time,
            label_type="binary",
        )


def number(value: Any) -> float | None:
    """Return what JSON can hold: Deepchecks also says NaN, and "not_enough_samples"."""
    good = isinstance(value, (bool, int, float, np.number)) and np.isfinite(value)
    return float(value) if good else None


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return a finding for each check and column, or why there is none."""
    known = READERS[request["suite"]]
    if unknown := [name for name in request["checks"] if name not in known]:
        return {"refused": f"no check `{unknown[0]}`; there are {', '.join(known)}"}
    tables = Tables(request)
    return {"findings": [one for name in request["checks"] for one in tables.findings(name)]}


if __name__ == "__main__":
    asked, answered = map(Path, sys.argv[1:])
    answered.write_text(json.dumps(answer(json.loads(asked.read_text())), allow_nan=False))
