"""Whether a candidate may be promoted: by verdicts on these bytes, under today's limits."""

from __future__ import annotations

from model_delivery.bundle.candidate import Candidate, data_verdict
from model_delivery.errors import UserError
from model_delivery.gates import limits_hash
from model_delivery.project import Project
from model_delivery.registry.log import Event
from model_delivery.report.verdict import Event as Trigger
from model_delivery.report.verdict import Outcome, allows_promotion

GATES = ("data", "model", "package", "api", "load")
_COMPARED = ("model", "load")  # the gates that judge beside the champion


def admit(
    project: Project, candidate: Candidate, trigger: Trigger, current: Event | None
) -> dict[str, Outcome]:
    """Return what the gates said of a candidate; a UserError names what speaks against it."""
    as_of, said = str(candidate.lineage["data"]["as_of"]), {}
    if current is not None and as_of < current.as_of:
        raise UserError(
            f"candidate {candidate.short}: its data ends {as_of}, before that of "
            f"{current.release} ({current.as_of}); run `ml ship --as-of {current.as_of}`"
        )
    for gate in GATES:
        data = data_verdict(project, str(candidate.lineage["snapshot"]))
        verdict = data if gate == "data" else candidate.verdict(gate)
        again = f"run `ml check {gate}`"
        if verdict is None:
            raise UserError(f"gate {gate}: no verdict on candidate {candidate.short}; {again}")
        if gate != "data" and verdict.subject != f"sha256:{candidate.digest}":
            raise UserError(f"gate {gate}: its verdict is on another candidate; {again}")
        if verdict.limits != limits_hash(project, gate):
            raise UserError(f"gate {gate}: config/gates.yaml changed after its verdict; {again}")
        if gate in _COMPARED and verdict.against != (current.digest if current else None):
            raise UserError(f"gate {gate}: judged beside another champion than is served; {again}")
        if not allows_promotion(verdict.outcome, trigger):
            why = verdict.decisive.sentence
            raise UserError(f"gate {gate} says {verdict.outcome}, nothing was deployed: {why}")
        said[gate] = verdict.outcome
    return said
