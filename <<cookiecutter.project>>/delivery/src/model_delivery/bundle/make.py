"""Make a candidate: train by key, gather what ships, seal it with its digest."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import model_delivery
from model_delivery.bundle.candidate import (
    Candidate,
    candidate_folder,
    find_by_key,
    remember,
    training_key,
    tree,
)
from model_delivery.bundle.environment import export_requirements, write_columns
from model_delivery.contract.request import request_json
from model_delivery.digest import seal
from model_delivery.files import settle, sha256_file, temporary_folder, write_atomic, write_json
from model_delivery.project import Project
from model_delivery.training.fit import SCORE, Trained, fit
from model_delivery.training.snapshot import Snapshot, columns_of

RUNTIME = (
    "__init__.py",
    "errors.py",
    "files.py",
    "digest.py",
    "protocols.py",
    "contract",
    "serving",
)
"""The part of the machinery that a service imports; nothing else of it ships."""
REFERENCE_ROWS = 1_000
_ENTRY = '''\
"""The entry of this release: `bentoml serve service:service`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "src"))  # a Bento starts with nothing but its requirements

from model_delivery.serving.service import create

from {package}.service import Service

service = create(Service, HERE)
'''


def make_candidate(
    project: Project, snapshot: Snapshot, trigger: str, force: bool = False
) -> tuple[Candidate, bool]:
    """Train unless this key was trained before.

    Returns
    -------
    (Candidate, bool)
        The candidate, and whether it was trained now.
    """
    key = training_key(project, snapshot)
    known = None if force else find_by_key(project, key)
    if known is not None:
        remember(project, key, known)
        return known, False
    trained = fit(project, snapshot)
    with temporary_folder(project.work / "candidates") as folder:
        write_ship(project, trained, folder / "ship")
        digest = seal(folder / "ship")
        (folder / "evaluation").mkdir()
        pq.write_table(trained.train, folder / "evaluation" / "train.parquet")
        pq.write_table(trained.test, folder / "evaluation" / "test.parquet")
        write_reference(project, trained, folder)
        write_json(folder / "curve.json", trained.model.curve)
        write_json(folder / "lineage.json", _lineage(project, snapshot, trained, key, trigger))
        settle(folder, candidate_folder(project, digest))
    candidate = Candidate(candidate_folder(project, digest))
    remember(project, key, candidate)
    return candidate, True


def write_ship(project: Project, trained: Trained, ship: Path) -> None:
    """Gather what ships: model, features, request schema, pinned requirements, sources."""
    model = ship / "model"
    model.mkdir(parents=True)
    trained.model.save(model)
    trained.features.save(model)
    write_json(ship / "request.json", request_json(project.contract))
    write_atomic(ship / "requirements.txt", export_requirements(project))
    write_atomic(ship / "service.py", _ENTRY.format(package=project.package))
    machinery = Path(model_delivery.__file__).parent
    _copy(project.root / "src" / project.package, ship / "src" / project.package)
    for name in RUNTIME:
        _copy(machinery / name, ship / "src" / "model_delivery" / name)


def _copy(source: Path, destination: Path) -> None:
    files = tree(source) if source.is_dir() else [source]
    for path in files:
        target = destination / path.relative_to(source) if source.is_dir() else destination
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def write_reference(project: Project, trained: Trained, folder: Path) -> None:
    """Keep rows with their scores: the package must give the same ones, bit for bit."""
    rows = trained.test.slice(0, REFERENCE_ROWS)
    columns = {n: v for n, v in columns_of(rows).items() if n in project.contract.inputs}
    write_columns(folder / "reference.npz", columns)
    np.save(folder / "reference_scores.npy", rows.column(SCORE).to_numpy())


def _lineage(
    project: Project, snapshot: Snapshot, trained: Trained, key: str, trigger: str
) -> dict[str, Any]:
    config = project.root / "config"
    return {
        "key": key,
        "trigger": trigger,
        "trained": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git(project, "rev-parse", "HEAD"),
        "branch": git(project, "rev-parse", "--abbrev-ref", "HEAD"),
        "changed_files": len((git(project, "status", "--porcelain") or "").splitlines()),
        "snapshot": snapshot.name,
        "data": snapshot.manifest,
        "config": {path.name: sha256_file(path) for path in sorted(config.glob("*.yaml"))},
        "parameters": project.parameters.model_dump(),
        "features": list(trained.features.names),
        "metrics": trained.metrics,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "lock": sha256_file(project.root / "uv.lock"),
        "seconds": {name: round(value, 2) for name, value in trained.seconds.items()},
    }


def git(project: Project, *arguments: str) -> str | None:
    """Return what a git command prints, or None outside a repository or before a commit."""
    done = subprocess.run(
        ["git", *arguments], cwd=project.root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None
