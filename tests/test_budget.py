"""A default project stays small enough to read: the limits of docs/budget.md, and they bite."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.baking import ROOT, BakedProject

MEGABYTES = "megabytes of the environment right after `uv sync`"
FILES = "files git tracks in a default project, without `uv.lock`"
USER = "lines in the user's package, `src/<package>`"
MACHINERY = "lines in the machinery, `delivery/`"
LONGEST_FILE = "lines in its longest file"
LONGEST_FUNCTION = "lines in its longest function"
CONFIG = "lines in the longest file of `config/`"
WORKFLOWS = "lines in workflows and actions, `.github/`"
README = "lines in the README"


def table(part: int) -> list[tuple[str, str]]:
    """Return the rows of docs/budget.md before (0) or after (2) the heading of the debt."""
    text = (ROOT / "docs" / "budget.md").read_text().partition("## Debt")[part]
    return re.findall(r"^\| (.+?) \| (\d+) \|$", text, re.MULTILINE)


def limits() -> dict[str, int]:
    """Return the limits; a row about "its" belongs to the part named above it."""
    found: dict[str, int] = {}
    part = ""
    for what, limit in table(0):
        part = what if " its " not in what else part
        found[what if part == what else f"{part}: {what}"] = int(limit)
    return found


def debt() -> dict[str, int]:
    """Return the limits that are passed today, and by how much."""
    return {what: int(count) for what, count in table(2)}


def lines(project: BakedProject, file: Path) -> int:
    """Count a file's physical lines."""
    return len((project.path / file).read_text(encoding="utf-8").splitlines())


def longest_function(project: BakedProject, file: Path) -> int:
    """Count the lines of a file's longest function or method."""
    tree = ast.parse((project.path / file).read_text(encoding="utf-8"))
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return max(((node.end_lineno or 0) - node.lineno + 1 for node in functions), default=0)


def counts(project: BakedProject) -> dict[str, int]:
    """Count a project against every limit that needs no environment."""
    files = [file for file in project.files() if file.name != "uv.lock"]
    found = {FILES: len(files)}
    for part, folder in ((USER, f"src/{project.package}"), (MACHINERY, "delivery")):
        code = [
            file
            for file in files
            if file.is_relative_to(folder) and file.suffix == ".py" and "tests" not in file.parts
        ]
        each = [lines(project, file) for file in code]
        found[part] = sum(each)
        found[f"{part}: {LONGEST_FILE}"] = max(each, default=0)
        functions = [longest_function(project, file) for file in code]
        found[f"{part}: {LONGEST_FUNCTION}"] = max(functions, default=0)
    config = [lines(project, file) for file in files if file.parent == Path("config")]
    found[CONFIG] = max(config, default=0)
    github = [file for file in files if file.parts[0] == ".github"]
    found[WORKFLOWS] = sum(
        lines(project, file)
        for file in github
        if file.suffix in (".yml", ".yaml") and file.parts[1] in ("workflows", "actions")
    )
    found[README] = lines(project, Path("README.md"))
    return found


def over(project: BakedProject) -> set[str]:
    """Return the limits that a project passes."""
    allowed = limits()
    return {what for what, count in counts(project).items() if count > allowed[what]}


@pytest.fixture(scope="module")
def counted(baked: BakedProject) -> dict[str, int]:
    """Return the counts of a default project."""
    return counts(baked)


def test_every_limit_is_counted(counted: dict[str, int]) -> None:
    assert counted.keys() | {MEGABYTES} == limits().keys()


@pytest.mark.parametrize("what", sorted(limits().keys() - {MEGABYTES} - debt().keys()))
def test_a_default_project_keeps_the_limit(counted: dict[str, int], what: str) -> None:
    print(f"{counted[what]:6} of {limits()[what]:6}  {what}")
    assert counted[what] > 0, "nothing was counted"
    assert counted[what] <= limits()[what]


@pytest.mark.parametrize("what", sorted(debt()))
def test_debt_is_real_and_does_not_grow(counted: dict[str, int], what: str) -> None:
    """A limit that is passed today is held where it stands; once kept, it leaves the table."""
    print(f"{counted[what]:6} of {limits()[what]:6}  {what}, at most {debt()[what]} today")
    assert limits()[what] < counted[what] <= debt()[what]


def test_the_environment_keeps_the_limit(ready: BakedProject) -> None:
    files = {
        (f.stat().st_ino, f.stat().st_size)
        for f in (ready.path / ".venv").rglob("*")
        if f.is_file() and f.suffix != ".pyc"  # which a sync does not make: the tests did
    }
    megabytes = sum(size for _, size in files) / 1e6
    print(f"{megabytes:6.0f} of {limits()[MEGABYTES]:6}  {MEGABYTES}")
    assert 100 < megabytes <= limits()[MEGABYTES]


def pad(file: Path, count: int, line: str = "# one more line\n") -> None:
    """Write or lengthen a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as end:
        end.write(line * count)


def many(folder: Path, files: int, count: int) -> None:
    """Write several files, none of them long."""
    for number in range(files):
        pad(folder / f"seeded_{number}.py", count)


def long_function(file: Path) -> None:
    """Write one function of 41 lines."""
    pad(file, 1, "def seeded() -> None:\n")
    pad(file, 40, "    print()\n")


SEEDS: dict[str, Callable[[Path, Path], None]] = {
    FILES: lambda root, user: many(root / "notes", 91, 1),
    USER: lambda root, user: many(user, 4, 200),
    f"{USER}: {LONGEST_FILE}": lambda root, user: pad(user / "seeded.py", 251),
    f"{USER}: {LONGEST_FUNCTION}": lambda root, user: long_function(user / "seeded.py"),
    MACHINERY: lambda root, user: many(root / "delivery", 16, 290),
    f"{MACHINERY}: {LONGEST_FILE}": lambda root, user: pad(root / "delivery/seeded.py", 301),
    f"{MACHINERY}: {LONGEST_FUNCTION}": lambda root, user: long_function(root / "delivery/seed.py"),
    CONFIG: lambda root, user: pad(root / "config/model.yaml", 61),
    WORKFLOWS: lambda root, user: pad(root / ".github/workflows/seeded.yml", 551),
    README: lambda root, user: pad(root / "README.md", 121),
}


@pytest.mark.parametrize("what", sorted(SEEDS))
def test_a_project_over_a_limit_is_found(baked: BakedProject, tmp_path: Path, what: str) -> None:
    copy = BakedProject(Path(shutil.copytree(baked.path, tmp_path / "copy")))
    SEEDS[what](copy.path, copy.path / "src" / copy.package)
    assert what in over(copy)


def test_every_limit_has_a_seed() -> None:
    assert SEEDS.keys() | {MEGABYTES} == limits().keys()
