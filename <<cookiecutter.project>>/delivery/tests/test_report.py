"""What a report says first and never lets through; the past of a release, told from the log.

And a mirror that no delivery fails by, and what GitHub lacks.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import math
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
from model_delivery import history
from model_delivery.cli import terminal
from model_delivery.cli.main import app
from model_delivery.contract.settings import DataContract
from model_delivery.files import write_atomic
from model_delivery.gates import lowered_limits
from model_delivery.project import Project
from model_delivery.protocols import UserError, user_module
from model_delivery.registry import Event, event_log
from model_delivery.report.render import (
    LIMITS,
    change_of,
    columns_of,
    number,
    render,
    scale,
    value_of,
)
from model_delivery.report.verdict import (
    Chart,
    Check,
    Outcome,
    Report,
    Table,
    Trigger,
    Verdict,
)
from pydantic import ValidationError
from rich.console import Console
from typer.testing import CliRunner, Result

PASS, WARN, RETRAIN, INCONCLUSIVE, STOP, CRASH = Outcome
DIGEST = "sha256:" + "3f9a1c27" * 8
HOSTILE = (
    "a|b `x` <script>alert(1)</script> @octocat #1 \n\n# big\n[x](http://evil) "
    "![i](https://e/x.png) \u202eevil\u202c <!-- </details> --> \\ **b** __i__ \x1b[31m [red]r[/]"
)


ALIVE = r"<script|@octocat|(?<!&)#1\b|\u202e|\x1b|<!--|\]\(http:|!\[|http://e"
"""What of that would do something in a comment."""


def check(name: str, outcome: Outcome, value: Any, limit: str, **more: Any) -> Check:
    said = {"sentence": f"how `{name}` came out", **more}
    return Check(name=name, outcome=outcome, value=value, limit=limit, **said)


def verdict(gate: str, *checks: Check, **more: Any) -> Verdict:
    fields = {"subject": DIGEST, "limits": "ab12", "seconds": 3.2, "finished": "2026-11-24T10:12Z"}
    return Verdict(gate=gate, checks=list(checks), **{**fields, **more})


def data(outcome: Outcome = PASS) -> Verdict:
    rows = [["temperature", 0.62, 0.29], ["pressure", 0.04, 0.1]]
    drift = Table(
        title="Drift against the months' spread", columns=["column", "drift", "spread"], rows=rows
    )
    lines: dict[str, Any] = {"last month": [0.62, 0.04], "spread": [0.29, 0.1]}
    shown = Chart(title="Drift", x=[1, 2], series=lines)
    checks = [check("columns", PASS, 0.0, "= 0"), check("drift", outcome, 0.62, "≤ 0.4")]
    return verdict("data", *checks, tables=[drift], charts=[shown])


def model(auc: float = 0.7523, champion: float | None = 0.7498) -> Verdict:
    outcome = PASS if auc >= 0.74 else STOP
    rows = [["region", "north", 900, 0.74, 0.73, 0.75, 0.742, -0.002]]
    rows += [["region", "south", 400, 0.70, 0.66, 0.74, 0.731, -0.031]]
    columns = ["column", "value", "rows", "AUC", "low", "high", "champion", "change"]
    trees = [float(i) for i in range(100)]
    fit = [0.5 - i / 1000 for i in range(100)]
    curve: dict[str, Any] = {"fit": fit, "stopping": [0.5, math.nan] * 50}
    return verdict(
        "model",
        check("roc_auc", outcome, auc, "≥ 0.74", low=0.745, high=0.759, champion=champion),
        check("calibration_error", PASS, 0.021, "≤ 0.05"),
        tables=[Table(title="Segments", columns=columns, rows=rows)],
        charts=[Chart(title="Learning curve", x=[*trees], series={**curve})],
    )


def load(outcome: Outcome = PASS) -> Verdict:
    lines: dict[str, Any] = {"candidate": [4.1, 4.9, 7.6], "twin": [2.9, 3.4, 4.0]}
    latency = Chart(title="Latency", x=[50, 95, 99], series=lines)
    shown = check("p95_to_champion", outcome, 1.07, "≤ 1.1", low=0.94, high=1.19)
    return verdict("load", shown, charts=[latency])


def manifest(text: str = "2013-08-01") -> dict[str, Any]:
    return {
        "as_of": text,
        "rows": {"train": 162_001, "test": 28_883},
        "spans": {part: [text, text] for part in ("train", "test")},
        "excluded": {text: 5_823},
        "snapshot": text,
    }


def report(*verdicts: Verdict, event: Trigger = "pull_request", **more: Any) -> Report:
    fields = {"project": "a-project", "subject": DIGEST, "commit": "8c1f2a9", "data": manifest()}
    return Report(event=event, verdicts=list(verdicts), **{**fields, **more})


def hostile() -> Report:
    bad = HOSTILE
    shown = Table(title=bad + " segment", columns=[bad, "change"], rows=[[bad, 1.0], [None]])
    line = Chart(title=bad, x=[1, 2, 3], series={bad: [1, 2, 3]}, x_label=bad, y_label=bad)
    more = Chart(title=bad, x=[1, 2], series={bad: [1.0, math.nan]}, x_label=bad)
    judged = check(bad, STOP, bad, bad, sentence=bad)
    told: dict[str, Any] = {"tables": [shown], "charts": [line, more], "against": bad}
    verdicts = [verdict(gate, judged, **told) for gate in (bad, "model")]
    names: dict[str, Any] = dict.fromkeys(("project", "subject", "commit", "branch"), bad)
    return report(*verdicts, data=manifest(bad), notes=[bad], **names)


def huge() -> Report:
    many = [check(f"check {i}", STOP, HOSTILE * 9, "≥ 1", sentence=HOSTILE * 99) for i in range(60)]
    wide = [[HOSTILE] * 20 for _ in range(250)]
    shown = [Table(title=f"Segments {i}", columns=["c"] * 20, rows=wide) for i in range(2)]
    long: dict[str, Any] = {f"s{i}": [float(j) for j in range(300)] for i in range(9)}
    drawn = Chart(title="c", x=[float(j) for j in range(300)], series={**long})
    gates = [verdict(f"gate {i}", *many, tables=shown, charts=[drawn] * 14) for i in range(2)]
    return report(*gates, notes=[HOSTILE * 99] * 3_000)


REPORTS = {
    "pass": report(data(), model(), load()),
    "first": report(data(), model(champion=None), load(), event="local"),
    "stop": report(data(), model(0.7398), load()),
    "inconclusive": report(data(), model(), load(INCONCLUSIVE)),
    "hostile": hostile(),
}
PAGES = ("report.html", "report.md")
each_report = pytest.mark.parametrize("shown", REPORTS.values(), ids=REPORTS)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (REPORTS["pass"], "✅ **This change may be merged: 5 checks of 3 gates pass.**"),
        (
            REPORTS["stop"],
            "⛔ **This change must not be merged.** "
            "Gate `model`, check `roc_auc`: 0.7398 (0.745 to 0.759), limit ≥ 0.74.",
        ),
        (
            report(data(RETRAIN), model(), event="delivery"),
            "⚠️ **This candidate may be promoted, with 1 warning.** "
            "Gate `data`, check `drift`: 0.62, limit ≤ 0.4.",
        ),
        (
            report(model(), verdict("load"), verdict("api")),
            "❓ **This change cannot be merged yet: not everything could be judged.** "
            "Gate `load`, check `run`: no check ran: that is never a pass; 1 more below.",
        ),
    ],
)
def test_first_line_says_what_may_happen_next_and_why(shown: Report, words: str) -> None:
    assert render("report.md", shown).splitlines()[0] == words
    assert words.split("**")[1].rstrip(".") in render("report.html", shown)


def test_first_line_says_that_rows_were_drawn() -> None:
    said = "; on rows drawn from the data contract: no quality was judged"
    for found in (data(), data(STOP)):
        for drawn in (True, False):
            shown = report(found, model(), data=manifest() | {"sample": drawn})
            assert (f"{said}.**" in render("report.md", shown).splitlines()[0]) == drawn
            headline = render("report.html", shown).partition("<h1>")[2].partition("</h1>")[0]
            assert headline.endswith(said) == drawn


@pytest.mark.parametrize("event", get_args(Trigger))
@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_words_in_every_event(outcome: Outcome, event: Trigger) -> None:
    shown = report(verdict("data", check("drift", outcome, 1.0, "≤ 2")), event=event)
    page = render("report.html", shown)
    headline = page.partition("<h1>")[2].partition("</h1>")[0]
    blocked = re.search(r"must not be|cannot be|is due for", headline) is not None
    assert (" may be " in headline) != blocked
    assert blocked == (shown.outcome in (INCONCLUSIVE, STOP, CRASH) or "due" in headline)
    assert re.search(rf"<i>[^<]+</i> {shown.outcome}", page), "not by colour alone"
    assert (f"({outcome})" in page) == (shown.outcome is not outcome)


def test_a_gate_without_checks_is_inconclusive() -> None:
    assert report(verdict("data")).outcome is report().outcome is INCONCLUSIVE
    for page in (render(name, report(verdict("data"), model())) for name in PAGES):
        assert "no check ran: that is never a pass" in page


def test_first_delivery_is_a_stated_outcome() -> None:
    compared = report(data(), verdict("model", against="12ab" * 16))
    for name in PAGES:
        assert "first delivery" in render(name, REPORTS["first"])
        assert "first delivery" not in render(name, compared)
        assert "12ab12ab12ab" in render(name, compared)


@pytest.mark.parametrize(
    ("value", "limit", "shown"),
    [
        (0.7399999, "≥ 0.74", "0.7399999"),
        (0.75234, "≥ 0.74", "0.7523"),
        (20_000.4, "≤ 20,000", "20,000.4"),
        (0.0, "= 0", "0"),
        (-0.0, "≤ 0.1", "0"),
        (math.nan, "≥ 0.74", "nan"),
        (None, "", "–"),
    ],
)
def test_a_value_is_never_rounded_over_its_limit(value: Any, limit: str, shown: str) -> None:
    assert value_of(check("x", PASS, value, limit))[0] == shown


def test_change_says_which_way_is_better() -> None:
    up = check("qps", PASS, 12.0, "≥ 5", champion=10.0)
    down = check("ms", PASS, 12.0, "≤ 50", champion=10.0)
    same = check("ms", PASS, 0.1 + 0.2, "≤ 50", champion=0.3)
    assert [change_of(it) for it in (up, down, same)] == ["+2 better", "+2 worse", "same"]


def test_markdown_shows_hostile_text_as_data() -> None:
    page = render("report.md", hostile())
    assert not re.search(ALIVE, page)
    assert not re.search(r"^(#|>|=|1\.)", page, re.MULTILINE)
    assert "&#60;script&#62;" in page
    assert "&#92;u202e" in page
    assert page.count("<details>") == page.count("</details>") == page.count("<summary>")


def diagrams(page: str) -> list[tuple[str, str]]:
    """Return the line above each diagram of a page, and what stands in the diagram."""
    return re.findall(r"^(\*\*[^\n]*)\n\n```mermaid\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_diagrams_hold_numbers_alone_and_the_line_above_names_them() -> None:
    number = r"-?\d+\.\d{6}"
    for shown in (*REPORTS.values(), huge()):
        page = render("report.md", shown)
        assert len(diagrams(page)) == page.count("```mermaid")
        for _, drawn in diagrams(page):
            head, kind, *axes = drawn.splitlines()
            assert re.fullmatch(r'%%\{init: \{["\w:{}, #]+\}\}%%', head)
            assert kind == "xychart-beta"
            assert re.fullmatch(rf'  x-axis ({number} --> {number}|\[("[\d.]+"(, )?)+\])', axes[0])
            assert re.fullmatch(rf"  y-axis {number} --> {number}", axes[1])
            assert 1 <= len(axes[2:]) <= 4
            for row in axes[2:]:
                line = re.fullmatch(rf"  line \[({number}(?:, {number})*)\]", row)
                assert line
                assert 2 <= len(line[1].split(", ")) <= 40
    (named, curve), (_, waits) = diagrams(render("report.md", REPORTS["pass"]))[1:]
    only = "**Learning curve**: 🟦 fit"  # the other one has gaps
    assert (named.strip(), curve.count("line [")) == (only, 1)
    assert '["50", "95", "99"]' in waits
    assert waits.count("line [") == 2


def test_only_what_says_something_stands_above_the_details() -> None:
    above = render("report.md", REPORTS["pass"]).partition("<details>")[0]
    titles = re.findall(r"^\*\*(\w+)", above, re.MULTILINE)
    assert titles == ["Segments", "Drift", "Drift", "Learning", "Latency"]
    rows = [["north", 900, 0.74, None]]
    alone = Table(title="Segments", columns=["segment", "rows", "AUC", "change"], rows=rows)
    page = render("report.md", report(verdict("model", tables=[alone])))
    assert "**Segments**" not in page.partition("<details>")[0]
    assert "**Segments**" in page


def test_the_comment_leads_to_the_run_and_to_nothing_else() -> None:
    run = "https://github.com/octo-org/a-project/actions/runs/7"
    page = render("report.md", report(data(), run=run))
    assert f"[This run]({run}) · [its artifacts]({run}#artifacts)" in page
    assert "[This run]" not in render("report.md", report(data()))
    for bad in ("javascript:alert(1)", "https://e/ [x](http://evil)", f"{run})", f"{run}\n# big"):
        with pytest.raises(ValidationError):
            report(data(), run=bad)


LIMITS_BEFORE = """
data: { rows: { min: 20000, outcome: stop } }
model:
  roc_auc: { min: 0.70, outcome: stop }
  calibration_error: { max: 0.08, outcome: stop }
  segment_rows: 500
