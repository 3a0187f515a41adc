"""The verdict: the one form in which every gate answers.

A check that could not be judged is never a pass: not-a-number, an empty result and a check that
did not run are `inconclusive`, and a verdict without checks is too.
"""

from __future__ import annotations

import json
import math
from enum import StrEnum
from typing import Any, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, computed_field


class Outcome(StrEnum):
    """What a check or a gate found, from the best to the worst."""

    PASS = "pass"  # noqa: S105 - an outcome, no password
    WARN = "warn"
    RETRAIN = "retrain"
    INCONCLUSIVE = "inconclusive"
    STOP = "stop"
    CRASH = "crash"


Event = Literal["local", "pull_request", "delivery", "retraining", "monitoring"]
EVENTS: tuple[Event, ...] = ("local", "pull_request", "delivery", "retraining", "monitoring")
USAGE = 2
"""The exit code of bad usage or bad input; worse than `stop`, better than a crash."""
_SEVERITY = {outcome: rank for rank, outcome in enumerate(Outcome)}
_EXIT = {
    Outcome.PASS: 0,
    Outcome.WARN: 0,
    Outcome.RETRAIN: 10,
    Outcome.STOP: 20,
    Outcome.INCONCLUSIVE: 30,
    Outcome.CRASH: 1,
}


def worst(outcomes: list[Outcome]) -> Outcome:
    """Return the worst of `outcomes`; of none, `inconclusive`."""
    return max(outcomes, key=_SEVERITY.__getitem__, default=Outcome.INCONCLUSIVE)


def decide(outcome: Outcome, event: Event) -> Outcome:
    """Return what a raw outcome means in an event.

    Old data is a reason to train again where retraining is asked; where code is delivered
    it is a warning in the report.
    """
    if outcome is Outcome.RETRAIN and event in ("local", "pull_request", "delivery"):
        return Outcome.WARN
    return outcome


def exit_code(outcomes: list[Outcome], event: Event) -> int:
    """Return the process's exit code: of the worst outcome after the event's mapping."""
    return _EXIT[worst([decide(outcome, event) for outcome in outcomes])]


def allows_promotion(outcome: Outcome, event: Event) -> bool:
    """Return whether a candidate with this outcome may go on to the next stage."""
    return decide(outcome, event) in (Outcome.PASS, Outcome.WARN) or (
        event == "retraining" and outcome is Outcome.RETRAIN
    )


class Form(BaseModel):
    """A strict, immutable record."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Check(Form):
    """One comparison of a value with a limit, said in a sentence."""

    name: str
    outcome: Outcome
    sentence: str
    value: float | str | None = None
    limit: str = ""
    low: float | None = None
    high: float | None = None
    champion: float | None = None


class Table(Form):
    """Rows a reader may want behind the checks."""

    title: str
    columns: list[str]
    rows: list[list[Any]]


class Chart(Form):
    """A small line or bar chart."""

    title: str
    kind: Literal["line", "bar"]
    x: list[float | str]
    series: dict[str, list[float | None]]
    x_label: str = ""
    y_label: str = ""


class Verdict(Form):
    """What one gate says of one candidate (or, for the gate `data`, of one snapshot)."""

    gate: str
    subject: str
    limits: str
    against: str | None = None
    """The champion's digest, where the gate compared with one."""
    checks: list[Check]
    tables: list[Table] = Field(default_factory=list)
    charts: list[Chart] = Field(default_factory=list)
    seconds: float
    finished: str

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented order of decorators
    @property
    def outcome(self) -> Outcome:
        """The worst outcome of the checks."""
        return worst([check.outcome for check in self.checks])

    @classmethod
    def read(cls, text: str) -> Verdict:
        """Parse a verdict's JSON; the stored outcome is recomputed from the checks."""
        return cls.model_validate({k: v for k, v in json.loads(text).items() if k != "outcome"})


def finite(value: float | None) -> TypeGuard[float]:
    """Return whether `value` is a number a limit can judge."""
    return value is not None and math.isfinite(value)
