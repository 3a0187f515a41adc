"""Metrics of a binary classifier, with intervals that respect days.

Rows of one day share weather and congestion: resampling single rows would make intervals far
too narrow. Days are resampled instead (cluster bootstrap; Field & Welsh 2007, JRSS B 69:369).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_delivery.protocols import Floats

BINS = 10
_SMALLEST = 1e-15


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval; not-a-number where it is undefined."""

    value: float
    low: float
    high: float


Metric = Callable[[Floats, Floats, Floats], float]
"""Labels, scores and weights of n rows to one number."""


def roc_auc(labels: Floats, scores: Floats, weights: Floats) -> float:
    """Return the weighted area under the ROC curve; ties count half.

    Examples
    --------
    >>> one = np.ones(4)
    >>> roc_auc(np.array([0.0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]), one)
    0.75
    """
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
    return float(np.average(-np.log(np.maximum(likelihood, _SMALLEST)), weights=weights))


def calibration_error(labels: Floats, scores: Floats, weights: Floats) -> float:
    """Return the expected calibration error over ten bins with equally many rows.

    Naeini, Cooper & Hauskrecht 2015 (AAAI), with quantile bins.
    """
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
    metric: Metric,
    labels: Floats,
    scores: Floats,
    clusters: NDArray[np.generic],
    *,
    other: Floats | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> Estimate:
    """Return a metric and the 2.5 % and 97.5 % quantiles over resampled clusters.

    Parameters
    ----------
    labels, scores
        Shape (n,).
    clusters
        Shape (n,): rows with equal values are resampled together, for example their day.
    other
        Shape (n,): scores of another model on the same rows. The estimate is then of the
        difference `metric(scores) - metric(other)`, paired in every resample.
    """

    def value(weights: Floats) -> float:
        own = metric(labels, scores, weights)
        return own if other is None else own - metric(labels, other, weights)

    _, places = np.unique(clusters, return_inverse=True)
    count = int(places.max(initial=-1)) + 1
    random = np.random.default_rng(seed)
    draws = random.multinomial(count, np.full(count, 1 / count), size=resamples)
    sampled = np.array([value(draw[places].astype(float)) for draw in draws])
    sampled = sampled[np.isfinite(sampled)]
    point = value(np.ones(len(labels)))
    if len(sampled) < resamples / 2 or not np.isfinite(point):
        return Estimate(point, float("nan"), float("nan"))
    low, high = np.quantile(sampled, [0.025, 0.975])
    return Estimate(point, float(low), float(high))
