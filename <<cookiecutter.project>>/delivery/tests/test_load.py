"""The load gate: good services pass, slow and wrong ones stop, and doubt is never a pass."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_delivery.bundle.launch import Running, free_port, identity
from model_delivery.contract.settings import LoadLimits
from model_delivery.gates import load
from model_delivery.gates.load import Round, judge_rounds, judge_targets, run_rounds
from model_delivery.project import Project, find_project
from model_delivery.report.verdict import Check, Outcome, Verdict

# Limits of its own: a project's change of config/gates.yaml must not turn these tests red.
LIMITS = LoadLimits.model_validate(
    {
        "users": 8,
        "seconds": 1,
        "rounds": 8,
        "most_rounds": 20,
        "error_share": {"max": 0.001, "outcome": "stop"},
        "qps": {"min": 200, "outcome": "stop"},
        "p95_ms": {"max": 50, "outcome": "stop"},
        "p99_ms": {"max": 100, "outcome": "stop"},
        "qps_to_twin": {"min": 0.5, "outcome": "stop"},
        "p50_to_twin": {"max": 2.2, "outcome": "stop"},
        "qps_to_champion": {"min": 0.8, "outcome": "stop"},
        "p95_to_champion": {"max": 1.5, "outcome": "stop"},
    }
)
PROJECT = find_project(Path(__file__))
DIGEST = "0123456789ab" + "0" * 52
GOOD_TURN = {"requests": 2000, "failures": {}, "qps": 1000.0, "p50": 4.0, "p95": 6.0, "p99": 9.0}

# A service that works half a millisecond, and its faults; it refuses rows that are not marked.
FAKE = """
import asyncio, random, sys, time

port, fault, digest = int(sys.argv[1]), sys.argv[2], sys.argv[3]
good = (200, '{"release":"%s","probability":[0.5]}' % digest[:12])
wrong = [
    (500, ""),
    (200, good[1].replace("0.5", "NaN")),
    (200, good[1].replace(digest[:12], "somebodyelse")),
    None,
]
answers = 0


