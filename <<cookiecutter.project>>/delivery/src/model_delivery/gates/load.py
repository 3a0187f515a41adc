"""The gate `load`: candidate, no-op twin and champion under the same load, in turns.

Absolute limits are generous, since they judge the machine too. Ratios to the twin (the same
service without its model) and to the champion are sharp: the machine's noise falls on all.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.environment import service_environment
from model_delivery.contract.settings import Limit, LoadLimits
from model_delivery.gates import judge, make_verdict
from model_delivery.gates.rounds import BrokenError, Round, interval, run_rounds, share
from model_delivery.project import Project
from model_delivery.report.verdict import Chart, Check, Outcome, Table, Verdict, finite
from model_delivery.serving.launch import Running, identity, start
from model_delivery.training.metrics import Estimate

CANDIDATE, TWIN, CHAMPION = "candidate", "twin", "champion"
TIMEOUT = 5.0
"""Seconds after which a request failed."""
ROOM = 2.0
"""How far within an absolute limit the twin must stay for the limit to judge the candidate."""


def check_load(
    project: Project,
    candidate: Candidate,
    champion: Candidate | None = None,
    running: Running | None = None,
) -> Verdict:
    """Judge how fast a candidate answers, and how reliably.

    Parameters
    ----------
    running
        A running service of the candidate, which is left running; None starts one.
    """
    started = time.perf_counter()
    wanted = {CANDIDATE: candidate, TWIN: candidate}
    if champion is not None and champion.digest != candidate.digest:
        wanted[CHAMPION] = champion
    with _services(project, wanted, running) as targets:
        return judge_targets(project, candidate.digest, targets, started)


def judge_targets(
    project: Project, subject: str, targets: dict[str, Running], started: float
) -> Verdict:
    """Load running services in turns and judge the candidate among them."""
    limits, rounds, checks = project.gates.load, list[Round](), list[Check]()
    try:
        with closing(run_rounds(_plan(limits, targets), project.root)) as source:
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
    return make_verdict(project, "load", subject, checks, started, *_shown(rounds))


@contextmanager
def _services(
    project: Project, wanted: dict[str, Candidate], running: Running | None
) -> Iterator[dict[str, Running]]:
    """Start what is not running yet, side by side, each in its clean environment."""
    given = {CANDIDATE: running} if running is not None else {}
    missing = [name for name in wanted if name not in given]
    ships = {name: wanted[name].ship for name in missing}
    pythons = {n: service_environment(project, ships[n] / "requirements.txt") for n in missing}

    def launch(name: str) -> Running:
        log = project.work / "logs" / f"load-{name}.log"
        service = start(ships[name], pythons[name], log, noop=name == TWIN)
        stack.callback(service.stop)
        return service

    with ExitStack() as stack:
        with ThreadPoolExecutor(len(missing)) as pool:
            found = given | dict(zip(missing, pool.map(launch, missing), strict=True))
        yield {name: found[name] for name in wanted}


def _plan(limits: LoadLimits, targets: dict[str, Running]) -> dict[str, Any]:
    where = [
        {"name": name, "url": service.url, "release": service.digest.removeprefix("noop-")[:12]}
        for name, service in targets.items()
    ]
    load = {"users": limits.users, "seconds": limits.seconds, "rounds": limits.most_rounds}
    return load | {"timeout": TIMEOUT, "targets": where}


@dataclass(frozen=True)
class Measure:
    """One limited quantity of the candidate, alone or divided by another target's."""

    limit: str
    key: str
    phrase: str
    load: str = "busy"
    other: str | None = None

    def of(self, found: Round, target: str = CANDIDATE) -> float:
        """Return its value in one round; not-a-number where a target did not answer."""
        value = number(found[target][self.load].get(self.key))
        return value / number(found[self.other][self.load].get(self.key)) if self.other else value


MEASURES = (
    Measure("qps", "qps", "answers a second to all users"),
    Measure("p95_ms", "p95", "ms that 95 % of the answers to all users took at most"),
    Measure("p99_ms", "p99", "ms that 99 % of the answers to all users took at most"),
    Measure("qps_to_twin", "qps", "times the answers of the service without its model", other=TWIN),
    Measure("p50_to_twin", "p50", "times its median wait, for one user", "quiet", other=TWIN),
    Measure("qps_to_champion", "qps", "times the champion's answers", other=CHAMPION),
    Measure("p95_to_champion", "p95", "times the champion's 95 % wait", other=CHAMPION),
)


