"""Monitoring on a small world: what the log holds, what came true, windows, and one decision."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_delivery import files, protocols
from model_delivery.bundle.candidate import Candidate
from model_delivery.cli.main import app
from model_delivery.contract.limits import DeepchecksLimits, Gates, ModelLimits, MonitorLimits
from model_delivery.contract.settings import (
    DataContract,
    Delivery,
    Environment,
    LogSettings,
    RolloutLimits,
)
from model_delivery.gates.model import Scored
from model_delivery.project import Project
from model_delivery.protocols import UserError
from model_delivery.registry import Event
from model_delivery.report.verdict import Check, Outcome, Verdict
from model_delivery.rollout.target import State, Target
from model_delivery.watch import monitor as monitoring
from model_delivery.watch import rows as reading
from model_delivery.watch import windows
from model_delivery.watch.log import keyed_hash
from model_delivery.watch.monitor import Decision, decide, monitor, over_all, watched
from model_delivery.watch.rows import Logged, join_labels, read_labels, read_log
from model_delivery.watch.windows import combined
from typer.testing import CliRunner

PASS, WARN, RETRAIN, INCONCLUSIVE, STOP, _ = Outcome
CONTRACT = DataContract.model_validate({
    "task": "binary", "target": "late", "time": "at", "key": ["at"], "as_of": "2013-08-01",
    "columns": {
        "at": {"type": "timestamp"},
        "kind": {"type": "category", "values": ["a", "b"]},
        "size": {"type": "number", "min": 0, "max": 10_000, "missing": 0.1},
        "late": {"type": "boolean"},
    },
})  # fmt: skip
LIMITS = MonitorLimits.model_validate({
    "window_days": 7, "windows": 4, "needed": 2, "slack": 0.05,
    "requests": {"min": 100, "outcome": "warn"}, "labels": {"min": 0.8, "outcome": "warn"},
    "scale": {"max": 2.5, "outcome": "stop"}, "refused": {"max": 0.2, "outcome": "stop"},
    "feature_drift": {"max": 2, "outcome": "retrain"},
    "prediction_drift": {"max": 2, "outcome": "retrain"},
    "roc_auc": {"min": -0.03, "outcome": "retrain"},
    "calibration_error": {"max": 0.1, "outcome": "retrain"},
    "previous": {"min": -0.03, "outcome": "stop"}, "new_data": {"max": 2, "outcome": "retrain"},
})  # fmt: skip
START, AS_OF, DAYS = dt.date(2013, 8, 1), dt.date(2013, 8, 29), 28
OWN, OLD = "a" * 64, "b" * 64
NO_DEEPCHECKS = DeepchecksLimits(data={}, model={})
REST = {"log": LogSettings(), "rollout": RolloutLimits.model_construct()}
USUAL = {"`size`: 0.1": 1.0, "`score`: 0.1": 1.0}


def rows(start: dt.date, days: int, a_day: int = 40) -> pd.DataFrame:
    """Return labelled rows, whose scores tell something of the label, and are calibrated."""
    random = np.random.default_rng(days)
    evidence = random.normal(0, 1.5, days * a_day)
    score = 1 / (1 + np.exp(1 - evidence))
    at = pd.Timestamp(start) + pd.to_timedelta(np.arange(days * a_day) * (24 * 60 // a_day), "min")
    frame = {"at": at, "kind": np.where(random.random(len(at)) < 0.3, "b", "a")}
    frame |= {"size": random.integers(50, 900, len(at)).astype(float)}
    return pd.DataFrame(frame | {"late": random.random(len(at)) < score, "score": score})


@dataclass(frozen=True)
class World:
    """A production that serves `OWN`, and came from `OLD`; and its source."""

    target: Target
    frame: pd.DataFrame
    sources: SimpleNamespace

    @property
    def project(self) -> Project:
        return self.target.project

    @property
    def log(self) -> Path:
        return Path(self.target.log)

    def serve(self, *digests: str) -> None:
        """Make an environment serve the first of some releases, the newest first."""
        known: dict[str, Any] = {"type": "promoted", "as_of": "2013-08-01", "commit": None}
        known |= {"trigger": "local", "blob": "b", "environment": "production"}
        pairs = zip(digests, [*digests[1:], None], strict=True)
        moves = [Event(digest=one, release=one[:3], previous=two, **known) for one, two in pairs]
        self.target.save(State(moves=moves))

    def write(self, frame: pd.DataFrame, name: str = "2013-08-01/w-1", **facts: Any) -> Path:
        """Append rows to a segment."""
        path = self.log / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as stream:
            for place, row in enumerate(frame.to_dict("records")):
                about = {"id": f"{name}-{place}", "row": 0, "digest": OWN, "shadow": False}
                about |= {"time": "2013-08-01T00:00:00.000000+00:00", "ms": 1.0} | facts
                columns = {k: v for k, v in row.items() if k not in ("late", "score")}
                columns["at"] = pd.Timestamp(columns["at"]).isoformat()
                found = {"score": row["score"], "columns": {k: none(v) for k, v in columns.items()}}
                stream.write(json.dumps(about | found) + "\n")
        return path

    def read(self, start: dt.date = START, end: dt.date = AS_OF) -> Logged:
        index = self.target.folder / "segments.json"
        return read_log(self.project, self.target.log, OWN, (start, end), index)

    def decide(self) -> tuple[str, dict[str, Check]]:
        """Return what monitoring decides, and its checks."""
        found = monitor(self.target, AS_OF)
        assert found.verdict is not None
        return found.decision, {check.name: check for check in found.verdict.checks}


def none(value: Any) -> Any:
    return None if pd.isna(value) else value


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    project = Project(tmp_path)
    model = ModelLimits.model_construct(segment_rows=100)
    place = Environment(target="host", port=3000)
    vars(project).update(
        contract=CONTRACT,
        about={"name": "small"},
        gates=Gates.model_construct(monitor=LIMITS, model=model, deepchecks=NO_DEEPCHECKS),
        delivery=Delivery.model_construct(environments={"production": place}, **REST),
    )
    frame = rows(START, DAYS)
    sources = SimpleNamespace(labels=lambda since, as_of: frame[["at", "late"]])
    target = Target(project, "production")
    for digest in (OWN, OLD):
        release = Candidate(target.folder / "releases" / digest)
        release.ship.mkdir(parents=True)
        files.write_json(release.ship / "request.json", dict.fromkeys(CONTRACT.inputs))
        pq.write_table(pa.Table.from_pandas(rows(dt.date(2013, 6, 1), 60)), release.path("train"))
        spans = {"train": ["2013-06-01T00:00:00", "2013-07-30T23:59:00"]}
        data = {"as_of": "2013-08-01", "spans": spans, "rows": {"train": 2400}, "excluded": {}}
        lineage = {"metrics": {"roc_auc": 0.8}, "data": data, "commit": None, "snapshot": "s"}
        files.write_json(release.folder / "lineage.json", lineage)
    made = World(target, frame, sources)
    made.serve(OWN)
    monkeypatch.setattr(protocols, "user_module", lambda _: sources)
    monkeypatch.setattr(reading, "user_module", lambda _: sources)
    monkeypatch.setattr(protocols, "WAITS", (0, 0))
    answer = {windows.DRIFT: USUAL}
    monkeypatch.setattr(windows, "ask", lambda _, asked: [answer] * len(asked["tests"]))
    return made


def test_a_log_is_read_in_any_form_and_each_row_counts_once(world: World) -> None:
    """By rows' own time, whatever day they were written on; of a repeat the last written."""
    half = len(world.frame) // 2
    path = world.write(world.frame[:half])
    with path.open("a") as stream:
        stream.write('{"id": "torn", "row": 0, "ti')
    again = world.frame[:10].assign(score=0.123)  # a request tried again, a day later, elsewhere
    later = world.write(again, "2013-08-02/w-2", time="2013-08-02T00:00:00.000000+00:00")
    later.write_text(later.read_text().replace("2013-08-02/w-2-", "2013-08-01/w-1-"))
    # A clock set back: the newest rows lie in the oldest folder, in the form of a batch.
    parquet = world.log / "1999-12-31" / "batch-0.parquet"
    parquet.parent.mkdir()
    records = [json.loads(line) for line in world.write(world.frame[half:], "x/y").open()]
    (world.log / "x" / "y.jsonl").unlink()
    pq.write_table(pa.Table.from_pylist(records), parquet)
    world.write(world.frame[:50], "2013-08-01/shadow", shadow=True)
    world.write(world.frame[:30], "2013-08-01/old", digest=OLD)
    (world.log / "2013-08-01" / "w-1.dropped").write_text("3\n4\n")
    logged = world.read()
    assert logged.rows.column_names == ["at", "kind", "size", "score"]
    assert logged.rows.select(["at"]).to_pandas()["at"].is_unique
    assert len(logged.rows) == len(world.frame)
    scores = logged.rows.column("score").to_numpy()
    assert (scores == 0.123).sum() == 10
    assert set(scores) == {0.123, *world.frame["score"][10:]}
    assert len(logged.times) == len(world.frame) + 30
    assert logged.found == {
        "unreadable": 0, "dropped": 7, "repeated": 10, "of other releases": 30
    }  # fmt: skip
    week = world.read(START, START + dt.timedelta(7))
    assert len(week.rows) == 7 * 40
    assert week.at.max() < np.datetime64("2013-08-08")


