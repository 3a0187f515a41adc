"""The package of a small candidate, and the gate that each seeded fault turns red."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mistakes import let_in, misdescribed, wrong_requests
from model_delivery.bundle.candidate import Candidate, write_ship
from model_delivery.bundle.launch import start
from model_delivery.bundle.package import (
    build_package,
    pack,
    unpack,
)
from model_delivery.contract.request import columns_of, draw_rows
from model_delivery.contract.settings import Limit
from model_delivery.files import seal, write_json
from model_delivery.gates.package import check_package, is_plain
from model_delivery.project import Project, find_project
from model_delivery.protocols import UserError, user_module
from model_delivery.report.verdict import Outcome
from model_delivery.training.scores import Trained

Edit = Callable[[Path], Any]
CHANGED = """
_transform = Features.transform
Features.transform = lambda self, columns: _transform(self, columns) + 1
"""


@pytest.fixture(scope="module")
def project() -> Project:
    return find_project(Path(__file__))


def fitted(project: Project) -> Trained:
    """A real model, fitted on rows drawn from the contract."""
    contract = project.contract
    columns = columns_of(draw_rows(contract, 800, seed=1), contract)
    first = columns[contract.of_type("number")[0]]
    labels = (first > np.median(first)).astype(float)
    features = user_module("features").Features.fit(columns)
    model = user_module("model").Model(project.parameters)
    model.fit(features.transform(columns), labels, np.arange(len(labels)) >= 600)
    scores = model.predict(features.transform(columns))
    table = pa.table({name: list(values) for name, values in columns.items()})
    table = table.append_column("score", pa.array(scores))
    return Trained(features, model, table, table, {}, {})


@pytest.fixture(scope="module")
def candidate(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    """A candidate with its package."""
    folder = tmp_path_factory.mktemp("candidates")
    trained = fitted(project)
    write_ship(project, trained, folder / "new" / "ship")
    pq.write_table(trained.test, folder / "new" / "test.parquet")
    lineage = {"commit": None, "branch": None, "trained": "2013-08-01T00:00:00+00:00"}
    spans = {part: ["2013-01-01", "2013-07-01"] for part in ("train", "test")}
    data = {
        "as_of": "2013-08-01",
        "spans": spans,
        "rows": {"train": 600, "test": 200},
        "excluded": {},
    }
    lineage |= {"snapshot": "s", "data": data, "features": [], "parameters": {}}
    write_json(folder / "new" / "lineage.json", lineage)
    digest = seal(folder / "new" / "ship")
    (folder / "new").rename(folder / digest)
    made = Candidate(folder / digest)
    build_package(project, made)
    return made


def altered(project: Project, old: Candidate, ship: Edit, folder: Path) -> Candidate:
    """A whole candidate and package, but for an edit of what ships."""
    shutil.copytree(old.folder, folder / "new")
    ship(folder / "new" / "ship")
    digest = seal(folder / "new" / "ship")
    (folder / "new").rename(folder / digest)
    new = Candidate(folder / digest)
    (stale,) = new.package.glob("*.bento")
    unpack(stale, folder / "bento")
    stale.unlink()
    src = folder / "bento" / "src"
    shutil.rmtree(src)
    shutil.copytree(new.ship, src)
    shutil.copyfile(src / "requirements.txt", src.parent / "env/python/requirements.txt")
    new.bento.write_bytes(pack(src.parent))
    seal(new.package)
    return new


@pytest.fixture
def copy(candidate: Candidate, tmp_path: Path) -> Candidate:
    shutil.copytree(candidate.folder, tmp_path / candidate.digest)
    return Candidate(tmp_path / candidate.digest)


def red(project: Project, candidate: Candidate) -> set[str]:
    """The checks that stop."""
    verdict = check_package(project, candidate)
    wrong = [check for check in verdict.checks if check.outcome is not Outcome.PASS]
    assert {check.outcome for check in wrong} <= {Outcome.STOP}, wrong
    return {check.name for check in wrong}


def test_a_good_package_passes_every_check(project: Project, candidate: Candidate) -> None:
    verdict = check_package(project, candidate)
    assert verdict.outcome is Outcome.PASS, verdict.checks
    assert {"digest", "contents", "predictions"} <= {check.name for check in verdict.checks}


def test_a_whole_package_is_kept_and_a_damaged_one_built_again(
    project: Project, copy: Candidate
) -> None:
    sums = copy.package / "SHA256SUMS"
    stamp = sums.stat().st_mtime_ns
    build_package(project, copy)
    assert sums.stat().st_mtime_ns == stamp
    copy.bento.write_bytes(copy.bento.read_bytes()[:-1])
    build_package(project, copy)
    assert red(project, copy) == set()
    assert not list(copy.folder.parent.glob(".new-*"))


def test_the_bill_is_about_the_model(candidate: Candidate) -> None:
    bill = json.loads((candidate.package / "sbom.cdx.json").read_text())
    model = bill["metadata"]["component"]
    assert (model["type"], model["hashes"][0]["content"]) == (
        "machine-learning-model",
        candidate.digest,
    )
    (needs,) = (d["dependsOn"] for d in bill["dependencies"] if d["ref"] == model["bom-ref"])
    assert {part["bom-ref"] for part in bill["components"]} == set(needs)


def loose(package: Path, unpacked: Path) -> set[str]:
    """Return requirements that are no version with hashes, or are not exactly those of the bill."""
    (bento,) = package.glob("*.bento")
    unpack(bento, unpacked)
    text = (unpacked / "src" / "requirements.txt").read_text()
    assert (unpacked / "env" / "python" / "requirements.txt").read_text() == text
    pins = {line.split()[0]: line for line in text.replace("\\\n", "").splitlines()}
    bill = json.loads((package / "sbom.cdx.json").read_text())["components"]
    unlisted = pins.keys() ^ {f"{part['name']}=={part['version']}" for part in bill}
    return unlisted | {
        p for p, line in pins.items() if "==" not in p or "--hash=sha256:" not in line
    }


def test_every_requirement_is_pinned_with_hashes_and_is_in_the_bill(
    candidate: Candidate, tmp_path: Path
) -> None:
    pins = (candidate.ship / "requirements.txt").read_text()
    assert {"numpy", "fsspec"} <= {line.partition("==")[0] for line in pins.splitlines()}
    assert loose(candidate.package, tmp_path) == set()


def drop_component(package: Path) -> None:
    bill = json.loads((package / "sbom.cdx.json").read_text())
    bill["components"].pop()
    write_json(package / "sbom.cdx.json", bill)


def drop_hashes(ship: Path) -> None:
    path = ship / "requirements.txt"
    path.write_text(path.read_text().replace("--hash=sha256:", "--hash=md5:"))


def test_a_loose_or_unlisted_requirement_is_found(
    project: Project, candidate: Candidate, copy: Candidate, tmp_path: Path
) -> None:
    drop_component(copy.package)
    assert len(loose(copy.package, tmp_path / "unlisted")) == 1
    edits = replace("requirements.txt", "==", ">="), drop_hashes
    for n, edit in enumerate(edits):
        (tmp_path / str(n)).mkdir()
        changed = altered(project, candidate, edit, tmp_path / str(n))
        assert loose(changed.package, tmp_path / f"unpacked {n}")


def test_the_service_keeps_this_projects_contract(
    project: Project, candidate: Candidate, tmp_path: Path
) -> None:
    """The contract's own columns: each mistake in each is refused by its name, and told of."""
    wrong = wrong_requests(project.contract)
    assert {*project.contract.inputs} <= {one.word for one in wrong}
    with start(project, candidate.ship, tmp_path / "log") as service:
        assert let_in(service.url, wrong) == []
        assert misdescribed(service.url, project.contract) == set()


