"""What the user sees: progress on standard error, results on standard output."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from model_delivery.report.render import clean, value_of
from model_delivery.report.verdict import Check, Event, Outcome, Verdict, decide, exit_code

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
    """Print verdicts with every check that did not pass; return the exit code they lead to."""
    if as_json:
        show([verdict.model_dump(mode="json") for verdict in verdicts], True, "")
    for verdict in [] if as_json else verdicts:
        say(verdict, event, results)
        for check in verdict.checks:
            if check.outcome is not Outcome.PASS:
                found = f" [{_found(check)}]" if check.limit else ""
                said = clean(f"{verdict.gate} {check.name}: {check.sentence}{found}")
                results.print(" ", _outcome(check.outcome, event), said, markup=False)
    return exit_code([verdict.outcome for verdict in verdicts], event)


def say(verdict: Verdict, event: Event, console: Console = progress) -> None:
    """Print a verdict's outcome and the check that decided it, as one line."""
    said = clean(f"{verdict.gate}: {verdict.decisive.name} {_found(verdict.decisive)}")
    console.print(_outcome(verdict.outcome, event), said, markup=False)


def _found(check: Check) -> str:
    value, ends = value_of(check)
    shown = [value, f"({ends})" if ends else "", f"limit {check.limit}" if check.limit else ""]
    return " ".join(filter(None, shown))


def _outcome(outcome: Outcome, event: Event) -> Text:
    decided = decide(outcome, event)
    raw = f" ({outcome})" if decided is not outcome else ""
    return Text(f"{decided}{raw}", {"pass": "green", "warn": "yellow"}.get(decided, "red"))
