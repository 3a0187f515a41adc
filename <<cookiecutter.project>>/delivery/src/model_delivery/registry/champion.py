"""What enters the registry and comes out of it: bytes by digest, and an environment's champion."""

import gzip
import io
import tarfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model_delivery.bundle.candidate import Candidate, candidate_folder, git, load_candidate
from model_delivery.errors import UserError
from model_delivery.files import (
    settle,
    sha256_bytes,
    sha256_file,
    temporary_folder,
    verify,
    write_atomic,
)
from model_delivery.project import Project
from model_delivery.registry.log import DirectoryLog, Event, newest
from model_delivery.report.verdict import Outcome


@dataclass(frozen=True)
class DirectoryBlobs:
    """Candidates as files `<digest>.tar.gz`: the same bytes for the same content."""

    folder: Path

    def has(self, digest: str, checksum: str) -> bool:
        """Return whether a digest's blob is there and has these bytes."""
        path = self._path(digest)
        return path.exists() and sha256_file(path) == checksum

    def put(self, digest: str, folder: Path) -> str:
        """Store a candidate's folder; return the SHA-256 of the stored bytes."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(folder, ".", filter=_bare)
        content = gzip.compress(packed.getvalue(), compresslevel=3, mtime=0)
        write_atomic(self._path(digest), content)
        return sha256_bytes(content)

    def get(self, digest: str, checksum: str, destination: Path) -> None:
        """Make `destination` what was stored; a UserError where that is not what is there."""
        path = self._path(digest)
        if not self.has(digest, checksum):
            what = "not what was registered (tampered with?)" if path.exists() else "missing"
            raise UserError(f"{path}: {what}; run `ml deploy` where the candidate was trained")
        with temporary_folder(destination.parent) as temporary, tarfile.open(path) as archive:
            # As an attribute: Debian 12's Python 3.11.2 has no `filter`; the bytes are known.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(temporary)  # noqa: S202
            verify(temporary / "ship", digest)
            settle(temporary, destination)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.tar.gz"


def _bare(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Keep paths and contents only; and no image, which has a registry of its own."""
    member.mtime = member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755
    return None if member.name.endswith(".oci.tar") else member


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
    folder = candidate_folder(project, move.digest)
    if not folder.exists():
        blob_store(project).get(move.digest, move.blob, folder)
    return load_candidate(project, move.digest)


def register(
    project: Project, candidate: Candidate, verdicts: dict[str, Outcome], trigger: str
) -> Event:
    """Store a candidate's bytes, name it, and say so; return the event that did, now or before."""
    log, blobs, digest = event_log(project), blob_store(project), candidate.digest
    as_of = str(candidate.lineage["data"]["as_of"])

    def decide(events: Sequence[Event]) -> Event | None:
        known = newest(events, type="registered", digest=digest)
        if known and blobs.has(digest, known.blob):
            return None
        return Event(
            type="registered",
            digest=digest,
            release=known.release if known else _next_release(project, as_of, events),
            as_of=as_of,
            commit=git(project, "rev-parse", "HEAD") or candidate.lineage["commit"],
            trigger=trigger,
            blob=blobs.put(digest, candidate.folder),
            verdicts=verdicts,
        )

    log.append(decide)
    registered = newest(log.events(), type="registered", digest=digest)
    assert registered is not None
    return registered


def _next_release(project: Project, as_of: str, events: Sequence[Event]) -> str:
    """Return the next free name for a release of the project's version and these data."""
    settings = tomllib.loads((project.root / "pyproject.toml").read_text(encoding="utf-8"))
    prefix = f"v{settings['project']['version']}+data.{as_of.replace('-', '')}"
    taken = {e.release for e in events if e.release.rpartition(".")[0] == prefix}
    return f"{prefix}.{len(taken) + 1}"