class Service(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.seen = transport, b""

    def data_received(self, data):
        self.seen += data
        head, end, rest = self.seen.partition(b"\\r\\n\\r\\n")
        length = [l for l in head.lower().split(b"\\r\\n") if l.startswith(b"content-length:")]
        if not end or (length and len(rest) < int(length[0].split(b":")[1])):
            return
        self.seen = b""
        self.marked = b"x-shadow: 1" in head.lower() or head.startswith(b"GET")
        asyncio.get_running_loop().call_later(fault == "late" and 0.1, self.answer)

    def answer(self):
        global answers
        answers += 1
        until = time.perf_counter() + (0.02 if fault == "blocks" else 0.0005)
        while time.perf_counter() < until:
            pass
        if fault == "dies" and answers > 300:
            sys.exit()
        found = random.choice(wrong) if fault == "errors" and random.random() < 0.1 else good
        if found:
            found = found if self.marked else (400, "")
            identity = "x-model-digest: %s\\r\\nx-launch: here" % digest
            head = "HTTP/1.1 %d -\\r\\n%s\\r\\ncontent-length: " % (found[0], identity)
            self.transport.write(f"{head}{len(found[1])}\\r\\n\\r\\n{found[1]}".encode())


async def main():
    loop = asyncio.get_running_loop()
    await (await loop.create_server(Service, "127.0.0.1", port)).serve_forever()


asyncio.run(main())
"""


@pytest.fixture(scope="module")
def fakes() -> Iterator[dict[str, Running]]:
    """Start a service for each fault, and a good one as the twin."""
    found, processes = {}, []
    for fault in ("twin", "good", "late", "blocks", "errors", "dies"):
        port = free_port()
        process = subprocess.Popen([sys.executable, "-c", FAKE, str(port), fault, DIGEST])
        processes.append(process)
        found[fault] = Running(f"http://127.0.0.1:{port}", DIGEST, "here", Path("nowhere"))
    deadline = time.monotonic() + 20
    while any(identity(fake.url) is None for fake in found.values()):
        assert time.monotonic() < deadline, "the fakes do not start"
        time.sleep(0.05)
    yield found
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def rounds(fakes: dict[str, Running]) -> list[Round]:
    """Return four short rounds over the fakes, from one run of Locust."""
    targets = [
        {"name": name, "url": fake.url, "release": DIGEST[:12]}
        for name, fake in fakes.items()
        if name != "dies"
    ]
    plan = {"users": 8, "seconds": 0.2, "rounds": 4, "targets": targets}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "TIMEOUT", 0.4)
        return run_rounds(plan, PROJECT.root)


def limits(**changes: float) -> LoadLimits:
    """Return the project's limits, with room for a busy machine and short slices."""
    own = LIMITS.model_dump(exclude_none=True)
    own |= {"rounds": 4, "most_rounds": 10} | changes
    own |= {"error_share": {"max": 0.005, "outcome": "stop"}}
    own |= {"qps": {"min": 1, "outcome": "stop"}}
    own |= {name: {"max": 10_000, "outcome": "stop"} for name in ("p95_ms", "p99_ms")}
    return LoadLimits.model_validate(own)


def against_twin(rounds: list[Round], name: str) -> list[Round]:
    return [{"candidate": each[name], "twin": each["twin"]} for each in rounds]


def outcomes(checks: list[Check]) -> dict[str, Outcome]:
    return {check.name: check.outcome for check in checks}


def alike(number: int = 4, **changed: object) -> list[Round]:
    """Return rounds in which candidate and twin do the same, but for the candidate's changes."""
    return [{"candidate": GOOD_TURN | changed, "twin": GOOD_TURN} for _ in range(number)]


def test_a_good_service_is_never_stopped(rounds: list[Round]) -> None:
    checks = judge_rounds(limits(), against_twin(rounds, "good"))
    assert Outcome.STOP not in outcomes(checks).values(), checks


def test_rounds_within_all_limits_pass() -> None:
    assert set(outcomes(judge_rounds(limits(), alike())).values()) == {Outcome.PASS}


@pytest.mark.parametrize(("fault", "check"), [("late", "p50_to_twin"), ("blocks", "qps_to_twin")])
def test_a_slow_service_stops(rounds: list[Round], fault: str, check: str) -> None:
    found = outcomes(judge_rounds(limits(), against_twin(rounds, fault)))
    assert found[check] is Outcome.STOP, found


def test_errors_stop_and_are_named(rounds: list[Round]) -> None:
    check = judge_rounds(limits(), against_twin(rounds, "errors"))[0]
    assert (check.name, check.outcome) == ("error_share", Outcome.STOP), check
    for kind in ("HTTP 500", "not one probability", "another release", "timed out"):
        assert kind in check.sentence


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Project:
    short = Project(PROJECT.root)
    gates = PROJECT.gates.model_copy(update={"load": limits(seconds=0.2, most_rounds=4)})
    monkeypatch.setitem(short.__dict__, "gates", gates)
    return short


def judged(project: Project, **targets: Running) -> Verdict:
    return judge_targets(project, targets)


def test_a_champion_that_dies_under_load_is_named_and_inconclusive(
    project: Project, fakes: dict[str, Running]
) -> None:
    verdict = judged(project, candidate=fakes["good"], twin=fakes["twin"], champion=fakes["dies"])
    assert verdict.outcome is Outcome.INCONCLUSIVE
    found = outcomes(verdict.checks)
    assert found["champion_answers"] is Outcome.INCONCLUSIVE
    assert found["qps_to_champion"] is Outcome.INCONCLUSIVE
    ratio = next(check for check in verdict.checks if check.name == "qps_to_twin")
    assert ratio.outcome is not Outcome.STOP
    assert ratio.limit == "≥ 0.5"
    assert "median of 4 rounds" in ratio.sentence
    assert [row[0] for row in verdict.tables[0].rows] == ["candidate", "twin", "champion"]
    (chart,) = verdict.charts
    assert list(chart.series) == ["candidate", "twin", "champion"]
    assert list(chart.series["candidate"]) == verdict.tables[0].rows[0][-3:]


def test_a_candidate_that_no_longer_answers_stops(
    project: Project, fakes: dict[str, Running]
) -> None:
    gone = Running(f"http://127.0.0.1:{free_port()}", DIGEST, "here", Path("nowhere"))
    found = outcomes(judged(project, candidate=gone, twin=fakes["twin"]).checks)
    assert found["error_share"] is Outcome.STOP
    assert found["champion"] is Outcome.PASS


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("raise SystemExit('no memory')", "no memory"),
        ("import time; time.sleep(60)", "took more than"),
    ],
)
def test_a_crash_of_locust_is_a_crash(
    program: str, says: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "LOCUST", [sys.executable, "-c", program])
    monkeypatch.setattr(load, "_SLACK_SECONDS", 0 if "sleep" in program else 60)
    verdict = judged(project)
    assert verdict.outcome is Outcome.CRASH
    assert says in verdict.checks[0].sentence


def test_what_is_no_json_is_never_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "LOCUST", [sys.executable, "-c", "print('half a line')"])
    plan = {"users": 1, "seconds": 0.1, "rounds": 2, "targets": []}
    with pytest.raises(ValueError, match="Expecting value"):
        run_rounds(plan, PROJECT.root)


def test_no_rounds_are_inconclusive() -> None:
    assert set(outcomes(judge_rounds(limits(), [])).values()) == {Outcome.INCONCLUSIVE}


def test_a_round_without_answers_is_inconclusive() -> None:
    silent = alike(requests=0, qps=0.0, p50=None, p95=None, p99=None)
    assert set(outcomes(judge_rounds(limits(), silent)).values()) == {Outcome.INCONCLUSIVE}


def test_rounds_on_both_sides_of_a_limit_are_inconclusive() -> None:
    mixed = alike(2) + alike(2, qps=400.0)
    check = next(c for c in judge_rounds(limits(), mixed) if c.name == "qps_to_twin")
    assert check.outcome is Outcome.INCONCLUSIVE
    assert "both sides of the limit" in check.sentence


def test_more_rounds_are_asked_for_only_while_undecided(
    project: Project, fakes: dict[str, Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, taken = iter(alike(2) + alike(2, qps=400.0) + alike(20)), []

    def next_rounds(plan: dict[str, int], _: Path) -> list[Round]:
        taken.append(plan["rounds"])
        return [next(source) for _ in range(plan["rounds"])]

    monkeypatch.setattr(load, "run_rounds", next_rounds)
    more = PROJECT.gates.model_copy(update={"load": limits(most_rounds=22)})
    monkeypatch.setitem(project.__dict__, "gates", more)
    verdict = judged(project, candidate=fakes["good"], twin=fakes["twin"])
    assert verdict.outcome is Outcome.PASS
    assert 4 < sum(taken) < 22
