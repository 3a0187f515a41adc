"""What the user sees: progress on standard error, results on standard output."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from model_delivery.registry import Event as LogEvent
from model_delivery.report.render import clean, value_of
from model_delivery.report.verdict import Event, Outcome, Verdict, decide, exit_code
from model_delivery.rollout.host import Moved

progress = Console(stderr=True, highlight=False)
results = Console(highlight=False, emoji=False)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Show a spinner while a step runs, and its name and seconds when it is done."""
    started = time.perf_counter()
    with progress.status(f"{title} …"):
        yield
    progress.print(f"[dim]{time.perf_counter() - started:6.1f} s[/]  {title}")


def show(value: Any, as_json: bool, text: str) -> None:
    """Print a result as JSON or as text."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
    else:
        results.print(text, soft_wrap=True, markup=False)


def show_verdicts(verdicts: Sequence[Verdict], event: Event, as_json: bool) -> int:
    """Print verdicts and return the exit code they lead to in this event."""
    code = exit_code([verdict.outcome for verdict in verdicts], event)
    if as_json:
        show([verdict.model_dump(mode="json") for verdict in verdicts], True, "")
        return code
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("gate", "outcome", "check that decided", "value", "limit"):
        table.add_column(column, overflow="fold")
    for verdict in verdicts:
        check, outcome = verdict.decisive, _outcome(verdict.outcome, event)
        value, ends = value_of(check)
        shown = check.name, f"{value} ({ends})" if ends else value, check.limit
        table.add_row(clean(verdict.gate), outcome, *map(clean, shown))
    results.print(table, markup=False)
    for verdict, check in [(v, c) for v in verdicts for c in v.checks]:
        if check.outcome is not Outcome.PASS:
            said = clean(f"{verdict.gate} {check.name}: {check.sentence}")
            results.print(_outcome(check.outcome, event), said, markup=False)
    return code


def say(verdict: Verdict, event: Event) -> None:
    """Print one line on a verdict, while others follow."""
    passed = sum(check.outcome is Outcome.PASS for check in verdict.checks)
    counted = f"{verdict.gate}: {passed} of {len(verdict.checks)} checks pass"
    progress.print("        ", _outcome(verdict.outcome, event), counted)


def _outcome(outcome: Outcome, event: Event) -> Text:
    """Return the outcome after the event's mapping, in its colour."""
    decided = decide(outcome, event)
    raw = f" ({outcome})" if decided is not outcome else ""
    return Text(f"{decided}{raw}", {"pass": "green", "warn": "yellow"}.get(decided, "red"))


def show_move(moved: Moved, as_json: bool) -> None:
    """Print what a deploy or a rollback came to."""
    event = moved.event
    text = f"production serves {event.release} ({event.digest[:12]}) at {moved.url}/predict"
    text += "" if moved.changed else "; it did before"
    text += f"\nthe log will be told later: {moved.untold}" if moved.untold else ""
    more = {"url": moved.url, "changed": moved.changed, "untold": moved.untold}
    show(event.model_dump(mode="json") | more, as_json, text)


def event_line(event: LogEvent) -> str:
    """Return an event of the registry as a line."""
    said = {
        "registered": ", ".join(["registered", *(f"{g} {o}" for g, o in event.verdicts.items())]),
        "promoted": f"promoted to {event.environment}",
        "rolled_back": f"{event.environment} rolled back to it",
    }
    what = f"{event.release}  {event.digest[:12]}  {said[event.type]}"
    return f"{event.time[:19]}  {what}  ({event.who}, {event.trigger})"
