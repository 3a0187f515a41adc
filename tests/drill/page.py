"""A drill as one page that needs nothing beside it: the time line above, the table below."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from tests.canary.traffic import failed
from tests.drill.judge import Row, told
from tests.drill.scene import RATE, ROWS, SETTINGS

COLOURS = ("#3b76af", "#e0912f", "#7a62b0", "#4d9a67", "#2b9aa0", "#a8763e", "#c178a8")
"""Of releases, in the order of their first answers; red is for what failed."""
WIDTH, HEIGHT = 1100.0, 150.0


def page(
    rows: Sequence[Row],
    answers: list[dict[str, Any]],
    marks: Sequence[tuple[float, str]],
    seconds: float,
) -> str:
    """Return the page of a drill: times of rows, answers and marks in seconds of Unix."""
    begin = min((answer["start"] for answer in answers), default=0.0)
    end = max((answer["start"] for answer in answers), default=1.0) + 1
    scale = WIDTH / (end - begin)
    releases = list(dict.fromkeys(a["digest"] for a in answers if a.get("digest")))
    bands = [
        (row, max(0.0, row.step.start - begin) * scale, (row.step.end - begin) * scale)
        for row in rows
        if row.step.clients
    ]
    lost = Counter(int(answer["start"] - begin) for answer in failed(answers))
    waits = defaultdict[int, list[float]](list)
    for answer in answers:
        waits[int(answer["start"] - begin)].append(1e3 * answer["seconds"])
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return template.from_string(Path(__file__).with_name("page.html").read_text()).render(
        rows=rows,
        bands=bands,
        told=told,
        passed=not any(row.problems for row in rows),
        answers=len(answers),
        lost=sum(lost.values()),
        seconds=seconds,
        rate=RATE,
        flights=ROWS,
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        settings=yaml.safe_dump(SETTINGS, sort_keys=False, default_flow_style=None),
        width=WIDTH,
        height=HEIGHT,
        scale=scale,
        stacks=stacks(answers, releases, begin, scale),
        failures={second * scale: count for second, count in lost.items()},
        waits={second * scale: quantile(found) for second, found in waits.items()},
        marks=[((moment - begin) * scale, what) for moment, what in marks],
        minutes=range(int(end - begin) // 60 + 1),
        names=dict(zip(releases, "ABCDEFGHIJ", strict=False)),
    )


def stacks(
    answers: list[dict[str, Any]], releases: Sequence[str], begin: float, scale: float
) -> list[tuple[str, str, str]]:
    """Return digest, colour and SVG path of each release's answers by second, stacked."""
    counts = Counter((a.get("digest"), int(a["start"] - begin)) for a in answers)
    top, found = Counter[int](), []
    for place, digest in enumerate(releases):
        bars = []
        for second in sorted(second for one, second in counts if one == digest):
            low, high = top[second], top[second] + counts[digest, second]
            y, tall = HEIGHT * (1 - high / (1.5 * RATE)), HEIGHT * (high - low) / (1.5 * RATE)
            bars.append(
                f"M{second * scale:.1f} {y:.1f}h{0.9 * scale:.2f}v{tall:.1f}h-{0.9 * scale:.2f}z"
            )
            top[second] = high
        found.append((digest, COLOURS[place % len(COLOURS)], "".join(bars)))
    return found


def quantile(values: list[float]) -> float:
    """Return what 95 % of values are at most."""
    return sorted(values)[int(0.95 * (len(values) - 1))]
