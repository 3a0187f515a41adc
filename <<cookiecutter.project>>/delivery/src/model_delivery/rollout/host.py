"""Deploy and roll back on this machine: the old state or the new one, whatever is killed.

The target's state is the truth. A move starts the release beside the one that serves, lets it
prove itself, switches the proxy in one step, and replaces the state. `_converge` makes the machine
what the state says: it ends every move, undoes every failed one, and mends after a crash.
"""

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from model_delivery.bundle.launch import NotReadyError, Running, end, free_port, identity
from model_delivery.contract.request import draw_rows
from model_delivery.gates import limits_hash
from model_delivery.gates.load import CANDIDATE, judge_targets
from model_delivery.protocols import UserError
from model_delivery.registry import Event, event_log, newest, shared
from model_delivery.releases import accepted, admit
from model_delivery.report.render import told, value_of
from model_delivery.report.verdict import Check, Outcome, Trigger, Verdict, fixed
from model_delivery.rollout import canary
from model_delivery.rollout.target import REHEARSAL, BusyError, Target

log = logging.getLogger(__name__)
GIVEN_UP = "was rolled back after it had served: train another, or name it in `ml rollback`"
BY_HAND = "push or tag; by hand only `ml rollback`, `ml deploy --start` and `--stop`"


def deploy(target: Target, goal: Event, trigger: Trigger = "local") -> Verdict:
    """Make an environment serve what was recorded, if its rollout allows it; return the verdict."""
    with target.lock():
        target.save(target.state(), shared=target.state().shared or shared(target.project))
        target.tell()  # gates judge beside the champion that the log knows
        target.check_ready()
        current, keep = target.state().current, target.project.delivery.keep_releases
        facts = dict[str, Any](verdicts=goal.verdicts, trigger=trigger, because=goal.because)
        if current and current.digest == goal.digest:
            if news := _news(target, current, goal, **facts):
                target.save(target.state().after(news, keep))
            _converge(target)  # before settings count by which it may not come up
            target.keep_settings()
            served = fixed("served", True, f"{target.name} serves it already", current.release)
            verdict = Verdict(gate="rollout", subject=current.digest, checks=[served])
            target.save(target.state(), verdict=verdict)
        else:
            if target.state().shared and not shared(target.project):
                raise UserError(f"workflows deliver to {target.name} on this machine: {BY_HAND}")
            if goal.digest in target.state().left:
                raise UserError(f"{goal.release} {GIVEN_UP}")
            admit(target.project, target.name, current, goal, trigger)
            move = _event(target, goal, type="promoted", **facts)
            with _undone(target):
                target.save(target.state(), trying=move, weight=0.0)  # `ml rollback` ends this one
                champion = _champion(target, current) if current else None
                target.keep_settings()
                if champion or not current:  # stopped, other settings, or a killed supervisor
                    _converge(target, move)
                verdict = _try(target, move, champion)
                if verdict.outcome in canary.GOOD:
                    _settle(target, _event(target, goal, type="promoted", **facts))  # of now
                elif current:
                    facts = {"previous": goal.digest, "reason": told(verdict.decisive)}
                    facts |= {"type": "rolled_back", "trigger": trigger, "because": goal.because}
                    champion = _take_back(target, _event(target, current, **facts))
            if champion or not current or verdict.outcome in canary.GOOD:
                _converge(target)
        target.tell()
        return verdict


