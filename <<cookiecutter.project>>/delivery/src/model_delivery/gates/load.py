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
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple

import numpy as np

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.environment import service_environment
from model_delivery.bundle.launch import Running, identity, running
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
_SLACK_SECONDS = 25
"""How much longer than planned a turn may take, awaiting its last answers, before it hangs."""
_UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))


class BrokenError(Exception):
    """Locust ended before the rounds of its plan were over; says how."""


class Measure(NamedTuple):
    """One limited quantity of the candidate, alone or divided by another target's."""

    limit: str
    key: str
    phrase: str
    other: str | None = None

    def interval(self, rounds: list[Round], target: str = CANDIDATE) -> Estimate:
        """Return the median over rounds with its 95 % bootstrap interval.

        Rounds are resampled, not requests: those of one round share what the machine was doing.
        Where a target did not answer in one round, nothing is known.
        """
        values = _values(rounds, target, self.key)
        if self.other is not None:
            values = values / _values(rounds, self.other, self.key)
        if not len(values) or not np.isfinite(values).all():
            return _UNKNOWN
        draws = np.random.default_rng(0).choice(values, (2_000, len(values)))
        low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
        return Estimate(float(np.median(values)), float(low), float(high))


MEASURES = (
    Measure("qps", "qps", "answers a second to all users"),
    Measure("p95_ms", "p95", "ms that 95 % of the answers to all users took at most"),
    Measure("p99_ms", "p99", "ms that 99 % of the answers to all users took at most"),
    Measure("qps_to_twin", "qps", "times the answers of the service without its model", TWIN),
    Measure("p50_to_twin", "p50", "times its median wait", TWIN),
    Measure("qps_to_champion", "qps", "times the champion's answers", CHAMPION),
    Measure("p95_to_champion", "p95", "times the champion's 95 % wait", CHAMPION),
)


def check_load(
    project: Project, candidate: Candidate, champion: Candidate | None, service: Running
) -> Verdict:
    """Judge how fast a candidate's running service answers, and how reliably."""
    started, targets = time.perf_counter(), {CANDIDATE: service}
    with ExitStack() as stack:
        for name, release in ((TWIN, candidate), (CHAMPION, champion)):
            if release is not None:
                python = service_environment(project, release.ship / "requirements.txt")
                log = project.work / "logs" / f"load-{name}.log"
                beside = running(release.ship, python, log, noop=name == TWIN)
                targets[name] = stack.enter_context(beside)
        return judge_targets(project, candidate.digest, targets, started)


def judge_targets(
    project: Project, subject: str, targets: dict[str, Running], started: float
) -> Verdict:
    """Load running services in turns and judge the candidate among them."""
    limits, rounds, checks = project.gates.load, list[Round](), list[Check]()
    plan = {
        "users": limits.users,
        "seconds": limits.seconds,
        "rounds": limits.most_rounds,
        "timeout": TIMEOUT,
        "targets": [
            {"name": name, "url": one.url, "release": one.digest.removeprefix("noop-")[:12]}
            for name, one in targets.items()
        ],
    }
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
    patience = (len(names) * plan["rounds"] + 2) * (plan["seconds"] + _SLACK_SECONDS)
    with tempfile.TemporaryFile("w+") as wanted, tempfile.TemporaryFile("w+") as errors:
        json.dump(plan, wanted)
        wanted.seek(0)
        process = subprocess.Popen(
            command, stdin=wanted, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=root
        )
        watchdog = Timer(patience, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            for _ in range(plan["rounds"]):
                turns = [json.loads(next(process.stdout, "")) for _ in names]
                by_name = {turn["target"]: turn for turn in turns}
                yield {name: by_name[name] for name in names}
        except (ValueError, KeyError):
            code = process.wait()
            errors.seek(0)
            said = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
            why = f"Locust ended with {code} before its rounds were over: {said}"
            raise BrokenError(why) from None
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()


def judge_rounds(limits: LoadLimits, rounds: list[Round]) -> list[Check]:
    """Return a check of each limit; an interval that straddles its limit is inconclusive."""
    failures, requests = _counts(rounds, CANDIDATE)
    said = f"{failures.total():,} of {requests:,} requests failed{_kinds(failures)}"
    found = _share(failures.total(), requests)
    checks = [_judge("error_share", limits.error_share, found, said)]
    names = {CANDIDATE, TWIN} | (rounds[0].keys() if rounds else set())
    for measure in MEASURES:
        if measure.other is None or measure.other in names:
            checks.append(_measured(measure, getattr(limits, measure.limit), rounds))
    return checks


def _measured(measure: Measure, limit: Limit, rounds: list[Round]) -> Check:
    found = measure.interval(rounds)
    said = f"someone did not answer in one of {len(rounds)} rounds"
    if finite(found.value):
        said = f"{found.value:.4g} {measure.phrase}; median of {len(rounds)} rounds"
    check = _judge(measure.limit, limit, found, said)
    if measure.other is not None or check.outcome in (Outcome.PASS, Outcome.INCONCLUSIVE):
        return check
    twin = measure.interval(rounds, TWIN).value
    if limit.holds(twin / ROOM if limit.min is not None else twin * ROOM):
        return check
    return _undecided(check, f"its twin without a model has {twin:.4g}: the machine is too slow")


def _judge(name: str, limit: Limit, found: Estimate, said: str) -> Check:
    if finite(found.value):
        said = f"{said}, 95 % interval {found.low:.4g} to {found.high:.4g}"
    check = judge(name, limit, found, said)
    if limit.holds(found.low) == limit.holds(found.high):
        return check
    return _undecided(check, "on both sides of the limit, so undecided")


def _undecided(check: Check, why: str) -> Check:
    sentence = f"{check.sentence}: {why}"
    return check.model_copy(update={"outcome": Outcome.INCONCLUSIVE, "sentence": sentence})


def _decided(limits: LoadLimits, rounds: list[Round]) -> bool:
    """Return whether more rounds could not change the verdict."""
    outcomes = {check.outcome for check in judge_rounds(limits, rounds)}
    return Outcome.STOP in outcomes or Outcome.INCONCLUSIVE not in outcomes


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
        said = ""
        if identity(service.url) != (service.digest, service.launch):
            said = f"the {name} that was started no longer answers at {service.url}"
        elif name != CANDIDATE and not limits.error_share.holds(failures.total() / (requests or 1)):
            said = f"the {name} failed {failures.total():,} of {requests:,} requests"
        if said:
            outcome = Outcome.STOP if name == CANDIDATE else Outcome.INCONCLUSIVE
            said += _kinds(failures)
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
        by_key = [_values(rounds, name, key) for key in ("qps", "p50", "p95", "p99")]
        middles = [round(float(np.median(v)), 2) if np.isfinite(v).all() else None for v in by_key]
        rows.append([name, requests, failures.total(), *middles])
    columns = ["target", "requests", "failures", "QPS", "p50 ms", "p95", "p99"]
    return Table(title=f"Load, medians of {len(rounds)} rounds", columns=columns, rows=rows)
