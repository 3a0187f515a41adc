"""Gates: sound rows, scores and services pass, each defect turns its check red, doubt none green.

The load gate's services are small stand-ins, each with its own fault.
"""

from __future__ import annotations

import json
import math
import re
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from model_delivery import gates, protocols
from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.launch import Running, free_port, identity, program_python, run
from model_delivery.cli import stages
from model_delivery.cli.main import app
from model_delivery.contract.limits import (
    Ceiling,
    DataLimits,
    DeepchecksLimits,
    Floor,
    Gates,
    Limit,
    LoadLimits,
    ModelLimits,
)
from model_delivery.contract.settings import Column, DataContract
from model_delivery.files import write_json
from model_delivery.gates import (
    ask,
    deepchecks,
    judge,
    judge_findings,
    limits_hash,
    load,
    request_of,
)
from model_delivery.gates.data import (
    check_data,
    contract_checks,
    judge_scale,
    prove,
    scale_ratio,
)
from model_delivery.gates.load import Round, judge_rounds, judge_targets, run_rounds
from model_delivery.gates.model import check_model, read_scored, score_checks
from model_delivery.project import Project, find_project
from model_delivery.protocols import Floats, UserError
from model_delivery.report.verdict import Check, Outcome, Table, Trigger, Verdict, exit_code
from model_delivery.training import scores as metrics
from model_delivery.training import snapshot as snapshots
from model_delivery.training.check import check_content, check_structure
from model_delivery.training.snapshot import MOST_PARTS, Snapshot, periods
from pydantic import ValidationError
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


@pytest.mark.parametrize("bound", [{"roc_auc": {"min": -0.7}}, {"roc_auc": {"min": 70}},
                                   {"overfit_gap": {"max": -0.1}}])  # fmt: skip
def test_a_limit_of_the_wrong_sign_or_scale_is_refused(bound: dict[str, Any]) -> None:
    ((name, limit),) = bound.items()
    changed = {name: limit | {"outcome": "stop"}}
    with pytest.raises(ValidationError, match=name):
        ModelLimits.model_validate(STOPPING | {"segment_rows": 300} | changed)


