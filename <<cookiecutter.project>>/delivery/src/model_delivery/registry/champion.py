"""What enters the registry, and which of it an environment serves: the champion."""

from __future__ import annotations

import getpass
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from model_delivery.bundle.candidate import Candidate, candidate_folder, load_candidate
from model_delivery.bundle.make import git
from model_delivery.errors import UserError
from model_delivery.project import Project
from model_delivery.registry import log as events_of
from model_delivery.registry.blobs import BlobStore, DirectoryBlobs
from model_delivery.registry.log import DirectoryLog, Event, EventLog, Judgement, registration


@dataclass(frozen=True)
class Registry:
    """What happened, and the bytes it happened to."""

    log: EventLog
    blobs: BlobStore


def open_registry(project: Project) -> Registry:
    """Return the project's registry: for now two directories."""
    folder = project.work / "registry"
    return Registry(DirectoryLog(folder / "events"), DirectoryBlobs(folder / "blobs"))


def champion(project: Project, environment: str = "production") -> Candidate | None:
    """Return what an environment serves by the log, from the blob store if it is not here.

    Raises
    ------
    UserError
        When the log was edited, or the champion's bytes are missing or not its own.
    """
    registry = open_registry(project)
    events = registry.log.events()
    move = events_of.serving(events, environment)
    if move is None:
        return None
    folder = candidate_folder(project, move.digest)
    if not folder.exists():
        known = registration(events, move.digest)
        registry.blobs.get(move.digest, known.blob if known else None, folder)
    return load_candidate(project, move.digest)


def register(
    project: Project, candidate: Candidate, judgements: Sequence[Judgement], trigger: str
) -> Event:
    """Store a candidate's bytes, say so, and what the gates said; nothing is said twice.

    Returns
    -------
    Event
        The registration: the release's name and the checksum of its bytes.
    """
    registry, digest = open_registry(project), candidate.digest
    known = registration(registry.log.events(), digest)
    if known is None or not registry.blobs.has(digest, known.blob):
        checksum = registry.blobs.put(digest, candidate.folder)
        facts = _facts(project, candidate, trigger)
        registry.log.append(partial(_registered, project, facts, checksum))
    event = registration(registry.log.events(), digest)
    if event is None:
        raise UserError(f"registry: the registration of {candidate.short} was lost; repeat it")
    for judgement in judgements:
        facts = _facts(project, candidate, trigger) | {"release": event.release}
        said = Event(type="verdict", judgements=[judgement], **facts)
        registry.log.append(partial(_unless_said, said))
    return event


def who() -> str:
    """Return who acts: the workflow's actor, else the user of this machine."""
    return os.environ.get("GITHUB_ACTOR") or getpass.getuser()


def _facts(project: Project, candidate: Candidate, trigger: str) -> dict[str, Any]:
    """Return what every event on a candidate says; the commit is the delivering one."""
    return {
        "digest": candidate.digest,
        "as_of": str(candidate.lineage["data"]["as_of"]),
        "commit": git(project, "rev-parse", "HEAD") or candidate.lineage["commit"],
        "trigger": trigger,
        "who": who(),
    }


def _registered(
    project: Project, facts: dict[str, Any], checksum: str, events: Sequence[Event]
) -> Event | None:
    """Return the registration, under the digest's name if it has one, else the next free one."""
    known = registration(events, facts["digest"])
    if known is not None and known.blob == checksum:
        return None
    settings = tomllib.loads((project.root / "pyproject.toml").read_text(encoding="utf-8"))
    name = events_of.next_release(events, str(settings["project"]["version"]), facts["as_of"])
    name = known.release if known else name
    return Event(type="registered", release=name, blob=checksum, **facts)


def _unless_said(said: Event, events: Sequence[Event]) -> Event | None:
    """Return a verdict's event unless the log holds this verdict for this commit."""
    same = {"digest", "commit", "judgements"}
    fields = said.model_dump(include=same)
    known = (e for e in events if e.type == "verdict")
    return None if any(e.model_dump(include=same) == fields for e in known) else said
