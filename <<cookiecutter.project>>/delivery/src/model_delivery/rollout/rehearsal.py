"""A rollout on a machine that is gone afterwards, as a runner of GitHub's is.

What the log has as accepted is installed first, drawn rows are the clients, and at the end all is
stopped. What passes is accepted in turn: the log says so, and that it serves nowhere.
"""

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import httpx

from model_delivery.contract.request import draw_rows
from model_delivery.protocols import UserError
from model_delivery.registry import Event, event_log, newest
from model_delivery.rollout import host
from model_delivery.rollout.target import State, Target


@contextmanager
def rehearsal(target: Target) -> Iterator[None]:
    """Make a target what the log says, send it drawn rows, and tell the log how it ended.

    The log is the truth here. Where another delivery was accepted meanwhile, this one loses: a
    UserError names that one.
    """
    if (state := target.state()).current and not state.rehearsed:
        raise UserError(f"{target.name} is served here: rehearse where it is not")
    moves = dict[str, Event]()
    for event in reversed(event_log(target.project).events()):
        if event.environment == target.name:
            moves.setdefault(event.digest, event)
    kept = list(moves.values())[: target.project.delivery.keep_releases]
    target.save(State(moves=kept, rehearsed=True))
    host.start(target)
    done = threading.Event()
    clients = threading.Thread(target=_visit, args=(target, done), daemon=True)
    clients.start()
    try:
        yield
    finally:
        done.set()
        clients.join()
        host.stop(target)
    for move in target.state().untold:
        event_log(target.project).append(lambda events, move=move: _next(events, move))  # type: ignore[misc]  # mypy sees no type in a default
    target.save(target.state(), untold=[])


def _next(events: Sequence[Event], move: Event) -> Event:
    """Return a move, if what it starts from is still the newest."""
    last = newest(events, environment=str(move.environment))
    if last and last.digest not in (move.digest, move.previous):
        raise UserError(f"{move.environment}: {last.release} was accepted meanwhile; run it again")
    return move


def _visit(target: Target, done: threading.Event) -> None:
    """Ask for drawn rows at the expected rate."""
    rows = draw_rows(target.project.contract, 1_000, seed=2)
    pause = 1 / target.project.delivery.rollout.requests_per_second
    with httpx.Client(base_url=target.url, timeout=5, trust_env=False) as client:
        for row in itertools.cycle(rows):
            with suppress(httpx.HTTPError):  # the proxy's log has it
                client.post("/predict", json={"rows": [row]})
            if done.wait(pause):
                return
