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
the environment that the block above describes, and talks in files. REQUEST names a suite, parquet
files to compare with one of training rows, rows to draw, columns and checks; ANSWER holds for each
file by check a number for each sentence. Who asked compares them with `config/gates.yaml`.
"""

import json
import math
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before the import, which otherwise calls home.
os.environ["DISABLE_DEEPCHECKS_ANONYMOUS_TELEMETRY"] = "True"
os.environ["DISABLE_LATEST_VERSION_CHECK"] = "True"
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from deepchecks.tabular import Dataset, SingleDatasetCheck, checks  # noqa: E402 - reads them

Request = dict[str, Any]
Findings = dict[str, float | None]
FEWEST_VALUES = 10  # of a column with fewer values no drift is measured
FEWEST_OF_A_LABEL = 500  # rows to rank by
SMALLEST_DRIFT = 0.05
"""A period's drift below this counts as this: two samples of one month differ by about 0.02."""


def gain(value: Any) -> dict[str, Any]:
    """Return the share of the way from a small tree's ROC AUC to 1 that the model goes."""
    own, tree = (value["scores"]["roc_auc"][kind] for kind in ("Origin", "Simple"))
    return {f"ROC AUC {own:.3f} where a tree has {tree:.3f}": (own - tree) / (1 - tree)}


def weakest_segment(value: Any) -> dict[str, Any]:
    """Return the ROC AUC of the weakest pair of ranges, relative to that of all test rows."""
    worst = value["weak_segments_list"].sort_values("roc_auc Score").iloc[0]
    score, average = worst["roc_auc Score"], value["avg_score"]
    pairs = [(worst[name], worst[f"{name} Range"]) for name in ("Feature1", "Feature2")]
    where = " and ".join(sorted(f"`{name}` in {span!s:.80}" for name, span in pairs if name))
    return {f"ROC AUC {score:.3f} where {where}, {average:.3f} in all": score / average}


READERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "NewCategoryTrainTest": lambda v: dict(v["Ratio of New Categories"]),
    "FeatureLabelCorrelation": dict,
    "FeatureDrift": lambda v: {name: one["Drift score"] for name, one in v.items()},
    "LabelDrift": lambda v: {"the label": v["Drift score"]},
    "SimpleModelComparison": gain,
    "WeakSegmentsPerformance": weakest_segment,
    "PredictionDrift": lambda v: {"the scores": v["Drift score"]},
}
"""By check, how its result becomes numbers, by column or by what is said of them."""
PAST: dict[str, list[pd.Series]] = {}
"""By check, the drifts between training periods: the same for each file of test rows."""
OPTIONS: dict[str, dict[str, Any]] = {
    "FeatureDrift": {"min_samples": FEWEST_VALUES},
    "LabelDrift": {"min_category_size_ratio": 0},  # else a label of less than 1 % is none
    "FeatureLabelCorrelation": {"random_state": 0},  # else each run draws and splits other rows
    "SimpleModelComparison": {"strategy": "tree", "scorers": ["roc_auc"]},
    # The search grows with the square of the features: all of them take a minute.
    "WeakSegmentsPerformance": {"n_top_features": 4, "alternative_scorer": {"roc_auc": "roc_auc"}},
}


def read_rows(request: Request, part: str, path: str, whole: bool = False) -> pd.DataFrame:
    """Return rows of a file in their order, mostly a sample, with the label, if any, as 0 or 1."""
    rows = pd.read_parquet(path)
    if not whole:
        rows = rows.sample(min(request["sampled"][part], len(rows)), random_state=0).sort_index()
    kinds = dict.fromkeys(filter(None, [request["label"]]), int)
    return rows.astype(kinds | dict.fromkeys(request["categorical"], object))


def with_rare(request: Request, drawn: pd.DataFrame) -> pd.DataFrame:
    """Return drawn test rows and, where one label is rare in them, more rows of it.

    A ROC AUC does not depend on a label's share, and of eight rows of one it is noise.
    """
    label, rare = request["label"], int(drawn[request["label"]].mean() < 0.5)
    if (drawn[label] == rare).sum() >= FEWEST_OF_A_LABEL:
        return drawn
    rest = read_rows(request, "test", request["tests"][0], whole=True).drop(drawn.index)
    more = rest[rest[label] == rare]
    return pd.concat([drawn, more.sample(min(len(more), FEWEST_OF_A_LABEL), random_state=0)])


