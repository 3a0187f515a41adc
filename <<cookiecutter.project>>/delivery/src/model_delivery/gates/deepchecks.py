"""Deepchecks' measurements against `config/gates.yaml`: the quarantined program asked and judged.

A drift is judged against the spread between the training months themselves: real data has
seasons, and the library's own fixed thresholds fail on every honest July.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from model_delivery.bundle.candidate import Candidate
from model_delivery.contract.settings import Limit
from model_delivery.errors import UserError
from model_delivery.files import read_json, write_json
from model_delivery.gates.judge import judge
from model_delivery.project import Project
from model_delivery.report.verdict import Check, Outcome, Table
from model_delivery.training.fit import SCORE
from model_delivery.training.snapshot import Snapshot
from model_delivery.training.split import FEWEST_MONTHS, periods

PROGRAM = Path(__file__).parents[1] / "checks" / "deepchecks_suites.py"
PREPARE_SECONDS = 900
RUN_SECONDS = 300
SMALLEST_DRIFT = 0.05
"""A period's drift below this counts as this: two samples of one month differ by about 0.02."""
DRIFTS = ("FeatureDrift", "LabelDrift", "PredictionDrift")
"""Judged by their ratio to the largest drift of one training period against the others."""
SHARES = {"PercentOfNulls": "without a value", "MixedDataTypes": "of the rarer type"}
"""Judged by how far the test rows' share lies above the largest of a training period."""

Found = tuple[list[Check], list[Table]]


def data_checks(project: Project, snapshot: Snapshot) -> Found:
    """Judge a snapshot by Deepchecks' integrity and train-test checks."""
    return _checks(project, "data", snapshot.train_path, snapshot.test_path)


def model_checks(project: Project, candidate: Candidate) -> Found:
    """Judge a candidate by Deepchecks' checks of the scores it saved."""
    return _checks(project, "model", candidate.train_path, candidate.test_path)


def _checks(project: Project, suite: str, train: Path, test: Path) -> Found:
    limits: dict[str, Limit] = getattr(project.gates.deepchecks, suite)
    if not limits:
        return [], []
    answer = ask(project.work / "deepchecks", request_of(project, suite, train, test))
    if isinstance(answer, str):
        return [_unknown(name, limit, answer) for name, limit in limits.items()], []
    readings = [Reading(**finding) for finding in answer["findings"]]
    checks = [judge_readings(name, limit, readings) for name, limit in limits.items()]
    return checks, drift_table(readings)


def request_of(project: Project, suite: str, train: Path, test: Path) -> dict[str, Any]:
    """Return what the program is asked: files, columns by role, training periods, checks.

    Integers of the key are names of rows, such as an order's number, and not features.
    """
    contract = project.contract
    numbers = contract.of_type("number", "integer", "boolean")
    keys = [name for name in contract.key if contract.columns[name].type != "number"]
    times = pq.read_table(train, columns=[contract.time]).column(0).to_numpy()
    return {
        "suite": suite,
        "task": contract.task,
        "train": str(train),
        "test": str(test),
        "label": contract.target,
        "time": contract.time,
        "score": SCORE,
        "numeric": [name for name in numbers if name not in keys],
        "categorical": contract.of_type("category"),
        "periods": [[name, str(start), str(end)] for name, start, end in periods(times)],
        "checks": list(getattr(project.gates.deepchecks, suite)),
        "seed": 0,
    }


def ask(folder: Path, request: Mapping[str, Any]) -> dict[str, Any] | str:
    """Run the program on a request; return its answer, or why there is none.

    Raises
    ------
    UserError
        When its environment cannot be made, or it refuses the request.
    """
    asked = folder / f"{request['suite']}-request.json"
    answered = folder / f"{request['suite']}-answer.json"
    write_json(asked, request)
    answered.unlink(missing_ok=True)
    # Without compiled modules every start would take 20 seconds more.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    _prepare(environment)
    process = subprocess.Popen(
        ["uv", "run", "--quiet", "--offline", "--script", PROGRAM, asked, answered],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=RUN_SECONDS)
    except subprocess.TimeoutExpired:
        return f"Deepchecks had no answer after {RUN_SECONDS} seconds"
    finally:
        if process.poll() is None:  # the whole group: uv's child would outlive uv
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    last = (said.strip().splitlines() or ["nothing said"])[-1]
    if process.returncode == 2 and last.startswith("deepchecks_suites: "):
        said = last.split(": ", 1)[1]
        raise UserError(f"config/gates.yaml: `deepchecks.{request['suite']}`: {said}")
    if process.returncode or not answered.exists():
        return f"Deepchecks ended with exit code {process.returncode} ({last})"
    answer: dict[str, Any] = read_json(answered)
    return answer


