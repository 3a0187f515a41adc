"""Gates: each turns values and limits into checks, and checks into a verdict."""

from typing import Literal, get_args

from model_delivery.contract.settings import Limit
from model_delivery.files import sha256_json
from model_delivery.project import Project
from model_delivery.report.verdict import Check, Outcome, finite
from model_delivery.training.scores import Estimate

Gate = Literal["data", "model", "package", "api", "load"]
GATES: tuple[Gate, ...] = get_args(Gate)
COMPARED = ("model", "load")
"""The gates that judge beside the champion."""


def judge(name: str, limit: Limit, value: float | Estimate | None, sentence: str) -> Check:
    """Judge a value, an estimate by its own; what is no number is never a pass."""
    low = high = None
    if isinstance(value, Estimate):
        value, low, high = value
    if not finite(value):
        why = f"{sentence}: no number came out, so it cannot be judged"
        return Check(name=name, outcome=Outcome.INCONCLUSIVE, sentence=why, limit=str(limit))
    outcome = Outcome.PASS if limit.holds(value) else Outcome(limit.outcome)
    found = {"value": value, "low": low, "high": high}
    numbers = {key: float(number) for key, number in found.items() if finite(number)}
    return Check(name=name, outcome=outcome, sentence=sentence, limit=str(limit), **numbers)


def limits_hash(project: Project, gate: str) -> str:
    """Return the SHA-256 that names what a gate judges by: its limits, and the data contract."""
    limits, contract = project.gates.model_dump(mode="json"), project.contract.model_dump()
    return sha256_json([limits.get(gate), limits["deepchecks"].get(gate), contract])
