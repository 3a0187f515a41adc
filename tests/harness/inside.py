"""Runs inside a job's machine: makes it private, runs act, says what was left or ended.

Started by `sandbox.py` and `hosts.py`. A hosted runner is a machine of new namespaces whose first
process this is, so all that the job started ends with it. A machine of one's own has such a first
process too, which only stays; each of its jobs is one more process that enters its namespaces.
Standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GRACE_SECONDS = 3.0
"""How long helpers of a process that has ended may take to notice it."""
MARK = b"RUNNER_TRACKING_ID="
"""GitHub's runner gives it to each process of a job, and ends those that still carry it."""

_Plan = dict[str, Any]


def main() -> None:
    """Carry out the plan in the JSON file that is the only argument."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    {"hosted": hosted, "stay": stay, "visit": visit, "end": end}[plan["do"]](plan)


def hosted(plan: _Plan) -> None:
    """Run one job on a new machine, and report the processes that outlived it."""
    make_private(plan)
    code = run(plan)
    report(plan, code, left())


def stay(plan: _Plan) -> None:
    """Keep a machine alive until nobody holds the other end of standard input any more."""
    make_private(plan)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans end up here: let the kernel reap them
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()


def visit(plan: _Plan) -> None:
    """Run one job on a machine that stays, and end what carries its mark, as GitHub's runner does.

    Of a job that is killed, act ends with the rest, and this goes on as after any other.
    """
    code = run(plan)
    report(plan, code, end(plan))


def end(plan: _Plan) -> list[str]:
    """Kill all processes with a mark, and return their commands."""
    ended = []
    deadline = time.monotonic() + GRACE_SECONDS
    while (found := marked(plan["mark"].encode())) and time.monotonic() < deadline:
        for entry in found:
            command = command_of(entry)
            try:
                os.kill(int(entry.name), signal.SIGKILL)
            except ProcessLookupError:  # it has just ended by itself
                continue
            ended.append(command)
        time.sleep(0.05)
    return ended


def make_private(plan: _Plan) -> None:
    """Mount what only this machine sees."""
    mount("-t", "proc", "proc", "/proc")
    # Without a terminal to give, which GitHub's runner has not either, act reads steps from pipes,
    # to their end: of a terminal, under load, it loses a failing step's last words or waits on.
    mount("--bind", "/dev/null", "/dev/ptmx")
    for hidden in plan["hidden"]:
        mount("--bind", plan["empty"], hidden)
    # The machine once more, writable, for what a job may write: its own folders and the download
    # cache. One mount for both, so that uv can link from one to the other instead of copying.
    mount("--rbind", "/", plan["outside"])
    for private, place in plan["private"].items():
        mount("--bind", place, private)
    mount("-o", "remount,bind,ro", "/")


def mount(*arguments: str) -> None:
    """Call mount(8); a failure ends the machine."""
    subprocess.run(["mount", *arguments], check=True)


def run(plan: _Plan) -> int:
    """Run the plan's command to its end."""
    with Path(plan["log"]).open("wb") as log:
        act = subprocess.Popen(
            plan["command"],
            cwd=plan["folder"],
            env=plan["environment"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        return wait_for(act.pid)


def wait_for(pid: int) -> int:
    """Wait for a child as the first process must: orphans of the job end up here too."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def report(plan: _Plan, code: int, processes: list[str]) -> None:
    """Write down how the command ended, under its name only when it is whole."""
    new = Path(plan["report"]).with_suffix(".new")
    new.write_text(json.dumps({"code": code, "processes": processes}))
    new.rename(plan["report"])


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
    return [command for entry in others() if (command := command_of(entry))]


def others() -> list[Path]:
    """Return the entry in /proc of each process but this one."""
    own = str(os.getpid())
    return [e for e in Path("/proc").iterdir() if e.name.isdigit() and e.name != own]


def marked(mark: bytes) -> list[Path]:
    """Return the processes that were started with a mark in their environment."""
    return [e for e in others() if MARK + mark in contents(e / "environ").split(b"\0")]


def command_of(entry: Path) -> str:
    """Return a process's arguments; nothing when it has just ended."""
    return contents(entry / "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def contents(file: Path) -> bytes:
    """Return what the kernel says of a process; nothing when it has just ended."""
    try:
        return file.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


if __name__ == "__main__":
    main()
