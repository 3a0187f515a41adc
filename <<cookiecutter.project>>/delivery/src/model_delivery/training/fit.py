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
from model_delivery.training.snapshot import Snapshot, columns_of
from model_delivery.training.split import stopping_rows

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

    Raises
    ------
    UserError
        When features or scores are not what the service can use: infinite, not a number,
        or outside [0, 1].
    """
    started = time.perf_counter()
    contract = project.contract
    train, test = pq.read_table(snapshot.train_path), pq.read_table(snapshot.test_path)
    columns, target = columns_of(train), contract.target
    times = columns[contract.time]
    inputs = {name: columns[name] for name in contract.inputs}
    features: FeatureBuilder = user_module("features").Features.fit(inputs)
    matrix = checked_features(features, inputs)
    labels = columns[target].astype(float)
    prepared = time.perf_counter()
    model: Model = user_module("model").Model(project.parameters)
    model.fit(matrix, labels, stopping_rows(times))
    fitted = time.perf_counter()
    rows = np.sort(np.random.default_rng(0).permutation(train.num_rows)[:SAMPLE])
    own = checked_scores(model, matrix[rows])
    later = columns_of(test)
    truth, inputs = later[target].astype(float), {name: later[name] for name in contract.inputs}
    scores = checked_scores(model, checked_features(features, inputs))
    ones = np.ones(len(scores))
    metrics = {"roc_auc": roc_auc(truth, scores, ones), "log_loss": log_loss(truth, scores, ones)}
    sample = train.take(rows).append_column(SCORE, pa.array(own))
    scored = test.append_column(SCORE, pa.array(scores))
    seconds = {"features": prepared - started, "fit": fitted - prepared}
    seconds["score"] = time.perf_counter() - fitted
    return Trained(features, model, sample, scored, metrics, seconds)


def checked_features(features: FeatureBuilder, columns: Columns) -> Floats:
    """Return the feature matrix, refusing infinity and a wrong shape by the feature's name."""
    matrix = features.transform(columns)
    rows = len(next(iter(columns.values())))
    if matrix.shape != (rows, len(features.names)):
        raise UserError(
            f"features.Features.transform: shape {matrix.shape}, expected "
            f"({rows}, {len(features.names)}): one column for each of `names`"
        )
    wild = np.isinf(matrix)
    if wild.any():
        row, column = np.argwhere(wild)[0]
        raise UserError(
            f"features.Features.transform: `{features.names[column]}` is infinite in row {row + 1}"
        )
    return matrix


def checked_scores(model: Model, matrix: Floats) -> Floats:
    """Return the scores, refusing what is no probability by its row."""
    scores = model.predict(matrix)
    if scores.shape != (len(matrix),):
        raise UserError(f"model.Model.predict: shape {scores.shape}, expected ({len(matrix)},)")
    wrong = ~((scores >= 0) & (scores <= 1))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"model.Model.predict: {scores[row]} in row {row + 1} is no probability; "
            "look at the learning curve and the labels"
        )
    return scores
