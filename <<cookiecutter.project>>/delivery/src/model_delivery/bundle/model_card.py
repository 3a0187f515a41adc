"""What the model card says, gathered from contract, lineage, and the verdicts given so far."""

from __future__ import annotations

import tomllib
from typing import Any

from model_delivery.bundle.candidate import Candidate, data_verdict
from model_delivery.project import Project
from model_delivery.report.render import render
from model_delivery.report.verdict import Report, Verdict


def model_card(project: Project, candidate: Candidate) -> str:
    """Return the card of a candidate as Markdown; it is about the gates before packaging."""
    subject, lineage = f"sha256:{candidate.digest}", candidate.lineage
    found = [data_verdict(project, lineage["snapshot"]), candidate.verdict("model")]
    gates = zip(("data", "model"), found, strict=True)
    report = Report(
        project=project.package.replace("_", "-"),
        subject=subject,
        event="delivery",
        verdicts=[v or Verdict(gate=gate, subject=subject, limits="") for gate, v in gates],
        commit=lineage["commit"] or "",
        branch=lineage["branch"] or "",
        data=rows_of(lineage["snapshot"], lineage["data"]),
    )
    about = tomllib.loads((project.root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return render("card.md", report, about=about, contract=project.contract, lineage=lineage)


def rows_of(snapshot: str, manifest: dict[str, Any]) -> dict[str, str]:
    """Return what a report says of the rows in a snapshot, by name."""
    facts = {"known before": manifest["as_of"]}
    for part, count in manifest["rows"].items():
        span = [time.replace("T", " ")[:16] for time in manifest["spans"].get(part, [])]
        facts[part] = f"{' to '.join(span)}, {count:,} rows".lstrip(", ")
    excluded = [f"{rule} ({count:,})" for rule, count in manifest["excluded"].items()]
    return {**facts, "excluded": ", ".join(excluded) or "none", "snapshot": snapshot}
