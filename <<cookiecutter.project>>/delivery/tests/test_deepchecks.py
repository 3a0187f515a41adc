"""Deepchecks: drift is judged by the months' own spread, and no silence is a pass."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from model_delivery.contract.settings import Limit
from model_delivery.errors import UserError
from model_delivery.gates import deepchecks
from model_delivery.gates.deepchecks import Reading, ask, drift_table, judge_readings, request_of
from model_delivery.project import find_project
from model_delivery.report.verdict import Outcome

PROJECT = find_project(Path(__file__))
PASS, WARN, RETRAIN, INCONCLUSIVE, STOP, _ = Outcome
MONTHS = [0.49, 0.59, 0.46, 0.31, 0.56, 0.80]
RARE = Limit(max=0.1, outcome="stop")
DRIFT = Limit(max=2, outcome="retrain")
GAIN = Limit(min=0.1, outcome="stop")
NEW, NULLS = "NewCategoryTrainTest", "PercentOfNulls"


def reading(check: str, value: float | None, column: str | None = "temp", **more: Any) -> Reading:
    form: dict[str, Any] = {"ran": True, "reference": None, "sentence": "said"}
    return Reading(check=check, column=column, value=value, **form | more)


@pytest.mark.parametrize(
    ("name", "limit", "found", "outcome", "says"),
    [
        (NEW, RARE, [("dest", 0.01, None)], PASS, "said, column `dest`"),
        (NEW, RARE, [("dest", 0.2, None), ("origin", 0.3, None)], STOP, "`dest`"),
        (NEW, RARE, [], INCONCLUSIVE, "did not run: no finding came back"),
        (NEW, RARE, [("dest", None, None)], INCONCLUSIVE, "no number"),
        ("SimpleModelComparison", GAIN, [(None, 0.3, None)], PASS, "said"),
        ("SimpleModelComparison", GAIN, [(None, 0.05, None)], STOP, "said"),
        # July is 0.79 from spring, and so is June: a season. The same in wind is not.
        ("FeatureDrift", DRIFT, [("temp", 0.79, MONTHS)], PASS, "0.800 from the others"),
        ("FeatureDrift", DRIFT, [("wind", 0.79, [0.1] * 6)], RETRAIN, "`wind` drifts 0.790"),
        # Against a spread of nothing, a drift that is nothing too.
        ("FeatureDrift", DRIFT, [("carrier", 0.03, [0.0] * 6)], PASS, "`carrier`"),
        ("FeatureDrift", DRIFT, [("temp", 0.79, [0.8] * 3)], WARN, "fewer than 4"),
        ("FeatureDrift", DRIFT, [("temp", 0.9, []), ("wind", 0.9, [0.1] * 6)], RETRAIN, "wind"),
        (NULLS, RARE, [("pressure", 0.2, [0.06, 0.15, 0.1, 0.1])], PASS, "15.0% at most"),
        (NULLS, RARE, [("temp", 0.2, [0.0] * 4)], STOP, "20.0% without a value"),
    ],
)
def test_every_answer_has_one_outcome(
    name: str, limit: Limit, found: list[Any], outcome: Outcome, says: str
) -> None:
    readings = [reading(name, value, column, reference=past) for column, value, past in found]
    check = judge_readings(name, limit, [*readings, reading("Another", 1.0)])
    assert check.outcome is outcome
    assert says in check.sentence
    assert check.limit == str(limit)


def test_a_check_that_raised_is_never_a_pass() -> None:
    raised = reading("LabelDrift", None, None, ran=False, sentence="ValueError: one class")
    check = judge_readings("LabelDrift", DRIFT, [raised])
    assert (check.outcome, check.sentence) == (INCONCLUSIVE, "did not run: ValueError: one class")


def test_the_table_shows_the_largest_ratio_first() -> None:
    (table,) = drift_table(
        [
            reading("FeatureDrift", 0.79, "temp", reference=MONTHS),
            reading("FeatureDrift", 0.4, "distance", reference=[0.03] * 6),
            reading("LabelDrift", 0.09, None, reference=[0.06, None, 0.08, 0.01]),
            reading("PercentOfNulls", 0.2, "temp", reference=MONTHS),
        ]
    )
    assert [row[0] for row in table.rows] == ["distance", "LabelDrift", "temp"]
    assert table.rows[0][1:] == ["0.400", "0.030", "8.000"]


def flights(rows: int, start: str, days: int, seed: int) -> pd.DataFrame:
    """Return rows of the contract's columns, drawn alike on every day."""
    random = np.random.default_rng(seed)
    times = pd.Timestamp(start) + pd.to_timedelta(np.sort(random.uniform(0, days, rows)), unit="D")
    columns: dict[str, Any] = {}
    for name, spec in PROJECT.contract.columns.items():
        if spec.type == "category":
            columns[name] = random.choice((spec.values or ["AAA", "BBB", "CCC"])[:3], rows)
        else:
            columns[name] = random.normal(100, 10, rows).round(1)
    evidence = sum(columns[name] - 100 for name in ("temp", "dewp", "humid", "visib")) / 10
    score = 1 / (1 + np.exp(1.2 - evidence))
    label = random.random(rows) < score
    times = times.astype("datetime64[us]")
    changed = {PROJECT.contract.target: label, PROJECT.contract.time: times, "score": score}
    return pd.DataFrame(columns | changed)


