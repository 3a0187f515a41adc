"""The services of an environment: none is ever forgotten, none taken for another."""

from __future__ import annotations

import secrets
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from model_delivery.bundle.environment import service_environment
from model_delivery.files import read_json, write_atomic, write_json
from model_delivery.rollout.process import Process, last, recorded, recording
from model_delivery.rollout.target import Target
from model_delivery.serving.launch import identity, start


@dataclass(frozen=True)
class Service:
    """One started service and how it is recognised."""

    folder: Path
    digest: str
    port: int
    launch: str

    def process(self) -> Process | None:
        """Return its process while it lives."""
        return recorded(self.folder)

    def healthy(self) -> bool:
        """Return whether this very service answers: readiness alone would not tell."""
        known = (self.digest, self.launch)
        return self.process() is not None and identity(f"http://127.0.0.1:{self.port}") == known


def services(target: Target) -> list[Service]:
    """Return the services that became ready and were not stopped, dead or alive."""
    records = sorted(target.folder.glob("services/*/service.json"))
    return [Service(path.parent, **read_json(path)) for path in records]


def serve(target: Target, digest: str) -> Service:
    """Return a healthy service of a release: the one that runs, else a new one.

    Raises
    ------
    UserError
        When the release cannot be installed or is not ready in time; nothing of it runs then.
    """
    for known in services(target):
        if known.digest == digest and known.healthy():
            return known
    for folder in target.folder.glob("services/*"):
        if not (folder / "service.json").exists():
            _stop(folder)  # half started by a command that died: it only takes the processor
    ship = target.install(digest)
    python = service_environment(target.project, ship / "requirements.txt")
    folder = target.folder / "services" / f"{digest[:12]}-{secrets.token_hex(4)}"
    log = target.folder / "logs" / f"{folder.name}.log"
    # An interpreter that records its process before it becomes the real one.
    words = shlex.join([*recording(folder), str(python)])
    write_atomic(folder / "python", f'#!/bin/sh\nexec {words} "$@"\n')
    (folder / "python").chmod(0o700)
    log.parent.mkdir(exist_ok=True)
    try:
        limit = target.project.delivery.start_timeout_seconds
        running = start(ship, folder / "python", log, timeout=limit)
        service = Service(folder, digest, int(running.url.rpartition(":")[2]), running.launch)
        record = {"digest": digest, "port": service.port, "launch": service.launch}
        write_json(folder / "service.json", record)
    except BaseException:
        _stop(folder)
        raise
    return service


def stop_others(target: Target, service: Service | None = None) -> None:
    """Stop every service but one, half-started ones of a dead command included."""
    for folder in target.folder.glob("services/*"):
        if service is None or folder != service.folder:
            _stop(folder)


def _stop(folder: Path) -> None:
    process = last(folder)
    if process is not None:
        process.stop()
    homes = folder.parents[1].glob(f"logs/{folder.name}-*")  # made by the launcher, beside the log
    for left in (folder, *homes):
        shutil.rmtree(left, ignore_errors=True)
