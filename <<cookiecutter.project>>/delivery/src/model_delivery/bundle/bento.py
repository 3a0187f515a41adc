"""The package: a Bento of exactly what ships, with its SBOM, model card and checksums."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.environment import service_environment
from model_delivery.bundle.make import git
from model_delivery.bundle.model_card import model_card
from model_delivery.bundle.sbom import bill_of_materials
from model_delivery.digest import SUMS, seal
from model_delivery.errors import UserError
from model_delivery.files import settle, sha256_file, temporary_folder, write_atomic, write_json
from model_delivery.project import Project

SBOM, CARD = "sbom.cdx.json", "card.md"
_MOST_BYTES = 4 * 2**30
"""Unpacked; an archive that claims more is not one of ours."""


def bento_path(project: Project, candidate: Candidate) -> Path:
    """Return where the Bento of a candidate lies or would lie."""
    return candidate.package / f"{title(project)}-{candidate.short}.bento"


def title(project: Project) -> str:
    """Return the name that Bentos and images carry."""
    return project.package.replace("_", "-")


def build_package(project: Project, candidate: Candidate) -> Path:
    """Build Bento, SBOM, model card and checksums, unless they are there and whole.

    The same candidate gives the same bytes: times are its commit's.

    Returns
    -------
    Path
        The Bento.

    Raises
    ------
    UserError
        When the service cannot be imported in its clean environment, or the disk is full.
    """
    final, card = bento_path(project, candidate), model_card(project, candidate)
    if final.exists() and not changed_files(candidate.package):
        if (candidate.package / CARD).read_text() != card:  # the model was judged again since
            write_atomic(candidate.package / CARD, card)
            seal(candidate.package)
        return final
    with temporary_folder(candidate.folder.parent) as folder:
        _write_bento(project, candidate, folder / final.name)
        bill = bill_of_materials(project, title(project), candidate, committed(project, candidate))
        write_json(folder / SBOM, bill)
        write_atomic(folder / CARD, card)
        seal(folder)
        shutil.rmtree(candidate.package, ignore_errors=True)
        settle(folder, candidate.package)
    return final


def committed(project: Project, candidate: Candidate) -> datetime:
    """Return the time of the candidate's commit; of its training where there is none."""
    commit = candidate.lineage["commit"]
    time = git(project, "show", "--no-patch", "--format=%cI", commit) if commit else None
    return datetime.fromisoformat(time or candidate.lineage["trained"]).astimezone(UTC)


def changed_files(package: Path) -> list[str]:
    """Return the names of files that are not as `SHA256SUMS` says: changed, added or missing."""
    if not (package / SUMS).exists():
        return [SUMS]
    lines = (package / SUMS).read_text().splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    there = {path.name: sha256_file(path) for path in package.glob("*") if path.name != SUMS}
    return sorted({name for name, _ in listed.items() ^ there.items()})


def unpack(bento: Path, destination: Path) -> Path:
    """Unpack a Bento and return its `src`, the folder that shipped.

    Raises
    ------
    UserError
        When it is no archive, or holds anything but plain files and folders inside itself;
        nothing is unpacked then.
    """
    try:
        with tarfile.open(bento) as archive:
            members = archive.getmembers()
            for reason in _unsafe(members):
                raise UserError(f"{bento.name}: {reason}; refused before unpacking")
            # As an attribute: Debian 12's Python 3.11.2 has no `filter`; `_unsafe` looked already.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(destination, members)  # noqa: S202
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{bento.name}: cannot be unpacked ({error})") from error
    return destination / "src"


def _unsafe(members: list[tarfile.TarInfo]) -> Iterator[str]:
    seen: set[PurePosixPath] = set()
    for member in members:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name:
            yield f"`{member.name}` lies outside of the archive"
        if not (member.isfile() or member.isdir()):
            yield f"`{member.name}` is a link or a device, not a file"
        if member.isfile() and path in seen:
            yield f"`{member.name}` is in it twice"
        seen.add(path)
    if sum(member.size for member in members) > _MOST_BYTES:
        yield f"it unpacks to more than {_MOST_BYTES:,} bytes"


def isolated() -> dict[str, str]:
    """Return the environment variables under which a release's sources are imported.

    Nothing says where they lie: a Bento finds its own. No byte code is written: it would lie
    among the bytes that the digest names.
    """
    kept = ("PATH", "HOME", "TMPDIR", "LANG")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "OTEL_SDK_DISABLED": "true",
    }


def run(command: list[str], cwd: Path, env: Mapping[str, str] | None = None) -> None:
    """Run a program.

    Raises
    ------
    UserError
        With the program's own last lines.
    """
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise UserError(f"`{' '.join(command[:4])}` failed:\n{tail}")


def _write_bento(project: Project, candidate: Candidate, final: Path) -> None:
    """Let BentoML build in the clean environment, which also shows that the service imports."""
    when = committed(project, candidate)
    bentofile = {
        "service": "service:service",
        "name": title(project),
        "description": f"Release {candidate.short} of {title(project)}; see its model card.\n",
        "labels": {"digest": candidate.digest, "commit": candidate.lineage["commit"] or "none"},
        "python": {"lock_packages": False},  # they are locked, with hashes: no second answer
    }
    python = service_environment(project, candidate.ship / "requirements.txt")
    with tempfile.TemporaryDirectory(prefix="bento-") as name:
        home = Path(name)
        write_json(home / "bentofile.yaml", bentofile)  # JSON is YAML
        options = ["-f", str(home / "bentofile.yaml"), "--version", candidate.short]
        command = [str(python), "-m", "bentoml", "build", str(candidate.ship), *options]
        run(command, home, isolated() | {"BENTOML_HOME": name})
        bento = home / "bentos" / title(project) / candidate.short
        _adjust(bento, candidate, when)
        _pack(bento, final, int(when.timestamp()))


def _adjust(bento: Path, candidate: Candidate, when: datetime) -> None:
    """Make `src` exactly what ships, the requirements the pinned ones, the time the commit's."""
    (bento / "src" / "bentofile.yaml").unlink()
    (bento / "env" / "python" / "requirements.in").unlink()
    shutil.copyfile(candidate.ship / "requirements.txt", bento / "env/python/requirements.txt")
    record = bento / "bento.yaml"
    stamp = f"creation_time: '{when.isoformat()}'"
    text, found = re.subn(r"(?m)^creation_time: .*$", stamp, record.read_text())
    assert found == 1, "BentoML writes bento.yaml otherwise than this was made for"
    record.write_text(text)


def _pack(folder: Path, destination: Path, when: int) -> None:
    """Write the archive that `bentoml import` reads; it depends on contents and `when` only."""
    with tarfile.open(destination, "w:xz", preset=1) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size, member.mtime = path.stat().st_size, when
            member.mode = 0o755 if path.suffix == ".sh" else 0o644
            with path.open("rb") as content:
                archive.addfile(member, content)
