"""Deepchecks' measurements against `config/gates.yaml`: the quarantined program asked and judged.

A drift is judged against the spread between the training months themselves: real data has
seasons, and the library's own fixed thresholds fail on every honest July.
"""

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow.parquet as pq

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.environment import run
from model_delivery.contract.settings import Limit
from model_delivery.errors import UserError
from model_delivery.files import read_json, write_json
from model_delivery.gates import judge
from model_delivery.project import Project
from model_delivery.report.verdict import Check, Outcome
from model_delivery.training.fit import SCORE
from model_delivery.training.snapshot import FEWEST_MONTHS, Snapshot, periods

PROGRAM = Path(__file__).parents[1] / "checks" / "deepchecks_suites.py"
RUN_SECONDS = 300
SMALLEST_DRIFT = 0.05
"""A period's drift below this counts as this: two samples of one month differ by about 0.02."""


class Finding(NamedTuple):
    """What a check measured of a column, and of each training period where it is a drift."""

    check: str
    value: float | None
    past: list[float] | None
    sentence: str


def deepchecks(
    project: Project, suite: Literal["data", "model"], rows: Snapshot | Candidate
) -> list[Check]:
    """Judge a snapshot's rows, or a candidate's scores, by the checks that have a limit."""
    limits: dict[str, Limit] = getattr(project.gates.deepchecks, suite)
    if not limits:
        return []
    found = ask(project.work / "deepchecks", request_of(project, suite, rows))
    return [judge_findings(name, limit, found) for name, limit in limits.items()]


def request_of(project: Project, suite: str, rows: Snapshot | Candidate) -> dict[str, Any]:
    """Return what the program is asked: files, columns by role, training periods, checks."""
    contract = project.contract
    numbers = contract.of_type("number", "integer", "boolean")
    # Integers of the key are names of rows, such as an order's number, and not features.
    names = [name for name in contract.key if contract.columns[name].type != "number"]
    times = pq.read_table(rows.train_path, columns=[contract.time]).column(0).to_numpy()
    return {
        "suite": suite,
        "checks": list(getattr(project.gates.deepchecks, suite)),
        "train": str(rows.train_path),
        "test": str(rows.test_path),
        "periods": [[str(start), str(end)] for start, end in periods(times)],
        "numeric": [name for name in numbers if name not in names],
        "categorical": contract.of_type("category"),
        "label": contract.target,
        "time": contract.time,
        "score": SCORE,
    }


def ask(folder: Path, request: dict[str, Any]) -> list[Finding] | str:
    """Run the program on a request; return what it found, or why it did not answer.

    That its environment cannot be made, or that it has no such check, is a UserError.
    """
    asked, answered = (folder / f"{request['suite']}-{end}.json" for end in ("request", "answer"))
    write_json(asked, request)
    script = ["--script", str(PROGRAM)]
    try:  # from uv's cache if it can be, else from the index
        run(["uv", "sync", "--offline", *script], folder)
    except UserError:
        run(["uv", "sync", *script], folder)
    python = run(["uv", "python", "find", *script], folder).strip()
    # Without compiled modules every start would take 20 seconds more.
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    try:
        command = [python, str(PROGRAM), str(asked), str(answered)]
        run(command, folder, env=env, timeout=RUN_SECONDS)
    except UserError as error:
        return f"Deepchecks did not answer: {error}"
    answer = read_json(answered)
    if "refused" in answer:
        where = f"config/gates.yaml: `deepchecks.{request['suite']}`"
        raise UserError(f"{where}: {answer['refused']}")
    return [Finding(**finding) for finding in answer["findings"]]


def judge_findings(name: str, limit: Limit, findings: list[Finding] | str) -> Check:
    """Judge one check by its worst column; what did not run or gave no number is inconclusive.

    A pass with fewer than four training periods to compare with is a warning.
    """
    if isinstance(findings, str):
        return judge(name, limit, None, findings)
    own = [one for one in findings if one.check == name]
    blank = [one.sentence for one in own if one.value is None]
    if blank or not own:
        return judge(name, limit, None, (blank or ["did not run"])[0])
    few = [one for one in own if one.past is not None and len(one.past) < FEWEST_MONTHS]
    judged = {
        one.sentence: one.value / max([*one.past, SMALLEST_DRIFT]) if one.past else one.value
        for one in own
        if one.value is not None and one not in few
    }
    if judged:
        said = (max if limit.max is not None else min)(judged, key=lambda it: judged[it])
        check = judge(name, limit, judged[said], said)
        if check.outcome is not Outcome.PASS or not few:
            return check
    said = f"fewer than {FEWEST_MONTHS} training periods to compare with: {few[0].sentence}"
    return Check(name=name, outcome=Outcome.WARN, sentence=said, limit=str(limit))
