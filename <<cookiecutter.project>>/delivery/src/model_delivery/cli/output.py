"""What the user sees: progress on standard error, results on standard output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from model_delivery.report.terminal import terminal
from model_delivery.report.verdict import Event, Verdict, exit_code

progress = Console(stderr=True, highlight=False)
results = Console(highlight=False)


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
    if as_json:
        dumped = [verdict.model_dump(mode="json") for verdict in verdicts]
        sys.stdout.write(json.dumps(dumped, indent=2) + "\n")
    else:
        results.print(terminal(verdicts, event))
    return exit_code([verdict.outcome for verdict in verdicts], event)
