"""Machines of one's own: what lies on them, and what runs on them, outlives a job."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from . import programs
from .results import HarnessError
from .sandbox import INSIDE, PYTHON, Command, Finished, follow, namespaces, private, seen

_WAIT_SECONDS = 1800.0
_END_SECONDS = 10.0


@dataclass
class SelfHosted:
    """A machine with GitHub's runner on it.

    Attributes
    ----------
    label
        What `runs-on` has to name.
    folder
        Holds all that lasts: the home, the temporary folders and the checkout of each runner.
    runners
        How many runners are registered for it. Each takes one job at a time and has a work folder
        of its own; a job that finds none free waits for one.
    variables
        What the file `.env` beside the runner adds to the environment of each job.
    """

    label: str
    folder: Path
    runners: int = 1
    variables: Mapping[str, str] = field(default_factory=dict)
    _machine: subprocess.Popen[str] | None = field(default=None, init=False, repr=False)
    _changed: threading.Condition = field(
        default_factory=threading.Condition, init=False, repr=False
    )
    _busy: set[int] = field(default_factory=set, init=False, repr=False)

    def workspace(self, runner: int = 1) -> Path:
        """Return the folder that a runner checks out to, as seen from outside."""
        return self.folder / f"work-{runner}"

    @contextmanager
    def runner(self) -> Iterator[int]:
        """Wait for a free runner and take it."""
        everyone = set(range(1, self.runners + 1))
        with self._changed:
            if not self._changed.wait_for(lambda: everyone - self._busy, _WAIT_SECONDS):
                raise HarnessError(f"no runner with the label {self.label} became free")
            self._busy.add(own := min(everyone - self._busy))
        try:
            yield own
        finally:
            with self._changed:
                self._busy.remove(own)
                self._changed.notify()

    def visit(self, command: Command, mark: str) -> Finished:
        """Run a job's command on this machine; at its end, end what still carries its mark."""
        plan = command.plan(do="visit", mark=mark)
        return follow(
            command,
            self._inside(command.scratch / "plan.json", plan),
            lambda _: self._kill(command.scratch / "kill.json", mark),
        )

    def run(
        self,
        *words: str,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        seconds: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a person does who is logged in here, by default in the checkout."""
        place = seen(folder or self.workspace())
        return subprocess.run(
            [*self._enter(), "env", "-C", str(place), *words],
            env={**programs.environment(self.folder), **self.variables, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def stop(self) -> None:
        """Switch the machine off: every process ends, and what lies in its folder stays.

        The next job switches it on again.
        """
        with self._changed:
            if self._machine:
                # Its first process reads to the end of its input, ends, and with it all others;
                # `unshare`, which we started, returns when the last of them is gone.
                self._machine.communicate(timeout=_END_SECONDS)
            self._machine = None

    def _inside(self, file: Path, plan: Mapping[str, object]) -> list[str]:
        file.write_text(json.dumps(plan))
        return [*self._enter(), str(PYTHON), "-I", str(seen(INSIDE)), str(seen(file))]

    def _kill(self, file: Path, mark: str) -> None:
        """Kill what carries a mark: act and all that it started, but nothing that is the host's."""
        subprocess.run(self._inside(file, {"do": "end", "mark": mark}), check=True)

    def _enter(self) -> list[str]:
        """Return the command that starts another on this machine, switched on if need be."""
        with self._changed:
            if self._machine is None or self._machine.poll() is not None:
                self._machine = self._start()
            pid = self._machine.pid
        first = Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={first}", *user, "--mount", "--pid"]

    def _start(self) -> subprocess.Popen[str]:
        for number in range(1, self.runners + 1):
            self.workspace(number).mkdir(parents=True, exist_ok=True)
        file = self.folder / "machine.json"
        file.write_text(json.dumps({"do": "stay", **private(self.folder)}))
        # It stays as long as this end of its standard input is open: never longer than the tests.
        machine = subprocess.Popen(
            [*namespaces(), str(PYTHON), "-I", str(INSIDE), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = machine.stdout.readline() if machine.stdout else ""
        if said != "ready\n":
            raise HarnessError(f"the machine {self.label} did not start: {said}")
        return machine
