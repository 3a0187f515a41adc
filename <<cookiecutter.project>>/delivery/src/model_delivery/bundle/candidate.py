"""A candidate: one trained model, what ships of it, its scores and verdicts; and its package."""

import io
import json
import lzma
import platform
import shutil
import sys
import tarfile
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from model_delivery import files
from model_delivery.bundle.launch import run, run_cleanly
from model_delivery.contract.request import request_json
from model_delivery.contract.settings import DataContract
from model_delivery.project import Project
from model_delivery.protocols import UserError
from model_delivery.report.render import render
from model_delivery.report.verdict import Report, Verdict
from model_delivery.training import snapshot as snapshots
from model_delivery.training.scores import Trained, fit
from model_delivery.training.snapshot import Judged, Snapshot, tree

CURRENT = "candidate"
SBOM, CARD = "sbom.cdx.json", "card.md"
RUNTIME = ("__init__.py", "contract", "files.py", "protocols.py", "serving.py", "watch/log.py")
"""The part of the machinery that ships: what a service imports, and its neighbours."""
ENTRY = """\
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "src"))  # a Bento starts with nothing but its requirements
from model_delivery.serving import create, score_standard_input
from {package}.service import Service

if __name__ == "__main__":  # its own way to score, for whoever comes later; or --stream
    score_standard_input(Service, HERE)
else:
    service = create(Service, HERE)
"""


class Candidate(Judged):
    """A candidate, its folder named by its digest: the hash of what `ship` holds.

    Its rows have a column `score`: a sample of those to train on, and all to test on.
    """

    @property
    def digest(self) -> str:
        return self.folder.name

    @property
    def short(self) -> str:
        return self.digest[:12]

    @property
    def ship(self) -> Path:
        return self.folder / "ship"

    @property
    def package(self) -> Path:
        return self.folder / "package"

    @property
    def bento(self) -> Path:
        return self.package / f"{self.short}.bento"

    @cached_property
    def lineage(self) -> dict[str, Any]:
        """Commit, data, environment, parameters and metrics of the training."""
        return dict(files.read_json(self.folder / "lineage.json"))

    def as_trained(self, project: Project) -> Project:
        """Return the project with the columns of the training, and all else of the contract now."""
        with suppress(OSError, ValueError):  # of a release by another version
            own = DataContract.model_validate_json((self.folder / "contract.json").read_bytes())
            return project.under(contract=own.with_shares_of(project.contract))
        return project


def candidate_folder(project: Project, digest: str) -> Path:
    """Return where the candidate of this digest lies or would lie."""
    return project.work / "candidates" / digest


def current_candidate(project: Project) -> Candidate:
    """Return the candidate that `ml train` made last; a UserError where its bytes have changed."""
    pointer = project.work / CURRENT
    if not pointer.exists():
        raise UserError("no candidate yet; run `ml train`")
    candidate = Candidate(candidate_folder(project, pointer.read_text()))
    files.verify(candidate.ship, candidate.digest)
    return candidate


def training_key(project: Project, snapshot: Snapshot) -> str:
    """Return the hash of all that training depends on: limits, docs and workflows are not."""
    if not (project.root / "uv.lock").exists():
        raise UserError("uv.lock: missing; run `uv sync` and commit the file it makes")
    python = [*sys.version_info[:2], sys.platform, platform.machine()]
    return snapshots.inputs_hash(project, snapshots.training_code(project), snapshot.name, python)


def uncommitted(project: Project) -> list[str]:
    """Return what git says is in no commit, or ignores, of what training depends on."""
    code = snapshots.training_code(project)
    found = git(project, "status", "--short", "--ignored", "--", *code) or ""
    return [line for line in found.splitlines() if "/__pycache__" not in line and "/." not in line]


def key_record(project: Project, key: str) -> Path:
    """Return the file that holds the digest of the candidate that a key led to."""
    return project.work / "candidates" / "keys" / key


