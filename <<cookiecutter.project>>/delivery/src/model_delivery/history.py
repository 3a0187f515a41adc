"""What became of a release, by the log; and MLflow as a view of it, which can be deleted."""

import fcntl
import json
import logging
import os
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from socket import socket
from subprocess import STDOUT, Popen
from time import sleep
from typing import Any

from rich.table import Table

from model_delivery.bundle.environment import program_python, run
from model_delivery.bundle.launch import HOST, end, free_port
from model_delivery.errors import UserError
from model_delivery.project import Project
from model_delivery.registry import Event, event_log, newest
from model_delivery.report.render import clean, number

EMPTY = "nothing registered yet; `ml ship` registers what it deploys"
SERVER = "MLFLOW_TRACKING_URI"
_DATA = ("digest", "commit", "as_of", "snapshot")
_NOTHING: dict[str, Any] = {"release": "no champion", "parameters": {}, "metrics": {}}
_VIEW = Path(__file__).parent / "checks" / "mlflow_view.py"


def find(events: Sequence[Event], wanted: str) -> Event:
    """Return the first registration of a release, given by name or first digits of its digest."""
    releases = {e.digest: e for e in reversed(events) if e.type == "registered"}
    found = [e for e in releases.values() if e.release == wanted or e.digest.startswith(wanted)]
    if len(found) != 1:
        names = ", ".join(f"{e.release} ({e.digest[:12]})" for e in [*releases.values()][:20])
        many = "more than one" if found else "no"
        raise UserError(f"{many} release `{wanted}`; the newest: {names}" if names else EMPTY)
    return found[0]


def describe(
    events: Sequence[Event], wanted: str, other: str | None = None
) -> tuple[dict[str, Any], Table]:
    """Return a release beside another, as facts for a program and as a table.

    Without another it is beside the champion that its gates compared it with, and the table has
    all parameters, not only those that differ, and what happened to it since.
    """
    one = find(events, wanted)
    champion = newest(events, type="registered", digest=one.against or "")
    two = champion if other is None else find(events, other)
    there = two or one.model_copy(update=dict.fromkeys(_DATA, "") | _NOTHING)
    pairs, metrics = _pairs(one.parameters, there.parameters), _pairs(one.metrics, there.metrics)
    differ = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    change = {name: x[0] - y[0] for name, (x, y) in metrics.items() if x and y}
    since = [e for e in events if one.digest in (e.digest, e.previous) and e.id != one.id]
    table = Table(box=None, pad_edge=False)
    for header in ("", one.release, there.release, "difference"):
        table.add_column(header, overflow="fold")
    for name in _DATA:
        table.add_row(name, *(clean(getattr(it, name))[:21] for it in (one, there)))
    for name, pair in (pairs if other is None else differ).items():
        table.add_row(clean(name), *map(clean, pair))
    for name, pair in metrics.items():
        table.add_row(name, *map(_metric, pair), number(change.get(name)))
    if other is None:
        for gate, outcome in one.verdicts.items():
            table.add_row(f"gate {gate}", outcome)
        for e in [one, *since]:
            table.add_row(e.time[:16], clean(_happened(e, one.digest)), f"{e.who}, {e.trigger}")
    dumps = [it and it.model_dump(mode="json") for it in (one, two, *since)]
    facts = {"release": dumps[0], "beside": dumps[1], "since": dumps[2:]}
    return facts | {"parameters": differ, "differences": change}, table


def _pairs(one: dict[str, Any], two: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (one.get(name), two.get(name)) for name in one | two}


def _metric(found: list[float | None] | None) -> str:
    value, low, high = found or [None] * 3
    return number(value) if low is None else f"{number(value)} ({number(low)} to {number(high)})"


def _happened(event: Event, digest: str) -> str:
    what = event.type if event.digest == digest else f"gave way to {event.release}, {event.type}"
    return " ".join(filter(None, (what, event.environment, event.reason)))


def replay(project: Project, store: str) -> str:
    """Make an MLflow store show the log; return the Python that has MLflow."""
    if not store:
        raise UserError(f"{SERVER} is not set; let it be the address of an MLflow server")
    folder = project.work / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    settings = tomllib.loads((project.root / "pyproject.toml").read_text(encoding="utf-8"))
    python = program_python(_VIEW, folder)
    command = [python, str(_VIEW), settings["project"]["name"]]
    env = os.environ | {SERVER: store, "PYTHONDONTWRITEBYTECODE": ""}
    with (folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # of two the later one has read the longer log
        events = [event.model_dump(mode="json") for event in event_log(project).events()]
        try:
            run(command, folder, env=env, input=json.dumps(events), timeout=300)
        except UserError as error:  # a traceback, perhaps with a password in an address
            why = str(error).replace(store.rstrip("/"), "the server").splitlines()[-1][:200]
            raise UserError(f"MLflow does not show the newest events: {why}") from None
    return python


def mirror(project: Project) -> None:
    """Make the server at MLFLOW_TRACKING_URI, if set, show the log; a failure is only warned of."""
    try:
        if store := os.environ.get(SERVER):
            replay(project, store)
    except Exception as error:
        why = " ".join(str(error).split())
        logging.getLogger(__name__).warning("%s; the next event tries again", why)


def browse(project: Project, port: int, tell: Callable[[str], None]) -> None:
    """Show the log in MLflow's UI until this process is ended; `tell` gets its address."""
    folder, port = project.work / "mlflow", free_port(port)
    store, home, log = f"sqlite:///{folder}/view.sqlite", folder / f"ui-{port}", folder / "ui.log"
    command = [replay(project, store), "-m", "mlflow", "ui", "--backend-store-uri", store]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    env = {"TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    env |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes with nothing to do
    home.mkdir(exist_ok=True)
    try:
        with log.open("wb") as out:  # in a session of its own: Ctrl-C is ours to pass on
            more: dict[str, Any] = {"stderr": STDOUT, "start_new_session": True}
            server = Popen(command, cwd=home, env=os.environ | env, stdout=out, **more)
        while server.poll() is None and socket().connect_ex((HOST, port)):
            sleep(0.2)
        if server.poll() is None:
            tell(f"http://{HOST}:{port}")
        raise UserError(f"MLflow's UI ended with code {server.wait()}; its log is {log}")
    finally:
        end(home)
