"""The verdict: the one form in which every gate answers, and the report on several.

What was not judged is never a pass: a verdict without checks is `inconclusive` too.
"""

import math
from enum import StrEnum
from numbers import Real
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import AfterValidator, Field, computed_field

from model_delivery.protocols import Strict


class Outcome(StrEnum):
    """What a check or a gate found, from the best to the worst."""

    PASS = "pass"  # noqa: S105 - an outcome, no password
    WARN = "warn"
    RETRAIN = "retrain"
    INCONCLUSIVE = "inconclusive"
    STOP = "stop"
    CRASH = "crash"


Trigger = Literal["local", "pull_request", "delivery", "retraining", "monitoring"]  # why it runs
USAGE = 2  # the exit code of bad usage or bad input
_RANK = list(Outcome)
_EXIT = dict(zip(Outcome, (0, 0, 10, 30, 20, 1), strict=True))


def worst(outcomes: list[Outcome]) -> Outcome:
    """Return the worst of `outcomes`; of none, `inconclusive`."""
    return max(outcomes, key=_RANK.index, default=Outcome.INCONCLUSIVE)


def decide(outcome: Outcome, event: Trigger) -> Outcome:
    """Return what a raw outcome means in an event: old data only warns where code is delivered."""
    delivered = event in ("local", "pull_request", "delivery")
    return Outcome.WARN if outcome is Outcome.RETRAIN and delivered else outcome


def exit_code(outcomes: list[Outcome], event: Trigger) -> int:
    """Return the process's exit code: of the worst outcome after the event's mapping."""
    return _EXIT[worst([decide(outcome, event) for outcome in outcomes])]


def allows_promotion(outcome: Outcome, event: Trigger) -> bool:
    """Return whether a candidate with this outcome may go on to the next stage."""
    wanted = event == "retraining" and outcome is Outcome.RETRAIN
    return wanted or exit_code([outcome], event) == 0


def finite(value: Any) -> TypeGuard[float]:
    """Return whether `value` is a number a limit can judge."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


class Check(Strict):
    """One comparison of a value with a limit, said in a sentence."""

    name: str
    outcome: Outcome
    sentence: str
    value: float | str | None = None
    limit: str = ""
    low: float | None = None
    high: float | None = None
    champion: float | None = None

    @property
    def bound(self) -> tuple[str, float] | None:
        """The limit as (`≥` or `≤`, number); None where it is not a bound on a number."""
        sign, _, number = self.limit.partition(" ")
        return (sign, float(number.replace(",", ""))) if sign in ("≥", "≤") else None


def fixed(
    name: str, kept: bool, sentence: str, value: float | str | None = None, limit: str = ""
) -> Check:
    """Return a check of what must hold, else `stop`: nobody sets its limit."""
    outcome = Outcome.PASS if kept else Outcome.STOP
    return Check(name=name, outcome=outcome, sentence=sentence, value=value, limit=limit)


class Table(Strict):
    """Rows a reader may want behind the checks."""

    title: str
    columns: list[str]
    rows: list[list[Any]]


class Chart(Strict):
    """A small line chart."""

    title: str
    x: list[float]
    series: dict[str, list[float | None]]
    x_label: str = ""
    y_label: str = ""


def _ran(checks: list[Check]) -> list[Check]:
    sentence = "no check ran: that is never a pass"
    return checks or [Check(name="run", outcome=Outcome.INCONCLUSIVE, sentence=sentence)]


class Verdict(Strict, extra="ignore"):  # a stored `outcome`: it always follows from the checks
    """What one gate says of one candidate (or, for the gate `data`, of one snapshot).

    `subject` is the digest or the snapshot's name, `limits` the hash of the limits used, and
    `against` the champion's digest if it compared; who asked the gate fills them in.
    """

    gate: str
    subject: str = ""
    limits: str = ""
    against: str | None = None
    checks: Annotated[list[Check], AfterValidator(_ran)] = Field(default=[], validate_default=True)
    tables: list[Table] = []
    charts: list[Chart] = []
    seconds: float = 0
    finished: str = ""

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented order of decorators
    @property
    def outcome(self) -> Outcome:
        return worst([check.outcome for check in self.checks])

    @property
    def decisive(self) -> Check:
        """The first check of the worst outcome, one with a limit before one without."""
        return max(self.checks, key=lambda it: (_RANK.index(it.outcome), it.bound is not None))


class Report(Strict):
    """All that a report may say; `data` is the snapshot's manifest and its name."""

    project: str
    subject: str
    event: Trigger
    verdicts: list[Verdict]
    commit: str = ""
    branch: str = ""
    data: dict[str, Any] = {}
    run: Annotated[str, Field(pattern=r"^(https?://[\w.:/-]+)?$")] = ""  # of a workflow
    lowered: list[str] = []  # limits, by the change that made the candidate
    notes: list[str] = []
    decision: str = ""  # of monitoring: what is to be done, in place of a candidate's fate

    @property
    def outcome(self) -> Outcome:
        return worst([decide(verdict.outcome, self.event) for verdict in self.verdicts])

    @property
    def findings(self) -> list[tuple[Verdict, Check]]:
        """Every check that did not pass, with its verdict, the worst first."""
        found = [(v, c) for v in self.verdicts for c in v.checks if c.outcome is not Outcome.PASS]
        rank = {outcome: _RANK.index(decide(outcome, self.event)) for outcome in Outcome}
        return sorted(found, key=lambda pair: (-rank[pair[1].outcome], pair[1].bound is None))
