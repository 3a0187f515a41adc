"""Check that a tag may become a release, and write its notes.

    python3 tools/release.py TAG NOTES.md

The notes are the tag's section of CHANGELOG.md. tests/releases.txt must name the tag with a commit
that makes the same projects, because it is from there that updates are tested.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAKES_PROJECTS = ("cookiecutter.json", "hooks", "<<cookiecutter.project>>")


class ReleaseError(Exception):
    """Why a tag is no release, in one sentence."""


def notes(changelog: str, version: str) -> str:
    """Return the section of a version, without its heading.

    Raises
    ------
    ReleaseError
        When it is missing or empty.
    """
    heading = rf"^## {re.escape(version)} - \d{{4}}-\d{{2}}-\d{{2}}$"
    parts = re.split(heading, changelog, maxsplit=1, flags=re.MULTILINE)
    text = parts[1].partition("\n## ")[0].strip() if len(parts) == 2 else ""
    if not text:
        raise ReleaseError(f"CHANGELOG.md needs a section `## {version} - YYYY-MM-DD` with text")
    return f"{text}\n"


def check_commit(root: Path, tag: str) -> None:
    """Find the tag in tests/releases.txt, with a commit before this one that makes the same.

    Raises
    ------
    ReleaseError
        When it is not named, or its commit is another's.
    """
    lines = (root / "tests" / "releases.txt").read_text().splitlines()
    named = [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == tag]
    if len(named) != 1:
        raise ReleaseError(f"tests/releases.txt needs one line `{tag} COMMIT`")
    if not succeeds(root, "merge-base", "--is-ancestor", named[0], "HEAD"):
        raise ReleaseError(f"tests/releases.txt: {named[0]} is not in the history of {tag}")
    if not succeeds(root, "diff", "--quiet", named[0], "HEAD", "--", *MAKES_PROJECTS):
        raise ReleaseError(f"tests/releases.txt: {named[0]} makes other projects than {tag}")


def succeeds(root: Path, *command: str) -> bool:
    """Tell whether a git command ends with 0."""
    done = subprocess.run(["git", *command], cwd=root, capture_output=True, check=False)
    return done.returncode == 0


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Write the notes of a tag; return the exit code."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    tag, file = arguments
    try:
        if not re.fullmatch(r"v\d+\.\d+\.\d+", tag):
            raise ReleaseError(f"{tag} is not vMAJOR.MINOR.PATCH")
        check_commit(root, tag)
        text = notes((root / "CHANGELOG.md").read_text(encoding="utf-8"), tag.removeprefix("v"))
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    Path(file).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
