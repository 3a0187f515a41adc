"""What the user sees: progress on standard error, results on standard output."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent
from typing import Any

from rich.console import Console
from rich.text import Text

from model_delivery.report.render import clean, value_of
from model_delivery.report.verdict import Check, Outcome, Trigger, Verdict, decide, exit_code

progress = Console(stderr=True, highlight=False)
results = Console(highlight=False, emoji=False)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Show a spinner while a step runs, and its name and seconds when it is done."""
    started = time.perf_counter()
    with progress.status(f"{title} …"):
        yield
    progress.print(f"[dim]{time.perf_counter() - started:6.1f} s[/]  {title}")


def say(line: str) -> None:
    """Print a line about what is under way."""
    progress.print(f"         {line}", markup=False, soft_wrap=True)


def job(file: str, text: str) -> None:
    """Append to a file of the workflow's job, such as GITHUB_OUTPUT, if this runs in one."""
    with Path(os.environ.get(file) or os.devnull).open("a", encoding="utf-8") as end:
        end.write(f"{text}\n")


def show(value: Any, as_json: bool, text: str) -> None:
    """Print a result as JSON or as text."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
        sys.stdout.flush()
    else:
        results.print(text, soft_wrap=True, markup=False)


def show_status(found: dict[str, Any], as_json: bool) -> int:
    """Print what an environment serves; return the exit code: of `stop`, if it is unhealthy."""
    lines = []
    for name, value in found.items():
        parts = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            parts = [f"{release:28} {said}" for release, said in value.items()]
        lines += [f"{name if part is parts[0] else '':12} {part}" for part in parts if part]
    show(found, as_json, text := "\n".join(lines))
    job("GITHUB_STEP_SUMMARY", indent(text, "    "))
    return exit_code([Outcome.STOP if found["state"] == "unhealthy" else Outcome.PASS], "local")


def show_verdicts(verdicts: Iterable[Verdict], event: Trigger, as_json: bool) -> int:
    """Print each verdict as it comes, with every check that did not pass; return the exit code."""
    shown = list[Verdict]()
    for verdict in verdicts:
        shown.append(verdict)
        if not as_json:
            decisive = verdict.decisive
            _line(verdict.outcome, event, f"{verdict.gate}: {decisive.name} {_found(decisive)}")
            for check in verdict.checks:
                if check.outcome is not Outcome.PASS or verdict.gate == "prove":
                    found = f" [{_found(check)}]" if check.limit else ""
                    said = f"{verdict.gate} {check.name}: {check.sentence}{found}"
                    _line(check.outcome, event, said, "  ")
    if as_json:
        show([verdict.model_dump(mode="json") for verdict in shown], True, "")
    return exit_code([verdict.outcome for verdict in shown], event)


def _line(outcome: Outcome, event: Trigger, said: str, indent: str = "") -> None:
    decided = decide(outcome, event)
    raw = f" ({outcome})" if decided is not outcome else ""
    colour = {"pass": "green", "warn": "yellow"}.get(decided, "red")
    text = Text.assemble(indent, (f"{decided}{raw}", colour), " ", clean(said))
    results.print(text, soft_wrap=True)


def _found(check: Check) -> str:
    value, ends = value_of(check)
    shown = [value, f"({ends})" if ends else "", f"limit {check.limit}" if check.limit else ""]
    return " ".join(filter(None, shown))
