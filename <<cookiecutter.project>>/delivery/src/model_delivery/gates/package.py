"""The gate `package`: what is delivered is whole, plain, pinned, and answers as the candidate did.

Cheap looks at bytes come first; nothing of the package runs unless they all pass.
"""

from __future__ import annotations

import json
import pickletools
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from model_delivery.bundle.bento import SBOM, bento_path, changed_files, isolated, unpack
from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.environment import SECONDS, score_cleanly, service_environment
from model_delivery.bundle.image import LABEL, RECORD, image_has, read_image
from model_delivery.bundle.sbom import listed, read_pins
from model_delivery.digest import verify
from model_delivery.errors import UserError
from model_delivery.files import read_json, temporary_folder
from model_delivery.gates.judge import fixed, judge, limits_of, make_verdict
from model_delivery.project import Project
from model_delivery.report.verdict import Check, Outcome, Verdict

KINDS = {".csv", ".json", ".md", ".py", ".toml", ".txt", ".typed", ".yaml"}
NAMES = {"src/SHA256SUMS", "env/docker/Dockerfile", "env/docker/entrypoint.sh"}
"""Kinds of files that a Bento may hold, and single files beside them. All of them are text."""
BANNED = ("mlflow", "pandas", "sklearn")
_CONTROL = {*range(32)} - {9, 10, 12, 13}
_IN_EVERY_PICKLE = {"GLOBAL", "INST", "PUT", "BINPUT", "PROTO"}  # at least one; else a number
_PROBE = f"""
import importlib.util, json, service
print(json.dumps([name for name in {BANNED} if importlib.util.find_spec(name)]))
"""


def check_package(project: Project, candidate: Candidate) -> Verdict:
    """Judge the package of a candidate."""
    started = time.perf_counter()
    with temporary_folder(project.work) as folder:
        checks = list(_checks(project, candidate, folder))
    limits = limits_of(project, "package")
    return make_verdict("package", candidate.digest, limits, checks, started)


def _checks(project: Project, candidate: Candidate, folder: Path) -> Iterator[Check]:
    package, bento = candidate.package, bento_path(project, candidate)
    wrong = changed_files(package) if bento.exists() else [bento.name]
    yield fixed("checksums", not wrong, _said("every file is as SHA256SUMS says", wrong))
    if wrong:
        return
    try:
        ship = unpack(bento, folder / "bento")
    except UserError as error:
        yield fixed("archive", False, str(error))
        return
    looks = [fixed("archive", True, "holds plain files and folders inside itself")]
    looks += [_digest(candidate, ship), *_contents(ship.parent), *_pins(package, ship)]
    size, limit = bento.stat().st_size / 1e6, project.gates.package.megabytes
    looks += [judge("megabytes", limit, size, "the Bento"), *_image(project, candidate)]
    yield from looks
    if any(check.outcome is Outcome.STOP for check in looks):
        return
    python = service_environment(project, ship / "requirements.txt")
    with ThreadPoolExecutor() as pool:
        imports = pool.submit(_imports, python, ship)
        yield _predictions(project, candidate, ship)
        yield imports.result()


def _said(right: str, wrong: list[str]) -> str:
    if not wrong:
        return right
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"not so: {right}; see {', '.join(wrong[:3])}{more}"


def _digest(candidate: Candidate, ship: Path) -> Check:
    try:
        verify(ship, candidate.digest)
    except UserError as error:
        return fixed("digest", False, str(error).removeprefix(f"{ship.parent}/"))
    return fixed("digest", True, "the Bento's sources are what was evaluated", candidate.short)


def _contents(bento: Path) -> Iterator[Check]:
    foreign, opaque = [], []
    for path in sorted(path for path in bento.rglob("*") if path.is_file()):
        name, content = path.relative_to(bento).as_posix(), path.read_bytes()
        if path.suffix not in KINDS and name not in NAMES:
            foreign.append(name)
        if is_pickle(content):
            opaque.append(f"{name}, a pickle")
        elif not is_text(content):
            opaque.append(f"{name}, not text")
    yield fixed("file_kinds", not foreign, _said("only kinds of files on the list", foreign))
    yield fixed("contents", not opaque, _said("every file is text, and none a pickle", opaque))


