"""Start a release as a process of its own, and be sure that it is the one that answers."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model_delivery.digest import SUMS
from model_delivery.errors import UserError
from model_delivery.files import sha256_file

_HIDDEN = ("PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "VIRTUAL_ENV")
"""Of a caller's environment: the first makes imports two to three times slower."""


@dataclass(frozen=True)
class Running:
    """A service that was ready and identified; `pid` leads its process group."""

    url: str
    pid: int
    digest: str
    launch: str

    def alive(self) -> bool:
        """Return whether the process group still lives."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        return _signal(self.pid, 0)

    def stop(self, grace: float = 10.0) -> None:
        """End the whole group: killing only its leader would leave a worker serving."""
        for sign, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
            deadline = time.monotonic() + patience
            _signal(self.pid, sign)
            while self.alive() and time.monotonic() < deadline:
                time.sleep(0.05)


def start(
    ship: Path,
    python: Path,
    log: Path,
    port: int | None = None,
    timeout: float = 60.0,
    noop: bool = False,
) -> Running:
    """Start `bentoml serve` on a release, and return once it is ready and identified.

    Parameters
    ----------
    ship
        The release's folder.
    python
        The interpreter of its clean environment.
    log
        Where its output goes; beside it lies a folder for its bytecode and BentoML's state.
    port
        Port on 127.0.0.1; by default a free one.
    timeout
        Seconds until it must be ready.
    noop
        Start the twin, which answers without predicting.

    Raises
    ------
    UserError
        When the port is taken by another process, or the service ends or is not ready in time.
    """
    port = port or free_port()
    if _taken(port):
        raise UserError(f"port {port} is in use by another process; stop it or choose another")
    digest = ("noop-" if noop else "") + sha256_file(ship / SUMS)
    launch = secrets.token_hex(8)
    home = log.with_suffix(".home")
    home.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", "bentoml", "serve", "service:service", "--host", "127.0.0.1"]
    command += ["--working-dir", str(ship.resolve()), "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ship,
            env=_environment(ship, home, launch, noop),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    service = Running(f"http://127.0.0.1:{port}", process.pid, digest, launch)
    try:
        _wait(service, process, log, timeout)
    except BaseException:
        service.stop(grace=1.0)
        raise
    return service


@contextlib.contextmanager
def running(
    ship: Path,
    python: Path,
    log: Path,
    port: int | None = None,
    timeout: float = 60.0,
    noop: bool = False,
) -> Iterator[Running]:
    """Yield a service as `start` makes it, and stop it at the end."""
    service = start(ship, python, log, port, timeout, noop)
    try:
        yield service
    finally:
        service.stop()


def identity(url: str) -> tuple[str, str] | None:
    """Return digest and launch token of the service that is ready at `url`, else None.

    Readiness alone says nothing: a stale or foreign process answers `/readyz` as well.
    """
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:  # noqa: S310
            return answer.headers.get("x-model-digest", ""), answer.headers.get("x-launch", "")
    except (OSError, ValueError):
        return None


def free_port() -> int:
    """Return a port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(ship: Path, home: Path, launch: str, noop: bool) -> dict[str, str]:
    own = {
        "PYTHONPATH": str((ship / "src").resolve()),
        "PYTHONPYCACHEPREFIX": str((home / "bytecode").resolve()),  # the release stays as sealed
        "BENTOML_HOME": str(home.resolve()),  # shared, one start deletes another's metrics
        "BENTOML_DO_NOT_TRACK": "True",
        "OTEL_SDK_DISABLED": "true",
        "MODEL_LAUNCH": launch,
        "MODEL_NOOP": "1" if noop else "0",
    }
    return {name: value for name, value in os.environ.items() if name not in _HIDDEN} | own


def _wait(service: Running, process: subprocess.Popen[bytes], log: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(f"the service ended with code {process.returncode}:\n{_tail(log)}")
        found = identity(service.url)
        if found == (service.digest, service.launch):
            return
        if found is not None:
            raise UserError(f"{service.url} is answered by another process; it took the port")
        time.sleep(0.05)
    raise UserError(f"the service was not ready after {timeout:g} seconds:\n{_tail(log)}")


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-12:])


def _signal(group: int, sign: int) -> bool:
    try:
        os.killpg(group, sign)
    except (ProcessLookupError, PermissionError):
        return False
    return True
