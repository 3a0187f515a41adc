"""A client that knows nothing of `ml`: it asks at a constant rate and writes down what it got.

    python client.py PORT RATE BODIES ANSWERS

Requests are sent when they are due, whatever became of the earlier ones. Connections are kept
alive, and one that the other side has closed is not used again, as HTTP/1.1 asks. A file of bodies
that is replaced meanwhile is read anew: time goes on for a client, too.
"""

from __future__ import annotations

import http.client
import itertools
import json
import queue
import select
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol

WORKERS = 40


class Lines(Protocol):
    """What takes a line of JSON for each answer."""

    def write(self, line: str, /) -> object:
        """Take one."""


class Client:
    """Workers that take due requests from a queue."""

    def __init__(self, port: int, out: Lines) -> None:
        self.port, self.out = port, out
        self.due: queue.Queue[tuple[int, str]] = queue.Queue()
        for _ in range(WORKERS):
            threading.Thread(target=self.work, daemon=True).start()

    def work(self) -> None:
        """Send what is due, and write a line for each."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        while True:
            number, body = self.due.get()
            if connection.sock and select.select([connection.sock], [], [], 0)[0]:
                connection.close()  # the other side has closed it
            start = time.time()
            found: dict[str, Any] = {"number": number, "start": start}
            try:
                kind = {"content-type": "application/json"}
                connection.request("POST", "/predict", body, kind)
                answer = connection.getresponse()
                content = answer.read()
                found |= {"status": answer.status, "digest": answer.headers["x-model-digest"]}
                if answer.status == 200:
                    found["score"] = json.loads(content)["probability"][0]
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                found["status"] = repr(error)
            found["seconds"] = time.time() - start
            self.out.write(json.dumps(found) + "\n")


def main(port: str, rate: str, bodies: str, answers: str) -> None:
    """Ask until killed."""
    with Path(answers).open("w", buffering=1, encoding="utf-8") as out:
        client, start = Client(int(port), out), time.monotonic()
        waiting, read = iter(list[str]()), 0
        for number in itertools.count():
            time.sleep(max(0.0, start + number / float(rate) - time.monotonic()))
            if (written := Path(bodies).stat().st_mtime_ns) != read:
                waiting, read = itertools.cycle(json.loads(Path(bodies).read_text())), written
            client.due.put((number, next(waiting)))


if __name__ == "__main__":
    main(*sys.argv[1:])
