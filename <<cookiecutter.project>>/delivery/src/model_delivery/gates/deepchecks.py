"""Deepchecks' measurements against `config/gates.yaml`: the quarantined program is asked."""

import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.launch import program_python, run
from model_delivery.contract.limits import Limit
from model_delivery.files import read_json, write_json
from model_delivery.gates import judge
from model_delivery.project import Project
from model_delivery.protocols import UserError
from model_delivery.report.verdict import Check, Table, finite
from model_delivery.training.scores import SCORE
from model_delivery.training.snapshot import Snapshot, periods

PROGRAM = Path(__file__).parents[1] / "checks" / "deepchecks_suites.py"
RUN_SECONDS = 300


def deepchecks(
    project: Project, suite: Literal["data", "model"], rows: Snapshot | Candidate
) -> tuple[list[Check], Table]:
    """Judge a snapshot's rows, or a candidate's scores, by the checks that have a limit.

    The table has every drift.
    """
    limits: dict[str, Limit] = getattr(project.gates.deepchecks, suite)
    asked = request_of(project, suite, rows)
    found = ask(project.work / "deepchecks", asked)[0] if limits else {}
    drifts = [drift for name in found if name.endswith("Drift") for drift in found[name].items()]
    ranked = sorted(drifts, key=lambda drift: -np.nan_to_num(drift[1], nan=np.inf))
    shown = [[said.replace("`", ""), value if finite(value) else None] for said, value in ranked]
    columns = ["what moved", "times the usual"]
    table = Table(title="Drift, largest first", columns=columns, rows=shown)
    return [judge_findings(name, limit, found[name]) for name, limit in limits.items()], table


def request_of(
    project: Project, suite: str, rows: Snapshot | Candidate, days: int = 0
) -> dict[str, Any]:
    """Return what the program is asked: files, columns by role, training periods, checks."""
    contract = project.contract
    numbers = contract.of_type("number", "integer", "boolean")
    # Integers of the key are names of rows, such as an order's number, and not features.
    names = [name for name in contract.key if contract.columns[name].type != "number"]
    times = rows.rows("train", [contract.time]).column(0).to_numpy()
    return {
        "suite": suite,
        "checks": list(getattr(project.gates.deepchecks, suite)),
        "train": str(rows.path("train")),
        "tests": [str(rows.path("test"))],
        "periods": [[str(start), str(end)] for start, end in periods(times, days)],
        "numeric": [name for name in numbers if name not in names],
        "categorical": contract.of_type("category"),
        "label": contract.target,
        "time": contract.time,
        "score": SCORE,
    }


def ask(folder: Path, request: dict[str, Any]) -> list[dict[str, dict[str, float]]]:
    """Run the program; return for each test file the numbers of checks by what is said of them.

    That its environment cannot be made is a UserError; without an answer there is no number.
    """
    asked, answered = (folder / f"{request['suite']}-{end}.json" for end in ("request", "answer"))
    write_json(asked, request)
    python = program_python(PROGRAM, folder)
    # Without compiled modules every start would take 20 seconds more.
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    try:
        command = [python, str(PROGRAM), str(asked), str(answered)]
        run(command, folder, env=env, timeout=RUN_SECONDS)
    except UserError as error:
        silence = {f"Deepchecks did not answer: {error}": math.nan}
        return [dict.fromkeys(request["checks"], silence)] * len(request["tests"])
    return list(read_json(answered))


def judge_findings(name: str, limit: Limit, found: dict[str, float]) -> Check:
    """Judge one check by its worst number; one that is none leaves it inconclusive."""
    unknown = [said for said, value in found.items() if not math.isfinite(value)]
    worst = max if limit.max is not None else min
    said = unknown[0] if unknown else worst(found, key=lambda said: found[said])
    return judge(name, limit, found[said], said)
