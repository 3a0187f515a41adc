"""The truth: an append-only log of small immutable events, and what follows from them.

Events are numbered without gaps and each carries the hash of the one before it, so a deleted or
edited one is named. Taking the next number is a compare-and-set, in a directory as on a branch
that is only fast-forwarded: of two writers one wins, and the other decides again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol
from uuid import uuid4

from pydantic import Field, ValidationError

from model_delivery.errors import UserError
from model_delivery.files import sha256_bytes, sync_folder, write_atomic
from model_delivery.report.verdict import Form, Outcome

MOVES = ("promoted", "rolled_back")
"""The types of events after which an environment serves another digest."""


class Judgement(Form):
    """A verdict as events refer to it."""

    gate: str
    subject: str
    limits: str
    outcome: Outcome
    finished: str


class Event(Form):
    """One thing that happened to a digest, or to an environment that serves it."""

    type: Literal["registered", "verdict", "promoted", "rolled_back"]
    digest: str
    release: str
    as_of: str
    commit: str | None
    who: str
    trigger: str
    environment: str | None = None
    previous: str | None = None  # of a move: the digest served before
    blob: str | None = None  # of a registration: the SHA-256 of the stored bytes
    judgements: list[Judgement] = Field(default_factory=list)
    id: str = Field(default_factory=lambda: uuid4().hex)
    time: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    after: str = ""  # the SHA-256 of the event before, set by the log


Decide = Callable[[Sequence[Event]], Event | None]
"""Given all events: the next one, or None where nothing is left to say."""


class EventLog(Protocol):
    """Where events are kept: a directory; later a branch of the user's repository."""

    def events(self) -> list[Event]:
        """Return all events, the oldest first; a UserError names one that was tampered with."""

    def append(self, decide: Decide) -> None:
        """Append what `decide` makes of all events, asked again whenever others were faster.

        An event whose id is in the log already is not written twice.
        """


@dataclass(frozen=True)
class DirectoryLog:
    """An event log as numbered files in a directory."""

    folder: Path

    def events(self) -> list[Event]:
        """Return all events, the oldest first; a UserError names one that was tampered with."""
        return [event for event, _ in self._read()]

    def append(self, decide: Decide) -> None:
        """Append what `decide` makes of all events; see `EventLog`."""
        while True:
            read = self._read()
            event = decide([event for event, _ in read])
            if event is None or any(known.id == event.id for known, _ in read):
                return
            event = event.model_copy(update={"after": read[-1][1] if read else ""})
            if self._take(len(read) + 1, event.model_dump_json(indent=1) + "\n"):
                return

    def _read(self) -> list[tuple[Event, str]]:
        """Return all events with the hash of each one's bytes, the chain checked."""
        read: list[tuple[Event, str]] = []
        before = ""
        for number, path in enumerate(sorted(self.folder.glob("[0-9]*.json")), start=1):
            if path != self._path(number):
                raise UserError(f"{self._path(number)}: event missing; the log was edited")
            content = path.read_bytes()
            try:
                event = Event.model_validate_json(content)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise UserError(f"{path}: not an event ({where}: {first['msg']})") from error
            if event.after != before:
                raise UserError(f"{self._path(number - 1)}: event edited; restore what it was")
            before = sha256_bytes(content)
            read.append((event, before))
        return read

    def _take(self, number: int, text: str) -> bool:
        """Write an event under its number unless another writer took it: a hard link decides."""
        temporary = self.folder / f".{uuid4().hex}"
        write_atomic(temporary, text)
        try:
            os.link(temporary, self._path(number))
            sync_folder(self.folder)
        except FileExistsError:
            return False
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror})") from error
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


def serving(events: Sequence[Event], environment: str) -> Event | None:
    """Return the move after which an environment serves what it serves now."""
    moves = [e for e in events if e.environment == environment and e.type in MOVES]
    return moves[-1] if moves else None


def registration(events: Sequence[Event], digest: str) -> Event | None:
    """Return the newest registration of a digest."""
    found = [e for e in events if e.type == "registered" and e.digest == digest]
    return found[-1] if found else None


def next_release(events: Sequence[Event], version: str, as_of: str) -> str:
    """Return the next free name for a release of this version and data.

    Examples
    --------
    >>> next_release([], "1.1.0", "2013-09-01")
    'v1.1.0+data.20130901.1'
    """
    prefix = f"v{version}+data.{as_of.replace('-', '')}"
    taken = {e.release for e in events if e.release.rpartition(".")[0] == prefix}
    return f"{prefix}.{len(taken) + 1}"
