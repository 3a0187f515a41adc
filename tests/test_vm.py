"""The units of docs/vm.md are what systemd understands, and run a command that `ml` has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.baking import ROOT, BakedProject

UNIT = re.compile(r"^`/etc/systemd/system/(\S+)`:\n\n```ini\n(.+?)^```$", re.MULTILINE | re.DOTALL)
UNITS = dict(UNIT.findall((ROOT / "docs" / "vm.md").read_text()))
COMMAND = re.compile(r"(?<=^ExecStart=)(/srv/ml/late-departures/\.venv/bin/ml) (.+)$", re.MULTILINE)


def verify(folder: Path, **changes: str) -> str:
    """Return what systemd finds in the units when lines are changed, given as `Key="Key=value"`."""
    lines = {"ExecStart": "ExecStart=/bin/true deploy --start", **changes}
    for name, text in UNITS.items():
        changed = re.sub(r"(?m)^(\w+)=.*$", lambda found: lines.get(found[1], found[0]), text)
        (folder / name).write_text(changed)
    command = ["systemd-analyze", "verify", *(str(folder / name) for name in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).splitlines()
    return "\n".join(line for line in said if "late-departures" in line)  # not this machine's own


@pytest.mark.debian("systemd")
def test_systemd_finds_nothing_in_the_units_of_the_page(tmp_path: Path) -> None:
    assert UNITS.keys() == {"late-departures.service", "late-departures.timer"}
    assert verify(tmp_path) == ""


@pytest.mark.debian("systemd")
@pytest.mark.parametrize(
    ("key", "line"),
    [("KillMode", "KillMode=proces"), ("MemoryMax", "MemMax=3G"), ("OnBootSec", "OnBootSec=soon")],
)
def test_systemd_would_find_a_mistake(tmp_path: Path, key: str, line: str) -> None:
    assert verify(tmp_path, **{key: line}).startswith(f"{tmp_path}/late-departures.")


def test_the_unit_runs_a_command_that_there_is(ready: BakedProject) -> None:
    ((program, arguments),) = COMMAND.findall(UNITS["late-departures.service"])
    assert Path(program).name == "ml"
    command = str(ready.path / ".venv" / "bin" / "ml"), *arguments.split(), "--json"
    assert '"state": "nothing deployed"' in ready.run(*command).stdout
