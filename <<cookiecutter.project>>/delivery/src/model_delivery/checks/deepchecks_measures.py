"""What each check of Deepchecks says, as numbers: imported by the program beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from deepchecks.tabular import checks

if TYPE_CHECKING:
    from deepchecks_suites import Tables

Finding = dict[str, Any]
Values = dict[str | None, tuple[Any, str]]
"""A number and a sentence for each column; the key is None for the table as a whole."""


@dataclass(frozen=True)
class Measure:
    """How a check of Deepchecks becomes findings.

    Attributes
    ----------
    make
        Makes the check.
    read
        Turns what the check returns into values.
    pair
        Whether the check compares two tables; else it looks at one.
    spread
        Whether each training period is measured against the other rows too, for reference.
    either
        Whether the training rows are measured too, and the larger value counts.
    says
        What the number is, in words.
    """

    make: Callable[[], Any]
    read: Callable[[Any], Values]
    pair: bool = False
    spread: bool = False
    either: bool = False
    says: str = ""

    def findings(self, tables: Tables) -> list[Finding]:
        """Measure."""
        now = self._values(tables, tables.train, tables.test)
        if self.either:
            for name, (value, _) in self._values(tables, tables.train, tables.train).items():
                now[name] = max((value, "in training"), now[name], key=lambda one: one[0])
        past = [self._values(tables, *parts) for parts in tables.periods()] if self.spread else None
        return [
            {
                "column": name,
                "value": number(value),
                "sentence": f"{self.says} {sentence}".strip(),
                "reference": past and [number(old[name][0]) for old in past],
            }
            for name, (value, sentence) in now.items()
        ]

    def _values(self, tables: Tables, before: pd.DataFrame, after: pd.DataFrame) -> Values:
        parts = [before, after] if self.pair else [after]
        values = self.read(tables.run(self.make(), *parts))
        return values or {None: (0.0, "there is no column of this kind")}


def number(value: Any) -> float | None:
    """Return what JSON can hold: Deepchecks also says NaN, and "not_enough_samples"."""
    good = isinstance(value, (bool, int, float, np.number)) and np.isfinite(value)
    return float(value) if good else None


def in_test(values: dict[str | None, Any]) -> Values:
    """Return plain values with a sentence that says where."""
    return {name: (value, "in test") for name, value in values.items()}


def rarer_type(value: Any) -> Values:
    """Return the share of the rarer of numbers and words in each column."""
    return in_test(
        {n: min(mix["numbers"], mix["strings"]) if mix else 0.0 for n, mix in value.items()}
    )


def new_spellings(value: Any) -> Values:
    """Return the share of test rows that spell a known word in a new way."""
    values: Values = {}
    for name, forms in sorted(value.items()):
        words = [str(word) for form in forms.values() for word in form["variants_only_in_test"]]
        share = sum(form["percent_variants_only_in_test"] for form in forms.values())
        values[name] = (share, f"new spellings: {', '.join(words[:5]) or 'none'}")
    return values


def new_categories(value: Any) -> Values:
    """Return the share of test rows with a category that training does not have."""
    words = {n: ", ".join(map(str, found[:5])) for n, found in value["New categories"].items()}
    shares = value["Ratio of New Categories"]
    return {name: (shares[name], f"new categories: {words[name] or 'none'}") for name in words}


def gain(value: Any) -> Values:
    """Return the share of the way from a small tree's ROC AUC to 1 that the model goes."""
    own, tree = (value["scores"]["roc_auc"][kind] for kind in ("Origin", "Simple"))
    return {
        None: ((own - tree) / (1 - tree), f"ROC AUC {own:.3f}, of a tree of depth 3 {tree:.3f}")
    }


def relative_loss(value: Any) -> Values:
    """Return the share of ROC AUC that is lost from training to test."""
    train, test = value.set_index("Dataset")["Value"][["Train", "Test"]]
    return {None: (1 - test / train, f"ROC AUC {train:.3f} in training, {test:.3f} in test")}


def weakest_segment(value: Any) -> Values:
    """Return the ROC AUC of the weakest pair of ranges, relative to that of all test rows."""
    worst = value["weak_segments_list"].sort_values("roc_auc Score").iloc[0]
    score, average = worst["roc_auc Score"], value["avg_score"]
    pairs = [(worst[name], worst[f"{name} Range"]) for name in ("Feature1", "Feature2")]
    where = sorted(f"`{name}` is {_span(span)}" for name, span in pairs if name)
    return {
        None: (
            score / average,
            f"ROC AUC {score:.3f} where {' and '.join(where)}, {average:.3f} in all",
        )
    }


def _span(span: Any) -> str:
    """Return an interval or a list of categories in few characters."""
    ends = [f"{end:.4g}" for end in span] if isinstance(span, tuple) else [", ".join(span)]
    return f"{' to '.join(ends):.80}"


MEASURES: dict[str, dict[str, Measure]] = {
    "data": {
        "PercentOfNulls": Measure(
            checks.PercentOfNulls, lambda v: in_test(v.iloc[:, 0].to_dict()), spread=True
        ),
        "MixedDataTypes": Measure(checks.MixedDataTypes, rarer_type, spread=True),
        "MixedNulls": Measure(
            checks.MixedNulls,
            lambda v: in_test({name: len(kinds) for name, kinds in v["columns"].items()}),
            either=True,
            says="spellings of no value",
        ),
        "IsSingleValue": Measure(
            checks.IsSingleValue,
            lambda v: in_test({name: float(kinds == 1) for name, kinds in v.items()}),
            either=True,
            says="1 if there is a single value",
        ),
        "StringMismatchComparison": Measure(
            checks.StringMismatchComparison, new_spellings, pair=True
        ),
        "NewCategoryTrainTest": Measure(checks.NewCategoryTrainTest, new_categories, pair=True),
        "DateTrainTestLeakageOverlap": Measure(
            checks.DateTrainTestLeakageOverlap,
            lambda v: {None: (v, "share of test rows before the last training row")},
            pair=True,
        ),
        "FeatureLabelCorrelation": Measure(
            checks.FeatureLabelCorrelation,
            in_test,
            either=True,
            says="power to predict the label alone",
        ),
        "FeatureDrift": Measure(
            checks.FeatureDrift,
            lambda v: in_test({name: one["Drift score"] for name, one in v.items()}),
            pair=True,
            spread=True,
        ),
        "LabelDrift": Measure(
            checks.LabelDrift, lambda v: in_test({None: v["Drift score"]}), pair=True, spread=True
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
        "RocReport": Measure(checks.RocReport, lambda v: {None: (v[1], "ROC AUC in test")}),
        "CalibrationScore": Measure(
            checks.CalibrationScore, lambda v: {None: (v[0], "Brier score in test")}
        ),
        "WeakSegmentsPerformance": Measure(
            # The search grows with the square of the features: all of them take a minute.
            lambda: checks.WeakSegmentsPerformance(
                n_top_features=4, alternative_scorer={"roc_auc": "roc_auc"}
            ),
            weakest_segment,
        ),
        "PredictionDrift": Measure(
            checks.PredictionDrift,
            lambda v: in_test({None: v["Drift score"]}),
            pair=True,
            spread=True,
        ),
    },
}
