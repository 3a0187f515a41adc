"""Fit features and model on training rows, score every row the gates will look at, and measure.

Metrics of a binary classifier have intervals that respect days. Rows of one day share weather and
congestion: resampling single rows would make intervals far too narrow. Days are resampled instead
(cluster bootstrap; Field & Welsh 2007, JRSS B 69:369).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model_delivery.project import Project
from model_delivery.protocols import FeatureBuilder, Floats, Model, UserError, user_module
from model_delivery.training.snapshot import Snapshot, stopping_rows

SCORE = "score"
SAMPLE = 20_000
"""Training rows kept with their scores: enough to see an overfit, small enough to keep."""
BINS = 10
RESAMPLES = 200
FEWEST_CLUSTERS, GROUPS = 3, 100  # with fewer, rows are resampled in so many random groups


@dataclass(frozen=True)
class Trained:
    """A fitted pair of features and model, and the rows it has scored."""

    features: FeatureBuilder
    model: Model
    train: pa.Table
    test: pa.Table
    metrics: dict[str, float]


class Estimate(NamedTuple):
    """A metric with its 95 % interval; not-a-number where it is undefined."""

    value: float
    low: float
    high: float


UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))


def fit(project: Project, snapshot: Snapshot) -> Trained:
    """Fit on the snapshot's training rows; those of the test window are only scored."""
    contract = project.contract
    train, test = snapshot.rows("train"), snapshot.rows("test")
    inputs, later = ({n: t[n].to_numpy() for n in contract.inputs} for t in (train, test))
    labels, truth = (t[contract.target].to_numpy().astype(float) for t in (train, test))
    for part, seen in (("training", labels), ("test", truth)):
        if len(np.unique(seen)) < 2:
            same = f"`{contract.target}` is the same in all {len(seen):,} rows of the {part} window"
            raise UserError(f"{same}: nothing can be learned or judged; take another day or target")
    features: FeatureBuilder = user_module("features").Features.fit(inputs)
    matrix = _checked(features.transform(inputs), train.num_rows, features.names)
    for place in np.flatnonzero(np.isnan(matrix).all(axis=0))[:1]:
        never = f"`{features.names[place]}` is not a number in any row to train on"
        raise UserError(f"features.Features.transform: {never}; mend it, or take it out")
    model: Model = user_module("model").Model(project.parameters)
    model.fit(matrix, labels, stopping_rows(inputs[contract.time]))
    rows = np.sort(np.random.default_rng(0).permutation(train.num_rows)[:SAMPLE])
    known = _checked(model.predict(matrix[rows]), len(rows))
    matrix = _checked(features.transform(later), test.num_rows, features.names)
    scores, ones = _checked(model.predict(matrix), test.num_rows), np.ones(test.num_rows)
    sample = train.take(rows).append_column(SCORE, pa.array(known))
    judged = test.append_column(SCORE, pa.array(scores))
    metrics = {"roc_auc": roc_auc(truth, scores, ones), "log_loss": log_loss(truth, scores, ones)}
    return Trained(features, model, sample, judged, metrics)


def roc_auc(labels: Floats, scores: Floats, weights: Floats) -> float:
    """Return the weighted area under the ROC curve, in a seventh of scikit-learn's time."""
    values, places = np.unique(scores, return_inverse=True)
    positive = np.bincount(places, weights * labels, len(values))
    negative = np.bincount(places, weights * (1 - labels), len(values))
    total = positive.sum() * negative.sum()
    if total == 0:
        return float("nan")
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / total)


def log_loss(labels: Floats, scores: Floats, weights: Floats) -> float:
    """Return the weighted mean of the negative log-likelihood, in nats."""
    likelihood = np.where(labels > 0, scores, 1 - scores)
    return float(np.average(-np.log(np.maximum(likelihood, 1e-15)), weights=weights))


def calibration_error(labels: Floats, scores: Floats, weights: Floats) -> float:
    """Return the expected calibration error (Naeini et al. 2015, AAAI), with quantile bins."""
    expected, observed, mass = calibration_curve(labels, scores, weights)
    return float(np.average(np.abs(expected - observed), weights=mass))


def calibration_curve(
    labels: Floats, scores: Floats, weights: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return mean score, share of positives and weight of each non-empty bin."""
    edges = np.quantile(scores, np.linspace(0, 1, BINS + 1)[1:-1])
    bins = np.searchsorted(edges, scores, side="right")
    mass: Floats = np.bincount(bins, weights, BINS).astype(float)
    filled = mass > 0
    expected = np.bincount(bins, weights * scores, BINS)[filled] / mass[filled]
    observed = np.bincount(bins, weights * labels, BINS)[filled] / mass[filled]
    return expected, observed, mass[filled]


def estimate(
    metric: Callable[[Floats, Floats, Floats], float],
    labels: Floats,
    scores: Floats,
    clusters: NDArray[np.generic],
    other: Floats | None = None,
) -> Estimate:
    """Return a metric and its interval; rows of one cluster, such as a day, go together.

    With `other`, another model's scores of the same n rows, it is of the paired difference
    `metric(scores) - metric(other)`. Of so few clusters as a table by months has, none can be
    resampled: their rows go together at random.
    """

    def value(weights: Floats) -> float:
        own = metric(labels, scores, weights)
        return own if other is None else own - metric(labels, other, weights)

    if not len(labels):
        return UNKNOWN
    names, places = np.unique(clusters, return_inverse=True)
    if len(names) < FEWEST_CLUSTERS:
        groups = np.random.default_rng(1).permutation(len(labels)) % GROUPS
        names, places = np.unique(groups, return_inverse=True)
    shares = np.full(len(names), 1 / len(names))
    draws = np.random.default_rng(0).multinomial(len(names), shares, RESAMPLES)
    sampled = np.array([value(draw[places].astype(float)) for draw in draws])
    sampled, point = sampled[np.isfinite(sampled)], value(np.ones(len(labels)))
    if len(sampled) < RESAMPLES / 2 or not np.isfinite(point):
        return Estimate(point, float("nan"), float("nan"))
    return Estimate(point, *np.quantile(sampled, [0.025, 0.975]).tolist())


def _checked(values: Floats, rows: int, names: tuple[str, ...] = ()) -> Floats:
    """Return features or, without `names`, scores; a UserError where the service cannot use one."""
    where = "features.Features.transform" if names else "model.Model.predict"
    shape, found = (rows, len(names)) if names else (rows,), getattr(values, "shape", "none")
    if found != shape:
        raise UserError(f"{where}: {type(values).__name__} of shape {found}, expected {shape}")
    wrong = np.isinf(values) if names else ~((values >= 0) & (values <= 1))
    for row, *column in np.argwhere(wrong)[:1]:
        what = f"`{names[column[0]]}` is infinite" if names else f"{values[row]} is no probability"
        raise UserError(f"{where}: {what}, in row {row + 1}")
    return values
