"""Programs around a release: clean environments, what scores in them, and services.

A clean environment holds the pins that ship and nothing else. Readiness is not identity: whatever
listens on a port may say that it is ready. So every start of a service has a token, and it counts
as started when digest and token come back.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa
from numpy.typing import NDArray

from model_delivery.files import alone, settle, sha256_json, temporary_folder, verify
from model_delivery.project import Project
from model_delivery.protocols import Floats, UserError, without_tokens
from model_delivery.serving import LAUNCH, NOOP, REFUSAL, RELEASE, STREAM, TWIN_MARK

HOST = "127.0.0.1"
_POLL_SECONDS = 0.05
PATIENCE_SECONDS = 120
_OFFLINE = ("error sending request", "dns error", "failed to fetch", "connect error")


class NotReadyError(UserError):
    """A release that does not come up; the message says why."""


@dataclass(frozen=True)
class Running(AbstractContextManager["Running"]):
    """A service that showed its identity; it ends, by all that runs in its home, with a block."""

    url: str
    digest: str
    launch: str
    home: Path

    def __exit__(self, *_: object) -> None:
        end(self.home)

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def answers(self, url: str | None = None) -> bool:
        """Return whether this very start answers, at its own address or a proxy's."""
        return identity(url or self.url) == (self.digest, self.launch)


def run(command: list[str], cwd: Path, **options: Any) -> str:
    """Run a program and return what it printed; of one that fails, UserError has the last lines."""
    name = " ".join([Path(command[0]).name, *command[1:3]])
    try:
        options |= {"cwd": cwd, "capture_output": True, "text": True}
        return str(subprocess.run(command, check=True, **options).stdout)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not installed; see `ml doctor`") from None
    except subprocess.TimeoutExpired as late:
        raise UserError(f"`{name}` took more than {late.timeout} s, and was ended") from None
    except subprocess.CalledProcessError as error:
        said = f"{error.stdout}{error.stderr}".strip()
        tail = "\n".join(said.splitlines()[-8:])
        if any(hint in said.lower() for hint in _OFFLINE):
            tail += "\nno network? run it once where the package index can be reached"
        raise UserError(f"`{name}` failed:\n{tail}") from None


def program_python(program: Path, cwd: Path) -> str:
    """Return the Python of the environment in a program's first block, made on first use."""
    script, env = ["--script", str(program)], without_tokens()
    try:
        run(["uv", "sync", "--offline", *script], cwd, env=env)
    except UserError:
        run(["uv", "sync", *script], cwd, env=env, timeout=600)
    return run(["uv", "python", "find", *script], cwd, env=env).strip()


def service_environment(project: Project, ship: Path) -> Path:
    """Return the Python of a release's clean environment, made on first use, checked by hash."""
    requirements = ship.resolve() / "requirements.txt"
    name = sha256_json([sys.version_info[:2], requirements.read_text()])[:16]
    final = project.work / "environments" / name
    if not (python := final / "bin" / "python").exists():
        with temporary_folder(final.parent) as folder, alone(final.with_suffix(".lock")):
            if python.exists():  # by now: services start side by side
                return python
            run(["uv", "venv", "-q", "--relocatable", "--python", sys.executable, "made"], folder)
            into = ["--python", str(folder / "made" / "bin" / "python"), "--compile-bytecode"]
            pins = ["--require-hashes", "--no-deps", "-r", str(requirements)]
            run(["uv", "pip", "install", "-q", *into, *pins], folder, timeout=600)
            os.sync()  # nothing looks into it again, also after a power cut
            shutil.rmtree(final, ignore_errors=True)  # its interpreter was taken away
            settle(folder / "made", final)
    return python


def clean_variables(project: Project) -> dict[str, str]:
    """Return what a release sees of this process's variables: no token gets into it by chance."""
    kept = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", *project.delivery.variables)
    # Byte code would lie among the bytes that the digest names.
    own = {"PYTHONDONTWRITEBYTECODE": "1", "OTEL_SDK_DISABLED": "true"}
    own |= {name: os.environ[name] for name in kept if name in os.environ}
    return own | {"BENTOML_DO_NOT_TRACK": "True"}


