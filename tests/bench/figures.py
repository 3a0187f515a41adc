"""A figure beside its bar, and a table of them."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured value and the bar it has to reach; exactly one of the bounds is set."""

    what: str
    value: float
    least: float | None = None
    most: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether the bar is reached; not-a-number never does."""
        if self.least is not None:
            return self.value >= self.least
        return self.most is not None and self.value <= self.most

    @property
    def bar(self) -> str:
        """The bar as text."""
        sign, bound = ("≥", self.least) if self.least is not None else ("≤", self.most)
        return f"{sign} {bound:g} {self.unit}".strip()

    def row(self) -> str:
        """Return the figure as a row of a Markdown table."""
        value = f"{self.value:.3g} {self.unit}".strip()
        verdict = "reached" if self.reached else "**short**"
        return f"| {self.what} | {self.bar} | {value} | {verdict} | {self.note} |"


def table(figures: Sequence[Figure]) -> str:
    """Return figures as a Markdown table."""
    head = ["| what | bar | figure | verdict | |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(figure.row() for figure in figures)])


def as_json(figures: Sequence[Figure], raw: dict[str, Any]) -> dict[str, Any]:
    """Return all that was measured, and where."""
    machine = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }
    rows = [
        asdict(figure)
        | {"value": figure.value if isfinite(figure.value) else None, "reached": figure.reached}
        for figure in figures
    ]
    return {"machine": machine, "figures": rows, "raw": raw}


def beside(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured now, and of before what was not; `machine` is that of now."""
    new = {figure["what"] for figure in now["figures"]}
    old = [figure for figure in before["figures"] if figure["what"] not in new]
    return now | {"figures": [*old, *now["figures"]], "raw": before["raw"] | now["raw"]}
