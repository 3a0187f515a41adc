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

    uv run --script deepchecks_suites.py REQUEST.json ANSWER.json [--html PAGE.html]

Deepchecks 0.19 needs older numpy and scikit-learn than the project and is AGPL-3.0: it lives in
the environment that the block above describes, and talks in files. REQUEST names a suite, two
parquet files, columns and checks; ANSWER holds a finding for each check and column. The gate
that asked compares the values with `config/gates.yaml`.

Exit code 2 with one sentence when the request cannot be met; a check that raises is a finding.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before the import, which otherwise calls home.
os.environ["DISABLE_DEEPCHECKS_ANONYMOUS_TELEMETRY"] = "True"
os.environ["DISABLE_LATEST_VERSION_CHECK"] = "True"
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from deepchecks.core.suite import SuiteResult  # noqa: E402
from deepchecks.tabular import Dataset, checks  # noqa: E402
from deepchecks_measures import MEASURES, Finding  # noqa: E402

ROWS = {"train": 20_000, "test": 8_000}
"""Sampled rows; more change the values little and cost time in proportion."""
FEWEST_ROWS = 100
"""A period with fewer sampled rows says nothing of the spread."""
FIELDS = ("suite", "task", "train", "test", "label", "time", "categorical", "numeric", "periods")
VERSIONS = ("deepchecks", "numpy", "pandas", "scikit-learn")


class RequestError(Exception):
    """The request, or a file it names, cannot be used."""


@dataclass
class Tables:
    """Sampled rows of both files, and how a check runs on them."""

    request: dict[str, Any]
    train: pd.DataFrame
    test: pd.DataFrame
    display: bool = False
    shown: list[Any] = field(default_factory=list)

    def run(self, check: Any, *parts: pd.DataFrame) -> Any:
        """Run a check and return its value; keep its pictures when the page will show them."""
        display = self.display and all(part is self.train or part is self.test for part in parts)
        options: dict[str, Any] = {"with_display": display}
        if self.request["suite"] == "model":
            options |= {"model_classes": [0, 1], "feature_importance": self.importance}
            names = ("_train", "_test") if len(parts) == 2 else ("",)
            for part, which in zip(parts, names, strict=True):
                scores = part[self.request["score"]].to_numpy(float)
                options[f"y_pred{which}"] = (scores >= 0.5).astype(int)
                options[f"y_proba{which}"] = np.column_stack([1 - scores, scores])
        result = check.run(*(self._dataset(part) for part in parts), **options)
        self.shown += [result] if display else []
        return result.value

    @cached_property
    def importance(self) -> pd.Series:
        """What each column alone tells of the label, as shares of 1; weak segments need it."""
        check = checks.FeatureLabelCorrelation()
        power = pd.Series(check.run(self._dataset(self.test), with_display=False).value) + 1e-6
        return power / power.sum()

    def periods(self) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
        """Return, for each training period with enough rows, the other rows and its own."""
        times = self.train[self.request["time"]]
        spans = [
            (pd.Timestamp(start), pd.Timestamp(end)) for _, start, end in self.request["periods"]
        ]
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


def read_request(path: Path) -> dict[str, Any]:
    """Read the request, or raise RequestError on an unknown task, suite or check."""
    try:
        request: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: cannot be read ({error})") from error
    if missing := [name for name in (*FIELDS, "checks") if name not in request]:
        raise RequestError(f"{path}: lacks {', '.join(missing)}")
    if request["task"] != "binary" or request["suite"] not in MEASURES:
        raise RequestError(f"no suite `{request['suite']}` for the task `{request['task']}`")
    known = MEASURES[request["suite"]]
    if unknown := [name for name in request["checks"] if name not in known]:
        raise RequestError(
            f"no check `{unknown[0]}` of {request['suite']}; there are {', '.join(known)}"
        )
    return {"seed": 0, "score": "score"} | request


def columns_of(request: dict[str, Any]) -> list[str]:
    """Return the names of features, label and time."""
    return [*request["numeric"], *request["categorical"], request["label"], request["time"]]


def read_rows(request: dict[str, Any], part: str) -> pd.DataFrame:
    """Return sampled rows of a file in their order, with the label as 0 or 1."""
    wanted = columns_of(request) + ([request["score"]] if request["suite"] == "model" else [])
    try:
        rows = pd.read_parquet(request[part], columns=wanted)
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"{request[part]}: cannot be read ({str(error).splitlines()[0]})"
        ) from error
    if rows.empty:
        raise RequestError(f"{request[part]}: has no rows")
    rows = rows.sample(min(ROWS[part], len(rows)), random_state=request["seed"]).sort_index()
    return rows.astype({request["label"]: int} | dict.fromkeys(request["categorical"], object))


def measured(name: str, tables: Tables) -> list[Finding]:
    """Run one check; what it raises becomes a finding that says so."""
    try:
        found = MEASURES[tables.request["suite"]][name].findings(tables)
    except Exception as error:  # whatever the library raises, the other checks still run
        said = (str(error).strip().splitlines() or ["no message"])[0]
        failed = {"column": None, "value": None, "reference": None}
        return [
            {"check": name, "ran": False, "sentence": f"{type(error).__name__}: {said}"} | failed
        ]
    return [{"check": name, "ran": True} | one for one in found]


def main(arguments: list[str]) -> int:
    """Answer a request and return the exit code."""
    parser = argparse.ArgumentParser(prog="deepchecks_suites", description=__doc__.splitlines()[0])
    parser.add_argument("request", type=Path)
    parser.add_argument("answer", type=Path)
    parser.add_argument("--html", type=Path, help="also write Deepchecks' own page, 5 to 8 MB")
    given = parser.parse_args(arguments)
    try:
        request = read_request(given.request)
        tables = Tables(
            request, *(read_rows(request, part) for part in ROWS), given.html is not None
        )
    except RequestError as error:
        sys.stderr.write(f"deepchecks_suites: {error}\n")
        return 2
    answer: dict[str, Any] = {
        "findings": [],
        "versions": {n: version(n) for n in VERSIONS},
        "seconds": {},
    }
    for name in request["checks"]:
        started = time.perf_counter()
        answer["findings"] += measured(name, tables)
        answer["seconds"][name] = round(time.perf_counter() - started, 2)
    temporary = given.answer.with_suffix(".partial")
    temporary.write_text(json.dumps(answer, indent=1, allow_nan=False))
    temporary.replace(given.answer)
    if given.html:
        SuiteResult(request["suite"], tables.shown).save_as_html(str(given.html), as_widget=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
