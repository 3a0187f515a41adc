"""The drill's own judgement can fail; the whole drill, which takes minutes, is exhaustive."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.baking import ROOT, environment
from tests.drill import __main__ as main
from tests.drill.judge import Decision, Step, judge, table
from tests.drill.life import LIFE
from tests.drill.page import page
from tests.drill.scene import budget_of

RATE = 10
OLD, NEW, BAD = "a" * 64, "b" * 64, "c" * 64
Answers = list[dict[str, Any]]


def step(name: str, word: str, code: int, start: float, serving: str, **more: Any) -> Step:
    """Return a step of ten seconds that went as it must."""
    made = Decision(word, code)
    return Step(name, f"ml {name}", made, made, (), "", start, start + 10, serving, **more)


STEPS = [
    step("first", "promoted", 0, 0, OLD, clients=False),
    step("better", "promoted", 0, 20, NEW, canary=True),
    replace(
        step("bad", "rolled_back", 20, 30, NEW, budget=4),
        words=("error_share",),
        said="error_share: 1",
    ),
    step("hand", "rolled_back", 0, 40, OLD),
]
PLAN = [each.name for each in STEPS]


def served(second: float) -> str:
    """Return who answers at a time: each step ends with the release that it leaves.

    In a canary, of two and a half seconds, every second answer is the challenger's.
    """
    if 22.5 <= second < 25 and round(second * RATE) % 2:
        return NEW
    return OLD if second < 25 or second >= 45 else NEW


def recorded() -> Answers:
    """Return what clients got in a drill that went well: the bad release cost four requests."""
    answers: Answers = [
        {"start": n / RATE, "status": 200, "digest": served(n / RATE), "seconds": 0.002}
        for n in range(200, 500)
    ]
    for place in (112, 114, 116, 118):
        answers[place] |= {"status": 500, "digest": BAD}
    return answers


def wrong(steps: list[Step], answers: Answers) -> dict[str, list[str]]:
    """Return what is wrong, by the step it is wrong in."""
    return {
        row.step.name: row.problems for row in judge(PLAN, steps, answers, RATE) if row.problems
    }


def seeded(name: str, **changes: Any) -> list[Step]:
    """Return the steps with one of them changed."""
    return [replace(each, **changes) if each.name == name else each for each in STEPS]


def test_a_drill_that_went_well_is_told_with_its_figures() -> None:
    rows = judge(PLAN, STEPS, recorded(), RATE)
    assert [row.problems for row in rows] == [[], [], [], []]
    assert [(row.requests, row.failed) for row in rows] == [(0, 0), (100, 0), (100, 4), (100, 0)]
    lines = table(rows).splitlines()
    assert lines[0].split() == ["event", "decision", "requests", "failed", "seconds"]
    assert re.split(r" {2,}", lines[4]) == [
        "bad",
        "rolled back (20)",
        "100",
        "4 of at most 4",
        "10",
    ]
    assert "WRONG" not in table(rows)


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        (
            "bad",
            {"found": Decision("promoted", 20)},
            "decided promoted (20), expected rolled back (20)",
        ),
        (
            "better",
            {"found": Decision("promoted", 30)},
            "decided promoted (30), expected promoted (0)",
        ),
        ("bad", {"said": "p95_ms: 900"}, "gave another reason"),
        ("bad", {"budget": 3.0}, "4 requests failed, at most 3 may"),
        ("better", {"serving": OLD}, f"{NEW[:12]} answered, not {OLD[:12]}"),
    ],
)
def test_a_wrong_step_is_named(name: str, changes: dict[str, Any], problem: str) -> None:
    found = wrong(seeded(name, **changes), recorded())
    assert list(found) == [name]
    assert found[name][0].startswith(problem)


def at_once(answers: Answers) -> Answers:
    """All clients are led to the new release in one moment, as by `canary: []`."""
    for answer in (each for each in answers if each["start"] < 25):
        answer["digest"] = OLD
    return answers


def fails(answers: Answers) -> Answers:
    """One request fails where none may; what a client calls a failure need not be a status."""
    answers[20] |= {"status": "ConnectionResetError()"}
    del answers[20]["digest"]
    return answers


@pytest.mark.parametrize(
    ("change", "name", "problem"),
    [
        (fails, "better", "1 requests failed, at most 0 may"),
        (at_once, "better", "no canary: clients got both releases for 0.0 s"),
        (lambda found: found[:210], "hand", "10 requests of 100 were sent: who asks?"),
        (lambda found: found[:100] + found[290:], "bad", "0 requests of 100 were sent: who asks?"),
        (
            lambda found: [*found[:298], found[298] | {"digest": NEW}],
            "hand",
            f"{NEW[:12]} answered",
        ),
    ],
)
def test_what_clients_got_is_judged(
    change: Callable[[Answers], Answers], name: str, problem: str
) -> None:
    found = wrong(STEPS, change(recorded()))
    assert problem in found[name][0]
    assert f"WRONG {name}: " in table(judge(PLAN, STEPS, change(recorded()), RATE))


def test_a_failure_between_two_steps_belongs_to_the_one_before() -> None:
    steps = seeded("better", end=28.0)
    answers = recorded()
    answers[95] |= {"status": 502}
    assert wrong(steps, answers) == {"better": ["1 requests failed, at most 0 may"]}


@pytest.mark.parametrize("ran", [1, 2])
def test_a_drill_that_ended_early_did_not_go_well(ran: int) -> None:
    answers = [answer for answer in recorded() if answer["start"] < 30]
    assert PLAN[-1] in str(judge(PLAN, STEPS[:ran], answers, RATE)[-1].problems)


def test_the_budget_is_the_first_step_s_which_ml_tells_beforehand() -> None:
    said = "20% … = 80 requests at that rate\n50% … = 200 requests at that rate"
    assert budget_of(said) == 80
    assert budget_of("no canary: all clients at once") == 0


def test_each_event_has_a_name_of_its_own() -> None:
    assert len({event.name for event in LIFE}) == len(LIFE)


def test_the_page_is_whole_and_shows_what_went_wrong() -> None:
    answers = fails(recorded())
    rows = judge(PLAN, STEPS, answers, RATE)
    text = page(rows, answers, [(31.0, "kill -9")], 60)
    assert "1 requests failed, at most 0 may" in text
    assert "Not as it must be" in text
    assert "kill -9" in text
    assert text.count("<path fill=") == len({OLD, NEW, BAD})
    assert not re.search(r"(src|href)=|url\(|@import", text), "it needs nothing beside it"
    well = page(judge(PLAN, STEPS, recorded(), RATE), recorded(), [], 60)
    assert "Each event was decided as it must be" in well


@pytest.mark.parametrize(("minutes", "code"), [([], 1), (["--minutes", "inf"], 0)])
def test_a_drill_that_took_too_long_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    minutes: list[str],
    code: int,
) -> None:
    drill = SimpleNamespace(ml=lambda *_: None, traffic=None, steps=STEPS, marks=[])
    monkeypatch.setattr(main, "Drill", SimpleNamespace(make=lambda _: drill))
    monkeypatch.setattr(main, "live", lambda _: None)
    rows = judge(PLAN, STEPS, recorded(), RATE)
    monkeypatch.setattr(main, "judge", lambda *_: rows)
    monkeypatch.setattr("time.monotonic", iter([0.0, 361.0]).__next__)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert main.main(["--folder", str(tmp_path), *minutes]) == code
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("WRONG: 361 s in all, more than 6 minutes" if code else "361 s in all;")


@pytest.mark.exhaustive
def test_the_whole_drill() -> None:
    """Beside other tests it takes longer than alone, as `make drill` judges it."""
    command = [sys.executable, "-m", "tests.drill", "--minutes", "inf"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    print(done.stdout[-2500:])