def _prepare(environment: Mapping[str, str]) -> None:
    """Make the program's environment: from uv's cache when it can be, else from the index."""
    command = ["uv", "sync", "--quiet", "--script", str(PROGRAM)]
    options: dict[str, Any] = {"env": environment, "capture_output": True, "text": True}
    try:
        if subprocess.run([*command, "--offline"], check=False, **options).returncode:
            subprocess.run(command, check=True, timeout=PREPARE_SECONDS, **options)
    except FileNotFoundError:
        raise UserError("`uv` is not on PATH; it makes Deepchecks' environment") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        lines = str(error.stderr or error).splitlines()
        said = next((line for line in lines if line.startswith("error: ")), lines[-1])
        raise UserError(
            f"Deepchecks' environment cannot be made ({said.removeprefix('error: ')}); it needs "
            "the package index once (800 MB): check the network, then run the same command again"
        ) from error


@dataclass(frozen=True)
class Reading:
    """A finding, and the number that its limit is about."""

    check: str
    column: str | None
    ran: bool
    value: float | None
    reference: list[float | None] | None
    sentence: str

    @property
    def subject(self) -> str:
        """Whom the sentence is about."""
        whole = {"LabelDrift": "the label", "PredictionDrift": "the score"}
        return f"`{self.column}`" if self.column else whole.get(self.check, "the table")

    @property
    def past(self) -> list[float]:
        """The training periods' values."""
        return [value for value in self.reference or [] if value is not None]

    @property
    def comparable(self) -> bool:
        """Whether there are as many training periods as the judgement needs."""
        return self.check not in (*DRIFTS, *SHARES) or len(self.past) >= FEWEST_MONTHS

    @property
    def judged(self) -> float:
        """The number to compare with the limit; not-a-number when nothing was measured."""
        if self.value is None:
            return math.nan
        largest = max(self.past, default=0.0)
        if self.check in DRIFTS:
            return self.value / max(largest, SMALLEST_DRIFT)
        return self.value - largest if self.check in SHARES else self.value

    def say(self) -> str:
        """Return the finding in words."""
        if self.check in DRIFTS:
            return (
                f"{self.subject} drifts {self.value:.3f} from training to test; of "
                f"{len(self.past)} training periods one drifts {max(self.past):.3f} from the others"
            )
        if self.check in SHARES:
            most = f"{max(self.past):.1%} at most in a training period"
            return f"{self.subject} is {self.value:.1%} {SHARES[self.check]} in test, {most}"
        return f"{self.sentence}, column {self.subject}" if self.column else self.sentence


def judge_readings(name: str, limit: Limit, readings: Sequence[Reading]) -> Check:
    """Judge one check by the column that is worst.

    What did not run, or gave no number, is inconclusive. Where the training span has fewer than
    four periods to compare with, a drift is a warning.
    """
    own = [reading for reading in readings if reading.check == name]
    failed = [reading.sentence for reading in own if not reading.ran]
    if failed or not own:
        why = failed[0] if failed else "no finding came back"
        return _unknown(name, limit, f"did not run: {why}")
    if blank := [reading for reading in own if reading.value is None]:
        return _unknown(name, limit, f"no number came out for {_named(blank)}")
    alone = [reading for reading in own if not reading.comparable]
    too_few = f"fewer than {FEWEST_MONTHS} training periods to compare {_named(alone)} with"
    warning = Check(name=name, outcome=Outcome.WARN, sentence=too_few, limit=str(limit))
    ranked = sorted(
        (reading for reading in own if reading.comparable),
        key=lambda reading: reading.judged,
        reverse=limit.max is not None,
    )
    if not ranked:
        return warning
    beyond = [reading for reading in ranked[1:] if not limit.holds(reading.judged)]
    more = f"; beyond it too: {_named(beyond)}" if beyond else ""
    check = judge(name, limit, ranked[0].judged, ranked[0].say() + more)
    return warning if alone and check.outcome is Outcome.PASS else check


def drift_table(readings: Sequence[Reading]) -> list[Table]:
    """Return each column's drift beside the spread it was judged by, the largest ratio first."""
    drifts = [r for r in readings if r.check in DRIFTS and r.value is not None and r.past]
    drifts.sort(key=lambda reading: -reading.judged)
    rows = [
        [reading.column or reading.check, *(f"{number:.3f}" for number in numbers)]
        for reading in drifts
        for numbers in [(reading.value, max(reading.past), reading.judged)]
    ]
    columns = ["column", "drift of test", "largest of a training period", "ratio"]
    return [Table(title="Drift by column", columns=columns, rows=rows)] if rows else []


def _named(readings: Sequence[Reading]) -> str:
    more = f" and {len(readings) - 3} more" if len(readings) > 3 else ""
    return ", ".join(reading.subject for reading in readings[:3]) + more


def _unknown(name: str, limit: Limit, sentence: str) -> Check:
    return Check(name=name, outcome=Outcome.INCONCLUSIVE, sentence=sentence, limit=str(limit))
