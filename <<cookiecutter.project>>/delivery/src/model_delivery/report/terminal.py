"""Verdicts on a terminal: a compact table, and a sentence for whatever is not a pass."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from model_delivery.report.summary import SYMBOL, Report, decisive, limit_text, value_of
from model_delivery.report.text import clean
from model_delivery.report.verdict import Event, Outcome, Verdict, decide

_STYLE = dict(
    zip(Outcome, ("green", "yellow", "magenta", "cyan", "bold red", "bold red"), strict=True)
)


def terminal(verdicts: Sequence[Verdict], event: Event) -> Group:
    """Return what rich prints; nothing in a verdict is taken for markup or a control sequence."""
    report = Report(project="", subject="", event=event, verdicts=list(verdicts))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("gate", "outcome", "check that decided", "value", "limit"):
        table.add_column(column, overflow="fold")
    for verdict in report.gates:
        check = decisive(verdict)
        value, ends = value_of(check)
        cells = [clean(check.name), value + (f" ({ends})" if ends else ""), limit_text(check)]
        outcome = _outcome(verdict.outcome, event)
        table.add_row(Text(clean(verdict.gate)), outcome, *(Text(cell) for cell in cells))
    lines = []
    for verdict, check in report.findings:
        which = f"  {clean(verdict.gate)} {clean(check.name)}: "
        said = Text.assemble(_outcome(check.outcome, event), which, clean(check.sentence, 500))
        lines.append(said)
    return Group(table, *lines)


def _outcome(outcome: Outcome, event: Event) -> Text:
    decided = decide(outcome, event)
    was = f" ({outcome})" if decided is not outcome else ""
    return Text(f"{SYMBOL[decided]} {decided}{was}", style=_STYLE[decided])
