"""The replay judges what it found, and each of its bars can be missed; the whole is exhaustive."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.baking import BakedProject
from tests.replay import memory, settings
from tests.replay.__main__ import drift, main
from tests.replay.asking import Asking
from tests.replay.judge import figures
from tests.replay.page import page

Record = dict[str, Any]


def year() -> Record:
    """Return the record of a replay that reaches its bars, a little above them."""
    months = [
        {
            "month": f"2013-{month:02d}",
            "release": "v0.1.0+data.20130201.1",
            "asked": 27_000,
            "logged": 27_000,
            "http": 2_000,
            "failed": 0,
            "drift": 1.2,
            "decision": "retrain" if month % 2 else "ok",
            "reason": "of what was <seen>",
            "retraining": "promoted" if month in (3, 5, 7, 9) else "",
            "curves": {
                "delivered": {"auc": 0.716, "calibration": 0.03},
                "frozen": {"auc": 0.68, "calibration": 0.08},
                "monthly": {"auc": 0.72, "calibration": 0.03},
            },
        }
        for month in range(2, 13)
    ]
    return {"months": months, "minutes": 9.0, "gigabytes": 1.5}


def short(record: Record) -> list[str]:
    """Return which figures are short of their bars."""
    return [figure.what for figure in figures(record) if not figure.reached]


def set_in(name: str, value: object, *places: int) -> Callable[[Record], None]:
    """Return a change of some months' values."""

    def change(record: Record) -> None:
        for place in places:
            record["months"][place][name] = value

    return change


def delivered(auc: float | None, *places: int) -> Callable[[Record], None]:
    """Return a change of the delivered model's ROC AUC in some months."""

    def change(record: Record) -> None:
        for place in places or range(11):
            record["months"][place]["curves"]["delivered"]["auc"] = auc

    return change


def frozen_well(record: Record) -> None:
    for month in record["months"]:
        month["curves"]["frozen"]["auc"] = 0.69


LESS_FROZEN = "mean ROC AUC, delivered less frozen"
LESS_MONTHLY = "mean ROC AUC, delivered less monthly"
MISSED: dict[str, tuple[Callable[[Record], object], list[str]]] = {
    "a month is left out": (lambda record: record["months"].pop(5), ["months replayed"]),
    "no better than frozen": (frozen_well, [LESS_FROZEN]),
    "worse than monthly": (delivered(0.7140), [LESS_MONTHLY]),
    "a month without a value": (delivered(None, 7), [LESS_FROZEN, LESS_MONTHLY]),
    "retrained each month": (
        set_in("retraining", "promoted", *range(1, 8)),
        ["retrainings, where monthly ones are 10"],
    ),
    "tried each month, and refused": (
        set_in("retraining", "refused", *range(1, 8)),
        ["retrainings, where monthly ones are 10"],
    ),
    "a false alarm": (set_in("decision", "stop", 4), ["decisions to stop or roll back"]),
    "rolled back": (set_in("decision", "rollback", 4), ["decisions to stop or roll back"]),
    "a failed request": (set_in("failed", 1, 6), ["flights without an answer"]),
    "a flight is not logged": (set_in("logged", 26_999, 3), ["flights not in the log once"]),
    "a lost one and a double one": (
        lambda record: (set_in("logged", 26_999, 3)(record), set_in("logged", 27_001, 4)(record)),
        ["flights not in the log once"],
    ),
    "too long": (lambda record: record.update(minutes=12.1), ["time"]),
    "too large": (
        lambda record: record.update(gigabytes=3.1),
        ["memory of all processes together"],
    ),
    "memory not seen": (
        lambda record: record.update(gigabytes=float("nan")),
        ["memory of all processes together"],
    ),
}


def test_a_good_year_reaches_every_bar() -> None:
    assert short(year()) == []


def test_it_may_take_longer_where_that_is_said() -> None:
    late = year() | {"minutes": 17.0}
    assert short(late) == ["time"]
    assert all(figure.reached for figure in figures(late, minutes=20))


@pytest.mark.parametrize("name", MISSED)
def test_each_bar_can_be_missed(name: str) -> None:
    change, expected = MISSED[name]
    record = year()
    change(record)
    assert short(record) == expected


def test_february_is_not_judged() -> None:
    """All three curves are one model there."""
    record = year()
    delivered(0.5, 0)(record)
    assert short(record) == []


def test_the_page_shows_what_was_found() -> None:
    record = year()
    record["months"][4]["retraining"] = "refused"
    text = page(record, figures(record))
    for month in record["months"]:
        assert month["month"] in text
    assert "of what was &lt;seen&gt;" in text
    assert "<seen>" not in text
    assert "All bars are reached" in text
    assert "://" not in text.replace("http://www.w3.org", "")  # nothing from elsewhere
    drawings = [part.split("</svg>")[0] + "</svg>" for part in text.split("<svg")[1:]]
    marks = [ET.fromstring(f"<svg{drawing}") for drawing in drawings]  # noqa: S314 - our own
    for drawing in marks:
        classes = [each.get("class", "") for each in drawing.iter("g")]
        assert classes.count("event promoted") == 4
        assert classes.count("event refused") == 1


def test_the_page_says_that_a_bar_is_missed() -> None:
    record = copy.deepcopy(year())
    delivered(0.70)(record)
    text = page(record, figures(record))
    assert "Not all bars are reached" in text
    assert '<b class="no">short</b>' in text


def test_the_settings_are_those_of_a_new_project(baked: BakedProject, tmp_path: Path) -> None:
    """What a setting replaces stands once in a new project, and no longer afterwards."""
    shutil.copytree(baked.path / "config", tmp_path / "config")
    settings.change(tmp_path)
    for name, _, new, _ in settings.SETTINGS:
        assert new in (tmp_path / "config" / f"{name}.yaml").read_text()
    with pytest.raises(ValueError, match="0 times"):
        settings.change(tmp_path)


def test_an_answer_without_a_score_and_none_at_all_are_failures() -> None:
    asking = Asking.__new__(Asking)
    asking.asked, asking.found = 3, []
    asking.write(json.dumps({"number": 0, "status": 200, "score": 0.25}))
    asking.write(json.dumps({"number": 1, "status": 503}))
    assert asking.failed == 2
    assert asking.scores() == {0: 0.25}


def test_the_largest_drift_of_a_report_is_told() -> None:
    checks = [
        {"name": "feature_drift", "value": 1.5},
        {"name": "prediction_drift", "value": None},
        {"name": "roc_auc", "value": 9.0},
    ]
    assert drift({"verdicts": [{"checks": checks}]}) == 1.5
    assert drift({"verdicts": []}) is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
def test_memory_is_that_of_processes_in_the_folder(tmp_path: Path) -> None:
    alone = memory.resident(tmp_path)
    hold = "x = bytearray(200_000_000); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert memory.resident(tmp_path) - alone > 0.15
        process.communicate(b"\n")


@pytest.mark.exhaustive
def test_the_year_replayed_reaches_its_bars(tmp_path: Path) -> None:
    """Beside other tests it takes longer than alone, as `make replay` judges it."""
    assert main(["--folder", str(tmp_path / "replay"), "--minutes", "inf"]) == 0