def asked(folder: Path, suite: str, test: pd.DataFrame) -> dict[str, Any]:
    flights(4000, "2013-01-01", 150, seed=0).to_parquet(folder / "train.parquet")
    test.to_parquet(folder / "test.parquet")
    return request_of(PROJECT, suite, folder / "train.parquet", folder / "test.parquet")


def test_the_request_follows_the_contract(tmp_path: Path) -> None:
    request = asked(tmp_path, "data", flights(10, "2013-06-01", 30, seed=1))
    assert request["categorical"] == ["carrier", "origin", "dest"]
    assert request["numeric"][:2] == ["distance", "temp"]  # the number of a flight is its name
    assert [period[0] for period in request["periods"]][:2] == ["2013-01", "2013-02"]
    assert request["checks"] == list(PROJECT.gates.deepchecks.data)


def fake_uv(folder: Path, monkeypatch: pytest.MonkeyPatch, sync: str, run: str) -> None:
    program = folder / "uv"
    program.write_text(f'#!/bin/sh\nif [ "$1" = sync ]; then {sync}; else {run}; fi\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("sync", "run", "answer"),
    [
        ("true", "exit 1", "Deepchecks ended with exit code 1 (nothing said)"),
        ("true", "echo oh >&2; exit 2", "Deepchecks ended with exit code 2 (oh)"),
        ("true", "exit 0", "Deepchecks ended with exit code 0 (nothing said)"),
        ("true", "sleep 30; true", "Deepchecks had no answer after 0.3 seconds"),
        ("true", "echo 'deepchecks_suites: no check `X`' >&2; exit 2", UserError),
        ("echo 'error: no route to the index' >&2; exit 1", "true", UserError),
    ],
)
def test_no_answer_is_said_and_never_a_pass(
    sync: str, run: str, answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_uv(tmp_path, monkeypatch, sync, run)
    monkeypatch.setattr(deepchecks, "RUN_SECONDS", 0.3 if "sleep" in run else 20)
    if answer is UserError:
        with pytest.raises(UserError, match=r"no check|no route to the index"):
            ask(tmp_path, {"suite": "data"})
    else:
        assert ask(tmp_path, {"suite": "data"}) == answer


def test_without_uv_the_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="`uv` is not on PATH"):
        ask(tmp_path, {"suite": "data"})


@pytest.mark.skipif(
    not os.environ.get("TEST_DEEPCHECKS"),
    reason="half a minute and an environment of 800 MB; TEST_DEEPCHECKS=1 runs it",
)
@pytest.mark.parametrize("suite", ["data", "model"])
def test_the_program_measures_honest_rows_and_skewed_ones(suite: str, tmp_path: Path) -> None:
    honest = flights(2000, "2013-06-01", 30, seed=1)
    seeded = honest.assign(humid=honest.humid * 1.8, dest="QQQ", score=0.3)
    outcomes = []
    for test in (honest, seeded):
        answer = ask(tmp_path, asked(tmp_path, suite, test))
        assert not isinstance(answer, str), answer
        readings = [Reading(**finding) for finding in answer["findings"]]
        limits = getattr(PROJECT.gates.deepchecks, suite)
        checks = [judge_readings(name, limit, readings) for name, limit in limits.items()]
        outcomes.append({check.name: check.outcome for check in checks})
    assert set(outcomes[0].values()) == {PASS}
    expected = {
        "data": {"NewCategoryTrainTest": STOP, "IsSingleValue": STOP, "FeatureDrift": RETRAIN},
        "model": {"SimpleModelComparison": STOP, "RocReport": STOP, "PredictionDrift": RETRAIN},
    }
    assert expected[suite].items() <= outcomes[1].items()
