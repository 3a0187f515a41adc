"""From the source to a served answer, in a copy of this project with two months of data."""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from model_delivery.bundle.candidate import Candidate, current_candidate, make_candidate
from model_delivery.bundle.launch import start
from model_delivery.project import Project
from model_delivery.protocols import UserError
from model_delivery.training.snapshot import Snapshot, take_snapshot

from <<cookiecutter.package>>.model import Model

SHIPPED = {"SHA256SUMS", "request.json", "requirements.txt", "service.py", "model", "src"}
Rows = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def small(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """This project as of 1 March, with a work folder of its own."""
    root: Path = tmp_path_factory.mktemp("small")
    shutil.copytree(project.root / "config", root / "config")
    for name in ("src", "delivery", "pyproject.toml", "uv.lock", "README.md"):
        (root / name).symlink_to(project.root / name)
    data = root / "config" / "data.yaml"
    data.write_text(re.sub(r"(?m)^as_of: \S+", "as_of: 2013-03-01", data.read_text()))
    return Project(root)


@pytest.fixture(scope="module")
def snapshot(small: Project, source: None) -> Snapshot:
    return take_snapshot(small, None)


@pytest.fixture(scope="module")
def fitted_on() -> Rows:
    """What `Model.fit` was given: number of rows, and how many of them decide when to stop."""
    return []


@pytest.fixture(scope="module")
def candidate(small: Project, snapshot: Snapshot, fitted_on: Rows) -> Candidate:
    fit = Model.fit

    def spy(self: Model, features: Any, labels: Any, stopping: Any) -> Model:
        fitted_on.append((features.copy(), labels.copy(), stopping.copy()))
        return fit(self, features, labels, stopping)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "fit", spy)
        return make_candidate(small, snapshot, "local")


def test_the_manifest_counts_every_row(snapshot: Snapshot) -> None:
    rows, excluded = snapshot.manifest["rows"], snapshot.manifest["excluded"]
    assert rows["extracted"] == rows["train"] + rows["test"] + excluded["cancelled"]
    for part, path in (("train", snapshot.path("train")), ("test", snapshot.path("test"))):
        assert pq.read_table(path).num_rows == rows[part]
        assert sha256(path.read_bytes()).hexdigest() == snapshot.manifest["files"][path.name]


def test_the_test_window_is_later_than_every_training_row(snapshot: Snapshot) -> None:
    train = pq.read_table(snapshot.path("train"))["scheduled"].to_numpy()
    test = pq.read_table(snapshot.path("test"))["scheduled"].to_numpy()
    assert train.max() < test.min()


def test_no_row_of_the_test_window_reaches_fit(
    candidate: Candidate, snapshot: Snapshot, fitted_on: Rows
) -> None:
    """Not even as a row that decides when to stop: exactly the training rows, in their order."""
    train = pq.read_table(snapshot.path("train"))
    [(features, labels, stopping)] = fitted_on
    np.testing.assert_array_equal(labels, train["late"].to_numpy().astype(float))
    names = candidate.lineage["features"]
    np.testing.assert_array_equal(features[:, names.index("temp")], train["temp"].to_numpy())
    times = train["scheduled"].to_numpy()
    assert times[stopping].min() > times[~stopping].max()


def test_a_candidate_holds_what_it_should(candidate: Candidate) -> None:
    assert {path.name for path in candidate.ship.iterdir()} == SHIPPED
    sums = (candidate.ship / "SHA256SUMS").read_bytes()
    assert sha256(sums).hexdigest() == candidate.digest
    for line in sums.decode().splitlines():
        digest, name = line.split("  ", 1)
        assert sha256((candidate.ship / name).read_bytes()).hexdigest() == digest
    assert {path.name for path in (candidate.ship / "model").iterdir()} == {
        "features.json",
        "model.txt",
    }
    pins = (candidate.ship / "requirements.txt").read_text()
    assert "lightgbm==" in pins
    assert "--hash=sha256:" in pins
    assert "pandas==" not in pins
    scored = pq.read_table(candidate.path("test"))
    assert np.isfinite(scored["score"].to_numpy()).all()
    lineage = candidate.lineage
    assert lineage["data"]["excluded"]["cancelled"] > 0
    assert lineage["metrics"]["roc_auc"] > 0.55


def written(candidate: Candidate) -> int:
    """Return when a candidate was trained, in nanoseconds."""
    return (candidate.folder / "lineage.json").stat().st_mtime_ns


def test_the_same_key_is_not_trained_twice(
    small: Project, snapshot: Snapshot, candidate: Candidate
) -> None:
    before = written(candidate)
    again = make_candidate(small, snapshot, "local")
    assert (again.digest, written(again)) == (candidate.digest, before)


def test_a_changed_byte_is_refused_before_anything_is_loaded_and_trained_away(
    small: Project, snapshot: Snapshot, candidate: Candidate
) -> None:
    model, before = candidate.ship / "model" / "model.txt", written(candidate)
    model.write_text(model.read_text().replace("tree", "tree ", 1))
    with pytest.raises(UserError, match=r"model/model\.txt"):
        current_candidate(small)
    again = make_candidate(small, snapshot, "local")
    assert again.digest == candidate.digest
    assert written(again) > before
    assert current_candidate(small).digest == candidate.digest


def test_the_service_answers_a_row_with_the_score_that_was_judged(
    small: Project, candidate: Candidate, tmp_path: Path
) -> None:
    scored = pq.read_table(candidate.path("test")).slice(0, 5)
    rows = scored.drop_columns(["late", "score"]).to_pylist()
    body = json.dumps(
        {"rows": [{**row, "scheduled": row["scheduled"].isoformat()} for row in rows]}
    )
    with start(small, candidate.ship, tmp_path / "log") as service:
        request = urllib.request.Request(
            f"{service.url}/predict", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            answered = json.load(answer)
            assert answer.headers["x-model-digest"] == candidate.digest
    assert answered["probability"] == scored["score"].to_pylist()
    assert answered["release"] == candidate.short