deepchecks: { data: { FeatureDrift: { max: 2, outcome: retrain } } }
"""
ROLLOUT_BEFORE = """
environments: { production: { port: 3000, load: true, canary: [{ weight: 0.1, seconds: 30 }] } }
rollout: { error_share: { max: 0.01, outcome: stop }, shadow_rows: 200 }
"""
CONTRACT_BEFORE = """
exclude: { cancelled: { column: late, most: 0.06 } }
columns: { temp: { type: number, min: -30, missing: 0.03 }, dest: { type: category } }
"""


def repository(folder: Path) -> Project:
    """Return a project of which `main` has limits, on a branch `change`."""
    (folder / "config").mkdir()
    (folder / "config" / "gates.yaml").write_text(LIMITS_BEFORE)
    (folder / "config" / "delivery.yaml").write_text(ROLLOUT_BEFORE)
    (folder / "config" / "data.yaml").write_text(CONTRACT_BEFORE)
    committed(folder, "init --quiet -b main", "Limits")
    return committed(folder, "checkout --quiet -b change", "Nothing")


def committed(folder: Path, command: str, message: str) -> Project:
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (command.split(), ["add", "."], ["commit", "--allow-empty", "-qm", message]):
        subprocess.run([*git, *words], cwd=folder, check=True, capture_output=True)
    return Project(folder)


@pytest.fixture
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("GITHUB_BASE_REF", raising=False)
    return repository(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("gates", "min: 0.70", "min: 0.60", "`model.roc_auc` min 0.7 → 0.6"),
        ("gates", "min: 0.70", "min: 0.80", ""),
        ("gates", "max: 0.08", "max: 0.1", "`model.calibration_error` max 0.08 → 0.1"),
        ("gates", "max: 0.08", "max: 0.01", ""),
        ("gates", "max: 0.08", "min: 0.08", "`model.calibration_error` max 0.08 → –"),
        ("gates", "0.70, outcome: stop", "0.70, outcome: warn", "roc_auc` outcome stop → warn"),
        ("gates", "outcome: retrain", "outcome: stop", ""),
        ("gates", "FeatureDrift: { max: 2, outcome: retrain }", "", "max 2 → –, outcome retrain"),
        ("gates", "rows: 500", "rows: 5000", "500 → 5,000: it decides what is judged"),
        ("gates", "rows: 500", "rows: 500\n  more: { min: 1, outcome: stop }", ""),
        ("delivery", "max: 0.01", "max: 0.02", "`rollout.error_share` max 0.01 → 0.02"),
        ("delivery", "rows: 200", "rows: 1", "`rollout.shadow_rows` 200 → 1: it decides"),
        ("delivery", "port: 3000", "port: 3001", ""),
        ("delivery", "load: true", "load: false", "`environments.production.load` True → False"),
        ("delivery", "seconds: 30", "seconds: 1", "`environments.production.canary` [{"),
        ("delivery", ROLLOUT_BEFORE, "rollout: {}", "`rollout.error_share` max 0.01 → –"),
        ("data", "missing: 0.03", "missing: 0.3", "`columns.temp.missing` max 0.03 → 0.3"),
        ("data", "missing: 0.03", "missing: 0.01", ""),
        ("data", "category }", "category, outside: 0.2 }", "`columns.dest.outside` max 0 → 0.2"),
        ("data", "most: 0.06", "most: 0.5", "`exclude.cancelled.most` max 0.06 → 0.5"),
        ("data", "temp:", "warmth:", ""),  # a column that is gone lets nothing through
        ("data", CONTRACT_BEFORE, "columns: { one: { type: number, missing: 1 } }", ""),
        ("data", "exclude: {", "exclude: { cold: { most: 1 },", "`exclude.cold.most` max 0 → 1"),
        ("data", "exclude: {", "slack: 0.5\nexclude: {", "`slack` max 0.1 → 0.5"),
        ("data", "min: -30", "min: -40", ""),  # the range of a request, and no share
    ],
)
def test_a_looser_limit_is_said_and_a_tighter_one_is_not(
    change: Project, file: str, old: str, new: str, said: str
) -> None:
    assert lowered_limits(change) == []
    path = change.root / "config" / f"{file}.yaml"
    path.write_text(path.read_text().replace(old, new))
    told = lowered_limits(change)
    assert said in "; ".join(told)
    assert bool(told) == bool(said)
    page = render("report.md", report(data(), lowered=told))
    assert ("**Limits lowered by this change**" in page.partition("<details>")[0]) == bool(said)
    page = render("report.html", report(lowered=told))
    assert ("Limits lowered by this change" in page) == bool(said)


def test_a_change_is_compared_with_where_it_goes_to(
    change: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered = ["`model.roc_auc` min 0.7 → 0.6"]
    path = change.root / "config" / "gates.yaml"
    path.write_text(LIMITS_BEFORE.replace("0.70", "0.60"))
    committed(change.root, "status", "Lower it")
    committed(change.root, "status", "Another commit")
    assert lowered_limits(change) == lowered, "with `main`, however many commits ago"
    monkeypatch.setenv("GITHUB_BASE_REF", "main")
    assert lowered_limits(change) == [], "the first parent of what GitHub checks out"
    committed(change.root, "checkout --quiet main", "Meanwhile")
    committed(change.root, "merge --quiet --no-ff --no-commit change", "Merge")
    assert lowered_limits(change) == lowered


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "a: &a {b: *a}", "a: [", "\udcff", "- " * 3_000),
        "x: !!python/object/apply:os.system [id]",
        "model: { roc_auc: { min: high, outcome: stop } }",
        "model: { roc_auc: { min: 1, outcome: no } }",
    ],
)
def test_limits_that_cannot_be_compared_are_said_so(change: Project, text: str) -> None:
    path = change.root / "config" / "gates.yaml"
    content = text.encode(errors="surrogateescape")
    for back in (content, LIMITS_BEFORE.encode()):
        path.write_bytes(back)
        committed(change.root, "checkout --quiet -B main", "Anything")
    subprocess.run(["git", "reset", "-q", "--soft", "HEAD^"], cwd=change.root, check=True)
    (told,) = lowered_limits(change)
    assert told.startswith("`config/gates.yaml` was not compared")


def test_hostile_names_of_limits_are_data(change: Project) -> None:
    path = change.root / "config" / "gates.yaml"
    bad = json.dumps(HOSTILE)
    path.write_text(f"{bad}: {{ {bad}: {{ min: 1, outcome: stop }} }}\n")
    committed(change.root, "checkout --quiet -B main", "Hostile")
    path.write_text(LIMITS_BEFORE)
    page = render("report.md", report(data(), lowered=lowered_limits(change)))
    assert "min 1 → –" in page
    assert not re.search(ALIVE, page)


def test_without_a_branch_to_compare_with_the_report_says_so(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "gates.yaml").write_text(LIMITS_BEFORE)
    (tmp_path / "config" / "delivery.yaml").write_text(ROLLOUT_BEFORE)
    (tmp_path / "config" / "data.yaml").write_text(CONTRACT_BEFORE)
    told = lowered_limits(Project(tmp_path))
    assert [line.partition(" was not compared")[0] for line in told] == [
        "`config/gates.yaml`",
        "`config/delivery.yaml`",
        "`config/data.yaml`",
    ]


@pytest.mark.parametrize("shown", [*REPORTS.values(), huge()], ids=[*REPORTS, "huge"])
def test_markdown_is_whole_and_fits_a_comment(shown: Report) -> None:
    page = render("report.md", shown)
    assert len(page) <= LIMITS["report.md"] < 65_536
    assert page == render("report.md", shown.model_copy(deep=True))
    runs = itertools.groupby(page.splitlines(), key=lambda line: line.startswith("|"))
    for lines in [list(lines) for is_table, lines in runs if is_table]:
        assert len({line.count("|") for line in lines}) == 1
        assert all(line.endswith(" |") for line in lines)
        assert re.fullmatch(r"\|( -+:? \|)+", lines[1])


def test_what_is_cut_is_counted() -> None:
    for name in PAGES:
        page = render(name, huge())
        assert len(page) <= LIMITS[name]
        for noun in ("rows", "checks", "lines"):
            assert re.search(rf"… [\d,]+ more {noun}, not shown here", page)


class Page(HTMLParser):
    """Collects elements, attributes and links."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {value or "" for name, value in attrs if name in ("href", "src")}