def test_a_segment_without_rows_of_the_span_is_not_read_again_unless_it_grew(world: World) -> None:
    first, second = world.frame[: 40 * 7], world.frame[40 * 21 :]
    path = world.write(first)
    world.write(second, "2013-08-02/w-1")
    assert len(world.read().rows) == len(first) + len(second)
    size = path.stat().st_size
    path.write_bytes(b"?" * (size - 1) + b"\n")  # would be an error
    assert len(world.read(dt.date(2013, 8, 20)).rows) == len(second)
    later = world.write(second[-9:].assign(at=pd.Timestamp("2013-08-28")), "2013-08-02/w-1", row=1)
    assert len(world.read(dt.date(2013, 8, 20)).rows) == len(second) + 9
    kept = files.read_json(world.target.folder / "segments.json")
    assert [one[0] for one in kept.values()] == [size, later.stat().st_size]
    with path.open("a") as stream:
        stream.write("{}\n")
    with pytest.raises(UserError, match=r"w-1\.jsonl:1: no JSON"):
        world.read(dt.date(2013, 8, 20))


def test_a_broken_line_is_named_and_a_truncated_segment_is_a_finding(world: World) -> None:
    path = world.write(world.frame)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:6], lines[6][:40], *lines[7:]]) + "\n")
    with pytest.raises(UserError, match=r"2013-08-01/w-1\.jsonl:7: no JSON"):
        world.read()
    path.write_text("\n".join(lines) + "\n")
    (world.log / "2013-08-01" / "b-0.parquet").write_bytes(b"PAR1 and no more")
    (world.log / "2013-08-01" / "b-1.jsonl").touch()
    for _ in range(2):  # it is not forgotten
        decision, checks = world.decide()
        assert (decision, checks["log"].outcome) == ("watch", WARN)
        assert "1 unreadable" in checks["log"].sentence


