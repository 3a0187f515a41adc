"""The gate `load`: candidate, no-op twin and champion under the same load, in turns.

Absolute limits are generous, since they judge the machine too. Ratios to the twin (the same
service without its model) and to the champion are sharp: the machine's noise falls on all.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.launch import Running, start
from model_delivery.contract.settings import Limit, LoadLimits
from model_delivery.gates import judge, make_verdict
from model_delivery.project import Project
from model_delivery.protocols import Floats
from model_delivery.report.verdict import Check, Outcome, Table, Verdict, finite
from model_delivery.training.metrics import Estimate

CANDIDATE, TWIN, CHAMPION = "candidate", "twin", "champion"
Round = dict[str, dict[str, Any]]
"""By target: requests, failures by kind, qps, and p50, p95, p99 in milliseconds."""
LOCUST = (sys.executable, "-m", "model_delivery.gates.locustfile")
TIMEOUT = 5.0
"""Seconds after which a request failed."""
ROOM = 2.0
"""How far within an absolute limit the twin must stay for the limit to judge the candidate."""
_SLACK_SECONDS = 30
"""How much longer than planned a turn may take, awaiting its last answers, before it hangs."""
_UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))
MEASURES = (
    ("qps", "qps", None, "answers a second to all users"),
    ("p95_ms", "p95", None, "ms that 95 % of the answers took at most"),
    ("p99_ms", "p99", None, "ms that 99 % of the answers took at most"),
    ("qps_to_twin", "qps", TWIN, "times the answers of the service without its model"),
    ("p50_to_twin", "p50", TWIN, "times its median wait"),
    ("qps_to_champion", "qps", CHAMPION, "times the champion's answers"),
    ("p95_to_champion", "p95", CHAMPION, "times the champion's 95 % wait"),
)
"""Limit, quantity of the candidate, whose it is divided by, and the words for it."""


class BrokenError(Exception):
    """Locust ended before the rounds of its plan were over; says how."""


def check_load(
    project: Project, candidate: Candidate, champion: Candidate | None, service: Running
) -> Verdict:
    """Judge how fast a candidate's running service answers, and how reliably."""
    started, targets = time.perf_counter(), {CANDIDATE: service}
    with ExitStack() as stack:
        for name, release in ((TWIN, candidate), (CHAMPION, champion)):
            if release is not None:
                log = project.work / "logs" / f"load-{name}.log"
                beside = start(project, release.ship, log, noop=name == TWIN)
                targets[name] = stack.enter_context(beside)
        return judge_targets(project, candidate.digest, targets, started)


def judge_targets(
    project: Project, subject: str, targets: dict[str, Running], started: float
) -> Verdict:
    """Load running services in turns and judge the candidate among them."""
    limits, rounds, checks = project.gates.load, list[Round](), list[Check]()
    plan = limits.model_dump(include={"users", "seconds"}) | {"rounds": limits.most_rounds}
    plan |= {"timeout": TIMEOUT, "targets": []}
    for name, one in targets.items():
        release = one.digest.removeprefix("noop-")[:12]
        plan["targets"].append({"name": name, "url": one.url, "release": release})
    try:
        with closing(run_rounds(plan, project.root)) as source:
            for found in source:
                rounds.append(found)
                if len(rounds) >= limits.rounds and _decided(limits, rounds):
                    break
    except BrokenError as error:
        checks.append(Check(name="locust", outcome=Outcome.CRASH, sentence=str(error)))
    checks += [*_answering(limits, targets, rounds), *judge_rounds(limits, rounds)]
    if CHAMPION not in targets:
        said = "no other release is in production: there is no champion to compare with"
        checks.append(Check(name=CHAMPION, outcome=Outcome.PASS, sentence=said, value="none"))
    table = _table(rounds, list(targets))
    return make_verdict(project, "load", subject, checks, started, [table])


def run_rounds(
    plan: dict[str, Any], root: Path, command: Sequence[str] = LOCUST
) -> Generator[Round, None, None]:
    """Yield the rounds of a plan as Locust finishes them; closing the iterator ends Locust.

    Raises
    ------
    BrokenError
        When Locust crashed, hung, or ended early.
    """
    names = [target["name"] for target in plan["targets"]]
    patience = len(names) * plan["seconds"] + _SLACK_SECONDS
    with tempfile.TemporaryFile("w+") as wanted, tempfile.TemporaryFile("w+") as errors:
        json.dump(plan, wanted)
        wanted.seek(0)
        process = subprocess.Popen(
            command, stdin=wanted, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=root
        )
        try:
            for _ in range(plan["rounds"]):
                turns = [_turn(process, patience) for _ in names]
                by_name = {turn["target"]: turn for turn in turns}
                yield {name: by_name[name] for name in names}
        except (ValueError, KeyError, TypeError):
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
            ends = {None: "said what is no turn", -9: f"hung for {patience:g} s"}
            how = ends.get(process.returncode, f"ended with {process.returncode}")
            errors.seek(0)
            said = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
            why = f"Locust {how} before its rounds were over: {said}"
            raise BrokenError(why) from None
        finally:
            process.kill()
            process.communicate()


def _turn(process: subprocess.Popen[str], patience: float) -> dict[str, Any]:
    """Return what Locust says of its next turn; one that hangs is ended."""
    assert process.stdout is not None
    watchdog = Timer(patience, process.kill)
    watchdog.start()
    try:
        return dict(json.loads(process.stdout.readline()))
    finally:
        watchdog.cancel()


