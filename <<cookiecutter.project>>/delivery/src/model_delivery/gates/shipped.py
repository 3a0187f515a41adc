"""The gates `package` and `api`: what is delivered is whole, plain and small, and answers rightly.

That any mistake in a request is refused, and that the OpenAPI document is the contract's, is the
machinery's doing, the same for every candidate: its tests send those requests.
"""

import json
import pickletools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import httpx

from model_delivery.bundle.candidate import Candidate, unpack
from model_delivery.bundle.launch import Running, score_cleanly, start
from model_delivery.contract.request import MOST_ROWS, JsonRow, columns_of, draw_rows
from model_delivery.files import changed_files, temporary_folder
from model_delivery.gates import judge
from model_delivery.project import Project
from model_delivery.protocols import Floats, UserError, user_module
from model_delivery.report.verdict import Check, Outcome, Verdict, fixed
from model_delivery.training.scores import SCORE

KINDS = {".csv", ".json", ".md", ".py", ".toml", ".txt", ".typed", ".yaml"}
NAMES = {"src/SHA256SUMS", "env/docker/Dockerfile", "env/docker/entrypoint.sh"}
"""Kinds of files that a Bento may hold, and single files beside them. All of them are text."""
_CONTROL = {*range(32)} - {9, 10, 12, 13}
_IN_EVERY_PICKLE = {"GLOBAL", "INST", "PUT", "BINPUT", "PROTO"}  # at least one; else a number
VALID_ROWS, UNKNOWN = 200, "no_such_column"


def check_package(project: Project, candidate: Candidate) -> Verdict:
    """Judge the package of a candidate."""
    if not candidate.package.exists():
        raise UserError(f"candidate {candidate.short} is not packaged yet; run `ml package`")
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


def check_api(project: Project, candidate: Candidate) -> Verdict:
    """Send rows drawn from the data contract, right and wrong, to a candidate's service."""
    contract, folder = project.contract, candidate.ship / "model"
    rows = draw_rows(contract, VALID_ROWS, seed=0)
    features = user_module("features").Features.load(folder)  # training's own code, no service
    model = user_module("model").Model.load(folder)
    scores = model.predict(features.transform(columns_of(rows, contract)))
    with start(project, candidate.ship, project.work / "logs" / "api.log") as service:
        return Verdict(gate="api", checks=judge_service(service, contract.inputs, rows, scores))


def judge_service(
    service: Running, names: Iterable[str], rows: Sequence[JsonRow], scores: Floats
) -> list[Check]:
    """Judge a service by its answers; `scores`, shape (n,), are training's, `names` the columns."""
    answers, checks = list[httpx.Response](), list[Check]()
    client = httpx.Client(base_url=service.url, timeout=10, trust_env=False)
    client.event_hooks = {"response": [answers.append]}
    try:
        with client:
            checks += _right(client, service.digest[:12], rows, scores)
            checks.append(_refusals(client, [*names, UNKNOWN], rows[0]))
    except (httpx.HTTPError, ValueError) as error:  # none, or one that is no JSON
        said = f"the service does not answer ({type(error).__name__}: {error})"
        checks.append(fixed("answered", False, said))
    own = {"x-model-digest": service.digest, "x-launch": service.launch}
    slips = [
        f"{answer.url} came from {answer.headers.get('x-model-digest')}"
        for answer in answers
        if not own.items() <= answer.headers.items()
    ]
    what = "responses name the candidate's digest and this start"
    return [*checks, _counted("identity", len(answers), slips, what)]


def _right(
    client: httpx.Client, release: str, rows: Sequence[JsonRow], scores: Floats
) -> Iterator[Check]:
    """Judge the answers to valid rows: one by one, then many together."""
    failed, differ = list[str](), list[str]()
    parts = [slice(at, at + 1) for at in range(len(rows))] + [slice(0, MOST_ROWS)]
    for part in parts:
        answer = client.post("/predict", json={"rows": rows[part]})
        wanted = {"release": release, "probability": scores[part].tolist()}
        asked = f"{len(rows[part])} rows from {json.dumps(rows[part.start])}"
        told = f"{asked} -> {answer.status_code} {answer.text:.200}"
        if answer.status_code != 200:
            failed.append(told)
        elif answer.json() != wanted:
            differ.append(f"{told}, in training {json.dumps(wanted):.200}")
    yield _counted("valid rows", len(parts), failed, "valid requests were answered")
    what = "answers hold exactly the scores of training's own code, bit for bit"
    yield _counted("equal scores", len(parts) - len(failed), differ, what)


def _refusals(client: httpx.Client, names: Sequence[str], row: JsonRow) -> Check:
    """Judge the answers to rows with a list, which no column allows, in one field after another."""
    slips = []
    for name in names:
        answer = client.post("/predict", json={"rows": [row | {name: []}]})
        if not 400 <= answer.status_code < 500 or name not in answer.text:
            told = f"{answer.status_code} {answer.text:.200}"
            slips.append(f"a list in `{name}` -> {told} (expected 4xx naming it)")
    return _counted("wrong values", len(names), slips, "wrong values were refused by name")


def _counted(name: str, total: int, slips: Sequence[str], what: str) -> Check:
    """Judge things of which there must be some, and none may slip."""
    good, first = total - len(slips), f"; first: {slips[0]}" if slips else ""
    return fixed(name, not slips and total > 0, f"{good:,} of {total:,} {what}{first}", good)
