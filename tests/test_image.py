"""`make image` by buildah: the image's own service answers as the candidate did.

The base is a Debian made by debootstrap, since nothing is pulled here. It takes a minute and is
kept in the user's cache between runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.baking import BakedProject

BASE = "localhost/template-test-base:bookworm-venv"
IMAGE = "localhost/late_departures"
PORT = 4000
REFERENCE = """
import json
import pyarrow.parquet as pq
from model_delivery.bundle.candidate import current_candidate
from model_delivery.project import find_project
project = find_project()
candidate = current_candidate(project)
table = pq.read_table(candidate.path("test")).slice(0, 50)
rows = table.select(list(project.contract.inputs)).to_pylist()
said = {"digest": candidate.digest, "rows": rows, "scores": table.column("score").to_pylist()}
print(json.dumps(said, default=lambda time: time.isoformat()))
"""


class Store:
    """Buildah's store in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, settings = folder, folder / "storage.conf"
        places = f'graphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
        settings.write_text(f'[storage]\ndriver = "overlay"\n{places}')
        self.env = {"CONTAINERS_STORAGE_CONF": str(settings)}

    def run(self, *command: str) -> str:
        """Return what a command printed."""
        env = os.environ | self.env
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout.strip()

    @contextmanager
    def container(self, image: str) -> Iterator[str]:
        """Yield the name of a container made of an image."""
        name = self.run("buildah", "from", "--pull-never", image)
        try:
            yield name
        finally:
            self.run("buildah", "rm", name)


@pytest.fixture(scope="module")
def store() -> Store:
    """Return a store that holds a base image."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    store = Store(cache / "cookiecutter-model-delivery" / "images")
    if store.run("buildah", "images", "--quiet", "--filter", f"reference={BASE}"):
        return store
    root = store.folder / "bookworm"
    shutil.rmtree(root, ignore_errors=True)
    packages = "--include=python3,python3-venv,libgomp1"
    store.run("debootstrap", "--variant=minbase", packages, "bookworm", str(root))
    with store.container("scratch") as container:
        store.run("buildah", "copy", "--quiet", container, str(root), "/")
        store.run("buildah", "commit", "--quiet", container, BASE)
    shutil.rmtree(root)
    return store


def secrets(folder: Path) -> str:
    """Return options of a build that let pip trust and reach the index that this machine uses."""
    certificates = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    lines = ["[global]", "cert = /run/secrets/certificates"]
    if index := os.environ.get("PIP_INDEX_URL"):
        lines.append(f"index-url = {index}")
    settings = folder / "pip.conf"
    settings.write_text("\n".join(lines))
    return f"--secret=id=pip,src={settings} --secret=id=certificates,src={certificates}"


@pytest.fixture(scope="module")
def built(
    trained: BakedProject, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BakedProject]:
    """Return a project with an image of its candidate."""
    options = f"OPTIONS={secrets(tmp_path_factory.mktemp('secrets'))}"
    asked = ["BUILDER=buildah", f"BASE={BASE}", options]
    trained.run("make", "image", *asked, env=store.env | {"BUILDAH_ISOLATION": "chroot"})
    yield trained
    images = store.run("buildah", "images", "--quiet", "--filter", f"reference={IMAGE}")
    store.run("buildah", "rmi", *images.split())


@contextmanager
def serving(store: Store, container: str, command: list[str]) -> Iterator[None]:
    """Run a command in a container; with its first process all of it ends, as with an engine."""
    first = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    run = ["buildah", "run", "--isolation", "chroot", container, "--", *command]
    process = subprocess.Popen([*first, *run], env=os.environ | store.env)
    try:
        yield
    finally:
        process.kill()  # `unshare` heeds no gentler signal
        process.wait(timeout=30)


def predict(rows: list[Any]) -> tuple[str | None, Any]:
    """Return the digest in the headers and the JSON of the answer, once the service is there."""
    deadline = time.monotonic() + 120
    while True:
        connection = HTTPConnection("127.0.0.1", PORT, timeout=10)
        try:
            headers = {"content-type": "application/json"}
            connection.request("POST", "/predict", json.dumps({"rows": rows}), headers)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content
            return answer.getheader("x-model-digest"), json.loads(content)
        except ConnectionError:
            assert time.monotonic() < deadline, "the service does not come up"
            time.sleep(0.2)
        finally:
            connection.close()


@pytest.mark.debian("buildah", "debootstrap")
def test_the_image_answers_as_the_candidate_did(built: BakedProject, store: Store) -> None:
    expected = json.loads(built.run("uv", "run", "python", "-c", REFERENCE).stdout)
    image = f"{IMAGE}:{expected['digest'][:12]}"
    config = json.loads(store.run("buildah", "inspect", "--type", "image", image))["OCIv1"]
    assert config["config"]["Labels"]["model.digest"] == expected["digest"]
    command = [f"{PORT}" if part == "3000" else part for part in config["config"]["Cmd"]]
    with store.container(image) as container:
        who = store.run("buildah", "run", "--isolation", "chroot", container, "--", "id", "-u")
        assert who == "10001"
        with serving(store, container, command):
            digest, got = predict(expected["rows"])
    assert digest == expected["digest"]
    assert got == {"release": expected["digest"][:12], "probability": expected["scores"]}
