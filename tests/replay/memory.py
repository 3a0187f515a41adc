"""The memory of all processes that work in a folder, together."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

SECONDS = 0.5
PAGE = os.sysconf("SC_PAGESIZE")


class Memory:
    """Looks twice a second meanwhile; keeps the largest sum.

    Pages that processes share count for each of them, so the sum is an upper bound. Only Linux
    tells (`/proc`): elsewhere it stays not-a-number.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.gigabytes = float("nan")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Look no more."""
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(SECONDS):
            if Path("/proc/self/statm").exists():
                self.gigabytes = max(resident(self.folder), self.gigabytes)


def resident(folder: Path) -> float:
    """Return the gigabytes of this process and of those whose working directory is in a folder."""
    pages = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is somebody else's
            own = process.name == str(os.getpid())
            if own or (process / "cwd").readlink().is_relative_to(folder):
                pages += int((process / "statm").read_text().split()[1])
    return pages * PAGE / 1e9
