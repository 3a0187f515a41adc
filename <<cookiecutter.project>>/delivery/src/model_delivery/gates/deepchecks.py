"""Deepchecks' measurements against `config/gates.yaml`: the quarantined program asked and judged.

A drift is judged against the spread between the training months themselves: real data has
seasons, and the library's own fixed thresholds fail on every honest July.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.environment import run
from model_delivery.contract.settings import Limit
from model_delivery.errors import UserError
from model_delivery.files import read_json, write_json
from model_delivery.gates import judge, unjudged
from model_delivery.project import Project
from model_delivery.report.verdict import Check, Outcome
from model_delivery.training.fit import SCORE
from model_delivery.training.snapshot import FEWEST_MONTHS, Snapshot, periods

PROGRAM = Path(__file__).parents[1] / "checks" / "deepchecks_suites.py"
RUN_SECONDS = 300
SMALLEST_DRIFT = 0.05
"""A period's drift below this counts as this: two samples of one month differ by about 0.02."""


@dataclass(frozen=True)
class Finding:
    """What a check said of a column, and of each training period where that is its measure."""

    check: str
    column: str | None
    value: float | None
    past: list[float] | None
    behind: str = ""

    @property
    def judged(self) -> float:
        """The number that the limit is about: of drift a ratio, of shares what is beyond."""
        if self.value is None:
            return math.nan
        usual = max(self.past or [0.0])
        drift = self.check.endswith("Drift")
        return self.value / max(usual, SMALLEST_DRIFT) if drift else self.value - usual

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        parts = ["unknown" if self.value is None else f"{self.value:.3f}"]
        parts += [f"{max(self.past):.3f} at most in a training period"] if self.past else []
        parts += [self.behind] if self.behind else []
        return (f"`{self.column}`: " if self.column else "") + ", ".join(parts)


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
    """Return what the program is asked: files, columns by role, training periods, checks.

    Integers of the key are names of rows, such as an order's number, and not features.
    """
    contract = project.contract
    numbers = contract.of_type("number", "integer", "boolean")
    keys = [name for name in contract.key if contract.columns[name].type != "number"]
    times = pq.read_table(rows.train_path, columns=[contract.time]).column(0).to_numpy()
    return {
        "suite": suite,
        "checks": list(getattr(project.gates.deepchecks, suite)),
        "train": str(rows.train_path),
        "test": str(rows.test_path),
        "periods": [[str(start), str(end)] for start, end in periods(times)],
        "numeric": [name for name in numbers if name not in keys],
        "categorical": contract.of_type("category"),
        "label": contract.target,
        "time": contract.time,
        "score": SCORE,
    }


def ask(folder: Path, request: dict[str, Any]) -> list[Finding] | str:
    """Run the program on a request; return what it found, or why it did not answer.

    Raises
    ------
    UserError
        When its environment cannot be made, or it has no such check.
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
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
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


def judge_findings(name: str, limit: Limit, findings: Sequence[Finding] | str) -> Check:
    """Judge one check by its worst column; what did not run or gave no number is inconclusive.

    With fewer than four training periods to compare with, nothing is sure: a warning.
    """
    if isinstance(findings, str):
        return unjudged(name, limit, findings)
    own = [finding for finding in findings if finding.check == name]
    blank = [finding.sentence for finding in own if finding.value is None]
    if blank or not own:
        return unjudged(name, limit, (blank or ["did not run: no finding came back"])[0])
    few = [one for one in own if one.past is not None and len(one.past) < FEWEST_MONTHS]
    ranked = sorted((one for one in own if one not in few), key=lambda one: one.judged)
    if limit.max is not None:
        ranked.reverse()
    beyond = [one for one in ranked if not limit.holds(one.judged)]
    if few and not beyond:
        said = f"fewer than {FEWEST_MONTHS} training periods to compare with: {few[0].sentence}"
        return unjudged(name, limit, said, Outcome.WARN)
    others = ", ".join(f"`{one.column}`" for one in beyond[1:4])
    more = f"; beyond it too: {others}" if others else ""
    return judge(name, limit, ranked[0].judged, ranked[0].sentence + more)