def measure(request: Request, name: str, before: pd.DataFrame, after: pd.DataFrame) -> pd.Series:
    """Run a check on both; return numbers by what they are about, NaN where there is none."""
    check = getattr(checks, name)(**OPTIONS.get(name, {}))
    alone = isinstance(check, SingleDatasetCheck)  # looks at the test rows only
    if name == "NewCategoryTrainTest" and (names := request["categorical"]):
        whole = read_rows(request, "train", request["train"], whole=True)
        # What is rare, and was not drawn, is not new: of each value the first row is enough.
        before = whole[np.any([~whole[one].duplicated() for one in names], axis=0)]
    if name in ("SimpleModelComparison", "WeakSegmentsPerformance"):
        after = with_rare(request, after)
    if name == "FeatureLabelCorrelation":  # it drops rows without a value, which may tell as much
        gaps = {one: after[one].min() - 1 for one in request["numeric"]}
        after = after.fillna(gaps | dict.fromkeys(request["categorical"], "none"))
    parts = {"": after} if alone else {"_train": before, "_test": after}
    options: dict[str, Any] = {"with_display": False}
    if name == "WeakSegmentsPerformance":  # sought in what alone tells most of the label
        importance = measure(request, "FeatureLabelCorrelation", before, after) + 1e-6
        options["feature_importance"] = importance / importance.sum()
    if request["suite"] == "model":
        options["model_classes"] = [0, 1]
        for which, rows in parts.items():
            scores = rows[request["score"]].to_numpy(float)
            options[f"y_pred{which}"] = (scores >= 0.5).astype(int)
            options[f"y_proba{which}"] = np.column_stack([1 - scores, scores])
    columns = [*request["numeric"], *request["categorical"], *filter(None, [request["label"]])]
    roles = {"cat_features": request["categorical"], "label": request["label"]}
    roles["label_type"] = "binary" if request["label"] else None
    tables = [Dataset(rows[columns], **roles) for rows in parts.values()]
    value = check.run(*tables, **options).value
    found = READERS[name](value) or {"no column of this kind": 0.0}
    return pd.to_numeric(pd.Series(found, dtype=object), errors="coerce").astype(float)


def find(request: Request, name: str, train: pd.DataFrame, test: pd.DataFrame) -> Findings:
    """Return all that a check measures on the test rows, by what is said of it.

    A drift is relative to the largest of a training period from the others: real data has seasons,
    and the library's own fixed thresholds fail on every honest July. Whatever the library raises
    is said beside not-a-number: the other checks still run. A column that training gives few
    values of has None; one that only the test rows lack is no number, and so never a pass.
    """
    drift, times = name.endswith("Drift"), train[request["time"]]
    try:
        found = measure(request, name, train, test)
        if drift and name not in PAST:  # whole or not at all: each file is judged by the same
            masks = ((times >= start) & (times < end) for start, end in request["periods"])
            some = [own for own in masks if min(own.sum(), (~own).sum()) >= request["fewest_rows"]]
            PAST[name] = [measure(request, name, train[~own], train[own]) for own in some]
    except Exception as error:
        return {f"did not run: {type(error).__name__}: {str(error).strip():.200}": math.nan}
    findings, usual = Findings(), 1.0
    for about, value in found.items():
        said = f"`{about}`: {value:.3f}" if about in train else f"{about}: {value:.3f}"
        if name == "FeatureLabelCorrelation" and about in train:
            said += "; 1 is a column that tells the label alone: is it known by then?"
        if drift:
            past = [old[about] for old in PAST[name] if np.isfinite(old[about])]
            known = train[about].count() if about in train else len(train)
            usually = known * min(1, len(test) / len(train))
            if usually < FEWEST_VALUES or (PAST[name] and not past):
                findings[f"`{about}`: too few values to compare"] = None
                continue
            usual = max([SMALLEST_DRIFT, *past])
            said += f", {usual:.3f} between training periods"
        findings[said] = value / usual
    return findings


if __name__ == "__main__":
    asked, answered = map(Path, sys.argv[1:])
    request = json.loads(asked.read_text())
    train, found = read_rows(request, "train", request["train"]), []
    for path in request["tests"]:
        test = read_rows(request, "test", path)
        found.append({name: find(request, name, train, test) for name in request["checks"]})
    answered.write_text(json.dumps(found))
