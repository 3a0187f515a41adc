"""A report: verdicts with what they are about, and what every rendering says of them alike."""

from __future__ import annotations

import math
import re

from pydantic import Field

from model_delivery.report.text import aligned, clean, moment, number, plural
from model_delivery.report.verdict import Check, Event, Form, Outcome, Verdict, decide, worst

FIRST_DELIVERY = "first delivery: nothing to compare with"
SYMBOL = dict(zip(Outcome, ("✓", "!", "↻", "?", "✕", "✕✕"), strict=True))
_NEXT: dict[Event, tuple[str, str]] = {
    "local": ("This candidate", "deployed"),
    "pull_request": ("This change", "merged"),
    "delivery": ("This candidate", "promoted"),
    "retraining": ("The retrained candidate", "promoted"),
    "monitoring": ("The model in service", "kept"),
}
_LIMIT = re.compile(r"([≥≤]) *([-+]?[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?)")
Finding = tuple[Verdict, Check]


class Data(Form):
    """The rows behind a candidate: days as text, rows by part, excluded rows by rule."""

    as_of: str
    snapshot: str = ""
    spans: dict[str, str] = Field(default_factory=dict)
    rows: dict[str, int] = Field(default_factory=dict)
    excluded: dict[str, int] = Field(default_factory=dict)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What there is to say about the rows, as pairs of name and text."""
        rows = {part: plural(count, "row") for part, count in self.rows.items()}
        parts = list({**self.spans, **rows})
        spans = {part: moment(span) for part, span in self.spans.items()}
        said = [(p, ", ".join(filter(None, [spans.get(p), rows.get(p)]))) for p in parts]
        out = ", ".join(f"{rule} ({count:,})" for rule, count in self.excluded.items())
        return [("known before", self.as_of), *said, ("excluded", out), ("snapshot", self.snapshot)]


class Report(Form):
    """All that a report may say; whoever assembles it knows the rest of the project.

    `subject` is the candidate's digest, `missing` names the gates that should have run and did
    not, `lowered_limits` says in words which limits a change made easier.
    """

    project: str
    subject: str
    event: Event
    verdicts: list[Verdict]
    release: str = ""
    commit: str = ""
    branch: str = ""
    data: Data | None = None
    champion: str | None = None
    notes: list[str] = Field(default_factory=list)
    lowered_limits: list[str] = Field(default_factory=list)
    missing: list[str] = Field(default_factory=list)
    links: dict[str, str] = Field(default_factory=dict)

    @property
    def gates(self) -> list[Verdict]:
        """Every verdict with at least one check: a gate that did not run is one that says so."""
        blank = {"subject": self.subject, "limits": "", "checks": [], "seconds": 0, "finished": ""}
        absent = [Verdict.model_validate({"gate": gate, **blank}) for gate in self.missing]
        return [v if v.checks else _unjudged(v) for v in (*self.verdicts, *absent)]

    @property
    def outcome(self) -> Outcome:
        """The worst outcome of all gates after the event's mapping."""
        return worst([decide(verdict.outcome, self.event) for verdict in self.gates])

    @property
    def findings(self) -> list[Finding]:
        """Every check that did not pass, the worst first, with its verdict."""
        found = [(v, c) for v in self.gates for c in v.checks if c.outcome is not Outcome.PASS]
        return sorted(found, key=lambda pair: -_rank(decide(pair[1].outcome, self.event)))

    @property
    def reasons(self) -> list[Finding]:
        """What made the outcome: each gate that has it, with the check that decided."""
        found = [v for v in self.gates if decide(v.outcome, self.event) is self.outcome]
        return [] if self.outcome is Outcome.PASS else [(v, decisive(v)) for v in found]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the report is about, as pairs of name and text."""
        facts = [("candidate", self.subject), ("release", self.release), ("commit", self.commit)]
        champion = ("champion", FIRST_DELIVERY if self.champion is None else self.champion)
        return [pair for pair in (*facts, ("branch", self.branch), champion) if pair[1]]

    @property
    def headline(self) -> str:
        """What may happen next, in words; holds no text that came from data."""
        what, done = _NEXT[self.event]
        checks = sum(len(verdict.checks) for verdict in self.gates)
        return {
            Outcome.PASS: f"{what} may be {done}: {checks} checks of {len(self.gates)} gates pass",
            Outcome.WARN: f"{what} may be {done}, with {plural(len(self.findings), 'warning')}",
            Outcome.RETRAIN: f"{what} may be {done}: nothing stops it, and its data has moved"
            if self.event == "retraining"
            else f"{what} is due for retraining",
            Outcome.INCONCLUSIVE: f"{what} cannot be {done} yet: not everything could be judged",
            Outcome.STOP: f"{what} must not be {done}",
            Outcome.CRASH: f"{what} cannot be {done}: a gate crashed",
        }[self.outcome]


def _unjudged(verdict: Verdict) -> Verdict:
    found = "ran no check" if verdict.finished else "did not run"
    sentence = f"the gate {found}: that is never a pass"
    check = Check(name="run", outcome=Outcome.INCONCLUSIVE, value=found, sentence=sentence)
    return verdict.model_copy(update={"checks": [check]})


def _rank(outcome: Outcome) -> int:
    return list(Outcome).index(outcome)


def decisive(verdict: Verdict) -> Check:
    """Return the check that decided: of the worst outcome, the one furthest beyond its limit.

    Where all pass it is the one nearest to its limit. A breach without a limit comes first.
    """

    def room(check: Check) -> float:
        bound, value = limit_of(check), check.value
        known = bound is not None and isinstance(value, float) and bound[1] not in (0, value)
        passed = check.outcome is Outcome.PASS
        if not known or bound is None or not isinstance(value, float):
            return math.inf if passed else -math.inf
        return abs(value / bound[1] - 1) * (1 if passed else -1)

    return min((c for c in verdict.checks if c.outcome is verdict.outcome), key=room)


def limit_of(check: Check) -> tuple[str, float] | None:
    """Return a check's limit as (`≥` or `≤`, number); None where it is not a bound on a number."""
    found = _LIMIT.fullmatch(check.limit)
    return (found[1], float(found[2])) if found else None


def limit_text(check: Check) -> str:
    """Return a check's limit as shown, with its thousands marked."""
    bound = limit_of(check)
    return f"{bound[0]} {number(bound[1], 9)}" if bound else clean(check.limit)


def value_of(check: Check) -> tuple[str, str]:
    """Return a check's value, and its interval or an empty text.

    The value gets as many digits as it takes to stand on its own side of the limit: 0.7398 under
    a limit of 0.74 must not be shown as 0.74.
    """
    value, bound = check.value, limit_of(check)
    if not isinstance(value, float):
        return clean(value), ""
    ends = [] if check.low is None or check.high is None else [check.low, check.high]
    for digits in range(3, 16):
        shown = aligned([value, *ends], digits)
        said = float(shown[0].replace(",", ""))
        if bound is None or (said - bound[1]) * (value - bound[1]) > 0 or value == bound[1]:
            break
    return shown[0], " to ".join(shown[1:])


def change_of(check: Check) -> str:
    """Return the difference from the champion, and whether that is better; empty without one."""
    if not isinstance(check.value, float) or check.champion is None:
        return ""
    if math.isclose(check.value, check.champion, rel_tol=1e-9):
        return "same"
    change, bound = check.value - check.champion, limit_of(check)
    text = ("+" if change > 0 else "") + number(change, 2)
    if bound is None or not math.isfinite(change):
        return text
    return f"{text} {'better' if (change > 0) == (bound[0] == '≥') else 'worse'}"