@pytest.mark.parametrize(
    ("limit", "value", "outcome"),
    [
        (AT_MOST_2, 2.0, PASS), (AT_MOST_2, 2.1, RETRAIN), (AT_LEAST_1, 1, PASS),
        (AT_LEAST_1, 0.9, STOP), (AT_MOST_2, float("nan"), INCONCLUSIVE),
        (AT_MOST_2, -float("inf"), INCONCLUSIVE), (AT_LEAST_1, None, INCONCLUSIVE),
        (Floor(min=1, outcome="warn"), None, WARN),
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


def test_segments_without_a_change_stand_after_those_with_one(world: World) -> None:
    candidate = Candidate(world.project.root / "candidate")
    sound = read_scored(world.project, candidate, None)
    a = world.test.column("kind").to_numpy() == "a"
    silent = replace(sound, labels=np.where(a, 0.0, sound.labels), champion=1 - sound.scores)
    _, segments = score_checks(world.project, candidate, silent)
    assert [row[0] for row in segments.rows] == ["kind b", "kind a"]


def test_a_segment_of_one_class_is_named_and_hides_no_weak_one(world: World) -> None:
    candidate = Candidate(world.project.root / "candidate")
    sound = read_scored(world.project, candidate, None)
    b = world.test.column("kind").to_numpy() == "b"
    silent = replace(sound, labels=np.where(b, 0.0, sound.labels))
    (check,) = (c for c in score_checks(world.project, candidate, silent)[0] if "segment" in c.name)
    assert (check.outcome, check.value is None) == (Outcome.WARN, False)
    assert "not judged, hardly any row of a class: kind b" in check.sentence
    weak = replace(silent, scores=np.where(b, 0.2, 0.3))
    (check,) = (c for c in score_checks(world.project, candidate, weak)[0] if "segment" in c.name)
    assert check.outcome is Outcome.STOP


def test_a_number_that_may_be_missing_and_nearly_is_has_no_scale(world: World) -> None:
    rare = pa.array(np.where(np.arange(world.train.num_rows) % 500 == 0, 100.0, np.nan))
    place = world.train.column_names.index("size")
    train = world.train.set_column(place, "size", rare)
    test = world.test.set_column(place, "size", rare.slice(0, world.test.num_rows))
    contract = world.project.contract
    limit = Ceiling(max=4, outcome="stop")
    spec = contract.columns["size"]
    for missing, outcome in ((0.0, Outcome.INCONCLUSIVE), (0.999, Outcome.PASS)):
        columns = contract.columns | {"size": spec.model_copy(update={"missing": missing})}
        own = contract.model_copy(update={"columns": columns})
        check = judge_scale(own, limit, train, test)
        assert check.outcome is outcome
        told = "no number that can be compared; too few values of `size` to compare"
        assert (check.sentence == told) is (missing > 0)


def test_whole_numbers_have_a_scale_unless_they_name_rows(world: World) -> None:
    count, contract = Column(type="integer"), world.project.contract
    contract = contract.model_copy(update={"columns": contract.columns | {"count": count}})
    random = np.random.default_rng(0)
    train, test = (
        part.append_column("count", pa.array(random.poisson(6, len(part))))
        for part in (world.train, world.test)
    )
    assert judge_scale(contract, AT_MOST_2, train, test).outcome is PASS
    place = test.column_names.index("count")
    other = test.set_column(place, "count", pc.multiply(test.column("count"), 7))
    check = judge_scale(contract, AT_MOST_2, train, other)
    assert (check.outcome, "scale of `count`" in check.sentence) == (RETRAIN, True), check
    key = contract.model_copy(update={"key": ["at", "count"]})
    assert judge_scale(key, AT_MOST_2, train, other).outcome is PASS
    months = random.choice([12, 24, 36, 48, 60], size=len(train))
    for before, after in (
        (random.poisson(1.2, len(train)), random.poisson(0.45, len(test))),
        (random.poisson(9, len(train)), random.poisson(22, len(test))),  # a holiday
        (random.choice(90_000, len(train)), random.choice(90_000, len(test)) + 30_000),  # codes
        (months, np.where(random.random(len(test)) < 0.9, 60, 12)),
    ):
        old = train.set_column(train.column_names.index("count"), "count", pa.array(before))
        new = test.set_column(place, "count", pa.array(after))
        assert judge_scale(contract, AT_MOST_2, old, new).outcome is PASS


def test_of_few_rows_the_scale_is_a_warning_that_says_so(world: World) -> None:
    limit, contract = Ceiling(max=2, outcome="stop"), world.project.contract
    for train, test, days in (
        (world.train.slice(0, 250), world.test, 0),
        (world.train, world.test.slice(0, 99), 0),
        (world.train.take(np.arange(0, 6000, 4)), world.test, 7),
    ):
        check = judge_scale(contract, limit, train, test, days)
        assert (check.outcome, "too few rows" in check.sentence) == (WARN, True), check


@pytest.mark.parametrize("new", [None, "never seen"])
def test_a_long_history_hides_no_broken_month(world: World, new: str | None) -> None:
    spec = {"missing": 0.4, "outside": 0.4}
    columns = CONTRACT.columns | {"kind": CONTRACT.columns["kind"].model_copy(update=spec)}
    vars(world.project)["contract"] = CONTRACT.model_copy(update={"columns": columns})
    broken = world.put("kind", lambda x: first(x, new, 0.45))
    assert broken.red() == set()  # 0.18 of all rows, and of the month less than with the slack
    broken = world.put("kind", lambda x: first(x, new, 0.55))
    assert broken.red() == {"newest_missing" if new is None else "newest_domain"}


def test_rows_that_stop_a_training_are_there_whatever_the_times() -> None:
    months = np.repeat(np.array(["2013-01-01", "2013-02-01", "2013-03-01"], "M8[us]"), 40)
    assert snapshots.stopping_rows(months).sum() == 40
    days = np.arange("2013-01-01", "2013-07-01", dtype="M8[D]").astype("M8[us]")
    assert 25 <= snapshots.stopping_rows(days).sum() <= 28


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_target_that_is_always_the_same_is_named(world: World, part: str) -> None:
    rows = {"train": world.train, "test": world.test}
    place = rows[part].column_names.index("late")
    rows[part] = rows[part].set_column(place, "late", pa.array([True] * len(rows[part])))
    snapshot: Any = SimpleNamespace(rows=rows.get)
    with pytest.raises(UserError, match=rf"`late` is the same in all .* of the {part}"):
        metrics.fit(world.project, snapshot)


def test_names_that_the_delivery_adds_are_refused(world: World) -> None:
    known = world.project.contract.model_dump(mode="json")
    kind = known["columns"]["kind"]
    for name, key in (("score", known["key"]), ("digest", [*known["key"], "digest"])):
        changed = known | {"key": key, "columns": known["columns"] | {name: kind}}
        with pytest.raises(ValueError, match=f"`{name}` is what the delivery adds"):
            DataContract.model_validate(changed)


def test_scores_known_by_heart_are_a_gap(world: World) -> None:
    candidate = Candidate(world.project.root / "candidate")
    labels = pq.read_table(candidate.path("train")).column("late").to_numpy()
    pq.write_table(pa.table({"late": labels, "score": labels * 1.0}), candidate.path("train"))
    sound = read_scored(world.project, candidate, None)
    assert red(score_checks(world.project, candidate, sound)[0]) == {"overfit_gap"}


def test_rows_alone_can_be_broken_to_prove_a_gate() -> None:
    refused = CliRunner().invoke(app, ["check", "--prove", "model"])
    assert isinstance(refused.exception, UserError)
    assert "which gate model does not judge" in str(refused.exception)


@pytest.mark.parametrize(("outcome", "asked"), [("warn", True), ("retrain", True), ("stop", False)])
def test_deepchecks_run_unless_our_own_checks_stop(
    world: World, monkeypatch: pytest.MonkeyPatch, outcome: str, asked: bool
) -> None:
    found = Check(name="NewCategoryTrainTest", outcome=STOP, sentence="a leak")
    table = Table(title="Drift", columns=[], rows=[])
    monkeypatch.setattr(gates.data, "deepchecks", lambda *_: ([found], table))
    most = Ceiling.model_validate({"max": 1e-9, "outcome": outcome})
    strict = GATES.data.model_copy(update={"scale": most})
    vars(world.project)["gates"] = GATES.model_copy(update={"data": strict})
    verdict = check_data(world.project, world.snapshot)
    assert outcomes(verdict.checks)["scale"] is Outcome(outcome)
    assert (found in verdict.checks) == asked


def test_a_champion_whose_column_is_gone_is_a_warning_that_names_it(world: World) -> None:
    candidate = Candidate(world.project.root / "candidate")
    known = {"kind": "category", "wind": "number", "size": "integer"}  # a number by now
    vars(world.project)["contract"] = CONTRACT.model_copy(
        update={"columns": CONTRACT.columns | {"flight": Column(type="integer")}}
    )
    known["flight"] = "number"  # takes integers, too
    write_json(candidate.ship / "request.json", {n: {"type": kind} for n, kind in known.items()})
    scored = read_scored(world.project, candidate, candidate)
    check = next(
        c for c in score_checks(world.project, candidate, scored)[0] if c.name == "champion"
    )
    assert (check.outcome, "it needs wind, size, gone" in check.sentence) == (WARN, True)


def test_a_champion_of_the_same_requests_is_compared_whatever_its_example(tmp_path: Path) -> None:
    kind = {"type": "number", "min": 0, "unit": "s", "example": 1}
    releases = [Candidate(tmp_path / str(place)) for place in range(3)]
    for release, more in zip(releases, ({}, {"unit": "ms", "example": 7}, {"min": 1}), strict=True):
        write_json(release.ship / "request.json", {"size": kind | more})
    first, same, other = map(load._form, releases)
    assert (first == same, first == other) == (True, False)


def test_prove_names_the_defect_that_no_limit_notices(world: World) -> None:
    assert red(prove(world.project, world.snapshot).checks) == set()
    loose = DataLimits(rows=AT_LEAST_1, scale=Ceiling(max=99, outcome="stop"))
    vars(world.project)["gates"] = GATES.model_copy(update={"data": loose})
    unnoticed = red(prove(world.project, world.snapshot).checks)
    assert unnoticed == {"`size` is in another unit (times 1.8)"}


def test_an_integer_without_a_largest_is_a_key_of_drawn_rows(contract: DataContract) -> None:
    columns = contract.columns | {"count": Column(type="integer", min=1)}
    keyed = contract.model_copy(update={"key": ["count"], "columns": columns})
    frame = snapshots.draw(keyed, date(2013, 8, 1), 4_000)
    assert len(frame) == 4_000
    assert frame["count"].min() == 1
    table = pa.Table.from_pandas(frame, preserve_index=False)
    assert red(check_structure(table, keyed) + check_content(table, keyed)) == set()


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
        late, amount = (frame[name].to_numpy().astype(float) for name in ("late", "amount"))
        assert metrics.roc_auc(late, amount, np.ones(len(frame))) > 0.6


def test_columns_of_a_source_are_as_a_service_gives_them_to_features(
    world: World, contract: DataContract
) -> None:
    vars(world.project)["contract"] = contract
    frame, day = snapshots.draw(contract, date(2013, 8, 1), 100), date(2013, 8, 1)
    narrow = {"kind": "category", "amount": "float32", "count": "int32", "at": "datetime64[ns]"}
    made = snapshots._checked(world.project, day, frame.assign(count=7).astype(narrow))
    assert made.column("kind").to_pylist() == frame["kind"].tolist()
    kinds = [made.schema.field(name).type for name in narrow]
    assert kinds == [pa.string(), pa.float64(), pa.int64(), pa.timestamp("us")]
    parts = frame.assign(at=frame["at"] + pd.to_timedelta((frame.index == 7) * 0.25, "s"))
    with pytest.raises(snapshots.BrokenStructureError, match=r"`at` is .*250000 in row 8: a req"):
        snapshots._checked(world.project, day, parts)
    beyond = frame.assign(count=np.uint64(2**63))
    with pytest.raises(snapshots.BrokenStructureError, match=r"`count` is 9\d+8 in row 1: .* 64 b"):
        snapshots._checked(world.project, day, beyond)


def test_a_column_that_mixes_types_is_named_with_its_row(
    world: World, contract: DataContract
) -> None:
    vars(world.project)["contract"] = contract
    day = date(2013, 8, 1)
    frame = snapshots.draw(contract, day, 100).astype({"amount": object})
    frame.index += 1000  # as of files that were put together
    frame.loc[1040, "amount"], frame.loc[1041, "amount"] = 7, "2.261,57"  # the first can be read
    frame["json"] = pd.Series([None] * 100, frame.index, dtype=object)
    said = r"data\.yaml: column `amount` mixes types: '2\.261,57' in row 42 is of type str$"
    with pytest.raises(snapshots.BrokenStructureError, match=said):
        snapshots._checked(world.project, day, frame)


def test_a_feature_without_any_number_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def transform(columns: Any) -> Any:
        return np.where([True, False], 1.0, np.full((len(columns["at"]), 2), np.nan))

    built = SimpleNamespace(names=("a", "b"), transform=transform)
    module = SimpleNamespace(Features=SimpleNamespace(fit=lambda _: built))
    monkeypatch.setattr(metrics, "user_module", lambda _: module)
    rows = {"train": world.train, "test": world.test}
    snapshot: Any = SimpleNamespace(rows=rows.get)
    with pytest.raises(UserError, match="`b` is not a number in any row to train on; mend it"):
        metrics.fit(world.project, snapshot)


def test_rules_that_changed_after_the_extraction_are_no_crash(world: World) -> None:
    contract = CONTRACT.model_copy(update={"exclude": {}})
    vars(world.project)["contract"] = contract
    with pytest.raises(UserError, match="no rule `lost` any more; run `ml data`"):
        world.red()


def test_a_pattern_is_part_of_the_contract_to_its_end(world: World) -> None:
    hashes = set[str]()
    for end in "bc":
        column = Column(type="category", pattern="a" * 300 + end)
        columns = CONTRACT.columns | {"kind": column}
        changed = CONTRACT.model_copy(update={"columns": columns})
        vars(world.project).update(contract=changed, delivery=PROJECT.delivery)
        hashes.add(limits_hash(world.project, "data"))
    assert len(hashes) == 2


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


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the functions of the program, without Deepchecks."""
    for name in ("deepchecks", "deepchecks.tabular"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    return runpy.run_path(str(gates.PROGRAM))


@pytest.mark.parametrize(("rare", "ranked"), [(0.002, 200), (0.1, 800), (0.998, 200)])
def test_a_ranking_has_rows_of_a_rare_label(
    program: dict[str, Any], tmp_path: Path, rare: float, ranked: int
) -> None:
    path, rows = tmp_path / "test.parquet", np.arange(100_000)
    pq.write_table(pa.table({"late": rows % 1000 < 1000 * rare, "row": rows}), path)
    request = {"tests": [str(path)], "sampled": gates.SAMPLED, "label": "late", "categorical": []}
    drawn = program["read_rows"](request, "test", str(path))
    found = program["with_rare"](request, drawn)
    few = int((found["late"] == (rare < 0.5)).sum())
    assert few == ranked or (ranked == 800 and 700 < few < 900)
    assert not found["row"].duplicated().any()
    assert found["late"].isin([0, 1]).all()


def test_what_is_usual_is_measured_whole_or_again_for_the_next_window(
    program: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one failure would let every later window be judged by the least drift there is."""
    days = pd.date_range("2013-01-01", periods=400, freq="D")
    train = pd.DataFrame({"at": days, "size": np.arange(400.0)})
    spans = [[str(days[0]), str(days[100])], [str(days[100]), str(days[200])]]
    request = {"time": "at", "periods": spans, "fewest_rows": 50}
    drifts = iter([0.3, 0.2, RuntimeError("no"), 0.3, 0.2, 0.4])

    def measure(*_: Any) -> Any:
        if isinstance(drift := next(drifts), Exception):
            raise drift
        return pd.Series({"size": drift})

    find = program["find"]
    monkeypatch.setitem(find.__globals__, "measure", measure)
    first, second = (find(request, "FeatureDrift", train, train) for _ in range(2))
    assert [math.isnan(value) for value in first.values()] == [True]
    assert second == {"`size`: 0.300, 0.400 between training periods": pytest.approx(0.75)}


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
            told = capsys.readouterr().err
            assert "drawn from the data contract" in told
            assert ("as extracted before for 2013-08-01" in told) == (value == "")
            assert stages.extract(replace(push, sample=True)).manifest["sample"] is True
            with pytest.raises(UserError, match=r"the variable WAREHOUSE: set it, or .*--sample"):
                stages.extract(push)
    sources.NEEDS = "WAREHOUSE"  # a forgotten comma
    with pytest.raises(UserError, match=r"the variable WAREHOUSE: set it"):
        stages.extract(push)
    monkeypatch.setenv("WAREHOUSE", "address")
    for started in (fork, push):
        with pytest.raises(UserError, match="real rows before 2013-08-01"):
            stages.extract(started)


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
    times[1] -= np.timedelta64(1, "h")
    found = snapshots.test_start(times, date.fromisoformat(as_of))
    assert (found, found.dtype) == (np.datetime64(start, "us"), np.dtype("datetime64[us]"))


def test_where_labels_come_late_the_test_window_is_the_last_month_that_has_some() -> None:
    times = np.array(["2013-01-01", "2013-06-20T15:00"], "datetime64[us]")
    assert snapshots.test_start(times, date(2013, 8, 1)) == np.datetime64("2013-05-21")


def test_a_source_that_is_behind_is_no_late_label(world: World) -> None:
    rows = pa.concat_tables([world.train, world.test])
    snapshots._write(world.project, date(2013, 8, 31), rows, sample=True)
    with pytest.raises(
        UserError, match=r"no row of the month before; newest: 2013-07-31.* set `as_of`"
    ):
        snapshots._write(world.project, date(2013, 9, 2), rows, sample=True)


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


# In the environment of Deepchecks, for LightGBM imports scikit-learn, in seconds, where it is.
KNOWN = """
import json, sys
from sklearn import metrics
rows = json.loads(sys.argv[1])
print(json.dumps([[getattr(metrics, name)(y, p, sample_weight=w)
                   for name in ("roc_auc_score", "log_loss")] for y, p, w in rows]))
"""


def test_metrics_equal_those_of_scikit_learn(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels, weights = (random.random(500) < 0.3).astype(float), random.integers(0, 4, 500) * 1.0
    without_ties, with_many = random.random(500), random.integers(1, 5, 500) / 5
    rows = [(labels, scores, weights) for scores in (without_ties, with_many)]
    asked = json.dumps([[values.tolist() for values in row] for row in rows])
    known = run([program_python(gates.PROGRAM, tmp_path), "-c", KNOWN, asked], tmp_path)
    own = [[metrics.roc_auc(*row), metrics.log_loss(*row)] for row in rows]
    np.testing.assert_allclose(own, json.loads(known), rtol=1e-6)
    for scores in (without_ties, with_many):
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
    one_day, by_chance = (metrics.estimate(*rows, c) for c in (days * 0, np.arange(1000) % 100))
    width, usual = (found.high - found.low for found in (one_day, by_chance))
    assert 0.7 < width / usual < 1.4  # and not zero
    one_class = metrics.estimate(metrics.roc_auc, labels * 0, rows[2], days)
    assert np.isnan([one_class.value, one_class.low, one_class.high]).all()
    nothing = metrics.estimate(metrics.roc_auc, *[np.array([])] * 2, np.array([], "M8[D]"))
    assert np.isnan(nothing).all(), "as of a segment without a row later than the champion's"


RARE = Limit(max=0.1, outcome="stop")
DRIFT = Ceiling(max=2, outcome="retrain")
GAIN = Limit(min=0.1, outcome="stop")
PERIODS = ["May", "June", "July", "August"]


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
        (DRIFT, {"snow": None, "temp": 1.0}, PASS, "temp; snow"),
        (DRIFT, {"snow": None, "temp": 3.0}, RETRAIN, "temp; snow"),
        (DRIFT, {"snow": None, "temp": np.nan}, INCONCLUSIVE, "temp; snow: no number"),
        (DRIFT, {"snow": None}, INCONCLUSIVE, "snow: no number"),
        (DRIFT, {}, INCONCLUSIVE, ": no number"),
    ],
)
def test_every_answer_has_one_outcome(
    limit: Limit, found: dict[str, float | None], outcome: Outcome, says: str
) -> None:
    check = judge_findings("FeatureDrift", limit, found, PERIODS)
    assert check.outcome is outcome
    assert check.sentence.startswith(says)
    assert check.limit == str(limit)


@pytest.mark.parametrize("name", ["FeatureDrift", "prediction_drift"])
@pytest.mark.parametrize("limit", [DRIFT, Limit(max=2, outcome="stop")])
def test_a_drift_from_few_periods_is_only_a_warning(name: str, limit: Limit) -> None:
    check = judge_findings(name, limit, {"temp: 0.4": 7.9}, PERIODS[1:])
    assert check.outcome is WARN
    assert check.sentence == "temp: 0.4; only 3 training periods tell what is usual"
    assert judge_findings(name, limit, {"temp": 1.9}, PERIODS[1:]).outcome is PASS
    assert judge_findings(name, limit, {"temp": np.nan}, PERIODS[1:]).outcome is WARN
    assert judge_findings("NewCategoryTrainTest", RARE, {"kind": 1.0}, []).outcome is STOP


def test_every_drift_is_shown_the_largest_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"FeatureDrift": {"`size`: 0.1": 1.2, "`kind`: 0.9": 3.0, "`more`: no": np.nan}}
    found |= {"LabelDrift": {"the label: 0.2": 2.0}, "NewCategoryTrainTest": {"`kind`": 9.0}}
    monkeypatch.setattr(gates, "ask", lambda *_: [found])
    limits = dict.fromkeys(found, DRIFT)
    suites = DeepchecksLimits.model_construct(data=limits, model={})
    vars(world.project)["gates"] = GATES.model_copy(update={"deepchecks": suites})
    checks, table = deepchecks(world.project, "data", world.snapshot)
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
    free = keyed.model_copy(update={"key": ["at", "model code"]})
    for values, kept in ((120, ["kind"]), (60, ["kind", "model code"])):  # of 120 rows
        words = [f"AB-{n % values}" for n in range(120)]
        pq.write_table(
            pa.table({contract.time: times, "model code": words}), tmp_path / "train.parquet"
        )
        vars(project)["contract"] = free
        assert request_of(project, "data", Snapshot(tmp_path))["categorical"] == kept
    vars(project)["contract"] = keyed
    assert request["numeric"] == ["amount", "json", "_flag"]  # `count` is of the key: a name
    assert request["checks"] == ["FeatureDrift"]
    assert request["periods"] == [], "of 31 rows each, none tells what is usual"
    pq.write_table(pa.table({contract.time: times.repeat(4)}), tmp_path / "train.parquet")
    request = request_of(project, "data", Snapshot(tmp_path))
    assert [start for start, _ in request["periods"]] == [f"2013-0{n}-01" for n in range(1, 5)]


