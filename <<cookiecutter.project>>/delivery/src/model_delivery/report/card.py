"""The model card, in the sections of Mitchell et al. 2019 (doi:10.1145/3287560.3287596)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from model_delivery.report.markdown import bullets, code, grid, join, prose, sentence, table
from model_delivery.report.summary import Report, change_of, limit_text, value_of
from model_delivery.report.verdict import Form, Table

_MOST = 200


class Card(Form):
    """What a card says beside the report: from the contract and the lineage.

    `inputs` is a table of what a request carries, `rules` says in words which rows each
    exclusion takes out, `facts` holds what else is known of the training run by name.
    """

    report: Report
    description: str
    task: str
    target: str
    inputs: Table
    segments: list[str] = Field(default_factory=list)
    rules: dict[str, str] = Field(default_factory=dict)
    facts: dict[str, str] = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)
    owner: str = ""
    licence: str = ""


def card(about: Card) -> str:
    """Return the model card as Markdown."""
    title = f"# Model card: {prose(about.report.project)}"
    sections = [f"## {name}\n\n{join(blocks)}" for name, blocks in _sections(about)]
    return join([title, *sections]) + "\n"


def _sections(about: Card) -> Iterator[tuple[str, list[str]]]:
    report = about.report
    known = (*report.facts, *about.facts.items())
    facts = [f"{k}: {prose(v) if ' ' in v else code(v)}" for k, v in known]
    facts += [
        f"{k}: {prose(v)}" for k, v in (("owner", about.owner), ("licence", about.licence)) if v
    ]
    settings = ", ".join(f"{code(k)} {prose(v)}" for k, v in about.parameters.items())
    yield (
        "Model details",
        [prose(about.description), bullets("", facts), f"Parameters: {settings}."],
    )
    yield "Intended use", [*_use(about), table(about.inputs, _MOST)]
    named = ", ".join(map(code, about.segments))
    yield "Factors", [f"Results are also judged by {named}." if named else "No segments are named."]
    yield "Metrics", [_metrics(report)]
    yield "Evaluation data", [_rows(report, "test")]
    yield "Training data", [_rows(report, "train"), _excluded(about)]
    yield "Quantitative analyses", _analyses(report)
    yield "Ethical considerations", [_ethics(named)]
    yield "Caveats and recommendations", _caveats(about)


def _use(about: Card) -> list[str]:
    what = {"binary": f"the probability that {code(about.target)} is true"}
    answer = what.get(about.task, f"{code(about.target)}")
    return [
        f"For one row, the model gives {answer}. A row outside the domains below is refused.",
        _excluded(about),
    ]


def _excluded(about: Card) -> str:
    counts = about.report.data.excluded if about.report.data else {}
    said = []
    for rule, count in counts.items():
        where = f", where {sentence(about.rules[rule])}" if rule in about.rules else ""
        said.append(f"{prose(rule)} ({count:,}{where})")
    if not said:
        return ""
    return f"Rows excluded before training: {'; '.join(said)}: the score says nothing about them."


def _rows(report: Report, part: str) -> str:
    facts = dict(report.data.facts) if report.data else {}
    said = [facts.get(part), f"known before {facts['known before']}" if facts else ""]
    return prose(", ".join(filter(None, said)) or "not recorded") + "."


def _metrics(report: Report) -> str:
    rows = []
    for check in [c for v in report.gates if v.gate == "model" for c in v.checks]:
        value, ends = value_of(check)
        shown = [prose(value), ends or "–", prose(limit_text(check) or "–"), check.outcome.value]
        rows.append([code(check.name), *shown, change_of(check) or "–", sentence(check.sentence)])
    columns = ["metric", "value", "95 % interval", "limit", "outcome", "against champion", ""]
    return grid(columns, rows) if rows else "The gate `model` has not judged this candidate."


def _analyses(report: Report) -> list[str]:
    tables = [table(t, _MOST) for v in report.gates if v.gate == "model" for t in v.tables]
    return [*tables, "Each column is analysed alone; combinations of columns are not."]


def _ethics(named: str) -> str:
    return (
        f"Groups are compared only by the segments above ({named or 'none'}). No gate judges what "
        "a decision based on the score does to people: whoever uses it must."
    )


def _caveats(about: Card) -> list[str]:
    report = about.report
    found = [f"{code(v.gate)} {code(c.name)}: {sentence(c.sentence)}" for v, c in report.findings]
    items = [*found, *map(sentence, report.notes), *map(sentence, report.lowered_limits)]
    general = "The results hold for data like the evaluation rows; watch drift, and train again."
    return [bullets("", items[:_MOST], len(items) - _MOST), general]
