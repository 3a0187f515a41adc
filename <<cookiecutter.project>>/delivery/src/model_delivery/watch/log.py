"""The prediction log: what a service answered, and to what, without a request that waits for it.

A segment `<UTC day of writing>/<writer>-<n>.jsonl` has a line of JSON for each row that got a
score; of failed requests the proxy's log knows. A crash may leave a last line without its end:
readers ignore it. `<writer>-<n>.dropped` beside it counts what was not kept: the sum of its lines.
"""

import datetime as dt
import hmac
import itertools
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from pydantic_core import to_json

from model_delivery.contract.request import EPOCH, MICROSECOND, Row
from model_delivery.contract.settings import LogSettings
from model_delivery.protocols import UserError

MODEL_LOG, KEY = "MODEL_LOG", "ML_LOG_KEY"  # variables: `LogSettings` as JSON, key of hashes
SHADOW, ID = "x-shadow", b"x-request-id"  # headers: `1` where no client asks; the proxy's id
_SHADOW = SHADOW.encode()  # as a request has it
MOST_WAITING, MOST_BYTES = 10_000, 64_000_000  # records that wait; bytes of a segment, about
AT_ONCE = 32  # requests that become lines in one go: each costs less than half of one by one
PAUSE, STORE_PAUSE = 0.5, 30.0  # seconds between writings; to a store, where each makes an object


@lru_cache(2)  # thousands of requests share one
def _second(since: int) -> str:
    return dt.datetime.fromtimestamp(since, dt.UTC).isoformat()[:-6]


def keyed_hash(value: object, key: str) -> str:
    """Return 16 hexadecimal digits for a value: of its text the HMAC-SHA256 (RFC 2104)."""
    text = value.isoformat() if isinstance(value, dt.datetime) else str(value)
    return hmac.digest(key.encode(), text.encode(), "sha256").hex()[:16]


def log_key(settings: LogSettings | None = None) -> str:
    """Return the key of hashed columns; a UserError where settings have some and it is not set."""
    key = os.environ.get(KEY, "")
    if settings and settings.hashed and not key:
        why = f"{KEY}: not set, and `log.hashed` in config/delivery.yaml needs it"
        raise UserError(f"{why}: set it where this runs, for a runner of your own in its `.env`")
    return key


def prune(store: Any, root: str, keep_days: int) -> None:
    """Remove the days of a log, a folder in a file system of fsspec, that are too old.

    They are so for the newest day before today, unless that is as much later than the one before
    it: a clock that was years ahead for a day removes nothing.
    """
    days = dict[dt.date, str]()
    for path in store.ls(root, detail=False):
        name = path.rstrip("/").rpartition("/")[2]
        with suppress(ValueError):
            if str(day := dt.date.fromisoformat(name)) == name:
                days[day] = path
    past = sorted(day for day in days if day < dt.datetime.now(dt.UTC).date())[-2:]
    known = bool(past) and (past[-1] - past[0]).days <= keep_days
    for path in (days[day] for day in days if known and (past[-1] - day).days > keep_days):
        with suppress(FileNotFoundError):  # another service removed it
            store.rm(path, recursive=True)


