"""A deploy leaves the old state or the new one, whatever is killed, full, or in the way."""

from __future__ import annotations

import contextlib
import errno
import http.client
import itertools
import json
import os
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
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from model_delivery.bundle.candidate import Candidate, candidate_folder, save_data_verdict
from model_delivery.digest import SUMS, seal
from model_delivery.errors import UserError
from model_delivery.files import sha256_file
from model_delivery.gates.judge import limits_hash
from model_delivery.project import Project
from model_delivery.registry.champion import champion, open_registry
from model_delivery.report.verdict import Check, Outcome, Verdict
from model_delivery.rollout import admission, host, services
from model_delivery.rollout.proxy import TOKEN_PATH
from model_delivery.rollout.status import status
from model_delivery.rollout.target import Target
from model_delivery.serving.launch import identity

PORTS = itertools.cycle(range(3980, 3990))
FAKE = Path(__file__).with_name("fake_service.py")
STRIDE = int(os.environ.get("FAULT_STRIDE", "12"))
"""Faults are tried at every so many durable writes; 1 for all of them."""
DAY, GATES = "2013-08-01", ("data", "model", "package", "api", "load")


def fake_start(ship: Path, python: Path, log: Path, timeout: float) -> SimpleNamespace:
    """Start the fake service as the real launcher does: ready and itself, or an error."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    digest, launch = sha256_file(ship / SUMS), secrets.token_hex(4)
    words = [str(python), str(FAKE), str(port), digest, launch, (ship / "fault").read_text()]
    with log.open("ab") as output:
        child = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + timeout
    while identity(url) != (digest, launch):
        if child.poll() is not None or time.monotonic() > deadline:
            raise UserError(f"{digest[:12]} was not ready; see {log}")
        time.sleep(0.01)
    return SimpleNamespace(url=url, pid=child.pid, digest=digest, launch=launch)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.setattr(services, "start", fake_start)
    monkeypatch.setattr(services, "service_environment", lambda *_: Path(sys.executable))
    monkeypatch.setattr(admission, "limits_of", lambda *_: [])
    made = make_project(tmp_path / "project")
    yield made
    host.stop(made, "production")


def make_project(root: Path) -> Project:
    (root / "config").mkdir(parents=True)
    (root / "config" / "delivery.yaml").write_text(
        f"environments: {{production: {{target: host, port: {next(PORTS)}}}}}\n"
        "keep_releases: 2\nstart_timeout_seconds: 20\nimage: {base: debian, builder: docker}\n"
    )
    (root / "pyproject.toml").write_text('[project]\nversion = "1.1.0"\n')
    return Project(root)


def make_candidate(
    project: Project,
    name: str,
    against: Candidate | None = None,
    as_of: str = DAY,
    fault: str = "",
    **outcomes: str,
) -> Candidate:
    staged = project.work / "staged"
    (staged / "ship").mkdir(parents=True)
    (staged / "ship" / "model.txt").write_text(name)
    (staged / "ship" / "fault").write_text(fault)
    (staged / "ship" / "requirements.txt").touch()
    lineage = {"data": {"as_of": as_of}, "commit": "c" * 40, "snapshot": "s"}
    (staged / "lineage.json").write_text(json.dumps(lineage))
    folder = candidate_folder(project, seal(staged / "ship"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged.rename(folder)
    candidate = Candidate(folder)
    for gate in GATES:
        save_verdict(project, candidate, gate, outcomes.get(gate, "pass"), against)
    return candidate


def save_verdict(
    project: Project,
    candidate: Candidate,
    gate: str,
    outcome: str,
    against: Candidate | None = None,
    *,
    changes: dict[str, str] | None = None,
) -> None:
    compared = against.digest if against is not None and gate in ("model", "load") else None
    fields: dict[str, Any] = {
        "gate": gate,
        "subject": f"sha256:{candidate.digest}",
        "limits": limits_hash([]),
        "checks": [Check(name="c", outcome=Outcome(outcome), sentence=f"the {gate} sentence")],
        "seconds": 1.0,
        "finished": "2013-09-01T00:00:00+00:00",
        "against": compared,
    }
    verdict = Verdict(**fields | (changes or {}))
    if gate == "data":
        save_data_verdict(project, "s", verdict)
    else:
        candidate.save(verdict)


def deploy(project: Project, candidate: Candidate) -> host.Moved:
    return host.deploy(project, "production", candidate)


def ask(
    project: Project,
    method: str = "POST",
    path: str = "/predict",
    body: bytes = b"{}",
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    port = project.delivery.environments["production"].port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def served(project: Project) -> str:
    code, headers, _ = ask(project)
    return headers["x-model-digest"] if code == 200 else f"status {code}"


def running(project: Project) -> list[str]:
    return [service.digest for service in services.services(Target(project, "production"))]


class Traffic:
    """Clients that keep connections and honour a close, counting what failed."""

    def __init__(self, project: Project, clients: int = 4, rate: float = 50.0) -> None:
        self.port = project.delivery.environments["production"].port
        self.pause, self.failed, self.digests = clients / rate, [], []  # type: ignore[var-annotated]
        self.done = threading.Event()
        self.threads = [threading.Thread(target=self._client) for _ in range(clients)]

    def __enter__(self) -> Traffic:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.3)
        self.done.set()
        for thread in self.threads:
            thread.join()

    def _client(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        while not self.done.is_set():
            try:
                answer = self._once(connection)
                self.digests.append(answer.getheader("x-model-digest"))
                if answer.status != 200:
                    self.failed.append(answer.status)
            except OSError as error:
                self.failed.append(repr(error))
                connection.close()
            time.sleep(self.pause)
        connection.close()

    def _once(self, connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        kept = connection.sock is not None
        try:
            connection.request("POST", "/predict", b"{}")
            answer = connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            if not kept:
                raise
            connection.close()  # it was closed while idle: the request was never taken
            connection.request("POST", "/predict", b"{}")
            answer = connection.getresponse()
        answer.read()
        return answer


def test_first_deploy_serves_and_is_remembered(project: Project) -> None:
    candidate = make_candidate(project, "a")
    assert status(project, "production")["state"] == "nothing deployed"
    moved = deploy(project, candidate)
    assert moved.event.release == "v1.1.0+data.20130801.1"
    code, headers, body = ask(project)
    assert (code, headers["x-model-digest"]) == (200, candidate.digest)
    assert headers["x-release"] == moved.event.release
    assert json.loads(body)["id"] == headers["x-request-id"]
    types = [event.type for event in open_registry(project).log.events()]
    assert types == ["registered", *["verdict"] * 5, "promoted"]
    found = status(project, "production")
    assert (found["state"], found["problems"], found["untold"]) == ("serving", [], 0)
    old = champion(project)
    assert old is not None
    assert old.digest == candidate.digest


def test_every_answer_names_release_and_request_errors_included(project: Project) -> None:
    deploy(project, make_candidate(project, "a"))
    big = b"x" * 1_000_000
    asked: dict[int, Callable[[], tuple[int, dict[str, str], bytes]]] = {
        413: lambda: ask(project, body=big),
        411: lambda: ask(project, Transfer_Encoding="chunked", body=b"1\r\nx\r\n0\r\n\r\n"),
        200: lambda: ask(project, body=big[1:], X_Request_Id="the client's own"),
    }
    for code, request in asked.items():
        begun = time.monotonic()
        got, headers, _ = request()
        assert got == code
        assert headers["x-release"] == "v1.1.0+data.20130801.1"
        assert len(headers["x-request-id"]) == 36
        assert time.monotonic() - begun < 1
    process = services.services(Target(project, "production"))[0].process()
    assert process is not None
    process.stop()
    got, headers, _ = ask(project)
    assert (got, headers["x-release"]) == (502, "v1.1.0+data.20130801.1")


def test_switches_under_traffic_fail_no_request(project: Project) -> None:
    a = make_candidate(project, "a")
    deploy(project, a)
    b = make_candidate(project, "b", against=a)
    with Traffic(project) as traffic:
        time.sleep(0.3)
        deploy(project, b)
        host.rollback(project, "production", None)
        deploy(project, b)
    assert traffic.failed == []
    assert {a.digest, b.digest} == set(traffic.digests)
    assert running(project) == [b.digest]


def test_a_request_in_flight_is_answered_by_the_release_that_took_it(project: Project) -> None:
    a = make_candidate(project, "a")
    deploy(project, a)
    answers: list[str] = []
    slow = threading.Thread(
        target=lambda: answers.append(ask(project, path="/slow")[1]["x-model-digest"])
    )
    slow.start()
    time.sleep(0.2)
    deploy(project, make_candidate(project, "b", against=a))
    slow.join()
    assert answers == [a.digest]


@pytest.mark.parametrize("gate", GATES)
def test_a_missing_verdict_is_refused_with_its_command(project: Project, gate: str) -> None:
    candidate = make_candidate(project, "a")
    kept = project.work / "verdicts" if gate == "data" else candidate.folder / "verdicts"
    for path in kept.glob(f"{gate}*.json"):
        path.unlink()
    with pytest.raises(UserError, match=f"gate {gate}: no verdict.*`ml check {gate}`"):
        deploy(project, candidate)
    assert status(project, "production")["state"] == "nothing deployed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limits": "0" * 64}, "config/gates.yaml changed"),
        ({"subject": f"sha256:{'0' * 64}"}, "another candidate"),
        ({"against": "0" * 64}, "another champion"),
    ],
)
def test_a_verdict_on_something_else_does_not_count(
    project: Project, changes: dict[str, str], message: str
) -> None:
    candidate = make_candidate(project, "a")
    save_verdict(project, candidate, "load", "pass", changes=changes)
    with pytest.raises(UserError, match=f"gate load: .*{message}"):
        deploy(project, candidate)


@pytest.mark.parametrize("outcome", ["stop", "inconclusive", "crash"])
def test_a_bad_verdict_is_refused_with_its_sentence(project: Project, outcome: str) -> None:
    candidate = make_candidate(project, "a", model=outcome)
    with pytest.raises(UserError, match=f"gate model says {outcome}.*the model sentence"):
        deploy(project, candidate)


def test_a_reason_to_retrain_does_not_stop_a_delivery(project: Project) -> None:
    deploy(project, make_candidate(project, "a", data="retrain", model="warn"))


def test_data_older_than_the_champions_is_refused_with_the_command(project: Project) -> None:
    a = make_candidate(project, "a")
    deploy(project, a)
    older = make_candidate(project, "b", against=a, as_of="2013-07-01")
    with pytest.raises(UserError, match="ml ship --as-of 2013-08-01"):
        deploy(project, older)


def test_a_stranger_on_the_port_changes_nothing(project: Project) -> None:
    port = project.delivery.environments["production"].port
    with contextlib.closing(socket.create_server(("127.0.0.1", port))):
        with pytest.raises(UserError, match=f"port {port} is in use by another program"):
            deploy(project, make_candidate(project, "a"))
        assert not host.owns_port(project, "production")
    assert not (project.work / "registry").exists()
    assert running(project) == []


def test_the_proxy_of_another_project_is_told_from_ours(project: Project, tmp_path: Path) -> None:
    deploy(project, make_candidate(project, "a"))
    other = make_project(tmp_path / "other")
    shutil.copy(project.root / "config" / "delivery.yaml", other.root / "config")
    with pytest.raises(UserError, match="the proxy of another project"):
        deploy(other, make_candidate(other, "a"))
    assert host.owns_port(project, "production")
    assert status(project, "production")["state"] == "serving"


@pytest.mark.parametrize("fault", ["never-ready", "crash", "liar"])
def test_a_bad_release_is_refused_and_leaves_no_process(project: Project, fault: str) -> None:
    a = make_candidate(project, "a")
    deploy(project, a)
    bad = make_candidate(project, "b", against=a, fault=fault)
    path = project.root / "config" / "delivery.yaml"
    path.write_text(
        path.read_text().replace("start_timeout_seconds: 20", "start_timeout_seconds: 1")
    )
    with pytest.raises(UserError, match="was not ready"):
        deploy(Project(project.root), bad)
    assert served(project) == a.digest
    assert running(project) == [a.digest]
    assert status(project, "production")["unfinished"] is None


def test_a_bad_first_release_leaves_nothing(project: Project) -> None:
    with pytest.raises(UserError, match="was not ready"):
        deploy(project, make_candidate(project, "a", fault="crash"))
    found = status(project, "production")
    assert (found["state"], found["services"], found["proxy"]) == ("nothing deployed", [], None)


def test_rollback_goes_back_once_and_needs_no_registry(project: Project) -> None:
    a = make_candidate(project, "a")
    deploy(project, a)
    deploy(project, make_candidate(project, "b", against=a))
    registry = project.work / "registry"
    registry.rename(project.work / "away")
    registry.write_text("not a folder")
    begun = time.monotonic()
    for _ in range(2):
        moved = host.rollback(project, "production", None)
        assert moved.event.digest == served(project) == a.digest
    assert time.monotonic() - begun < 10
    assert moved.untold
    assert status(project, "production")["untold"] == 1
    registry.unlink()
    (project.work / "away").rename(registry)
    assert host.rollback(project, "production", None).untold is None
    types = [event.type for event in open_registry(project).log.events()]
    assert types.count("rolled_back") == 1
    assert types[-1] == "rolled_back"


def test_rollback_to_a_named_release_and_what_is_kept(project: Project) -> None:
    releases, before = [], None
    for name in "abc":
        candidate = make_candidate(project, name, against=before)
        releases.append(deploy(project, candidate).event)
        before = candidate
    assert status(project, "production")["installed"] == [r.release for r in releases[:0:-1]]
    with pytest.raises(UserError, match=r"no installed release `v1.1.0\+data.20130801.1`; choose"):
        host.rollback(project, "production", releases[0].release)
    host.rollback(project, "production", releases[1].release)
    assert served(project) == releases[1].digest
    host.rollback(project, "production", releases[2].digest[:12])
    assert served(project) == releases[2].digest


def test_rollback_without_a_release_before_says_so(project: Project) -> None:
    with pytest.raises(UserError, match="nothing deployed"):
        host.rollback(project, "production", None)
    deploy(project, make_candidate(project, "a"))
    with pytest.raises(UserError, match="no earlier release"):
        host.rollback(project, "production", None)


def test_a_tampered_release_is_not_started(project: Project) -> None:
    a = make_candidate(project, "a")
    deploy(project, a)
    b = make_candidate(project, "b", against=a)
    deploy(project, b)
    target = Target(project, "production")
    (target.release(a.digest) / "ship" / "model.txt").write_text("tampered")
    with pytest.raises(UserError, match=r"ship/model\.txt: does not belong"):
        host.rollback(project, "production", None)
    assert served(project) == b.digest
    assert status(project, "production")["state"] == "serving"


def test_stop_keeps_the_state_and_deploy_starts_it_again(project: Project) -> None:
    a = make_candidate(project, "a")
    deploy(project, a)
    assert host.stop(project, "production")
    assert not host.stop(project, "production")
    found = status(project, "production")
    assert (found["state"], found["services"]) == ("stopped", [])
    moved = deploy(project, a)
    assert (moved.changed, served(project)) == (False, a.digest)
    assert [e.type for e in open_registry(project).log.events()].count("promoted") == 1


@pytest.mark.parametrize("victim", ["proxy", "service"])
def test_what_died_is_seen_and_started_by_the_next_verb(project: Project, victim: str) -> None:
    a = make_candidate(project, "a")
    deploy(project, a)
    target = Target(project, "production")
    owner = target.proxy if victim == "proxy" else services.services(target)[0]
    process = owner.process()
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.1)
    found = status(project, "production")
    assert found["state"] == "unhealthy"
    assert victim in found["problems"][0]
    assert not deploy(project, a).changed
    assert status(project, "production")["state"] == "serving"


def test_a_changed_port_moves_the_proxy(project: Project) -> None:
    a = make_candidate(project, "a")
    deploy(project, a)
    path = project.root / "config" / "delivery.yaml"
    old, new = project.delivery.environments["production"].port, next(PORTS)
    path.write_text(path.read_text().replace(str(old), str(new)))
    moved = Project(project.root)
    deploy(moved, a)
    assert served(moved) == a.digest
    with pytest.raises(OSError, match="refused"):
        ask(project)


def test_a_held_target_is_busy_and_a_dead_holder_is_no_holder(project: Project) -> None:
    candidate = make_candidate(project, "a")
    target = Target(project, "production")
    ready, end = os.pipe()
    holder = os.fork()
    if holder == 0:
        with target.lock("deploy"):
            os.write(end, b".")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    with pytest.raises(UserError, match=f"busy: `ml deploy`, process {holder}"):
        deploy(project, candidate)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    deploy(project, candidate)
    assert served(project) == candidate.digest


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


NOT_REACHED = 9


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("act", "expected"), [(die, -9), (full, 2)])
def test_old_state_or_new_after_a_fault_at_each_durable_write(
    project: Project, act: Callable[[], None], expected: int
) -> None:
    a = make_candidate(project, "a")
    deploy(project, a)
    codes, moves, states = [], [a.digest], set()
    for step in range(2, 60, STRIDE):
        b = make_candidate(project, f"b{step}", against=a)
        child = in_child(step, act, lambda b=b: deploy(project, b))  # type: ignore[misc]
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            assert served(project) in (a.digest, b.digest)
        codes.append(os.waitstatus_to_exitcode(ended[1]))
        now = Target(project, "production").current()
        assert now is not None
        states.add(now.digest == b.digest)
        assert now.digest in (a.digest, b.digest)
        if codes[-1] != -9:
            assert served(project) == now.digest
        moved = deploy(project, b)
        assert moved.event.digest == served(project) == b.digest
        assert running(project) == [b.digest]
        last = open_registry(project).log.events()[-1]
        assert (last.type, last.digest) == ("promoted", b.digest)
        host.rollback(project, "production", None)
        moves += [b.digest, a.digest]
        if codes[-1] == NOT_REACHED:
            break
    assert codes.pop() == NOT_REACHED
    assert expected in codes
    assert set(codes) <= {expected, 0}  # 0: it deployed, and told the log later
    assert states == {False, True}
    assert [e.digest for e in open_registry(project).log.events() if e.environment] == moves


def test_a_full_disk_before_anything_runs_changes_nothing(project: Project) -> None:
    a = make_candidate(project, "a")
    deploy(project, a)
    b = make_candidate(project, "b", against=a)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written|nothing was changed"):
            deploy(project, b)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert served(project) == a.digest
    deploy(project, b)
    assert served(project) == b.digest


def test_a_full_disk_keeps_nobody_from_stopping(project: Project) -> None:
    deploy(project, make_candidate(project, "a"))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        assert host.stop(project, "production")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert status(project, "production")["state"] == "stopped"


def test_the_proxy_tells_its_token_and_nothing_else(project: Project) -> None:
    deploy(project, make_candidate(project, "a"))
    code, _, body = ask(project, "GET", TOKEN_PATH)
    token = (project.work / "production" / "proxy" / "token").read_text()
    assert (code, body.decode()) == (200, token)
    mode = (project.work / "production" / "proxy" / "admin.sock").stat().st_mode
    assert mode & 0o077 == 0
