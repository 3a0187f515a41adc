"""The gate `package`: what is delivered is whole, plain, small, and answers as the candidate."""

import pickletools
from collections.abc import Callable, Iterator
from pathlib import Path

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.launch import score_cleanly
from model_delivery.bundle.package import unpack
from model_delivery.files import changed_files, temporary_folder
from model_delivery.gates import judge
from model_delivery.project import Project
from model_delivery.protocols import UserError
from model_delivery.report.verdict import Check, Outcome, Verdict, fixed
from model_delivery.training.scores import SCORE

KINDS = {".csv", ".json", ".md", ".py", ".toml", ".txt", ".typed", ".yaml"}
NAMES = {"src/SHA256SUMS", "env/docker/Dockerfile", "env/docker/entrypoint.sh"}
"""Kinds of files that a Bento may hold, and single files beside them. All of them are text."""
_CONTROL = {*range(32)} - {9, 10, 12, 13}
_IN_EVERY_PICKLE = {"GLOBAL", "INST", "PUT", "BINPUT", "PROTO"}  # at least one; else a number


def check_package(project: Project, candidate: Candidate) -> Verdict:
    """Judge the package of a candidate."""
    checks = list[Check]()
    with temporary_folder(project.work) as folder:
        for step in _steps(project, candidate, folder / "bento"):
            checks += step
            if any(check.outcome is Outcome.STOP for check in checks):
                break
    return Verdict(gate="package", checks=checks)


def _steps(project: Project, candidate: Candidate, folder: Path) -> Iterator[list[Check]]:
    """Yield cheap looks at bytes first; nothing of the package runs unless they all pass."""
    bento = candidate.bento
    wrong = changed_files(candidate.package) if bento.exists() else [bento.name]
    yield [_nothing("checksums", wrong, "every file is as SHA256SUMS says")]
    yield [_tried("archive", "holds plain files inside itself", lambda: unpack(bento, folder))]
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    changed = changed_files(folder / "src", candidate.digest)
    foreign = [name for name, p in files.items() if p.suffix not in KINDS and name not in NAMES]
    opaque = [name for name, path in files.items() if not is_plain(path.read_bytes())]
    megabytes, limit = bento.stat().st_size / 1e6, project.gates.package.megabytes
    yield [
        _nothing("digest", changed, "the Bento's sources are what was evaluated"),
        _nothing("file_kinds", foreign, "only kinds of files on the list"),
        _nothing("contents", opaque, "every file is text, and none a pickle"),
        judge("megabytes", limit, megabytes, "the Bento"),
    ]
    same = "rows of the test window score as they did, bit for bit"
    yield [_tried("predictions", same, lambda: _predictions(project, candidate, folder / "src"))]


def _nothing(name: str, wrong: list[str], right: str) -> Check:
    sentence = f"not so: {right}; see {', '.join(wrong[:3])} ({len(wrong)})" if wrong else right
    return fixed(name, not wrong, sentence)


def _tried(name: str, right: str, act: Callable[[], object]) -> Check:
    try:
        act()
    except UserError as error:
        return fixed(name, False, f"not so: {right}; {str(error).splitlines()[-1]}")
    return fixed(name, True, right)


def is_plain(content: bytes) -> bool:
    """Return whether bytes are text, as no archive is, and no pickle: its opcodes are only read."""
    try:
        content.decode()
        names = {opcode.name for opcode, _, _ in pickletools.genops(content)}
    except UnicodeDecodeError:
        return False
    except ValueError:
        names = set()  # not opcodes up to a STOP
    return _CONTROL.isdisjoint(content) and _IN_EVERY_PICKLE.isdisjoint(names)


def _predictions(project: Project, candidate: Candidate, ship: Path) -> None:
    """Refuse a package that scores otherwise than the candidate, bit for bit."""
    rows = candidate.rows("test").slice(0, 1_000)
    expected, answered = rows.column(SCORE).to_numpy(), score_cleanly(project, ship, rows)
    if expected.tobytes() != answered.tobytes():
        raise UserError(f"not the scores of the first {len(expected):,} rows")
