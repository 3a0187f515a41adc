"""A report: verdicts with what they are about, as HTML, as GitHub Markdown and as a model card.

Whatever a template prints is shown as data: a finalizer cleans it, and escapes it for its format.
"""

import re
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from model_delivery.files import write_atomic
from model_delivery.report.verdict import Chart, Check, Report, Table, decide, finite

LIMITS = {"report.html": 300_000, "report.md": 60_000, "card.md": 60_000}
"""The most characters of a page; GitHub refuses a comment above 65,536."""
_SPECIAL = re.compile(
    r"(?P<live>[@#]|:(?=//|[a-z+-][\w+-]*:)|(?<=www)\.|(?<=gh)-)"  # mentions, issues, links, emoji
    r"|[\\`*<>&|~\[\]$]|(?<![^\W_])_|_(?![^\W_])|^[-+=](?=[-=\s]|$)|(?<=^\d)[.)](?=\s)",
    re.IGNORECASE,
)


def render(template: str, report: Report, **about: Any) -> str:
    """Return `report.html`, `report.md` or `card.md`; what does not fit is counted in words."""
    templates = _HTML if template.endswith(".html") else _MARKDOWN
    for most in (200, 60, 40, 20, 10, 5, 3, 1):
        page = templates.get_template(template).render(report=report, most=most, **about)
        page = re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"
        if len(page) <= LIMITS[template]:
            break
    return page


def write_pages(folder: Path, report: Report) -> str:
    """Write `report.json`, `report.html` and `report.md`; return the text of the last."""
    write_atomic(folder / "report.json", report.model_dump_json(indent=2))
    for name in ("report.html", "report.md"):
        write_atomic(folder / name, text := render(name, report))
    return text


def value_of(check: Check) -> tuple[str, str]:
    """Return a check's value and its interval; a value is never rounded onto or over its limit."""
    value = check.value
    if not finite(value):
        return clean(value), ""
    shown = number(value)
    if check.bound:
        limit, rounded = check.bound[1], float(shown.replace(",", ""))
        if (rounded < limit, rounded > limit) != (value < limit, value > limit):
            shown = f"{value:,}"
    return shown, " to ".join(number(end) for end in (check.low, check.high) if end is not None)


def change_of(check: Check) -> str:
    """Return the difference from the champion, and whether that is better; empty without one."""
    if not check.bound or not finite(check.value) or not finite(check.champion):
        return ""
    change = check.value - check.champion
    if abs(change) <= 1e-9 * abs(check.value):
        return "same"
    way = "better" if (change > 0) == (check.bound[0] == "≥") else "worse"
    return f"{'+' if change > 0 else ''}{number(change)} {way}"


def number(value: Any) -> str:
    """Return a number with four significant digits, and with all of those before its point."""
    if not finite(value):
        return "–" if value is None else str(value)
    whole = min(len(f"{abs(value):.0f}"), 12)
    return f"{value + 0.0:,.{max(4, whole)}g}"  # + 0.0 takes the sign from -0.0


def clean(value: Any, most: int = 500) -> str:
    """Return any value as one line in which every control or direction mark is visible."""
    text = value if isinstance(value, str) else number(value)
    cut = f"… ({len(text):,} characters)" if len(text) > most else ""
    shown = (letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[:most])
    return "".join(shown) + cut


def columns_of(table: Table, most: int) -> list[tuple[str, bool, list[str]]]:
    """Return the columns that hold a value, as name, whether of numbers only, and texts."""
    columns = zip(table.columns[:12], zip_longest(*table.rows[:most]), strict=False)
    return [
        (name, all(value is None or finite(value) for value in values), [*map(clean, values)])
        for name, values in columns
        if any(value not in (None, "") for value in values)
    ]


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


def told(check: Check) -> str:
    """Return a check with its value and limit as one sentence."""
    limit = f" ({value_of(check)[0]}, limit {check.limit})" if check.limit else ""
    return f"{check.name}{limit} {check.sentence}"


def lines_of(chart: Chart) -> list[list[tuple[float, float]]]:
    """Return each series as its finite points."""
    series = [zip(chart.x, values, strict=False) for values in chart.series.values()]
    return [[(x, y) for x, y in line if finite(x) and finite(y)] for line in series]


def scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """Return what places a number between two ends of a picture that has room for `values`."""
    low, high = min(values), max(values)
    room = (high - low or abs(low) or 1.0) / 20
    share = (end - start) / (high - low + 2 * room)
    return lambda value: round(start + (value - low + room) * share, 1)


def _environment(plain: Callable[[Any], Any], name: Callable[[Any], Any]) -> Environment:
    """Return templates in which all that is no markup goes through `plain`."""

    def sentence(text: str) -> Markup:
        parts = re.split(r"`([^`]+)`", clean(text))
        return Markup("").join(name(p) if i % 2 else plain(p) for i, p in enumerate(parts))

    found = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    found.loader, found.undefined = FileSystemLoader(Path(__file__).parent), StrictUndefined
    found.finalize = lambda value: value if isinstance(value, Markup) else plain(value)
    found.filters |= {"code": name, "sentence": sentence, "clean": clean, "grid": grid}
    found.tests["finite"] = finite
    shared = (change_of, columns_of, decide, lines_of, scale, value_of)
    found.globals |= {function.__name__: function for function in shared}
    return found


_HTML = _environment(clean, lambda text: Markup("<code>{}</code>").format(clean(text)))
_MARKDOWN = _environment(prose, code)
