"""Gates on a small synthetic world: sound rows and scores pass, each defect turns its check red."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_delivery import protocols
from model_delivery.bundle.candidate import Candidate
from model_delivery.cli import stages
from model_delivery.cli.main import app
from model_delivery.contract.settings import (
    Ceiling,
    DataContract,
    DataLimits,
    DeepchecksLimits,
    Floor,
    Gates,
    Limit,
    ModelLimits,
)
from model_delivery.gates import deepchecks, judge
from model_delivery.gates.data import check_data, contract_checks, prove, scale_ratio
from model_delivery.gates.deepchecks import ask, judge_findings, request_of
from model_delivery.gates.model import check_model, read_scored, score_checks
from model_delivery.project import Project
from model_delivery.protocols import Floats, UserError
from model_delivery.report.verdict import Check, Outcome, Trigger, Verdict, exit_code
from model_delivery.training import scores as metrics
from model_delivery.training import snapshot as snapshots
from model_delivery.training.check import check_content, check_structure
from model_delivery.training.snapshot import Snapshot
from sklearn.metrics import log_loss, roc_auc_score
from typer.testing import CliRunner

PASS, WARN, RETRAIN, INCONCLUSIVE, STOP, CRASH = Outcome
EXIT_CODES = {PASS: 0, WARN: 0, RETRAIN: 10, INCONCLUSIVE: 30, STOP: 20, CRASH: 1}
AT_MOST_2, AT_LEAST_1 = Ceiling(max=2, outcome="retrain"), Floor(min=1, outcome="stop")
CONTRACT = DataContract.model_validate({
    "task": "binary", "target": "late", "time": "at", "key": ["at"], "segments": ["kind"],
    "as_of": "2013-08-01", "exclude": {"lost": {"column": "late", "most": 0.1}},
    "columns": {
        "at": {"type": "timestamp"},
        "kind": {"type": "category", "values": ["a", "b"]},
        "size": {"type": "number", "min": 0, "max": 10_000},
        "late": {"type": "boolean"},
    },
})  # fmt: skip
BOUNDS: dict[str, Any] = {
    "roc_auc": {"min": 0.7}, "log_loss_gain": {"min": 0.04}, "calibration_error": {"max": 0.06},
    "overfit_gap": {"max": 0.17}, "segment_roc_auc": {"min": 0.6},
    "champion_difference": {"min": -0.03}, "segment_champion_difference": {"min": -0.1},
}  # fmt: skip
STOPPING = {name: bound | {"outcome": "stop"} for name, bound in BOUNDS.items()}
GATES = Gates.model_construct(
    data=DataLimits(rows=Floor(min=1000, outcome="stop"), scale=AT_MOST_2),
    model=ModelLimits.model_validate(STOPPING | {"segment_rows": 300}),
    deepchecks=DeepchecksLimits(data={}, model={}),
)


@pytest.mark.parametrize(
    ("limit", "value", "outcome"),
    [
        (AT_MOST_2, 2.0, PASS), (AT_MOST_2, 2.1, RETRAIN), (AT_LEAST_1, 1, PASS),
        (AT_LEAST_1, 0.9, STOP), (AT_MOST_2, float("nan"), INCONCLUSIVE),
        (AT_MOST_2, -float("inf"), INCONCLUSIVE), (AT_LEAST_1, None, INCONCLUSIVE),
    ],
)  # fmt: skip
def test_a_value_has_one_outcome(limit: Limit, value: float | None, outcome: Outcome) -> None:
    check = judge("name", limit, value, "said")
    assert (check.outcome, check.low, check.limit) == (outcome, None, str(limit))


@pytest.mark.parametrize("event", get_args(Trigger))
@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_an_exit_code_in_every_event(outcome: Outcome, event: Trigger) -> None:
    reported = outcome is RETRAIN and event in ("local", "pull_request", "delivery")
    assert exit_code([PASS, outcome], event) == (0 if reported else EXIT_CODES[outcome])


def test_the_worst_counts_and_nothing_is_no_pass() -> None:
    assert [exit_code(list(Outcome)[:n], "retraining") for n in range(7)] == [
        30,
        0,
        0,
        10,
        30,
        20,
        1,
    ]
    assert Verdict(gate="g", subject="s", limits="l").outcome is INCONCLUSIVE


def table(start: str, days: int, rows: int) -> tuple[pa.Table, Floats]:
    """Return rows, labelled by two pieces of evidence, and scores that know only one of them."""
    random = np.random.default_rng(days)
    known, rest = random.normal(0, 0.8, rows), random.normal(0, 1.2, rows)
    score = 1 / (1 + np.exp(1 - known - rest))
    columns = {
        "at": np.datetime64(start, "us")
        + np.arange(rows) * np.timedelta64(days * 86_400 // rows, "s"),
        "kind": np.where(random.random(rows) < 0.1, "b", "a"),
        "size": random.integers(50, 900, rows).astype(float),
        "late": random.random(rows) < score,
    }
    return pa.table(columns | {"score": score}), 1 / (1 + np.exp(0.85 - 0.85 * known))


@dataclass(frozen=True)
class World:
    """Half a year of rows and a month, in a project of their own."""

    project: Project
    train: pa.Table
    test: pa.Table
    lost: int = 0

    @property
    def snapshot(self) -> Snapshot:
        snapshot = Snapshot(self.project.root)
        vars(snapshot)["manifest"] = {"rows": {"extracted": 1000}, "excluded": {"lost": self.lost}}
        return snapshot

    def red(self) -> set[str]:
        return red(contract_checks(self.project, self.snapshot, self.train, self.test))

    def put(self, name: str, change: Callable[[Any], Any]) -> World:
        place, values = self.test.column_names.index(name), self.test.column(name).to_numpy()
        return replace(self, test=self.test.set_column(place, name, pa.array(change(values))))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(metrics, "RESAMPLES", 50)
    project = Project(tmp_path)
    vars(project).update(contract=CONTRACT, gates=GATES)
    parts = {"train": table("2013-01-01", 181, 6000)[0], "test": table("2013-07-01", 31, 4000)[0]}
    (tmp_path / "candidate").mkdir()
    for name, part in parts.items():
        pq.write_table(part, tmp_path / "candidate" / f"{name}.parquet")
        pq.write_table(part.drop_columns("score"), tmp_path / f"{name}.parquet")
    return World(project, *(part.drop_columns("score") for part in parts.values()))


def red(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if check.outcome is not PASS}


def first(values: Any, new: Any, share: float = 0.001) -> list[Any]:
    return [new if i < share * len(values) else value for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("check", "defect"),
    [
        ("columns", lambda w: replace(w, test=w.test.drop_columns("size"))),
        ("types", lambda w: w.put("size", lambda x: x.astype(str))),
        ("empty", lambda w: replace(w, test=w.test.slice(0, 0))),
        ("missing", lambda w: w.put("size", lambda x: first(x, None))),
        ("missing", lambda w: w.put("late", lambda x: first(x, None))),
        ("domain", lambda w: w.put("kind", lambda x: first(x, "never seen"))),
        ("domain", lambda w: w.put("size", lambda x: first(x, np.inf))),
        ("key", lambda w: replace(w, test=pa.concat_tables([w.test, w.test.slice(7, 1)]))),
        ("exclusions", lambda w: replace(w, lost=200)),
        ("scale", lambda w: w.put("size", lambda x: x * 1.609344)),
        ("rows", lambda w: replace(w, train=w.train.take(np.arange(0, 6000, 8)))),
    ],
)
def test_a_defect_of_rows_turns_its_check_red(world: World, check: str, defect: Any) -> None:
    assert world.red() == set()
    assert defect(world).red() == {check}


@pytest.mark.parametrize(
    ("checks", "defect"),
    [
        ("", lambda s, weak, b: {}),
        ("roc_auc", lambda s, weak, b: {"scores": weak}),
        (
            "roc_auc log_loss_gain overfit_gap segment_roc_auc",
            lambda s, weak, b: {"scores": np.full_like(s.scores, s.labels.mean())},
        ),
        ("log_loss_gain", lambda s, weak, b: {"scores": first(s.scores, 1e-300, 0.04)}),
        ("log_loss_gain calibration_error", lambda s, weak, b: {"scores": first(s.scores, np.nan)}),
        ("calibration_error", lambda s, weak, b: {"scores": s.scores**1.5}),
        ("segment_roc_auc", lambda s, weak, b: {"scores": np.where(b, 0.3, s.scores)}),
        ("", lambda s, weak, b: {"champion": weak}),
        ("champion_difference", lambda s, weak, b: {"champion": s.scores + s.labels / 8}),
        ("segment_champion_difference", lambda s, weak, b: {"champion": s.scores + s.labels * b}),
    ],
)
def test_a_defect_of_scores_turns_its_check_red(world: World, checks: str, defect: Any) -> None:
    candidate = Candidate(world.project.root / "candidate")
    b = world.test.column("kind").to_numpy() == "b"
    sound = read_scored(world.project, candidate, None)
    spoilt = {k: np.array(v) for k, v in defect(sound, table("2013-07-01", 31, 4000)[1], b).items()}
    found, segments = score_checks(world.project, candidate, replace(sound, **spoilt))
    assert red(found) == set(checks.split())
    moved = [abs(row[-1] or 0.0) for row in segments.rows]
    assert moved == sorted(moved, reverse=True), "those that moved most come first"


def test_scores_known_by_heart_are_a_gap(world: World) -> None:
    candidate = Candidate(world.project.root / "candidate")
    labels = pq.read_table(candidate.path("train")).column("late").to_numpy()
    pq.write_table(pa.table({"late": labels, "score": labels * 1.0}), candidate.path("train"))
    sound = read_scored(world.project, candidate, None)
    assert red(score_checks(world.project, candidate, sound)[0]) == {"overfit_gap"}


def test_prove_names_the_defect_that_no_limit_notices(world: World) -> None:
    assert red(prove(world.project, world.snapshot).checks) == set()
    loose = DataLimits(rows=AT_LEAST_1, scale=Ceiling(max=99, outcome="stop"))
    vars(world.project)["gates"] = GATES.model_copy(update={"data": loose})
    unnoticed = red(prove(world.project, world.snapshot).checks)
    assert unnoticed == {"`size` is in another unit (times 1.8)"}


@pytest.mark.parametrize("key", [["at"], ["count"], ["kind", "_flag"]])
def test_drawn_rows_keep_any_contract_and_can_be_learned(
    contract: DataContract, key: list[str]
) -> None:
    keyed, day = contract.model_copy(update={"key": key}), date(2013, 8, 1)
    frame = snapshots.draw(keyed, day, 4_000)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    assert red(check_structure(table, keyed) + check_content(table, keyed)) == set()
    assert frame.equals(snapshots.draw(keyed, day, 4_000))
    assert frame["at"].max() < pd.Timestamp(day)
    if key == ["at"]:
        start = snapshots.test_start(frame["at"].to_numpy(), day)
        assert start == np.datetime64("2013-07-01")
        assert 0.1 < (frame["at"] >= start).mean() < 0.2
        assert 0.1 < frame["json"].isna().mean() < 0.5
        assert 0.2 < frame["late"].mean() < 0.6
        assert roc_auc_score(frame["late"], frame["amount"]) > 0.6


def test_on_drawn_rows_a_broken_limit_warns_and_a_broken_contract_stops(world: World) -> None:
    candidate, snapshot = Candidate(world.project.root / "candidate"), world.snapshot
    vars(snapshot)["manifest"]["sample"] = True
    vars(candidate)["lineage"] = {"data": {"sample": True}}
    (candidate.folder / "curve.json").write_text("{}")
    pq.write_table(world.train.slice(0, 900), snapshot.path("train"))
    flat = world.test.append_column("score", pa.array(np.full(len(world.test), 0.5)))
    pq.write_table(flat, candidate.path("test"))
    verdicts = check_data(world.project, snapshot), check_model(world.project, candidate, candidate)
    for verdict, names in zip(verdicts, ("rows", "roc_auc log_loss_gain"), strict=True):
        broken = [check for check in verdict.checks if check.outcome is not PASS]
        assert {check.name for check in broken} >= set(names.split())
        assert {check.outcome for check in broken} == {WARN}
        assert all(check.sentence.startswith("not judged on sample rows: ") for check in broken)
    pq.write_table(world.test.drop_columns("size"), snapshot.path("test"))
    assert check_data(world.project, snapshot).outcome is STOP
    del snapshot.manifest["sample"]
    pq.write_table(world.test, snapshot.path("test"))
    assert check_data(world.project, snapshot).outcome is STOP


def test_rows_are_drawn_where_a_pull_request_lacks_a_variable_and_nowhere_else(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def extract(day: date) -> None:
        raise UserError(f"real rows before {day}")

    sources = SimpleNamespace(NEEDS=("WAREHOUSE",), extract=extract)
    monkeypatch.setattr(protocols, "user_module", lambda _: sources)
    fork, push = stages.Run(world.project, "pull_request"), stages.Run(world.project, "delivery")
    for value in (None, ""):  # GitHub gives an empty one where a secret is not there
        with monkeypatch.context() as patch:
            patch.delenv("WAREHOUSE", raising=False)
            if value is not None:
                patch.setenv("WAREHOUSE", value)
            assert stages.extract(fork).manifest["sample"] is True
            assert "drawn from the data contract" in capsys.readouterr().err
            assert stages.extract(replace(push, sample=True)).manifest["sample"] is True
            with pytest.raises(UserError, match=r"the variable WAREHOUSE: set it, or .*--sample"):
                stages.extract(push)
    sources.NEEDS = "WAREHOUSE"  # a forgotten comma
    with pytest.raises(UserError, match=r"the variable WAREHOUSE: set it"):
        stages.extract(push)
    monkeypatch.setenv("WAREHOUSE", "address")
    for run in (fork, push):
        with pytest.raises(UserError, match="real rows before 2013-08-01"):
            stages.extract(run)


def test_ship_says_at_once_that_drawn_rows_are_never_deployed() -> None:
    asked = CliRunner().invoke(app, ["ship", "--sample"])
    assert isinstance(asked.exception, UserError)
    assert "never deployed: use `--until load`" in str(asked.exception)


@pytest.mark.parametrize(
    ("first", "as_of", "start"),
    [
        ("2013-01-01", "2013-08-01", "2013-07-01"),
        ("2013-01-01", "2013-03-31", "2013-03-13T04:48"),  # short: the last fifth
        ("2012-01-01", "2013-03-31", "2013-02-28"),
    ],
)
def test_the_test_window_is_a_calendar_month_or_the_last_fifth(
    first: str, as_of: str, start: str
) -> None:
    times = np.array([first, as_of], "datetime64[us]")
    found = snapshots.test_start(times, date.fromisoformat(as_of))
    assert (found, found.dtype) == (np.datetime64(start, "us"), np.dtype("datetime64[us]"))


def month(number: int, grid: float = 0.9) -> Floats:
    """Return temperatures in °F of a month, warmer and narrower towards summer."""
    warm = 30 + 8 * number + np.random.default_rng(number).normal(0, 9 - number / 2, 3000)
    return np.round(warm / grid) * grid


@pytest.mark.parametrize("grid", [0.9, 1e-9])
def test_a_season_keeps_the_scale_and_a_unit_does_not(grid: float) -> None:
    months, july = [month(n, grid) for n in range(1, 7)], month(7, grid)
    assert scale_ratio(months, july) < 2
    assert scale_ratio(months, july * 10) > 4
    celsius = scale_ratio(months, (july - 32) * 5 / 9)
    assert celsius > 4 or grid < 0.1
    assert np.isnan(scale_ratio(months, july * np.nan))
    assert np.isnan(scale_ratio(months[:1], july))


def test_metrics_equal_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels, weights = (random.random(500) < 0.3).astype(float), random.integers(0, 4, 500) * 1.0
    for scores in (random.random(500), random.integers(1, 5, 500) / 5):  # without ties, with many
        for own, known in ((metrics.roc_auc, roc_auc_score), (metrics.log_loss, log_loss)):
            expected = pytest.approx(known(labels, scores, sample_weight=weights))
            assert own(labels, scores, weights) == expected
        assert np.isnan(metrics.roc_auc(labels * 0, scores, weights))
    assert metrics.calibration_error(labels, np.full(500, labels.mean()), np.ones(500)) < 1e-12


def test_intervals_resample_days_and_differences_are_paired() -> None:
    random = np.random.default_rng(0)
    days, fare = np.repeat(np.arange(20), 50), np.repeat(random.normal(0, 2, 20), 50)
    labels = (random.random(1000) < 1 / (1 + np.exp(-fare))).astype(
        float
    )  # a day's rows fare alike
    rows = metrics.log_loss, labels, np.full(1000, 0.3)
    by_day, by_row = (metrics.estimate(*rows, cluster) for cluster in (days, np.arange(1000)))
    assert by_day.low < by_day.value == by_row.value < by_day.high
    assert by_day.high - by_day.low > 3 * (by_row.high - by_row.low)
    assert metrics.estimate(*rows, days, other=rows[2]) == metrics.Estimate(0, 0, 0)
    one_class = metrics.estimate(metrics.roc_auc, labels * 0, rows[2], days)
    assert np.isnan([one_class.value, one_class.low, one_class.high]).all()


RARE = Limit(max=0.1, outcome="stop")
DRIFT = Limit(max=2, outcome="retrain")
GAIN = Limit(min=0.1, outcome="stop")


@pytest.mark.parametrize(
    ("limit", "found", "outcome", "says"),
    [
        (RARE, {"dest": 0.01}, PASS, "dest"),
        (RARE, {"dest": 0.2, "origin": 0.3}, STOP, "origin"),
        (RARE, {"origin": 0.3, "dest": np.nan}, INCONCLUSIVE, "dest: no number"),
        (RARE, {"dest": np.inf, "origin": 0.3}, INCONCLUSIVE, "dest: no number"),
        (GAIN, {"gain": 0.3, "more": 0.4}, PASS, "gain"),
        (GAIN, {"gain": 0.3, "less": 0.05}, STOP, "less"),
        (DRIFT, {"temp": 1.0, "wind": 7.9}, RETRAIN, "wind"),
    ],
)
def test_every_answer_has_one_outcome(
    limit: Limit, found: dict[str, float], outcome: Outcome, says: str
) -> None:
    check = judge_findings("name", limit, found)
    assert check.outcome is outcome
    assert check.sentence.startswith(says)
    assert check.limit == str(limit)


def test_every_drift_is_shown_the_largest_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"FeatureDrift": {"`size`: 0.1": 1.2, "`kind`: 0.9": 3.0, "`more`: no": np.nan}}
    found |= {"LabelDrift": {"the label: 0.2": 2.0}, "NewCategoryTrainTest": {"`kind`": 9.0}}
    monkeypatch.setattr(deepchecks, "ask", lambda *_: [found])
    limits = dict.fromkeys(found, DRIFT)
    suites = DeepchecksLimits.model_construct(data=limits, model={})
    vars(world.project)["gates"] = GATES.model_copy(update={"deepchecks": suites})
    checks, table = deepchecks.deepchecks(world.project, "data", world.snapshot)
    assert [check.name for check in checks] == list(found)
    shown = [["more: no", None], ["kind: 0.9", 3.0], ["the label: 0.2", 2.0], ["size: 0.1", 1.2]]
    assert table.rows == shown
    assert check_data(world.project, world.snapshot).tables == [table]


def test_the_request_follows_the_contract(contract: DataContract, tmp_path: Path) -> None:
    times = np.datetime64("2013-01-01", "us") + np.arange(120) * np.timedelta64(1, "D")
    pq.write_table(pa.table({contract.time: times}), tmp_path / "train.parquet")
    project = Project(tmp_path)
    limits = DeepchecksLimits(data={"FeatureDrift": DRIFT}, model={})
    keyed = contract.model_copy(update={"key": ["at", "count"]})
    vars(project).update(contract=keyed, gates=Gates.model_construct(deepchecks=limits))
    request = request_of(project, "data", Snapshot(tmp_path))
    assert request["categorical"] == ["kind", "model code"]
    assert request["numeric"] == ["amount", "json", "_flag"]  # `count` is of the key: a name
    assert request["periods"][:2] == [["2013-01-01", "2013-02-01"], ["2013-02-01", "2013-03-01"]]
    assert request["checks"] == ["FeatureDrift"]


@pytest.mark.parametrize(
    ("sync", "run", "answer"),
    [
        ("true", "echo oh >&2; exit 2", "Deepchecks did not answer: .* failed:\noh"),
        ("true", "exec sleep 30", "Deepchecks did not answer: .* took more than 0.3 s"),
        ("true", """echo '[{"X": {"why": NaN}}]' > "$3" """, "why"),
        ("echo 'error: no route to the index' >&2; exit 1", "true", "no route to the index"),
        (None, "true", "uv is not installed"),
    ],
)
def test_no_answer_is_said_and_never_a_pass(
    sync: str | None, run: str, answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = f"if [ $1 = python ]; then echo {tmp_path}/python; exit; fi"
    for name, line in {"python": run, "uv": sync and f"{found}\n{sync}"}.items():
        if line:
            (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
            (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if sync else str(tmp_path))
    monkeypatch.setattr(deepchecks, "RUN_SECONDS", 0.3 if "sleep" in run else 20)
    request = {"suite": "data", "checks": ["X"], "tests": ["test.parquet"]}
    if sync == "true":
        check = judge_findings("X", DRIFT, ask(tmp_path, request)[0]["X"])
        assert check.outcome is INCONCLUSIVE
        assert re.match(answer, check.sentence)
    else:
        with pytest.raises(UserError, match=answer):
            ask(tmp_path, request)
