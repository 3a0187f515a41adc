"""Charts as inline SVG: no script, colours from the page's style, each said in its title.

Series differ by dash or fill as well as by colour; the key in the caption shows both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

from model_delivery.report.text import aligned, clean, finite, number
from model_delivery.report.verdict import Chart

WIDTH, HEIGHT, LEFT, BOTTOM = 360, 226, 50, 40
_SERIES, _POINTS, _BARS = 6, 120, 24
_RANGE = 150
Span = tuple[float, float]
Points = list[tuple[float, float]]


def figure(chart: Chart) -> str:
    """Return a chart as an HTML figure with title and key; a sentence where nothing is finite."""
    names = list(chart.series)[:_SERIES]
    keys = [
        f'<span class="key {chart.kind} s{i}">{_text(name)}</span>' for i, name in enumerate(names)
    ]
    title = (
        f"<figcaption><b>{_text(chart.title)}</b>{''.join(keys if keys[1:] else [])}</figcaption>"
    )
    drawn = _lines(chart) if chart.kind == "line" else _bars(chart)
    hidden = (len(chart.series) - _SERIES, len(chart.x) - _BARS if chart.kind == "bar" else 0)
    note = "<p>Only the first part is drawn.</p>" if max(hidden) > 0 else ""
    return f"<figure>{title}{drawn or '<p>There is no finite value to draw.</p>'}{note}</figure>"


def interval(
    span: Span,
    estimate: tuple[float | None, float | None, float | None],
    champion: float | None = None,
    limit: tuple[str, float] | None = None,
    mark: str = "pass",
) -> str:
    """Return a value with its whisker (`estimate`: value, low, high) on an axis over `span`.

    The side of the limit where it is kept is shaded; the champion is a hollow diamond; a value
    whose check did not pass (`mark`) is a square instead of a dot.
    """
    value, low, high = [x if finite(x) else None for x in estimate]
    if value is None:
        return ""
    at = _scale(span, 5, _RANGE - 5)
    parts, said = [], number(value)
    if limit is not None:
        edge = at(limit[1])
        start, end = (edge, _RANGE) if limit[0] == "≥" else (0, edge)
        parts.append(
            f'<rect class="kept" x="{start:g}" y="1" width="{end - start:.1f}" height="20"/>'
        )
        parts.append(f'<path class="limit" d="M{edge:g} 1v20"/>')
        said += f", limit {limit[0]} {number(limit[1], 9)}"
    if low is not None and high is not None:
        parts.append(
            f'<path class="whisker" d="M{at(low)} 11H{at(high)}M{at(low)} 7v8M{at(high)} 7v8"/>'
        )
        said += f", interval {number(low)} to {number(high)}"
    if champion is not None and finite(champion):
        parts.append(f'<path class="champion" d="M{at(champion)} 5l5 6-5 6-5-6z"/>')
        said += f", champion {number(champion)}"
    square = f'<rect class="dot {mark}" x="{at(value) - 4:.1f}" y="7" width="8" height="8"/>'
    parts.append(
        square if mark != "pass" else f'<circle class="dot" cx="{at(value)}" cy="11" r="4"/>'
    )
    return _svg("range", _RANGE, 22, said, parts)


def domain(values: Iterable[float | None], pad: float = 0.12) -> Span:
    """Return bounds around all finite values, with room on both sides."""
    known = [v for v in values if v is not None and finite(v)] or [0.0]
    room = (max(known) - min(known)) * pad or abs(known[0]) * pad or 1.0
    return min(known) - room, max(known) + room


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return at most `most` + 1 round numbers from `low` to `high`.

    Examples
    --------
    >>> ticks(0.41, 0.53)
    [0.425, 0.45, 0.475, 0.5, 0.525]
    """
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * k for k in (1, 2, 2.5, 5, 10, 20) if (high - low) / (power * k) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def _scale(span: Span, start: float, end: float) -> Callable[[float], float]:
    width = span[1] - span[0]
    return lambda x: round(start + (end - start) * ((x - span[0]) / width if width else 0.5), 1)


def _text(value: object, most: int = 60) -> str:
    return escape(clean(value, most))


def _svg(name: str, width: float, height: float, title: str, parts: Sequence[str]) -> str:
    frame = f'<svg class="{name}" viewBox="0 0 {width:g} {height:g}" role="img">'
    return f"{frame}<title>{escape(title)}</title>{''.join(parts)}</svg>"


def _label(x: float, y: float, text: object, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(text, 24)}</text>'


