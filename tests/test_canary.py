"""A bad release under canary is rolled back in seconds; its clients hardly notice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.baking import BakedProject, environment, free_port
from tests.canary.traffic import Traffic, asking, failed, processes_of, supervisors

CHALLENGER = Path(__file__).parent / "bench" / "challenger.py"
RATE = 100
WORST = 0.1 * RATE * 2 * 5
"""Weight times rate times a first step's longest time: what a bad release may cost."""
CONFIG = """
environments:
  production:
    target: host
    port: {port}
    canary: [{{ weight: 0.1, seconds: 5 }}, {{ weight: 0.5, seconds: 5 }}]
rollout:
  requests_per_second: 100
  min_requests: 30
  shadow_rows: 200
  shadow_distance: {{ max: 0.6, outcome: stop }}
  error_share: {{ max: 0.01, outcome: stop }}
  p95_ms: {{ max: 50, outcome: stop }}
  score_distance: {{ max: 0.25, outcome: stop }}
  memory_mb: {{ max: 700, outcome: stop }}
keep_releases: 4
start_timeout_seconds: 30
"""


@dataclass(frozen=True)
class Scene:
    """A project whose production serves a good release."""

    project: BakedProject
    port: int

    def challenger(self, fault: str, seed: str) -> str:
        """Make a release the current candidate; return its digest."""
        return self.project.run("uv", "run", "python", str(CHALLENGER), fault, seed).stdout

    def state(self) -> dict[str, Any]:
        """Return production's own record."""
        found: dict[str, Any] = json.loads(self.project.text(".ml/production/state.json"))
        return found


