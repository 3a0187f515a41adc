"""The package: a Bento of exactly what ships, with SBOM, model card and checksums."""

import io
import json
import lzma
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from model_delivery import files
from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.launch import export, run_cleanly
from model_delivery.project import Project
from model_delivery.protocols import UserError
from model_delivery.report.render import render
from model_delivery.report.verdict import Report, Verdict
from model_delivery.training.snapshot import find_snapshot

SBOM, CARD = "sbom.cdx.json", "card.md"


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
        for path in sorted(folder.rglob("*")):
            if path.is_file():
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
    data = find_snapshot(project, lineage["snapshot"]).verdict("data")
    found = {"data": data, "model": candidate.verdict("model")}
    verdicts = [v or Verdict(gate=gate, subject=subject) for gate, v in found.items()]
    facts: dict[str, Any] = {name: lineage[name] or "" for name in ("commit", "branch")}
    facts |= {"subject": subject, "data": lineage["data"] | {"snapshot": lineage["snapshot"]}}
    report = Report(project=project.about["name"], event="delivery", verdicts=verdicts, **facts)
    known = {"about": project.about, "contract": project.contract, "lineage": lineage}
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
