"""A candidate: one trained model with what ships of it, what it scored, and its verdicts."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from model_delivery.errors import UserError
from model_delivery.files import read_json, sha256_file, sha256_json, verify, write_atomic
from model_delivery.project import Project
from model_delivery.report.verdict import Verdict
from model_delivery.training.snapshot import Snapshot

CURRENT = "candidate"


@dataclass(frozen=True)
class Candidate:
    """The folder of one candidate, named by its digest."""

    folder: Path

    @property
    def digest(self) -> str:
        return self.folder.name

    @property
    def short(self) -> str:
        """The digest's first 12 digits, for people."""
        return self.digest[:12]

    @property
    def ship(self) -> Path:
        """The bytes that ship; their hash is the digest."""
        return self.folder / "ship"

    @property
    def package(self) -> Path:
        """Bento, SBOM, card and checksums."""
        return self.folder / "package"

    @property
    def train_path(self) -> Path:
        """A sample of the training rows with the column `score`."""
        return self.folder / "evaluation" / "train.parquet"

    @property
    def test_path(self) -> Path:
        """All rows of the test window with the column `score`."""
        return self.folder / "evaluation" / "test.parquet"

    @cached_property
    def lineage(self) -> dict[str, Any]:
        """Commit, data, environment, parameters, timings and metrics of the training."""
        return dict(read_json(self.folder / "lineage.json"))

    def verdict(self, gate: str) -> Verdict | None:
        """Return a gate's verdict of this candidate, if it was given."""
        return _read(self.folder / "verdicts" / f"{gate}.json")

    def save(self, verdict: Verdict) -> None:
        path = self.folder / "verdicts" / f"{verdict.gate}.json"
        write_atomic(path, verdict.model_dump_json(indent=2))


def candidate_folder(project: Project, digest: str) -> Path:
    """Return where the candidate of this digest lies or would lie."""
    return project.work / "candidates" / digest


def load_candidate(project: Project, digest: str) -> Candidate:
    """Return a candidate; a UserError where its bytes are not those of the digest."""
    candidate = Candidate(candidate_folder(project, digest))
    if not candidate.ship.is_dir():
        raise UserError(f"no candidate {digest[:12]} here; run `ml train`")
    verify(candidate.ship, digest)
    return candidate


def current_candidate(project: Project) -> Candidate:
    """Return the candidate that `ml train` made last, checked."""
    pointer = project.work / CURRENT
    if not pointer.exists():
        raise UserError("no candidate yet; run `ml train`")
    return load_candidate(project, pointer.read_text().strip())


def data_verdict(project: Project, snapshot: str) -> Verdict | None:
    """Return the verdict of the gate `data`, which belongs to a snapshot, if it was given."""
    return _read(project.work / "verdicts" / f"data-{snapshot}.json")


def save_data_verdict(project: Project, snapshot: str, verdict: Verdict) -> None:
    """Keep the verdict of the gate `data`."""
    path = project.work / "verdicts" / f"data-{snapshot}.json"
    write_atomic(path, verdict.model_dump_json(indent=2))


def _read(path: Path) -> Verdict | None:
    return Verdict.read(path.read_text()) if path.exists() else None


def tree(folder: Path) -> list[Path]:
    """Return the files below a folder, sorted, without caches and hidden files."""
    found = {path: path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file()}
    hidden = ("__pycache__", ".")
    return sorted(path for path in found if not any(p.startswith(hidden) for p in found[path]))


def training_key(project: Project, snapshot: Snapshot) -> str:
    """Return the SHA-256 over all that training depends on; limits, docs and workflows do not."""
    root, lock = project.root, project.root / "uv.lock"
    if not lock.exists():
        raise UserError("uv.lock: missing; run `uv sync` and commit the file it makes")
    files = [*tree(root / "src" / project.package), *tree(root / "delivery" / "src"), lock]
    files += [root / "config" / name for name in ("data.yaml", "model.yaml")]
    hashes = {str(path.relative_to(root)): sha256_file(path) for path in files}
    python = [*sys.version_info[:2], sys.platform, platform.machine()]
    return sha256_json([hashes, snapshot.name, python])