def test_an_empty_log_is_silence_and_an_object_store_is_a_log(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    decision, checks = world.decide()
    assert (decision, checks["requests"].outcome) == ("watch", WARN)
    assert "roc_auc" not in checks
    store = fsspec.filesystem("memory")
    store.pipe_file("/logs/production/d/w-1.jsonl", world.write(world.frame).read_bytes())
    kept = LogSettings(folder="memory://logs")
    vars(world.project)["delivery"] = world.project.delivery.model_copy(update={"log": kept})
    assert world.decide()[0] == "ok"


def hidden(world: World, **log: Any) -> None:
    changes = {"log": LogSettings(**log)}
    vars(world.project)["delivery"] = world.project.delivery.model_copy(update=changes)


def test_private_and_hashed_columns_are_left_out_and_hashed_keys_still_join(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyed = CONTRACT.model_copy(update={"key": ["at", "kind"]})
    vars(world.project)["contract"] = keyed
    labels = world.frame[["at", "kind", "late"]]
    world.sources.labels = lambda *_: labels
    monkeypatch.setenv("ML_LOG_KEY", "k")
    hidden(world, private=["size"], hashed=["kind"])
    shown = world.frame.drop(columns="size")
    world.write(shown.assign(kind=[keyed_hash(kind, "k") for kind in shown["kind"]]))
    decision, checks = world.decide()
    assert decision == "ok"
    assert checks["columns"].sentence == "1 columns as agreed"  # `at`
    assert checks["labels"].value == 1
    monkeypatch.setenv("ML_LOG_KEY", "another")
    assert world.decide()[1]["labels"].value == 0


def test_labels_of_no_row_twice_and_against_each_other(world: World) -> None:
    world.write(world.frame)
    labels = world.frame[["at", "late"]]
    other = labels.assign(at=labels["at"] + pd.Timedelta("1s"))[:7]
    against = labels[:3].assign(late=~labels["late"][:3])
    world.sources.labels = lambda *_: pd.concat([labels, labels[:50], other, against])
    found, checks = read_labels(world.project, START, AS_OF)
    assert len(found) == len(labels) - 3 + 7
    conflict = checks[-1]
    assert (conflict.name, conflict.outcome) == ("label conflicts", WARN)
    assert conflict.sentence.startswith("6 labels contradict")
    assert conflict.sentence.endswith(": 2013-08-01")
    truth, unknown = join_labels(CONTRACT, world.read().rows, found)
    assert unknown == 7
    assert np.isnan(truth[:3]).all()
    assert (truth[3:] == world.frame["late"].to_numpy()[3:]).all()
    assert world.decide()[0] == "watch"


@pytest.mark.parametrize(
    ("labels", "check", "decision", "says"),
    [
        (lambda f: f.rename(columns={"late": "l"}), "label columns", "stop", "`late` is missing"),
        (lambda f: f.assign(late="yes"), "label types", "stop", "`late` is .*string"),
        (lambda f: None, "label types", "stop", "no table of at, late"),
        (lambda f: f[:0].astype(f.dtypes), "labels", "watch", "whose label arrived"),
        (lambda f: f.assign(late=f["late"].astype("boolean").mask(f.index > 600)), "labels",
         "watch", "whose label arrived"),
    ],
)  # fmt: skip
def test_labels_that_are_no_labels(
    world: World, labels: Callable[[pd.DataFrame], Any], check: str, decision: str, says: str
) -> None:
    world.write(world.frame)
    world.sources.labels = lambda *_: labels(world.frame[["at", "late"]])
    found, checks = world.decide()
    assert found == decision
    assert checks[check].outcome is (STOP if decision == "stop" else WARN)
    assert re.search(says, checks[check].sentence)


def test_a_source_that_is_down_is_asked_three_times_and_never_ok(world: World) -> None:
    asked = list[dt.date]()

    def labels(since: dt.date, as_of: dt.date) -> pd.DataFrame:
        asked.append(since)
        raise ConnectionError("no route")

    world.write(world.frame)
    world.sources.labels = labels
    decision, checks = world.decide()
    assert asked == [START] * 3
    assert (decision, checks["labels"].outcome) == ("watch", INCONCLUSIVE)
    assert "no route" in checks["labels"].sentence
    del world.sources.labels
    decision, checks = world.decide()
    assert (decision, checks["labels"].outcome) == ("watch", WARN)


def late(frame: pd.DataFrame, days: int) -> Any:
    return frame["at"] >= pd.Timestamp(AS_OF) - pd.Timedelta(days, "D")


def seeded(name: str, days: int, value: Callable[[pd.DataFrame], Any]) -> Any:
    """Return what changes a column in the last days."""
    return lambda f: f.assign(**{name: f[name].mask(late(f, days), value(f))})


CHANGES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str, str]] = {
    "nothing": (lambda f: f, "ok", ""),
    "another unit": (seeded("size", 14, lambda f: 3 * f["size"]), "stop", "scale"),
    "another unit, a week": (seeded("size", 7, lambda f: 3 * f["size"]), "watch", "scale"),
    "missing": (seeded("size", 14, lambda f: f["size"].mask(f.index % 3 == 0)), "stop", "missing"),
    "gone": (seeded("size", 7, lambda f: np.nan), "stop", "columns"),
    "renamed": (
        lambda f: seeded("size", 7, lambda f: np.nan)(f.assign(big=f["size"].where(late(f, 7)))),
        "stop",
        "columns",
    ),
    "constant": (seeded("score", 7, lambda f: 0.5), "stop", "predictions"),
    "no score": (
        seeded("score", 7, lambda f: f["score"].mask(f.index % 50 == 0, 7.0)),
        "stop",
        "predictions",
    ),
    "silence": (lambda f: f[~late(f, 7)], "watch", "requests"),
    "worse": (lambda f: f.assign(score=f["score"].iloc[::-1].to_numpy()), "retrain", "roc_auc"),
    "off": (lambda f: f.assign(score=f["score"] ** 3), "retrain", "calibration_error"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_has_its_decision(world: World, change: str) -> None:
    seed, decision, check = CHANGES[change]
    world.write(seed(world.frame))
    found, checks = world.decide()
    broken = {name for name, one in checks.items() if one.outcome is not PASS}
    assert found == decision, broken
    assert check in broken or not check


def test_drift_counts_in_two_windows_and_silence_of_deepchecks_is_inconclusive(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write(world.frame)
    moved = {"`kind`: 0.5": 4.0, "`size`: 0.1": 1.0, "`score`: 0.1": 1.0}
    answers: list[Any] = [{windows.DRIFT: USUAL}] * 4
    asked = list[Any]()
    monkeypatch.setattr(windows, "ask", lambda _, it: asked.append(it) or answers)
    for place, decision in enumerate(("watch", "retrain")):
        answers[3 - place] = {windows.DRIFT: moved}
        for path in world.target.folder.glob("monitor/windows/*.json"):
            path.unlink()
        found = monitor(world.target, AS_OF)
        assert (found.decision, found.because) == (decision, "drift" if place else "")
    assert "in 2 of 4 windows: `kind`: 0.5" in found.reason
    assert (asked[0]["numeric"], asked[0]["categorical"]) == (["size", "score"], ["kind"])
    assert asked[0]["label"] is None, "nothing came true yet, when a window is judged"
    assert len(asked) == 2
    monitor(world.target, AS_OF)
    assert len(asked) == 2, "a finished window is not judged again"
    world.write(world.frame[-1:].assign(at=pd.Timestamp("2013-08-28 23:59")), "2013-08-02/w-9")
    answers = [{windows.DRIFT: {"Deepchecks did not answer: oh": float("nan")}}]
    decision, checks = world.decide()
    assert [len(one["tests"]) for one in asked] == [4, 4, 1]
    assert checks["feature_drift"].outcome is INCONCLUSIVE
    assert checks["prediction_drift"].outcome is INCONCLUSIVE
    assert decision == "watch"
    answers = [{windows.DRIFT: USUAL}]
    decision, checks = world.decide()
    assert [len(one["tests"]) for one in asked] == [4, 4, 1, 1]
    assert checks["prediction_drift"].outcome is PASS


def test_the_release_at_fault_is_rolled_back_if_there_is_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = dict(zip(world.frame["at"], world.frame["score"], strict=True))

    def score(_: Project, ship: Path, rows: pa.Table) -> Any:
        assert ship.parent.name == OLD
        return np.array([truth[at] for at in rows.select(["at"]).to_pandas()["at"]])

    monkeypatch.setattr(monitoring, "score_cleanly", score)
    worse = world.frame.assign(score=world.frame["score"].iloc[::-1].to_numpy())
    path = world.write(worse)
    assert world.decide()[0] == "retrain"  # nowhere to go back to
    world.serve(OWN, OLD)
    decision, checks = world.decide()
    assert (decision, checks["previous"].outcome) == ("rollback", STOP)
    path.unlink()
    world.write(worse.assign(size=3 * worse["size"]))
    assert world.decide()[0] == "stop", "its requests are wrong, too"
    path.unlink()
    world.write(world.frame)
    assert world.decide()[0] == "ok"

    hidden(world, private=["size"])
    path.unlink()
    world.write(worse.drop(columns="size"))
    found, checks = world.decide()
    assert (found, "previous" in checks) == ("retrain", False), "it cannot be asked without `size`"


def test_what_is_watched_and_what_there_is_to_go_back_to(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitoring, "champion", lambda *_: "the accepted one")

    def digests() -> list[str | None]:
        return [found and found.digest for found in watched(world.target)]

    assert digests() == [OWN, None]
    world.serve(OWN, OLD)
    assert digests() == [OWN, OLD]
    state = world.target.state()
    moves = [state.moves[0].model_copy(update={"type": "rolled_back"}), state.moves[1]]
    world.target.save(state, moves=moves)
    assert digests() == [OWN, None], "what it came back from is no way back"
    world.target.save(state, trying=state.moves[0])
    assert digests() == [OWN, None], "a rollout is under way"
    world.target.save(state, moves=state.moves[:1])
    assert digests() == [OWN, None], "it is not installed any more"
    world.target.save(state, rehearsed=3001)
    assert digests() == [None, None]
    batch = {"environments": {"production": Environment(target="batch")}}
    vars(world.project)["delivery"] = world.project.delivery.model_copy(update=batch)
    assert watched(world.target) == ("the accepted one", None)


@pytest.mark.parametrize(
    ("mixed", "days", "outcome", "windows"),
    [
        (0.0, 28, PASS, 1),
        (0.08, 28, PASS, 3),  # below the limit, but not its whole interval
        (1.0, 28, RETRAIN, 4),
        (1.0, 7, WARN, 1),  # all of it in one window
    ],
)
def test_what_came_true_is_judged_by_its_interval_and_by_windows(
    world: World, mixed: float, days: int, outcome: Outcome, windows: int
) -> None:
    frame, random = world.frame, np.random.default_rng(0)
    chosen = late(frame, days) & (random.random(len(frame)) < mixed)
    scores = frame["score"].mask(chosen, random.permutation(frame["score"])).to_numpy()
    at = frame["at"].to_numpy().astype("M8[D]")
    scored = Scored(frame["late"].to_numpy(float), scores, at, pa.table({}))
    part = (at - at[0]).astype(int) // 7
    found = over_all("roc_auc", LIMITS, scored, part, "said", 0.83)
    assert found.outcome is outcome, found
    assert f"{windows} of 4 windows alone" in found.sentence


def test_windows_of_another_release_are_not_judged(world: World) -> None:
    """After a rollout the old release's weeks say nothing of the new one."""
    broken = world.frame[:560].assign(score=0.5)
    world.write(broken, digest=OLD)
    world.write(world.frame[560:], "2013-08-15/w-1")
    decision, checks = world.decide()
    assert decision == "ok"
    assert "560 of other releases" in checks["log"].sentence


@pytest.mark.parametrize(("refused", "decision"), [(5, "ok"), (30, "stop")])
def test_requests_that_are_refused_stop(world: World, refused: int, decision: str) -> None:
    world.write(world.frame)
    answers = world.target.proxy.answers
    answers.parent.mkdir(parents=True)
    now = dt.datetime.now(dt.UTC).timestamp()
    statuses = [400] * refused + [200] * (120 - refused)
    old = [{"ts": now - 9 * 86_400, "status": 400}] * 500
    lines = [*old, *({"ts": now, "status": status} for status in statuses)]
    answers.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"ts": 1, "st')
    assert world.decide()[0] == decision


def test_much_new_data_is_a_reason_to_train(world: World) -> None:
    world.write(world.frame.assign(at=world.frame["at"] + pd.Timedelta(120, "D")))
    found = monitor(world.target, AS_OF + dt.timedelta(120))
    assert (found.decision, found.because) == ("retrain", "data")
    assert "148 days since its data, which span 61" in found.reason


def check(name: str, outcome: Outcome) -> Check:
    return Check(name=name, outcome=outcome, sentence="said")


@pytest.mark.parametrize(
    ("outcomes", "name", "outcome"),
    [
        ([PASS, PASS, PASS, PASS], "scale", PASS),
        ([PASS, STOP, PASS, PASS], "scale", WARN),
        ([STOP, PASS, PASS, STOP], "scale", STOP),
        ([PASS, PASS, PASS, STOP], "columns", STOP),
        ([STOP, PASS, PASS, PASS], "columns", WARN),
        ([PASS, PASS, PASS, STOP], "predictions", STOP),
        ([PASS, PASS, RETRAIN, RETRAIN], "feature_drift", RETRAIN),
        ([PASS, PASS, INCONCLUSIVE, PASS], "feature_drift", INCONCLUSIVE),
        ([STOP], "scale", WARN),
    ],
)
def test_one_odd_window_moves_nothing(
    outcomes: Sequence[Outcome], name: str, outcome: Outcome
) -> None:
    found = [
        Verdict(gate="monitor", checks=[check(name, one).model_copy(update={"value": place})])
        for place, one in enumerate(outcomes)
    ]
    assert combined(name, found, LIMITS).outcome is outcome


@pytest.mark.parametrize(
    ("found", "earlier", "decision", "because"),
    [
        ({"a": PASS}, True, "ok", ""),
        ({"a": WARN}, True, "watch", ""),
        ({"a": INCONCLUSIVE, "roc_auc": RETRAIN}, True, "watch", ""),
        ({"roc_auc": RETRAIN, "new_data": RETRAIN}, True, "retrain", "decay"),
        ({"feature_drift": RETRAIN}, True, "retrain", "drift"),
        ({"new_data": RETRAIN}, True, "retrain", "data"),
        ({"previous": STOP, "roc_auc": RETRAIN}, True, "rollback", ""),
        ({"predictions": STOP}, False, "stop", ""),
        ({"predictions": STOP, "scale": STOP}, True, "stop", ""),
    ],
)
def test_a_verdict_has_one_decision(
    found: dict[str, Outcome], earlier: bool, decision: str, because: str
) -> None:
    verdict = Verdict(gate="monitor", checks=[check(*pair) for pair in found.items()])
    answer = decide(verdict, earlier)
    assert (answer.decision, answer.because) == (decision, because)


def test_killed_at_any_durable_write_a_rerun_finds_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write(world.frame)
    replace, folder = os.replace, world.target.folder / "monitor"

    def killed(*arguments: Any, **options: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        replace(*arguments, **options)

    monkeypatch.setattr(os, "replace", killed)
    left = 99
    wanted = monitor(world.target, AS_OF)
    count = 99 - left
    assert count == 1 + 4 + 3 + 1  # index, windows, report, decision
    whole = {path.name: path.read_bytes() for path in folder.rglob("*.json")}
    for kill in range(count):
        for path in folder.rglob("*.json"):
            path.unlink()
        left = kill
        with pytest.raises(KeyboardInterrupt):
            monitor(world.target, AS_OF)
        assert not (folder / "decision.json").exists()
        left = 99
        assert monitor(world.target, AS_OF)[:3] == wanted[:3]
        now = {path.name: path.read_bytes() for path in folder.rglob("*.json")}
        assert {name for name in whole if whole[name] != now[name]} <= {"report.json"}  # its time


def test_the_verb_ends_neutral_without_a_target_and_by_its_verdict_with_one(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from model_delivery.cli import main

    monkeypatch.setattr(
        main, "_run", lambda *_: SimpleNamespace(project=world.project, as_of=AS_OF)
    )
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    worse = world.frame.assign(score=world.frame["score"].iloc[::-1].to_numpy())
    world.write(worse)
    done = CliRunner().invoke(app, ["monitor"])
    assert done.exit_code == 10
    assert "retrain: roc_auc" in done.stdout
    found = files.read_json(world.target.folder / "monitor" / "decision.json")
    assert (found["decision"], found["because"], found["digest"]) == ("retrain", "decay", OWN)
    assert found["as_of"] == "2013-08-29"
    page = (world.target.folder / "monitor" / "report.html").read_text()
    assert "Decision as of 2013-08-29: retrain" in page
    assert page.count("<figure>") == 4
    text = (world.target.folder / "monitor" / "report.md").read_text()
    assert (tmp_path / "summary").read_text() == f"{text}\n"
    assert "retrain" in text
    world.target.save(State())
    done = CliRunner().invoke(app, ["monitor", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["reason"] == "nothing deployed, nothing watched"
    lines = (tmp_path / "output").read_text().splitlines()
    report = f"report={world.target.folder}/monitor/report.*"
    assert lines[:3] == ["decision=retrain", "because=decay", report]
    assert lines[3:] == ["decision=nothing deployed", "because=", "report="]
    last = (tmp_path / "summary").read_text().removeprefix(f"{text}\n")
    assert last == "    nothing deployed: nothing deployed, nothing watched\n"
    assert isinstance(monitor(world.target, AS_OF), Decision)


def test_windows_cannot_ask_for_more_findings_than_there_are() -> None:
    with pytest.raises(ValueError, match="no finding could ever count"):
        MonitorLimits.model_validate(LIMITS.model_dump(exclude_none=True) | {"needed": 5})
