"""A report as GitHub Markdown: the pull request's comment, the job's summary, release notes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_delivery.report import summary, text
from model_delivery.report.summary import Report
from model_delivery.report.verdict import Chart, Check, Outcome, Table, Verdict, decide

LIMIT = 60_000
"""The most characters of a report; GitHub refuses a comment above 65,536."""
SIGN = dict(zip(Outcome, ("✅", "⚠️", "🔁", "❓", "⛔", "💥"), strict=True))
_FEATURED, _CHARTED = ("segment", "drift", "load"), ("model", "load")
_LINES = {"🔵": "#0969da", "🟠": "#bc4c00", "🟣": "#8250df", "🟢": "#1a7f37"}
_CHART = """```mermaid
%%{{init: {{"xyChart": {{"width": 640, "height": 260}},
"themeVariables": {{"xyChart": {{"plotColorPalette": "{palette}"}}}}}}}}%%
xychart-beta
    title "{title}"
    x-axis {axis}
    y-axis {label}{low:.5g} --> {high:.5g}
{lines}
```"""
_SPECIAL = re.compile(
    r"(?P<live>[@#]|:(?=//|[a-z+-][\w+-]*:)|(?<=www)\.|(?<=gh)-)"  # mentions, issues, links, emoji
    r"|[\\`*<>&|~\[\]$]|(?<![^\W_])_|_(?![^\W_])|^[-+=](?=[-=\s]|$)|(?<=^\d)[.)](?=\s)",
    re.IGNORECASE,
)


def markdown(report: Report) -> str:
    """Return a report of at most `LIMIT` characters; what was left out is counted in words."""
    for most in (40, 20, 10, 5, 2, 1):
        page = join(_blocks(report, most)) + "\n"
        if len(page) <= LIMIT:
            break
    return page


def prose(value: Any) -> str:
    """Return any text as Markdown that shows exactly it: no markup, mention or link comes alive."""
    return _SPECIAL.sub(
        lambda it: f"{it[0]}&#8203;" if it["live"] else f"&#{ord(it[0])};", text.clean(value, 500)
    )


def code(value: Any) -> str:
    """Return a name or digest in a code span, whatever it holds."""
    name = text.clean(value, 120)
    return f"`{name}`" if re.fullmatch(r"[\w .,:/=+-]*\w", name) else f"<code>{prose(name)}</code>"


def grid(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> str:
    """Return a Markdown table of cells that are Markdown already."""
    rule = ["---:" if i < len(right) and right[i] else "---" for i in range(len(columns))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, rule, *rows))


def table(shown: Table, most: int, where: str = "not shown here") -> str:
    """Return a table with its title, at most 12 columns and `most` rows."""
    columns, rows, numeric = text.cells(shown, 12, most)
    body = grid([*map(prose, columns)], [[*map(prose, row)] for row in rows], numeric)
    left_out = text.more(len(shown.rows) - most, "row", where)
    return join([f"**{prose(shown.title)}**", body, left_out])


def bullets(title: str, lines: Sequence[str], left_out: int = 0, noun: str = "line") -> str:
    """Return a list of lines that are Markdown already, or nothing where there are none."""
    items = "\n".join(f"- {line}" for line in lines)
    return join([title, items, text.more(left_out, noun)]) if lines else ""


def sentence(value: str) -> str:
    """Return prose in which the author's backticks mark names."""
    return text.sentence(value, code, prose)


def join(blocks: Iterable[str]) -> str:
    """Return blocks with an empty line between them."""
    return "\n\n".join(filter(None, blocks))


def _blocks(report: Report, most: int) -> Iterator[str]:
    yield _headline(report)
    yield _gates(report)
    found, lowered = report.findings, report.lowered_limits
    lines = [_finding(report, *pair) for pair in found[:most]]
    yield bullets("", lines, len(found) - most, "check")
    yield bullets("**Lowered limits**", [*map(sentence, lowered[:most])], len(lowered) - most)
    yield from (_featured(report, word, min(most, 6)) for word in _FEATURED)
    yield from (_chart(v.charts[0]) for v in report.gates if v.gate in _CHARTED and v.charts)
    facts = [f"{k} {prose(v) if ' ' in v else code(v)}" for k, v in report.facts]
    rows = [f"{prose(k)} {prose(v)}" for k, v in (report.data.facts if report.data else []) if v]
    yield join(
        [f"**Lineage:** {' · '.join(facts)}", *(["**Rows:** " + " · ".join(rows)] if rows else [])]
    )
    notes = [sentence(note) for note in report.notes[:most]]
    yield bullets("**Notes**", notes, len(report.notes) - most)
    yield from (_details(verdict, most) for verdict in report.gates[:most])
    yield text.more(len(report.gates) - most, "gate")
    safe = [(n, u) for n, u in report.links.items() if re.fullmatch(r"https://[^\s<>\\]{1,400}", u)]
    yield " · ".join(f"[{prose(name)}](<{url}>)" for name, url in safe[:most])


def _headline(report: Report) -> str:
    first = f"{SIGN[report.outcome]} **{report.headline}.**"
    for verdict, check in report.reasons[:1]:
        said = f"{_value(check)}, limit {prose(summary.limit_text(check))}"
        said = said if check.limit else sentence(check.sentence).rstrip(".")
        others = f"; {len(report.findings) - 1} more below" if report.findings[1:] else ""
        return f"{first} Gate {code(verdict.gate)}, check {code(check.name)}: {said}{others}."
    return first