def zipped(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("data.pkl", content)
    return stream.getvalue()


def replace(name: str, old: str, new: str) -> Edit:
    return lambda ship: (ship / name).write_text((ship / name).read_text().replace(old, new, 1))


def write(name: str, content: bytes) -> Edit:
    return lambda ship: (ship / name).write_bytes(content)


def change_behaviour(ship: Path) -> None:
    (path,) = (ship / "src").glob("*/features.py")
    path.write_text(path.read_text() + CHANGED)


SHIP_FAULTS: dict[str, tuple[Edit, set[str]]] = {
    "a pickle as text": (write("model/state.txt", pickle.dumps({"a": [1]}, 0)), {"contents"}),
    "a binary pickle as JSON": (write("model/state.json", pickle.dumps([1])), {"contents"}),
    "a zip of a pickle": (write("model/state.txt", zipped(pickle.dumps([1]))), {"contents"}),
    "a pickle": (write("model/model.pkl", pickle.dumps([1])), {"file_kinds", "contents"}),
    "a foreign file": (write("install.sh", b"id\n"), {"file_kinds"}),
    "a missing hash": (write("requirements.txt", b"numpy==2.4.6\n"), {"predictions"}),
    "an open version": (replace("requirements.txt", "==", ">="), {"predictions"}),
    "changed features": (change_behaviour, {"predictions"}),
}


@pytest.mark.parametrize("fault", SHIP_FAULTS)
def test_what_ships_is_looked_into(
    fault: str, project: Project, candidate: Candidate, tmp_path: Path
) -> None:
    edit, expected = SHIP_FAULTS[fault]
    assert red(project, altered(project, candidate, edit, tmp_path)) == expected


def tamper_unsealed(package: Path) -> None:
    (bento,) = package.glob("*.bento")
    content = bytearray(bento.read_bytes())
    content[len(content) // 2] ^= 1
    bento.write_bytes(content)


def tamper_sealed(package: Path) -> None:
    (bento,) = package.glob("*.bento")
    folder = package.parent / "bento"
    unpack(bento, folder)
    path = folder / "src" / "request.json"
    path.write_text(path.read_text() + " ")
    bento.write_bytes(pack(folder))
    seal(package)


PACKAGE_FAULTS: dict[str, tuple[Edit, set[str]]] = {
    "a tampered byte": (tamper_unsealed, {"checksums"}),
    "a file too many": (lambda package: (package / "more").write_text(""), {"checksums"}),
    "no Bento": (shutil.rmtree, {"checksums"}),
    "a tampered byte under new checksums": (tamper_sealed, {"digest"}),
}


@pytest.mark.parametrize("fault", PACKAGE_FAULTS)
def test_the_package_is_looked_into(fault: str, project: Project, copy: Candidate) -> None:
    edit, expected = PACKAGE_FAULTS[fault]
    edit(copy.package)
    assert red(project, copy) == expected


def test_size_has_a_limit(project: Project, copy: Candidate) -> None:
    strict, small = Project(project.root), Limit(max=0.01, outcome="stop")
    limits = project.gates.package.model_copy(update={"megabytes": small})
    vars(strict)["gates"] = project.gates.model_copy(update={"package": limits})
    assert red(strict, copy) == {"megabytes"}


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "info",
    [
        member("src/link.txt", tarfile.SYMTYPE, "/etc/passwd"),
        member("src/link.txt", tarfile.LNKTYPE, "src/SHA256SUMS"),
        member("src/device.txt", tarfile.CHRTYPE),
        member("/tmp/absolute.txt"),
        member("src/../../outside.txt"),
        member("src/SHA256SUMS"),
    ],
    ids=["symlink", "hard link", "device", "absolute", "outside", "twice"],
)
def test_nothing_unsafe_is_unpacked(
    info: tarfile.TarInfo, project: Project, copy: Candidate, tmp_path: Path
) -> None:
    bento = copy.bento
    with tarfile.open(bento) as archive:
        members = [(m, archive.extractfile(m).read()) for m in archive.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(bento, "w:xz", preset=1) as archive:
        for each, content in members:
            archive.addfile(each, io.BytesIO(content))
        archive.addfile(info)
    seal(copy.package)
    assert red(project, copy) == {"archive"}
    with pytest.raises(UserError, match="refused before unpacking"):
        unpack(bento, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sources_and_notes_are_no_pickles(project: Project) -> None:
    sources = [project.root / "src", project.root / "delivery"]
    texts = [path.read_bytes() for folder in sources for path in folder.rglob("*.py")]
    texts += [b"1. first\n2. second\n", b"", b".", b"[1, 2]", b"certifi\ncryptography\n"]
    assert all(is_plain(text) for text in texts)
    assert not is_plain(b"cos\nsystem\n(S'id'\ntR.")
