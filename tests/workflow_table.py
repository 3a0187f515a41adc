"""The table of jobs: trigger, permissions, secrets, environment and runner of each.

`python -m tests.workflow_table` writes it into the pages on workflows, ours and a project's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.baking import ROOT
from tests.workflow_rules import Node, Tree, triggers

BEGIN, END = "<!-- jobs: generated -->\n", "<!-- end of jobs -->\n"
HEAD = ("job", "trigger", "permissions", "secrets", "environment", "runner")
PAGE = Path(".github/workflows/README.md")


def table(folder: Path) -> str:
    """Return, as Markdown, a row for each job of a project's workflows, called jobs included."""
    rows = [_row(node) for node in Tree(folder).nodes() if not node.calls]
    return "".join(f"| {' | '.join(row)} |\n" for row in (HEAD, ("---",) * len(HEAD), *rows))


def part(text: str) -> str:
    """Return the table that a page holds between its two marks."""
    return text.partition(BEGIN)[2].partition(END)[0]


def rewritten(text: str, folder: Path) -> str:
    """Return a page with the table as it must be.

    Raises
    ------
    ValueError
        When the page has not both marks, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"the page needs {BEGIN.strip()} and {END.strip()}, once each")
    return f"{before}{BEGIN}{table(folder)}{END}{after}"


def _row(node: Node) -> tuple[str, ...]:
    may = node.permissions
    rights = [f"{k}: {v}" for k, v in may.items()] if isinstance(may, dict) else [str(may)]
    started = node.path[-1].workflow
    events = [_trigger(k, v) for k, v in triggers(started).items() if k in node.events]
    runner = str(node.value(node.job["runs-on"])).removeprefix("${{ ").removesuffix(" }}")
    return (
        f"`{node.place.replace(' → ', '` → `')}`",
        ", ".join(events) or "never",
        _codes(rights),
        _codes(sorted(node.secrets)),
        _codes([node.environment] if node.environment else []),
        _codes([runner]),
    )


def _trigger(event: str, filters: Any) -> str:
    if event == "push" and filters:
        words = {"branches": "push to", "tags": "tag", "paths": "change of"}
        return ", ".join(f"{words[key]} {_codes(filters[key])}" for key in filters)
    return event.removeprefix("workflow_").replace("_", " ")


def _codes(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`".replace("|", "\\|") for value in values) or "none"


def main() -> int:
    """Write the table into both pages; return the exit code."""
    for folder in (ROOT, ROOT / "<<cookiecutter.project>>"):
        page = folder / PAGE
        page.write_text(rewritten(page.read_text(encoding="utf-8"), folder), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
