"""Processes that outlive the command that started them, found again by where their home is."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil


def processes(home: Path) -> list[psutil.Process]:
    """Return the living processes whose temporary folder is `home` or lies below it.

    A process gets `TMPDIR` when it is made and hands it to its children, so whoever of them or
    of their starters is killed, none is forgotten. The dead that nobody has reaped have none.
    """
    found = psutil.process_iter(["environ"])
    places = [(Path((p.info["environ"] or {}).get("TMPDIR", "/")), p) for p in found]
    return [process for place, process in places if place.is_relative_to(home.resolve())]


def end(home: Path) -> None:
    """End them all: asked first, forced after ten seconds."""
    for sign, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        deadline = time.monotonic() + patience
        for process in processes(home):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(sign)
        while processes(home) and time.monotonic() < deadline:
            time.sleep(0.05)