@each_report
def test_html_needs_and_runs_nothing_else(shown: Report) -> None:
    page = render("report.html", shown)
    seen = Page(page)
    assert not seen.tags & {"script", "img", "link", "iframe", "object"}
    assert not any(name.startswith("on") for name in seen.attributes)
    assert all(link.startswith("#gate-") for link in seen.links)
    assert not re.search(r"url\(|@import|\u202e|\x1b", page)
    assert page == render("report.html", shown.model_copy(deep=True))
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        tree = ElementTree.fromstring(picture)
        assert tree.findtext("title")
        assert tree.get("role") == "img"
        assert not re.search(r"nan|inf\b|–", re.sub(r"<(title|text)[^>]*>.*?</\1>", "", picture))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast(theme: int) -> None:
    style = render("report.html", report()).split(":root")[1 + theme]
    colours = dict(re.findall(r"--(\w+): (#\w{6});", style))
    for ink in ("ink", "soft", *Outcome, "s0"):
        for ground in ("paper", "sheet", "wash"):
            one, two = sorted([luminance(colours[ink]), luminance(colours[ground])])
            assert (two + 0.05) / (one + 0.05) >= 4.5, (ink, ground)


def test_pictures_show_what_is_finite_and_say_when_nothing_is() -> None:
    empty = Chart(title="t", x=[1.0, 2.0], series={"a": [None, math.nan]})
    assert "no finite value" in render("report.html", report(verdict("a", charts=[empty])))
    judged = [check("x", PASS, value, "≥ 1") for value in (math.nan, 2.0)]
    bars = [render("report.html", report(verdict("a", it))).count("<rect ") for it in judged]
    assert bars == [0, 2], "beside its gate, and at the top"
    at = scale([1.0, 3.0], 186, 8)
    assert 186 > at(1.0) > at(2.0) == 97 > at(3.0) > 8
    assert 5 < scale([7.0, 7.0], 5, 145)(7.0) < 145