def make_candidate(
    project: Project, snapshot: Snapshot, trigger: str, force: bool = False
) -> Candidate:
    """Train, unless the key was trained before and its candidate is whole."""
    key = training_key(project, snapshot)
    record = key_record(project, key)
    known = record.read_text() if record.exists() and not force else "none"
    candidate = Candidate(candidate_folder(project, known))
    # Of another snapshot it has other rows and verdicts beside the same bytes.
    old = files.changed_files(candidate.ship, known) or candidate.lineage["snapshot"]
    if old != snapshot.name:
        candidate = _train(project, snapshot, {"key": key, "trigger": trigger})
        files.write_atomic(record, candidate.digest)
    files.write_atomic(project.work / CURRENT, candidate.digest)
    return candidate


def git(project: Project, *arguments: str) -> str | None:
    """Return what a git command prints, or None outside a repository or before a commit."""
    with suppress(UserError):
        return run(["git", *arguments], project.root).strip()
    return None


def export(project: Project, *form: str) -> str:
    """Return the service's part of the lock as uv writes it: every version with its hashes."""
    scope = ["--locked", "--no-default-groups", "--no-emit-workspace"]
    return run(["uv", "export", "-q", *scope, *form], project.root)


def write_ship(project: Project, trained: Trained, ship: Path) -> None:
    """Gather what ships: model, features, request schema, pinned requirements, sources."""
    (ship / "model").mkdir(parents=True)
    trained.model.save(ship / "model")
    trained.features.save(ship / "model")
    files.write_json(ship / "request.json", request_json(project.contract))
    files.write_atomic(ship / "requirements.txt", export(project, "--no-header", "--no-annotate"))
    files.write_atomic(ship / "service.py", ENTRY.format(package=project.package))
    machinery, user = Path(files.__file__).parent, project.root / "src" / project.package
    for path in [*tree(user), *(path for name in RUNTIME for path in tree(machinery / name))]:
        home = user if path.is_relative_to(user) else machinery
        target = ship / "src" / home.name / path.relative_to(home)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _train(project: Project, snapshot: Snapshot, about: dict[str, str]) -> Candidate:
    trained, config = fit(project, snapshot), sorted((project.root / "config").glob("*.yaml"))
    lineage = {
        **about,
        "trained": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git(project, "rev-parse", "HEAD"),
        "branch": git(project, "rev-parse", "--abbrev-ref", "HEAD"),
        "changed_files": len(uncommitted(project)),
        "code": snapshots.inputs_hash(project),
        "snapshot": snapshot.name,
        "data": snapshot.manifest,
        "config": {path.name: files.sha256_file(path) for path in config},
        "parameters": project.parameters.model_dump(),
        "features": list(trained.features.names),
        "metrics": trained.metrics,
        "environment": [platform.python_version(), sys.platform, platform.machine()],
        "lock": files.sha256_file(project.root / "uv.lock"),
    }
    with files.temporary_folder(project.work / "candidates") as folder:
        new = Candidate(folder)
        write_ship(project, trained, new.ship)
        pq.write_table(trained.train, new.path("train"))
        pq.write_table(trained.test, new.path("test"))
        files.write_json(folder / "curve.json", trained.model.curve)
        files.write_json(folder / "lineage.json", lineage)
        files.write_json(folder / "contract.json", project.contract.model_dump(mode="json"))
        final = candidate_folder(project, files.seal(new.ship))
        shutil.rmtree(final, ignore_errors=True)  # what lies beside the same bytes is older
        files.settle(folder, final)
    return Candidate(final)


def build_package(project: Project, candidate: Candidate) -> None:
    """Build Bento, SBOM, model card and checksums, unless they are there and whole."""
    card = model_card(project, candidate)
    whole = candidate.bento.exists() and not files.changed_files(candidate.package)
    if whole and (candidate.package / CARD).read_text() == card:  # else it was judged again
        return
    with files.temporary_folder(candidate.folder.parent) as folder:
        _write_bento(project, candidate, folder / candidate.bento.name)
        files.write_json(folder / SBOM, _bill_of_materials(project, candidate))
        files.write_atomic(folder / CARD, card)
        files.seal(folder)
        shutil.rmtree(candidate.package, ignore_errors=True)
        files.settle(folder, candidate.package)


