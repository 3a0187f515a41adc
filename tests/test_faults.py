"""The machinery's own fault tests, at every place instead of every so manieth."""

from __future__ import annotations

import pytest

from tests.baking import BakedProject


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("file", "which"),
    [("test_rollout.py", "durable"), ("test_registry.py", "killed or eight or writers")],
)
def test_killed_after_every_write_it_is_the_old_state_or_the_new(
    ready: BakedProject, file: str, which: str
) -> None:
    everywhere = {"FAULT_STRIDE": "1", "REGISTRY_ROUNDS": "8"}
    command = ["uv", "run", "pytest", f"delivery/tests/{file}", "-k", which]
    done = ready.run(*command, env=everywhere, timeout=1_800, check=False)
    assert done.returncode == 0, done.stdout[-3_000:]
    print(done.stdout[-300:])
