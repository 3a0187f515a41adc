"""Slow and wrong services, made of a good candidate, and what the load gate says of each.

In a project with a candidate: `uv run python faults.py FAULT`; the fault `none` is the good one.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from model_delivery.bundle.candidate import Candidate, candidate_folder, current_candidate
from model_delivery.files import seal, settle, temporary_folder
from model_delivery.gates.load import check_load
from model_delivery.project import Project, find_project

SCORE = r"(def score\(.*?\"\"\".*?\"\"\"\n)"
ANSWER = r"(async def predict\(.*?\"\"\".*?\"\"\"\n)"
"""The heads of the user's method and of the machinery's, up to the end of its docstring."""
MACHINERY = "model_delivery/serving.py"
FAULTS = {
    "slow": ("*/service.py", SCORE, r"\1        __import__('time').sleep(0.005)\n"),
    "failing": (
        "*/service.py",
        SCORE,
        r"\1        1 // (__import__('random').random() > 0.02)\n",
    ),
    "blocking": (MACHINERY, ANSWER, r"\1            __import__('time').sleep(0.005)\n"),
    "other-release": (MACHINERY, r"release=digest\[:12\]", "release='somebodyels'"),
}


def faulty(project: Project, good: Candidate, fault: str) -> Candidate:
    """Return a sealed copy of a candidate with one seeded fault."""
    pattern, old, new = FAULTS[fault]

    def seed(ship: Path) -> None:
        source = ship / "src"
        file = source / pattern if "*" not in pattern else user_service(source, pattern)
        text, count = re.subn(old, new, file.read_text(), count=1, flags=re.DOTALL)
        assert count == 1, f"{file}: nowhere to seed the fault"
        file.write_text(text)

    return altered(project, good, seed)


def altered(project: Project, good: Candidate, alter: Callable[[Path], None]) -> Candidate:
    """Return a sealed copy of a candidate after `alter` changed what ships of it."""
    with temporary_folder(project.work / "candidates") as folder:
        shutil.copytree(good.folder, folder, dirs_exist_ok=True)
        alter(folder / "ship")
        digest = seal(folder / "ship")
        settle(folder, candidate_folder(project, digest))
    return Candidate(candidate_folder(project, digest))


def user_service(source: Path, pattern: str) -> Path:
    """Return the service of the package that is not the machinery."""
    (found,) = (path for path in source.glob(pattern) if path.parent.name != "model_delivery")
    return found


def main(fault: str) -> None:
    """Print the load gate's verdict; a fault that the twin shares needs the good one beside it."""
    project = find_project()
    good = current_candidate(project)
    candidate = good if fault == "none" else faulty(project, good, fault)
    champion = good if fault == "blocking" else None
    verdict = check_load(project, candidate, champion)
    sys.stdout.write(verdict.model_dump_json() + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