def judge_rounds(limits: LoadLimits, rounds: list[Round]) -> list[Check]:
    """Return a check of each limit; an interval that straddles its limit is inconclusive."""
    failures, requests = _counts(rounds, CANDIDATE)
    said = f"{failures.total():,} of {requests:,} requests failed{_kinds(failures)}"
    found = share(failures.total(), requests)
    checks = [_judge("error_share", limits.error_share, found, said)]
    names = {CANDIDATE, TWIN} | (rounds[0].keys() if rounds else set())
    for measure in MEASURES:
        if measure.other is None or measure.other in names:
            checks.append(_measured(measure, getattr(limits, measure.limit), rounds))
    return checks


def _measured(measure: Measure, limit: Limit, rounds: list[Round]) -> Check:
    found = interval([measure.of(each) for each in rounds])
    said = f"{found.value:.4g} {measure.phrase}; median of {len(rounds)} rounds"
    if not finite(found.value):
        said = f"someone did not answer in one of {len(rounds)} rounds"
    check = _judge(measure.limit, limit, found, said)
    if measure.other is not None or check.outcome in (Outcome.PASS, Outcome.INCONCLUSIVE):
        return check
    twin = interval([measure.of(each, TWIN) for each in rounds]).value
    if limit.holds(twin / ROOM if limit.min is not None else twin * ROOM):
        return check
    busy = (
        f"{check.sentence}; but its twin without a model has {twin:.4g}: this machine is too slow"
    )
    return check.model_copy(update={"outcome": Outcome.INCONCLUSIVE, "sentence": busy})


def _judge(name: str, limit: Limit, found: Estimate, said: str) -> Check:
    if finite(found.value):
        said = f"{said}, 95 % interval {found.low:.4g} to {found.high:.4g}"
    check = judge(name, limit, found.value, said, low=found.low, high=found.high)
    if limit.side(found.low, found.high) is not None:
        return check
    undecided = f"{check.sentence}: on both sides of the limit, so undecided"
    return check.model_copy(update={"outcome": Outcome.INCONCLUSIVE, "sentence": undecided})


def _decided(limits: LoadLimits, rounds: list[Round]) -> bool:
    """Return whether more rounds could not change the verdict."""
    outcomes = {check.outcome for check in judge_rounds(limits, rounds)}
    return Outcome.STOP in outcomes or Outcome.INCONCLUSIVE not in outcomes


def number(value: float | None) -> float:
    """Return a positive number as it is, and all else as not-a-number."""
    return value or float("nan")


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
    slices = [part for each in rounds for part in each[name].values()]
    failures = sum((Counter(part["failures"]) for part in slices), Counter[str]())
    return failures, sum(part["requests"] for part in slices)


def _kinds(failures: Counter[str]) -> str:
    kinds = ", ".join(f"{kind}: {count:,}" for kind, count in failures.most_common(4))
    return f" ({kinds})" if kinds else ""


def _shown(rounds: list[Round]) -> tuple[list[Table], list[Chart]]:
    """Return the medians by target, their quantiles drawn, and throughput by round."""
    names, keys = list(rounds[0]) if rounds else [], ["p50", "p95", "p99"]

    def middle(name: str, key: str, load: str = "busy") -> float | None:
        values = [number(each[name][load].get(key)) for each in rounds]
        return round(median(values), 2) if all(map(finite, values)) else None

    waits = {name: [middle(name, key) for key in keys] for name in names}
    answers = {name: [round(each[name]["busy"]["qps"], 1) for each in rounds] for name in names}
    rows: list[list[Any]] = []
    for name in names:
        failures, requests = _counts(rounds, name)
        counts = [name, requests, failures.total(), middle(name, "qps")]
        rows.append([*counts, *waits[name], middle(name, "p50", "quiet")])
    columns = ["target", "requests", "failures", "QPS", "p50 ms", "p95", "p99", "1 user: p50"]
    table = Table(title=f"Load, medians of {len(rounds)} rounds", columns=columns, rows=rows)
    bars = Chart(title="Latency under load", kind="bar", x=list(keys), series=waits, y_label="ms")
    lines = Chart(
        title="Throughput by round",
        kind="line",
        x=[float(place + 1) for place in range(len(rounds))],
        series={name: list(values) for name, values in answers.items()},
        x_label="round",
        y_label="answers a second",
    )
    return [table], [bars, lines]