def test_a_number_shows_the_digits_that_matter() -> None:
    values = [0.7, 0.00917, 26_115, 118.48, 1e-9, 1e300, math.inf, None]
    expected = ["0.7", "0.00917", "26,115", "118.5", "1e-09", "1e+300", "inf", "–"]
    assert [number(value) for value in values] == expected


def test_a_table_shows_short_rows_and_hides_empty_columns() -> None:
    shown = Table(title="t", columns=["count", "kept", "champion"], rows=[[1_000, True, None], [2]])
    expected = [("count", True, ["1,000", "2"]), ("kept", False, ["True", "–"])]
    assert columns_of(shown, 9) == expected
    assert columns_of(shown, 1) == [("count", True, ["1,000"]), ("kept", False, ["True"])]


def the_card(shown: Report) -> str:
    columns = {
        "day": {"type": "timestamp"},
        "region": {"type": "category", "values": ["north", "south"]},
        "temperature": {"type": "number", "min": -40, "unit": "°C", "missing": 0.02},
        "late": {"type": "boolean"},
    }
    contract = DataContract.model_validate(
        {
            **{"task": "binary", "target": "late", "time": "day", "key": ["day"]},
            **{"segments": ["region"], "as_of": "2013-08-01", "columns": columns},
            "exclude": {"cancelled": {"column": "late", "most": 0.06}},
        }
    )
    lineage = {"trained": "2026-11-24", "features": ["a"], "parameters": {"rate": 0.05}}
    lineage |= {"data": {"excluded": {"cancelled": 8_255}, "as_of": "2013-08-01"}}
    about = {"description": "Will it be late?", "license": "MIT", "authors": [{"name": HOSTILE}]}
    return render("card.md", shown, about=about, contract=contract, lineage=lineage)


