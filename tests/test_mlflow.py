"""MLflow shows the log of events and nothing else, whoever replays it, how often and when.

Two servers, as a team would run them: one on PostgreSQL, and on SQLite the one that the UI of
`ml history` is.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.baking import BakedProject, environment, free_port
from tests.conftest import missing_packages

PROGRAM = "delivery/src/model_delivery/checks/mlflow_view.py"
PROJECT = "late-departures"
SECONDS = 30  # for 200 releases into a file


def log(releases: int) -> list[dict[str, Any]]:
    """Return the events of a project: of three releases one is never promoted, one judged again."""
    events: list[dict[str, Any]] = []
    champion = None
    for number in range(releases):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        metrics: dict[str, Any] = {
            f"metric_{n}": [0.7 + n / 100, 0.6, None if n % 2 else 0.9] for n in range(10)
        }
        event: dict[str, Any] = {
            "type": "registered",
            "digest": digest,
            "release": f"v0.1.0+data.20130801.{number + 1}",
            "as_of": "2013-08-01",
            "commit": None if number else "c" * 40,
            "trigger": "local",
            "blob": "b" * 64,
            "environment": None,
            "who": "ann",
        }
        about: dict[str, Any] = {"verdicts": {"data": "pass", "model": "warn"}, "against": champion}
        about |= {"snapshot": f"20130801-{digest[:12]}", "metrics": metrics}
        about |= {"parameters": {f"parameter_{n}": n * number for n in range(12)}}
        events.append(event | about)
        if number % 3 == 1:  # judged again, beside the same champion
            again = {"type": "verdict", "verdicts": {"data": "pass", "model": "pass"}}
            worse = {name: [ends[0] - 0.01, *ends[1:]] for name, ends in metrics.items()}
            events.append(event | about | again | {"metrics": worse})
        if number % 3 != 2:
            moved = {"type": "promoted", "environment": "production", "previous": champion}
            events.append(event | moved)
            champion = digest
    refused = {"type": "verdict", "digest": "none", "blob": "", "release": "refused 0123456789ab"}
    events.append(event | about | refused | {"trigger": "retraining"})  # is none
    start = dt.datetime(2013, 8, 1, tzinfo=dt.UTC)
    for number, event in enumerate(events):
        time_ = (start + dt.timedelta(hours=number)).isoformat()
        event |= {"id": f"{number:032x}", "time": time_}
    return events


def shown_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a store must show of a log, by release."""
    events = [event for event in events if event["blob"]]
    names = {event["digest"]: event["release"] for event in events}
    wanted: dict[str, Any] = {"aliases": {}}
    metrics: dict[str | None, dict[str, float]] = {}
    for event in events:
        if event["environment"]:
            wanted["aliases"] = dict.fromkeys(("production", "champion"), event["release"])
            continue
        digest, beside = event["digest"], event["against"]
        metrics[digest] = {name: found[0] for name, found in event["metrics"].items()}
        tags = {"digest": digest, "id": event["id"], "release": event["release"]}
        tags |= {"as_of": event["as_of"], "commit": event["commit"] or "none"}
        tags |= {"against": beside or "none"}
        tags |= {f"verdict.{gate}": outcome for gate, outcome in event["verdicts"].items()}
        if beside:
            tags |= {"champion": names[beside]}
            tags |= {f"champion.{name}": str(value) for name, value in metrics[beside].items()}
        ends = zip(("", "_low", "_high"), range(3), strict=True)
        parts = [(f"{k}{end}", v[n]) for end, n in ends for k, v in event["metrics"].items()]
        time_ = int(dt.datetime.fromisoformat(event["time"]).timestamp() * 1000)
        wanted[event["release"]] = {
            "params": {name: str(value) for name, value in event["parameters"].items()},
            "metrics": {name: value for name, value in parts if value is not None},
            "tags": tags,
            "data": [(event["snapshot"], event["snapshot"][9:])],
            "time": wanted.get(event["release"], {"time": time_})["time"],  # of its registration
            "version": {"digest": digest, "release": event["release"]},
        }
    newest = list(names.values())[-1]
    if wanted["aliases"].get("champion") != newest:
        wanted["aliases"]["challenger"] = newest
    return wanted


