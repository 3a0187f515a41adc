"""What a replay must reach, as a pure function of its record."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from tests.bench.figures import Figure

CURVES = ("delivered", "frozen", "monthly")
FIRST_JUDGED = "2013-03"
"""In February all three are the same model."""
MONTHS, MINUTES = 11, 12.0
CHANCES = 10
"""Ends of months that a model retrained monthly is retrained at: after December nobody asks."""


def mean(months: Sequence[dict[str, Any]], curve: str, metric: str) -> float:
    """Return a metric's mean over the judged months; not-a-number where one has none."""
    judged = [month for month in months if month["month"] >= FIRST_JUDGED]
    values = [month["curves"][curve][metric] for month in judged]
    known = [float("nan") if value is None else value for value in values]
    return fmean(known) if known else float("nan")


def figures(record: dict[str, Any], minutes: float = MINUTES) -> list[Figure]:
    """Return what a replay reached beside its bars.

    Parameters
    ----------
    record
        `months`, in order, each with `month`, `asked`, `failed`, `logged`, `decision`,
        `retraining` and `curves` (by name `auc` and `calibration`); `minutes` and `gigabytes`.
    minutes
        That it may take.
    """
    months = record["months"]
    auc = {curve: mean(months, curve, "auc") for curve in CURVES}
    tried = [month["month"] for month in months if month["retraining"]]
    alarms = [month["month"] for month in months if month["decision"] in ("stop", "rollback")]
    unlogged = sum(abs(month["asked"] - month["logged"]) for month in months)
    said = "March to December"
    return [
        Figure("months replayed", len(months), least=MONTHS),
        Figure(
            "mean ROC AUC, delivered less frozen",
            auc["delivered"] - auc["frozen"],
            least=0.03,
            note=f"{auc['delivered']:.4f} and {auc['frozen']:.4f}, {said}",
        ),
        Figure(
            "mean ROC AUC, delivered less monthly",
            auc["delivered"] - auc["monthly"],
            least=-0.005,
            note=f"{auc['delivered']:.4f} and {auc['monthly']:.4f}, {said}",
        ),
        Figure(
            f"retrainings, where monthly ones are {CHANCES}",
            len(tried),
            most=CHANCES * 2 // 3,
            note=f"after {', '.join(tried) or 'no month'}; refused ones count",
        ),
        Figure(
            "decisions to stop or roll back",
            len(alarms),
            most=0,
            note=", ".join(alarms) or "the year is as it was: each would be a false alarm",
        ),
        Figure("flights without an answer", sum(month["failed"] for month in months), most=0),
        Figure("flights not in the log once", unlogged, most=0),
        Figure("time", record["minutes"], most=minutes, unit="min"),
        Figure("memory of all processes together", record["gigabytes"], most=3, unit="GB"),
    ]
