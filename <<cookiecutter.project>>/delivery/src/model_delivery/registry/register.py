"""Take a candidate into the registry: its bytes, its name, and what the gates said of it."""

from __future__ import annotations

import getpass
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.make import git
from model_delivery.project import Project
from model_delivery.registry.blobs import BlobStore, DirectoryBlobs
from model_delivery.registry.log import (
    DirectoryLog,
    Event,
    EventLog,
    Judgement,
    next_release,
    registration,
)


@dataclass(frozen=True)
class Registry:
    """The two halves of the registry: what happened, and the bytes it happened to."""

    log: EventLog
    blobs: BlobStore


def open_registry(project: Project) -> Registry:
    """Return the project's registry: for now two directories."""
    folder = project.work / "registry"
    return Registry(DirectoryLog(folder / "events"), DirectoryBlobs(folder / "blobs"))


def register(
    project: Project, candidate: Candidate, judgements: Sequence[Judgement], trigger: str
) -> Event:
    """Store a candidate's bytes, then say so; what is known already is not said again.

    Returns
    -------
    Event
        The registration, with the release's name and the checksum of its bytes.
    """
    registry = open_registry(project)
    known = registration(registry.log.events(), candidate.digest)
    if known is None or not registry.blobs.has(candidate.digest, known.blob or ""):
        checksum = registry.blobs.put(candidate.digest, candidate.folder)
    else:
        checksum = known.blob or ""
    facts: dict[str, Any] = {
        "digest": candidate.digest,
        "as_of": str(candidate.lineage["data"]["as_of"]),
        "commit": git(project, "rev-parse", "HEAD") or candidate.lineage["commit"],
        "trigger": trigger,
        "who": who(),
    }

    def registered(events: Sequence[Event]) -> Event | None:
        known = registration(events, candidate.digest)
        if known is not None and known.blob == checksum:
            return None
        name = known.release if known else next_release(events, version(project), facts["as_of"])
        return Event(type="registered", release=name, blob=checksum, **facts)

    event = registry.log.append(registered)
    event = event or registration(registry.log.events(), candidate.digest)
    assert event is not None  # it was appended, or was there before
    for judgement in judgements:
        verdict = Event(type="verdict", release=event.release, judgements=[judgement], **facts)
        registry.log.append(lambda events, verdict=verdict: _unless_said(events, verdict))
    return event


def who() -> str:
    """Return who acts: the workflow's actor, else the user of this machine."""
    return os.environ.get("GITHUB_ACTOR") or getpass.getuser()


def version(project: Project) -> str:
    """Return the project's version, the first part of a release's name."""
    settings = tomllib.loads((project.root / "pyproject.toml").read_text(encoding="utf-8"))
    return str(settings["project"]["version"])


def _unless_said(events: Sequence[Event], verdict: Event) -> Event | None:
    """Return the verdict's event unless the log holds the same verdict on the same digest."""
    same = [
        e
        for e in events
        if e.type == "verdict"
        and (e.digest, e.judgements, e.commit) == (verdict.digest, verdict.judgements, verdict.commit)
    ]
    return None if same else verdict
