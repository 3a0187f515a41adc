"""Fit features and model on training rows, and score every row the gates will look at."""

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model_delivery.errors import UserError
from model_delivery.project import Project
from model_delivery.protocols import Columns, FeatureBuilder, Floats, Model, user_module
from model_delivery.training.metrics import log_loss, roc_auc
from model_delivery.training.snapshot import Snapshot, columns_of, stopping_rows

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

    A UserError where features or scores are infinite, not a number, or outside [0, 1].
    """
    contract, clock = project.contract, [time.perf_counter()]
    train, test = pq.read_table(snapshot.train_path), pq.read_table(snapshot.test_path)
    columns, inputs = columns_of(train), columns_of(train.select(list(contract.inputs)))
    features: FeatureBuilder = user_module("features").Features.fit(inputs)
    matrix = checked_features(features, inputs)
    clock.append(time.perf_counter())
    model: Model = user_module("model").Model(project.parameters)
    labels = columns[contract.target].astype(float)
    model.fit(matrix, labels, stopping_rows(columns[contract.time]))
    clock.append(time.perf_counter())
    rows = np.sort(np.random.default_rng(0).permutation(train.num_rows)[:SAMPLE])
    sample = train.take(rows).append_column(SCORE, pa.array(checked_scores(model, matrix[rows])))
    unseen = checked_features(features, columns_of(test.select(list(contract.inputs))))
    scores = checked_scores(model, unseen)
    scored = test.append_column(SCORE, pa.array(scores))
    clock.append(time.perf_counter())
    truth, ones = columns_of(test)[contract.target].astype(float), np.ones(len(scores))
    metrics = {"roc_auc": roc_auc(truth, scores, ones), "log_loss": log_loss(truth, scores, ones)}
    seconds = dict(zip(("features", "fit", "score"), np.diff(clock).round(2).tolist(), strict=True))
    return Trained(features, model, sample, scored, metrics, seconds)


def checked_features(features: FeatureBuilder, columns: Columns) -> Floats:
    """Return the feature matrix, refusing infinity and a wrong shape by the feature's name."""
    matrix, where = features.transform(columns), "features.Features.transform"
    shape = len(next(iter(columns.values()))), len(features.names)
    if matrix.shape != shape:
        raise UserError(f"{where}: shape {matrix.shape}, expected {shape}: a column for each name")
    for row, column in np.argwhere(np.isinf(matrix))[:1]:
        raise UserError(f"{where}: `{features.names[column]}` is infinite in row {row + 1}")
    return matrix


def checked_scores(model: Model, matrix: Floats) -> Floats:
    """Return the scores, refusing what is no probability by its row."""
    scores, where = model.predict(matrix), "model.Model.predict"
    if scores.shape != (len(matrix),):
        raise UserError(f"{where}: shape {scores.shape}, expected ({len(matrix)},)")
    for row in np.flatnonzero(~((scores >= 0) & (scores <= 1)))[:1]:
        why = "is no probability; look at the learning curve and the labels"
        raise UserError(f"{where}: {scores[row]} in row {row + 1} {why}")
    return scores
