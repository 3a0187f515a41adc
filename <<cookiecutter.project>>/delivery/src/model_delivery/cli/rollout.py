"""The verbs that deliver: deploy, rollback, status, history."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from model_delivery.bundle.candidate import current_candidate
from model_delivery.cli.output import show, step
from model_delivery.project import Project, find_project
from model_delivery.registry.champion import open_registry
from model_delivery.registry.log import Event as LogEvent
from model_delivery.report.verdict import Event
from model_delivery.rollout import host
from model_delivery.rollout.status import status as state_of
from model_delivery.rollout.target import EnvironmentName

ENVIRONMENT: EnvironmentName = "production"
UNHEALTHY = 20

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def deploy_stage(project: Project, event: Event) -> host.Moved:
    """Deploy the current candidate, with a spinner."""
    candidate = current_candidate(project)
    with step(f"deploy: {candidate.short} beside the present release, then switch"):
        return host.deploy(project, ENVIRONMENT, candidate, event)


def history_of(project: Project) -> list[LogEvent]:
    """Return every event of the registry, the oldest first."""
    return open_registry(project).log.events()


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    for verb in (deploy, rollback, status, history):
        app.command()(verb)


def deploy(
    stop: Annotated[
        bool, typer.Option("--stop", help="Stop service and proxy; what is deployed stays so.")
    ] = False,
    event: Annotated[str, typer.Option(help="Why this runs; see `ml ship`.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Make production serve the current candidate, if its gates allow it.

    The release is checked, started beside the present one and switched to in one step; the one
    before stays installed. Safe to interrupt and to call again, also after --stop.
    """
    if stop:
        ran = host.stop(_project(), ENVIRONMENT)
        show({"stopped": ran}, as_json, "stopped" if ran else "nothing was running")
        return
    from model_delivery.cli.main import run_of  # which imports this module

    run = run_of(event)
    _show_move(deploy_stage(run.project, run.event), as_json)


def rollback(
    release: Annotated[
        str | None,
        typer.Argument(
            help="An installed release; see `ml status`.", show_default="the one before"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make production serve an installed release again: seconds, no registry, no network."""
    project = _project()
    with step("rollback"):
        moved = host.rollback(project, ENVIRONMENT, release)
    _show_move(moved, as_json)


def status(as_json: JsonOption = False) -> None:
    """Say what production serves, whether it answers, and what else is installed."""
    found = state_of(_project(), ENVIRONMENT)
    show(found, as_json, _status_text(found))
    raise typer.Exit(UNHEALTHY if found["state"] == "unhealthy" else 0)


def history(
    limit: Annotated[int, typer.Option(min=1, help="How many events, the newest last.")] = 30,
    as_json: JsonOption = False,
) -> None:
    """Say what was registered, judged, promoted and rolled back, when and by whom."""
    events = history_of(_project())[-limit:]
    lines = [_event_line(event) for event in events]
    dumped = [event.model_dump(mode="json") for event in events]
    show(dumped, as_json, "\n".join(lines) or "nothing registered yet")


def _project() -> Project:
    project = find_project()
    os.chdir(project.root)
    return project


def _show_move(moved: host.Moved, as_json: bool) -> None:
    event = moved.event
    text = f"production serves {event.release} ({event.digest[:12]}) at {moved.url}/predict"
    text += "" if moved.changed else "; it did before"
    text += f"\nthe log will be told later: {moved.untold}" if moved.untold else ""
    more = {"url": moved.url, "changed": moved.changed, "untold": moved.untold}
    show(event.model_dump(mode="json") | more, as_json, text)


def _status_text(found: dict[str, Any]) -> str:
    lines = [f"production: {found['state']}", *(f"  ! {problem}" for problem in found["problems"])]
    if found["current"]:
        current, proxy = found["current"], found["proxy"]
        lines += [f"  release    {current['release']} ({current['digest'][:12]})"]
        lines += [f"  since      {current['time']}, {current['type']} by {current['who']}"]
        lines += [
            f"  clients    {found['url']}/predict, proxy {f'process {proxy}' if proxy else 'down'}"
        ]
    for service in found["services"]:
        health = "healthy" if service["healthy"] else "NOT healthy"
        place = f"port {service['port']}, process {service['pid']}"
        lines.append(f"  service    {service['digest'][:12]}, {place}, {health}")
    if found["installed"]:
        lines.append(f"  installed  {', '.join(found['installed'])}")
    if found["unfinished"]:
        lines.append(f"  unfinished {found['unfinished']}: at work, or undone by the next verb")
    if found["untold"]:
        lines.append(f"  untold     {found['untold']} moves that the log was not told yet")
    return "\n".join(lines)


def _event_line(event: LogEvent) -> str:
    said = {
        "registered": "registered",
        "verdict": ", ".join(f"{j.gate}: {j.outcome}" for j in event.judgements),
        "promoted": f"promoted to {event.environment}",
        "rolled_back": f"{event.environment} rolled back to it",
    }
    what = f"{event.release}  {event.digest[:12]}  {said[event.type]}"
    return f"{event.time[:19]}  {what}  ({event.who}, {event.trigger})"
