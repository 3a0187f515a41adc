"""Deploy and roll back on this machine: the old state or the new one, whatever is killed.

The pointer `current` is the truth. A move writes its intent, starts the release beside the one
that serves, switches the proxy in one step, and replaces the pointer. `_converge` makes the
machine what the pointer says: it ends every move, undoes every failed one, and mends after a
crash.
"""

from __future__ import annotations

import contextlib
import http.client
import time
from dataclasses import dataclass

from model_delivery.bundle.candidate import Candidate
from model_delivery.errors import UserError
from model_delivery.project import Project
from model_delivery.registry.champion import register, who
from model_delivery.registry.log import Event
from model_delivery.report.verdict import Event as Trigger
from model_delivery.rollout.admission import admit
from model_delivery.rollout.services import Service, serve, services, stop_others
from model_delivery.rollout.target import EnvironmentName, Target

_DRAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Moved:
    """What a deploy or a rollback came to."""

    event: Event
    url: str
    changed: bool
    untold: str | None
    """Why the registry's log could not be told yet, if it could not."""


def deploy(
    project: Project, environment: EnvironmentName, candidate: Candidate, trigger: Trigger = "local"
) -> Moved:
    """Make an environment serve a candidate that its gates let through.

    Raises
    ------
    UserError
        When a gate, the data's age, the port or the service forbids it. The environment then
        serves what it served.
    """
    target = Target(project, environment)
    with target.lock("deploy"):
        target.tell()  # gates judge beside the champion that the log knows
        current = target.current()
        target.proxy.check_port()
        if current is not None and current.digest == candidate.digest:
            return _finish(target, changed=False)
        judgements = admit(project, candidate, trigger, current)
        goal = register(project, candidate, judgements, trigger)
        goal = goal.model_copy(update={"judgements": judgements})
        return _move(target, "promoted", goal, trigger)


def rollback(
    project: Project, environment: EnvironmentName, release: str | None, trigger: Trigger = "local"
) -> Moved:
    """Make an environment serve an installed release again; no registry and no network.

    Parameters
    ----------
    release
        A release's name or the first 12 digits of its digest; None is the one served before the
        last deploy, so that rolling back twice is rolling back once.
    """
    target = Target(project, environment)
    with target.lock("rollback"):
        current = target.current()
        if current is None:
            raise UserError(f"{environment}: nothing deployed, nothing to roll back")
        goal = _goal(target, current, release)
        if goal.digest == current.digest:
            return _finish(target, changed=False)
        return _move(target, "rolled_back", goal, trigger)


def stop(project: Project, environment: EnvironmentName) -> bool:
    """Stop services and proxy and return whether any ran; `deploy` starts them again."""
    target = Target(project, environment)
    with target.lock("deploy --stop"):
        ran = target.proxy.process() is not None or bool(services(target))
        target.proxy.stop()
        stop_others(target)
        target.tell()
        return ran


def owns_port(project: Project, environment: EnvironmentName) -> bool:
    """Return whether it is this environment's own proxy that answers on its port."""
    return Target(project, environment).proxy.answers()


def _move(target: Target, kind: str, goal: Event, trigger: Trigger) -> Moved:
    """Serve another release: intent, start, switch, pointer; undone if any of it fails."""
    current = target.current()
    facts = goal.model_dump(include={"digest", "release", "as_of", "commit", "judgements"})
    facts |= {"type": kind, "environment": target.name, "who": who(), "trigger": trigger}
    move = Event.model_validate(facts | {"previous": current.digest if current else None})
    target.intend(move)
    try:
        service = serve(target, move.digest)
        target.proxy.route(move.release, service.port)
        target.point(move)
    except BaseException as error:
        target.drop_intent()
        try:
            _converge(target)
        except UserError as second:
            error.add_note(f"what was served before could not be restored: {second}")
        raise
    return _finish(target, changed=True)


def _finish(target: Target, changed: bool) -> Moved:
    move = _converge(target)
    assert move is not None  # a move has just ended, or one had been before
    return Moved(move, f"http://127.0.0.1:{target.port}", changed, target.tell())


def _converge(target: Target) -> Event | None:
    """Make the machine serve what the pointer says, and nothing else."""
    current = target.current()
    if current is None:
        target.proxy.stop()
        stop_others(target)
        return None
    service = serve(target, current.digest)
    target.proxy.route(current.release, service.port)
    _drain(target, service)
    stop_others(target, service)
    target.prune()
    return current


def _drain(target: Target, service: Service) -> None:
    """Wait until no other service is answering a request any more, but not for ever."""
    others = {other.port for other in services(target)} - {service.port}
    deadline = time.monotonic() + (_DRAIN_SECONDS if others else 0.0)
    with contextlib.suppress(OSError, http.client.HTTPException):
        while time.monotonic() < deadline:
            time.sleep(0.2)  # first: a request may be between the old routing and its service
            stats = target.proxy.stats()
            if not any(stats.get(port) for port in others):
                return


def _goal(target: Target, current: Event, release: str | None) -> Event:
    """Return the registration of the release to go back to."""
    installed = target.installed()
    names = ", ".join(event.release for event in installed)
    if release is None:
        wanted = current.digest if current.type == "rolled_back" else current.previous
        found = [event for event in installed if event.digest == wanted]
        missing = f"{target.name}: no earlier release is installed (installed: {names})"
    else:
        found = [event for event in installed if release in (event.release, event.digest[:12])]
        missing = f"no installed release `{release}`; choose one of {names}"
    if not found:
        raise UserError(missing)
    return found[0]
