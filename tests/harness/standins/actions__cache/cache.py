"""Stands in for actions/cache/restore and actions/cache/save: archives by key, apart by scope.

As on GitHub a run saves for its own ref (a pull request for its merge ref), and restores what was
saved for that, for the base of its pull request, or for the default branch. Of an equal key and
equal paths the first one saved stays.
"""

import glob
import json
import os
import sys
import tarfile
from pathlib import Path
from uuid import uuid4

from standin import GITHUB, output, state

ROOTS = {"workspace": Path.cwd(), "home": Path.home()}
key, paths = os.environ["KEY"], os.environ["PATHS"].split()
archives = GITHUB / "caches"


def scopes() -> list[str]:
    """Return the refs whose caches this run sees, its own first."""
    event = json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text())
    base, default = os.environ["GITHUB_BASE_REF"], event["repository"]["default_branch"]
    seen = [os.environ["GITHUB_REF"], f"refs/heads/{base}", f"refs/heads/{default}"]
    return [scope for scope in seen if scope != "refs/heads/"]


def save() -> None:
    """Keep the files under the key, unless there are some already."""
    with state("caches.json", []) as caches:
        entry = {"scope": scopes()[0], "key": key, "paths": paths}
        if any({name: cache[name] for name in entry} == entry for cache in caches):
            print(f"Failed to save: the key {key} is taken")
            return
        found = [Path(hit).absolute() for path in paths for hit in expand(path)]
        if not found:
            print("::warning::Path Validation Error: nothing to save")
            return
        archives.mkdir(exist_ok=True)
        file = archives / f"{uuid4().hex}.tar"
        with tarfile.open(file, "w") as archive:
            for place in found:
                name, root = home_or_workspace(place)
                archive.add(place, f"{name}/{place.relative_to(root)}")
        caches.append({**entry, "file": file.name})


def expand(path: str) -> list[str]:
    """Return what a path or pattern names; `~` is the home of whoever runs the job."""
    return glob.glob(str(Path(path).expanduser()), recursive=True, include_hidden=True)


def home_or_workspace(place: Path) -> tuple[str, Path]:
    """Return the name and the place of the folder that a file is below."""
    for name, root in ROOTS.items():
        if place.is_relative_to(root):
            return name, root
    sys.exit(f"::error::this stand-in keeps files of the workspace and the home only, not {place}")


def restore() -> None:
    """Bring back what the key names, or else the newest of the first prefix that fits."""
    with state("caches.json", []) as caches:
        newest = [cache for cache in reversed(caches) if cache["paths"] == paths]
    for scope in scopes():
        here = [cache for cache in newest if cache["scope"] == scope]
        hits = [cache for cache in here if cache["key"] == key]
        for prefix in (key, *os.environ["PREFIXES"].split()):
            hits += [cache for cache in here if cache["key"].startswith(prefix)]
        if hits:
            unpack(archives / hits[0]["file"])
            output("cache-hit", str(hits[0]["key"] == key).lower())
            output("cache-matched-key", hits[0]["key"])
            return
    if os.environ["FAIL"] == "true":
        sys.exit(f"::error::Failed to restore cache entry. Input key: {key}")
    print(f"Cache not found for input keys: {key}")


def unpack(file: Path) -> None:
    """Put each file where it was, in the workspace and the home of this job."""
    with tarfile.open(file) as archive:
        for member in archive.getmembers():
            name, _, member.name = member.name.partition("/")
            archive.extract(member, ROOTS[name], filter="tar")


save() if sys.argv[1] == "save" else restore()