def _value(check: Check) -> str:
    value, ends = summary.value_of(check)
    return prose(value) + (f" ({ends})" if ends else "")


def _judged(check: Check) -> list[str]:
    return [code(check.name), _value(check), prose(summary.limit_text(check) or "–")]


def _outcome(report: Report, outcome: Outcome) -> str:
    decided = decide(outcome, report.event)
    return f"{SIGN[decided]} {decided}" + (f" ({outcome})" if decided is not outcome else "")


def _gates(report: Report) -> str:
    rows = []
    for verdict in report.gates[:40]:
        check = summary.decisive(verdict)
        compared = [c for c in (check, *verdict.checks) if c.champion is not None][:1]
        change = [f"{code(c.name)} {prose(summary.change_of(c))}" for c in compared] or ["–"]
        first = [code(verdict.gate), _outcome(report, verdict.outcome)]
        rows.append(first + _judged(check) + change)
    columns = ["gate", "outcome", "check that decided", "value", "limit", "against champion"]
    return join([grid(columns, rows), text.more(len(report.gates) - 40, "gate")])


def _finding(report: Report, verdict: Verdict, check: Check) -> str:
    which = f"{code(verdict.gate)} {code(check.name)}"
    return f"{_outcome(report, check.outcome)} · {which}: {sentence(check.sentence)}"


def _featured(report: Report, word: str, most: int) -> str:
    """Return the first table whose title speaks of `word`; what changed most comes first."""
    for found in [t for v in report.gates for t in v.tables if word in t.title.lower()][:1]:
        changes = [i for i, name in enumerate(found.columns) if name.lower().startswith("change")]
        at = changes[0] if changes else len(found.columns)
        size = [abs(r[at]) if at < len(r) and text.finite(r[at]) else 0.0 for r in found.rows]
        rows = [found.rows[i] for i in sorted(range(len(size)), key=lambda i: -size[i])]
        title = found.title + (", most changed first" if any(size) else "")
        return table(Table(title=title, columns=found.columns, rows=rows), most, "in the details")
    return ""


def _details(verdict: Verdict, most: int) -> str:
    count = text.plural(len(verdict.checks), "check")
    checks = verdict.checks[:most]
    rows = [[f"{SIGN[c.outcome]} {c.outcome}", *_judged(c), sentence(c.sentence)] for c in checks]
    parts = [
        f"<details><summary>Gate <code>{prose(verdict.gate)}</code>: {count}</summary>",
        grid(["outcome", "check", "value", "limit", "finding"], rows),
        text.more(len(verdict.checks) - most, "check"),
        *(table(found, most) for found in verdict.tables[:most]),
        text.more(len(verdict.tables) - most, "table"),
    ]
    return join([*parts, "</details>"])


def _chart(chart: Chart) -> str:
    """Return a chart for mermaid with a key of its own; nothing where nothing can be drawn."""
    axis, lines = _lines(chart)
    flat = [y for line in lines.values() for y in line]
    if not flat:
        return ""
    room = (max(flat) - min(flat)) * 0.05 or 1.0
    drawn = _CHART.format(
        palette=", ".join(_LINES.values()),
        title=_label(chart.title),
        axis=axis,
        label=f'"{_label(chart.y_label)}" ' if chart.y_label else "",
        low=min(0.0, *flat) if chart.kind == "bar" else min(flat) - room,
        high=max(flat) + room,
        lines="\n".join(f"    line [{', '.join(f'{y:.5g}' for y in v)}]" for v in lines.values()),
    )
    key = [f"{dot} {prose(name)}" for dot, name in zip(_LINES, lines, strict=False)]
    return join([drawn, " · ".join(key)])


def _lines(chart: Chart) -> tuple[str, dict[str, list[float]]]:
    """Return the axis and each series: at every word, or at 30 even places that all series cover.

    Mermaid spaces points evenly and knows no gaps: a series without a value for a word is left out.
    """
    words = not all(text.is_number(x) for x in chart.x)
    places, least = ([*range(12)], min(len(chart.x), 12)) if words else (chart.x, 2)
    drawn: dict[str, NDArray[np.float64]] = {}
    for name, values in list(chart.series.items())[: len(_LINES)]:
        pairs = sorted(
            (x, y)
            for x, y in zip(places, values, strict=False)
            if text.finite(x) and text.finite(y)
        )
        drawn |= {name: np.array(pairs)} if len(pairs) >= least > 1 else {}
    low = max((points[0, 0] for points in drawn.values()), default=0.0)
    high = min((points[-1, 0] for points in drawn.values()), default=0.0)
    even = np.arange(least) if words else np.linspace(low, high, 30)
    lines = {n: np.interp(even, p[:, 0], p[:, 1]).tolist() for n, p in drawn.items() if low < high}
    named = "[" + ", ".join(f'"{_label(word)}"' for word in chart.x[:least]) + "]"
    return named if words else f'"{_label(chart.x_label)}" {low:.5g} --> {high:.5g}', lines


def _label(value: Any) -> str:
    """Return text that cannot end a mermaid string or line, and is never empty."""
    return re.sub(r"[^\w .,:()/%≤≥°-]", " ", text.clean(value, 60)).strip() or "-"
