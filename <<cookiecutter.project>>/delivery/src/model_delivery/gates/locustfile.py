"""Locust's side of the gate `load`: users who send rows drawn from the data contract.

The gate runs this as a program: a plan comes in as JSON, its rounds go out. Targets take turns in
random order within each round, so that whatever else the machine does falls on all of them
alike. Each turn has new users, and so new connections.
"""

# Locust patches the standard library: nothing may be imported before it.
from locust import FastHttpUser, constant, task  # isort: split

import gc
import json
import logging
import random
import sys
import time
from collections import Counter
from typing import Any, ClassVar

import gevent
from locust.env import Environment

from model_delivery.contract.request import draw_rows
from model_delivery.project import find_project
from model_delivery.watch.log import SHADOW

BODIES = 500  # different requests; a service that remembers answers must not look fast
RAMP = 0.1  # seconds of each turn that do not count: users connect


class Rows(FastHttpUser):
    """Asks for one row after the other, without a pause, and checks the answers."""

    wait_time = constant(0)
    connection_timeout = 2.0
    bodies: ClassVar[list[bytes]] = []
    release: ClassVar[str | None] = None

    @task
    def predict(self) -> None:
        """Send one row."""
        body = random.choice(self.bodies)  # noqa: S311 - not a secret
        kind = {"content-type": "application/json", SHADOW: "1"}
        with self.client.post("/predict", body, headers=kind, catch_response=True) as answer:
            if wrong := mistake(answer.status_code, answer.content, self.release):
                answer.failure(wrong)


def mistake(status: int, content: bytes | None, release: str | None) -> str | None:
    """Return what is wrong with an answer to one row, or None; no release accepts any."""
    if status != 200:
        return f"HTTP {status}" if status else "no answer: refused, closed or timed out"
    try:
        answer = json.loads(content or b"")
        found, scores = answer["release"], answer["probability"]
        valid = len(answer) == 2 and len(scores) == 1 and 0 <= scores[0] <= 1
    except (ValueError, KeyError, TypeError):
        return "not {release, probability}"
    if release not in (None, found):
        return "answered by another release"
    return None if valid else "not one probability from 0 to 1"


def turn(
    environment: Environment, target: dict[str, Any], users: int, seconds: float
) -> dict[str, Any]:
    """Load one target; return counts, answers a second, and quantiles in milliseconds.

    Requests under way at the end are awaited and counted, but not as throughput. Locust's own
    statistics round milliseconds.
    """
    answers, failures = list[tuple[float, float]](), Counter[str]()

    def take(response_time: float, exception: Exception | None, **_: Any) -> None:
        if exception is not None:
            failures[str(exception)[:120]] += 1
        else:
            answers.append((time.perf_counter(), response_time))

    Rows.host, Rows.release, runner = target["url"], target["release"], environment.runner
    environment.events.request.add_listener(take)
    runner.start(users, spawn_rate=users)
    gevent.sleep(RAMP)
    start = time.perf_counter()
    gevent.sleep(seconds)
    end = time.perf_counter()
    runner.stop()
    environment.events.request.remove_listener(take)
    waits = sorted(wait for moment, wait in answers if moment > start)
    found = {f"p{q}": waits[(len(waits) * q - 1) // 100] for q in (50, 95, 99) if waits}
    inside = sum(start < moment <= end for moment, _ in answers)
    counts = {"requests": len(answers) + failures.total(), "failures": dict(failures)}
    return {"qps": inside / (end - start)} | counts | found


def main() -> None:
    """Carry out the plan on standard input, and print its rounds: by target, what a turn found.

    Rows are drawn from the data contract of the project in the working directory.
    """
    plan = json.load(sys.stdin)
    targets, users, seconds = plan["targets"], plan["users"], plan["seconds"]
    Rows.network_timeout = plan["timeout"]
    logging.disable(logging.WARNING)
    rows = draw_rows(find_project().contract, BODIES, seed=0)
    Rows.bodies = [json.dumps({"rows": [row]}).encode() for row in rows]
    environment = Environment(user_classes=[Rows], stop_timeout=2 * Rows.network_timeout)
    environment.create_local_runner()
    gc.collect()
    gc.freeze()
    for target in targets:
        turn(environment, target, users, seconds / 3)  # to warm up
    rounds = []
    for _ in range(plan["rounds"]):
        order = random.sample(targets, len(targets))
        rounds.append({one["name"]: turn(environment, one, users, seconds) for one in order})
    sys.stdout.write(json.dumps(rounds))


if __name__ == "__main__":
    main()
