"""A machine of its own for one command: own folders, own processes, the rest read-only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .results import HarnessError

OUTSIDE = Path("/mnt")
"""Where the machine outside is seen writable from inside."""
PRIVATE = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - empty and private, as on a new machine
INSIDE = Path(__file__).with_name("inside.py")
PYTHON = Path(sys.executable).resolve()
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Command:
    """A command on a machine, and when it has to end.

    Attributes
    ----------
    words
        Program and arguments; paths as `seen` from inside.
    scratch
        A folder for this command alone; holds its log and, for a new machine, its folders.
    folder
        Where to start it, outside.
    environment
        The whole environment: nothing of this process's own is added.
    seconds
        The time it has.
    kill_when
        Asked again and again; once it holds, the machine (or all of the job) is killed.
    """

    words: Sequence[str]
    scratch: Path
    folder: Path
    environment: Mapping[str, str]
    seconds: float
    kill_when: Callable[[], bool]

    def plan(self, **more: Any) -> dict[str, Any]:
        """Return what `inside.py` has to know."""
        return {
            "command": list(self.words),
            "folder": str(seen(self.folder)),
            "environment": dict(self.environment),
            "log": str(seen(self.scratch / "act.jsonl")),
            "report": str(seen(self.scratch / "report.json")),
            **more,
        }


@dataclass(frozen=True)
class Finished:
    """How a command ended: what it printed, the processes it left, and whether it was killed."""

    log: str
    processes: tuple[str, ...]
    killed: bool


def seen(path: Path) -> Path:
    """Return the name under which a path outside can be written from inside."""
    return OUTSIDE / path.resolve().relative_to("/")


def run(command: Command, hidden: Sequence[Path] = ()) -> Finished:
    """Run a command on a machine of its own and end all that it started.

    Parameters
    ----------
    command
        What to run.
    hidden
        Folders outside that look empty from this machine.

    Raises
    ------
    HarnessError
        When namespaces are not to be had, or the time is up.
    """
    plan = command.plan(do="hosted", **private(command.scratch, hidden))
    (command.scratch / "plan.json").write_text(json.dumps(plan))
    program = [*namespaces(), str(PYTHON), "-I", str(INSIDE), str(command.scratch / "plan.json")]
    return follow(command, program, subprocess.Popen.kill)


def private(folder: Path, hidden: Sequence[Path] = ()) -> dict[str, Any]:
    """Make the folders that only one machine sees, and return the plan for them."""
    places = {}
    for number, place in enumerate(PRIVATE):
        own = folder / f"private-{number}"
        own.mkdir(mode=0o1777, exist_ok=True)
        places[place] = str(seen(own))
    (empty := folder / "empty").mkdir(exist_ok=True)
    shown = [str(path.resolve()) for path in hidden if path.exists()]
    return {"outside": str(OUTSIDE), "private": places, "hidden": shown, "empty": str(empty)}


def follow(
    command: Command, program: Sequence[str], kill: Callable[[subprocess.Popen[bytes]], None]
) -> Finished:
    """Start a program that runs a command, and kill it when its time or its condition has come."""
    deadline = time.monotonic() + command.seconds
    said = command.scratch / "machine.txt"
    killed = late = False
    with said.open("wb") as out:
        machine = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        while machine.poll() is None and not (killed or late):
            time.sleep(_LOOK_SECONDS)
            late, killed = time.monotonic() > deadline, command.kill_when()
    finally:
        if machine.poll() is None:
            kill(machine)
            machine.wait()
    log = command.scratch / "act.jsonl"
    text = log.read_text(errors="replace") if log.exists() else ""
    if late:
        raise HarnessError(f"still running after {command.seconds:.0f} s:\n{text[-5000:]}")
    report = command.scratch / "report.json"
    if not report.exists() and not killed:
        raise HarnessError(f"the job's machine did not start: {said.read_text().strip()}")
    ended = json.loads(report.read_text()) if report.exists() else {"processes": []}
    return Finished(text, tuple(ended["processes"]), killed)


@cache
def namespaces() -> tuple[str, ...]:
    """Return the command that starts another in new mount and process namespaces.

    Raises
    ------
    HarnessError
        Where this user may not make them.
    """
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    command = ("unshare", *user, "--mount", "--pid", "--fork", "--kill-child")
    done = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise HarnessError(
            f"workflow tests give each job a machine of its own and need namespaces: "
            f"{done.stderr.strip()}. On Ubuntu run "
            f"`sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or run them as root."
        )
    return command
