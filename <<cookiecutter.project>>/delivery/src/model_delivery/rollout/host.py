"""Deploy and roll back on this machine: the old state or the new one, whatever is killed.

The target's state is the truth. A move starts the release beside the one that serves, switches
the proxy in one step, and replaces the state. `_converge` makes the machine what the state says:
it ends every move, undoes every failed one, and mends after a crash.
"""

from contextlib import suppress
from typing import Any

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.launch import Running, processes
from model_delivery.errors import UserError
from model_delivery.files import changed_files
from model_delivery.gates import COMPARED, GATES, limits_hash
from model_delivery.project import Project
from model_delivery.registry import Event, register
from model_delivery.report.verdict import Event as Trigger
from model_delivery.report.verdict import Outcome, allows_promotion
from model_delivery.rollout.target import EnvironmentName, State, Target
from model_delivery.training.snapshot import find_snapshot


def deploy(
    project: Project, environment: EnvironmentName, candidate: Candidate, trigger: Trigger = "local"
) -> Event:
    """Make an environment serve a candidate; if anything forbids it, it serves what it served.

    Returns the move after which it does, now or before.
    """
    target = Target(project, environment)
    with target.lock():
        target.tell()  # gates judge beside the champion that the log knows
        target.proxy.check_port()
        current = target.state().current
        if current is not None and current.digest == candidate.digest:
            return _converge(target)
        if current and (current.type, current.previous) == ("rolled_back", candidate.digest):
            again = "train another candidate, or name its release in `ml rollback`"
            raise UserError(f"{candidate.short} was rolled back at {current.time}: {again}")
        said = admit(project, candidate, trigger, current)
        goal = register(project, candidate, said, trigger)
        return _move(target, goal, type="promoted", verdicts=said, trigger=trigger)


def admit(
    project: Project, candidate: Candidate, trigger: Trigger, current: Event | None
) -> dict[str, Outcome]:
    """Return what the gates said of a candidate; a UserError names what speaks against it."""
    as_of, said = str(candidate.lineage["data"]["as_of"]), dict[str, Outcome]()
    snapshot = find_snapshot(project, candidate.lineage["snapshot"])
    if current is not None and as_of < current.as_of:
        than = f"that of {current.release} ({current.as_of}); run `ml ship --as-of {current.as_of}`"
        raise UserError(f"candidate {candidate.short}: its data ends {as_of}, before {than}")
    for gate in GATES:
        judged = snapshot if gate == "data" else candidate
        verdict = judged.verdict(gate)
        again = f"run `ml check {gate}`"
        if verdict is None:
            raise UserError(f"gate {gate}: no verdict on candidate {candidate.short}; {again}")
        if verdict.subject != judged.folder.name:
            raise UserError(f"gate {gate}: its verdict is on something else; {again}")
        if verdict.limits != limits_hash(project, gate):
            why = "config/gates.yaml or data.yaml changed after its verdict"
            raise UserError(f"gate {gate}: {why}; {again}")
        if gate in COMPARED and verdict.against != (current.digest if current else None):
            raise UserError(f"gate {gate}: judged beside another champion than is served; {again}")
        if not allows_promotion(verdict.outcome, trigger):
            why = verdict.decisive.sentence
            raise UserError(f"gate {gate} says {verdict.outcome}, nothing was deployed: {why}")
        said[gate] = verdict.outcome
    for name in changed_files(candidate.package):
        raise UserError(f"{candidate.package / name}: not as packaged; run `ml package`")
    return said


def rollback(project: Project, environment: EnvironmentName, release: str | None) -> Event:
    """Make an environment serve an installed release again; no registry and no network.

    It is given by name or by the first 12 digits of its digest; None is the one served before
    the last deploy, so that rolling back twice is rolling back once.
    """
    target = Target(project, environment)
    with target.lock():
        moves = target.state().moves
        if not moves:
            raise UserError(f"{environment}: nothing deployed, nothing to roll back")
        target.proxy.check_port()
        before = moves[0].digest if moves[0].type == "rolled_back" else moves[0].previous
        wanted = release or (before or "none")[:12]
        found = [move for move in moves if wanted in (move.release, move.digest[:12])]
        if not found:
            what = f"installed release `{release}`" if release else "earlier release"
            names = ", ".join(move.release for move in moves)
            raise UserError(f"{environment}: no {what}; installed: {names}")
        if found[0] is moves[0]:
            return _converge(target)
        return _move(target, found[0], type="rolled_back", trigger="local")


def stop(project: Project, environment: EnvironmentName) -> None:
    """Stop services and proxy; `deploy` starts them again."""
    target = Target(project, environment)
    with target.lock():
        _halt(target)
        target.tell()


def status(project: Project, environment: EnvironmentName) -> dict[str, Any]:
    """Return what an environment serves and how it is, asked of the machine; takes no lock.

    `state` is `nothing deployed`, `stopped`, `serving`, or `unhealthy` with a `problem`.
    """
    target = Target(project, environment)
    state, services = target.state(), target.services()
    current, health, problem = state.current, "serving", ""
    if current is None:
        return {"environment": environment, "state": "nothing deployed"}
    mine = [service for service in services if service.digest == current.digest]
    if not services and not processes(target.folder):
        health, problem = "stopped", "nothing runs"
    elif not any(service.answers() for service in mine):
        health, problem = "unhealthy", f"the service of {current.release} does not answer"
    elif not any(service.answers(target.url) for service in mine):
        health, problem = "unhealthy", f"the proxy does not lead to {current.release}"
    return {
        "environment": environment,
        "state": health,
        "problem": f"{problem}; run `ml rollback {current.release}`" if problem else "",
        "release": current.release,
        "digest": current.digest,
        "since": f"{current.time}, {current.type} by {current.who}",
        "clients": f"{target.url}/predict",
        "installed": [move.release for move in state.moves],
        "untold": len(state.untold),
    }


def _move(target: Target, goal: Event, **facts: Any) -> Event:
    """Serve another release: start, switch, state; undone if any of it fails."""
    state = target.state()
    known = goal.model_dump(include={"digest", "release", "as_of", "commit", "blob"})
    previous = state.current.digest if state.current else None
    move = Event(**known, **facts, environment=target.name, previous=previous)
    moves = [move, *(old for old in state.moves if old.digest != move.digest)]
    kept = moves[: target.project.delivery.keep_releases]
    try:
        _switch(target, move)
        target.save(State(moves=kept, untold=[*state.untold, move]))
    except BaseException:
        with suppress(UserError):  # the first error is the one to mend; `ml status` says the rest
            if state.current:
                _converge(target)
            else:
                _halt(target)
        raise
    return _converge(target)


def _converge(target: Target) -> Event:
    """Make the machine serve what the state says and nothing else, and tell the log of it."""
    current = target.state().moves[0]
    service = _switch(target, current)
    target.proxy.drain({old.address for old in target.services() if old != service})
    target.clear(kept=service)
    target.tell()
    return current


def _halt(target: Target) -> None:
    target.proxy.stop()
    target.clear()


def _switch(target: Target, move: Event) -> Running:
    """Start a release unless it runs, and lead the clients to it."""
    service = target.serve(move)
    for _ in range(2):  # a proxy that hangs is replaced
        target.proxy.route(move.release, service.address)
        if service.answers(target.url):
            return service
        target.proxy.stop()
    raise UserError(f"port {target.proxy.port} does not lead to {move.release}: who holds it?")
