"""Rounds of load from Locust in a process of its own, and intervals over them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np

from model_delivery.training.metrics import Estimate

Round = dict[str, dict[str, dict[str, Any]]]
"""By target, then `quiet` (one user) or `busy` (all): requests, failures, qps, p50, p95, p99."""
LOCUST = (sys.executable, "-m", "model_delivery.gates.locustfile")
_SLACK_SECONDS = 25
"""How much longer than planned a turn may take, awaiting its last answers, before it hangs."""


class BrokenError(Exception):
    """Locust ended before the rounds of its plan were over; says how."""


def run_rounds(
    plan: dict[str, Any], root: Path, command: Sequence[str] = LOCUST
) -> Generator[Round, None, None]:
    """Yield the rounds of a plan as Locust finishes them; closing the iterator ends Locust.

    Raises
    ------
    BrokenError
        When Locust crashed, hung, or ended early.
    """
    turns = len(plan["targets"]) * plan["rounds"]
    with tempfile.TemporaryFile("w+") as wanted, tempfile.TemporaryFile("w+") as errors:
        json.dump(plan, wanted)
        wanted.seek(0)
        process = subprocess.Popen(
            command, stdin=wanted, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=root
        )
        watchdog = Timer((turns + 2) * (plan["seconds"] + _SLACK_SECONDS), process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            for _ in range(plan["rounds"]):
                yield _round(process.stdout, [target["name"] for target in plan["targets"]])
        except (ValueError, KeyError):
            code = process.wait()
            errors.seek(0)
            said = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
            raise BrokenError(
                f"Locust ended with {code} before its rounds were over: {said}"
            ) from None
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()


def _round(lines: Iterator[str], names: Sequence[str]) -> Round:
    turns = [json.loads(next(lines, "")) for _ in names]
    by_name = {turn.pop("target"): turn for turn in turns}
    return {name: by_name[name] for name in names}


def interval(values: Sequence[float], resamples: int = 2_000) -> Estimate:
    """Return the median over rounds with its 95 % bootstrap interval.

    Rounds are resampled, not requests: those of one round share what the machine was doing.
    Not-a-number in one round makes all three not-a-number.

    Examples
    --------
    >>> interval([2.0, 2.0, 2.0, 2.0])
    Estimate(value=2.0, low=2.0, high=2.0)
    """
    if not values or not np.isfinite(values).all():
        return Estimate(float("nan"), float("nan"), float("nan"))
    draws = np.random.default_rng(0).choice(np.asarray(values), (resamples, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return Estimate(float(np.median(values)), float(low), float(high))


def share(part: int, whole: int) -> Estimate:
    """Return a share with its 95 % interval (Wilson 1927), which is sound near zero.

    Examples
    --------
    >>> round(share(0, 1000).high, 4)
    0.0038
    """
    if whole == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    z, p = 1.96, part / whole
    middle, scale = p + z * z / (2 * whole), 1 + z * z / whole
    half = z * ((p * (1 - p) + z * z / (4 * whole)) / whole) ** 0.5
    return Estimate(p, max(0.0, (middle - half) / scale), (middle + half) / scale)
