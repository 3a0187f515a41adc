"""Values as text that every rendering shows alike: numbers, tables, and whatever came from data."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from model_delivery.report.verdict import Table


def clean(value: Any, most: int = 240) -> str:
    """Return any value as one line in which every control or direction mark is visible."""
    text = number(value) if value is None or is_number(value) else str(value)
    cut = f"… ({len(text):,} characters)" if len(text) > most else ""
    return re.sub(r"[^ -~]", _visible, text[:most]) + cut


def _visible(found: re.Match[str]) -> str:
    letter = found[0]
    if letter in "\n\r\t":
        return "↵" if letter == "\n" else " "
    return letter if letter.isprintable() else f"\\u{ord(letter):04x}"


def sentence(text: str, name: Callable[[str], str], prose: Callable[[str], str]) -> str:
    """Return a sentence whose author marked names by backticks, through one function for each."""
    parts = re.split(r"`([^`]+)`", clean(text, 500))
    return "".join(name(part) if i % 2 else prose(part) for i, part in enumerate(parts))


def is_number(value: Any) -> bool:
    """Return whether a value is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: Any) -> bool:
    """Return whether a value is a number that can be drawn."""
    return is_number(value) and math.isfinite(value)


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with some significant digits; `–` for None.

    Examples
    --------
    >>> number(0.75219), number(26115), number(12.0), number(None)
    ('0.752', '26,115', '12', '–')
    """
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value)
    whole = abs(value) >= 10**digits - 0.5 or value == round(value)
    return f"{value + 0.0:,.0f}" if whole else f"{value:.{digits}g}"


def aligned(values: Sequence[float | None], digits: int = 3) -> list[str]:
    """Return numbers that are read together with as many decimals as the largest needs.

    Examples
    --------
    >>> aligned([0.7523, 0.76, 0.00917, None])
    ['0.752', '0.760', '0.009', '–']
    """
    texts = [number(value, digits) for value in values]
    largest = max((abs(value) for value in values if value and finite(value)), default=1.0)
    needed = max((len(text.partition(".")[2]) for text in texts if "e" not in text), default=0)
    places = min(needed, max(2, digits - 1 - math.floor(math.log10(largest))))
    return [
        f"{round(value, places) + 0.0:,.{places}f}"
        if value and finite(value) and "e" not in text
        else text
        for value, text in zip(values, texts, strict=True)
    ]


def cells(table: Table, columns: int, rows: int) -> tuple[list[str], list[list[str]], list[bool]]:
    """Return a table's first columns and rows as text, and which columns read as numbers.

    A column without a single value is left out: a first delivery has no champion.
    """
    names, texts, numeric = [], [], []
    for place, name in enumerate(table.columns[:columns]):
        column = [row[place] if place < len(row) else None for row in table.rows[:rows]]
        if table.rows and all(value in (None, "") for value in column):
            continue
        plain = all(value is None or is_number(value) for value in column)
        texts.append(aligned(column) if plain else [moment(clean(value)) for value in column])
        numeric.append(
            all(re.fullmatch(r"[-+]?[\d,.]+(e-?\d+)?%?|nan|inf|–|", t) for t in texts[-1])
        )
        names.append(clean(name))
    return names, [list(row) for row in zip(*texts, strict=True)], numeric


def moment(text: str) -> str:
    """Return text in which an ISO time is shown to the minute.

    Examples
    --------
    >>> moment("2013-01-01T05:15:00 to 2026-11-25T03:41:55+00:00")
    '2013-01-01 05:15 to 2026-11-25 03:41 UTC'
    """
    minutes = re.sub(r"(\d\d-\d\d)T(\d\d:\d\d)(:\d\d(\.\d+)?)?", r"\1 \2", text)
    return re.sub(r"(?<=:\d\d)(\+00:00|Z)", " UTC", minutes)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 row`, `2,000 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def more(count: int, noun: str, where: str = "not shown here") -> str:
    """Return what was left out, or nothing."""
    return f"… {plural(count, f'more {noun}')}, {where}" if count > 0 else ""
