"""Locust in a process of its own: a plan comes in, one JSON line goes out a slice of load.

    python -m model_delivery.gates.generator < plan.json

Targets take turns in random order within each round, so that whatever else the machine does
falls on all of them alike. Each slice has new users, and so new connections.
"""

from __future__ import annotations

# First of all: it imports Locust, which patches the standard library.
from model_delivery.gates.locustfile import Rows  # isort: split

import gc
import json
import logging
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import gevent
from locust.env import Environment

WARM_UP = 0.7
RAMP = 0.1
"""Seconds of a slice that do not count: users connect."""


@dataclass
class Recorder:
    """What the users of one slice saw."""

    latencies: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def __call__(self, response_time: float, exception: Exception | None, **_: Any) -> None:
        """Take one answer, as Locust's event `request` tells it; milliseconds."""
        if exception is not None:
            self.failures[str(exception)[:120]] += 1
            return
        self.latencies.append(response_time)
        self.finished.append(time.perf_counter())

    def summary(self, start: float, end: float) -> dict[str, Any]:
        """Return counts, answers a second between two moments, and quantiles in milliseconds."""
        ordered = sorted(self.latencies)
        ranks = {f"p{q}": (len(ordered) * q - 1) // 100 for q in (50, 95, 99)}
        return {
            "requests": len(ordered) + self.failures.total(),
            "failures": dict(self.failures),
            "qps": sum(moment <= end for moment in self.finished) / (end - start),
            **{name: ordered[rank] if ordered else None for name, rank in ranks.items()},
        }


def main() -> None:
    """Run the plan on standard input until its rounds are over, or this process is ended."""
    logging.disable(logging.WARNING)
    plan = json.load(sys.stdin)
    Rows.bodies = [body.encode() for body in plan["bodies"]]
    # The timeout of a request bounds how long a slice waits for its last answers.
    environment = Environment(user_classes=[Rows], stop_timeout=2 * Rows.network_timeout)
    environment.create_local_runner()
    gc.collect()
    gc.freeze()
    random.seed(plan["seed"])
    for target in plan["targets"]:
        _slice(environment, target, plan["users"], WARM_UP)
    for number in range(1, plan["rounds"] + 1):
        for target in random.sample(plan["targets"], len(plan["targets"])):
            quiet = _slice(environment, target, 1, plan["seconds"] / 4)
            busy = _slice(environment, target, plan["users"], plan["seconds"])
            line = {"round": number, "target": target["name"], "quiet": quiet, "busy": busy}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


def _slice(
    environment: Environment, target: dict[str, Any], users: int, seconds: float
) -> dict[str, Any]:
    """Load one target; answers that come after the end count, but not as throughput."""
    Rows.host, Rows.release = target["url"], target["release"]
    recorder, runner = Recorder(), environment.runner
    assert runner is not None  # made in main
    environment.events.request.add_listener(recorder)
    runner.start(users, spawn_rate=users)
    gevent.sleep(RAMP)
    recorder.latencies.clear()
    recorder.finished.clear()
    start = time.perf_counter()
    gevent.sleep(seconds)
    end = time.perf_counter()
    runner.stop()
    environment.events.request.remove_listener(recorder)
    return recorder.summary(start, end)


if __name__ == "__main__":
    main()
