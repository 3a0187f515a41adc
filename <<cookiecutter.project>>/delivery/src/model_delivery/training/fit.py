"""Fit features and model on training rows, and score every row the gates will look at."""

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model_delivery.errors import UserError
from model_delivery.project import Project
from model_delivery.protocols import FeatureBuilder, Floats, Model, user_module
from model_delivery.training.metrics import log_loss, roc_auc
from model_delivery.training.snapshot import Snapshot, stopping_rows

SCORE = "score"
SAMPLE = 20_000
"""Training rows kept with their scores: enough to see an overfit, small enough to keep."""


@dataclass(frozen=True)
class Trained:
    """A fitted pair of features and model, and the rows it has scored."""

    features: FeatureBuilder
    model: Model
    train: pa.Table
    test: pa.Table
    metrics: dict[str, float]
    seconds: dict[str, float]


def fit(project: Project, snapshot: Snapshot) -> Trained:
    """Fit on the snapshot's training rows; the test window is only scored.

    A UserError where features are infinite, or scores outside [0, 1] or not a number.
    """
    contract, clock = project.contract, [time.perf_counter()]
    train, test = pq.read_table(snapshot.train_path), pq.read_table(snapshot.test_path)
    columns, unseen = ({n: t[n].to_numpy() for n in t.column_names} for t in (train, test))
    inputs, later = ({name: part[name] for name in contract.inputs} for part in (columns, unseen))
    features: FeatureBuilder = user_module("features").Features.fit(inputs)
    matrix = _features(features.transform(inputs), features.names, train.num_rows)
    clock.append(time.perf_counter())
    model: Model = user_module("model").Model(project.parameters)
    labels, truth = (part[contract.target].astype(float) for part in (columns, unseen))
    model.fit(matrix, labels, stopping_rows(columns[contract.time]))
    clock.append(time.perf_counter())
    rows = np.sort(np.random.default_rng(0).permutation(train.num_rows)[:SAMPLE])
    known = _scores(model.predict(matrix[rows]), len(rows))
    matrix = _features(features.transform(later), features.names, test.num_rows)
    scores, ones = _scores(model.predict(matrix), test.num_rows), np.ones(test.num_rows)
    clock.append(time.perf_counter())
    return Trained(
        features,
        model,
        train.take(rows).append_column(SCORE, pa.array(known)),
        test.append_column(SCORE, pa.array(scores)),
        {"roc_auc": roc_auc(truth, scores, ones), "log_loss": log_loss(truth, scores, ones)},
        dict(zip(("features", "fit", "score"), np.diff(clock).round(2).tolist(), strict=True)),
    )


def _features(matrix: Floats, names: tuple[str, ...], rows: int) -> Floats:
    where, shape = "features.Features.transform", (rows, len(names))
    if matrix.shape != shape:
        raise UserError(f"{where}: shape {matrix.shape}, expected {shape}: a column for each name")
    for row, column in np.argwhere(np.isinf(matrix))[:1]:
        raise UserError(f"{where}: `{names[column]}` is infinite in row {row + 1}")
    return matrix


def _scores(scores: Floats, rows: int) -> Floats:
    where = "model.Model.predict"
    if scores.shape != (rows,):
        raise UserError(f"{where}: shape {scores.shape}, expected ({rows},)")
    for row in np.flatnonzero(~((scores >= 0) & (scores <= 1)))[:1]:
        why = "is no probability; look at the learning curve and the labels"
        raise UserError(f"{where}: {scores[row]} in row {row + 1} {why}")
    return scores
