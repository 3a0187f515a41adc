"""Make a candidate: train by key, gather what ships, seal it with its digest."""

from __future__ import annotations

import platform
import shutil
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from model_delivery import files
from model_delivery.bundle.candidate import CURRENT, Candidate, candidate_folder, training_key, tree
from model_delivery.bundle.environment import export, run
from model_delivery.contract.request import request_json
from model_delivery.errors import UserError
from model_delivery.project import Project
from model_delivery.training.fit import Trained, fit
from model_delivery.training.snapshot import Snapshot

RUNTIME = ("__init__.py", "contract", "errors.py", "files.py", "protocols.py", "serving")
"""The part of the machinery that a service imports; nothing else of it ships."""
_ENTRY = """\
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "src"))  # a Bento starts with nothing but its requirements
from model_delivery.serving.service import create
from {package}.service import Service

service = create(Service, HERE)
"""


def make_candidate(
    project: Project, snapshot: Snapshot, trigger: str, force: bool = False
) -> tuple[Candidate, bool]:
    """Train unless the key was trained before; return the candidate, and whether it is new."""
    key = training_key(project, snapshot)
    record = project.work / "keys" / key
    digest = record.read_text() if record.exists() and not force else ""
    ship = candidate_folder(project, digest) / "ship"
    known = bool(digest) and not files.changed_files(ship, digest)  # damaged is as good as none
    if not known:
        digest = _train(project, snapshot, {"key": key, "trigger": trigger})
        files.write_atomic(record, digest)
    files.write_atomic(project.work / CURRENT, digest)
    return Candidate(candidate_folder(project, digest)), not known


def _train(project: Project, snapshot: Snapshot, about: dict[str, str]) -> str:
    trained = fit(project, snapshot)
    with files.temporary_folder(project.work / "candidates") as folder:
        write_ship(project, trained, folder / "ship")
        (folder / "evaluation").mkdir()
        pq.write_table(trained.train, folder / "evaluation" / "train.parquet")
        pq.write_table(trained.test, folder / "evaluation" / "test.parquet")
        files.write_json(folder / "curve.json", trained.model.curve)
        files.write_json(folder / "lineage.json", about | _lineage(project, snapshot, trained))
        digest = files.seal(folder / "ship")
        final = candidate_folder(project, digest)
        if files.changed_files(final / "ship", digest):  # damaged since it was first trained
            shutil.rmtree(final, ignore_errors=True)
        files.settle(folder, final)
    return digest


def write_ship(project: Project, trained: Trained, ship: Path) -> None:
    """Gather what ships: model, features, request schema, pinned requirements, sources."""
    (ship / "model").mkdir(parents=True)
    trained.model.save(ship / "model")
    trained.features.save(ship / "model")
    files.write_json(ship / "request.json", request_json(project.contract))
    pins = export(project, "--no-header", "--no-annotate")
    files.write_atomic(ship / "requirements.txt", pins)
    files.write_atomic(ship / "service.py", _ENTRY.format(package=project.package))
    for home in (project.root / "src" / project.package, Path(files.__file__).parent):
        for path in tree(home):
            name = path.relative_to(home)
            if home.name != "model_delivery" or name.parts[0] in RUNTIME:
                target = ship / "src" / home.name / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def _lineage(project: Project, snapshot: Snapshot, trained: Trained) -> dict[str, Any]:
    config = project.root / "config"
    return {
        "trained": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git(project, "rev-parse", "HEAD"),
        "branch": git(project, "rev-parse", "--abbrev-ref", "HEAD"),
        "changed_files": len((git(project, "status", "--porcelain") or "").splitlines()),
        "snapshot": snapshot.name,
        "data": snapshot.manifest,
        "config": {path.name: files.sha256_file(path) for path in sorted(config.glob("*.yaml"))},
        "parameters": project.parameters.model_dump(),
        "features": list(trained.features.names),
        "metrics": trained.metrics,
        "environment": [platform.python_version(), sys.platform, platform.machine()],
        "lock": files.sha256_file(project.root / "uv.lock"),
        "seconds": {name: round(value, 2) for name, value in trained.seconds.items()},
    }


def git(project: Project, *arguments: str) -> str | None:
    """Return what a git command prints, or None outside a repository or before a commit."""
    with suppress(UserError):
        return run(["git", *arguments], project.root).strip()
    return None
