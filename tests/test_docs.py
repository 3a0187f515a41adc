"""The pages point at things that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.baking import ROOT, BakedProject

PAGES = [p for w in ("*.md", "docs/*.md", ".github/**/*.md", "tests/**/*.md") for p in ROOT.glob(w)]


def dead_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    return [link for link in links if ":" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_the_template_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_links_of_a_project_lead_somewhere(baked: BakedProject) -> None:
    for page in baked.files():
        if page.suffix == ".md" and "src" not in page.parts:  # there, it is a report's layout
            assert dead_links(baked.path / page) == [], page


def test_commands_that_the_pages_name_exist(baked: BakedProject) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    theirs = set(re.findall(r"^([a-z-]+):", baked.text("Makefile"), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"`make ([a-z-]+)`", page.read_text(encoding="utf-8")))
        assert named <= targets | theirs, page
    named = set(re.findall(r"`make ([a-z-]+)`", baked.text("README.md")))
    assert named <= theirs


def test_the_readme_asks_what_cookiecutter_asks() -> None:
    table = (ROOT / "README.md").read_text().split("## Questions it asks")[1].split("##")[0]
    asked = re.findall(r"^\| (\w+) \|", table, re.MULTILINE)
    assert asked[1:] == ["project", "package", "description", "author", "github_owner", "licence"]


def test_every_release_is_a_commit_and_has_a_heading_in_the_changelog() -> None:
    lines = (ROOT / "tests" / "releases.txt").read_text().splitlines()
    releases = [line.split(" ") for line in lines if not line.startswith("#")]
    changes = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (\S+) - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)
    assert re.findall(r"^## .*$", changes, re.MULTILINE)[0] == "## Unreleased"
    assert releases
    for tag, commit in releases:
        assert re.fullmatch(r"[0-9a-f]{40}", commit), commit
        assert tag.removeprefix("v") in headings
