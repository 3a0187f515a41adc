"""An OCI image of a release: the base, the pinned packages, the bytes that shipped, no root."""

import json
import shutil
import tarfile
from pathlib import Path

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.environment import PYTHON, run, service_environment
from model_delivery.bundle.package import build_package, title
from model_delivery.errors import UserError
from model_delivery.files import read_json, seal, temporary_folder, write_json
from model_delivery.project import Project

RECORD = "image.json"
LABEL = "model.digest"
_BUILDERS = {
    "docker": (["build"], ["save", "--output=image.tar", "{tag}"]),
    "buildah": (
        ["build", "--isolation=chroot", "--format=oci"],
        ["push", "--compression-level=1", "{tag}", "oci-archive:image.tar:{tag}"],
    ),
}
"""What a builder is asked: to build an image, which takes more options, and to write it out."""


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
    tag, (build, write) = f"{title(project)}:{candidate.short}", _BUILDERS[settings.builder]
    facts = {"title": title(project), "version": candidate.short}
    facts["revision"] = candidate.lineage["commit"] or "none"
    labels = {f"org.opencontainers.image.{name}": fact for name, fact in facts.items()}
    options = [f"--label={n}={fact}" for n, fact in {LABEL: candidate.digest, **labels}.items()]
    options += [f"--build-arg=BASE={settings.base}", f"--build-arg=PYTHON={PYTHON}"]
    options += [f"--tag={tag}", "--file=Containerfile", "."]
    with temporary_folder(candidate.folder.parent) as folder:
        clean = service_environment(project, candidate.ship / "requirements.txt").parents[1]
        packages = clean / "lib" / f"python{PYTHON}" / "site-packages"
        shutil.copytree(packages, folder / "packages")  # a link does not reach another device
        shutil.copytree(candidate.ship, folder / "ship", copy_function=shutil.copyfile)
        shutil.copyfile(Path(__file__).with_name("Containerfile"), folder / "Containerfile")
        run([settings.builder, *build, *options], folder)
        run([settings.builder, *(part.format(tag=tag) for part in write)], folder)
        digest = image_digest(folder / "image.tar")
        (folder / "image.tar").replace(archive)
    about = {"archive": archive.name, "digest": digest, "bytes": archive.stat().st_size}
    write_json(record, about | {"base": settings.base, "builder": settings.builder})
    seal(candidate.package)  # until here the package counts as changed, and would be made anew
    return record


def image_digest(archive: Path) -> str:
    """Return the digest that an OCI archive's index names; a UserError where it is none."""
    try:
        with tarfile.open(archive) as tar:
            stream = tar.extractfile("index.json")
            return str(json.loads(stream.read() if stream else b"")["manifests"][0]["digest"])
    except (OSError, tarfile.TarError, LookupError, TypeError, ValueError) as error:
        why = f"not an OCI archive ({error}); Docker writes one from version 25"
        raise UserError(f"{archive.name}: {why}") from error
