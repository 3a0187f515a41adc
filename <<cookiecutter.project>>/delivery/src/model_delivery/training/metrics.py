"""Metrics of a binary classifier, with intervals that respect days.

Rows of one day share weather and congestion: resampling single rows would make intervals far
too narrow. Days are resampled instead (cluster bootstrap; Field & Welsh 2007, JRSS B 69:369).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_delivery.protocols import Floats

BINS = 10
RESAMPLES = 200


class Estimate(NamedTuple):
    """A metric with its 95 % interval; not-a-number where it is undefined."""

    value: float
    low: float
    high: float


UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))


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
    `metric(scores) - metric(other)`.
    """

    def value(weights: Floats) -> float:
        own = metric(labels, scores, weights)
        return own if other is None else own - metric(labels, other, weights)

    names, places = np.unique(clusters, return_inverse=True)
    shares = np.full(len(names), 1 / max(len(names), 1))
    draws = np.random.default_rng(0).multinomial(len(names), shares, RESAMPLES)
    sampled = np.array([value(draw[places].astype(float)) for draw in draws])
    sampled, point = sampled[np.isfinite(sampled)], value(np.ones(len(labels)))
    if len(sampled) < RESAMPLES / 2 or not np.isfinite(point):
        return Estimate(point, float("nan"), float("nan"))
    return Estimate(point, *np.quantile(sampled, [0.025, 0.975]).tolist())