class Server:
    """An MLflow server by its REST interface: what it shows, and what people do to it."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """Send a request."""
        url = f"{self.address}/api/2.0/mlflow/{path}"
        data = None if method == "GET" else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - http
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - http
            return dict(json.load(answer))

    def experiment(self) -> str:
        """Return the experiment's id."""
        found = self.ask("GET", f"experiments/get-by-name?experiment_name={PROJECT}")
        return str(found["experiment"]["experiment_id"])

    def runs(self) -> list[dict[str, Any]]:
        """Return all runs that are not deleted."""
        asked = {"experiment_ids": [self.experiment()], "max_results": 999}
        return list(self.ask("POST", "runs/search", **asked).get("runs", []))

    def shown(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what is shown, as `shown_of`, and the ids by which it is."""
        shown: dict[str, Any] = {}
        names: dict[str, str] = {}
        for run in self.runs():
            info, data = run["info"], run["data"]
            parts = {k: {it["key"]: it["value"] for it in data.get(k, [])} for k in data}
            parts["tags"] = {
                k: v for k, v in parts["tags"].items() if k.partition(".")[0] != "mlflow"
            }
            sets = [it["dataset"] for it in run["inputs"]["dataset_inputs"]]
            more = {"data": [(it["name"], it["digest"]) for it in sets], "time": info["end_time"]}
            assert (info["status"], info["start_time"]) == ("FINISHED", info["end_time"])
            assert info["run_name"] not in shown
            names[info["run_id"]] = info["run_name"]
            shown[info["run_name"]] = parts | more
        numbers = {}
        for version in self.versions():
            name = names[version["run_id"]]
            assert "version" not in shown[name]
            shown[name]["version"] = {it["key"]: it["value"] for it in version["tags"]}
            numbers[str(version["version"])] = name
        model = self.ask("GET", f"registered-models/get?name={PROJECT}")["registered_model"]
        aliases = {it["alias"]: numbers[str(it["version"])] for it in model.get("aliases", [])}
        return shown | {"aliases": aliases}, numbers | names

    def mess(self) -> None:
        """Leave what people and crashes leave: nothing of it is in the log."""
        runs, experiment = self.runs(), self.experiment()
        versions = [number for number in self.shown()[1] if number.isdigit()]
        self.ask("POST", "runs/delete", run_id=runs[0]["info"]["run_id"])
        for run in runs[:2]:  # the first is half done, the second is there twice
            about = {"run_name": run["info"]["run_name"], "start_time": run["info"]["start_time"]}
            tags = run["data"]["tags"]
            made = self.ask("POST", "runs/create", experiment_id=experiment, tags=tags, **about)
            run_id = made["run"]["info"]["run_id"]
            source = {"source": f"runs:/{run_id}/x", "run_id": run_id}
            self.ask("POST", "model-versions/create", name=PROJECT, **source)
        for alias in ("champion", "mine"):
            about = {"name": PROJECT, "alias": alias, "version": versions[0]}
            self.ask("POST", "registered-models/alias", **about)
        self.ask("DELETE", "model-versions/delete", name=PROJECT, version=versions[1])

    def stranger(self, by_a_run: bool) -> None:
        """Let another team have a model of the same name, of a run of its own or of none."""
        self.ask("POST", "registered-models/create", name=PROJECT)
        about = {"name": PROJECT, "source": "s3://theirs/model"}
        if by_a_run:
            made = self.ask("POST", "experiments/create", name="theirs")["experiment_id"]
            run = self.ask("POST", "runs/create", experiment_id=made)["run"]
            about["run_id"] = run["info"]["run_id"]
        self.ask("POST", "model-versions/create", **about)

    def versions(self) -> list[dict[str, Any]]:
        """Return all versions of the model."""
        path = f"model-versions/search?filter=name%3D%27{PROJECT}%27"
        return list(self.ask("GET", path).get("model_versions", []))

    def delete(self) -> None:
        """Delete all of the view that the UI lets people delete."""
        self.ask("POST", "experiments/delete", experiment_id=self.experiment())
        self.ask("DELETE", "registered-models/delete", name=PROJECT)


class Viewer:
    """The program that replays a log, in its environment."""

    def __init__(self, project: BakedProject) -> None:
        self.program = str(project.path / PROGRAM)
        project.run("uv", "sync", "--quiet", "--script", self.program)
        found = project.run("uv", "python", "find", "--script", self.program).stdout
        self.python = found.strip()

    def start(self, store: str, events: list[dict[str, Any]]) -> subprocess.Popen[str]:
        """Start a replay."""
        command = [self.python, self.program, PROJECT]
        with tempfile.TemporaryFile("w+") as given:
            json.dump(events, given)
            given.seek(0)
            more: dict[str, Any] = {"stdin": given, "stderr": subprocess.PIPE, "text": True}
            env = environment({"MLFLOW_TRACKING_URI": store})
            return subprocess.Popen(command, env=env, cwd=tempfile.gettempdir(), **more)

    def replay(self, store: str, events: list[dict[str, Any]], at_once: int = 1) -> None:
        """Replay a log, several times at once if asked, and wait for all of them."""
        for program in [self.start(store, events) for _ in range(at_once)]:
            said = program.communicate(timeout=120)[1]
            assert program.returncode == 0, said


def status(url: str) -> int | None:
    """Return the HTTP status at a URL; None while nobody answers."""
    with suppress(OSError), urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - http
        return int(answer.status)
    return None


@contextmanager
def postgresql() -> Iterator[str]:
    """Start a PostgreSQL in a folder of its own, never as root; yield its address."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"))
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    made = ["-D", str(folder / "data"), "-U", "postgres", "--auth", "trust", "--no-sync"]
    quiet: dict[str, Any] = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL}
    subprocess.run([programs / "initdb", *made], check=True, **quiet)
    options = ["-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"]
    command = [str(programs / "postgres"), "-D", str(folder / "data"), *options]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, **quiet)
    try:
        yield f"postgresql+psycopg2://postgres@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait(30)
        shutil.rmtree(folder)


