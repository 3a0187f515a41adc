"""What the user sees: progress on standard error, results on standard output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from model_delivery.registry.log import Event as LogEvent
from model_delivery.report.terminal import terminal
from model_delivery.report.verdict import Event, Outcome, Verdict, decide, exit_code
from model_delivery.rollout.host import Moved

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
        show([verdict.model_dump(mode="json") for verdict in verdicts], True, "")
    else:
        results.print(terminal(verdicts, event))
    return exit_code([verdict.outcome for verdict in verdicts], event)


def say(verdict: Verdict, event: Event) -> None:
    """Print one line on a verdict, while others follow."""
    outcome = decide(verdict.outcome, event)
    colour = {Outcome.PASS: "green", Outcome.WARN: "yellow"}.get(outcome, "red")
    passed = sum(check.outcome is Outcome.PASS for check in verdict.checks)
    counted = f"{passed} of {len(verdict.checks)} checks pass"
    progress.print(f"          [{colour}]{outcome}[/]  {verdict.gate}: {counted}")


def show_move(moved: Moved, as_json: bool) -> None:
    """Print what a deploy or a rollback came to."""
    event = moved.event
    text = f"production serves {event.release} ({event.digest[:12]}) at {moved.url}/predict"
    text += "" if moved.changed else "; it did before"
    text += f"\nthe log will be told later: {moved.untold}" if moved.untold else ""
    more = {"url": moved.url, "changed": moved.changed, "untold": moved.untold}
    show(event.model_dump(mode="json") | more, as_json, text)


def status_text(found: dict[str, Any]) -> str:
    """Return the state of an environment as lines."""
    lines = [f"production: {found['state']}", *(f"  ! {problem}" for problem in found["problems"])]
    if current := found["current"]:
        proxy = f"process {found['proxy']}" if found["proxy"] else "down"
        lines += [f"  release    {current['release']} ({current['digest'][:12]})"]
        lines += [f"  since      {current['time']}, {current['type']} by {current['who']}"]
        lines += [f"  clients    {found['url']}/predict, proxy {proxy}"]
    for service in found["services"]:
        health = "healthy" if service["healthy"] else "NOT healthy"
        place = f"port {service['port']}, process {service['pid']}"
        lines.append(f"  service    {service['digest'][:12]}, {place}, {health}")
    if found["installed"]:
        lines.append(f"  installed  {', '.join(found['installed'])}")
    if found["state"] == "stopped":
        lines.append("  start it   `ml deploy`, or `ml rollback` with its name")
    if found["unfinished"]:
        lines.append(f"  unfinished {found['unfinished']}: at work, or undone by the next verb")
    if found["untold"]:
        lines.append(f"  untold     {found['untold']} moves that the log was not told yet")
    return "\n".join(lines)


def event_line(event: LogEvent) -> str:
    """Return an event of the registry as a line."""
    said = {
        "registered": "registered",
        "verdict": ", ".join(f"{j.gate}: {j.outcome}" for j in event.judgements),
        "promoted": f"promoted to {event.environment}",
        "rolled_back": f"{event.environment} rolled back to it",
    }
    what = f"{event.release}  {event.digest[:12]}  {said[event.type]}"
    return f"{event.time[:19]}  {what}  ({event.who}, {event.trigger})"
