"""The machinery's layers have one direction, and its code keeps a few plain rules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.baking import ROOT, BakedProject

MACHINERY = Path("delivery/src/model_delivery")
HEAVY = {"mlflow", "pandas", "pyarrow", "sklearn"}


def ranks() -> dict[str, int]:
    """Read the order of the rooms from docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    line = re.search(r"^    (protocols < .*)$", text, re.MULTILINE)
    assert line
    rooms = [[room.strip() for room in level.split(",")] for level in line[1].split("<")]
    return {room: rank for rank, level in enumerate(rooms) for room in level}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of every module imported anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


def sources(project: BakedProject, folder: Path) -> dict[Path, ast.Module]:
    """Return the parsed Python files below a folder."""
    files = [f for f in project.files() if f.is_relative_to(folder) and f.suffix == ".py"]
    return {file: ast.parse(project.text(str(file)), str(file)) for file in files}


def room(path: Path) -> str:
    """Return the room that a file of the machinery lies in; one that ships may be its own."""
    whole = path.relative_to(MACHINERY).with_suffix("")
    return whole.as_posix() if whole.as_posix() in ranks() else whole.parts[0]


def against_the_arrows(modules: dict[Path, ast.Module]) -> list[str]:
    """Return the imports that point from a lower room to a higher one, or sideways."""
    order, wrong = ranks(), []
    for file, tree in modules.items():
        own = room(file)
        if own in ("__init__", "__main__"):
            continue
        for name in imports(tree):
            if not name.startswith("model_delivery."):
                continue
            other = room(MACHINERY.joinpath(*name.split(".")[1:3]))
            if other not in order or other == own:
                continue
            if own not in order or order[other] >= order[own]:
                wrong.append(f"{file.relative_to(MACHINERY)} imports {name}")
    return wrong


class AtRunTime(ast.NodeTransformer):
    """Leaves out what only a type checker imports."""

    def visit_If(self, node: ast.If) -> ast.If | None:
        """Drop `if TYPE_CHECKING:`."""
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node


def reached(modules: dict[str, ast.Module], start: set[str]) -> set[str]:
    """Return every module name that `start` imports, directly or through ours."""
    found: set[str] = set()
    todo = set(start)
    while todo:
        name = todo.pop()
        found.add(name)
        todo |= {name.rpartition(".")[0]} - found - {""}  # importing a.b.c runs a and a.b too
        if name in modules:
            tree = AtRunTime().visit(ast.parse(ast.unparse(modules[name])))
            todo |= set(imports(tree)) - found
    return found


def dotted(file: Path) -> str:
    """Return the import name of a file below a `src` folder."""
    parts = file.with_suffix("").parts
    return ".".join(parts[parts.index("src") + 1 :]).removesuffix(".__init__")


@pytest.fixture(scope="module")
def machinery(baked: BakedProject) -> dict[Path, ast.Module]:
    """Return the machinery's parsed modules."""
    return sources(baked, MACHINERY)


def test_every_room_has_its_place(machinery: dict[Path, ast.Module]) -> None:
    rooms = {room(file) for file in machinery} - {"__init__", "__main__"}
    assert rooms - ranks().keys() == {"checks"}, "checks imports nothing of ours"
    assert ranks().keys() - rooms == set()


def test_imports_follow_the_arrows(machinery: dict[Path, ast.Module]) -> None:
    assert against_the_arrows(machinery) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("contract/seeded.py", "from model_delivery.report.verdict import Check"),
        ("report/seeded.py", "import model_delivery.cli.main"),
        ("gates/seeded.py", "from model_delivery import registry"),
        ("checks/seeded.py", "from model_delivery.protocols import UserError"),
        ("watch/log.py", "from model_delivery.registry import Event"),
        ("contract/seeded.py", "from model_delivery.watch.log import SHADOW"),
    ],
)
def test_an_import_against_the_arrows_is_found(file: str, line: str) -> None:
    assert against_the_arrows({MACHINERY / file: ast.parse(line)})


def test_the_service_imports_nothing_heavy(baked: BakedProject) -> None:
    """Statically: neither it nor the user's modules that ship beside it."""
    files = sources(baked, MACHINERY) | sources(baked, Path("src"))
    modules = {dotted(file): tree for file, tree in files.items()}
    start = {name for name in modules if name.startswith("model_delivery.serving")}
    start |= {f"{baked.package}.{name}" for name in ("service", "features", "model")}
    assert start <= modules.keys()
    tops = {name.split(".")[0] for name in reached(modules, start)}
    assert {"bentoml", "numpy"} <= tops
    assert not tops & HEAVY


def test_a_heavy_import_behind_the_service_is_found() -> None:
    modules = {"a.service": ast.parse("from a import b"), "a.b": ast.parse("import pandas as pd")}
    assert "pandas" in reached(modules, {"a.service"})


def test_the_machinery_knows_neither_the_example_nor_its_library(baked: BakedProject) -> None:
    for file in baked.files():
        if file.is_relative_to(MACHINERY):
            text = baked.text(str(file))
            assert not re.search(r"(?i)lightgbm|flight|carrier|departure|airport", text), file


def test_only_the_command_line_prints(baked: BakedProject) -> None:
    printing = {
        str(file)
        for folder in (MACHINERY, Path("src"))
        for file, tree in sources(baked, folder).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and not {"cli", "checks"} & set(file.parts)
    }
    assert printing == set()


def test_no_failure_is_swallowed(baked: BakedProject) -> None:
    """No `|| true`, no `continue-on-error`, no broad `except` that does nothing."""
    for file in baked.files():
        text = baked.text(str(file))
        assert not re.search(r"\|\| *true\b|continue-on-error: *true", text), file
        if file.suffix == ".py":
            handlers = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ExceptHandler)]
            for handler in handlers:
                broad = handler.type is None or ast.unparse(handler.type).endswith("Exception")
                silent = all(isinstance(line, ast.Pass) for line in handler.body)
                assert not (broad and silent), f"{file}:{handler.lineno}"
