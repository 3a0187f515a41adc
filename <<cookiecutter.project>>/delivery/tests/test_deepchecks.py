"""Deepchecks: drift is judged by the months' own spread, and no silence is a pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_delivery.contract.settings import DataContract, DeepchecksLimits, Gates, Limit
from model_delivery.errors import UserError
from model_delivery.gates import deepchecks
from model_delivery.gates.deepchecks import Finding, ask, judge_findings, request_of
from model_delivery.project import Project
from model_delivery.report.verdict import Outcome
from model_delivery.training.snapshot import Snapshot

PASS, WARN, RETRAIN, INCONCLUSIVE, STOP, _ = Outcome
MONTHS = [0.49, 0.59, 0.46, 0.31, 0.56, 0.80]
RARE = Limit(max=0.1, outcome="stop")
DRIFT = Limit(max=2, outcome="retrain")
GAIN = Limit(min=0.1, outcome="stop")
NEW = "NewCategoryTrainTest"


def finding(column: str | None, value: float, past: Any = None) -> Finding:
    return Finding(value, past, f"said of {column}")


@pytest.mark.parametrize(
    ("name", "limit", "found", "outcome", "says"),
    [
        (NEW, RARE, [("dest", 0.01, None)], PASS, "said of dest"),
        (NEW, RARE, [("dest", 0.2, None), ("origin", 0.3, None)], STOP, "said of origin"),
        (NEW, RARE, [], INCONCLUSIVE, "did not run"),
        (NEW, RARE, [("origin", 0.3, None), ("dest", np.nan, None)], INCONCLUSIVE, "said of dest"),
        ("SimpleModelComparison", GAIN, [(None, 0.3, None)], PASS, "said"),
        ("SimpleModelComparison", GAIN, [(None, 0.05, None)], STOP, "said"),
        # July is 0.79 from spring, and so is June: a season. The same in wind is not.
        ("FeatureDrift", DRIFT, [("temp", 0.79, MONTHS)], PASS, "said of temp"),
        ("FeatureDrift", DRIFT, [("wind", 0.79, [0.1] * 6)], RETRAIN, "said of wind"),
        # Against a spread of nothing, a drift that is nothing too.
        ("FeatureDrift", DRIFT, [("carrier", 0.03, [0.0] * 6)], PASS, "carrier"),
        ("FeatureDrift", DRIFT, [("temp", 0.79, [0.8] * 3)], WARN, "fewer than 4"),
        ("FeatureDrift", DRIFT, [("temp", 0.9, []), ("wind", 0.9, [0.1] * 6)], RETRAIN, "wind"),
    ],
)
def test_every_answer_has_one_outcome(
    name: str, limit: Limit, found: list[Any], outcome: Outcome, says: str
) -> None:
    check = judge_findings(name, limit, [finding(*each) for each in found])
    assert check.outcome is outcome
    assert says in check.sentence
    assert check.limit == str(limit)


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
        ("true", """echo '{"X": [[NaN, null, "why"]]}' > "$3" """, "why"),
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
    request = {"suite": "data", "checks": ["X"]}
    if sync == "true":
        check = judge_findings("X", DRIFT, ask(tmp_path, request)["X"])
        assert check.outcome is INCONCLUSIVE
        assert re.match(answer, check.sentence)
    else:
        with pytest.raises(UserError, match=answer):
            ask(tmp_path, request)
