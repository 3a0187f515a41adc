"""Gather what a report says of the current data and candidate, and write its renderings."""

import os
from pathlib import Path
from typing import Any

from model_delivery.bundle.candidate import CURRENT, Candidate, candidate_folder, data_verdict
from model_delivery.bundle.package import rows_of
from model_delivery.errors import UserError
from model_delivery.files import write_atomic
from model_delivery.gates import GATES
from model_delivery.project import Project
from model_delivery.registry.champion import champion
from model_delivery.report.render import render
from model_delivery.report.verdict import Event, Report, Verdict, allows_promotion
from model_delivery.training.snapshot import current_snapshot


def write_report(project: Project, event: Event) -> tuple[Path, Path]:
    """Write `report.html`, `report.md` and, for programs, `report.json`; return the first two."""
    refusal = project.work / "refused.json"
    refused = [Verdict.read(refusal.read_text())] if refusal.exists() else []
    facts: dict[str, Any] = {"verdicts": refused} if refused else _facts(project)
    verdicts = facts["verdicts"]
    facts.setdefault("subject", verdicts[-1].subject)
    old = champion(project)
    if old and facts["subject"] != f"sha256:{old.digest}":  # after a deploy it is the champion
        facts["champion"] = old.short
    left = [gate for gate in GATES if gate not in {verdict.gate for verdict in verdicts}]
    if all(allows_promotion(verdict.outcome, event) for verdict in verdicts):
        verdicts += [Verdict(gate=gate, subject=facts["subject"], limits="") for gate in left]
    elif left:
        facts["notes"] = ["Later gates did not run: an earlier one does not allow it."]
    report = Report(project=project.root.name, event=event, **facts)
    folder = project.work / "report"
    write_atomic(folder / "report.json", report.model_dump_json(indent=2))
    for name in ("report.html", "report.md"):
        write_atomic(folder / name, render(name, report))
    return folder / "report.html", folder / "report.md"


def _facts(project: Project) -> dict[str, Any]:
    """Return verdicts, rows and lineage of the snapshot and of the candidate trained on it."""
    snapshot = current_snapshot(project)
    facts: dict[str, Any] = {"data": rows_of(snapshot.name, snapshot.manifest)}
    found = [data_verdict(project, snapshot.name)]
    pointer = project.work / CURRENT
    if pointer.exists():
        candidate = Candidate(candidate_folder(project, pointer.read_text().strip()))
        lineage = candidate.lineage
        if lineage["snapshot"] == snapshot.name:
            found += [candidate.verdict(gate) for gate in GATES if gate != "data"]
            branch = os.environ.get("GITHUB_HEAD_REF") or lineage["branch"] or ""
            facts |= {"commit": lineage["commit"] or "", "branch": branch}
            facts["subject"] = f"sha256:{candidate.digest}"
    facts["verdicts"] = [verdict for verdict in found if verdict]
    if not facts["verdicts"]:
        raise UserError("nothing to report yet; run `ml ship`")
    return facts
