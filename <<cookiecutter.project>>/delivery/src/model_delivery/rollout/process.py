"""Processes that outlive the command that started them.

Also a program (`python process.py RECORD COMMAND …`): it writes down which process it is and
becomes the command. The record exists before the command runs, so whoever is killed in between,
nothing that runs is unknown; and without the record's folder it does not run. Standard library
only, for a fast start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

RECORD = "process.json"


class Process(NamedTuple):
    """A process, told from a later one with the same number by when it started."""

    pid: int
    started: str

    def alive(self) -> bool:
        """Return whether this very process runs."""
        return any((pid, started) == self for pid, _, started in _running(str(self.pid)))

    def stop(self, grace: float = 10.0) -> None:
        """End the process with its group: asked first, forced after `grace` seconds.

        Workers go on serving when only their parent is killed, so it is the group that ends,
        even where its leader is dead already.
        """
        for sign, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
            deadline = time.monotonic() + patience
            if self._group():
                os.killpg(self.pid, sign)
            while self._group() and time.monotonic() < deadline:
                time.sleep(0.05)

    def _group(self) -> bool:
        """Return whether any process of the group lives, unless the number was given away."""
        group = [(pid, started) for pid, group, started in _running() if group == self.pid]
        return bool(group) and all(member == self for member in group if member[0] == self.pid)


def recorded(folder: Path) -> Process | None:
    """Return the process that was started in a folder, while it lives."""
    process = last(folder)
    return process if process is not None and process.alive() else None


def last(folder: Path) -> Process | None:
    """Return the process that was started in a folder, dead or alive."""
    record = folder / RECORD
    return Process(*json.loads(record.read_text())) if record.exists() else None


def recording(folder: Path) -> list[str]:
    """Return the words to put before a command so that `folder` holds its process's record."""
    return [sys.executable, "-IS", __file__, str(folder / RECORD)]


def _running(wanted: str = "[0-9]*") -> Iterator[tuple[int, int, str]]:
    """Yield number, group and start of living processes: by /proc, else of all by `ps`."""
    if not Path("/proc/self/stat").exists():
        command = ["ps", "-A", "-o", "pid=,pgid=,stat=,lstart="]
        for line in subprocess.check_output(command, text=True).splitlines():
            pid, group, state, started = line.split(maxsplit=3)
            if not state.startswith("Z"):
                yield int(pid), int(group), started
        return
    for folder in Path("/proc").glob(wanted):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while the list was read
        if fields[0] != "Z":
            yield int(folder.name), int(fields[2]), fields[19]


def _become(record: Path, command: list[str]) -> None:
    own = next((pid, started) for pid, _, started in _running() if pid == os.getpid())
    temporary = record.with_suffix(".new")
    temporary.write_text(json.dumps(own))
    temporary.replace(record)
    os.execv(command[0], command)  # noqa: S606 — becoming the command is the point


if __name__ == "__main__":
    _become(Path(sys.argv[1]), sys.argv[2:])
