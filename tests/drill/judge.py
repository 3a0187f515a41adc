"""Whether a drill went as it must: a pure function of what its steps and its clients recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from tests.canary.traffic import failed

ASKED = 0.8
"""Of the requests that were due, those that must have been sent: a dead client sees no failure."""
LAST_SECONDS = 0.5
"""The end of a step, in which only the release that serves may answer."""
MIXED_SECONDS = 2.0
"""Of a canary, in which clients get both releases, at least; its steps are five times as long."""
MINUTES = 6.0
"""That a drill may take where nothing else runs."""


class Decision(NamedTuple):
    """What `ml` decided, and the exit code that it said so with."""

    word: str
    code: int


@dataclass(frozen=True)
class Step:
    """One event of the drill: what had to become of it, and what did; times in seconds of Unix."""

    name: str
    command: str
    expected: Decision
    found: Decision
    words: tuple[str, ...]  # that the output must hold: the reason, not only the decision
    said: str
    start: float
    end: float
    serving: str  # the digest that production serves afterwards
    reason: str = ""  # in a sentence, where there is one
    budget: float = 0.0  # failed requests that it may cost
    clients: bool = True  # whether any ask meanwhile
    canary: bool = False  # whether they must have got both releases for a while


@dataclass(frozen=True)
class Row:
    """A step beside what its clients got."""

    step: Step
    requests: int
    failed: int
    problems: list[str]


def judge(
    plan: Sequence[str], steps: Sequence[Step], answers: list[dict[str, Any]], rate: float
) -> list[Row]:
    """Return a row a step, each with what is wrong in it.

    An answer belongs to the newest step that had begun when it was asked for, so none is left out.
    A planned step that did not run is a problem of the last one that did.
    """
    rows = []
    for step, later in zip(steps, [*(step.start for step in steps[1:]), float("inf")], strict=True):
        own = [answer for answer in answers if step.start <= answer["start"] < later]
        rows.append(Row(step, len(own), len(failed(own)), problems(step, own, rate)))
    if rows and (left := plan[len(steps) :]):
        rows[-1].problems.append(f"did not run: {', '.join(left)}")
    return rows


def problems(step: Step, own: list[dict[str, Any]], rate: float) -> list[str]:
    """Return what is wrong in a step whose clients got these answers."""
    found = []
    if step.found != step.expected:
        found.append(f"decided {told(step.found)}, expected {told(step.expected)}")
    else:
        missed = (words for words in step.words if words not in step.said)
        found += [f"gave another reason: its output does not hold {one!r}" for one in missed]
    if (lost := len(failed(own))) > step.budget:
        found.append(f"{lost} requests failed, at most {step.budget:g} may")
    due = rate * (step.end - step.start)
    if step.clients and len(own) < ASKED * due:
        found.append(f"{len(own)} requests of {due:.0f} were sent: who asks?")
    last = [a.get("digest") for a in own if step.end - LAST_SECONDS <= a["start"] < step.end]
    if step.clients and set(last) != {step.serving}:
        others = sorted({str(digest)[:12] for digest in last} - {step.serving[:12]})
        found.append(f"{', '.join(others) or 'nobody'} answered, not {step.serving[:12]}")
    if step.canary and (seconds := mixed(own)) < MIXED_SECONDS:
        found.append(f"no canary: clients got both releases for {seconds:.1f} s")
    return found


def mixed(own: list[dict[str, Any]]) -> float:
    """Return the seconds in which clients got two releases; switched at once there are none."""
    starts = dict[str, list[float]]()
    for answer in own:
        starts.setdefault(str(answer.get("digest")), []).append(answer["start"])
    pairs = [(starts[one], starts[two]) for one, two in combinations(starts.keys() - {"None"}, 2)]
    return max([0.0, *(min(max(a), max(b)) - max(min(a), min(b)) for a, b in pairs)])


def took(seconds: float, minutes: float) -> str:
    """Return how long a drill took, and what is wrong with that."""
    said = f"{seconds:.0f} s in all"
    return said if seconds <= 60 * minutes else f"WRONG: {said}, more than {minutes:g} minutes"


def told(decision: Decision) -> str:
    """Return a decision as a person would say it."""
    return f"{decision.word.replace('_', ' ')} ({decision.code})"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text for a terminal, and what is wrong below them."""
    cells = [("event", "decision", "requests", "failed", "seconds")]
    for row in rows:
        lost = f"{row.failed}" + (f" of at most {row.step.budget:.0f}" if row.step.budget else "")
        seconds = f"{row.step.end - row.step.start:.0f}"
        cells.append((row.step.name, told(row.step.found), str(row.requests), lost, seconds))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    wrong = [f"WRONG {row.step.name}: {what}" for row in rows for what in row.problems]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *wrong])
