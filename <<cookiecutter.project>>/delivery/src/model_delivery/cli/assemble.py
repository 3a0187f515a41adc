"""Gather what a report says of the current data and candidate, and write its renderings."""

from __future__ import annotations

import os
from pathlib import Path

from model_delivery.bundle.candidate import Candidate, candidate_folder, data_verdict
from model_delivery.cli.stages import GATES
from model_delivery.errors import UserError
from model_delivery.files import write_atomic
from model_delivery.project import Project
from model_delivery.registry.champion import champion
from model_delivery.report.html import html
from model_delivery.report.markdown import markdown
from model_delivery.report.summary import Data, Report
from model_delivery.report.verdict import Event, Verdict, allows_promotion
from model_delivery.training.snapshot import CURRENT as SNAPSHOT
from model_delivery.training.snapshot import Snapshot

_LATER = "Later gates did not run: an earlier one does not allow it."


def write_report(project: Project, event: Event) -> tuple[Path, Path]:
    """Write `report.html`, `report.md` and, for programs, `report.json`; return the first two.

    Raises
    ------
    UserError
        When there is no verdict yet to report on.
    """
    report = assemble(project, event)
    folder = project.work / "report"
    page, text = folder / "report.html", folder / "report.md"
    write_atomic(folder / "report.json", report.model_dump_json(indent=2))
    write_atomic(page, html(report))
    write_atomic(text, markdown(report))
    return page, text


def assemble(project: Project, event: Event) -> Report:
    """Return the report on the current data and candidate, or on a refused extraction."""
    refusal = project.work / "refused.json"
    if refusal.exists():
        verdict = Verdict.read(refusal.read_text())
        return _report(project, event, None, None, [verdict])
    snapshot = _current_snapshot(project)
    verdicts = [data_verdict(project, snapshot.name)] if snapshot else []
    candidate = _current_candidate(project, snapshot)
    if candidate:
        verdicts += [candidate.verdict(gate) for gate in GATES if gate != "data"]
    found = [verdict for verdict in verdicts if verdict]
    if not found:
        raise UserError("nothing to report yet; run `ml ship`")
    return _report(project, event, snapshot, candidate, found)


def _report(
    project: Project,
    event: Event,
    snapshot: Snapshot | None,
    candidate: Candidate | None,
    verdicts: list[Verdict],
) -> Report:
    old = champion(project)
    lineage = candidate.lineage if candidate else {}
    went_on = all(allows_promotion(verdict.outcome, event) for verdict in verdicts)
    ran = {verdict.gate for verdict in verdicts}
    absent = [gate for gate in GATES if gate not in ran]
    return Report(
        project=project.root.name,
        subject=f"sha256:{candidate.digest}" if candidate else verdicts[0].subject,
        event=event,
        verdicts=verdicts,
        commit=lineage.get("commit") or "",
        branch=os.environ.get("GITHUB_HEAD_REF") or lineage.get("branch") or "",
        data=_data(snapshot) if snapshot else None,
        champion=old.short if old else None,
        missing=absent if went_on else [],
        notes=[] if went_on or not absent else [_LATER],
    )


def _data(snapshot: Snapshot) -> Data:
    manifest = snapshot.manifest
    return Data(
        as_of=manifest["as_of"],
        snapshot=snapshot.name,
        spans={part: f"{first} to {last}" for part, (first, last) in manifest["spans"].items()},
        rows=manifest["rows"],
        excluded=manifest["excluded"],
    )


def _current_snapshot(project: Project) -> Snapshot | None:
    pointer = project.work / SNAPSHOT
    return Snapshot(project.work / "data" / pointer.read_text()) if pointer.exists() else None


def _current_candidate(project: Project, snapshot: Snapshot | None) -> Candidate | None:
    """Return the current candidate if it was trained on the current snapshot."""
    pointer = project.work / "candidate"
    if snapshot is None or not pointer.exists():
        return None
    candidate = Candidate(candidate_folder(project, pointer.read_text().strip()))
    return candidate if candidate.lineage["snapshot"] == snapshot.name else None