def test_card_says_what_the_score_does_not_cover() -> None:
    page = the_card(report(data(WARN), model()))
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == [
        *("Model details", "Intended use", "Factors", "Metrics", "Evaluation data"),
        *("Training data", "Quantitative analyses", "Ethical considerations"),
        "Caveats and recommendations",
    ]
    said = "cancelled (8,255, where `late` is missing): the score says nothing about them."
    assert page.count(said) == 2
    assert "0.7523 | 0.745 to 0.759 | ≥ 0.74 | pass | +0.0025 better" in page
    assert "| `temperature` | number | -40 to any | °C | at most 2.0% |" in page
    assert "<script" not in page


def test_terminal_prints_no_control_sequence_of_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=100, record=True, file=io.StringIO(), emoji=False)
    monkeypatch.setattr(terminal, "results", console)
    assert terminal.show_verdicts(hostile().verdicts, "pull_request", as_json=False) == 20
    said = console.export_text()
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "[red]" in said.replace("\n", "")


def test_a_job_s_summary_has_what_an_environment_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, found = tmp_path / "summary.md", {"state": "serving", "release": "v1 | <b>"}
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    page.write_text("before\n")
    terminal.show_status(found, True)
    assert page.read_text() == "before\n    state        serving\n    release      v1 | <b>\n"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "")
    terminal.show_status(found, True)
    assert len(page.read_text().splitlines()) == 3
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    terminal.show_error(UserError("it ended:\n# with a heading"))
    assert page.read_text().endswith("    it ended:\n    # with a heading\n")


def test_a_mistake_in_the_users_code_is_told_from_there_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The frames before it are the machinery's, and bury it."""
    monkeypatch.setattr(terminal, "user_package", lambda: "fares")
    write_atomic(own := tmp_path / "fares" / "features.py", "def fit(rows):\n    rows['logns']\n")
    code = runpy.run_path(str(own))
    for act, frames in ((code["fit"], ["features.py"]), (json.loads, ["test_report.py"])):
        with pytest.raises((KeyError, TypeError)) as caught:
            act({})
        assert terminal.show_error(caught.value) == 1
        told = capsys.readouterr().err
        found = re.findall(r'File ".*/(.+?)", line', told)
        assert found[: len(frames)] == frames, told
    assert terminal.show_error(UserError("no rows", 0)) == 0


def test_a_written_file_has_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "report.md", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "report.md").stat().st_mode & 0o777 == 0o640
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]


A, B, C = ("a" * 64, "b" * 64, "b" + "c" * 63)


def event(digest: str, release: str, **fields: object) -> Event:
    facts = {"type": "registered", "digest": digest, "release": release, "as_of": "2013-08-01"}
    facts |= {"commit": "c0ffee", "trigger": "local", "blob": "f" * 64, "who": "ann"}
    return Event.model_validate(facts | fields)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project whose log holds three releases, moves, and a rollback with its reason."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "data.yaml").touch()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "late"\nversion = "1.0.0"\n')
    monkeypatch.chdir(tmp_path)
    moved = {"type": "promoted", "environment": "production"}
    first = {"parameters": {"trees": 10, "rate": 0.1}, "metrics": {"auc": [0.75, 0.7, 0.8]}}
    second = {"parameters": {"trees": 20, "rate": 0.1}, "metrics": {"auc": [0.77, None, None]}}
    back = {"type": "rolled_back", "previous": B, "reason": "error_share 0.2 > 0.01"}
    log = [
        event(A, "v1", **first, snapshot="20130801-0123456789ab", verdicts={"model": Outcome.PASS}),
        event(A, "v1", **moved),
        event(B, "v2", **second, against=A, verdicts={"model": Outcome.WARN}),
        event(B, "v2", **moved, previous=A),
        event(A, "v1", **moved | back),
        event(C, "v3", parameters={"[bold]odd": "\x1b[31m"}),
    ]
    for it in log:
        event_log(Project(tmp_path)).append(partial(same, it))
    return Project(tmp_path)