class PredictionLog:
    """The log of one process. `add` is for one thread; another writes, and its errors stay there.

    `count` is told how many records were just dropped.
    """

    def __init__(
        self, to: LogSettings, digest: str, request: Mapping[str, Any], count: Callable[[int], None]
    ) -> None:
        self.to, self.digest, self.request, self.count = to, digest, request, count
        self.hashed, self.private = ({*names} & {*request} for names in (to.hashed, to.private))
        self.times = [name for name, spec in request.items() if spec["type"] == "timestamp"]
        self.key, self.writer = os.environ.get(KEY, ""), secrets.token_hex(8)
        self.unnamed = itertools.count()  # requests; random ids are calls of the kernel
        self.waiting, self.lines = deque[tuple[Any, ...]](), deque[bytes]()
        self.wake, self.closed = threading.Event(), False
        self.refused = self.lost = self.told = self.number = self.size = 0
        self.day, self.failing = "", False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def add(
        self, headers: Mapping[bytes, bytes], rows: Sequence[Row], scores: list[float], took: float
    ) -> None:
        """Take the rows of a request, whose scoring `took` seconds, or drop them all."""
        if len(self.lines) + len(self.waiting) + len(rows) > MOST_WAITING:
            self.refused += len(rows)
            self.count(len(rows))
            return
        self.waiting.append((headers, time.time_ns() // 1_000, rows, scores, took))
        if len(self.waiting) >= AT_ONCE or len(rows) > 1:
            self._encode()
        if len(self.lines) > MOST_WAITING / 2:
            self.wake.set()

    def close(self) -> None:
        """Write what waits, and end; a folder that hangs is given up after five seconds."""
        self.closed = True
        self.wake.set()
        self.thread.join(5)

    def _encode(self) -> None:
        """Make lines of what waits, as both threads may."""
        while True:
            try:
                headers, moment, rows, scores, took = self.waiting.popleft()
            except IndexError:
                return
            second, fraction = divmod(moment, 1_000_000)
            name = headers.get(ID, b"").decode("latin-1")
            record = {
                "id": name or f"{self.writer}{next(self.unnamed):016x}",
                "time": f"{_second(second)}.{fraction:06d}+00:00",
                "digest": self.digest,
                "shadow": headers.get(_SHADOW) == b"1",
                "ms": round(1e3 * took, 3),
            }
            for place, (row, score) in enumerate(zip(rows, scores, strict=True)):
                record |= {"row": place, "score": score, "columns": self._columns(row)}
                self.lines.append(to_json(record) + b"\n")

    def _columns(self, row: Row) -> dict[str, Any]:
        columns = dict(zip(self.request, row.__dict__.values(), strict=True))
        for name in self.times:
            columns[name] = EPOCH + columns[name] * MICROSECOND
        for name in self.hashed:
            if columns[name] is not None:
                columns[name] = keyed_hash(columns[name], self.key)
        for name in self.private:
            del columns[name]
        return columns

    def _run(self) -> None:
        ended, pause = False, STORE_PAUSE if "://" in self.to.folder else PAUSE
        while not ended:
            self.wake.wait(pause)
            self.wake.clear()
            ended, lines = self.closed, list[bytes]()
            try:
                self._encode()
                lines += (self.lines.popleft() for _ in range(len(self.lines)))
                if lines or self.refused + self.lost > self.told:
                    self._write(lines)
                    self.failing = False
            except Exception as error:  # of any file system: no request may feel it
                self.lost += len(lines)
                self.count(len(lines))
                if not self.failing:
                    said = "prediction log %s: %r; what cannot be written is dropped"
                    logging.getLogger("bentoml.model_delivery").error(said, self.to.folder, error)
                self.failing = True

    def _write(self, lines: list[bytes]) -> None:
        """Append to the segment, for good, and take out the lines that are kept."""
        from fsspec.core import url_to_fs  # half a second that scoring a file need not wait
        from fsspec.implementations.local import LocalFileSystem

        store, root = url_to_fs(self.to.folder)
        appends, day = isinstance(store, LocalFileSystem), str(dt.datetime.now(dt.UTC).date())
        if (begins := day != self.day) or not appends or self.size > MOST_BYTES:
            self.size, self.number = 0, self.number + 1
        self.day = ""  # until all is well: a line that is torn ends its segment
        path, content = f"{root}/{day}/{self.writer}-{self.number}", b"".join(lines)
        if untold := self.refused + self.lost - self.told:
            _put(store, f"{path}.dropped", b"%d\n" % untold, appends)
            self.told += untold
        if content:
            _put(store, f"{path}.jsonl", content, appends)
        self.day, self.size = day, self.size + len(content)
        lines.clear()
        if begins:
            prune(store, root, self.to.keep_days)


def _put(store: Any, path: str, content: bytes, append: bool) -> None:
    """Append to a file, so that it survives a power cut; in a store, make an object."""
    if append:
        store.makedirs(path.rpartition("/")[0], exist_ok=True)
        with store.open(path, "ab") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    else:
        store.pipe_file(path, content)
