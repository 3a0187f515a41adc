"""Flights asked of the running service, each once."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.canary.client import Client
from tests.canary.traffic import meanwhile

RATE = 40.0
"""Requests a second while a rollout needs clients."""
PATIENCE = 60.0


class Asking:
    """A month's flights, and what the service said of those that were asked so far."""

    def __init__(self, port: int) -> None:
        self.client = Client(port, self)
        self.begin([])

    def begin(self, bodies: list[str]) -> None:
        """Go on to another month; all that was asked before is answered."""
        self.found: list[dict[str, Any]] = []
        self.numbers = iter(range(len(bodies)))
        self.asked = 0
        self.bodies = bodies

    def write(self, line: str) -> None:
        """Take an answer from the client."""
        self.found.append(json.loads(line))

    def ask(self, count: int, rate: float | None = None) -> None:
        """Ask about the next flights, at a rate or all at once, and wait for the answers."""
        for number in itertools.islice(self.numbers, max(0, count)):
            self.client.due.put((number, self.bodies[number]))
            self.asked += 1
            if rate:
                time.sleep(1 / rate)
        deadline = time.monotonic() + PATIENCE
        while len(self.found) < self.asked and time.monotonic() < deadline:
            time.sleep(0.02)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Ask at a constant rate meanwhile."""

        def work(done: threading.Event) -> None:
            while not done.is_set() and (number := next(self.numbers, None)) is not None:
                self.client.due.put((number, self.bodies[number]))
                self.asked += 1
                done.wait(1 / RATE)

        with meanwhile(work):
            yield

    @property
    def failed(self) -> int:
        """Requests without a score, or without any answer."""
        return self.asked - len(self.scores())

    def scores(self) -> dict[int, float]:
        """Return the probability by the flight's place in the month."""
        return {each["number"]: each["score"] for each in self.found if "score" in each}
