"""The registry: an append-only log of small immutable events, and bytes by digest.

Events are numbered without gaps and each carries the hash of the one before it: what was deleted
or edited is named, unless it is the newest. Taking the next number is a compare-and-set.
"""

import getpass
import os
import tomllib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pydantic import Field, ValidationError

from model_delivery import files
from model_delivery.bundle.candidate import Candidate, candidate_folder, git, load_candidate
from model_delivery.bundle.package import pack, unpack
from model_delivery.errors import UserError
from model_delivery.project import Project
from model_delivery.protocols import Strict
from model_delivery.report.verdict import Outcome, finite


class Event(Strict):
    """One thing that happened to a digest; a move, if it is what an environment serves then."""

    type: Literal["registered", "promoted", "rolled_back"]
    digest: str
    release: str
    as_of: str
    commit: str | None
    trigger: str
    blob: str  # the SHA-256 of the stored bytes
    verdicts: dict[str, Outcome] = {}
    snapshot: str = ""
    parameters: dict[str, Any] = {}
    metrics: dict[str, list[float | None]] = {}  # on the test window: value, low, high
    against: str | None = None  # the digest of the champion that the gates judged beside
    reason: str = ""  # why it was rolled back: metric, value, limit
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
        events, after = list[Event](), ""
        for number, path in enumerate(sorted(self.folder.glob("[0-9]*.json")), start=1):
            if path != self._path(number):
                raise UserError(f"{self._path(number)}: event missing; the log was edited")
            try:
                event = Event.model_validate_json(path.read_bytes())
            except ValidationError as error:
                raise UserError(f"{path}: not an event; restore what it was: {error}") from error
            if event.after != after:
                raise UserError(f"{self._path(number - 1)}: event edited; restore what it was")
            after = files.sha256_file(path)
            events.append(event)
        return events

    def append(self, decide: Callable[[Sequence[Event]], Event]) -> Event:
        """Append what `decide` makes of all events, asked again whenever others were faster.

        An event that is in the log already is not written twice.
        """
        while True:
            events = self.events()
            event = decide(events)
            if newest(events, id=event.id):
                return event
            after = files.sha256_file(self._path(len(events))) if events else ""
            text = event.model_copy(update={"after": after}).model_dump_json(indent=1)
            with suppress(FileExistsError):  # another writer was faster
                files.write_atomic(self._path(len(events) + 1), f"{text}\n", exclusive=True)
                return event

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


def newest(events: Sequence[Event], **fields: str) -> Event | None:
    """Return the last event whose fields have these values, if there is one."""
    found = (e for e in reversed(events) if all(getattr(e, k) == v for k, v in fields.items()))
    return next(found, None)


@dataclass(frozen=True)
class DirectoryBlobs:
    """Candidates as files `<digest>.tar.xz`."""

    folder: Path

    def has(self, digest: str, checksum: str) -> bool:
        """Return whether a digest's blob is there and has these bytes."""
        path = self._path(digest)
        return path.exists() and files.sha256_file(path) == checksum

    def put(self, digest: str, folder: Path) -> str:
        """Store a candidate's folder, but for images; return the SHA-256 of the stored bytes."""
        files.write_atomic(self._path(digest), pack(folder))
        return files.sha256_file(self._path(digest))

    def get(self, digest: str, checksum: str, destination: Path) -> None:
        """Make `destination`, unless it is there, what was stored and nothing else."""
        if destination.exists():
            return
        path = self._path(digest)
        if not self.has(digest, checksum):
            what = "missing or tampered with; run `ml deploy` where the candidate was trained"
            raise UserError(f"{path}: {what}")
        with files.temporary_folder(destination.parent) as folder:
            unpack(path, folder)
            files.verify(folder / "ship", digest)
            files.settle(folder, destination)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.tar.xz"


def event_log(project: Project) -> DirectoryLog:
    """Return what happened to a project's releases."""
    return DirectoryLog(project.work / "registry" / "events")


def blob_store(project: Project) -> DirectoryBlobs:
    """Return the bytes it happened to."""
    return DirectoryBlobs(project.work / "registry" / "blobs")


def champion(project: Project, environment: str = "production") -> Candidate | None:
    """Return what an environment serves by the log, from the blob store if it is not here."""
    move = newest(event_log(project).events(), environment=environment)
    if move is None:
        return None
    blob_store(project).get(move.digest, move.blob, candidate_folder(project, move.digest))
    return load_candidate(project, move.digest)


def register(
    project: Project, candidate: Candidate, verdicts: dict[str, Outcome], trigger: str
) -> Event:
    """Store a candidate's bytes, name it, and say so; return the event that did, now or before."""
    blobs, digest = blob_store(project), candidate.digest
    as_of, model = str(candidate.lineage["data"]["as_of"]), candidate.verdict("model")
    settings = tomllib.loads((project.root / "pyproject.toml").read_text(encoding="utf-8"))
    checks = model.checks if model else []
    prefix = f"v{settings['project']['version']}+data.{as_of.replace('-', '')}"

    def decide(events: Sequence[Event]) -> Event:
        known = newest(events, type="registered", digest=digest)
        if known and blobs.has(digest, known.blob):
            return known
        taken = {e.release for e in events if e.release.rpartition(".")[0] == prefix}
        return Event(
            type="registered",
            digest=digest,
            release=known.release if known else f"{prefix}.{len(taken) + 1}",
            as_of=as_of,
            commit=git(project, "rev-parse", "HEAD") or candidate.lineage["commit"],
            trigger=trigger,
            blob=blobs.put(digest, candidate.folder),
            verdicts=verdicts,
            snapshot=candidate.lineage["snapshot"],
            parameters=candidate.lineage["parameters"],
            metrics={c.name: [c.value, c.low, c.high] for c in checks if finite(c.value)},
            against=model.against if model else None,
        )

    return event_log(project).append(decide)