def is_text(content: bytes) -> bool:
    """Return whether bytes are UTF-8 without control characters: no archive, no binary pickle."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return _CONTROL.isdisjoint(content)


def is_pickle(content: bytes) -> bool:
    """Return whether bytes start with a pickle of any protocol; only opcodes are read."""
    names = set()
    try:
        for opcode, _, _ in pickletools.genops(content):
            names.add(opcode.name)
    except ValueError:
        return False  # not opcodes up to a STOP
    return bool(names & _IN_EVERY_PICKLE)


def _pins(package: Path, ship: Path) -> Iterator[Check]:
    text = (ship / "requirements.txt").read_text()
    pins = read_pins(text)
    loose = [pin.text for pin in pins if not pin.hashes]
    if (ship.parent / "env" / "python" / "requirements.txt").read_text() != text:
        loose.append("env/python/requirements.txt differs")
    kept = bool(pins) and not loose
    yield fixed("pins", kept, _said("every requirement is pinned with hashes", loose), len(pins))
    named, known = {pin.text for pin in pins}, listed(read_json(package / SBOM))
    odd = [f"{name} is not in it" for name in sorted(named - known)]
    odd += [f"{name} is not required" for name in sorted(known - named)]
    yield fixed("sbom", not odd, _said("the SBOM lists exactly the requirements", odd), len(known))


def _imports(python: Path, ship: Path) -> Check:
    command = [str(python), "-c", _PROBE]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": SECONDS}
    try:
        done = subprocess.run(command, cwd=ship, env=isolated(), check=False, **options)
    except subprocess.TimeoutExpired:
        return fixed("imports", False, f"the service did not import within {SECONDS} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return fixed("imports", False, f"the service does not import where it will run: {last}")
    banned = json.loads(done.stdout)
    sentence = _said("the service imports with neither mlflow, pandas nor scikit-learn", banned)
    return fixed("imports", not banned, sentence)


def _predictions(project: Project, candidate: Candidate, ship: Path) -> Check:
    expected = np.load(candidate.folder / "reference_scores.npy", allow_pickle=False)
    try:
        answered = score_cleanly(project, ship, candidate.folder / "reference.npz")
    except UserError as error:
        return fixed("predictions", False, str(error).splitlines()[-1])
    alike = expected.shape == answered.shape and expected.dtype == answered.dtype
    differ = int(np.sum(expected != answered)) if alike else len(expected)
    kept = len(expected) > 0 and alike and expected.tobytes() == answered.tobytes()
    sentence = f"{differ:,} of {len(expected):,} scores differ from the candidate's own"
    return fixed("predictions", kept, sentence, differ)


def _image(project: Project, candidate: Candidate) -> Iterator[Check]:
    """Judge the image, which is expected only when there is a record of one."""
    path, limits = candidate.package / RECORD, project.gates.package
    if not path.exists():
        return
    record = read_json(path)
    archive = candidate.package / record["archive"]
    try:
        image = read_image(archive)
    except UserError as error:
        yield fixed("image", False, str(error))
        return
    same = (image.digest, image.labels.get(LABEL)) == (record["digest"], candidate.digest)
    sentence = "the archive holds the recorded image, of this candidate"
    yield fixed("image", same, _said(sentence, [] if same else [image.digest]), image.digest)
    found = image_has(archive, image, "libgomp.so.1")
    yield fixed("image_libgomp", found, "libgomp.so.1, OpenMP for native models, is in the image")
    size = archive.stat().st_size / 1e6
    yield judge("image_megabytes", limits.image_megabytes, size, "the image as an archive")
