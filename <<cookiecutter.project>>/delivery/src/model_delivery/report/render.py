"""A report: verdicts with what they are about, as HTML, as GitHub Markdown and as a model card.

Whatever a template prints is shown as data: a finalizer cleans it, and escapes it for its format.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from model_delivery.report.verdict import Chart, Check, Report, Table, decide, finite

LIMITS = {"report.html": 300_000, "report.md": 60_000, "card.md": 60_000}
"""The most characters of a page; GitHub refuses a comment above 65,536."""
_SPECIAL = re.compile(
    r"(?P<live>[@#]|:(?=//|[a-z+-][\w+-]*:)|(?<=www)\.|(?<=gh)-)"  # mentions, issues, links, emoji
    r"|[\\`*<>&|~\[\]$]|(?<![^\W_])_|_(?![^\W_])|^[-+=](?=[-=\s]|$)|(?<=^\d)[.)](?=\s)",
    re.IGNORECASE,
)

WIDTH, HEIGHT, LEFT, BOTTOM, BAR = 360, 226, 50, 40, 150
"""A line chart's size, the room for its labels, and the width of a bar from value to limit."""
_SERIES, _POINTS = 6, 120


def render(template: str, report: Report, **about: Any) -> str:
    """Return `report.html`, `report.md` or `card.md`; what does not fit is counted in words."""
    templates = _HTML if template.endswith(".html") else _MARKDOWN
    for most in (200, 60, 40, 20, 10, 5, 3, 1):
        page = templates.get_template(template).render(report=report, most=most, **about)
        page = re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"
        if len(page) <= LIMITS[template]:
            break
    return page


def value_of(check: Check) -> tuple[str, str]:
    """Return a check's value and its interval, with as many digits as tell it from its limit."""
    value = check.value
    if not isinstance(value, float):
        return clean(value), ""
    ends = [] if check.low is None or check.high is None else [check.low, check.high]
    limit = check.bound[1] if check.bound else value
    for digits in range(3, 16):
        shown = aligned([value, *ends], digits)
        if value == limit or (float(shown[0].replace(",", "")) - limit) * (value - limit) > 0:
            break
    return shown[0], " to ".join(shown[1:])


def change_of(check: Check) -> str:
    """Return the difference from the champion, and whether that is better; empty without one."""
    if not check.bound or not finite(check.value) or not finite(check.champion):
        return ""
    change = check.value - check.champion
    if abs(change) <= 1e-9 * abs(check.value):
        return "same"
    way = "better" if (change > 0) == (check.bound[0] == "≥") else "worse"
    return f"{'+' if change > 0 else ''}{aligned([change], 2)[0]} {way}"


def clean(value: Any, most: int = 500) -> str:
    """Return any value as one line in which every control or direction mark is visible."""
    text = value if isinstance(value, str) else aligned([value])[0]
    cut = f"… ({len(text):,} characters)" if len(text) > most else ""
    shown = (letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[:most])
    return "".join(shown) + cut


def aligned(values: Sequence[Any], digits: int = 3) -> list[str]:
    """Return numbers that are read together with as many decimals as the largest needs."""
    known = [abs(value) for value in values if finite(value)]
    largest, style = max(known, default=0.0), f".{digits}g"
    if 1e-6 < largest < 1e12:
        places = max(1, digits - 1 - math.floor(math.log10(largest)))
        style = ",.0f" if all(value == round(value) for value in known) else f",.{places}f"
    shown = [f"{value:{style}}" if finite(value) else str(value) for value in values]
    return ["–" if text == "None" else re.sub(r"^-(?=[0.]+$)", "", text) for text in shown]


def columns_of(table: Table, most: int) -> list[tuple[str, bool, list[str]]]:
    """Return the columns that hold a value, as name, whether it reads as numbers, and texts."""
    columns = []
    for place, name in enumerate(table.columns[:12]):
        column = [row[place] if place < len(row) else None for row in table.rows[:most]]
        if any(value not in (None, "") for value in column):
            plain = all(value is None or isinstance(value, int | float) for value in column)
            texts = aligned(column) if plain else [clean(value) for value in column]
            right = all(re.fullmatch(r"[-+]?[\d,.]+(e-?\d+)?%?|nan|inf|–|", t) for t in texts)
            columns.append((name, right, texts))
    return columns


def moved(table: Table) -> Table:
    """Return a table with the largest change first, where its last column is one."""
    change = table.columns[-1].startswith("change")
    rows = sorted(table.rows, key=lambda row: -abs(row[-1] or 0) if change else 0)
    return table.model_copy(update={"rows": rows})


def prose(value: Any) -> Markup:
    """Return any text as Markdown that shows exactly it: no markup, mention or link comes alive."""

    def inert(found: re.Match[str]) -> str:
        return f"{found[0]}&#8203;" if found["live"] else f"&#{ord(found[0])};"

    return Markup(_SPECIAL.sub(inert, clean(value)))  # noqa: S704 - nothing in it is alive


def code(value: Any) -> Markup:
    """Return a name or digest in a code span of Markdown, whatever it holds."""
    name = clean(value, 120)
    plain = re.fullmatch(r"[\w .,:/=+-]*\w", name)
    return Markup(f"`{name}`" if plain else f"<code>{prose(name)}</code>")  # noqa: S704


def grid(table: Table, most: int) -> Markup:
    """Return a Markdown table."""
    columns = columns_of(table, most)
    rule = ["---:" if right else "---" for _, right, _ in columns]
    rows = zip(*(map(prose, [name, *texts]) for name, _, texts in columns), strict=True)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return Markup("\n".join([*lines[:1], f"| {' | '.join(rule)} |", *lines[1:]]))  # noqa: S704


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


def _environment(plain: Callable[[Any], Any], name: Callable[[Any], Any]) -> Environment:
    """Return templates in which all that is no markup goes through `plain`."""

    def sentence(text: str) -> Markup:
        parts = re.split(r"`([^`]+)`", clean(text))
        return Markup("").join(name(p) if i % 2 else plain(p) for i, p in enumerate(parts))

    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else plain(value),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.filters |= {"code": name, "sentence": sentence, "clean": clean, "grid": grid}
    found.tests["finite"] = finite
    shared = (change_of, columns_of, decide, limit_bar, line_chart, moved, value_of)
    found.globals |= {function.__name__: function for function in shared}
    found.globals |= {"WIDTH": WIDTH, "HEIGHT": HEIGHT, "LEFT": LEFT, "BOTTOM": BOTTOM, "BAR": BAR}
    return found


_HTML = _environment(clean, lambda text: Markup("<code>{}</code>").format(clean(text)))
_MARKDOWN = _environment(prose, code)
