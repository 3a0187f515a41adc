"""`ml monitor` on real months: clean ones are left alone, each seeded change has one decision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.baking import BakedProject

MONTHS = Path(__file__).parent / "monitor" / "months.py"
QUIET = {"ok", "watch"}
DECISIONS = {
    "scale": ("stop", "scale"),
    "carrier": ("retrain", "feature_drift"),
    "flipped": ("retrain", "roc_auc"),
    "missing": ("stop", "missing"),
    "renamed": ("stop", "columns"),
    "constant": ("rollback", "predictions"),
    "alone": ("stop", "predictions"),
    "silent": ("watch", "requests"),
    "unlabelled": ("watch", "labels"),
    "bad": ("rollback", "previous"),
}
"""By change what must follow, and which check must find it; `alone` is `constant` where there is no
earlier release to go back to."""
CLEAN = [f"clean {seed}" for seed in range(20)]


@pytest.fixture(scope="module")
def older(trained: BakedProject) -> str:
    """Return the digest of a candidate of a month before, made beside the shared one."""
    current = trained.text(".ml/candidate")
    trained.ml("data", "--as-of", "2013-07-01")
    trained.ml("train")
    digest = trained.text(".ml/candidate")
    assert digest != current
    trained.ml("data")
    trained.ml("train")
    assert trained.text(".ml/candidate") == current
    return digest


def decided(project: BakedProject, older: str, *months: str) -> dict[str, dict[str, Any]]:
    """Return what is decided after months."""
    command = ("uv", "run", "python", str(MONTHS), json.dumps(months), older)
    found: dict[str, dict[str, Any]] = json.loads(project.run(*command).stdout)
    return found


@pytest.fixture(scope="module")
def decisions(trained: BakedProject, older: str) -> dict[str, dict[str, Any]]:
    """Return what is decided after each seeded change, and after two clean months."""
    return decided(trained, older, *DECISIONS, *CLEAN[:2])


@pytest.mark.parametrize("change", DECISIONS)
def test_a_seeded_change_has_its_one_decision(
    decisions: dict[str, dict[str, Any]], change: str
) -> None:
    found, (decision, check) = decisions[change], DECISIONS[change]
    assert found["decision"] == decision, found
    assert check in found["findings"], found
    assert found["reason"]


@pytest.mark.parametrize("month", CLEAN[:2])
def test_a_clean_month_is_left_alone(decisions: dict[str, dict[str, Any]], month: str) -> None:
    assert decisions[month]["decision"] in QUIET, decisions[month]
    assert not decisions[month]["unjudged"], decisions[month]
    assert "previous" in decisions[month]["judged"], decisions[month]


@pytest.mark.exhaustive
def test_twenty_clean_months_are_left_alone(trained: BakedProject, older: str) -> None:
    found = decided(trained, older, *CLEAN)
    assert len(found) == 20
    assert {one["decision"] for one in found.values()} <= QUIET, found
    assert not [one for one in found.values() if one["unjudged"]], found


def test_nothing_deployed_is_neutral(trained: BakedProject) -> None:
    done = trained.ml("monitor", "--in", "test")
    assert "nothing deployed, nothing watched" in done.stdout
