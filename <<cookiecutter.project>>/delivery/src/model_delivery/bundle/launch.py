"""Start a release's service, know that it is the one that answers, and stop all of it.

Readiness is not identity: whatever listens on a port may say that it is ready. So every start
has a token, and a service counts as started when digest and token come back.
"""

import secrets
import shutil
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, Self

import httpx
import psutil

from model_delivery.bundle.environment import clean_variables, service_environment
from model_delivery.files import verify
from model_delivery.project import Project
from model_delivery.protocols import UserError
from model_delivery.serving import LAUNCH, NOOP, REFUSAL, RELEASE, TWIN_MARK

HOST = "127.0.0.1"
_POLL_SECONDS = 0.05


class NotReadyError(UserError):
    """A release that does not come up; the message says why."""


@dataclass(frozen=True)
class Running:
    """A service that showed its identity; it ends, by all that runs in its home, with a block."""

    url: str
    digest: str
    launch: str
    home: Path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end(self.home)

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def answers(self, url: str | None = None) -> bool:
        """Return whether this very start answers, at its own address or a proxy's."""
        return identity(url or self.url) == (self.digest, self.launch)


def start(
    project: Project,
    ship: Path,
    log: Path,
    port: int = 0,
    timeout: float = 60,
    noop: bool = False,
    release: str = "none",
) -> Running:
    """Start a release's service in its clean environment, and wait until it is itself.

    Its output is in `log`; port 0 takes a free one; `noop` starts the twin without its model. A
    UserError says why it does not come up. Of foreign bytes nothing runs, and nothing is left.
    """
    digest, python = verify(ship), service_environment(project, ship)
    launch, port = secrets.token_hex(8), free_port(port)
    home = log.with_name(f"{log.stem}-{launch}")
    env = clean_variables(project) | {NOOP: "1" if noop else "", RELEASE: release, LAUNCH: launch}
    env |= {"PYTHONPATH": str((ship / "src").resolve())}
    env |= dict.fromkeys(("BENTOML_HOME", "TMPDIR"), str(home.resolve()))
    command = [str(python.absolute()), "-m", "bentoml", "serve", "service:service", "--host", HOST]
    command += ["--working-dir", str(ship.resolve()), "--port", str(port)]
    answers = f"{TWIN_MARK}{digest}" if noop else digest
    service = Running(f"http://{HOST}:{port}", answers, launch, home)
    home.mkdir(parents=True)
    try:
        _wait(service, spawn(command, home, env, log), log, timeout)
    except BaseException:
        end(home)
        raise
    return service


def spawn(command: list[str], cwd: Path, env: dict[str, str], log: Path) -> Popen[bytes]:
    """Start a program in a session of its own; what it prints is in `log`."""
    with log.open("wb") as output:
        streams: dict[str, Any] = {"stdin": DEVNULL, "stdout": output, "stderr": output}
        return Popen(command, cwd=cwd, env=env, start_new_session=True, **streams)


def identity(url: str) -> tuple[str | None, str | None] | None:
    """Return digest and token of what is ready at `url`, plain HTTP here; None for nothing."""
    with suppress(httpx.HTTPError):
        answer = httpx.get(f"{url}/readyz", trust_env=False, verify=False)  # noqa: S501 - no TLS
        if answer.status_code == 200:
            return answer.headers.get("x-model-digest"), answer.headers.get("x-launch")
    return None


def free_port(port: int = 0) -> int:
    """Return a port that nobody listens on; a UserError where that is not the one asked for."""
    try:
        with socket.create_server((HOST, port)) as probe:
            return int(probe.getsockname()[1])
    except OSError:
        how = "stop it, or choose another (--port, or `port` in config/delivery.yaml)"
        raise UserError(f"port {port} is in use by another program; {how}") from None


def processes(home: Path) -> list[psutil.Process]:
    """Return the living processes whose `TMPDIR`, handed on from parent to child, is in `home`."""
    found = psutil.process_iter(["environ"])
    places = [(Path((p.info["environ"] or {}).get("TMPDIR", "/")), p) for p in found]
    return [process for place, process in places if place.is_relative_to(home.resolve())]


def megabytes(home: Path) -> float:
    """Return the memory that the processes of a home use; not-a-number where one just ended."""
    with suppress(psutil.Error):
        return sum(float(process.memory_info().rss) for process in processes(home)) / 1e6
    return float("nan")


def end(home: Path) -> None:
    """End the processes of a home, asked first, forced after ten seconds; take the home away."""
    for sign, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        deadline = time.monotonic() + patience
        for process in processes(home):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(sign)
        while processes(home) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    shutil.rmtree(home, ignore_errors=True)


def _wait(service: Running, process: Popen[bytes], log: Path, timeout: float) -> None:
    """Return when the service has shown its identity; raise when it cannot any more."""
    deadline = time.monotonic() + timeout
    while (found := identity(service.url)) != (service.digest, service.launch):
        if found is not None:
            raise UserError(f"{service.url}: another service answers there; stop it")
        said = log.read_text(errors="replace").strip().splitlines()
        for refusal in (line for line in said if REFUSAL in line):
            raise NotReadyError(f"{refusal[refusal.index(REFUSAL) :]}; see {log}")
        tail = "\n".join(said[-8:])
        if (code := process.poll()) is not None:
            raise NotReadyError(f"the service ended with code {code} at start:\n{tail}")
        if time.monotonic() > deadline:
            raise NotReadyError(f"the service was not ready within {timeout:g} s:\n{tail}")
        time.sleep(_POLL_SECONDS)