def rollback(target: Target, release: str | None) -> Event:
    """Make an environment serve an installed release again; no registry and no network.

    By name, or by six digits of its digest or more. None: what serves while a rollout is under way,
    which is ended first; else what served before the last deploy, so that twice is once. `^` and a
    digest: what came before that, while it serves alone; to the next release it is not done.
    """
    if release == "^":
        raise UserError("^ stands before the digest that serves; `ml status` says it")
    with suppress(BusyError):
        target.leave_rehearsal()
    faulty = release[1:] if release and release.startswith("^") else ""
    if faulty:
        target.check_serves(faulty)
    else:
        end(target.supervisor)  # it can be killed anywhere
    with target.lock(first=True), _undone(target):
        target.check_serves(faulty)
        state = target.state()
        if state.current is None:
            raise UserError(f"{target.name}: nothing deployed, nothing to roll back")
        stays = state.trying or state.current.type == "rolled_back"
        before = state.current.digest if stays else state.current.previous
        if faulty:
            release, before = None, state.way_back.digest if state.way_back else None
        wanted = release or before or "none"
        found = [m for m in state.moves if wanted in (m.release, m.digest[: max(6, len(wanted))])]
        if not found:
            what = f"installed release `{release}`" if release else "earlier release"
            names = ", ".join(move.release for move in state.moves)
            raise UserError(f"{target.name}: no {what}; installed: {names}")
        if state.trying or found[0] is not state.current:
            facts = {"type": "rolled_back", "trigger": "local"}
            if state.trying:
                why = f"by hand, when {state.weight:.0%} of the requests went to it"
                facts |= {"previous": state.trying.digest, "reason": why}
            _settle(target, _event(target, found[0], **facts))
        _converge(target)
        target.tell()
        return target.state().moves[0]


def start(target: Target) -> None:
    """Serve again what is deployed; to a command at work, as a rollout, it is left."""
    with suppress(BusyError):
        target.leave_rehearsal()
        with target.lock():
            _converge(target)


def stop(target: Target) -> None:
    """Stop services and proxy; `start` starts them again."""
    with target.lock():
        target.clear()


@contextmanager
def rehearsal(target: Target) -> Iterator[None]:
    """Let acts happen on a machine that is gone afterwards, as a runner of GitHub's is.

    What the log has as accepted is installed first, drawn rows are the clients, and at the end all
    is stopped. What passes is accepted in turn: the log says so, and that it serves nowhere. The
    log is the truth here: where another delivery was accepted meanwhile, a UserError names it.
    """
    with target.lock(name=REHEARSAL):
        if (state := target.state()).current and not state.rehearsed:
            mend = "rehearse another by `--to`, or where nothing serves"
            raise UserError(f"{target.name} is served here; {mend}")
        keep = target.project.delivery.keep_releases
        known = accepted(target.project, target.name, keep)
        with target.lock():
            target.save(known, untold=[], rehearsed=free_port())
        done = threading.Event()
        if not target.batch:
            threading.Thread(target=_visit, args=(target, done), daemon=True).start()
        try:
            with target.lock():
                _converge(target)
            yield
        finally:
            done.set()
            end(target.supervisor)  # it is at work yet where this was interrupted
            stop(target)
            for path in target.proxy.logs:  # nobody's answers, to be counted by nobody
                path.unlink(missing_ok=True)
        target.tell_now()


def _event(target: Target, goal: Event, **facts: Any) -> Event:
    """Return the move after which the target serves a release, from what it serves now."""
    known = goal.model_dump(include={"digest", "release", "as_of", "commit", "blob"})
    state = target.state()
    known |= {"environment": target.name, "rehearsed": state.rehearsed > 0 and not target.batch}
    known["previous"] = state.current.digest if state.current else None
    return Event(**known | facts)


def _news(target: Target, current: Event, goal: Event, **facts: Any) -> Event | None:
    """Return what the log is to be told of a release that is deployed again, if anything."""
    if shared(target.project):  # on this machine it was deployed by hand, which is no job's affair
        last = newest(event_log(target.project).events(), environment=target.name)
        if last is None or last.digest != goal.digest:
            return _event(target, goal, type="promoted", **facts)
    same = (current.commit, current.blob) == (goal.commit, goal.blob)
    return None if same else _event(target, goal, type="verdict", **facts)


def _champion(target: Target, current: Event) -> canary.Arm | None:
    """Return the release that serves, ready; None where it is gone, and no client is answered."""
    try:
        return target.install(current) if target.batch else target.serve(current)
    except NotReadyError as error:
        if identity(target.url):
            what = f"{current.release}, which serves, does not come up by these settings"
            raise UserError(f"{what}; keep what it needs for this delivery: {error}") from error
        log.warning("%s does not come up, and is compared with nothing: %s", current.release, error)
        return None


