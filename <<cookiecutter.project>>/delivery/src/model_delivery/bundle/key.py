"""The key finds earlier work; the digest names what ships. They are never mixed."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from model_delivery.errors import UserError
from model_delivery.files import canonical_json, sha256_bytes, sha256_file
from model_delivery.project import Project
from model_delivery.training.snapshot import Snapshot

CONFIG = ("data.yaml", "model.yaml")


def tree(folder: Path) -> list[Path]:
    """Return the files below a folder, sorted, without caches and hidden files."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(p == "__pycache__" or p.startswith(".") for p in path.relative_to(folder).parts)
    )


def training_key(project: Project, snapshot: Snapshot) -> str:
    """Return the SHA-256 over everything that training depends on.

    The user's package, the machinery, contract and parameters, the data, the locked
    dependencies, the minor version of Python, and the platform. Limits, environments, docs
    and workflows are not part of it: they cannot change a model.

    Raises
    ------
    UserError
        When `uv.lock` is missing: without it the dependencies are not fixed.
    """
    lock = project.root / "uv.lock"
    if not lock.exists():
        raise UserError("uv.lock: missing; run `uv sync` and commit the file it makes")
    package = project.root / "src" / project.package
    files = [*tree(package), *tree(project.root / "delivery" / "src"), lock]
    files += [project.root / "config" / name for name in CONFIG]
    hashes = {str(path.relative_to(project.root)): sha256_file(path) for path in files}
    python = [*sys.version_info[:2], sys.platform, platform.machine()]
    return sha256_bytes(canonical_json([hashes, snapshot.name, python]).encode())