def same(event: Event, _: object) -> Event:
    return event


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["history", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_lineage_names_the_champion_beside_and_what_came_after(project: Project) -> None:
    log = event_log(project).events()
    events, shown = history.describe(log, "v2")
    assert events == [log[n] for n in (2, 0, 3, 4)]
    for said in (
        f"digest +{B[:12]} +{A[:12]}",
        "commit +c0ffee",
        f"against +{A[:12]} +none",
        "as_of +2013-08-01",
        "snapshot +20130801-0123456789ab",
        r"metric auc +0.77 \(– to –\) +0.75 \(0.7 to 0.8\)",
        "gate model +warn +pass",
        "parameter rate +0.1 +0.1",
    ):
        assert re.search(said, shown), said
    told = shown.partition("\n\n")[2].splitlines()
    assert all(line.endswith("(ann, local)") for line in told)
    assert re.search("v2  b{12}  registered   model warn", told[0])
    assert re.search("v2  b{12}  promoted     production", told[1])
    assert re.search(
        "v1  a{12}  rolled_back  production from b{12}  error_share 0.2 > 0.01", told[2]
    )


def test_a_release_is_shown_as_it_was_judged_last(project: Project) -> None:
    again = {"type": "verdict", "against": C, "verdicts": {"model": Outcome.PASS}}
    event_log(project).append(partial(same, event(B, "v2", **again, metrics={"auc": [0.78] * 3})))
    events, shown = history.describe(event_log(project).events(), "v2")
    assert [(it.type, it.release) for it in events[:2]] == [
        ("registered", "v2"),
        ("registered", "v3"),
    ]
    assert re.search(r"metric auc +0.78 \(0.78 to 0.78\)", shown)
    assert re.search("gate model +pass", shown)
    assert f"against  {C[:12]}" in re.sub(" +", "  ", shown)


def test_a_first_release_was_judged_beside_nobody(project: Project) -> None:
    log = event_log(project).events()
    events, shown = history.describe(log, "aaa")
    assert events == [log[n] for n in (0, 1, 3, 4)]
    assert re.search(r"against +none\n", shown)


def test_a_comparison_has_what_differs(project: Project) -> None:
    events = json.loads(run("--compare", "v1", "v2", "--json"))
    assert [it["digest"] for it in events] == [A, B]
    shown = run("--compare", "v1", "v2")
    assert re.search("parameter trees +10 +20", shown)
    assert re.search(r"metric auc +0.75 \(0.7 to 0.8\) +0.77 ", shown)
    for same in ("rate", "as_of", "promoted"):
        assert same not in shown
    assert run("--compare", "v1", "v1").strip() == "no difference"


def test_nothing_in_the_log_is_markup_or_a_control_character(project: Project) -> None:
    shown = run("--lineage", "v3")
    assert "[bold]odd" in shown
    assert r"\x1b[31m" in shown


def test_a_prefix_must_name_one_release(project: Project) -> None:
    events = event_log(project).events()
    assert history.find(events, "bc").release == "v3"
    with pytest.raises(UserError, match="more than one release `b`; `ml history` names"):
        history.find(events, "b")
    with pytest.raises(UserError, match="no release `v9`; `ml history` names"):
        history.find(events, "v9")


def test_an_empty_log_is_said(project: Project) -> None:
    for path in event_log(project).folder.iterdir():
        path.unlink()
    for options in ((), ("--ui",)):
        assert run(*options).strip() == history.EMPTY
    assert json.loads(run("--json")) == []
    with pytest.raises(UserError, match="no release `v1`"):
        run("--lineage", "v1")


def test_a_mirror_that_fails_is_one_line_without_the_password(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(history.SERVER, raising=False)
    history.mirror(project)  # not asked for: nothing happens
    assert not (project.work / "mlflow").exists()
    bin_ = project.root / "bin"
    bin_.mkdir()
    failing = (
        '#!/bin/sh\ncat >seen.json\necho "Trace\nno way to ${MLFLOW_TRACKING_URI}api"\nexit 1\n'
    )
    scripts = {"python": failing, "uv": f"#!/bin/sh\n[ $1 != python ] || echo {bin_}/python\n"}
    for name, script in scripts.items():
        (bin_ / name).write_text(script)
        (bin_ / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv(history.SERVER, "http://ann:secret@127.0.0.1:9/")
    with caplog.at_level(logging.WARNING):
        history.mirror(project)
    (message,) = caplog.messages
    assert "no way to the server/api; the next event tries again" in message
    assert "secret" not in message
    assert len(json.loads((project.work / "mlflow" / "seen.json").read_text())) == 6
    with pytest.raises(UserError, match="no way to the server"):
        run("--ui")


def test_a_mirror_without_uv_or_log_is_a_warning_too(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(history.SERVER, "http://127.0.0.1:9")
    monkeypatch.setenv("PATH", str(project.root))
    with caplog.at_level(logging.WARNING):
        history.mirror(project)
        (project.root / "pyproject.toml").unlink()
        history.mirror(project)
    assert ["uv is not installed" in caplog.messages[0], len(caplog.messages)] == [True, 2]


FAKE_GH = """#!{python}
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
words = sys.argv[1:]
if words[0] != "api" or "--method" in words:
    given = sys.stdin.read() if words[-2:] == ["--input", "-"] else ""
    with (folder / "calls").open("a") as calls:
        calls.write(json.dumps([words, given]) + "\\n")
    sys.exit("gh: Validation Failed (HTTP 422)" if (folder / "refuses").exists() else 0)
answers = json.loads((folder / "answers").read_text())
path = words[1].removeprefix("repos/{{owner}}/{{repo}}")
if path not in answers:
    print('{{"message": "Not Found"}}', end="")
    sys.exit("gh: Not Found (HTTP 404)")
print(json.dumps(answers[path]))
"""
NO_LOGIN = "#!/bin/sh\necho 'To get started, please run:  gh auth login' >&2\nexit 4\n"
RULES = "/rulesets?includes_parents=false&per_page=100"
BARE: dict[str, object] = {
    "": {"default_branch": "main", "private": False, "owner": {"type": "User", "login": "ann"}},
    "user": {"id": 17},
    "/environments": {"environments": []},
    "/actions/permissions": {"enabled": True, "allowed_actions": "selected"},
    "/actions/permissions/selected-actions": {
        "patterns_allowed": ["docker/*", "ossf/*"],
        "github_owned_allowed": False,
    },
    RULES: [{"name": "one", "id": 7, "enforcement": "disabled"}],
    "/codeowners/errors": {
        "errors": [{"path": ".github/CODEOWNERS", "line": 3, "kind": "Unknown owner"}]
    },
    "/actions/workflows/weekly.yml": {"state": "disabled_inactivity"},
    "/actions/workflows/weekly.yml/runs?event=schedule&per_page=1": {"workflow_runs": []},
}
REVIEWED = {"name": "production", "protection_rules": [{"type": "required_reviewers"}]}
WHOLE = BARE | {
    "/actions/permissions": {"enabled": True, "allowed_actions": "all"},
    "/environments": {"environments": [{"name": "test"}, {"name": "staging"}, REVIEWED]},
    **{
        f"/actions/variables/DEPLOY_RUNNER_{n}": {"name": n}
        for n in ("TEST", "STAGING", "PRODUCTION")
    },
    "/actions/secrets/SOURCE_KEY": {"name": "SOURCE_KEY"},
    RULES: [{"name": name, "id": 7, "enforcement": "active"} for name in ("one", "two")],
    "/codeowners/errors": {"errors": []},
    "/actions/workflows/weekly.yml": {"state": "active"},
    "/actions/workflows/weekly.yml/runs?event=schedule&per_page=1": {
        "workflow_runs": [{"created_at": "2026-11-20T04:17:00Z"}]
    },
}
PUT = ["api", "--method", "PUT", "repos/{owner}/{repo}/environments/"]
CHANGE = ["api", "--method", "PUT", "repos/{owner}/{repo}/rulesets/7", "--input", "-"]
POST = ["api", "--method", "POST", "repos/{owner}/{repo}/rulesets", "--input", "-"]
ASKED = ["-f", "reviewers[][type]=User", "-F", "reviewers[][id]=17"]
CALLS = [
    ([*PUT[:3], f"{PUT[3]}test"], ""),
    ([*PUT[:3], f"{PUT[3]}staging"], ""),
    ([*PUT[:3], f"{PUT[3]}production", *ASKED], ""),
    (CHANGE, '{"name": "one", "target": "tag"}'),
    (POST, '{"name": "two", "target": "branch"}'),
    (["workflow", "enable", "weekly.yml"], ""),
]
Doctor = Callable[..., Result]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Return a function that runs `ml doctor --github` where GitHub answers as given."""
    github = tmp_path / ".github"
    (github / "workflows").mkdir(parents=True)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "data.yaml").touch()
    (github / "workflows" / "ci.yml").write_text("on:\n  pull_request:\n")
    (github / "workflows" / "weekly.yml").write_text("on:\n  schedule: [{ cron: 0 0 * * 1 }]\n")
    for name in ("deliver", "retrain", "monitor"):
        (github / "workflows" / f"{name}.yml").write_text("${{ secrets.SOURCE_KEY }}\n")
    rulesets = [{"name": "one", "target": "tag"}, {"name": "two", "target": "branch"}]
    (github / "rulesets.json").write_text(json.dumps(rulesets))
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(user_module("sources"), "NEEDS", ("SOURCE_KEY",), raising=False)
    put_gh(tmp_path, FAKE_GH.format(python=sys.executable))

    def look(answers: dict[str, object], *options: str, typed: str = "") -> Result:
        (tmp_path / "bin" / "answers").write_text(json.dumps(answers))
        return CliRunner().invoke(app, ["doctor", "--github", *options], input=typed)

    return look


def put_gh(folder: Path, script: str) -> None:
    (folder / "bin" / "gh").write_text(script)
    (folder / "bin" / "gh").chmod(0o755)


def calls(folder: Path) -> list[tuple[list[str], str]]:
    """Return the calls that changed something, with what each read."""
    file = folder / "bin" / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(words, given) for words, given in map(json.loads, lines)]


def said(done: Result) -> dict[str, tuple[bool, str]]:
    """Return each finding by its subject."""
    lines = [re.fullmatch(r"(ok|NO) +(.+?): (.+)", line) for line in done.stdout.splitlines()]
    return {line[2]: (line[1] == "ok", line[3]) for line in lines if line}


def test_a_repository_that_has_everything_is_well(doctor: Doctor) -> None:
    done = doctor(WHOLE)
    assert done.exit_code == 0, done.output
    assert all(ok for ok, _ in said(done).values())
    assert list(said(done)) == [
        *("default branch", "actions", "test", "staging", "reviewers", "production"),
        *("DEPLOY_RUNNER_TEST", "DEPLOY_RUNNER_STAGING", "DEPLOY_RUNNER_PRODUCTION"),
        *("SOURCE_KEY", "ruleset one", "ruleset two", "code owners", "weekly.yml"),
    ]
    assert "2026-11-20T04:17:00Z" in said(done)["weekly.yml"][1]
    assert json.loads(doctor(WHOLE, "--json").stdout)[0]["subject"] == "default branch"


def test_each_thing_that_is_missing_on_github_is_named(doctor: Doctor) -> None:
    about = {"default_branch": "trunk", "private": False, "owner": {"type": "User"}}
    done = doctor(BARE | {"": about})
    found = said(done)
    assert done.exit_code == 2
    hints = {f"DEPLOY_RUNNER_{name}" for name in ("TEST", "STAGING", "PRODUCTION")}
    assert {subject for subject, (ok, _) in found.items() if ok} == hints
    assert len(found) == 14
    assert found["actions"][1] == "allowed: selected; lacks actions/, astral-sh/, marocchino/"
    owners = ["docker/*", "ossf/*", "marocchino/*", "astral-sh/setup-uv@*"]
    chosen = {"patterns_allowed": owners, "github_owned_allowed": True}
    selected = {"/actions/permissions/selected-actions": chosen}
    assert said(doctor(BARE | selected))["actions"] == (True, "allowed: selected; lacks none")
    assert "`gh variable set DEPLOY_RUNNER_TEST`" in found["DEPLOY_RUNNER_TEST"][1]
    assert "`gh secret set SOURCE_KEY`" in found["SOURCE_KEY"][1]
    assert found["code owners"][1] == ".github/CODEOWNERS:3: Unknown owner"
    assert "nobody is asked" in found["reviewers"][1]
    assert "disabled_inactivity, last run by schedule: none yet" in found["weekly.yml"][1]
    assert "trunk" in found["default branch"][1]


@pytest.mark.parametrize("has", [(), ("labels",), ("newest",)])
def test_a_workflow_that_hands_no_secret_on_is_named(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: tuple[str, ...]
) -> None:
    sources = SimpleNamespace(**dict.fromkeys(has))
    monkeypatch.setattr("model_delivery.cli.doctor.user_module", lambda _: sources)
    workflows = tmp_path / ".github" / "workflows"
    (workflows / "deliver.yml").unlink()  # of who has another way
    for name in ("deploy", "retrain", "monitor"):
        (workflows / f"{name}.yml").write_text("${{ secrets.OTHER }}\n")
    done = doctor(WHOLE)
    assert done.exit_code == 2
    bad = {subject: told for subject, (ok, told) in said(done).items() if not ok}
    said_of = "hands no SOURCE_KEY on; the README beside it says where"
    assert bad == dict.fromkeys(["retrain.yml", "monitor.yml", *["deploy.yml"] * len(has)], said_of)


def test_what_a_plan_does_not_enforce_is_said(doctor: Doctor) -> None:
    """A private repository of a person, or of an organisation below Enterprise."""
    person = {"type": "User", "login": "ann"}
    team = {"type": "Organization", "login": "octo"}
    for owner, plan, enforced in (
        (person, {}, False),
        (team, {"plan": {"name": "free"}}, False),
        (team, {}, False),
        (team, {"plan": {"name": "enterprise"}}, True),
    ):
        about = {"default_branch": "main", "private": True, "owner": owner}
        found = said(doctor(WHOLE | {"": about, "orgs/octo": plan}))
        assert found["reviewers"][0] is enforced
        assert ("not enforced" in found["reviewers"][1]) is not enforced
    refused = {"": about | {"owner": person}, RULES: None}
    del (answers := WHOLE | refused)[RULES]
    found = said(doctor(answers, "--fix", typed="n\n"))
    assert found["rulesets"] == (False, "not shown: Not Found (HTTP 404)")
    assert found["weekly.yml"][0]  # it goes on after what it may not see


def test_fix_prints_the_calls_and_makes_them_only_if_asked_to(
    doctor: Doctor, tmp_path: Path
) -> None:
    done = doctor(BARE, "--fix", typed="n\n")
    shown = [line.strip() for line in done.stderr.splitlines() if "gh " in line]
    made = [shlex.join(["gh", *words]) for words, _ in CALLS]
    made[3:5] = [f"jq '.[{n}]' .github/rulesets.json | {call}" for n, call in enumerate(made[3:5])]
    assert shown == made
    assert done.exit_code == 2
    assert calls(tmp_path) == []
    done = doctor(BARE, "--fix", typed="y\n")
    assert done.exit_code == 0, done.output
    assert calls(tmp_path) == CALLS


def test_fix_asks_nothing_where_nothing_is_missing(doctor: Doctor, tmp_path: Path) -> None:
    done = doctor(WHOLE, "--fix")
    assert done.exit_code == 0, done.output
    assert calls(tmp_path) == []


def test_fix_takes_no_rule_of_an_environment_away(doctor: Doctor, tmp_path: Path) -> None:
    timed = {"name": "production", "protection_rules": [{"type": "wait_timer"}]}
    places = {"environments": [{"name": "test"}, {"name": "staging"}, timed]}
    done = doctor(WHOLE | {"/environments": places}, "--fix")
    assert done.exit_code == 2
    assert not said(done)["reviewers"][0]
    assert calls(tmp_path) == []


def test_each_call_that_github_refuses_is_named(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "bin" / "refuses").touch()
    done = doctor(BARE, "--fix", typed="y\n")
    assert isinstance(done.exception, UserError)
    lacks = ["test", "staging", "production", "ruleset one", "ruleset two", "weekly.yml"]
    assert str(done.exception).splitlines() == [f"{n}: Validation Failed (HTTP 422)" for n in lacks]
    assert calls(tmp_path) == CALLS, "it goes on after a refusal"


def test_without_gh_or_a_login_one_sentence_says_so(doctor: Doctor, tmp_path: Path) -> None:
    put_gh(tmp_path, NO_LOGIN)
    assert str(doctor(BARE).exception) == "nobody is logged in to GitHub: run `gh auth login`"
    (tmp_path / "bin" / "gh").unlink()
    assert str(doctor(BARE).exception) == "gh is not installed; see https://cli.github.com"