def pack(folder: Path) -> bytes:
    """Return an archive that `bentoml import` reads: the same bytes for the same files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", preset=1) as archive:
        for path in sorted(filter(Path.is_file, folder.rglob("*"))):
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = path.stat().st_size
            archive.addfile(member, io.BytesIO(path.read_bytes()))
    return packed.getvalue()


def unpack(packed: Path, destination: Path) -> None:
    """Unpack an archive; a UserError where it holds more than plain files inside itself."""
    try:
        with tarfile.open(packed) as archive:
            members = {PurePosixPath(member.name): member for member in archive.getmembers()}
            inside = not any(path.is_absolute() or ".." in path.parts for path in members)
            plain = all(member.isfile() for member in members.values())
            if not inside or not plain or len(members) < len(archive.getmembers()):
                why = "holds a link, a device, a file twice or one outside of it"
                raise UserError(f"{packed.name}: {why}; refused before unpacking")
            # As an attribute: Debian 12's Python 3.11.2 has no `filter`.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(destination)  # noqa: S202 - looked at above
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise UserError(f"{packed.name}: cannot be unpacked ({error})") from error


def model_card(project: Project, candidate: Candidate) -> str:
    """Return the card of a candidate as Markdown; it is about the gates before packaging."""
    subject, lineage = candidate.digest, candidate.lineage
    data = snapshots.find_snapshot(project, lineage["snapshot"]).verdict("data")
    found = {"data": data, "model": candidate.verdict("model")}
    verdicts = [v or Verdict(gate=gate, subject=subject) for gate, v in found.items()]
    facts: dict[str, Any] = {name: lineage[name] or "" for name in ("commit", "branch")}
    facts |= {"subject": subject, "data": lineage["data"] | {"snapshot": lineage["snapshot"]}}
    report = Report(project=project.about["name"], event="delivery", verdicts=verdicts, **facts)
    contract = candidate.as_trained(project).contract  # its rules took out rows
    known = {"about": project.about, "contract": contract, "lineage": lineage}
    return render("card.md", report, **known)


def _write_bento(project: Project, candidate: Candidate, final: Path) -> None:
    """Let BentoML build in the clean environment, which also shows that the service imports."""
    bentofile = {
        "service": "service:service",
        "name": project.package,
        "description": f"Release {candidate.short} of {project.package}; see its model card.\n",
        "labels": {"digest": candidate.digest, "commit": candidate.lineage["commit"] or "none"},
        "python": {"lock_packages": False},  # they are locked, with hashes: no second answer
    }
    with files.temporary_folder(project.work) as home:
        files.write_json(home / "bentofile.yaml", bentofile)  # JSON is YAML
        options = ["-f", str(home / "bentofile.yaml"), "--version", candidate.short]
        command = ["-m", "bentoml", "build", str(candidate.ship), *options]
        run_cleanly(project, candidate.ship, command, home, BENTOML_HOME=str(home))
        bento = home / "bentos" / project.package / candidate.short
        (bento / "src" / "bentofile.yaml").unlink()  # `src` is exactly what ships
        (bento / "env" / "python" / "requirements.in").unlink()
        shutil.copyfile(candidate.ship / "requirements.txt", bento / "env/python/requirements.txt")
        files.write_atomic(final, pack(bento))


def _bill_of_materials(project: Project, candidate: Candidate) -> dict[str, Any]:
    """Return uv's CycloneDX bill of the locked packages, made to be about the model."""
    form = ["--format", "cyclonedx1.5", "--preview-features", "sbom-export"]
    bill: dict[str, Any] = json.loads(export(project, *form))
    bill["metadata"]["component"] = {
        "type": "machine-learning-model",
        "bom-ref": f"sha256:{candidate.digest}",
        "name": project.package,
        "version": candidate.short,
        "hashes": [{"alg": "SHA-256", "content": candidate.digest}],
    }
    needs = [component["bom-ref"] for component in bill["components"]]
    bill["dependencies"].append({"ref": f"sha256:{candidate.digest}", "dependsOn": needs})
    return bill