@contextmanager
def on_postgresql(viewer: Viewer, folder: Path) -> Iterator[Server]:
    """Start a team's server; it answers later."""
    driver, port = str(folder / "driver"), free_port()
    install = ["uv", "pip", "install", "-q", "--python", viewer.python, "--target", driver]
    subprocess.run([*install, "psycopg2-binary"], check=True, cwd=folder)
    command = [viewer.python, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    env = environment({"PYTHONPATH": driver, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    with postgresql() as store, (folder / "server.log").open("wb") as output:
        server = subprocess.Popen(
            [*command, "--backend-store-uri", store],
            cwd=folder,
            env=env | {"MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            yield Server(f"http://127.0.0.1:{port}")
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)


@contextmanager
def on_sqlite(project: BakedProject) -> Iterator[Server]:
    """Start the UI of `ml history`, which answers once this yields; end it as Ctrl-C does."""
    # A shell starts what is in the background deaf to Ctrl-C, and so all that it starts.
    command = ["env", "--default-signal=INT", str(project.path / ".venv" / "bin" / "ml")]
    command += ["history", "--ui", "--json"]
    more: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}
    ui = subprocess.Popen(command, cwd=project.path, env=environment(), **more)
    try:
        assert ui.stdout
        yield Server(json.loads(ui.stdout.readline()))
    finally:
        ui.send_signal(signal.SIGINT)
        assert ui.wait(30) == 0


def write_log(project: BakedProject, events: list[dict[str, Any]]) -> None:
    """Write a project's log as the machinery does."""
    folder, after = project.path / ".ml" / "registry" / "events", ""
    folder.mkdir(parents=True, exist_ok=True)
    for number, event in enumerate(events, start=1):
        text = json.dumps(event | {"after": after})
        (folder / f"{number:06}.json").write_text(text)
        after = hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def project(ready: BakedProject, tmp_path_factory: pytest.TempPathFactory) -> BakedProject:
    """Return a project with six releases, five of them served at some time."""
    copy = ready.copy(tmp_path_factory.mktemp("history"))
    write_log(copy, log(6))
    return copy


@pytest.fixture(scope="module")
def viewer(project: BakedProject) -> Viewer:
    """Return the program of a project in its environment."""
    return Viewer(project)


@pytest.fixture(scope="module")
def servers(
    viewer: Viewer, project: BakedProject, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """Return both servers, started at the same time; of PostgreSQL only where it is installed."""
    found = {}
    with ExitStack() as stack:
        if not missing_packages("postgresql"):
            folder = tmp_path_factory.mktemp("postgresql")
            found["postgresql"] = stack.enter_context(on_postgresql(viewer, folder))
        found["sqlite"] = stack.enter_context(on_sqlite(project))
        yield found


KEPT = {
    "params": "select run_uuid, key, value from params",
    "metrics": "select run_uuid, key, value from latest_metrics",
    "tags": "select run_uuid, key, value from tags",
    "data": "select destination_id, d.name, d.digest from inputs, datasets d "
    "where source_id = dataset_uuid",
    "version": "select run_id, t.key, t.value from model_versions v, model_version_tags t "
    "where (t.name, t.version) = (v.name, v.version)",
}
"""By part of what is shown, where a file of MLflow's has it."""
ALIASES = """select alias, run_id from registered_model_aliases a, model_versions v
where (a.name, a.version) = (v.name, v.version)"""


def kept(store: Path) -> dict[str, Any]:
    """Return what a file of MLflow's has of each run, in part as `shown_of`."""
    with closing(sqlite3.connect(store)) as file:
        names = dict(file.execute("select run_uuid, name from runs"))
        found: dict[str, Any] = {name: {} for name in names.values()}
        for part, query in KEPT.items():
            for run, name, value in file.execute(query):
                if not name.startswith("mlflow."):
                    found[names[run]].setdefault(part, {})[name] = value
        found["aliases"] = {alias: names[run] for alias, run in file.execute(ALIASES)}
    return found


def test_200_releases_are_replayed_into_a_file_in_time(viewer: Viewer, tmp_path: Path) -> None:
    """By the time of the processor: a busy machine says nothing of the program."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    events = log(200)
    back = {"type": "rolled_back", "environment": "staging", "digest": "f" * 64, "id": "f" * 32}
    viewer.replay(f"sqlite:///{tmp_path}/view.sqlite", [*events, events[-2] | back])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wall = time.monotonic() - started
    print(f"200 releases: {seconds:.1f} s of a processor, {wall:.1f} s in all")
    assert seconds <= SECONDS
    wanted = shown_of(events)  # nothing of one that was deployed by hand, and never registered
    aliases = wanted.pop("aliases")
    assert len(wanted) == 200
    parts = {name: {part: dict(it[part]) for part in KEPT} for name, it in wanted.items()}
    assert kept(tmp_path / "view.sqlite") == parts | {"aliases": aliases}


def test_the_ui_answers_and_shows_the_log(servers: dict[str, Server]) -> None:
    assert status(servers["sqlite"].address) == 200
    assert servers["sqlite"].shown()[0] == shown_of(log(6))


def keeps_its_promises(viewer: Viewer, server: Server) -> None:
    """Replay at a server: at once, again, and after all was deleted or put into disorder."""
    events, deadline = log(6), time.monotonic() + 120
    while status(f"{server.address}/health") != 200:
        assert time.monotonic() < deadline, "the server does not come up"
        time.sleep(0.3)
    viewer.replay(server.address, events[: [it["type"] for it in events].index("verdict")])
    viewer.replay(server.address, events, at_once=3)
    shown, ids = server.shown()
    assert shown == shown_of(events)
    assert shown["aliases"]["challenger"] != shown["aliases"]["champion"]
    viewer.replay(server.address, events)
    assert server.shown() == (shown, ids)
    for other in ([], events[2:]):
        program = viewer.start(server.address, other)
        assert "of another log" in program.communicate(timeout=120)[1]
        assert program.returncode == 1
    assert server.shown() == (shown, ids)
    server.mess()
    viewer.replay(server.address, [*events, *log(7)[-3:]])
    assert server.shown()[0] == shown_of(log(7))
    server.delete()
    viewer.replay(server.address, log(7))
    assert server.shown()[0] == shown_of(log(7))
    server.delete()
    for by_a_run in (False, True):
        server.stranger(by_a_run)
        assert "is of no log" in viewer.start(server.address, events).communicate(timeout=120)[1]
        assert [version["source"] for version in server.versions()] == ["s3://theirs/model"]
        server.ask("DELETE", "registered-models/delete", name=PROJECT)
    viewer.replay(server.address, events)
    assert server.shown()[0] == shown_of(events)


def test_a_server_on_sqlite_shows_the_log(viewer: Viewer, servers: dict[str, Server]) -> None:
    servers["sqlite"].delete()
    keeps_its_promises(viewer, servers["sqlite"])


@pytest.mark.debian("postgresql")
def test_a_server_on_postgresql_shows_the_log(viewer: Viewer, servers: dict[str, Server]) -> None:
    keeps_its_promises(viewer, servers["postgresql"])


def test_a_server_that_is_away_is_a_warning_and_nothing_more(project: BakedProject) -> None:
    code = "from model_delivery import history, project; history.mirror(project.find_project())"
    away = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    done = project.run("uv", "run", "python", "-c", code, env=away)
    assert len(done.stderr.strip().splitlines()) == 1
    assert "MLflow does not show the newest events" in done.stderr
