"""Turn values and limits into checks, and checks into a verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from model_delivery.contract.settings import Limit
from model_delivery.files import sha256_json
from model_delivery.project import Project
from model_delivery.report.verdict import Chart, Check, Outcome, Table, Verdict, finite
from model_delivery.training.metrics import Estimate


def judge(name: str, limit: Limit, value: float | None, sentence: str, **more: Any) -> Check:
    """Judge a value: within the limit `pass`, beyond it the limit's outcome, unknown never a pass.

    Parameters
    ----------
    more
        Further fields of the check: `low`, `high`, `champion`.
    """
    if not finite(value):
        outcome, value = Outcome.INCONCLUSIVE, None
        sentence = f"{sentence}: no number came out, so it cannot be judged"
    else:
        assert value is not None
        outcome = Outcome.PASS if limit.holds(value) else Outcome(limit.outcome)
    more = {key: number if finite(number) else None for key, number in more.items()}
    return Check(
        name=name, outcome=outcome, sentence=sentence, value=value, limit=str(limit), **more
    )


def judge_estimate(
    name: str, limit: Limit, estimate: Estimate, sentence: str, champion: float | None = None
) -> Check:
    """Judge an estimate by its value, and show its interval."""
    bounds = {"low": estimate.low, "high": estimate.high, "champion": champion}
    return judge(name, limit, estimate.value, sentence, **bounds)


def fixed(name: str, kept: bool, sentence: str, value: float | str | None = None) -> Check:
    """Return a check without a limit of its own: what must hold, else `stop`."""
    outcome = Outcome.PASS if kept else Outcome.STOP
    return Check(name=name, outcome=outcome, sentence=sentence, value=value)


def make_verdict(
    gate: str,
    subject: str,
    limits: Sequence[BaseModel],
    checks: list[Check],
    started: float,
    tables: Sequence[Table] = (),
    charts: Sequence[Chart] = (),
) -> Verdict:
    """Return the verdict; `started` is a reading of `time.perf_counter()`."""
    return Verdict(
        gate=gate,
        subject=f"sha256:{subject}",
        limits=limits_hash(limits),
        checks=checks,
        tables=list(tables),
        charts=list(charts),
        seconds=round(time.perf_counter() - started, 2),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def limits_of(project: Project, gate: str) -> list[BaseModel]:
    """Return the sections of `config/gates.yaml` that a gate judges by."""
    gates = project.gates
    deep = [gates.deepchecks] if gate in ("data", "model") else []
    return [getattr(gates, gate), *deep]


def limits_hash(limits: Sequence[BaseModel]) -> str:
    """Return the SHA-256 that names the limits a verdict was given under."""
    values = [section.model_dump(mode="json") for section in limits]
    return sha256_json(values)
