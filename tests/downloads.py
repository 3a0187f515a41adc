"""Downloads of uv with their byte code: a job on a new machine imports as one on a warm one does.

Each hosted job of a scenario has an environment of its own, and would compile pandas, BentoML and
all the others anew: two thirds of a deploy job's processor time, which tells nothing of what is
tested. What a pull request really takes is measured by `make bench`, without this.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

KINDS = ("archive-", "wheels-", "simple-", "sdists-", "interpreter-")
"""What uv downloads and unpacks; not the environments that it made in other folders."""


def copy(cache: Path, to: Path) -> Path | None:
    """Return a copy of uv's cache, by hard links, that workers share; None on another disk."""
    if cache.stat().st_dev != to.parent.stat().st_dev:
        return None
    with to.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not to.exists():
            half = to.with_suffix(".half")
            half.mkdir()
            for folder in (path for path in cache.iterdir() if path.name.startswith(KINDS)):
                link = ["cp", "--archive", "--link", str(folder), str(half)]
                subprocess.run(link, check=True)
            half.rename(to)
    return to


def keep_bytecode(environment: Path, cache: Path) -> int:
    """Put the byte code of an environment beside the sources in a cache; return how many files.

    Its sources are hard links to those of the cache, by which they are found.
    """
    places = defaultdict[int, list[Path]](list)
    for top, _, names in os.walk(cache):
        for name in names:
            if name.endswith(".py"):
                places[os.stat(os.path.join(top, name)).st_ino].append(Path(top, "__pycache__"))
    kept = 0
    for code in environment.rglob("__pycache__/*.pyc"):
        source = code.parent.with_name(f"{code.name.partition('.')[0]}.py")
        for folder in places[source.stat().st_ino] if source.exists() else ():
            folder.mkdir(exist_ok=True)
            with suppress(FileExistsError):  # as another worker may have kept it
                (folder / code.name).hardlink_to(code)
                kept += 1
    return kept
