"""Constant requests from a process outside `ml`, what they got, and the processes behind them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.baking import environment

HERE = Path(__file__).parent


@contextlib.contextmanager
def meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let a thread work until the end of the block, which sets the event it is given."""
    done = threading.Event()
    thread = threading.Thread(target=work, args=(done,))
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@dataclass(frozen=True)
class Traffic:
    """Constant requests from a process of its own, and what it got."""

    file: Path

    def answers(self) -> list[dict[str, Any]]:
        """Return the answers so far."""
        lines = self.file.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


@contextlib.contextmanager
def asking(port: int, rate: float, bodies: Path, answers: Path) -> Iterator[Traffic]:
    """Ask whoever listens on a port, `rate` times a second, until the end of the block."""
    answers.touch()
    words = [str(HERE / "client.py"), str(port), str(rate), str(bodies), str(answers)]
    client = subprocess.Popen([sys.executable, *words], env=environment())
    try:
        yield Traffic(answers)
    finally:
        client.kill()
        client.wait()


def failed(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the requests that a client would call failed."""
    return [answer for answer in answers if answer["status"] != 200]


def having(*marks: bytes) -> list[int]:
    """Return the processes in whose environment all of these stand."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            own = (folder / "environ").read_bytes()
        except OSError:
            continue
        if all(mark in own for mark in marks):
            found.append(int(folder.name))
    return found


def processes_of(project: Path, digest: str) -> list[int]:
    """Return the processes of a release's service."""
    return having(f"services/{digest[:12]}-".encode(), os.fsencode(project))


def supervisors(project: Path) -> list[int]:
    """Return the processes of a rollout to production."""
    return having(os.fsencode(project / ".ml" / "production" / "supervisor"))
