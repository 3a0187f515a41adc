"""Start a release's service, know that it is the one that answers, and stop all of it.

Readiness is not identity: whatever listens on a port may say that it is ready. So every start
has a token, and a service counts as started when digest and token come back.
"""

import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from model_delivery.errors import UserError
from model_delivery.files import verify
from model_delivery.serving.service import LAUNCH, NOOP, REFUSAL, twin_identity

HOST = "127.0.0.1"
_POLL_SECONDS = 0.05
_TAIL_LINES = 8


@dataclass(frozen=True)
class Running:
    """A service that has shown its identity; its processes are known by their home."""

    url: str
    digest: str
    launch: str
    home: Path

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def answers(self, url: str | None = None) -> bool:
        """Return whether this very start answers, at its own address or a proxy's."""
        return identity(url or self.url) == (self.digest, self.launch)

    def stop(self) -> None:
        """End all of its processes, and take their home away."""
        end(self.home)
        shutil.rmtree(self.home, ignore_errors=True)


def start(
    ship: Path, python: Path, log: Path, port: int = 0, timeout: float = 60.0, noop: bool = False
) -> Running:
    """Start the service of a release, with its output in `log`, and wait until it is itself.

    Port 0 takes a free one; `timeout` is in seconds; `noop` starts the twin without its model.

    Raises
    ------
    UserError
        When bytes do not match (nothing of them runs), the port is taken, or the service does
        not come up: with the last lines of its log. Nothing is left running.
    """
    digest, launch, port = verify(ship), secrets.token_hex(8), free_port(port)
    home = log.with_name(f"{log.stem}-{launch}")
    home.mkdir(parents=True)
    answers = twin_identity(digest) if noop else digest
    service = Running(f"http://{HOST}:{port}", answers, launch, home)
    try:
        _wait(service, _spawn(ship, python, log, service, noop), log, timeout)
    except BaseException:
        service.stop()
        raise
    return service


@contextmanager
def running(
    ship: Path, python: Path, log: Path, port: int = 0, noop: bool = False
) -> Iterator[Running]:
    """Yield a started service and stop it at the end."""
    service = start(ship, python, log, port, noop=noop)
    try:
        yield service
    finally:
        service.stop()


def identity(url: str, timeout: float = 5.0) -> tuple[str, str] | None:
    """Return digest and token of the service that is ready at `url`; None where none is."""
    with suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout)
        with closing(connection):
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            digest, launch = answer.getheader("x-model-digest"), answer.getheader("x-launch")
            if answer.status == 200 and digest is not None and launch is not None:
                return digest, launch
    return None


def free_port(port: int = 0) -> int:
    """Return a port that nobody listens on; a UserError where that is not the one asked for."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections may linger
        try:
            probe.bind((HOST, port))
        except OSError:
            why = f"port {port}: in use by another process; stop it, or choose another port"
            raise UserError(why) from None
        return int(probe.getsockname()[1])


def processes(home: Path) -> list[psutil.Process]:
    """Return the living processes whose `TMPDIR`, handed on from parent to child, is in `home`."""
    found = psutil.process_iter(["environ"])
    places = [(Path((p.info["environ"] or {}).get("TMPDIR", "/")), p) for p in found]
    return [process for place, process in places if place.is_relative_to(home.resolve())]


def end(home: Path) -> None:
    """End the processes of a home: asked first, forced after ten seconds."""
    for sign, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        deadline = time.monotonic() + patience
        for process in processes(home):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(sign)
        while processes(home) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def _spawn(
    ship: Path, python: Path, log: Path, service: Running, noop: bool
) -> subprocess.Popen[bytes]:
    """Start BentoML in this environment, without what would change Python or BentoML.

    Byte code would lie among the bytes that the digest names, unless the caller has a place.
    """
    strange = ("PYTHON", "BENTO", "PROMETHEUS", "MODEL_", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    prefix, home = os.environ.get("PYTHONPYCACHEPREFIX"), str(service.home.resolve())
    own = {
        "PYTHONPATH": str((ship / "src").resolve()),
        **({"PYTHONPYCACHEPREFIX": prefix} if prefix else {"PYTHONDONTWRITEBYTECODE": "1"}),
        "BENTOML_HOME": home,
        "BENTOML_DO_NOT_TRACK": "True",
        "TMPDIR": home,
        LAUNCH: service.launch,
        NOOP: "1" if noop else "",
    }
    where = ["--working-dir", str(ship.resolve()), "--host", HOST]
    where += ["--port", service.url.rpartition(":")[2]]
    with log.open("wb") as output:
        return subprocess.Popen(
            [str(python.absolute()), "-m", "bentoml", "serve", "service:service", *where],
            cwd=home,
            env=kept | own,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(service: Running, process: subprocess.Popen[bytes], log: Path, timeout: float) -> None:
    """Return when the service has shown its identity; raise when it cannot any more."""
    deadline = time.monotonic() + timeout
    while True:
        found = identity(service.url)  # asked once: between two looks it may become ready
        if found == (service.digest, service.launch):
            return
        if found is not None:
            raise UserError(f"{service.url}: another service answers there; stop it")
        said = log.read_text(errors="replace").strip().splitlines()
        for line in said:
            if REFUSAL in line:
                raise UserError(f"{line[line.index(REFUSAL) :]}; see {log}")
        tail = "\n".join(said[-_TAIL_LINES:])
        if process.poll() is not None:
            raise UserError(f"the service ended with code {process.returncode} at start:\n{tail}")
        if time.monotonic() > deadline:
            raise UserError(f"the service was not ready within {timeout:g} s:\n{tail}")
        time.sleep(_POLL_SECONDS)
