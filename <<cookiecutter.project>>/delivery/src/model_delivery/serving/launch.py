"""Start a release's service, know that it is the one that answers, and stop all of it.

Readiness is not identity: whatever listens on a port may say that it is ready. So every start
has a token, and a service counts as started when digest and token come back.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from model_delivery.errors import UserError
from model_delivery.files import verify

HOST = "127.0.0.1"
LAUNCH, NOOP = "MODEL_LAUNCH", "MODEL_NOOP"
"""Environment variables of a service: the token of its start, and whether it is the twin."""
REFUSAL = "this release cannot start"
"""What a service logs before it gives up; its arbiter would try again for ever."""
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 10.0
_TAIL_LINES = 8
# BentoML's workers would leave the group of their arbiter and outlive it when it is killed.
_PROGRAM = """\
import os, runpy, shutil
os.setsid = os.getpid
try:
    runpy.run_module("bentoml", run_name="__main__", alter_sys=True)
finally:
    shutil.rmtree(os.environ["BENTOML_HOME"], ignore_errors=True)
"""


@dataclass(frozen=True)
class Running:
    """A service that has shown its identity."""

    url: str
    pid: int
    digest: str
    launch: str
    home: Path | None = None

    def alive(self) -> bool:
        """Return whether a process of the group still runs."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        return _signal(self.pid, 0)

    def stop(self) -> None:
        """End the whole process group: asked first, forced where that takes too long."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + _GRACE_SECONDS
            _signal(self.pid, sign)
            while self.alive() and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        if self.home is not None:
            shutil.rmtree(self.home, ignore_errors=True)


def start(
    ship: Path,
    python: Path,
    log: Path,
    port: int | None = None,
    timeout: float = 60.0,
    noop: bool = False,
) -> Running:
    """Start the service of a release and wait until it is ready and itself.

    Parameters
    ----------
    ship
        The release's folder; checked against its digest before anything of it runs.
    python
        The interpreter of the service's clean environment.
    log
        Where the service's output goes; an earlier one is overwritten.
    port
        Where to listen on this machine; None takes a free one.
    timeout
        Seconds until it must be ready.
    noop
        Start the twin that answers without its model.

    Raises
    ------
    UserError
        When bytes do not match, the port is taken, or the service does not come up: with the
        last lines of its log. Nothing is left running.
    """
    digest, launch = verify(ship), secrets.token_hex(8)
    if port is None:
        port = free_port()
    elif not _is_free(port):
        raise UserError(f"port {port}: in use by another process; stop it, or choose another port")
    home = log.with_name(f"{log.stem}-{launch}")
    home.mkdir(parents=True)
    try:
        process = _spawn(ship, python, log, port, _environment(ship, home, launch, noop))
    except OSError as error:
        shutil.rmtree(home)
        raise UserError(f"{python}: cannot be started ({error.strerror})") from error
    answers = twin_identity(digest) if noop else digest
    service = Running(f"http://{HOST}:{port}", process.pid, answers, launch, home)
    try:
        _wait(service, process, log, timeout)
    except BaseException:
        service.stop()
        raise
    return service


@contextmanager
def running(
    ship: Path,
    python: Path,
    log: Path,
    port: int | None = None,
    timeout: float = 60.0,
    noop: bool = False,
) -> Iterator[Running]:
    """Yield a started service and stop it at the end; parameters as of `start`."""
    service = start(ship, python, log, port, timeout, noop)
    try:
        yield service
    finally:
        service.stop()


def identity(url: str, timeout: float = 2.0) -> tuple[str, str] | None:
    """Return digest and token of the service that is ready at `url`; None where none is."""
    address = urlsplit(url)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection(address.netloc, timeout=timeout)
        with contextlib.closing(connection):
            connection.request("GET", f"{address.path.rstrip('/')}/readyz")
            answer = connection.getresponse()
            digest, launch = answer.getheader("x-model-digest"), answer.getheader("x-launch")
            if answer.status == 200 and digest is not None and launch is not None:
                return digest, launch
    return None


def twin_identity(digest: str) -> str:
    """Return what the no-op twin of a release says it is: never the release."""
    return f"noop-{digest}"


def free_port() -> int:
    """Return a port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections may linger
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _environment(ship: Path, home: Path, launch: str, noop: bool) -> dict[str, str]:
    """Return the service's environment: this one, without what would change Python or BentoML.

    Metrics lie below `BENTOML_HOME`, which BentoML empties at start: one for each service. Byte
    code would lie among the bytes that the digest names, unless the caller has a place for it;
    a clean environment is compiled when it is made.
    """
    strange = ("PYTHON", "BENTO", "PROMETHEUS", "MODEL_", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    prefix = os.environ.get("PYTHONPYCACHEPREFIX")
    own = {
        "PYTHONPATH": str((ship / "src").resolve()),
        **({"PYTHONPYCACHEPREFIX": prefix} if prefix else {"PYTHONDONTWRITEBYTECODE": "1"}),
        "BENTOML_HOME": str(home.resolve()),
        "BENTOML_DO_NOT_TRACK": "True",
        "TMPDIR": str(home.resolve()),
        LAUNCH: launch,
    }
    return kept | own | ({NOOP: "1"} if noop else {})


def _spawn(
    ship: Path, python: Path, log: Path, port: int, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    where = ["--working-dir", str(ship.resolve()), "--host", HOST, "--port", str(port)]
    with log.open("wb") as output:
        return subprocess.Popen(
            [str(python.absolute()), "-c", _PROGRAM, "serve", "service:service", *where],
            cwd=environment["BENTOML_HOME"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(service: Running, process: subprocess.Popen[bytes], log: Path, timeout: float) -> None:
    """Return when the service has shown its identity; raise when it cannot any more."""
    deadline = time.monotonic() + timeout
    while True:
        found = identity(service.url)
        if found == (service.digest, service.launch):
            return
        if found is not None:
            raise UserError(f"{service.url}: another service answers there; stop it")
        said = log.read_text(errors="replace").strip().splitlines()
        refusal = next((line.partition(REFUSAL)[2] for line in said if REFUSAL in line), None)
        if refusal is not None:
            raise UserError(f"{REFUSAL}{refusal}; see {log}")
        tail = "\n".join(said[-_TAIL_LINES:])
        if process.poll() is not None:
            raise UserError(f"the service ended with code {process.returncode} at start:\n{tail}")
        if time.monotonic() > deadline:
            raise UserError(f"the service was not ready within {timeout:g} s:\n{tail}")
        time.sleep(_POLL_SECONDS)


def _signal(group: int, sign: int) -> bool:
    try:
        os.killpg(group, sign)
    except (ProcessLookupError, PermissionError):
        return False
    return True
