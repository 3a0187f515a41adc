"""A rollout's judgement: sure failures at once, success when it is earned, else undecided."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import test_rollout
from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.launch import Running, processes
from model_delivery.contract.settings import Delivery, RolloutLimits
from model_delivery.project import Project
from model_delivery.protocols import UserError
from model_delivery.registry import event_log
from model_delivery.releases import register
from model_delivery.report.verdict import Outcome
from model_delivery.rollout import canary
from model_delivery.rollout.canary import Answer, Traffic, compare
from model_delivery.rollout.target import Target
from test_rollout import clients, configured, deploy, make_candidate, rollback, served

project, a = test_rollout.project, test_rollout.a  # fixtures
SUPERVISOR = """
import sys
from pathlib import Path
import test_rollout
from model_delivery.bundle.candidate import Candidate, candidate_folder
from model_delivery.project import Project
from model_delivery.rollout import host, target

target.start, host.limits_hash = test_rollout.fake_start, lambda *_: "limits"
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


def arm(n: int, failing: float = 0, wait: float = 5, score: float | None = None) -> list[Answer]:
    draw = random.Random(n)

    def answer() -> Answer:
        value = draw.random() if score is None else score
        return Answer(draw.random() < failing, draw.expovariate(1 / wait), value)

    return [answer() for _ in range(n)]


@pytest.mark.parametrize(
    ("own", "old", "expected"),
    [
        (arm(500), arm(501), {}),
        (arm(5000, failing=0.2), arm(5001, failing=0.2), {}),  # callers' own mistakes
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


def test_equal_releases_hardly_ever_fail() -> None:
    """Looked at every second, from the first answer on, half of the rollouts with failures."""
    stopped = 0
    for n in range(100):
        own, old = (arm(size + n, failing=0.03 * (n % 2)) for size in (100, 900))
        looks = [compare(LIMITS, own[: 5 * t], old[: 45 * t]) for t in range(1, 21)]
        stopped += any(check.outcome is STOP for checks in looks for check in checks)
    assert stopped <= 1


def test_the_log_is_read_on_whole_lines_only_and_after_it_rolled_over(tmp_path: Path) -> None:
    def line(arm: str, status: int = 200, digest: str = "") -> str:
        headers = {"X-Model-Digest": [digest or arm], "X-Score": ["0.25"]}
        logged = {"status": status, "duration": 0.002, "resp_headers": headers, "arm": arm}
        return json.dumps(logged) + "\n"

    def failed() -> list[list[bool]]:
        return [[answer.failed for answer in answers] for answers in traffic.read()]

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
    log.write_text(line("new"))
    assert failed() == [[False], [True, False, True, False]]
    assert traffic.read()[1][0] == Answer(True, 2.0, 0.25)


def test_what_a_bad_release_may_cost_is_said_with_its_numbers() -> None:
    step = canary.Step(weight=0.05, seconds=30)
    said = canary.damage(Delivery.model_construct(rollout=LIMITS), [step])
    assert said == "5% × 100 requests/s × 60 s = 300 requests at that rate"


@pytest.fixture
def stepped(project: Project, a: Candidate) -> Project:
    """Return a project whose next release has to pass two steps."""
    return configured(project, "canary: []", f"canary: [{test_rollout.STEPS}]")


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
    assert [*dict.fromkeys(stages)][2:] == ["at 30%", "at 50%"]
    assert Target(stepped, "production").state().verdict == verdict


def test_a_bad_one_is_taken_back_and_the_log_says_why(stepped: Project, a: Candidate) -> None:
    b = make_candidate(stepped, "b", against=a, fault="constant")
    loose = configured(stepped, "shadow_distance: {max: 0.9", "shadow_distance: {max: 1.0")
    with clients(stepped) as answers:
        verdict = deploy(loose, b)
    assert (verdict.outcome, verdict.decisive.name) == (STOP, "score_distance")
    assert set(answers) == {a.digest, b.digest}
    assert (served(stepped), test_rollout.running(stepped)) == (a.digest, [a.digest])
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


def test_a_canary_that_nobody_looks_after_ends_by_itself(stepped: Project, a: Candidate) -> None:
    target, goal = (
        Target(stepped, "production"),
        register(stepped, make_candidate(stepped, "b"), {}, "local"),
    )
    one, two = target.services()[0], target.serve(goal)
    target.proxy.route("v", one.address, two.address, weight=0.9, until=time.time() + 2)
    assert {served(stepped) for _ in range(30)} == {a.digest, goal.digest}
    assert {test_rollout.ask(stepped, "/readyz")[1]["x-model-digest"] for _ in range(9)} == {
        a.digest
    }
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
    assert (served(stepped), test_rollout.running(stepped)) == (a.digest, [a.digest])


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
        begun = time.monotonic()
        moved = [rollback(slow) for _ in range(2)]
        assert time.monotonic() - begun < 10
    assert moved[0] == moved[1]
    assert (moved[0].digest, moved[0].previous) == (a.digest, b.digest)
    assert moved[0].reason == "by hand, when 30% of the requests went to it"
    assert set(answers) <= {a.digest, b.digest}
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert (served(slow), test_rollout.running(slow)) == (a.digest, [a.digest])
