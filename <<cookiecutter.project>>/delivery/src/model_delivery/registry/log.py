"""The truth: an append-only log of small immutable events.

Events are numbered without gaps and each carries the hash of the one before it, so a deleted or
edited one is named. Taking the next number is a compare-and-set: of two writers one wins, and
the other decides again.
"""

import getpass
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from uuid import uuid4

from pydantic import Field, ValidationError

from model_delivery.errors import UserError
from model_delivery.files import sha256_file, sync_folder, temporary_folder, write_atomic
from model_delivery.report.verdict import Form, Outcome


class Event(Form):
    """One thing that happened to a digest; a move, if it is what an environment serves then."""

    type: Literal["registered", "promoted", "rolled_back"]
    digest: str
    release: str
    as_of: str
    commit: str | None
    trigger: str
    blob: str  # the SHA-256 of the stored bytes
    verdicts: dict[str, Outcome] = Field(default_factory=dict)
    environment: str | None = None  # of a move
    previous: str | None = None  # of a move: the digest served before
    who: str = Field(default_factory=lambda: os.environ.get("GITHUB_ACTOR") or getpass.getuser())
    id: str = Field(default_factory=lambda: uuid4().hex)
    time: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    after: str = ""  # the SHA-256 of the event before, set by the log


@dataclass(frozen=True)
class DirectoryLog:
    """An event log as numbered files in a directory."""

    folder: Path

    def events(self) -> list[Event]:
        """Return all events, the oldest first; a UserError names one that was tampered with."""
        events: list[Event] = []
        after = ""
        for number, path in enumerate(sorted(self.folder.glob("[0-9]*.json")), start=1):
            if path != self._path(number):
                raise UserError(f"{self._path(number)}: event missing; the log was edited")
            try:
                event = Event.model_validate_json(path.read_bytes())
            except ValidationError as error:
                raise UserError(f"{path}: not an event; restore what it was: {error}") from error
            if event.after != after:
                raise UserError(f"{self._path(number - 1)}: event edited; restore what it was")
            after = sha256_file(path)
            events.append(event)
        return events

    def append(self, decide: Callable[[Sequence[Event]], Event | None]) -> None:
        """Append what `decide` makes of all events, asked again whenever others were faster.

        None appends nothing, and an event whose id is in the log is not written twice.
        """
        while True:
            events = self.events()
            event = decide(events)
            if event is None or newest(events, id=event.id):
                return
            after = sha256_file(self._path(len(events))) if events else ""
            text = event.model_copy(update={"after": after}).model_dump_json(indent=1)
            # A name that another writer took cannot be linked.
            with temporary_folder(self.folder) as temporary, suppress(FileExistsError):
                write_atomic(temporary / "event", f"{text}\n")
                os.link(temporary / "event", self._path(len(events) + 1))
                sync_folder(self.folder)
                return

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


def newest(events: Sequence[Event], **fields: str) -> Event | None:
    """Return the last event whose fields have these values, if there is one."""
    found = (e for e in reversed(events) if all(getattr(e, k) == v for k, v in fields.items()))
    return next(found, None)
