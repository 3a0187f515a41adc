"""What became of a release, by the log; and MLflow as a view of it, which can be deleted."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGTERM
from socket import socket
from time import sleep
from typing import Any

import pandas as pd

from model_delivery.bundle.launch import HOST, free_port, program_python, run, spawn
from model_delivery.files import alone
from model_delivery.project import Project
from model_delivery.protocols import UserError, without_tokens
from model_delivery.registry import Event, event_log, newest
from model_delivery.releases import find, recorded
from model_delivery.report.render import clean, number

EMPTY = "nothing registered yet; `ml ship` registers what it deploys"
SERVER = "MLFLOW_TRACKING_URI"
_VIEW = Path(__file__).parent / "checks" / "mlflow_view.py"


def line(event: Event) -> str:
    """Return an event as one line."""
    judged = ", ".join(f"{gate} {outcome}" for gate, outcome in event.verdicts.items())
    what = f"{event.release}  {event.digest[:12]}  {event.type:11}  {event.environment or judged}"
    what += f" from {event.previous[:12]}" if event.previous else ""
    what += " (rehearsed)" if event.rehearsed else ""
    why = f"{event.trigger}: {event.because}" if event.because else event.trigger
    return clean(f"{event.time[:19]}  {what}  {event.reason}  ({event.who}, {why})")


def describe(events: Sequence[Event], wanted: str, other: str = "") -> tuple[list[Event], str]:
    """Return the events that say what a release is, and how it differs from another, as a table.

    Each is shown as it was judged last. Without another it stands whole beside the champion that
    its gates compared it with, if there was one, and above what happened to it.
    """
    one = find(events, wanted)
    against = recorded(events, one).against
    champion = newest(events, type="registered", digest=against)
    two = find(events, other) if other else champion
    pair = [event for event in (one, two) if event]
    judged = [recorded(events, event) for event in pair]
    table = pd.DataFrame({clean(event.release): _facts(event) for event in judged})
    if other:
        unlike = table[table.nunique(axis=1, dropna=False) > 1]
        return judged, unlike.to_string(na_rep="") if len(unlike) else "no difference"
    since = [e for e in events if one.digest in (e.digest, e.previous) and e.id != one.id]
    return pair + since, "\n".join([table.to_string(na_rep=""), "", *map(line, [one, *since])])


def _facts(event: Event) -> dict[str, str]:
    names = {"digest": event.digest, "commit": event.commit, "against": event.against}
    told: dict[str, Any] = {name: (value or "none")[:12] for name, value in names.items()}
    told |= {"as_of": event.as_of, "snapshot": event.snapshot, "note": event.reason}
    told |= {f"parameter {name}": value for name, value in event.parameters.items()}
    for name, found in event.metrics.items():
        told[f"metric {name}"] = "{} ({} to {})".format(*map(number, found))
    told |= {f"gate {name}": outcome for name, outcome in event.verdicts.items()}
    return {clean(name): clean(value) for name, value in told.items()}


def replay(project: Project, store: str) -> str:
    """Make an MLflow store show the log; return the Python that has MLflow."""
    folder = project.work / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    python = program_python(_VIEW, folder)
    with alone(folder / "lock"):  # of two the later one has read the longer log
        events = [event.model_dump(mode="json") for event in event_log(project).events()]
        env = without_tokens() | {SERVER: store}
        try:
            command = [python, str(_VIEW), project.about["name"]]
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
    """Show the log at MLFLOW_TRACKING_URI, or until Ctrl-C in a UI here; `tell` gets where."""
    if server := os.environ.get(SERVER):
        replay(project, server)
        return tell(SERVER)
    folder, port = project.work / "mlflow", free_port(port)
    store, log = f"sqlite:///{folder}/view.sqlite", folder / "ui.log"
    command = [replay(project, store), "-m", "mlflow", "ui", "--backend-store-uri", store]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    env = without_tokens() | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # eight processes with nothing to do
    ui = spawn(command, folder, env, log)
    try:
        while ui.poll() is None and socket().connect_ex((HOST, port)):
            sleep(0.2)
        if ui.poll() is None:
            tell(f"http://{HOST}:{port}")
        raise UserError(f"MLflow's UI ended with code {ui.wait()}; its log is {log}")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(ui.pid, SIGTERM)
