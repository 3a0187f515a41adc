"""What the model card says, gathered from contract, lineage, and the verdicts given so far."""

from __future__ import annotations

import tomllib

from model_delivery.bundle.candidate import Candidate, data_verdict
from model_delivery.contract.data import Column
from model_delivery.project import Project
from model_delivery.report.card import Card, card
from model_delivery.report.summary import Data, Report
from model_delivery.report.verdict import Table, Verdict

_BEFORE = ("data", "model")
"""The gates before packaging: a card is about these, and repeatable."""


def model_card(project: Project, candidate: Candidate) -> str:
    """Return the card of a candidate as Markdown."""
    contract, lineage = project.contract, candidate.lineage
    metadata = tomllib.loads((project.root / "pyproject.toml").read_text(encoding="utf-8"))
    columns = ["column", "type", "domain", "unit", "missing"]
    rows = [
        [name, spec.type, _domain(spec), spec.unit or "", _missing(spec)]
        for name, spec in contract.inputs.items()
    ]
    about = Card(
        report=_report(project, candidate),
        description=metadata["project"].get("description", ""),
        task=contract.task,
        target=contract.target,
        inputs=Table(title="Inputs", columns=columns, rows=rows),
        segments=contract.segments,
        rules={rule: f"`{spec.column}` is {spec.is_}" for rule, spec in contract.exclude.items()},
        facts={"trained": lineage["trained"], "features": str(len(lineage["features"]))},
        parameters={name: str(value) for name, value in lineage["parameters"].items()},
    )
    return card(about)


def _report(project: Project, candidate: Candidate) -> Report:
    lineage = candidate.lineage
    manifest = lineage["data"]
    verdicts = [data_verdict(project, lineage["snapshot"]), candidate.verdict("model")]
    given = [verdict for verdict in verdicts if verdict]
    ran = {verdict.gate for verdict in given}
    return Report(
        project=project.package.replace("_", "-"),
        subject=f"sha256:{candidate.digest}",
        event="delivery",
        verdicts=given,
        commit=lineage["commit"] or "",
        branch=lineage["branch"] or "",
        champion="the one in service then" if _compared(candidate.verdict("model")) else None,
        missing=[gate for gate in _BEFORE if gate not in ran],
        data=Data(
            as_of=manifest["as_of"],
            snapshot=lineage["snapshot"],
            spans={part: " to ".join(span) for part, span in manifest["spans"].items()},
            rows=manifest["rows"],
            excluded=manifest["excluded"],
        ),
    )


def _compared(verdict: Verdict | None) -> bool:
    return any(check.name == "champion_difference" for check in (verdict.checks if verdict else ()))


def _domain(column: Column) -> str:
    if column.values is not None:
        return ", ".join(column.values)
    if column.pattern is not None:
        return column.pattern
    bounds = [f"{bound:g}" if bound is not None else "any" for bound in (column.min, column.max)]
    return " to ".join(bounds) if bounds != ["any", "any"] else ""


def _missing(column: Column) -> str:
    return f"at most {column.missing:.1%}" if column.missing else "never"
