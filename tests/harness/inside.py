"""Runs as the first process of a job's machine: makes it private, runs act, says what was left.

Started by `sandbox.py` in new mount and process namespaces, so what it mounts is seen by the job
alone, and all that the job started ends when this process does. Standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

GRACE_SECONDS = 3.0
"""How long helpers of a process that has ended may take to notice it."""


def main() -> None:
    """Carry out the plan in the JSON file that is the only argument."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    mount("-t", "proc", "proc", "/proc")
    # The machine once more, writable, for what a job may write: its own folders and the download
    # cache. One mount for both, so that uv can link from one to the other instead of copying.
    mount("--rbind", "/", plan["outside"])
    for private, place in plan["private"].items():
        mount("--bind", place, private)
    mount("-o", "remount,bind,ro", "/")
    with Path(plan["log"]).open("wb") as log:
        act = subprocess.Popen(
            plan["command"],
            cwd=plan["folder"],
            env=plan["environment"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        code = wait_for(act.pid)
    Path(plan["report"]).write_text(json.dumps({"code": code, "left": left()}))


def mount(*arguments: str) -> None:
    """Call mount(8); a failure ends the machine."""
    subprocess.run(["mount", *arguments], check=True)


def wait_for(pid: int) -> int:
    """Wait for a child as the first process must: orphans of the job end up here too."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def left() -> list[str]:
    """Return the command of each process that is still there when the grace is over."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (running := processes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return running


def processes() -> list[str]:
    """Return the command of each running process but this one."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:  # no child is left: every process of the job has ended
        return []
    others = [e for e in Path("/proc").iterdir() if e.name.isdigit() and e.name != str(os.getpid())]
    return [command for entry in others if (command := command_of(entry))]


def command_of(entry: Path) -> str:
    """Return a process's arguments; nothing when it has just ended."""
    try:
        arguments = (entry / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return arguments.replace(b"\0", b" ").decode(errors="replace").strip()


if __name__ == "__main__":
    main()