@pytest.mark.parametrize(
    ("span", "parts"), [(6, 0), (7, 1), (280, 40), (287, 40), (567, 40), (3_000, 40)]
)
def test_a_week_is_compared_with_weeks_however_long_the_training_span(
    span: int, parts: int
) -> None:
    days = np.datetime64("2013-01-01") + np.arange(span)
    found = periods(days.astype("datetime64[us]"), days=7)
    assert len(found) == len(set(found)) == parts <= MOST_PARTS
    assert {end - start for start, end in found} <= {np.timedelta64(7, "D")}
    starts = [start for start, _ in found]
    assert {int((start - days[0]).astype(int)) % 7 for start in starts} <= {0}, "none overlaps"
    assert not found or starts[0] == days[0]
    assert not found or days[-1] - starts[-1] < np.timedelta64(14, "D")


def test_what_is_rare_is_neither_new_nor_lost(tmp_path: Path) -> None:
    """Of 40,000 rows half are drawn: a category of two rows mostly not, a label of 0.1 % is."""
    random, paths = np.random.default_rng(0), dict[str, Path]()
    for part, rows, share in (("train", 40_000, 0.001), ("test", 8_000, 0.009)):
        columns = {
            "at": np.datetime64("2013-01-01", "us") + np.arange(rows) * np.timedelta64(1, "m"),
            "zip": np.char.add("z", (np.arange(rows) % 20_000).astype(str)).astype(object),
            "late": random.random(rows) < share,
        }
        paths[part] = tmp_path / f"{part}.parquet"
        pq.write_table(pa.table(columns), paths[part])
    request: dict[str, Any] = {"suite": "data", "checks": ["NewCategoryTrainTest", "LabelDrift"]}
    request |= {"train": str(paths["train"]), "tests": [str(paths["test"])], "periods": []}
    request |= {"sampled": gates.SAMPLED, "fewest_rows": gates.FEWEST_ROWS, "numeric": []}
    request |= {"categorical": ["zip"], "label": "late", "time": "at", "score": "score"}
    found = ask(tmp_path, request)[0]
    assert list(found["NewCategoryTrainTest"].values()) == [0.0]
    [drift] = found["LabelDrift"].values()
    assert drift is not None
    assert drift > 0.5


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
    monkeypatch.setattr(gates, "RUN_SECONDS", 0.3 if "sleep" in run else 20)
    request = {"suite": "data", "checks": ["X"], "tests": ["test.parquet"]}
    if sync == "true":
        check = judge_findings("X", DRIFT, ask(tmp_path, request)[0]["X"], PERIODS)
        assert check.outcome is INCONCLUSIVE
        assert re.match(answer, check.sentence)
    else:
        with pytest.raises(UserError, match=answer):
            ask(tmp_path, request)


