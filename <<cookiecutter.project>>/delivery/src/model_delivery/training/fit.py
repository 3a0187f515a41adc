"""Fit features and model on training rows, and score every row the gates will look at."""

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from model_delivery.project import Project
from model_delivery.protocols import FeatureBuilder, Floats, Model, UserError, user_module
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
    """Fit on the snapshot's training rows; those of the test window are only scored."""
    contract, clock = project.contract, [time.perf_counter()]
    train, test = snapshot.rows("train"), snapshot.rows("test")
    inputs, later = ({n: t[n].to_numpy() for n in contract.inputs} for t in (train, test))
    labels, truth = (t[contract.target].to_numpy().astype(float) for t in (train, test))
    features: FeatureBuilder = user_module("features").Features.fit(inputs)
    matrix = _checked(features.transform(inputs), train.num_rows, features.names)
    clock.append(time.perf_counter())
    model: Model = user_module("model").Model(project.parameters)
    model.fit(matrix, labels, stopping_rows(inputs[contract.time]))
    clock.append(time.perf_counter())
    rows = np.sort(np.random.default_rng(0).permutation(train.num_rows)[:SAMPLE])
    known = _checked(model.predict(matrix[rows]), len(rows))
    matrix = _checked(features.transform(later), test.num_rows, features.names)
    scores, ones = _checked(model.predict(matrix), test.num_rows), np.ones(test.num_rows)
    clock.append(time.perf_counter())
    sample = train.take(rows).append_column(SCORE, pa.array(known))
    judged = test.append_column(SCORE, pa.array(scores))
    metrics = {"roc_auc": roc_auc(truth, scores, ones), "log_loss": log_loss(truth, scores, ones)}
    seconds = dict(zip(("features", "fit", "score"), np.diff(clock).round(2).tolist(), strict=True))
    return Trained(features, model, sample, judged, metrics, seconds)


def _checked(values: Floats, rows: int, names: tuple[str, ...] = ()) -> Floats:
    """Return features or, without `names`, scores; a UserError where the service cannot use one."""
    where = "features.Features.transform" if names else "model.Model.predict"
    shape = (rows, len(names)) if names else (rows,)
    if values.shape != shape:
        raise UserError(f"{where}: shape {values.shape}, expected {shape}")
    wrong = np.isinf(values) if names else ~((values >= 0) & (values <= 1))
    for row, *column in np.argwhere(wrong)[:1]:
        what = f"`{names[column[0]]}` is infinite" if names else f"{values[row]} is no probability"
        raise UserError(f"{where}: {what}, in row {row + 1}")
    return values
