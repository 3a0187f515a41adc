"""An OCI image of a release: the base, the pinned packages, the bytes that shipped, no root."""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.environment import PYTHON, run, service_environment
from model_delivery.bundle.package import build_package, committed, title
from model_delivery.errors import UserError
from model_delivery.files import read_json, seal, sha256_bytes, temporary_folder, write_json
from model_delivery.project import Project

RECORD = "image.json"
LABEL = "model.digest"


def build_image(project: Project, candidate: Candidate) -> Path:
    """Build the image as an OCI archive in the package, unless it is there and whole.

    Its packages are those of the clean environment that the gate tests, each checked against
    its hash when it was installed: building needs no package index inside the container, and
    no credential of one enters a layer. The base needs this machine's minor version of Python.
    Returns the path of `image.json`: the archive, its manifest's digest, its size, the base.
    """
    settings, record = project.delivery.image, candidate.package / RECORD
    if shutil.which(settings.builder) is None:
        how = f"`image.builder` is {settings.builder}, which is not installed"
        other = "or run `sudo apt-get install -y buildah` and name that"
        raise UserError(f"config/delivery.yaml: {how}; install it, {other}")
    archive = build_package(project, candidate).with_suffix(".oci.tar")
    if record.exists() and read_json(record)["base"] == settings.base:
        return record
    with temporary_folder(candidate.folder.parent) as folder:
        requirements = candidate.ship / "requirements.txt"
        clean = service_environment(project, requirements).parent.parent
        packages = clean / "lib" / f"python{PYTHON}" / "site-packages"
        shutil.copytree(packages, folder / "packages")  # a link does not reach another device
        shutil.copytree(candidate.ship, folder / "ship", copy_function=shutil.copyfile)
        shutil.copyfile(Path(__file__).with_name("Containerfile"), folder / "Containerfile")
        built = _build(project, candidate, folder)
        about = {"digest": read_image(built)[0], "bytes": built.stat().st_size}
        built.replace(archive)
    about |= {"archive": archive.name, "base": settings.base, "builder": settings.builder}
    write_json(record, about)
    seal(candidate.package)  # until here the package counts as changed, and would be made anew
    return record


def _build(project: Project, candidate: Candidate, folder: Path) -> Path:
    settings, archive = project.delivery.image, folder / "image.tar"
    tag, oci = f"{title(project)}:{candidate.short}", "org.opencontainers.image"
    labels = {
        LABEL: candidate.digest,
        f"{oci}.title": title(project),
        f"{oci}.version": candidate.short,
        f"{oci}.revision": candidate.lineage["commit"] or "none",
        f"{oci}.created": committed(project, candidate).isoformat(),
    }
    options = [f"--label={name}={value}" for name, value in labels.items()]
    options += [f"--build-arg=BASE={settings.base}", f"--build-arg=PYTHON={PYTHON}"]
    options += [f"--tag={tag}", "--file=Containerfile", "."]
    if settings.builder == "docker":
        run(["docker", "build", *options], folder)
        run(["docker", "save", f"--output={archive}", tag], folder)
    else:
        run(["buildah", "build", "--isolation=chroot", "--format=oci", *options], folder)
        run(
            ["buildah", "push", "--compression-level=1", tag, f"oci-archive:{archive}:{tag}"],
            folder,
        )
    return archive


def read_image(archive: Path) -> tuple[str, dict[str, str]]:
    """Return the digest of the manifest in an OCI archive, and the image's labels.

    A UserError where it is no such archive, or a digest in it does not name its bytes.
    """
    try:
        with tarfile.open(archive) as tar:
            stream = tar.extractfile("index.json")
            found, digest = json.loads(stream.read() if stream else b""), ""
            while "manifests" in found:  # Docker may write an index of platforms between
                digest = found["manifests"][0]["digest"]
                found = _blob(tar, digest)
            config = _blob(tar, found["config"]["digest"])["config"]
    except (OSError, tarfile.TarError, LookupError, TypeError, ValueError) as error:
        why = f"not an OCI archive ({error}); Docker writes one from version 25"
        raise UserError(f"{archive.name}: {why}") from error
    return digest, config.get("Labels") or {}


def _blob(tar: tarfile.TarFile, digest: str) -> Any:
    stream = tar.extractfile(f"blobs/{digest.replace(':', '/')}")
    content = stream.read() if stream else b""
    if f"sha256:{sha256_bytes(content)}" != digest:
        raise ValueError(f"{digest[:19]} does not name its bytes")
    return json.loads(content)