def _try(target: Target, move: Event, champion: canary.Arm | None) -> Verdict:
    """Let a release prove itself, stage by stage, until one is no pass; return the verdict."""
    limits, checks = limits_hash(target.project, "rollout"), list[Check]()
    for found in _stages(target, move, champion):
        checks = found + checks  # the newest stage says most
        verdict = Verdict(gate="rollout", subject=move.digest, limits=limits, checks=checks)
        target.save(target.state(), verdict=verdict)
        values = ", ".join(f"{check.name} {value_of(check)[0]}" for check in found)
        log.info("%s: %s", verdict.outcome, values)
        if verdict.outcome not in canary.GOOD:
            break
    return verdict


def _stages(target: Target, move: Event, champion: canary.Arm | None) -> Iterator[list[Check]]:
    """Start a release, ask it, then give it ever more clients; yield what each stage found."""
    current, settings = target.state().current, target.project.delivery
    target.save(target.state(), verdict=None)
    if current and not target.batch:
        log.info(canary.damage(settings, target.settings.canary))
    try:
        challenger = target.install(move) if target.batch else target.serve(move)
    except NotReadyError as error:
        yield [fixed("ready", False, str(error), "no", f"{settings.start_timeout_seconds:g} s")]
        return
    yield canary.shadow(target.project, challenger, champion)
    if isinstance(challenger, Path):
        return
    if target.settings.load:
        checks = judge_targets(target.project, {CANDIDATE: challenger}).checks
        yield [check for check in checks if check.limit or check.outcome is not Outcome.PASS]
    if current is None or not isinstance(champion, Running):
        return
    for step in target.settings.canary:
        log.info("%.0f%% of the requests for %g s", 100 * step.weight, step.seconds)
        target.save(target.state(), weight=step.weight)
        traffic = canary.Traffic(target.proxy.answers, challenger, champion)
        until = time.time() + step.deadline + 5
        places = champion.address, challenger.address
        target.proxy.route(current.release, *places, weight=step.weight, until=until)
        yield canary.watch(settings.rollout, step, traffic, target.url)


def _take_back(target: Target, move: Event) -> canary.Arm | None:
    """Lead all clients to the champion, which may come up again; None where it does not."""
    champion = _champion(target, move)
    _settle(target, move, serves=bool(champion))
    return champion


def _settle(target: Target, move: Event, serves: bool = True) -> None:
    """Lead all clients to a release, or to none, and make that the truth."""
    if move.type == "promoted":
        target.save(target.state(), weight=1.0)  # before they are led there
    _switch(target, move) if serves else target.clear()
    state = target.state().after(move, target.project.delivery.keep_releases)
    target.save(state, trying=None, weight=0.0)


@contextmanager
def _undone(target: Target) -> Iterator[None]:
    """Undo a move that fails in any way."""
    try:
        yield
    except BaseException:
        with suppress(UserError):  # the first error is the one to mend; `ml status` says the rest
            _converge(target)
        raise


def _converge(target: Target, coming: Event | None = None) -> None:
    """Make the machine serve what the state says and nothing else, before what is coming."""
    state = target.state()
    service = _switch(target, state.current) if state.current else None
    if service:
        target.proxy.drain({old.address for old in target.services() if old != service})
    target.clear(kept=service)
    if state.trying != coming:
        target.save(state, trying=None, weight=0.0)


def _switch(target: Target, move: Event) -> Running | None:
    """Start a release unless it runs, and lead the clients to it; for batches, install it."""
    if target.batch:
        target.install(move)
        return None
    target.proxy.check_port()  # before anything is started for it
    service = target.serve(move)
    for _ in range(2):  # a proxy that hangs is replaced
        target.proxy.route(move.release, service.address)
        if service.answers(target.url):
            return service
        target.proxy.stop()
    raise UserError(f"port {target.proxy.port} does not lead to {move.release}: who holds it?")


def _visit(target: Target, done: threading.Event) -> None:
    """Ask for drawn rows at the expected rate."""
    rows = itertools.cycle(draw_rows(target.project.contract, 1_000, seed=2))
    due, pause = time.monotonic(), 1 / target.project.delivery.rollout.requests_per_second
    with httpx.Client(base_url=target.url, timeout=5, trust_env=False) as client:
        while not done.wait(max(0, (due := due + pause) - time.monotonic())):
            with suppress(httpx.HTTPError):  # the proxy's log has it
                client.post("/predict", json={"rows": [next(rows)]})