@pytest.fixture(scope="module")
def scene(trained: BakedProject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    project = trained.copy(tmp_path_factory.mktemp("canary"))
    port = free_port()
    settings = project.path / "config" / "delivery.yaml"
    rest = settings.read_text().partition("start_timeout_seconds: 60")[2].partition("\n")[2]
    settings.write_text(CONFIG.format(port=port) + rest)
    project.ml("package")
    made = Scene(project, port)
    made.challenger("none", "the first")
    project.ml("deploy")
    yield made
    project.ml("deploy", "--stop")


@pytest.fixture
def traffic(scene: Scene, tmp_path: Path) -> Iterator[Traffic]:
    bodies = scene.project.path / ".ml" / "bodies.json"
    with asking(scene.port, RATE, bodies, tmp_path / "answers.jsonl") as found:
        time.sleep(1)
        yield found


def deploying(scene: Scene) -> subprocess.Popen[str]:
    """Start `ml deploy` of the current candidate, as the process itself: a kill meets it."""
    return subprocess.Popen(
        [scene.project.path / ".venv" / "bin" / "ml", "deploy"],
        cwd=scene.project.path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until_tried(scene: Scene, digest: str, clients: bool = False) -> float:
    """Wait until a release is about to start, or clients are led to it; return when that was."""
    for _ in range(1800):  # before it begins nothing is promised, and a machine may be busy
        state = scene.state()
        if (state["trying"] or {}).get("digest") == digest and (state["weight"] or not clients):
            return time.time()
        time.sleep(0.1)
    pytest.fail("no rollout began, or no canary")


def wait_for_canary(scene: Scene, digest: str) -> None:
    """Wait until clients are led to a release."""
    wait_until_tried(scene, digest, clients=True)


def left_alone(scene: Scene, deploy: subprocess.Popen[str]) -> None:
    """Kill who asked for a rollout, under its canary; wait until its supervisor ends."""
    deploy.kill()
    assert deploy.wait() == -signal.SIGKILL
    assert supervisors(scene.project.path)
    deadline = time.monotonic() + 60  # twice the steps' time, and what a busy machine adds
    while supervisors(scene.project.path):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert scene.state()["trying"] is None


TURNS = [0, *(pytest.param(turn, marks=pytest.mark.exhaustive) for turn in range(1, 5))]


FAULTS = {
    "raises": (("error_share",), WORST),
    "fifth": (("error_share",), WORST),
    "slow": (("p95_ms", "error_share"), WORST),
    "nan": (("shadow_answers",), 0),
    "constant": (("score_distance",), 0),
    "schema": (("shadow_answers",), 0),
    "crash": (("ready",), 0),
    "never-ready": (("ready",), 0),
    "memory": (("memory_mb", "p95_ms"), 0),
    "kill": (("alive", "error_share"), 0),
    "drops": (("error_share",), 0),
    "hangs": (("error_share", "requests", "p95_ms"), WORST),
}
"""By fault: what finds it, and how many requests it may cost."""


@pytest.fixture
def patience(scene: Scene, fault: str) -> Iterator[None]:
    """Wait for what never comes up for five seconds, and for all else as long as a busy machine."""
    path, wanted = scene.project.path / "config" / "delivery.yaml", "start_timeout_seconds: 30"
    text = path.read_text()
    assert wanted in text
    path.write_text(
        text.replace(wanted, f"start_timeout_seconds: {5 if fault == 'never-ready' else 30}")
    )
    yield
    path.write_text(text)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_release_is_rolled_back(
    scene: Scene, traffic: Traffic, fault: str, turn: int
) -> None:
    check, most = FAULTS[fault]
    champion = scene.state()["moves"][0]["digest"]
    seeded = "none" if fault == "kill" else fault
    bad = scene.challenger(seeded, f"{fault} {turn} {time.time()}")
    deploy, killed = deploying(scene), 0.0
    begun = wait_until_tried(scene, bad)
    if fault == "kill":
        wait_for_canary(scene, bad)
        time.sleep(1)
        for process in processes_of(scene.project.path, bad):
            os.kill(process, signal.SIGKILL)
        killed = time.time()
    said, ended = deploy.communicate(timeout=120)[0], time.time()
    assert deploy.returncode in ((20, 30) if fault == "hangs" else (20,)), said
    time.sleep(1)
    answers = traffic.answers()
    lost = failed(answers)
    print(f"\n{fault}: {len(lost)} of {len(answers)} failed (at most {most:g})")
    assert len(lost) <= most, lost[:3]
    assert {answer.get("digest") for answer in answers[-RATE // 2 :]} == {champion}
    # Stable again: nobody is led to the bad release any more, counted from its first bad answer.
    # Where no client got one, it is the end of the rollout, from the kill or the release's start.
    own = [answer for answer in answers if answer.get("digest") == bad]
    wrong = [a for a in own if a["status"] != 200 or a["seconds"] > 0.25 or a.get("score") == 0.5]
    if own and not killed:
        stable = max(answer["start"] for answer in own) - (wrong or own)[0]["start"]
    else:
        stable = ended - (killed or begun)
    print(f"{fault}: stable after {stable:.1f} s; {len(own)} answers by the bad release")
    assert stable <= 20
    last = scene.state()["moves"][0]
    assert (last["type"], last["digest"], last["previous"]) == ("rolled_back", champion, bad)
    print(last["reason"])
    found = re.match(r"(\w+) \((.+), limit (.+?)\) ", last["reason"])  # metric, value and limit
    assert found, last["reason"]
    assert found[1] in check, last["reason"]
    assert processes_of(scene.project.path, bad) == []


def test_a_bad_release_is_rolled_back_though_who_asked_is_gone(
    scene: Scene, traffic: Traffic
) -> None:
    champion = scene.state()["moves"][0]["digest"]
    bad = scene.challenger("slow", f"left alone {time.time()}")
    deploy = deploying(scene)
    wait_for_canary(scene, bad)
    left_alone(scene, deploy)
    last = scene.state()["moves"][0]
    assert (last["type"], last["digest"], last["previous"]) == ("rolled_back", champion, bad)
    assert len(failed(traffic.answers())) <= WORST
    assert processes_of(scene.project.path, bad) == []


AGAIN = [*range(2), *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(2, 20))]


@pytest.mark.parametrize("turn", AGAIN)
def test_an_equal_release_is_promoted_and_no_request_fails(
    scene: Scene, traffic: Traffic, turn: int
) -> None:
    good = scene.challenger("none", f"equal {turn} {time.time()}")
    deploy = deploying(scene)
    if turn == 0:  # whoever asked for it goes away: the supervisor does not
        wait_for_canary(scene, good)
        left_alone(scene, deploy)
    else:
        said = deploy.communicate(timeout=120)[0]
        assert deploy.returncode == 0, said
    time.sleep(1)
    answers = traffic.answers()
    assert failed(answers) == []
    assert answers[-1]["digest"] == good
    assert scene.state()["moves"][0]["digest"] == good
    print(f"\nequal: 0 of {len(answers)} failed, {scene.state()['verdict']['outcome']}")


def test_a_rollback_ends_a_canary_and_reaches_the_last_three(
    scene: Scene, traffic: Traffic, tmp_path: Path
) -> None:
    champion = scene.state()["moves"][0]["digest"]
    bad = scene.challenger("none", f"ended by hand {time.time()}")
    deploy = deploying(scene)
    wait_for_canary(scene, bad)
    begun = time.monotonic()
    scene.project.ml("rollback")
    print(f"\nrolled back from a canary in {time.monotonic() - begun:.1f} s")
    assert time.monotonic() - begun <= 10
    assert "the rollout was ended by `ml rollback`" in deploy.communicate(timeout=30)[0]
    assert deploy.returncode == 2
    registry, away = (scene.project.path / ".ml" / name for name in ("registry", "away"))
    fake = tmp_path / "bin" / "git"  # which reads and writes the log's branch, and fetches
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    without = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    registry.rename(away)
    registry.write_text("not a folder")
    try:
        assert len(scene.state()["moves"][1:4]) >= 2  # three in `make test-all`
        for move in scene.state()["moves"][1:4]:
            for _ in range(2):
                begun = time.time()
                scene.project.run("uv", "run", "ml", "rollback", move["release"], env=without)
                whole = time.time() - begun  # it also ends what served before
                time.sleep(0.2)
                own = [a for a in traffic.answers() if a.get("digest") == move["digest"]]
                first = min(a["start"] for a in own if a["start"] >= begun) - begun
                print(f"{move['release']}: clients after {first:.1f} s, all {whole:.1f} s")
                assert first <= 10
                assert scene.state()["moves"][0]["digest"] == move["digest"]
    finally:
        registry.unlink()
        away.rename(registry)
    scene.project.ml("rollback", champion[:12])
    answers = traffic.answers()
    assert failed(answers) == []
    assert answers[-1]["digest"] == champion


def test_a_killed_supervisor_leaves_the_champion_and_a_rerun_converges(
    scene: Scene, traffic: Traffic
) -> None:
    good = scene.challenger("none", f"killed supervisor {time.time()}")
    deploy = deploying(scene)
    wait_for_canary(scene, good)
    for process in supervisors(scene.project.path):
        os.kill(process, signal.SIGKILL)
    assert deploy.wait(timeout=30) == 2
    time.sleep(2)
    status = json.loads(scene.project.ml("status", "--json").stdout)
    assert (status["state"], status["rollout"][:11]) == ("serving", "interrupted")
    again = deploying(scene)
    said = again.communicate(timeout=120)[0]
    assert again.returncode == 0, said
    time.sleep(1)
    assert failed(traffic.answers()) == []
    assert traffic.answers()[-1]["digest"] == good
