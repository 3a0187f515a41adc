"""An OCI image of a release: the base, the pinned packages, the bytes that shipped, no root."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from model_delivery.bundle.bento import build_package, committed, run, title
from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.environment import service_environment
from model_delivery.digest import seal
from model_delivery.errors import UserError
from model_delivery.files import read_json, sha256_bytes, temporary_folder, write_atomic, write_json
from model_delivery.project import Project

RECORD = "image.json"
LABEL = "model.digest"
PORT = 3000
_HEALTH = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{PORT}/readyz', timeout=2)"
_SERVE = ["python", "-m", "bentoml", "serve", "service:service", "--host", "0.0.0.0"]  # noqa: S104
_CONTAINERFILE = """\
ARG BASE
FROM ${{BASE}}
RUN ldconfig -p | grep -q libgomp.so.1 || (apt-get update \\
    && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*)
RUN python3 -c "import sys; sys.exit(sys.version_info[:2] != {version} and 'no {python}')" \\
    && python3 -m venv --without-pip /srv/venv \\
    && mkdir /srv/state && chown 10001:10001 /srv/state
COPY packages/ /srv/venv/lib/python{python}/site-packages/
COPY ship/ /srv/release/
ENV PATH=/srv/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 \\
    HOME=/srv/state BENTOML_HOME=/srv/state BENTOML_DO_NOT_TRACK=True OTEL_SDK_DISABLED=true
WORKDIR /srv/release
USER 10001:10001
RUN python -c "import ctypes, service; ctypes.CDLL('libgomp.so.1')"
EXPOSE {port}
HEALTHCHECK --start-period=60s --interval=10s CMD {health}
CMD {command}
"""
_INSTALL = {
    "docker": "see https://docs.docker.com/engine/install/",
    "buildah": "sudo apt-get install -y buildah",
}


@dataclass(frozen=True)
class Image:
    """What an OCI archive holds: the digest of its manifest, its labels, digests of layers."""

    digest: str
    labels: dict[str, str]
    layers: list[str]


def build_image(project: Project, candidate: Candidate) -> Path:
    """Build the image as an OCI archive in the package, unless it is there and whole.

    Its packages are those of the clean environment that the gate tests, each checked against
    its hash when it was installed: building needs no package index inside the container, and
    no credential of one enters a layer. The base needs this machine's minor version of Python.

    Returns
    -------
    Path
        `image.json`: the archive, its manifest's digest, its size, the base.

    Raises
    ------
    UserError
        When the builder is missing, or fails: then with its last lines.
    """
    settings, record = project.delivery.image, candidate.package / RECORD
    if shutil.which(settings.builder) is None:
        how = f"`image.builder` is {settings.builder}, which is not installed"
        raise UserError(f"config/delivery.yaml: {how}: {_INSTALL[settings.builder]}")
    if sys.platform != "linux":
        raise UserError("images are built on Linux, where the packages they hold are installed")
    bento = build_package(project, candidate)
    if record.exists() and read_json(record)["base"] == settings.base:
        return record
    archive = bento.with_suffix(".oci.tar")
    with temporary_folder(candidate.folder.parent) as folder:
        _write_context(project, candidate, folder)
        built = _build(project, candidate, folder)
        about = {"digest": read_image(built).digest, "bytes": built.stat().st_size}
        built.replace(archive)
    about |= {"archive": archive.name, "base": settings.base, "builder": settings.builder}
    write_json(record, about)
    seal(candidate.package)  # until here the package counts as changed, and would be made anew
    return record


def read_image(archive: Path) -> Image:
    """Return what an OCI archive of one image holds.

    Raises
    ------
    UserError
        When it is no OCI archive, or a part of it is not what its digest names.
    """
    try:
        with tarfile.open(archive) as tar:
            digest = json.loads(_bytes(tar, "index.json"))["manifests"][0]["digest"]
            manifest = _blob(tar, digest)
            if "manifests" in manifest:  # an index of platforms, as Docker may write
                digest = manifest["manifests"][0]["digest"]
                manifest = _blob(tar, digest)
            labels = _blob(tar, manifest["config"]["digest"])["config"].get("Labels") or {}
    except (OSError, tarfile.TarError, LookupError, ValueError) as error:
        why = f"not an OCI archive ({error}); Docker writes one from version 25"
        raise UserError(f"{archive.name}: {why}") from error
    return Image(digest, labels, [layer["digest"] for layer in manifest["layers"]])


def image_has(archive: Path, image: Image, file: str) -> bool:
    """Return whether a layer of the image holds a file of this name."""
    with tarfile.open(archive) as tar:
        for digest in image.layers:
            blob = tar.extractfile(f"blobs/{digest.replace(':', '/')}")
            with tarfile.open(fileobj=blob, mode="r|*") as layer:
                if any(PurePosixPath(member.name).name == file for member in layer):
                    return True
    return False


def _bytes(tar: tarfile.TarFile, name: str) -> bytes:
    stream = tar.extractfile(name)
    return stream.read() if stream else b""


def _blob(tar: tarfile.TarFile, digest: str) -> Any:
    content = _bytes(tar, f"blobs/{digest.replace(':', '/')}")
    if f"sha256:{sha256_bytes(content)}" != digest:
        raise ValueError(f"{digest[:19]} does not name its bytes")
    return json.loads(content)


def _write_context(project: Project, candidate: Candidate, folder: Path) -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    clean = service_environment(project, candidate.ship / "requirements.txt").parent.parent
    packages = clean / "lib" / f"python{python}" / "site-packages"
    shutil.copytree(packages, folder / "packages", copy_function=os.link)
    shutil.copytree(candidate.ship, folder / "ship", copy_function=shutil.copyfile)
    text = _CONTAINERFILE.format(
        python=python,
        version=sys.version_info[:2],
        port=PORT,
        health=json.dumps(["python", "-c", _HEALTH]),
        command=json.dumps([*_SERVE, "--port", str(PORT)]),
    )
    write_atomic(folder / "Containerfile", text)


def _build(project: Project, candidate: Candidate, folder: Path) -> Path:
    settings, archive = project.delivery.image, folder / "image.tar"
    tag = f"{title(project)}:{candidate.short}"
    labels = {
        LABEL: candidate.digest,
        "org.opencontainers.image.title": title(project),
        "org.opencontainers.image.version": candidate.short,
        "org.opencontainers.image.revision": candidate.lineage["commit"] or "none",
        "org.opencontainers.image.created": committed(project, candidate).isoformat(),
    }
    options = [f"--label={name}={value}" for name, value in labels.items()]
    options += [f"--build-arg=BASE={settings.base}", f"--tag={tag}", "--file=Containerfile", "."]
    if settings.builder == "docker":
        run(["docker", "build", *options], folder)
        run(["docker", "save", f"--output={archive}", tag], folder)
    else:
        run(["buildah", "build", "--isolation=chroot", "--format=oci", *options], folder)
        delivered = f"oci-archive:{archive}:{tag}"
        run(["buildah", "push", "--compression-level=1", tag, delivered], folder)
    return archive
