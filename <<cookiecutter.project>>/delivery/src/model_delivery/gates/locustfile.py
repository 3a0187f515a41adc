"""Locust's side of the gate `load`: users who send rows drawn from the data contract.

By hand, in a project and against any running service of it:

    uv run locust -f delivery/src/model_delivery/gates/locustfile.py --host http://127.0.0.1:3000

The gate runs it as a program: a plan comes in as JSON, one JSON line goes out a turn. Targets
take turns in random order within each round, so that whatever else the machine does falls on
all of them alike. Each turn has new users, and so new connections.
"""

# Locust patches the standard library: nothing may be imported before it.
from locust import FastHttpUser, constant, events, task  # isort: split

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

HEADERS = {"content-type": "application/json"}
BODIES = 500
"""Different requests; a service that remembers answers must not look fast."""
RAMP = 0.1
"""Seconds of each slice that do not count: users connect."""


class Rows(FastHttpUser):
    """Asks for one row after the other, without a pause, and checks the answers."""

    wait_time = constant(0)
    connection_timeout = 2.0
    network_timeout = 5.0
    bodies: ClassVar[list[bytes]] = []
    release: ClassVar[str | None] = None

    @task
    def predict(self) -> None:
        """Send one row."""
        body = random.choice(self.bodies)  # noqa: S311 - not a secret
        with self.client.post("/predict", body, headers=HEADERS, catch_response=True) as answer:
            wrong = mistake(answer.status_code, answer.content, self.release)
            if wrong:
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


@events.test_start.add_listener
def draw_bodies(**_: Any) -> None:
    """Draw request bodies from the data contract of the project in the working directory."""
    from model_delivery.contract.draw import draw_rows
    from model_delivery.project import find_project

    rows = draw_rows(find_project().contract, BODIES, seed=0)
    Rows.bodies = [json.dumps({"rows": [row]}).encode() for row in rows]


class Recorder:
    """What the users of one slice saw."""

    def __init__(self) -> None:
        self.answers: list[tuple[float, float]] = []
        self.failures = Counter[str]()

    def __call__(self, response_time: float, exception: Exception | None, **_: Any) -> None:
        """Take one answer, as Locust's event `request` tells it; milliseconds."""
        if exception is not None:
            self.failures[str(exception)[:120]] += 1
        else:
            self.answers.append((time.perf_counter(), response_time))

    def summary(self, start: float, end: float) -> dict[str, Any]:
        """Return counts, answers a second between two moments, and quantiles in milliseconds.

        An answer that comes after the end counts, but not as throughput.
        """
        waits = sorted(wait for moment, wait in self.answers if moment > start)
        quantiles = {f"p{q}": waits[(len(waits) * q - 1) // 100] for q in (50, 95, 99) if waits}
        inside = sum(start < moment <= end for moment, _ in self.answers)
        requests = len(self.answers) + self.failures.total()
        failures = {"failures": dict(self.failures)}
        return {"requests": requests, "qps": inside / (end - start)} | quantiles | failures


def load_slice(
    environment: Environment, target: dict[str, Any], users: int, seconds: float
) -> dict[str, Any]:
    """Load one target and return what was seen; requests under way at the end are awaited."""
    Rows.host, Rows.release = target["url"], target["release"]
    recorder, runner = Recorder(), environment.runner
    assert runner is not None  # made in main
    environment.events.request.add_listener(recorder)
    runner.start(users, spawn_rate=users)
    gevent.sleep(RAMP)
    start = time.perf_counter()
    gevent.sleep(seconds)
    end = time.perf_counter()
    runner.stop()
    environment.events.request.remove_listener(recorder)
    return recorder.summary(start, end)


def main() -> None:
    """Carry out the plan on standard input, until its rounds are over or this process is ended."""
    plan = json.load(sys.stdin)
    targets, users, seconds = plan["targets"], plan["users"], plan["seconds"]
    Rows.network_timeout = plan["timeout"]
    logging.disable(logging.WARNING)
    draw_bodies()
    environment = Environment(user_classes=[Rows], stop_timeout=2 * Rows.network_timeout)
    environment.create_local_runner()
    gc.collect()
    gc.freeze()
    for target in targets:
        load_slice(environment, target, users, seconds / 3)  # to warm up
    for _ in range(plan["rounds"]):
        for target in random.sample(targets, len(targets)):
            quiet = load_slice(environment, target, 1, seconds / 4)
            busy = load_slice(environment, target, users, seconds)
            line = json.dumps({"target": target["name"], "quiet": quiet, "busy": busy})
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
