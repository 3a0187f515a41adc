"""A fresh machine finds its way to uv, or says in one line what it lacks; the demo's steps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.baking import ROOT, Done, environment
from tests.bench.figures import Figure, as_json, beside
from tools import demo

NEEDED = ("git", "dirname", "uname", "grep", "ldconfig", "mktemp", "mv", "rm", "uv")


# A python3 whose pip installs a uv that says how it was called.
PIP = """
[ "$3" = --version ] && exit 0
echo "$@" >> {calls}
while [ "$1" != --target ]; do shift; done
/bin/mkdir "$2/bin"
printf '#!/bin/sh\\necho brought: "$*"\\n' > "$2/bin/uv"
/bin/chmod +x "$2/bin/uv"
"""


class Machine:
    """A copy of tools/uv.sh, and a PATH with only the programs that a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        (folder / "tools").mkdir()
        shutil.copy(ROOT / "tools" / "uv.sh", folder / "tools")
        for name in NEEDED:
            self.put(name, f'exec "{self.find(name)}" "$@"')

    @staticmethod
    def find(name: str) -> str:
        """Return where a program is on this machine."""
        found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
        assert found, name
        return found

    def put(self, name: str, script: str) -> None:
        """Put a program on the PATH."""
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def uv(self, *arguments: str) -> Done:
        """Run tools/uv.sh there."""
        kept = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "HOME", "PYENV"))}
        return subprocess.run(
            ["/bin/sh", str(self.root / "tools" / "uv.sh"), *arguments],
            env=kept | {"PATH": str(self.bin)},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine with everything it needs."""
    return Machine(tmp_path)


def test_a_uv_on_the_path_is_used(machine: Machine) -> None:
    machine.put("uv", "echo this one: $*")
    assert machine.uv("sync", "a b").stdout == "this one: sync a b\n"


def test_without_uv_pip_brings_one_once(machine: Machine) -> None:
    """`--target`: no virtual environment is needed, and Debian's Python refuses other installs."""
    (machine.bin / "uv").unlink()
    machine.put("python3", PIP.format(calls=machine.root / "calls"))
    for _ in range(2):
        done = machine.uv("--version")
        assert done.stdout == "brought: --version\n", done.stderr
    assert len((machine.root / "calls").read_text().splitlines()) == 1


def test_an_install_that_fails_leaves_nothing(machine: Machine) -> None:
    (machine.bin / "uv").unlink()
    machine.put("python3", '[ "$3" = --version ]')
    assert machine.uv("--version").returncode == 1
    assert sorted(path.name for path in machine.root.iterdir()) == ["bin", "tools"]


NO_OPENMP = {"ldconfig": "echo libc.so.6", "uname": "echo Linux"}


@pytest.mark.parametrize(
    ("programs", "packages"),
    [
        ({"git": "exit 127"}, "git"),
        (NO_OPENMP, "libgomp1"),
        ({"uv": None, "python3": "exit 1"}, "python3-pip"),
        ({"git": None, "uv": None, **NO_OPENMP}, "git libgomp1 python3-pip"),
    ],
)
def test_what_is_missing_is_one_line_with_its_command(
    machine: Machine, programs: dict[str, str | None], packages: str
) -> None:
    for name, script in programs.items():
        (machine.bin / name).unlink(missing_ok=True)
        if script:
            machine.put(name, script)
    done = machine.uv("sync")
    command = f"sudo apt-get install -y {packages}"
    assert done.returncode == 2
    assert done.stderr == f"Missing here: {packages}. On Debian or Ubuntu: {command}\n"


def test_a_mac_is_not_asked_for_a_debian_package(machine: Machine) -> None:
    machine.put("uname", "echo Darwin")
    machine.put("ldconfig", "exit 1")
    machine.put("uv", "echo fine")
    assert machine.uv().stdout == "fine\n"


def test_every_make_target_is_explained() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = "demo demo-down test test-all test-newest bench replay lint help"
    for target in targets.split():
        assert f"  make {target} " in done.stdout


def test_a_job_of_the_template_s_own_ci_makes_no_job_of_a_project_s_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There `ml ship` would only rehearse, and nothing would answer."""
    for name in ("GITHUB_ACTIONS", "GITHUB_SHA", "RUNNER_ENVIRONMENT", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "github-hosted")
    show = (sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))")
    for seen in (json.loads(demo.run(*show, cwd=tmp_path, capture=True)), environment()):
        assert "PATH" in seen
        assert "github-hosted" not in seen.values()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Replace every command of the demo by a record of it; the folder is made as usual."""
    taken: list[tuple[str, ...]] = []

    def record(*command: str, cwd: Path, capture: bool = False) -> str:
        taken.append(command)
        if "cookiecutter" in command:
            (Path(command[command.index("--output-dir") + 1]) / demo.PROJECT).mkdir(parents=True)
        return '{"port": 1, "row": {"carrier": "UA"}}' if capture else ""

    monkeypatch.setattr(demo, "run", record)
    monkeypatch.setattr(demo, "ask", lambda port, row: ("curl …", '{"probability": [0.5]}'))
    return taken


def test_the_demo_takes_the_steps_it_prints(
    steps: list[tuple[str, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["up", "--folder", str(tmp_path)]) == 0
    said = " ".join(" ".join(step) for step in steps)
    order = ["cookiecutter", "git init", "uv sync", "ml ship"]
    assert sorted(order, key=said.index) == order
    out = capsys.readouterr().out
    assert '{"probability": [0.5]}' in out
    assert str(tmp_path / "late-departures/.ml/report/report.html") in out


def test_a_demo_that_is_there_is_kept(steps: list[tuple[str, ...]], tmp_path: Path) -> None:
    (tmp_path / demo.PROJECT).mkdir()
    (tmp_path / demo.PROJECT / "mine.txt").touch()
    assert demo.main(["up", "--folder", str(tmp_path)]) == 0
    assert not any("cookiecutter" in step for step in steps)
    assert (tmp_path / demo.PROJECT / "mine.txt").exists()


def test_a_demo_that_stops_says_where_and_keeps_the_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*command: str, cwd: Path, capture: bool = False) -> str:
        raise demo.DemoError("`uv …` ended with 20", 20)

    monkeypatch.setattr(demo, "run", fail)
    assert demo.main(["up", "--folder", str(tmp_path)]) == 20
    assert "ended with 20" in capsys.readouterr().err


def test_no_demo_is_nothing_to_stop(tmp_path: Path) -> None:
    assert demo.main(["down", "--folder", str(tmp_path)]) == 0


def test_a_part_of_the_benchmark_keeps_what_others_measured() -> None:
    first = as_json([Figure("a", 1, most=2), Figure("b", 1, most=2)], {"a": [1], "b": [1]})
    found = beside(first, as_json([Figure("b", 3, most=2)], {"b": [3]}))
    assert [(it["what"], it["value"], it["reached"]) for it in found["figures"]] == [
        ("a", 1, True),
        ("b", 3, False),
    ]
    assert found["raw"] == {"a": [1], "b": [3]}
