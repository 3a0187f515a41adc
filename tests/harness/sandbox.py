"""A machine of its own for one command: own folders, own processes, the rest read-only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .results import HarnessError

OUTSIDE = Path("/mnt")
"""Where the machine outside is seen writable from inside."""
PRIVATE = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - empty and private, as on a new machine
_INSIDE = Path(__file__).with_name("inside.py")


@dataclass(frozen=True)
class Finished:
    """How a command ended: its exit code, all it printed, and the processes it left running."""

    code: int
    log: str
    left: tuple[str, ...]


def seen(path: Path) -> Path:
    """Return the name under which a path outside can be written from inside."""
    return OUTSIDE / path.resolve().relative_to("/")


def run(
    command: Sequence[str],
    *,
    scratch: Path,
    folder: Path,
    environment: Mapping[str, str],
    timeout: float,
) -> Finished:
    """Run a command on a machine of its own and end all that it started.

    Parameters
    ----------
    command
        Program and arguments; paths as `seen` from inside.
    scratch
        A folder for this command alone; holds its temporary folders and its log.
    folder
        Where to start it, outside.
    environment
        The whole environment: nothing of this process's own is added.
    timeout
        Seconds until it is killed.

    Raises
    ------
    HarnessError
        When namespaces are not to be had, or the time is up.
    """
    private = {}
    for number, place in enumerate(PRIVATE):
        own = scratch / f"private-{number}"
        own.mkdir(mode=0o1777)
        private[place] = str(seen(own))
    plan = {
        "outside": str(OUTSIDE),
        "private": private,
        "command": list(command),
        "folder": str(seen(folder)),
        "environment": dict(environment),
        "log": str(seen(scratch / "act.jsonl")),
        "report": str(seen(scratch / "report.json")),
    }
    (scratch / "plan.json").write_text(json.dumps(plan))
    program = [*namespaces(), sys.executable, "-I", str(_INSIDE), str(scratch / "plan.json")]
    try:
        done = subprocess.run(program, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as late:
        log = (scratch / "act.jsonl").read_text(errors="replace")
        raise HarnessError(f"still running after {timeout:.0f} s:\n{log[-5000:]}") from late
    report = scratch / "report.json"
    if not report.exists():
        raise HarnessError(f"the job's machine did not start: {done.stderr.strip()}")
    said = json.loads(report.read_text())
    log = (scratch / "act.jsonl").read_text(errors="replace")
    return Finished(said["code"], log, tuple(said["left"]))


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
