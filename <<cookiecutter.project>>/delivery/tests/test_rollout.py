"""A deploy leaves the old state or the new one, whatever is killed, full, or in the way.

And a canary's judgement: sure failures at once, success when it is earned, else undecided.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import test_registry
import typer
from model_delivery import files, history, releases
from model_delivery.bundle import candidate as candidates
from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.launch import NotReadyError, Running, end, free_port, identity, processes
from model_delivery.cli import main, stages
from model_delivery.contract.settings import Delivery, RolloutLimits
from model_delivery.files import SUMS, seal, sha256_file, write_json
from model_delivery.project import Project
from model_delivery.protocols import UserError
from model_delivery.registry import Event, event_log
from model_delivery.releases import champion, judged, recall, register, resolve, restore
from model_delivery.report.verdict import Check, Outcome, Report, Verdict, fixed
from model_delivery.rollout import canary, host, proxy, supervisor, target
from model_delivery.rollout.canary import Answer, Traffic, compare
from model_delivery.rollout.host import rehearsal
from model_delivery.rollout.target import Target, standing
from model_delivery.training.snapshot import find_snapshot
from pydantic import ValidationError

STRIDE = int(os.environ.get("FAULT_STRIDE", "10"))
"""Faults are tried at every so many durable writes; 1 for all of them."""
NOT_REACHED = 9
STEPS = "{weight: 0.3, seconds: 1.5}, {weight: 0.5, seconds: 1.5}"
FAKE = """
import json, random, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, digest, launch, fault, release = sys.argv[1:]

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked = 0

    def do_GET(self):
        Handler.asked += self.path == "/predict"
        id = self.headers.get("x-request-id")
        if fault == "drop" and Handler.asked > 12 and random.random() < 0.3:
            print(f"dropped {id}\\n", end="", flush=True)  # one write each: threads share it
            self.close_connection = True
            return
        self.rfile.read(int(self.headers.get("content-length") or 0))
        time.sleep(1.5 if self.path == "/slow" else 0)
        score = 0.95 if fault == "constant" and self.path == "/predict" else random.random()
        body = {"release": digest[:12], "probability": [score]}
        if self.path == "/slow":
            body = {"id": id, "shadow": self.headers.get("x-shadow")}
        content = json.dumps(body).encode()
        self.send_response(503 if fault == "never-ready" else 200)
        self.send_header("x-score", str(score))
        self.send_header("x-release", release)
        self.send_header("content-length", str(len(content)))
        self.send_header("x-model-digest", "f" * 64 if fault == "liar" else digest)
        self.send_header("x-launch", launch)
        self.end_headers()
        self.wfile.write(content)
        print(f"answered {id}\\n", end="", flush=True)

    do_POST = do_GET
    log_message = lambda *_: None

if fault == "crash":
    sys.exit("cannot load the model")
ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""
"""A release's service that is ready in milliseconds, and bad in the ways a test asks for."""