def test_no_token_of_a_job_reaches_packages_that_no_lock_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while they are installed, which may run code of theirs, nor afterwards."""
    seen = tmp_path / "seen"
    answer = """echo '[{"X": {"why": 1}}]' > "$3"\n"""
    for name, line in {"python": answer, "uv": f"echo {tmp_path}/python\n"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nenv >> {seen}\n{line}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("GH_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "WAREHOUSE"):
        monkeypatch.setenv(name, "secret")
    asked = ask(tmp_path, {"suite": "data", "checks": ["X"], "tests": ["test.parquet"]})
    assert asked == [{"X": {"why": 1}}]
    found = seen.read_text()
    assert found.count("WAREHOUSE=secret") >= 2
    assert "TOKEN=" not in found.replace("MLFLOW_TRACKING_TOKEN=", "")


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


class Spy(AbstractContextManager["Spy"]):
    """A service that only knows whether it was ended."""

    ended = False

    def __exit__(self, *_: object) -> None:
        self.ended = True


@pytest.mark.parametrize("fault", ["", "never ready"])
def test_services_under_load_start_together_and_none_outlives_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    write_json(tmp_path / "ship" / "request.json", {})
    beside, ended, spies = threading.Barrier(3, timeout=20), threading.Event(), list[Spy]()
    vars(project := Project(tmp_path)).update(delivery=PROJECT.delivery)

    def start(_: Project, ship: Path, log: Path, noop: bool) -> Spy:
        beside.wait()  # for all three
        if fault and log.stem == "load-candidate":
            raise UserError(fault)
        assert not fault or ended.wait(20)  # it does not come up by itself
        spies.append(Spy())
        return spies[-1]

    def judge(_: Project, targets: dict[str, Spy]) -> list[str]:
        assert not any(spy.ended for spy in spies)
        return [*targets]

    monkeypatch.setattr(load, "start", start)
    monkeypatch.setattr(load, "end", lambda home, patience: ended.set())
    (project.work / "logs" / "load-candidate-1").mkdir(parents=True)
    monkeypatch.setattr(load, "judge_targets", judge)
    releases = Candidate(tmp_path), Candidate(tmp_path)
    with pytest.raises(UserError, match=fault) if fault else nullcontext():
        found: Any = load.check_load(project, *releases)
        assert found == ["candidate", "twin", "champion"]
    assert [spy.ended for spy in spies] == [True] * (2 if fault else 3)


def loaded(fakes: dict[str, Running]) -> list[Round]:
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


@pytest.fixture(scope="module")
def rounds(fakes: dict[str, Running]) -> list[Round]:
    return loaded(fakes)


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
def test_a_slow_service_stops(
    fakes: dict[str, Running], rounds: list[Round], fault: str, check: str
) -> None:
    for _ in range(3):
        found = outcomes(judge_rounds(limits(), against_twin(rounds, fault)))
        if found[check] is not Outcome.INCONCLUSIVE:  # else more of them, as the gate does
            break
        rounds = [*rounds, *loaded(fakes)]
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
