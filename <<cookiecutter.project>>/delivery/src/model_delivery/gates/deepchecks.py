"""Deepchecks' measurements against `config/gates.yaml`: the quarantined program asked and judged.

A drift is judged against the spread between the training months themselves: real data has
seasons, and the library's own fixed thresholds fail on every honest July.
"""

import math
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

    value: float
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
    return [judge_findings(name, limit, found[name]) for name, limit in limits.items()]


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


def ask(folder: Path, request: dict[str, Any]) -> dict[str, list[Finding]]:
    """Run the program on a request; return what each check found, or that it did not answer.

    That its environment cannot be made is a UserError.
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
        nothing = Finding(math.nan, None, f"Deepchecks did not answer: {error}")
        return {name: [nothing] for name in request["checks"]}
    return {name: [Finding(*row) for row in rows] for name, rows in read_json(answered).items()}


def judge_findings(name: str, limit: Limit, findings: list[Finding]) -> Check:
    """Judge one check by its worst column; where a column has no number, it is inconclusive.

    A pass with fewer than four training periods to compare with is a warning.
    """
    few, judged = list[str](), dict[str, float]()
    for value, past, sentence in findings:
        if not math.isfinite(value):
            return judge(name, limit, None, sentence)
        if past is None:
            judged[sentence] = value
        elif len(past) >= FEWEST_MONTHS:
            judged[sentence] = value / max(*past, SMALLEST_DRIFT)
        else:
            few.append(sentence)
    worst = max if limit.max is not None else min
    said = worst(judged, key=lambda it: judged[it], default="did not run")
    check = judge(name, limit, judged.get(said), said)
    if few and (not judged or check.outcome is Outcome.PASS):
        said = f"fewer than {FEWEST_MONTHS} training periods to compare with: {few[0]}"
        return Check(name=name, outcome=Outcome.WARN, sentence=said, limit=str(limit))
    return check