def _lines(chart: Chart) -> str:
    """Draw lines over a numeric axis, or over evenly spaced words."""
    numbers = [x for x in chart.x if isinstance(x, float) and finite(x)]
    numeric = len(numbers) == len(chart.x)
    places = numbers if numeric else [float(i) for i in range(len(chart.x))]
    lines = [_finite(places, values) for values in list(chart.series.values())[:_SERIES]]
    points = [point for line in lines for point in line]
    if not points:
        return ""
    wide, tall = (min(points)[0], max(points)[0]), domain((y for _, y in points), 0.06)
    at_x, at_y = _scale(wide, LEFT, WIDTH - 12), _scale(tall, HEIGHT - BOTTOM, 8)
    marks = ticks(*tall)
    parts = [f'<path class="grid" d="M{LEFT} {at_y(y)}H{WIDTH - 12}"/>' for y in marks]
    parts += [
        _label(LEFT - 6, at_y(y) + 4, t, "end")
        for y, t in zip(marks, aligned(marks, 4), strict=True)
    ]
    marks = ticks(*wide) if numeric else places[:: max(1, math.ceil(len(places) / 6))]
    words = aligned(marks, 4) if numeric else [chart.x[int(i)] for i in marks]
    parts += [_label(at_x(x), HEIGHT - BOTTOM + 16, t) for x, t in zip(marks, words, strict=True)]
    parts.append(_label((LEFT + WIDTH) / 2, HEIGHT - 6, chart.x_label))
    turned = f'transform="translate(12 {(HEIGHT - BOTTOM) / 2:g}) rotate(-90)" text-anchor="middle"'
    parts.append(f"<text {turned}>{_text(chart.y_label, 24)}</text>")
    for i, line in enumerate(lines):
        step = max(1, math.ceil(len(line) / _POINTS))
        kept = [(at_x(x), at_y(y)) for x, y in line[:-1:step] + line[-1:]]
        parts.append(
            f'<path class="line s{i}" d="M{"L".join(f"{x} {y}" for x, y in kept)}"/>'
            if kept
            else ""
        )
        dots = kept if len(kept) <= 12 else []
        parts += [f'<circle class="dot s{i}" cx="{x}" cy="{y}" r="2.6"/>' for x, y in dots]
    return _svg("chart", WIDTH, HEIGHT, _said(chart), parts)


def _finite(x: Sequence[float], y: Sequence[float | None]) -> Points:
    return [(a, b) for a, b in zip(x, y, strict=False) if b is not None and finite(b)]


def _bars(chart: Chart) -> str:
    """Draw bars from left to right, grouped by row, so that long names stay readable."""
    series, words = list(chart.series.values())[:_SERIES], chart.x[:_BARS]
    values = [y for line in series for y in line[:_BARS] if y is not None and finite(y)]
    if not values:
        return ""
    labels = [aligned(line[:_BARS]) for line in series]
    left = 14 + 6.4 * min(18, max(len(clean(word)) for word in words))
    thick, span = (12 if series[1:] else 15), (min(0.0, *values), max(0.0, *values))
    group, at = thick * len(series) + 8, _scale(span, left, WIDTH - 46)
    bottom, marks, parts = group * len(words) + 6, ticks(*span, 4), []
    for x, shown in zip(marks, aligned(marks), strict=True):
        parts.append(
            f'<path class="grid" d="M{at(x)} 2V{bottom}"/>' + _label(at(x), bottom + 14, shown)
        )
    for row, word in enumerate(words):
        top = row * group + 6
        parts.append(_label(left - 7, top + group / 2, clean(word, 18), "end"))
        for i, line in enumerate(series):
            y = line[row] if row < len(line) else None
            end = at(y) if y is not None and finite(y) else at(0)
            box = f'x="{min(at(0), end):.1f}" y="{top + i * thick}" height="{thick - 2}"'
            parts.append(f'<rect class="bar s{i}" {box} width="{max(abs(end - at(0)), 1):.1f}"/>')
            shown = labels[i][row] if row < len(line) else "–"
            parts.append(_label(max(at(0), end) + 5, top + (i + 1) * thick - 3, shown, "start"))
    parts.append(_label((left + WIDTH) / 2, bottom + 31, chart.y_label or chart.x_label))
    return _svg("chart", WIDTH, bottom + 38, _said(chart), parts)


def _said(chart: Chart) -> str:
    """Return the chart in a sentence, for those who cannot see it."""
    ends = [f"{clean(n, 40)} ends at {number(v[-1])}" for n, v in chart.series.items() if v]
    return f"{clean(chart.title, 80)}: {'; '.join(ends[:_SERIES])}"