def fake_start(project: Project, ship: Path, log: Path, release: str, **_: Any) -> Running:
    """Start the fake service as the real launcher does: ready and itself, or an error."""
    port, digest, launch = free_port(), sha256_file(ship / SUMS), secrets.token_hex(4)
    home = log.with_name(f"{log.stem}-{launch}")
    home.mkdir(parents=True)
    words = [
        sys.executable,
        "-c",
        FAKE,
        str(port),
        digest,
        launch,
        (ship / "fault").read_text(),
        release,
    ]
    with log.open("wb") as output:
        environment = os.environ | {"TMPDIR": str(home)}
        child = subprocess.Popen(
            words, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    url, patience = f"http://127.0.0.1:{port}", project.delivery.start_timeout_seconds
    deadline = time.monotonic() + patience
    while identity(url) != (digest, launch):
        if child.poll() is not None or time.monotonic() > deadline:
            end(home)
            raise NotReadyError(f"{digest[:12]} was not ready; see {log}")
        time.sleep(0.01)
    return Running(url, digest, launch, home)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.setattr(target, "start", fake_start)
    for module in (host, releases, stages):
        monkeypatch.setattr(module, "limits_hash", lambda *_: "limits")
    made = make_project(tmp_path / "project")
    yield made
    for name in ("production", "staging"):
        host.stop(Target(made, name))


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def make_project(root: Path) -> Project:
    (root / "config").mkdir(parents=True)
    (root / "config" / "delivery.yaml").write_text(
        f"environments: {{production: {{target: host, port: {free_port()}, canary: []}}, "
        f"staging: {{target: host, port: {free_port()}}}}}\n"
        "rollout: {shadow_rows: 10, requests_per_second: 100, min_requests: 20, "
        "shadow_distance: {max: 0.9, outcome: stop}, error_share: {max: 0.01, outcome: stop}, "
        "p95_ms: {max: 900, outcome: stop}, score_distance: {max: 0.4, outcome: stop}, "
        "memory_mb: {max: 500, outcome: stop}}\n"
        "keep_releases: 2\nstart_timeout_seconds: 20\n"
    )
    (root / "config" / "data.yaml").write_text(
        "{task: binary, target: late, time: at, key: [at], as_of: 2013-08-01, columns: "
        "{at: {type: timestamp}, late: {type: boolean}}}\n"
    )
    (root / "pyproject.toml").write_text('[project]\nversion = "1.1.0"\n')
    return Project(root)


def configured(project: Project, old: object, new: object) -> Project:
    path = project.root / "config" / "delivery.yaml"
    path.write_text(path.read_text().replace(str(old), str(new)))
    return Project(project.root)


def make_candidate(
    project: Project,
    name: str,
    against: Candidate | None = None,
    as_of: str = "2013-08-01",
    fault: str = "",
    **outcomes: str,
) -> Candidate:
    candidate = test_registry.make_candidate(project, name, as_of, fault=fault)
    for gate in releases.GATES:
        outcome = Outcome(outcomes.get(gate, "pass"))
        compared = against.digest if against and gate in ("model", "load") else None
        judged = find_snapshot(project, "s") if gate == "data" else candidate
        verdict = Verdict(
            gate=gate,
            subject=judged.folder.name,
            limits="limits",
            against=compared,
            checks=[Check(name="c", outcome=outcome, sentence=f"the {gate} sentence")],
        )
        judged.save(verdict)
    candidate.package.mkdir(exist_ok=True)
    seal(candidate.package)
    return candidate


def recorded(project: Project, candidate: Candidate) -> Event:
    """Return the event that a candidate is recorded by, with what the gates said of it."""
    return register(project, candidate, judged(project, candidate, "local"), "local")


def deploy(project: Project, candidate: Candidate) -> Verdict:
    return host.deploy(Target(project, "production"), recorded(project, candidate))


def rollback(project: Project, release: str | None = None) -> Event:
    return host.rollback(Target(project, "production"), release)


def state(project: Project) -> Any:
    return Target(project, "production").status()["state"]


def ask(
    project: Project, path: str = "/predict", body: bytes = b"{}", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    port = project.delivery.environments["production"].port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, body, named)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def served(project: Project) -> str:
    code, headers, _ = ask(project)
    return headers["x-model-digest"] if code == 200 else f"status {code}"


def running(project: Project) -> list[str]:
    return [service.digest for service in Target(project, "production").services()]


@pytest.fixture
def a(project: Project) -> Candidate:
    """Return the release that is served."""
    candidate = make_candidate(project, "a")
    deploy(project, candidate)
    return candidate


def test_first_deploy_serves_and_is_remembered(project: Project) -> None:
    candidate = make_candidate(project, "a")
    assert state(project) == "nothing deployed"
    assert deploy(project, candidate).outcome is Outcome.PASS
    assert Target(project, "production").status()["release"] == "v1.1.0+data.20130801.1"
    assert served(project) == candidate.digest
    assert [e.type for e in event_log(project).events()] == ["registered", "promoted"]
    assert set(event_log(project).events()[1].verdicts.values()) == {Outcome.PASS}
    found = Target(project, "production").status()
    assert (found["state"], found["problem"], found["untold"]) == ("serving", "", 0)
    old = champion(project)
    assert old is not None
    assert old.digest == candidate.digest
    assert deploy(project, candidate).decisive.name == "served"
    assert len(event_log(project).events()) == 2


def test_every_answer_names_release_and_request_errors_included(
    project: Project, a: Candidate
) -> None:
    big, forged = b"x" * 1_000_000, {"X_Request_Id": "the client's own", "x_ShaDow": "1"}
    asked: dict[int, Callable[[], tuple[int, dict[str, str], bytes]]] = {
        413: lambda: ask(project, body=big),
        404: lambda: ask(project, "/"),  # BentoML's page, which asks other hosts
        411: lambda: ask(project, Transfer_Encoding="chunked", body=b"1\r\nx\r\n0\r\n\r\n"),
        200: lambda: ask(project, "/slow", body=big[1:], **forged),
        502: lambda: ask(project),
    }
    for code, request in asked.items():
        if code == 502:
            end(project.work / "production" / "services")
        got, headers, body = request()
        assert (got, headers["x-release"]) == (code, "v1.1.0+data.20130801.1")
        assert len(headers["x-request-id"]) == 36
        own = {"id": headers["x-request-id"], "shadow": None}  # none hides from monitoring
        assert code != 200 or json.loads(body) == own


def test_what_the_proxy_rolled_over_is_read_too_and_once(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, size = Path(proxy.__file__).with_name("caddy.json").read_text(), '"roll_size_mb": '
    assert f"{size}100," in config
    (tmp_path / "caddy.json").write_text(config.replace(f"{size}100", f"{size}1"))
    monkeypatch.setattr(proxy, "__file__", str(tmp_path / "proxy.py"))
    begun, asked = time.time(), 0
    deploy(project, make_candidate(project, "a"))
    place = Target(project, "production")
    while len(place.proxy.logs) < 2:
        assert asked < 20_000, "it does not roll over, or by another name"
        for _ in range(100):  # refused without a service
            assert ask(project, Transfer_Encoding="chunked", body=b"0\r\n\r\n")[0] == 411
        asked += 100

    def counted() -> int:
        return [answer["status"] for answer in place.proxy.answered(begun)].count(411)

    until(lambda: counted() >= asked)
    assert counted() == asked


@contextlib.contextmanager
def clients(project: Project, pause: float = 0.01) -> Iterator[list[str]]:
    """Ask from four threads, with pauses in seconds, until the block ends; yield what they get."""
    answers, done = list[str](), threading.Event()

    def ask() -> None:
        while not done.wait(pause):
            try:
                answers.append(served(project))
            except (OSError, http.client.HTTPException) as error:
                answers.append(repr(error))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    yield answers
    done.set()
    for thread in threads:
        thread.join()


def test_switches_under_traffic_fail_no_request(project: Project, a: Candidate) -> None:
    b = make_candidate(project, "b", against=a)
    with clients(project, pause=0) as answers:
        slow = threading.Thread(target=lambda: answers.append(f"slow {ask(project, '/slow')[1]}"))
        slow.start()
        time.sleep(0.3)
        deploy(project, b)
        for _ in range(2):
            rollback(project)
            rollback(project, b.short)
    slow.join()
    [of_slow] = [answer for answer in answers if answer.startswith("slow")]
    assert a.digest in of_slow  # answered by the release that took it
    assert {*answers} == {a.digest, b.digest, of_slow}
    assert running(project) == [b.digest]


def test_the_retraining_of_a_release_that_is_served_no_more_is_refused(
    project: Project, a: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = make_candidate(project, "b", against=a)
    files.write_atomic(project.work / candidates.CURRENT, b.digest)
    for champion_of_it in ("", "0" * 64):
        if champion_of_it:
            monkeypatch.setenv("ML_SUCCEEDS", champion_of_it)
            with pytest.raises(UserError, match=f"accepted {a.short} meanwhile.* code of 000000"):
                stages.gate(stages.Run(project), "model")
        else:
            assert stages.gate(stages.Run(project), "model").outcome is Outcome.PASS
    monkeypatch.setenv("ML_SUCCEEDS", a.digest)
    assert stages.gate(stages.Run(project), "load").outcome is Outcome.PASS


def test_a_service_that_does_not_come_up_is_inconclusive_and_tried_again(
    project: Project, a: Candidate
) -> None:
    run, good = stages.Run(project), Verdict(gate="api", checks=[fixed("answered", True, "all")])

    def silent() -> Verdict:
        raise NotReadyError("the service ended with code 1 at start")

    found = stages._verdict(replace(run, force=True), "api", a, silent)
    assert (found.outcome, found.decisive.name) == (Outcome.INCONCLUSIVE, "ready")
    assert found.decisive.sentence.startswith("the service ended")
    assert a.verdict("api") == found
    assert stages._verdict(run, "api", a, lambda: good).outcome is Outcome.PASS


def test_a_load_that_was_too_much_is_measured_again_and_nothing_else_that_stopped(
    project: Project, a: Candidate
) -> None:
    """A runner may have been slow; the next one finds the candidate and this verdict."""
    run = stages.Run(project)
    for gate, again in (("load", Outcome.PASS), ("api", Outcome.STOP)):
        bad, good = (Verdict(gate=gate, checks=[fixed("c", ok, "so")]) for ok in (False, True))
        first = stages._verdict(replace(run, force=True), gate, a, lambda bad=bad: bad)
        assert first.outcome is Outcome.STOP
        assert stages._verdict(run, gate, a, lambda good=good: good).outcome is again


def test_a_refusal_of_before_is_not_told_of_a_source_that_crashed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("no such attribute")

    files.write_atomic(project.work / stages.REFUSED, "{}")
    monkeypatch.setattr(stages.data, "take_snapshot", crash)
    with pytest.raises(RuntimeError):
        stages.extract(stages.Run(project))
    assert not (project.work / stages.REFUSED).exists()


@pytest.mark.parametrize(
    ("code", "ends", "said"),
    [(1, 1, "with code 1"), (-15, 2, "by `ml ro"), (-9, 2, "with code -9"), (3, 1, "with code 3")],
)
def test_a_rollout_that_crashed_is_no_bad_input(
    project: Project, monkeypatch: pytest.MonkeyPatch, code: int, ends: int, said: str
) -> None:
    def spawn(command: list[str], cwd: Path, env: object, log: Path) -> SimpleNamespace:
        log.write_text("Traceback\n")
        return SimpleNamespace(poll=lambda: code)

    monkeypatch.setattr(supervisor, "spawn", spawn)
    goal, told = recorded(project, make_candidate(project, "a")), list[str]()
    with pytest.raises(UserError, match=f"the rollout was ended {said}") as caught:
        supervisor.supervise(Target(project, "production"), goal, "local", told.append)
    assert (caught.value.code, told) == (ends, ["Traceback"])


def test_a_verdict_that_misses_or_is_on_something_else_does_not_count(project: Project) -> None:
    candidate = make_candidate(project, "a")
    found = candidate.verdict("load")
    assert found is not None
    for changes, message in [
        ({"limits": "0" * 64}, "config/gates.yaml or data.yaml changed"),
        ({"subject": "0" * 64}, "something else"),
        ({"against": "0" * 64}, "another champion"),
    ]:
        candidate.save(found.model_copy(update=changes))
        with pytest.raises(UserError, match=f"gate load: .*{message}"):
            deploy(project, candidate)
    candidate.save(found)
    (candidate.package / "card.md").write_text("changed after the gate")
    with pytest.raises(UserError, match=r"package/card.md: not as packaged; run `ml package`"):
        deploy(project, candidate)
    for gate in reversed(releases.GATES):
        judged = find_snapshot(project, "s") if gate == "data" else candidate
        (judged.folder / "verdicts" / f"{gate}.json").unlink()
        with pytest.raises(UserError, match=f"gate {gate}: no verdict.*`ml check {gate}`"):
            deploy(project, candidate)
    assert state(project) == "nothing deployed"


def test_only_good_verdicts_let_through(project: Project) -> None:
    for outcome in ("stop", "inconclusive", "crash"):
        bad = make_candidate(project, outcome, model=outcome)
        with pytest.raises(UserError, match=f"gate model says {outcome}.*the model sentence"):
            deploy(project, bad)
    assert deploy(project, make_candidate(project, "a", data="retrain", model="warn"))
    assert event_log(project).events()[-1].verdicts["data"] is Outcome.RETRAIN


def test_a_candidate_of_drawn_rows_is_never_registered(project: Project) -> None:
    candidate = make_candidate(project, "a")
    lineage = candidate.lineage | {"data": candidate.lineage["data"] | {"sample": True}}
    (candidate.folder / "lineage.json").write_text(json.dumps(lineage))
    with pytest.raises(UserError, match="made of drawn rows, so never deployed"):
        recorded(project, Candidate(candidate.folder))
    assert event_log(project).events() == []
    assert state(project) == "nothing deployed"


def test_environments_live_side_by_side(project: Project, a: Candidate) -> None:
    b = make_candidate(project, "b", against=a)
    assert host.deploy(Target(project, "staging"), recorded(project, b)).outcome is Outcome.PASS
    found = [Target(project, name).status() for name in ("staging", "production")]
    assert [one["digest"] for one in found] == [b.digest, a.digest]
    assert [one["state"] for one in found] == ["serving"] * 2
    assert deploy(project, b).outcome is Outcome.PASS  # the same bytes
    newest = champion(project)
    assert newest is not None
    assert newest.digest == b.digest
    rollback(project)
    assert served(project) == a.digest
    assert Target(project, "staging").status()["digest"] == b.digest
    releases = [e.release for e in event_log(project).events() if e.digest == b.digest]
    assert len(set(releases)) == 1
    with pytest.raises(UserError, match="there is no environment `test`"):
        host.deploy(Target(project, "test"), recorded(project, b))


def test_data_older_than_the_champions_is_refused(project: Project, a: Candidate) -> None:
    older = make_candidate(project, "b", against=a, as_of="2013-07-01")
    with pytest.raises(UserError, match="ml ship --as-of 2013-08-01"):
        deploy(project, older)
    staging = Target(project, "staging")  # what came as far as staging holds up no delivery
    for candidate in (make_candidate(project, "c", against=a, as_of="2013-09-01"), a):
        assert host.deploy(staging, recorded(project, candidate)).outcome is Outcome.PASS
    host.stop(staging)


def test_a_load_test_that_crashed_in_staging_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = configured(project, "staging: {target: host,", "staging: {target: host, load: true,")
    crash = Check(name="locust", outcome=Outcome.CRASH, sentence="it ended by itself")
    relative = Check(name="qps_to_twin", outcome=Outcome.PASS, sentence="without a limit")
    verdict = Verdict(gate="load", checks=[relative, crash])
    monkeypatch.setattr(host, "judge_targets", lambda *_: verdict)
    place = Target(project, "staging")
    found = host.deploy(place, recorded(project, make_candidate(project, "a")))
    assert (found.outcome, found.decisive) == (Outcome.CRASH, crash)
    assert relative not in found.checks
    assert place.status()["state"] == "nothing deployed"


def test_a_stranger_on_the_port_changes_nothing(project: Project, tmp_path: Path) -> None:
    port = project.delivery.environments["production"].port
    candidate = make_candidate(project, "a")
    refused = pytest.raises(UserError, match=f"port {port} is in use by process {os.getpid()}, ")
    with contextlib.closing(socket.create_server(("127.0.0.1", port))), refused:
        deploy(project, candidate)
    assert [event.type for event in event_log(project).events()] == ["registered"]
    deploy(project, candidate)
    other = make_project(tmp_path / "other")  # its proxy is a stranger too
    shutil.copy(project.root / "config" / "delivery.yaml", other.root / "config")
    with pytest.raises(UserError, match=r"in use by process \d+, `caddy` in .*/production/proxy; "):
        deploy(other, make_candidate(other, "a"))
    assert (state(project), running(other)) == ("serving", [])


@pytest.mark.parametrize("fault", ["never-ready", "crash", "liar"])
def test_a_bad_release_is_refused_and_leaves_no_process(project: Project, fault: str) -> None:
    project = configured(project, "seconds: 20", "seconds: 1")
    found = deploy(project, make_candidate(project, "bad", fault=fault))
    assert (found.outcome, found.decisive.name) == (Outcome.STOP, "ready")
    assert (state(project), processes(project.work)) == ("nothing deployed", [])
    assert [event.type for event in event_log(project).events()] == ["registered"]
    a = make_candidate(project, "a")
    deploy(project, a)
    worse = make_candidate(project, "worse", against=a, fault=fault)
    assert deploy(project, worse).outcome is Outcome.STOP
    last = event_log(project).events()[-1]
    assert (last.type, last.digest, last.previous) == ("rolled_back", a.digest, worse.digest)
    assert "was not ready" in last.reason
    assert (served(project), running(project)) == (a.digest, [a.digest])
    assert len(processes(project.work)) == 2


def test_rollback_goes_back_once_and_needs_no_registry(project: Project, a: Candidate) -> None:
    with pytest.raises(UserError, match="no earlier release"):
        rollback(project)
    b = make_candidate(project, "b", against=a)
    deploy(project, b)
    registry = project.work / "registry"
    registry.rename(project.work / "away")
    registry.write_text("not a folder")
    begun = time.monotonic()
    moved = [rollback(project) for _ in range(2)]
    assert time.monotonic() - begun < 10
    assert [m.digest for m in moved] == [served(project)] * 2 == [a.digest] * 2
    found = Target(project, "production").status()
    assert (found["untold"], found["decided"]) == (1, f"back from {b.short}, by hand")
    registry.unlink()
    (project.work / "away").rename(registry)
    assert rollback(project) == moved[1]
    assert Target(project, "production").status()["untold"] == 0
    types = [event.type for event in event_log(project).events()]
    assert types == ["registered", "promoted"] * 2 + ["rolled_back"]
    with pytest.raises(UserError, match="was rolled back after it had served: train another"):
        deploy(project, b)
    assert rollback(project, b.short).digest == served(project) == b.digest


def test_what_was_taken_back_is_not_gone_back_to_whatever_came_since(
    project: Project, a: Candidate
) -> None:
    project = configured(project, "keep_releases: 2", "keep_releases: 3")
    b, c = (make_candidate(project, name, against=a) for name in "bc")
    for bad in (b, c):
        deploy(project, bad)
        assert rollback(project, f"^{bad.digest}").digest == a.digest
    place = Target(project, "production")
    known = place.state()
    assert known.left == [b.digest, c.digest]
    assert known.way_back is None
    with pytest.raises(UserError, match="no earlier release"):
        rollback(project, f"^{a.digest}")
    with pytest.raises(UserError, match="was rolled back after it had served"):
        deploy(project, b)
    with pytest.raises(UserError, match=f"no installed release `{b.digest[:5]}`"):
        rollback(project, b.digest[:5])
    for name in (b.digest[:6], b.digest):  # as `ml status` shows it
        assert rollback(project, name).digest == served(project) == b.digest
    assert b.digest not in place.state().left
    deploy(project, d := make_candidate(project, "d", against=b))
    back = place.state().way_back
    assert (back and back.digest) == b.digest, "by hand it was brought back, so it was no mistake"
    assert rollback(project, f"^{d.digest}").digest == b.digest


def test_a_late_verdict_on_another_release_moves_nothing(project: Project) -> None:
    a, b = (recorded(project, make_candidate(project, name)) for name in "ab")
    moves = [it.model_copy(update={"type": "promoted"}) for it in (a, b)]
    known = releases.State().after(moves[0], 2).after(moves[1], 2)
    late = a.model_copy(update={"type": "verdict", "commit": "d" * 40})
    assert [move.digest for move in known.after(late, 2).moves] == [b.digest, a.digest]
    assert [move.commit for move in known.after(late, 2).moves] == [b.commit, "d" * 40]
    assert known.after(late, 1).moves == [moves[1]]


def test_who_failed_a_canary_once_and_served_since_is_a_way_back(project: Project) -> None:
    a, b, c = (recorded(project, make_candidate(project, name)) for name in "abc")
    served = {"type": "promoted", "environment": "production"}
    failed = {"type": "rolled_back", "previous": b.digest, "reason": "inconclusive"}
    known = releases.State()
    for one, facts in ((a, served), (a, failed), (b, served), (c, served)):
        known = known.after(one.model_copy(update=facts), 3)
    assert (known.way_back and known.way_back.digest) == b.digest
    known = known.after(c.model_copy(update=failed), 3)
    assert (known.way_back and known.way_back.digest) == a.digest


def test_settings_of_the_last_deploy_hold_until_the_next(
    project: Project, a: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = make_candidate(project, "b", against=a)
    deploy(project, b)
    monkeypatch.chdir(project.root)
    configured(project, project.delivery.environments["production"].port, free_port())
    host.start(standing("production"))
    assert served(project) == b.digest
    configured(project, "keep_releases", "keep_release")
    target = standing("production")  # a mistake keeps nobody from going back
    assert target.status()["state"] == "serving"
    assert host.rollback(target, None).digest == served(project) == a.digest
    host.stop(target)
    assert target.status()["state"] == "stopped"
    (target.folder / "settings.json").unlink()
    with pytest.raises(UserError, match="`keep_release`: unknown key"):
        standing("production")


def test_new_settings_of_log_or_variables_reach_the_service_that_runs(
    project: Project, a: Candidate
) -> None:
    """Or it would go on logging what is private by now, though the deploy is green."""
    (old,) = Target(project, "production").services()
    assert deploy(project, a).decisive.name == "served"
    assert Target(project, "production").services() == [old]
    for change in ("variables: [REGION]", "log: {private: [late]}"):
        project = configured(project, "keep_releases", f"{change}\nkeep_releases")
        assert deploy(project, a).decisive.name == "served"
        (new,) = Target(project, "production").services()
        assert (new.digest, new.launch != old.launch) == (a.digest, True)
        assert new.answers(Target(project, "production").url)
        old = new


def test_settings_by_which_a_release_does_not_come_up_are_not_those_it_is_served_by(
    project: Project, a: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nothing would start it after a reboot, though it serves now."""
    monkeypatch.chdir(project.root)
    before = standing("production").project.delivery
    project = configured(project, "keep_releases", "variables: [REGION]\nkeep_releases")

    def never(*_: Any, **__: Any) -> Running:
        raise NotReadyError("not ready after 60 s")

    with monkeypatch.context() as patch:
        patch.setattr(target, "start", never)
        with pytest.raises(NotReadyError):
            deploy(project, a)
    assert standing("production").project.delivery == before != project.delivery
    assert served(project) == a.digest
    deploy(project, a)
    assert standing("production").project.delivery == project.delivery


def test_where_the_port_is_taken_nothing_is_started(project: Project, a: Candidate) -> None:
    host.stop(place := Target(project, "production"))
    with socket.create_server(("127.0.0.1", place.settings.port)):
        with pytest.raises(UserError, match=r"process \d+, .*; stop it, or choose another: `port`"):
            host.start(place)
        assert (processes(project.work), state(project)) == ([], "stopped")


def test_what_was_stopped_serves_again_before_a_canary(project: Project, a: Candidate) -> None:
    host.stop(Target(project, "production"))
    project = configured(project, "canary: []", f"canary: [{STEPS}]")
    verdict = deploy(project, make_candidate(project, "b", against=a))
    assert (verdict.outcome, verdict.decisive.name) == (Outcome.INCONCLUSIVE, "requests")  # of none
    assert served(project) == a.digest


def start_none_of(release: Candidate) -> Callable[..., Running]:
    """Return what starts the fake service, but of one release never."""

    def start(project: Project, ship: Path, *rest: Any, **more: Any) -> Running:
        if sha256_file(ship / SUMS) == release.digest:
            raise NotReadyError("cannot load the model")
        return fake_start(project, ship, *rest, **more)

    return start


def be_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the project's log and blobs be those that workflows share."""
    for module in (host, releases, target):
        monkeypatch.setattr(module, "shared", lambda _: True)


def test_a_champion_that_comes_up_no_more_holds_up_no_delivery(
    project: Project, a: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "start", start_none_of(a))
    b = make_candidate(project, "b", against=a)
    before = project
    project = configured(project, "canary: []", f"canary: [{STEPS}]")
    project = configured(project, "keep_releases: 2", "keep_releases: 2\nvariables: [NEW]")
    with pytest.raises(UserError, match="which serves, does not come up by these settings; keep"):
        deploy(project, b)
    assert served(project) == a.digest
    rollback(before)  # `ml rollback` goes by the settings of the last deploy
    assert (Target(project, "production").state().trying, served(project)) == (None, a.digest)
    host.stop(Target(project, "production"))
    assert deploy(project, b).outcome is PASS  # there are no clients to compare it by
    assert served(project) == b.digest


def test_a_bad_release_beside_a_champion_that_comes_up_no_more_is_none_to_serve(
    project: Project, a: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Target(project, "production")
    host.stop(place)
    monkeypatch.setattr(target, "start", start_none_of(a))
    bad = make_candidate(project, "b", against=a, fault="crash")
    verdict = deploy(project, bad)
    assert (verdict.outcome, verdict.decisive.name) == (STOP, "ready")
    told = event_log(project).events()[-1]
    assert (told.type, told.digest, told.previous) == ("rolled_back", a.digest, bad.digest)
    assert (place.state().trying, state(project), processes(project.work)) == (None, "stopped", [])
    assert deploy(project, make_candidate(project, "c", against=a)).outcome is PASS


def test_jobs_get_the_bytes_of_what_was_deployed_by_hand_and_came_back(
    project: Project, a: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(project.work / "registry")  # a person's; that of jobs knows nothing of it
    be_a_job(monkeypatch)
    deploy(project, make_candidate(project, "b"))
    rollback(project)
    shutil.rmtree(a.folder)
    found = champion(project)
    assert found is not None
    assert (found.digest, files.changed_files(found.ship, a.digest)) == (a.digest, [])


def test_a_job_goes_on_from_what_was_deployed_by_hand(
    project: Project, a: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs share a log that was not told of it, and judge beside the champion of that one."""
    other = make_candidate(project, "other")
    for path in (project.work / "registry").glob("events/*"):
        path.unlink()
    be_a_job(monkeypatch)
    with pytest.raises(UserError, match="beside another champion than is served"):
        deploy(project, make_candidate(project, "c", against=other))
    deploy(project, a)
    told = [(event.type, event.digest) for event in moves(project)]
    assert told == [("promoted", a.digest)]
    deploy(project, a)
    assert len(moves(project)) == 1
    b = make_candidate(project, "b", against=a)
    deploy(project, b)
    monkeypatch.setattr(host, "shared", lambda _: False)
    with pytest.raises(UserError, match="workflows deliver to production on this machine: push"):
        deploy(project, make_candidate(project, "d", against=b))
    assert served(project) == b.digest


def test_what_the_shared_log_does_not_know_is_no_champion_of_it(
    project: Project, a: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (project.work / "registry").glob("events/*"):
        path.unlink()
    be_a_job(monkeypatch)
    deploy(project, b := make_candidate(project, "b"))
    assert (served(project), [event.previous for event in moves(project)]) == (b.digest, [a.digest])


def moves(project: Project) -> list[Event]:
    """Return what the log knows of production."""
    return [event for event in event_log(project).events() if event.environment == "production"]


def test_a_rollback_while_the_champion_is_started_anew_keeps_it(
    project: Project, a: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends what is coming: else it would go back to the release before the champion."""
    b = make_candidate(project, "b", against=a)
    deploy(project, b)
    host.stop(place := Target(project, "production"))
    c, switch = make_candidate(project, "c", against=b), host._switch

    def killed(*arguments: Any) -> Running | None:
        os._exit(9)

    monkeypatch.setattr(host, "_switch", killed)
    rollout = in_child(10_000, die, lambda: deploy(project, c))
    assert os.waitstatus_to_exitcode(os.waitpid(rollout, 0)[1]) == 9
    monkeypatch.setattr(host, "_switch", switch)
    interrupted = place.status()
    before, after = place.state(), host.rollback(place, None)
    assert before.trying is not None
    assert before.verdict is not None
    assert before.verdict.subject == b.digest  # of the rollout before, so nothing of this one:
    assert interrupted["so far"] == ""
    assert (before.trying.digest, before.weight) == (c.digest, 0.0)
    assert (after.digest, after.previous, served(project)) == (b.digest, c.digest, b.digest)
    assert place.state().trying is None


HOLDER = """
import sys, time
from pathlib import Path
from model_delivery.project import Project
from model_delivery.rollout.target import Target
with Target(Project(Path(sys.argv[1])), "production").lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("word", ["--start", "--stop"])
def test_a_rollback_ends_a_start_that_waits_and_no_other_command(
    project: Project, a: Candidate, word: str
) -> None:
    deploy(project, make_candidate(project, "b", against=a))
    words = [sys.executable, "-c", HOLDER, str(project.root), word]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        if word == "--start":
            assert rollback(project).digest == a.digest
            assert not psutil.pid_exists(holder.pid)
        else:
            with pytest.raises(UserError, match=f"busy: process {holder.pid}"):
                rollback(project)
            assert holder.poll() is None
            holder.kill()


def test_a_state_of_a_newer_version_is_named_and_left_alone(project: Project, a: Candidate) -> None:
    path = Target(project, "production").folder / "state.json"
    text = path.read_text()
    newer = text.replace("{", '{"later": 1,', 1)
    path.write_text(newer)
    for act in (rollback, state, lambda project: deploy(project, a)):
        with pytest.raises(UserError, match=r"state\.json: written by a newer version"):
            act(project)
    assert path.read_text() == newer
    path.write_text(text)
    assert served(project) == a.digest


def test_what_was_rolled_back_is_not_gone_back_to(project: Project, a: Candidate) -> None:
    project = configured(project, "keep_releases: 2", "keep_releases: 3")
    b = make_candidate(project, "b", against=a)
    deploy(project, b)
    deploy(project, make_candidate(project, "c", against=b))
    assert rollback(project).digest == b.digest
    assert rollback(project, f"^{b.digest}").digest == served(project) == a.digest
    with pytest.raises(UserError, match="no earlier release"):
        rollback(project, f"^{a.digest}")


def test_rollback_to_a_named_release_and_what_is_kept(project: Project, a: Candidate) -> None:
    b = make_candidate(project, "b", against=a)
    names = [f"v1.1.0+data.20130801.{n}" for n in (1, 2, 3)]
    deploy(project, b)
    c = make_candidate(project, "c", against=b)
    deploy(project, c)
    assert Target(project, "production").status()["installed"] == names[:0:-1]
    with pytest.raises(UserError, match=r"no installed release `v1.1.0.data.20130801.1`"):
        rollback(project, names[0])
    with pytest.raises(UserError, match=r"v1.1.0.data.20130801.3 is served, not"):
        rollback(project, f"^{b.digest}")  # what was decided of it is late
    assert served(project) == c.digest
    assert deploy(project, make_candidate(project, "bad", against=c, fault="crash")).outcome is STOP
    assert rollback(project, f"^{c.digest}").digest == b.digest  # though it has just come back
    rollback(project, names[1])
    assert served(project) == b.digest
    rollback(project, c.digest[:12])
    assert served(project) == c.digest


def test_a_tampered_release_is_not_started(project: Project, a: Candidate) -> None:
    b = make_candidate(project, "b", against=a)
    deploy(project, b)
    installed = project.work / "production" / "releases" / a.digest
    (installed / "ship" / "model" / "model.txt").write_text("tampered")
    blob = project.work / "registry" / "blobs" / f"{a.digest}.tar.xz"
    blob.rename(kept := project.work / "kept")
    with pytest.raises(UserError, match=f"{a.digest}.*: missing or tampered with"):
        rollback(project)
    assert (served(project), state(project)) == (b.digest, "serving")
    kept.rename(blob)  # it is installed anew
    rollback(project)
    assert (served(project), files.changed_files(installed / "ship", a.digest)) == (a.digest, [])


def test_a_release_that_was_recorded_anew_is_installed_from_its_new_bytes(
    project: Project, a: Candidate
) -> None:
    snapshot = find_snapshot(project, "s")
    verdict = snapshot.verdict("data")
    assert verdict is not None
    for place in (snapshot, a):
        place.save(verdict.model_copy(update={"limits": "others"}))
    assert deploy(project, a).decisive.name == "served"
    installed = project.work / "production" / "releases" / a.digest
    (installed / "ship" / "model" / "model.txt").write_text("tampered")
    host.stop(Target(project, "production"))
    host.start(Target(project, "production"))
    assert (served(project), files.changed_files(installed / "ship", a.digest)) == (a.digest, [])


def test_stop_keeps_the_state_even_on_a_full_disk(project: Project, a: Candidate) -> None:
    with full_disk():
        host.stop(Target(project, "production"))
    assert (state(project), processes(project.work)) == ("stopped", [])
    assert deploy(project, a).subject == a.digest
    assert served(project) == a.digest


@pytest.mark.parametrize(("victim", "folder"), [("proxy", "proxy"), ("service", "services")])
def test_what_died_is_seen_and_started_by_the_next_verb(
    project: Project, a: Candidate, victim: str, folder: str
) -> None:
    for process in processes(project.work / "production" / folder):
        process.kill()
        process.wait()
    found = Target(project, "production").status()
    assert (found["state"], victim in found["problem"]) == ("unhealthy", True)
    assert deploy(project, a).subject == a.digest
    assert state(project) == "serving"


def test_start_serves_again_what_the_state_says(project: Project) -> None:
    def start() -> Any:
        host.start(Target(project, "production"))
        return state(project)

    assert start() == "nothing deployed"
    assert processes(project.work) == []
    a = make_candidate(project, "a")
    deploy(project, a)
    (before,) = Target(project, "production").services()
    answers = Target(project, "production").proxy.answers
    with answers.open("a") as stream:
        stream.write("told before\n")
    assert start() == "serving"
    assert Target(project, "production").services() == [before]  # what is well is left alone
    for folder in ("proxy", "services", "."):  # the last as a reboot: nothing runs
        for process in processes(project.work / "production" / folder):
            process.kill()
            process.wait()
        found = Target(project, "production").status()
        assert found["state"] == "unhealthy"
        assert "`ml deploy --start --to production`" in found["problem"]
        assert start() == "serving"
        assert served(project) == a.digest
    host.stop(Target(project, "production"))
    assert "told before\n" in answers.read_text(), "of a proxy that is gone, monitoring reads it"
    found = Target(project, "production").status()
    assert found["problem"] == "nothing runs; run `ml deploy --start --to production`"
    assert start() == "serving"
    assert running(project) == [a.digest]
    assert len(event_log(project).events()) == 2


def test_start_leaves_a_rollout_alone_and_mends_one_that_was_killed(
    project: Project, a: Candidate
) -> None:
    stepped = configured(project, "canary: []", "canary: [{weight: 0.5, seconds: 30}]")
    b = make_candidate(project, "b", against=a)
    rollout = in_child(10_000, die, lambda: deploy(stepped, b))
    while Target(project, "production").state().weight == 0:
        assert os.waitpid(rollout, os.WNOHANG) == (0, 0)
        time.sleep(0.05)
    host.start(Target(project, "production"))
    now = Target(project, "production").state()
    assert (now.trying and now.trying.digest, now.weight) == (b.digest, 0.5)
    assert sorted(running(project)) == sorted([a.digest, b.digest])
    assert os.waitpid(rollout, os.WNOHANG) == (0, 0)
    os.kill(rollout, signal.SIGKILL)
    os.waitpid(rollout, 0)
    host.start(Target(project, "production"))
    assert Target(project, "production").state().trying is None
    assert (served(project), running(project)) == (a.digest, [a.digest])


def test_a_changed_port_moves_the_proxy(
    project: Project, a: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = project.delivery.environments["production"].port
    moved = configured(project, old, free_port())
    deploy(moved, a)
    monkeypatch.chdir(project.root)
    host.start(standing("production"))
    assert served(moved) == a.digest
    with pytest.raises(OSError, match="refused"):
        ask(project)


def test_a_held_target_is_busy_and_a_dead_holder_is_no_holder(project: Project) -> None:
    candidate = make_candidate(project, "a")
    ready, said = os.pipe()
    holder = os.fork()
    if holder == 0:
        with Target(project, "production").lock():
            os.write(said, b".")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    with pytest.raises(UserError, match=f"busy: process {holder}"):
        deploy(project, candidate)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert deploy(project, candidate).subject == candidate.digest


def in_child(step: int, act: Callable[[], None], work: Callable[[], object]) -> int:
    """Run work in a process of its own, in which `act` follows the `step`-th durable write."""
    child = os.fork()
    if child:
        return child
    count = 0

    def counted(original: Callable[..., None]) -> Callable[..., None]:
        def write(*arguments: Any, **options: Any) -> None:
            nonlocal count
            original(*arguments, **options)
            count += 1
            if count == step:
                act()

        return write

    for name in ("replace", "rename", "link"):
        setattr(os, name, counted(getattr(os, name)))
    code = 1
    try:
        work()
        code = 0 if count >= step else NOT_REACHED
    except UserError:
        code = 2
    finally:
        os._exit(code)


def die() -> None:
    """Wait to be killed from outside; see `killed`."""
    os.kill(os.getpid(), signal.SIGSTOP)


def killed(child: int) -> tuple[int, int]:
    """Kill a process if it waits for that; return whether it ended, as `os.waitpid` does."""
    found, how = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
    if found and os.WIFSTOPPED(how):
        os.kill(child, signal.SIGKILL)
        return 0, 0
    return found, how


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("act", "expected", "steps"), [(die, -9, ""), (full, 2, ""), (die, -9, STEPS)]
)
def test_old_state_or_new_after_a_fault_at_each_durable_write(
    project: Project, a: Candidate, act: Callable[[], None], expected: int, steps: str
) -> None:
    stepped = configured(project, "canary: []", f"canary: [{steps}]")
    for old, new in (("min_requests: 20", "min_requests: 2"), ("max: 0.4", "max: 1.0")):
        stepped = configured(project, old, new)  # few requests, on a busy machine
    codes, moves, states = [], [a.digest], set()
    for step in itertools.count(1, STRIDE):
        b = make_candidate(project, f"b{step}", against=a)
        child = in_child(step, act, partial(deploy, stepped, b))
        while (ended := killed(child)) == (0, 0):
            assert served(project) in (a.digest, b.digest)
        codes.append(os.waitstatus_to_exitcode(ended[1]))
        now = Target(project, "production").state().moves[0].digest
        assert now in (a.digest, b.digest)
        assert served(project) in ((a.digest, b.digest) if codes[-1] == -9 else (now,))
        states.add(now == b.digest)
        assert deploy(project, b).subject == served(project) == b.digest
        assert running(project) == [b.digest]
        assert len(processes(project.work)) == 2
        rollback(project)
        moves += [b.digest, a.digest]
        if codes[-1] == NOT_REACHED:
            break
    assert codes.pop() == NOT_REACHED
    assert expected in codes
    assert set(codes) <= {expected, 0}  # 0: it deployed, and told the log later
    assert states == {False, True}
    assert [e.digest for e in event_log(project).events() if e.environment] == moves


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_full_disk_changes_nothing(project: Project, a: Candidate) -> None:
    b = make_candidate(project, "b", against=a)
    with full_disk(), pytest.raises(UserError, match=r"cannot be written|nothing was changed"):
        deploy(project, b)
    assert served(project) == a.digest
    deploy(project, b)
    assert served(project) == b.digest


def test_a_supervisor_on_a_full_disk_is_asked_for_room(
    project: Project, a: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its words are lost with its log, and it is the only one who writes in `ml deploy RELEASE`."""
    goal = recorded(project, make_candidate(project, "b", against=a))
    monkeypatch.chdir(project.root)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    target, said = Target(project, "production"), list[str]()
    with full_disk(), pytest.raises(UserError, match=f"is there room in {target.folder}") as told:
        supervisor.supervise(target, goal, "local", said.append)
    assert (told.value.code, said, served(project)) == (2, [], a.digest)


def test_a_delivery_has_the_champion_s_data_or_later_ones_that_a_person_asks_for(
    project: Project, a: Candidate
) -> None:
    path = project.root / "config" / "data.yaml"
    text = path.read_text()
    found = dict[str, str]()
    for day in ("2013-07-01", "2013-08-01", "2013-09-01"):
        path.write_text(text.replace("2013-08-01", day))
        found[day] = str(stages._day(stages.Run(Project(project.root))))
    assert served(project) == a.digest
    champion = "2013-08-01"
    assert found == {"2013-07-01": champion, champion: champion, "2013-09-01": "2013-09-01"}


def committed(project: Project, message: str) -> str:
    test_registry.git(project.root, "add", ".")
    test_registry.git(project.root, "commit", "--quiet", "--allow-empty", "-m", message)
    return test_registry.git(project.root, "rev-parse", "HEAD")


@pytest.fixture
def tagged(project: Project, monkeypatch: pytest.MonkeyPatch) -> tuple[Project, Candidate]:
    """Return a repository whose commit v1 is at what staging accepted."""
    monkeypatch.delenv("GITHUB_SHA", raising=False)
    test_registry.git(project.root, "init", "--quiet", "--initial-branch", "main")
    (project.root / ".gitignore").write_text(".ml\n")
    committed(project, "start")
    candidate = make_candidate(project, "a")
    host.deploy(Target(project, "staging"), recorded(project, candidate))
    test_registry.git(project.root, "tag", "v1")
    return project, candidate


def test_a_tag_is_what_passed_staging_at_its_commit(tagged: tuple[Project, Candidate]) -> None:
    project, candidate = tagged
    goal = resolve(project, "v1")
    assert (goal.digest, goal.release) == (candidate.digest, "v1+data.20130801.1")
    host.deploy(Target(project, "production"), goal)
    assert Target(project, "production").status()["release"] == "v1+data.20130801.1"
    assert resolve(project, "v1+data.20130801.1").digest == candidate.digest
    assert resolve(project, candidate.short).release == "v1.1.0+data.20130801.1"


def test_a_tag_without_a_pass_in_staging_says_what_helps(
    tagged: tuple[Project, Candidate],
) -> None:
    project, a = tagged
    commit = committed(project, "never delivered")
    test_registry.git(project.root, "tag", "v2")
    with pytest.raises(UserError, match=f"nothing passed staging.*--commit {commit}"):
        resolve(project, "v2")
    b = make_candidate(project, "b", against=a)
    host.deploy(Target(project, "staging"), recorded(project, b))
    assert resolve(project, "v2").digest == b.digest
    host.rollback(Target(project, "staging"), None)
    with pytest.raises(UserError, match=r"was rolled back in staging \(by hand\)"):
        resolve(project, "v2")
    assert resolve(project, "v1").digest == a.digest  # what was gone back to is as good as before
    newer = recorded(project, make_candidate(project, "c", as_of="2013-09-01")).model_dump()
    newer |= {"type": "promoted", "environment": "production", "id": "newer"}
    test_registry.add(event_log(project), **newer)  # as by a retraining
    start = test_registry.git(project.root, "rev-parse", "v1")
    with pytest.raises(UserError, match=rf"2013-08-01, before that of .*2013-09-01.*{start}"):
        resolve(project, "v1")
    test_registry.git(project.root, "checkout", "--quiet", "v1")
    with pytest.raises(UserError, match=r"v2: its commit .* is not on the branch here; merge it"):
        resolve(project, "v2")
    with pytest.raises(UserError, match="no release `v3`"):
        resolve(project, "v3")


def test_what_is_served_already_passes_at_a_later_commit_too(
    tagged: tuple[Project, Candidate],
) -> None:
    project, candidate = tagged
    goal = recorded(project, candidate)
    commit = committed(project, "docs")
    for _ in range(3):
        later = goal.model_copy(update={"commit": commit})
        assert host.deploy(Target(project, "staging"), later).decisive.name == "served"
    test_registry.git(project.root, "tag", "v2")
    assert resolve(project, "v2").digest == candidate.digest
    kinds = [(event.type, event.environment) for event in event_log(project).events()]
    assert kinds == [("registered", None), ("promoted", "staging"), ("verdict", "staging")]


def test_a_delivery_of_what_a_retraining_made_has_a_commit_of_its_own(
    tagged: tuple[Project, Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else no tag of a later commit, as one of docs alone, could ever pass staging."""
    project, _ = tagged
    made = make_candidate(project, "retrained")
    said = judged(project, made, "retraining")
    first = register(project, made, said, "retraining")
    assert register(project, made, said, "retraining").id == first.id
    monkeypatch.setenv("GITHUB_SHA", commit := committed(project, "docs"))
    assert register(project, made, said, "delivery").id != first.id
    goal = resolve(project, made.digest)
    assert (goal.commit, goal.release, goal.trigger) == (commit, first.release, "delivery")
    assert register(project, made, said, "retraining").trigger == "delivery"


def test_new_verdicts_are_recorded_and_a_key_finds_them(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = make_candidate(project, "a")
    first = recorded(project, candidate)
    assert recorded(project, candidate) == first
    judge_again(project, candidate, "load", Outcome.WARN)
    second = recorded(project, candidate)
    assert (second.type, second.release, second.blob) == ("verdict", first.release, first.blob)
    assert second.verdicts["load"] is Outcome.WARN
    verdicts = judged(project, candidate, "local")
    assert register(project, candidate, verdicts, "local", "another key").key == "another key"
    candidate.folder.rename(project.work / "away")
    for key, there in (("unknown", False), ("another key", True)):
        monkeypatch.setattr(candidates, "training_key", lambda *_, key=key: key)
        assert recall(project, find_snapshot(project, "s")) == key
        assert candidate.folder.exists() is there
    assert (project.work / "candidates" / "keys" / "another key").read_text() == candidate.digest


def test_the_report_on_a_recorded_release_is_of_that_whatever_lies_here(
    project: Project, a: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"changed_files": 0, "branch": None}
    write_json(a.folder / "lineage.json", a.lineage | facts)
    verdict = find_snapshot(project, "s").verdict("data")
    assert verdict is not None
    Candidate(a.folder).save(verdict)
    for name, content in {"candidate": "other", "snapshot": "t", "refused.json": "{"}.items():
        (project.work / name).write_text(content)
    monkeypatch.setattr(stages.releases, "resolve", lambda *_: None)
    monkeypatch.setattr(stages.releases, "restore", lambda *_: a)
    stages.fetch(stages.Run(project, release="v1.1.0"))
    vars(project)["about"] = {"name": "small"}
    shown = list[Report]()
    monkeypatch.setattr(stages, "write_pages", lambda _, report: shown.append(report) or "")
    monkeypatch.setattr(stages, "limits_hash", lambda *_: "limits")
    stages.write_report(stages.Run(project, release="v1.1.0"))
    stages.write_report(stages.Run(project))  # as `ml report` does later
    for report in shown:
        assert report.subject == a.digest
        assert [len(verdict.checks) for verdict in report.verdicts] == [1] * 6, "gates, rollout"
    assert len(shown) == 2


def test_rows_judged_by_other_limits_go_along_with_the_bytes(project: Project) -> None:
    """A tag takes their verdict from there, and refuses one by limits that are not those of now."""
    candidate = make_candidate(project, "a")
    first = recorded(project, candidate)
    snapshot = find_snapshot(project, "s")
    old = snapshot.verdict("data")
    assert old is not None
    snapshot.save(old.model_copy(update={"limits": "other"}))
    verdicts = judged(project, candidate, "local")
    candidate.save(verdicts["data"])  # as `ml ship` does
    second = register(project, candidate, verdicts, "local")
    assert (second.release, second.limits["data"]) == (first.release, "other")
    assert register(project, candidate, verdicts, "local").id == second.id
    candidate.folder.rename(project.work / "away")
    kept = restore(project, second).verdict("data")
    assert kept is not None
    assert kept.limits == "other"


def judge_again(project: Project, candidate: Candidate, gate: str, outcome: Outcome) -> None:
    """Let a gate judge a candidate anew."""
    old = candidate.verdict(gate)
    assert old is not None
    checks = [Check(name="c", outcome=outcome, sentence="judged again")]
    candidate.save(old.model_copy(update={"checks": checks}))


def test_a_rehearsal_starts_the_accepted_release_and_leaves_nothing(project: Project) -> None:
    a = make_candidate(project, "a")
    place = Target(project, "production")
    with rehearsal(place):
        deploy(project, a)
        assert identity(place.url) is not None
        assert place.proxy.port != place.settings.port  # whoever holds that is not disturbed
    assert (state(project), processes(project.work)) == ("rehearsed", [])
    assert not place.proxy.answers.exists(), "drawn rows are nobody's requests"
    b = make_candidate(project, "b", against=a)
    with rehearsal(place):
        assert (identity(place.url) or ("",))[0] == a.digest
        assert deploy(project, b).outcome is Outcome.PASS
    events = event_log(project).events()
    assert [(e.type, e.rehearsed) for e in events if e.environment] == [("promoted", True)] * 2
    accepted = champion(project)
    assert accepted is not None
    assert accepted.digest == b.digest
    note = Target(project, "production").status()["note"]
    assert "DEPLOY_RUNNER_PRODUCTION" in note
    assert "`ml doctor --github`" in note


def test_drawn_rows_come_at_the_expected_rate_however_long_answers_take(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, asked = [0.0], list[float]()

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            clock[0] += timeout or 0
            return clock[0] >= 10

    def post(*_: object, **__: object) -> None:
        asked.append(clock[0])
        clock[0] += 0.5 if len(asked) % 400 == 50 else 0.004  # it is late at times

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("httpx.Client.post", post)
    host._visit(Target(project, "production"), Clock())
    assert len(asked) == pytest.approx(10 * 100, abs=2)


def test_what_was_only_rehearsed_here_is_not_started(project: Project) -> None:
    """As by a timer, or by a person while a rehearsal is under way in another terminal."""
    place, run = Target(project, "production"), stages.Run(project, release="none")
    made = make_candidate(project, "a")
    with rehearsal(place):
        for _ in range(2):  # before anything runs, and while it does
            before = place.state()
            host.start(place)
            with pytest.raises(
                UserError, match=r"production is busy: process \d+ changes it; wait"
            ):
                stages.deploy(run)
            assert place.state() == before
            deploy(project, made)
    assert state(project) == "rehearsed"
    with pytest.raises(UserError, match="nothing deployed, nothing to roll back"):
        rollback(project)
    assert (state(project), processes(project.work)) == ("nothing deployed", [])


def test_a_rehearsal_that_was_killed_is_cleared_away(project: Project) -> None:
    place = Target(project, "production")
    made = recorded(project, make_candidate(project, "a"))

    def die() -> None:
        rehearsal(place).__enter__()
        host.deploy(place, made)
        os._exit(0)

    child = multiprocessing.get_context("fork").Process(target=die)
    child.start()
    child.join()
    assert (state(project), bool(processes(project.work))) == ("serving", True)
    host.start(place)
    assert (state(project), processes(project.work)) == ("nothing deployed", [])


def test_a_rehearsed_release_that_was_delivered_twice_goes_back(project: Project) -> None:
    a, place = make_candidate(project, "a"), Target(project, "production")
    with rehearsal(place):
        deploy(project, a)
    b = make_candidate(project, "b", against=a)
    with rehearsal(place):
        deploy(project, b)
    again = recorded(project, b).model_copy(update={"commit": "d" * 40})
    for _ in range(2):  # a job that is run again tells nothing new
        with rehearsal(place):
            assert host.deploy(place, again).decisive.name == "served"
    with rehearsal(place):
        assert rollback(project).digest == a.digest
    moves = [(e.type, e.digest) for e in event_log(project).events() if e.environment]
    assert moves[2:] == [("verdict", b.digest), ("rolled_back", a.digest)]
    refused = pytest.raises(UserError, match="was rolled back after it had served")
    with refused, rehearsal(place):  # by the log: the machine is another one
        deploy(project, b)


def test_a_rehearsal_loses_to_a_delivery_that_was_faster(project: Project) -> None:
    a, other = make_candidate(project, "a"), make_candidate(project, "b")
    faster = recorded(project, other).model_dump() | {"type": "promoted", "id": "faster"}

    def lose() -> None:
        with rehearsal(Target(project, "production")):
            deploy(project, a)
            test_registry.add(event_log(project), **faster | {"environment": "production"})

    with pytest.raises(UserError, match="was accepted meanwhile, by "):
        lose()
    accepted = champion(project)
    assert accepted is not None
    assert accepted.digest == other.digest


def test_a_rehearsal_keeps_away_from_what_serves(project: Project, a: Candidate) -> None:
    refused = pytest.raises(UserError, match="production is served here; rehearse another")
    with refused, rehearsal(Target(project, "production")):
        pytest.fail("it must not begin")
    assert served(project) == a.digest


def test_a_new_machine_takes_what_was_judged_beside_the_accepted_release(project: Project) -> None:
    a, place = make_candidate(project, "a"), Target(project, "production")
    with rehearsal(place):
        deploy(project, a)
    shutil.rmtree(place.folder)  # another machine, which only shares the log
    b, c = make_candidate(project, "b", against=a), make_candidate(project, "c")
    with pytest.raises(UserError, match="judged beside another champion than is served"):
        deploy(project, c)
    assert deploy(project, b).outcome is Outcome.PASS
    assert served(project) == b.digest


def test_outcomes_are_read_again_where_it_is_deployed(project: Project) -> None:
    goal = recorded(project, make_candidate(project, "a"))
    for verdicts in ({}, goal.verdicts | {"model": Outcome.STOP}):
        with pytest.raises(
            UserError, match=r"gate \w+ says (crash|stop) of .*nothing was deployed"
        ):
            host.deploy(
                Target(project, "production"), goal.model_copy(update={"verdicts": verdicts})
            )
    assert state(project) == "nothing deployed"


def test_a_job_s_machine_keeps_for_a_job_what_a_person_did(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = make_candidate(project, "a")
    deploy(project, a)
    place = Target(project, "production")
    deploy(project, make_candidate(project, "b", against=a))
    place.save(place.state(), shared=True)
    rollback(project)
    assert [move.type for move in place.state().untold] == ["rolled_back"]
    monkeypatch.setattr(target, "shared", lambda _: True)
    place.tell()
    assert place.state().untold == []


SUPERVISOR = """
import sys
from pathlib import Path
import test_rollout
from model_delivery.bundle.candidate import Candidate, candidate_folder
from model_delivery.project import Project
from model_delivery import releases
from model_delivery.rollout import host, target

target.start = test_rollout.fake_start
host.limits_hash = releases.limits_hash = lambda *_: "limits"
project = Project(Path(sys.argv[1]))
test_rollout.deploy(project, Candidate(candidate_folder(project, sys.argv[2])))
"""
STOP, PASS, UNDECIDED = Outcome.STOP, Outcome.PASS, Outcome.INCONCLUSIVE
LIMITS = RolloutLimits.model_validate(
    {"shadow_rows": 10, "requests_per_second": 100, "min_requests": 100}
    | {
        name: {"max": most, "outcome": "stop"}
        for name, most in {
            "shadow_distance": 0.6,
            "error_share": 0.01,
            "p95_ms": 50,
            "score_distance": 0.25,
            "memory_mb": 500,
        }.items()
    }
)


def test_nothing_is_retrained_by_a_rollout() -> None:
    """In a job that outcome is a warning: it would go on with what was taken back."""
    limits = LIMITS.model_dump()
    assert RolloutLimits.model_validate(limits) == LIMITS
    limits["memory_mb"]["outcome"] = "retrain"
    with pytest.raises(ValidationError, match=r"memory_mb\.outcome"):
        RolloutLimits.model_validate(limits)


def arm(
    n: int, failing: float = 0, wait: float = 5, score: float | None = None, status: int = 500
) -> list[Answer]:
    draw = random.Random(n)

    def answer() -> Answer:
        value = draw.random() if score is None else score
        own = status if draw.random() < failing else 200
        return Answer(own, draw.expovariate(1 / wait), value)

    return [answer() for _ in range(n)]


@pytest.mark.parametrize(
    ("own", "old", "expected"),
    [
        (arm(500), arm(501), {}),
        (arm(5000, failing=0.2), arm(5001, failing=0.2), {}),  # both alike
        (arm(500, failing=0.02, status=499), arm(501), {"error_share": UNDECIDED}),  # clients left
        (arm(200, failing=0.02, status=422), arm(801), {}),  # callers' own mistakes, it may be
        (arm(900, failing=0.02, status=422), arm(901), {"error_share": UNDECIDED}),  # surely more
        (arm(200, failing=0.3, status=422), arm(801), {"error_share": STOP}),
        (arm(4, failing=1), arm(300), {"error_share": STOP}),
        (arm(1, failing=1), arm(300), {}),  # one is not sure
        (arm(500, failing=0.02), arm(501), {"error_share": UNDECIDED}),
        (arm(60, wait=300), arm(300), {"p95_ms": STOP, "error_share": UNDECIDED}),
        (arm(500, wait=25), arm(501), {"p95_ms": UNDECIDED}),
        (arm(200, score=0.5), arm(800), {"score_distance": STOP}),
        (arm(99), arm(800), dict.fromkeys(("error_share", "p95_ms", "score_distance"), UNDECIDED)),
        (arm(200, score=0.3), arm(801, score=0.5), {"score_distance": UNDECIDED}),  # one row
        ([], arm(800), dict.fromkeys(("error_share", "p95_ms", "score_distance"), UNDECIDED)),
        (arm(800), [], dict.fromkeys(("error_share", "p95_ms", "score_distance"), UNDECIDED)),
    ],
)
def test_each_metric_fails_alone_and_only_when_it_is_sure(
    own: list[Answer], old: list[Answer], expected: dict[str, Outcome]
) -> None:
    found = {check.name: check.outcome for check in compare(LIMITS, own, old)}
    for name in ("error_share", "p95_ms", "score_distance"):
        wanted = expected.get(name, PASS if min(len(own), len(old)) >= 100 else UNDECIDED)
        assert found[name] is wanted, name


def test_a_champion_of_few_different_scores_says_what_to_do() -> None:
    checks = compare(LIMITS, arm(200), arm(200, score=0.5))
    (check,) = (check for check in checks if check.name == "score_distance")
    assert check.outcome is UNDECIDED
    few = "1 different ones of the champion are too few: send other rows, or use `canary: []`"
    assert few in check.sentence
    checks = compare(LIMITS, arm(200), arm(200, score=math.nan))
    (check,) = (check for check in checks if check.name == "score_distance")
    assert (
        "too few: it gives none to what clients send, as to a new column: `canary: []`"
        in check.sentence
    )
    assert all("too few" not in c.sentence for c in compare(LIMITS, arm(200), arm(200)))


def test_equal_releases_hardly_ever_fail() -> None:
    """Looked at every second, from the first answer on, half of the rollouts with failures."""
    stopped = 0
    for n in range(100):
        own, old = (arm(size + n, failing=0.03 * (n % 2)) for size in (100, 900))
        looks = [compare(LIMITS, own[: 5 * t], old[: 45 * t]) for t in range(1, 21)]
        stopped += any(check.outcome is STOP for checks in looks for check in checks)
    assert stopped <= 1


def test_callers_mistakes_leave_no_equal_release_undecided() -> None:
    """A fifth of all requests is refused, by either release: few in a step, so by chance unlike."""
    wrong = set[Outcome]()
    for n in range(100):
        arms = (arm(size + n, failing=0.2, status=422) for size in (100, 900))
        checks = {check.name: check for check in compare(LIMITS, *arms)}
        wrong.add(checks["error_share"].outcome)
    assert wrong == {PASS}


def test_the_log_is_read_on_whole_lines_only_and_after_it_rolled_over(tmp_path: Path) -> None:
    def line(arm: str, status: int = 200, digest: str = "") -> str:
        headers = {"X-Model-Digest": [digest or arm], "X-Score": ["0.25"]}
        logged = {"status": status, "duration": 0.002, "resp_headers": headers, "arm": arm}
        return json.dumps(logged) + "\n"

    def failed() -> list[list[bool]]:
        return [[answer.status > 200 for answer in answers] for answers in traffic.read()]

    log = tmp_path / "access.log"
    log.write_text(line("old"))
    traffic = Traffic(log, *(Running(f"http://{arm}", arm, "", tmp_path) for arm in ("old", "new")))
    assert failed() == [[], []]
    with log.open("a") as stream:
        stream.write(line("new", 499) + line("old") + line("other") + line("new")[:20])
    assert failed() == [[False], [True]]
    with log.open("a") as stream:
        stream.write(line("new")[20:] + line("new", digest="old"))  # led on to the champion
    assert failed() == [[False], [True, False, True]]
    log.unlink()  # the proxy gives it another name, and then makes a new one
    assert failed() == [[False], [True, False, True]]
    log.write_text(line("new"))
    assert failed() == [[False], [True, False, True, False]]
    assert traffic.read()[1][0] == Answer(499, 2.0, 0.25)


def test_what_a_bad_release_may_cost_is_said_with_its_numbers() -> None:
    step = canary.Step(weight=0.05, seconds=30)
    said = canary.damage(Delivery.model_construct(rollout=LIMITS), [step])
    cost = "5% × 100 requests/s × 60 s = 300 requests at that rate"
    assert said == f"a bad release costs at most {cost} before it is taken back"


def test_what_it_may_cost_is_said_before_anything_is_started(
    stepped: Project,
    a: Candidate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    b, said = make_candidate(stepped, "b", against=a, fault="crash"), list[str]()

    def start(*arguments: Any, **options: Any) -> Running:
        said.append(caplog.text)
        return fake_start(*arguments, **options)

    monkeypatch.setattr(target, "start", start)
    with caplog.at_level("INFO", host.__name__):
        assert deploy(stepped, b).decisive.name == "ready"
    assert len(said) == 1
    assert "at most 30% × 100 requests/s × 3 s = 90 requests" in said[0]
    assert "at most 50% × 100 requests/s × 3 s = 150 requests" in said[0]


def test_the_state_says_where_clients_go_before_they_do(
    project: Project, a: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    b, switch, seen = make_candidate(project, "b", against=a), host._switch, list[Any]()

    def killed(place: Target, move: Event) -> Running | None:
        switch(place, move)
        if place.state().weight and not seen:  # as if the supervisor ended here: so it is found
            state, found = place.state(), place.status()
            seen.append((state.trying and state.trying.digest, state.weight))
            seen.append((found["state"], found["rollout"], list(found["arms"].values())))
        return switch(place, move)

    monkeypatch.setattr(host, "_switch", killed)
    deploy(project, b)
    arms = ["0% of requests, answers", "100% of requests, answers"]
    assert seen == [(b.digest, 1.0), ("serving", "interrupted; run `ml rollback`", arms)]


def test_a_proxy_that_leads_to_another_release_than_the_state_says_is_no_health(
    project: Project, a: Candidate
) -> None:
    place, b = Target(project, "production"), make_candidate(project, "b", against=a)
    other = place.serve(recorded(project, b))
    place.proxy.route("b", other.address)
    assert served(project) == b.digest
    found = place.status()
    assert (found["state"], found["problem"][:32]) == (
        "unhealthy",
        "the proxy does not lead to v1.1.",
    )
    host.start(place)
    assert (state(project), served(project)) == ("serving", a.digest)


@pytest.fixture
def stepped(project: Project, a: Candidate) -> Project:
    """Return a project whose next release has to pass two steps."""
    return configured(project, "canary: []", f"canary: [{STEPS}]")


def wait_for_canary(project: Project) -> None:
    """Wait until clients are led to a release."""
    deadline = time.monotonic() + 30
    while Target(project, "production").state().weight == 0:
        assert time.monotonic() < deadline, "no canary began"
        time.sleep(0.05)


def test_a_good_release_gets_more_and_more_clients_and_then_all(
    stepped: Project, a: Candidate
) -> None:
    b = make_candidate(stepped, "b", against=a)
    with clients(stepped) as answers:
        verdict = deploy(stepped, b)
    assert verdict.outcome is PASS, verdict.checks
    assert set(answers) == {a.digest, b.digest}
    assert served(stepped) == b.digest
    stages = [check.sentence.partition(" after")[0] for check in verdict.checks]
    assert [*dict.fromkeys(stages)][:2] == ["at 50%", "at 30%"]  # the newest says most
    assert verdict.decisive.name == "error_share"
    assert Target(stepped, "production").state().verdict == verdict


def test_a_bad_one_is_taken_back_and_the_log_says_why(stepped: Project, a: Candidate) -> None:
    b = make_candidate(stepped, "b", against=a, fault="constant")
    loose = configured(stepped, "shadow_distance: {max: 0.9", "shadow_distance: {max: 1.0")
    with clients(stepped) as answers:
        verdict = deploy(loose, b)
    assert (verdict.outcome, verdict.decisive.name) == (STOP, "score_distance")
    assert set(answers) == {a.digest, b.digest}
    assert (served(stepped), running(stepped)) == (a.digest, [a.digest])
    last = event_log(stepped).events()[-1]
    assert (last.type, last.digest, last.previous) == ("rolled_back", a.digest, b.digest)
    assert re.match(r"score_distance \((0\.\d+|1), limit ≤ 0\.4\) at 30%", last.reason)
    with clients(stepped):  # it may try again: it is judged again
        assert deploy(loose, b).outcome is STOP


def test_a_release_that_drops_requests_is_caught_though_no_client_sees_it(
    stepped: Project, a: Candidate
) -> None:
    b = make_candidate(stepped, "b", against=a, fault="drop")
    with clients(stepped) as answers:
        verdict = deploy(stepped, b)
    assert (verdict.outcome, verdict.decisive.name) == (STOP, "error_share")
    assert set(answers) <= {a.digest, b.digest}
    assert served(stepped) == a.digest
    logs = Target(stepped, "production").folder / "services"
    ids = {
        word: {*re.findall(rf"{word} (.{{36}})\n", (logs / f"{one.digest[:12]}.log").read_text())}
        for word, one in (("dropped", b), ("answered", a))
    }
    assert ids["dropped"]
    assert ids["dropped"] <= ids["answered"]  # by the champion, under the same id


def test_a_canary_that_nobody_looks_after_ends_by_itself(stepped: Project, a: Candidate) -> None:
    target, goal = (
        Target(stepped, "production"),
        register(stepped, make_candidate(stepped, "b"), {}, "local"),
    )
    one, two = target.services()[0], target.serve(goal)
    target.proxy.route("v", one.address, two.address, weight=0.5, until=time.time() + 2)
    assert {served(stepped) for _ in range(30)} == {a.digest, goal.digest}
    assert {ask(stepped, "/readyz")[1]["x-model-digest"] for _ in range(9)} == {a.digest}
    time.sleep(3)
    assert {served(stepped) for _ in range(30)} == {a.digest}


def test_without_clients_it_is_inconclusive_and_may_try_again(
    stepped: Project, a: Candidate
) -> None:
    b = make_candidate(stepped, "b", against=a)
    verdict = deploy(stepped, b)
    assert (verdict.outcome, served(stepped)) == (UNDECIDED, a.digest)
    with clients(stepped):
        assert deploy(stepped, b).outcome is PASS


def test_a_champion_that_dies_under_a_rollout_is_started_again(
    stepped: Project, a: Candidate
) -> None:
    b, killed = make_candidate(stepped, "b", against=a), list[int]()

    def kill() -> None:
        wait_for_canary(stepped)
        [home] = [s.home for s in Target(stepped, "production").services() if s.digest == a.digest]
        for process in processes(home):
            killed.append(process.pid)
            process.kill()

    with clients(stepped):
        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(UserError, match="the champion does not answer"):
            deploy(stepped, b)
        thread.join()
    assert killed
    assert (served(stepped), running(stepped)) == (a.digest, [a.digest])


def test_a_rollback_ends_a_rollout_and_twice_is_once(stepped: Project, a: Candidate) -> None:
    slow = configured(stepped, "seconds: 1.5", "seconds: 60")
    b = make_candidate(slow, "b", against=a)
    target = Target(slow, "production")
    target.supervisor.mkdir(parents=True)
    child = os.fork()
    if child == 0:  # marked as a supervisor is, by its home
        os.environ["TMPDIR"] = str(target.supervisor.resolve())
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)
        os.execv(sys.executable, [sys.executable, "-c", SUPERVISOR, str(slow.root), b.digest])
    with clients(slow) as answers:
        wait_for_canary(slow)
        found = target.status()
        assert (found["rollout"], len(found["arms"])) == ("under way", 2)
        for word, why in (
            (f"^{a.digest}", "another release is on its way"),
            ("^", "stands before"),
        ):
            with pytest.raises(UserError, match=why):
                rollback(slow, word)
        assert target.status()["rollout"] == "under way"
        begun = time.monotonic()
        moved = [rollback(slow) for _ in range(2)]
        assert time.monotonic() - begun < 10
    assert moved[0] == moved[1]
    assert (moved[0].digest, moved[0].previous) == (a.digest, b.digest)
    assert moved[0].reason == "by hand, when 30% of the requests went to it"
    assert set(answers) <= {a.digest, b.digest}
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert (served(slow), running(slow)) == (a.digest, [a.digest])


def test_whoever_writes_an_event_lets_mlflow_show_it(
    project: Project, a: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, good = (
        list[Path](),
        Verdict(gate="data", checks=[Check(name="c", outcome=PASS, sentence="")]),
    )
    for module in (history, stages):
        monkeypatch.setattr(module, "mirror", lambda project: told.append(project.root))
    monkeypatch.chdir(project.root)
    deploy(project, make_candidate(project, "b", against=a))
    with pytest.raises(typer.Exit) as done:
        main.rollback(rehearse=False)
    assert (done.value.exit_code, served(project), len(told)) == (0, a.digest, 1)

    for name in ("extract", "train", "package", "record"):
        monkeypatch.setattr(stages, name, lambda _: None)
    monkeypatch.setattr(stages, "gate", lambda *_: good)
    shipping = threading.Thread(target=lambda: [*stages.ship(stages.Run(project), "load")])
    with files.alone(project.work / "ship.lock", lambda: None):  # as by another `ml ship`
        shipping.start()
        shipping.join(0.5)
        assert shipping.is_alive()
    shipping.join(10)
    assert not shipping.is_alive()
    assert len([*stages.ship(stages.Run(project), "load")]) == 5
    assert len(told) == 1  # a pull request changes no registry
    assert len([*stages.ship(stages.Run(project), "register")]) == 5
    assert len(told) == 2

    def ended(*_: object) -> Verdict:
        raise UserError("ended by `ml rollback`")

    monkeypatch.setattr(stages, "supervise", ended)
    run = stages.Run(project, recorded=recorded(project, a))
    with pytest.raises(UserError, match="ended by"):
        stages.deploy(run)
    assert told == [project.root] * 3

    def interrupted(*_: object) -> Verdict:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "supervise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stages.deploy(run)
    assert len(told) == 3  # whoever ends it does not wait for a server
