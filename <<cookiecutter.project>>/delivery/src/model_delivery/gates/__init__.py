"""Gates: each turns values and limits into checks, and checks into a verdict."""

from typing import Any, Literal, get_args

from model_delivery.contract.settings import Limit
from model_delivery.files import sha256_json
from model_delivery.project import Project
from model_delivery.report.verdict import Check, Outcome, finite
from model_delivery.training.metrics import Estimate

Gate = Literal["data", "model", "package", "api", "load"]
GATES: tuple[Gate, ...] = get_args(Gate)
COMPARED = ("model", "load")
"""The gates that judge beside the champion."""


def judge(name: str, limit: Limit, value: float | Estimate | None, sentence: str) -> Check:
    """Judge a value, an estimate by its own; what is no number is never a pass."""
    low = high = None
    if isinstance(value, Estimate):
        value, low, high = value
    check = Check(name=name, outcome=Outcome.INCONCLUSIVE, sentence=sentence, limit=str(limit))
    if not finite(value):
        why = f"{sentence}: no number came out, so it cannot be judged"
        return check.model_copy(update={"sentence": why})
    outcome = Outcome.PASS if limit.holds(value) else Outcome(limit.outcome)
    ends = {name: end for name, end in (("low", low), ("high", high)) if finite(end)}
    return check.model_copy(update={"outcome": outcome, "value": float(value), **ends})


def quality(manifest: dict[str, Any], checks: list[Check]) -> list[Check]:
    """Return checks of rows; where those were drawn, no limit that breaks is more than a warning.

    What has no limit, as the contract's structure, counts on drawn rows too.
    """
    for place, check in enumerate(checks if manifest.get("sample") else ()):
        if check.limit and check.outcome is not Outcome.PASS:
            said = f"not judged on sample rows: {check.sentence}"
            checks[place] = check.model_copy(update={"outcome": Outcome.WARN, "sentence": said})
    return checks


def limits_hash(project: Project, gate: str) -> str:
    """Return the SHA-256 that names what a gate judges by: its limits, and the data contract."""
    limits, contract = project.gates.model_dump(mode="json"), project.contract.model_dump()
    return sha256_json([limits.get(gate), limits["deepchecks"].get(gate), contract])
