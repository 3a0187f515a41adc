"""The champion: the candidate that an environment serves, by the log."""

from __future__ import annotations

from model_delivery.bundle.candidate import Candidate, candidate_folder, load_candidate
from model_delivery.errors import UserError
from model_delivery.project import Project
from model_delivery.registry.log import registration, serving
from model_delivery.registry.register import open_registry


def champion(project: Project, environment: str = "production") -> Candidate | None:
    """Return what an environment serves, fetched from the blob store if it is not here.

    Raises
    ------
    UserError
        When the log was edited, or the champion's bytes are missing or not its own.
    """
    registry = open_registry(project)
    events = registry.log.events()
    move = serving(events, environment)
    if move is None:
        return None
    folder = candidate_folder(project, move.digest)
    if not folder.exists():
        registered = registration(events, move.digest)
        if registered is None or registered.blob is None:
            raise UserError(f"registry: {move.release} was promoted but never registered")
        registry.blobs.get(move.digest, registered.blob, folder)
    return load_candidate(project, move.digest)
