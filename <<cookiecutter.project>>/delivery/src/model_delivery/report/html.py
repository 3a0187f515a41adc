"""A report as one HTML file that needs nothing else: no script, no font, no picture."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from model_delivery.report import summary, text
from model_delivery.report.charts import domain, figure, interval
from model_delivery.report.summary import Finding, Report
from model_delivery.report.verdict import Check, Outcome, Table, Verdict, decide

LIMIT = 300_000
"""The most bytes of a page."""
_PAGE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
_LEGEND = """<p class="legend">Bars: a dot is the value, a square a value that broke its limit; the
whisker its 95 % interval; the upright line the limit, shaded where it is kept; the hollow diamond
the champion.</p>"""
_FOLDED = 20
"""Rows above which a table is folded; a browser unfolds it without a script."""
_COLUMNS = ("outcome", "check", "finding", "value", "limit", "bar", "against champion")


def html(report: Report) -> str:
    """Return a page of at most `LIMIT` bytes; what was left out is counted in words."""
    title = f"{_text(report.project)}: {report.outcome}"
    for most in (200, 60, 20, 8, 3, 1):
        body = "\n".join(filter(None, _sections(report, most)))
        page = _PAGE.substitute(title=title, body=body)
        if len(page.encode()) <= LIMIT:
            break
    return page


def _text(value: Any) -> str:
    return escape(text.clean(value))


def _code(value: Any) -> str:
    return f"<code>{_text(value)}</code>"


def _sentence(value: str) -> str:
    return text.sentence(value, _code, escape)


def _more(count: int, noun: str) -> str:
    return f"<p>{text.more(count, noun)}</p>" if count > 0 else ""


def _sections(report: Report, most: int) -> Iterator[str]:
    yield _header(report)
    decided = [(verdict, summary.decisive(verdict)) for verdict in report.gates]
    yield _checks(report, decided, 40) + _LEGEND
    first = {id(check) for _, check in decided}
    others = [pair for pair in report.findings if id(pair[1]) not in first]
    yield '<h2 class="minor">Also not passed</h2>' + _checks(report, others, most) if others else ""
    yield _list("Lowered limits", report.lowered_limits, most)
    yield _list("Notes", report.notes, most)
    yield from (_gate(report, verdict, most) for verdict in report.gates[:most])
    yield _more(len(report.gates) - most, "gate")
    safe = [
        (n, u) for n, u in report.links.items() if re.fullmatch(r"https://[^\s<>\"']{1,400}", u)
    ]
    links = [f'<a href="{escape(url)}">{_text(name)}</a>' for name, url in safe[:most]]
    yield f"<footer>{' · '.join(links)}</footer>" if links else ""


def _header(report: Report) -> str:
    facts = [*report.facts, *(report.data.facts if report.data else [])]
    cells = [
        f"<div{' class=long' if len(v) > 36 else ''}><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>"
        for k, v in facts
        if v
    ]
    because = ""
    for verdict, check in report.reasons[:1]:
        value = f"{escape(summary.value_of(check)[0])}, limit {escape(summary.limit_text(check))}"
        said = (f"<b>{value}</b>. " if check.limit else "") + _sentence(check.sentence)
        which = f"Gate {_text(verdict.gate)}, {_code(check.name)}"
        because = f'<p class="because">{which}: {said}</p>'
    about = f"{_text(report.project)} · {report.event.replace('_', ' ')} report"
    return (
        f'<header class="{report.outcome}"><p class="kicker">{about} {_badge(report.outcome)}</p>'
        f"<h1>{report.headline}</h1>{because}<dl>{''.join(cells)}</dl></header>"
    )


def _badge(outcome: Outcome, raw: Outcome | None = None) -> str:
    was = f" <small>({raw})</small>" if raw not in (None, outcome) else ""
    return f'<span class="badge {outcome}"><i>{summary.SYMBOL[outcome]}</i> {outcome}{was}</span>'


def _checks(report: Report, pairs: Sequence[Finding], most: int, own: bool = False) -> str:
    """Return a table of checks that a narrow screen shows as one card each."""
    champion = any(check.champion is not None for _, check in pairs)
    columns, rows = _COLUMNS if champion else _COLUMNS[:-1], []
    for verdict, check in pairs[:most]:
        tags = zip(columns, _cells(report, verdict, check, own), strict=False)
        row = [f'<td class="{c.split()[0]}" data-l="{c}">{cell}</td>' for c, cell in tags]
        passed = check.outcome is Outcome.PASS
        rows.append(f"<tr{'' if passed else ' class=found'}>{''.join(row)}</tr>")
    heads = [
        f'<th scope="col" class="{c.split()[0]}">{c if c != "bar" else "value and limit"}</th>'
        for c in columns
    ]
    return (
        f'<table class="cards"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>{_more(len(pairs) - most, 'check')}"
    )


def _cells(report: Report, verdict: Verdict, check: Check, own: bool) -> list[str]:
    decided = decide(check.outcome, report.event)
    value, ends = summary.value_of(check)
    return [
        _badge(decided, check.outcome),
        ("" if own else f'<a href="#{_anchor(verdict)}">{_text(verdict.gate)}</a> ')
        + _code(check.name),
        _sentence(check.sentence),
        escape(value) + (f" <small>{ends}</small>" if ends else ""),
        escape(summary.limit_text(check)),
        _bar(check, decided),
        escape(summary.change_of(check)),
    ]


def _anchor(verdict: Verdict) -> str:
    return "gate-" + re.sub(r"[^a-z0-9]+", "-", verdict.gate.lower()[:60])


def _bar(check: Check, mark: Outcome) -> str:
    limit, value = summary.limit_of(check), check.value
    if limit is None or not isinstance(value, float):
        return ""
    zero = [0.0] if limit[0] == "≤" else []  # what should be small is seen against nothing at all
    span = domain([value, check.low, check.high, limit[1], check.champion, *zero])
    return interval(span, (value, check.low, check.high), check.champion, limit, mark)


def _list(title: str, items: Sequence[str], most: int) -> str:
    lines = "".join(f"<li>{_sentence(item)}</li>" for item in items[:most])
    shown = f'<h2 class="minor">{title}</h2><ul>{lines}</ul>'
    return shown + _more(len(items) - most, "line") if items else ""


def _gate(report: Report, verdict: Verdict, most: int) -> str:
    ran = f"{verdict.seconds:.0f} s, {_text(text.moment(verdict.finished))}, limits "
    small = f"<small>{ran}{_code(verdict.limits[:12])}</small>" if verdict.finished else ""
    title = f"<h2>Gate {_text(verdict.gate)} {small}</h2>"
    charts, tables = verdict.charts[: min(most, 12)], verdict.tables[:most]
    shown = [*map(figure, charts), *(_table(table, most) for table in tables)]
    return (
        f'<section id="{_anchor(verdict)}">{title}'
        + _checks(report, [(verdict, check) for check in verdict.checks], most, own=True)
        + (f'<div class="figures">{"".join(shown)}</div>' if shown else "")
        + _more(len(verdict.charts) - len(charts), "chart")
        + _more(len(verdict.tables) - len(tables), "table")
        + "</section>"
    )


def _table(table: Table, most: int) -> str:
    """Return a table; where its columns say `low` and `high`, each row also gets a whisker."""
    columns, rows, numeric = text.cells(table, 16, most)
    sides = [" class=n" if right else "" for right in numeric]
    heads = [f"<th scope=col{s}>{escape(c)}" for s, c in zip(sides, columns, strict=True)]
    lines = [[f"<td{s}>{escape(t)}" for s, t in zip(sides, row, strict=True)] for row in rows]
    marks = _marks(table, most)
    heads += ["<th>"] if marks else []
    for row, mark in zip(lines, marks, strict=False):
        row.append(f"<td class=bar>{mark}")
    body = "".join(f"<tr>{''.join(line)}" for line in [heads, *lines])
    title, hidden = _text(table.title), _more(len(table.rows) - most, "row")
    shown = f"<div class=scroll><table class=data>{body}</table></div>{hidden}"
    if len(rows) <= _FOLDED:
        return f"<div class=table><h3>{title}</h3>{shown}</div>"
    count = text.plural(len(table.rows), "row")
    return f"<details class=table><summary>{title}, {count}</summary>{shown}</details>"


def _marks(table: Table, most: int) -> list[str]:
    """Return a whisker for each row, all on one axis; the value's column stands left of `low`."""
    at = {name.lower(): place for place, name in enumerate(table.columns)}
    if "low" not in at or "high" not in at or at["low"] == 0:
        return []
    places = (at["low"] - 1, at["low"], at["high"], at.get("champion", len(at)))
    rows = table.rows[:most]
    lines = [[r[p] if p < len(r) and text.is_number(r[p]) else None for p in places] for r in rows]
    span = domain(value for line in lines for value in line)
    return [interval(span, (value, low, high), champion) for value, low, high, champion in lines]
