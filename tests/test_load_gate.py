"""The load gate on real services: a good one is not stopped, each seeded fault is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.baking import BakedProject

FAULTS = Path(__file__).parent / "bench" / "faults.py"


def verdict(project: BakedProject, fault: str) -> dict[str, Any]:
    """Return the load gate's verdict of the candidate with a seeded fault."""
    found: dict[str, Any] = json.loads(
        project.run("uv", "run", "python", str(FAULTS), fault).stdout
    )
    return found


def stopped(found: dict[str, Any]) -> set[str]:
    return {check["name"] for check in found["checks"] if check["outcome"] == "stop"}


@pytest.mark.parametrize(
    ("fault", "checks"),
    [
        ("slow", {"qps_to_twin"}),
        ("failing", {"error_share"}),
        pytest.param("other-release", {"error_share"}, marks=pytest.mark.exhaustive),
        pytest.param("blocking", {"qps_to_champion"}, marks=pytest.mark.exhaustive),
    ],
)
def test_a_faulty_service_is_stopped(trained: BakedProject, fault: str, checks: set[str]) -> None:
    found = verdict(trained, fault)
    assert found["outcome"] == "stop", found["checks"]
    assert checks <= stopped(found)


def test_the_good_service_is_not_stopped(trained: BakedProject) -> None:
    found = verdict(trained, "none")
    assert found["outcome"] in ("pass", "inconclusive"), found["checks"]
