"""The replay as one page that needs nothing else, and as a picture of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from html import escape
from math import ceil
from pathlib import Path
from typing import Any

from tests.bench.figures import Figure
from tests.replay import settings
from tests.replay.judge import mean

WIDTH, LEFT, RIGHT = 1040, 56, 162
CURVES = {
    "delivered": "as delivered",
    "monthly": "retrained monthly",
    "frozen": "frozen after January",
}
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
STYLE = """
:root { color-scheme: light; --ink: #1c2127; --soft: #59626d; --rule: #dcd8cf; --pass: #17703f;
  --stop: #b3221b; --delivered: #1f5fa8; --monthly: #c05a12; --frozen: #6d7682; --drift: #178074; }
body { margin: 0; background: #fcfbf8; color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Liberation Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 28px 24px 40px; }
h1 { font: 600 30px/1.2 Charter, "Liberation Serif", serif; margin: 0 0 6px; }
h2 { font-size: 15px; margin: 26px 0 2px; } h2 small { font-weight: 400; color: var(--soft); }
p { margin: 4px 0; max-width: 80ch; }
svg { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--rule);
  border-radius: 3px; }
text { font: 12px system-ui, "Liberation Sans", sans-serif; fill: var(--soft); }
text.end { font-weight: 600; fill: var(--c); } text.event { font-weight: 600; fill: var(--c); }
.grid { stroke: var(--rule); } .event path { stroke: var(--c); stroke-dasharray: 3 3; }
.curve path { fill: none; stroke: var(--c); stroke-width: 2; } .curve circle { fill: var(--c); }
.delivered path { stroke-width: 3; opacity: 0.8; }
.monthly path { stroke-dasharray: 7 3; } .frozen path { stroke-dasharray: 2 3; }
.delivered { --c: var(--delivered); } .monthly { --c: var(--monthly); }
.frozen { --c: var(--frozen); } .drift { --c: var(--drift); }
.promoted, .yes { --c: var(--pass); } .refused, .no { --c: var(--stop); }
rect { fill: var(--c); } table { border-collapse: collapse; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; margin-top: 4px; }
td, th { text-align: left; vertical-align: top; padding: 4px 12px 4px 0;
  border-bottom: 1px solid var(--rule); } th { color: var(--soft); font-weight: 500; }
td:first-child { white-space: nowrap; } b { color: var(--c, inherit); } code { font-size: 12px; }
"""


class Axes:
    """Months along, a value up; the page is drawn in its own pixels."""

    def __init__(
        self, count: int, values: Sequence[float], height: int, zero: bool = False
    ) -> None:
        low, high = (0.0 if zero else min(values, default=0.0)), max(values, default=1.0)
        pad = (high - low or 1.0) * 0.08
        self.low, self.high, self.height = low - (0 if zero else pad), high + pad, height
        self.band = (WIDTH - LEFT - RIGHT) / max(count, 1)

    def x(self, place: float) -> float:
        """Return where a month begins; its middle is at half."""
        return round(LEFT + self.band * place, 1)

    def y(self, value: float) -> float:
        """Return how far down a value is."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.height - 28 - share * (self.height - 56), 1)

    def frame(self, months: Sequence[str]) -> str:
        """Return lines at three to six round values, and the months' names."""
        span = self.high - self.low
        step = next((one for one in STEPS if span / one < 6), span)
        values = [i * step for i in range(ceil(self.low / step), int(self.high / step) + 1)]
        parts = [
            f'<path class="grid" d="M{LEFT} {self.y(v)}H{WIDTH - RIGHT}"/>'
            f'<text x="{LEFT - 8}" y="{self.y(v) + 4}" text-anchor="end">{v:.4g}</text>'
            for v in values
        ]
        parts += [
            f'<text x="{self.x(i + 0.5)}" y="{self.height - 8}" text-anchor="middle">{month}</text>'
            for i, month in enumerate(months)
        ]
        return "".join(parts)


def metric(months: Sequence[dict[str, Any]], name: str, height: int, zero: bool = False) -> str:
    """Return a chart of a metric by month, a line a model, with what happened between months."""
    series = {curve: [m["curves"][curve][name] for m in months] for curve in CURVES}
    known = [value for values in series.values() for value in values if value is not None]
    axes = Axes(len(months), known, height, zero)
    parts = [axes.frame([month["month"] for month in months]), events(months, axes)]
    ends = []
    for curve, values in reversed(series.items()):  # the delivered one lies on top
        points = [(axes.x(i + 0.5), axes.y(v)) for i, v in enumerate(values) if v is not None]
        line = "L".join(f"{x} {y}" for x, y in points)
        dots = "".join(f'<circle cx="{x}" cy="{y}" r="3"/>' for x, y in points)
        parts.append(f'<g class="curve {curve}"><path d="M{line}"/>{dots}</g>')
        ends += [(points[-1][1], curve)] if points else []
    below = 0.0
    for y, curve in sorted(ends):  # one below the other where lines end together
        below = max(y, below + 15)
        place = f'x="{WIDTH - RIGHT + 4}" y="{below + 4}"'
        parts.append(f'<text class="end {curve}" {place}>{CURVES[curve]}</text>')
    return svg(height, f"{name} by month", parts)


def events(months: Sequence[dict[str, Any]], axes: Axes) -> str:
    """Return a mark at the end of each month after which there was a retraining."""
    parts = []
    for place, month in enumerate(months, 1):
        if word := month["retraining"]:
            x = axes.x(place)
            text = f'<text class="event" x="{x}" y="15" text-anchor="middle">{word}</text>'
            parts.append(
                f'<g class="event {word}"><path d="M{x} 20V{axes.height - 28}"/>{text}</g>'
            )
    return "".join(parts)


def drifts(months: Sequence[dict[str, Any]], height: int = 130) -> str:
    """Return a bar for each month's largest drift."""
    known = [month["drift"] for month in months if month["drift"] is not None]
    axes = Axes(len(months), [*known, 1.0], height, zero=True)
    parts = [axes.frame([month["month"] for month in months]), events(months, axes)]
    for place, month in enumerate(months):
        if (value := month["drift"]) is not None:
            x, y, wide = axes.x(place + 0.3), axes.y(value), round(axes.band * 0.4, 1)
            tall = round(axes.y(0) - y, 1)
            parts.append(
                f'<rect class="drift" x="{x}" y="{y}" width="{wide}" height="{tall}"/>'
                f'<text x="{x + wide / 2}" y="{y - 4}" text-anchor="middle">{value:.1f}</text>'
            )
    return svg(height, "largest drift by month", parts)


def svg(height: int, title: str, parts: Sequence[str]) -> str:
    """Return a drawing with a title for who cannot see it."""
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img"><title>{escape(title)}</title>'
    return f"{head}{''.join(parts)}</svg>"


def rows(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Return a table; cells are text already."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f"<table><tr>{top}</tr>{body}</table>"


def number(value: float | None, form: str = ".3f") -> str:
    """Return a number, or a dash for none."""
    return "-" if value is None else format(value, form)


def judged(figures: Sequence[Figure]) -> str:
    """Return the figures beside their bars."""
    lines = []
    for figure in figures:
        kind, word = ("yes", "reached") if figure.reached else ("no", "short")
        value = f"{figure.value:.3g} {figure.unit}".strip()
        verdict = f'<b class="{kind}">{word}</b>'
        lines.append([figure.what, value, figure.bar, verdict, escape(figure.note)])
    return rows(["what", "figure", "bar", "", ""], lines)


def by_month(months: Sequence[dict[str, Any]]) -> str:
    """Return all that is known of each month."""
    lines = []
    for month in months:
        aucs = [number(month["curves"][curve]["auc"]) for curve in CURVES]
        what = f"<b>{escape(month['decision'])}</b> {escape(month['reason'])}"
        if word := month["retraining"]:
            what += f' <b class="{word}">retrained: {word}</b>'
        asked = f"{month['asked']:,} ({month['http']:,} by HTTP)"
        about = [month["month"], asked, escape(month["release"])]
        lines.append([*about, *aucs, number(month["drift"], ".1f"), what])
    head = ["month", "flights asked", "champion at its end", *CURVES, "drift"]
    return rows([*head, "decision at its end, and what came of it"], lines)


def page(record: dict[str, Any], figures: Sequence[Figure]) -> str:
    """Return the page of a record and its figures, HTML without any outside part."""
    months = record["months"]
    means = ", ".join(f"{CURVES[c]} {mean(months, c, 'auc'):.4f}" for c in CURVES)
    well = all(figure.reached for figure in figures)
    changed = [
        [escape(file), f"<code>{escape(old)}</code>", f"<code>{escape(new)}</code>", escape(why)]
        for file, old, new, why in settings.listed()
    ]
    tried = sum(bool(month["retraining"]) for month in months)
    body = f"""<h1>2013, replayed: {tried} retrainings instead of ten</h1>
<p>Each month's flights are asked of the running service and of <code>ml predict</code>; then their
labels come, <code>ml monitor</code> decides, and <code>ml retrain</code> follows where it says so.
Mean ROC AUC from March: {means}. <b class="{"yes" if well else "no"}">
{"All bars are reached." if well else "Not all bars are reached."}</b></p>
<h2>ROC AUC <small>of the flights that departed, by the answers that were given</small></h2>
{metric(months, "auc", 330)}
<h2>Calibration error <small>mean distance of scores from what came true</small></h2>
{metric(months, "calibration", 220, zero=True)}
<h2>Largest drift <small>in multiples of what is usual between training periods</small></h2>
{drifts(months)}
<h2>What it must reach</h2>{judged(figures)}
<h2>Month by month</h2>{by_month(months)}
<h2>Settings that differ from a new project's</h2>{rows(["file", "was", "is", "why"], changed)}"""
    head = f'<meta charset="utf-8"><title>The replayed year</title><style>{STYLE}</style>'
    parts = f"<head>{head}</head><body><main>{body}</main></body>"
    return f'<!doctype html><html lang="en">{parts}</html>\n'


def picture(html: Path) -> str:
    """Draw a page beside it as PNG, with Chromium; return where, or why there is none."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return "no picture: it needs Chromium"
    png = html.with_suffix(".png")
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=1.5"]
    shot = [f"--screenshot={png}", "--window-size=1088,1010", html.resolve().as_uri()]
    subprocess.run([browser, *options, *shot], capture_output=True, check=True, timeout=60)
    return str(png)