def run_cleanly(
    project: Project, ship: Path, arguments: list[str], cwd: Path, given: str = "", **env: str
) -> str:
    """Run Python in the clean environment of a release: two minutes, and one for 20 MB given."""
    command = [str(service_environment(project, ship)), *arguments]
    timeout = PATIENCE_SECONDS + 60 * len(given) // 20_000_000
    return run(command, cwd, input=given, env=clean_variables(project) | env, timeout=timeout)


def score_cleanly(project: Project, ship: Path, rows: pa.Table) -> Floats:
    """Return the scores that a release gives to rows of the contract, shape (n,)."""
    columns = {name: rows.column(name).to_pylist() for name in project.contract.inputs}
    given = json.dumps(columns, default=str)  # JSON keeps every digit of a number
    return np.array(json.loads(run_cleanly(project, ship, ["service.py"], ship, given)))


class Scorer(AbstractContextManager["Scorer"]):
    """A release that scores batch after batch: a process in its clean environment, for a block.

    It ends with this process, however that ends: its input does. What it says is in `log`.
    """

    def __init__(self, project: Project, ship: Path, log: Path) -> None:
        if STREAM not in (ship / "service.py").read_text():
            what = f"{ship.parent.name[:12]} is a release from before `ml predict`"
            raise UserError(f"{what}; deploy one that was trained since")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(service_environment(project, ship).absolute()), "service.py", STREAM]
        self.process = spawn(command, ship, clean_variables(project), log, subprocess.PIPE)
        self.log = log

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def score(self, columns: Mapping[str, pa.Array]) -> Floats:
        """Return the probability of each row, shape (n,); a UserError where it gives none."""
        head, values = list[tuple[str, str, list[str] | None]](), list[NDArray[Any]]()
        for name, column in columns.items():
            text = pa.types.is_string(column.type)
            data = column.dictionary_encode() if text else column
            places = data.indices.fill_null(-1) if text else column
            values.append(places.to_numpy(zero_copy_only=False))
            head.append((name, values[-1].dtype.str, data.dictionary.to_pylist() if text else None))
        given, answers, rows = self.process.stdin, self.process.stdout, len(values[0])
        assert given is not None, "it has pipes"
        assert answers is not None, "it has pipes"
        timer = threading.Timer(PATIENCE_SECONDS, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            with suppress(BrokenPipeError):  # it ended, and gives no answer either
                given.write(json.dumps({"rows": rows, "columns": head}).encode() + b"\n")
                given.writelines(part.tobytes() for part in values)
                given.flush()
            scores = answers.read(8 * rows)
        finally:
            timer.cancel()
        if len(scores) < 8 * rows:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
            raise UserError(f"the release ended while it scored {rows} rows:\n{tail}")
        return np.frombuffer(scores)


def start(
    project: Project,
    ship: Path,
    log: Path,
    port: int = 0,
    noop: bool = False,
    release: str = "none",
    variables: Mapping[str, str] | None = None,
    again: bool = True,
) -> Running:
    """Start a release's service in its clean environment, and wait until it is itself.

    Its output is in `log`; port 0 takes a free one; `noop` starts the twin without its model. A
    UserError says why it does not come up. Of foreign bytes nothing runs, and nothing is left.
    """
    digest, python = verify(ship), service_environment(project, ship)
    launch, free = secrets.token_hex(8), free_port(port)
    home = log.with_name(f"{log.stem}-{launch}")
    env = clean_variables(project) | {NOOP: "1" if noop else "", RELEASE: release, LAUNCH: launch}
    env |= {"PYTHONPATH": str((ship / "src").resolve()), **(variables or {})}
    env |= dict.fromkeys(("BENTOML_HOME", "TMPDIR"), str(home.resolve()))
    command = [str(python.absolute()), "-m", "bentoml", "serve", "service:service", "--host", HOST]
    command += ["--working-dir", str(ship.resolve()), "--port", str(free)]
    answers = f"{TWIN_MARK}{digest}" if noop else digest
    service = Running(f"http://{HOST}:{free}", answers, launch, home)
    home.mkdir(parents=True)
    try:
        _wait(service, spawn(command, home, env, log), log, project.delivery.start_timeout_seconds)
        return service
    except BaseException as error:
        end(home, patience=1)  # nobody waits for an answer of it
        if not (again and "Address already in use" in str(error).partition("service ended")[2]):
            raise
    # A port was free when it was chosen, here or by BentoML, and another program was quicker.
    return start(project, ship, log, port, noop, release, variables, again=False)


def spawn(
    command: list[str],
    cwd: Path,
    env: dict[str, str],
    log: Path,
    talk: int | None = None,
    mode: str = "wb",
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own; what it prints is in `log`, unless it is to talk."""
    with log.open(mode) as output:
        streams: dict[str, Any] = {"stdin": talk or subprocess.DEVNULL, "stdout": talk or output}
        streams |= {"stderr": output, "start_new_session": True}
        return subprocess.Popen(command, cwd=cwd, env=env, **streams)


def identity(url: str) -> tuple[str | None, str | None] | None:
    """Return digest and token of what is ready at `url`, plain HTTP here; None for nothing."""
    with suppress(httpx.HTTPError):
        answer = httpx.get(f"{url}/readyz", trust_env=False, verify=False)  # noqa: S501 - no TLS
        if answer.status_code == 200:
            return answer.headers.get("x-model-digest"), answer.headers.get("x-launch")
    return None


def free_port(port: int = 0) -> int:
    """Return a port that nobody listens on; a UserError where that is not the one asked for."""
    own = secrets.SystemRandom().sample(range(10_000, 32_000), 99)  # no connection gets one of them
    for place in [port] if port else own:
        with suppress(OSError), socket.create_server((HOST, place)):
            return place
    how = "stop it, or choose another: `port` in config/delivery.yaml, --port of `ml serve`"
    raise UserError(f"port {port} is in use by {_holder(port)}; {how}")


def _holder(port: int) -> str:
    """Say which program listens on a port, as far as one is told of it."""
    with suppress(psutil.Error):
        for one in psutil.net_connections("tcp"):
            if one.pid and (one.status, *one.laddr[1:]) == ("LISTEN", port):
                holder = psutil.Process(one.pid)
                return f"process {one.pid}, `{holder.name()}` in {holder.cwd()}"
    return "another program"


def processes(home: Path) -> list[psutil.Process]:
    """Return the living processes whose `TMPDIR`, handed on from parent to child, is in `home`."""
    found = psutil.process_iter(["environ"])
    places = [(Path((p.info["environ"] or {}).get("TMPDIR", "/")), p) for p in found]
    return [process for place, process in places if place.is_relative_to(home.resolve())]


def end(home: Path, patience: float = 10) -> None:
    """End the processes of a home, asked first and forced some seconds later; take it away."""
    for sign, most in ((signal.SIGTERM, patience), (signal.SIGKILL, 5)):
        deadline = time.monotonic() + most
        for process in processes(home):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(sign)
        while processes(home) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    shutil.rmtree(home, ignore_errors=True)


def _wait(service: Running, process: subprocess.Popen[bytes], log: Path, timeout: float) -> None:
    """Return when the service has shown its identity; raise, with its last words, if it ends."""
    deadline = time.monotonic() + timeout
    while (found := identity(service.url)) != (service.digest, service.launch):
        if found is not None:
            raise UserError(f"{service.url}: another service answers there; stop it")
        code, said = process.poll(), log.read_text(errors="replace").splitlines()  # in this order
        for refusal in (line for line in said if REFUSAL in line):
            raise NotReadyError(f"{refusal[refusal.index(REFUSAL) :]}; see {log}")
        tail = "\n".join(said[-8:])
        if code is not None:
            raise NotReadyError(f"the service ended with code {code} at start:\n{tail}")
        if time.monotonic() > deadline:
            raise NotReadyError(f"the service was not ready within {timeout:g} s:\n{tail}")
        time.sleep(_POLL_SECONDS)
