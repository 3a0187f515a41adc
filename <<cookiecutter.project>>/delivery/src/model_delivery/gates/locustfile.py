"""One user of the service: rows drawn from the data contract, one a request, answers checked.

By hand, inside a project and against any running service of it:

    uv run locust -f delivery/src/model_delivery/gates/locustfile.py --host http://127.0.0.1:3000
"""

from __future__ import annotations

# Locust patches the standard library when it is imported: nothing may be imported before it.
from locust import FastHttpUser, constant, events, task  # isort: split

import json
import random
from collections.abc import Sequence
from typing import Any, ClassVar

from model_delivery.errors import UserError

HEADERS = {"content-type": "application/json"}
BODIES = 500
"""Different requests; a model that remembers answers must not look fast."""


class Rows(FastHttpUser):
    """Asks for one row after the other, without a pause."""

    wait_time = constant(0)  # type: ignore[no-untyped-call]
    connection_timeout = 2.0
    network_timeout = 5.0
    bodies: ClassVar[Sequence[bytes]] = ()
    release: ClassVar[str | None] = None
    """The release that must answer; None accepts any."""

    @task
    def predict(self) -> None:
        """Send one row and check what comes back."""
        body = random.choice(self.bodies)  # noqa: S311 - not a secret
        with self.client.post(
            "/predict", data=body, headers=HEADERS, catch_response=True
        ) as response:
            wrong = mistake(response.status_code, response.content, self.release)
            if wrong:
                response.failure(wrong)


def mistake(status: int, content: bytes | None, release: str | None) -> str | None:
    """Return what is wrong with an answer to one row, or None.

    Examples
    --------
    >>> mistake(200, b'{"release": "a", "probability": [0.5]}', "a")
    >>> mistake(200, b'{"release": "a", "probability": [NaN]}', "a")
    'not one probability from 0 to 1'
    >>> mistake(503, b"", "a")
    'HTTP 503'
    """
    if status == 0:
        return "no answer (refused, closed or timed out)"
    if status != 200:
        return f"HTTP {status}"
    try:
        answer = json.loads(content or b"")
    except ValueError:
        return "not JSON"
    if not isinstance(answer, dict) or answer.keys() != {"release", "probability"}:
        return "not {release, probability}"
    if release not in (None, answer["release"]):
        return "answered by another release"
    scores = answer["probability"]
    if isinstance(scores, list) and len(scores) == 1 and _probability(scores[0]):
        return None
    return "not one probability from 0 to 1"


def _probability(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1  # false for not-a-number


def draw_bodies(seed: int) -> list[bytes]:
    """Return request bodies drawn from the data contract of the project here."""
    from model_delivery.contract.draw import draw_rows
    from model_delivery.project import find_project

    rows = draw_rows(find_project().contract, BODIES, seed)
    return [json.dumps({"rows": [row]}).encode() for row in rows]


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def prepare(**_: Any) -> None:
    """Draw the bodies of a run by hand; the gate brings its own."""
    if not Rows.bodies:
        try:
            Rows.bodies = draw_bodies(seed=0)
        except UserError as error:
            raise SystemExit(str(error)) from error
