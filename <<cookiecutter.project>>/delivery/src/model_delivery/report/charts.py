"""Where the lines and marks of the report's pictures lie; `report.html` draws them as SVG."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from model_delivery.report.verdict import Chart, Check, finite

WIDTH, HEIGHT, LEFT, BOTTOM, BAR = 360, 226, 50, 40, 150
"""A line chart's size, the room for its labels, and the width of a bar from value to limit."""
_SERIES, _POINTS = 6, 120


def line_chart(chart: Chart) -> dict[str, Any]:
    """Return labelled ticks and each series' points; nothing where no value is finite."""
    lines = []
    for values in list(chart.series.values())[:_SERIES]:
        pairs = zip(chart.x, values, strict=False)
        line = [(x, y) for x, y in pairs if finite(x) and finite(y)]
        lines.append(line[: -1 : max(1, len(line) // _POINTS)] + line[-1:])
    points = [point for line in lines for point in line]
    if not points:
        return {}
    wide = min(x for x, _ in points), max(x for x, _ in points)
    tall = _room((y for _, y in points), 0.06)
    at_x, at_y = _scale(wide, LEFT, WIDTH - 12), _scale(tall, HEIGHT - BOTTOM, 8)
    return {
        "x": [(at_x(x), label) for x, label in ticks(*wide)],
        "y": [(at_y(y), label) for y, label in ticks(*tall)],
        "lines": [[(at_x(x), at_y(y)) for x, y in line] for line in lines],
    }


def limit_bar(check: Check) -> dict[str, float]:
    """Return where value, interval, champion and limit lie, and the side where it is kept.

    Nothing where value or limit is no number. What should be small is seen against 0.
    """
    if check.bound is None or not finite(check.value):
        return {}
    sign, limit = check.bound
    marks = check.model_dump(include={"value", "low", "high", "champion"}) | {"limit": limit}
    known = {name: number for name, number in marks.items() if finite(number)}
    at = _scale(_room([*known.values(), *([0.0] if sign == "≤" else [])], 0.12), 5, BAR - 5)
    start, end = (at(limit), BAR) if sign == "≥" else (0, at(limit))
    return {name: at(number) for name, number in known.items()} | {"from": start, "to": end}


def ticks(low: float, high: float, most: int = 5) -> list[tuple[float, str]]:
    """Return at most `most` + 1 round numbers from `low` to `high`, with their texts."""
    if not high > low:
        return [(low, f"{low:g}")]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * k for k in (1, 2, 2.5, 5, 10, 20) if (high - low) / (power * k) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = len(f"{step:g}".partition(".")[2])
    return [(i * step, f"{i * step:,.{decimals}f}") for i in range(first, last + 1)]


def _room(values: Iterable[float], share: float) -> tuple[float, float]:
    known = sorted(values)
    room = (known[-1] - known[0]) * share or abs(known[0]) * share or 1.0
    return known[0] - room, known[-1] + room


def _scale(span: tuple[float, float], start: float, end: float) -> Callable[[float], float]:
    width = span[1] - span[0]
    return lambda x: round(start + (end - start) * ((x - span[0]) / width if width else 0.5), 1)
