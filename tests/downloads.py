"""Downloads of uv with their byte code: a job on a new machine imports as one on a warm one does.

Each hosted job of a scenario has an environment of its own, and would compile pandas, BentoML and
all the others anew: two thirds of a deploy job's processor time, which tells nothing of what is
tested. What a pull request really takes is measured by `make bench`, without this.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import defaultdict
from pathlib import Path

from tests.baking import BakedProject

KINDS = ("archive-", "wheels-", "simple-", "sdists-", "interpreter-")
"""What uv downloaded and unpacked; not what it made of that for scripts and builds."""


def sync(project: BakedProject, to: Path) -> Path | None:
    """Sync a project, and return a folder of downloads with byte code that workers share.

    The first one makes it of uv's own, which gets what it lacks. Where files cannot have a second
    name, as on another disk, there is none: all is only slower.
    """
    with to.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not to.exists():
            project.run("uv", "sync", "--quiet", "--compile-bytecode")
            half = to.with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)
            try:
                copy(Path(project.run("uv", "cache", "dir").stdout.strip()), half)
            except OSError:  # a new cache may change meanwhile, too
                shutil.rmtree(half, ignore_errors=True)
                return None
            keep_bytecode(project.path / ".venv", half)
            half.rename(to)
    project.run("uv", "sync", "--quiet", env={"UV_CACHE_DIR": str(to)})
    return to


def copy(cache: Path, to: Path) -> None:
    """Copy uv's downloads by hard links; an OSError where that cannot be."""
    to.mkdir()
    for folder in (path for path in cache.iterdir() if path.name.startswith(KINDS)):
        shutil.copytree(folder, to / folder.name, symlinks=True, copy_function=os.link)


def keep_bytecode(environment: Path, cache: Path) -> int:
    """Put the byte code of an environment beside the sources in a cache; return how many files.

    Its sources are hard links to those of the cache, by which they are found.
    """
    places = defaultdict[int, list[Path]](list)
    for top, _, names in os.walk(cache):
        for name in names:
            if name.endswith(".py"):
                places[os.lstat(os.path.join(top, name)).st_ino].append(Path(top, "__pycache__"))
    kept = 0
    for code in environment.rglob("__pycache__/*.pyc"):
        source = code.parent.with_name(f"{code.name.partition('.')[0]}.py")
        for folder in places[source.stat().st_ino] if source.exists() else ():
            if not (folder / code.name).exists():
                folder.mkdir(exist_ok=True)
                (folder / code.name).hardlink_to(code)
                kept += 1
    return kept