def judge_rounds(limits: LoadLimits, rounds: list[Round]) -> list[Check]:
    """Return a check of each limit; an interval that straddles its limit is inconclusive."""
    failures, requests = _counts(rounds, CANDIDATE)
    said = f"{failures.total():,} of {requests:,} requests failed{_kinds(failures)}"
    checks = [_judge("error_share", limits.error_share, _share(failures.total(), requests), said)]
    names = [*rounds[0]] if rounds else [CANDIDATE, TWIN]
    for name, key, other, phrase in MEASURES:
        if other in (None, *names):
            limit: Limit = getattr(limits, name)
            found, doubt = _interval(rounds, key, CANDIDATE, other), ""
            if other is None:
                twin = _interval(rounds, key, TWIN).value
                if not limit.holds(twin / ROOM if limit.min is not None else twin * ROOM):
                    doubt = f"its twin without a model has {twin:.4g}: the machine is too slow"
            said = f"{found.value:.4g} {phrase}; median of {len(rounds)} rounds"
            checks.append(_judge(name, limit, found, said, doubt))
    return checks


def _judge(name: str, limit: Limit, found: Estimate, said: str, doubt: str = "") -> Check:
    """Judge an estimate; a `doubt` counts where the limit is broken."""
    if finite(found.value):
        said = f"{said}, 95 % interval {found.low:.4g} to {found.high:.4g}"
    check = judge(name, limit, found, said)
    if limit.holds(found.low) != limit.holds(found.high):
        doubt = "on both sides of the limit, so undecided"
    elif check.outcome is Outcome.PASS or not doubt:
        return check
    update = {"outcome": Outcome.INCONCLUSIVE, "sentence": f"{check.sentence}: {doubt}"}
    return check.model_copy(update=update)


def _decided(limits: LoadLimits, rounds: list[Round]) -> bool:
    """Return whether more rounds could not change the verdict."""
    outcomes = {check.outcome for check in judge_rounds(limits, rounds)}
    return Outcome.STOP in outcomes or Outcome.INCONCLUSIVE not in outcomes


def _interval(rounds: list[Round], key: str, target: str, other: str | None = None) -> Estimate:
    """Return the median over rounds, or of ratios to another target, and its 95 % interval.

    A bootstrap of rounds, not requests: those of one round share what the machine was doing.
    Where a target did not answer in one round, nothing is known.
    """
    values = _values(rounds, target, key)
    if other is not None:
        values = values / _values(rounds, other, key)
    if not len(values) or not np.isfinite(values).all():
        return _UNKNOWN
    draws = np.random.default_rng(0).choice(values, (2_000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return Estimate(float(np.median(values)), float(low), float(high))


def _share(part: int, whole: int) -> Estimate:
    """Return a share with its 95 % interval (Wilson 1927), which is sound near zero."""
    if whole == 0:
        return _UNKNOWN
    z, p = 1.96, part / whole
    middle, scale = p + z * z / (2 * whole), 1 + z * z / whole
    half = z * ((p * (1 - p) + z * z / (4 * whole)) / whole) ** 0.5
    return Estimate(p, max(0.0, (middle - half) / scale), (middle + half) / scale)


def _answering(
    limits: LoadLimits, targets: dict[str, Running], rounds: list[Round]
) -> Iterator[Check]:
    """Name who died, and a reference that failed: nothing can be compared with it."""
    for name, service in targets.items():
        failures, requests = _counts(rounds, name)
        failing = not limits.error_share.holds(failures.total() / (requests or 1))
        gone = not service.answers()
        if gone or (failing and name != CANDIDATE):
            what = "no longer answers" if gone else f"failed {failures.total():,} of {requests:,}"
            outcome = Outcome.STOP if name == CANDIDATE else Outcome.INCONCLUSIVE
            said = f"the {name} {what}{_kinds(failures)}"
            yield Check(name=f"{name}_answers", outcome=outcome, sentence=said)


def _counts(rounds: list[Round], name: str) -> tuple[Counter[str], int]:
    failures = sum((Counter(each[name]["failures"]) for each in rounds), Counter[str]())
    return failures, sum(each[name]["requests"] for each in rounds)


def _kinds(failures: Counter[str]) -> str:
    kinds = ", ".join(f"{kind}: {count:,}" for kind, count in failures.most_common(4))
    return f" ({kinds})" if kinds else ""


def _values(rounds: list[Round], name: str, key: str) -> Floats:
    """Return a quantity by round, shape (rounds,); not-a-number where a target did not answer."""
    return np.array([each[name].get(key) or np.nan for each in rounds], float)


def _table(rounds: list[Round], names: list[str]) -> Table:
    """Return what each target did, medians over rounds."""
    rows: list[list[Any]] = []
    for name in names:
        failures, requests = _counts(rounds, name)
        middles = [_interval(rounds, key, name).value for key in ("qps", "p50", "p95", "p99")]
        shown = [round(value, 2) if finite(value) else None for value in middles]
        rows.append([name, requests, failures.total(), *shown])
    columns = ["target", "requests", "failures", "QPS", "p50 ms", "p95", "p99"]
    return Table(title=f"Load, medians of {len(rounds)} rounds", columns=columns, rows=rows)
