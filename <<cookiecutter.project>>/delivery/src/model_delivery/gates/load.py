"""The gate `load`: candidate, no-op twin and champion under the same load, in turns.

Absolute limits are generous, since they judge the machine too. Ratios to the twin (the same
service without its model) and to the champion are sharp: the machine's noise falls on all.
"""

import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.launch import Running, end, run, start
from model_delivery.contract.limits import Limit, LoadLimits
from model_delivery.files import read_json
from model_delivery.gates import judge
from model_delivery.project import Project
from model_delivery.protocols import UserError
from model_delivery.report.verdict import Chart, Check, Outcome, Table, Verdict, finite
from model_delivery.serving import TWIN_MARK
from model_delivery.training.scores import UNKNOWN, Estimate

CANDIDATE, TWIN, CHAMPION = "candidate", "twin", "champion"
Round = dict[str, dict[str, Any]]
"""By target: requests, failures by kind, qps, and p50, p95, p99 in milliseconds."""
LOCUST = [sys.executable, "-m", "model_delivery.gates.locustfile"]
TIMEOUT = 5.0  # seconds after which a request failed
_SLACK_SECONDS = 60
"""How much longer than planned Locust may take, to start and for last answers, before it hangs."""
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


def check_load(project: Project, candidate: Candidate, champion: Candidate | None) -> Verdict:
    """Judge how fast a candidate's service answers, and how reliably."""
    releases = {CANDIDATE: candidate, TWIN: candidate}
    if champion and _form(champion) == _form(candidate):
        releases[CHAMPION] = champion
    services = ExitStack()

    def begin(name: str) -> Running:
        log = project.work / "logs" / f"load-{name}.log"
        service = start(project, releases[name].ship, log, noop=name == TWIN)
        return services.enter_context(service)

    # The pool ends first: what comes up while another start fails is ended with the others.
    with services, ThreadPoolExecutor() as pool:
        try:
            targets = dict(zip(releases, pool.map(begin, releases), strict=True))
        except BaseException:  # Ctrl-C, too, does not wait until the others are ready
            for home in (project.work / "logs").glob("load-*-*"):
                end(home, patience=1)
            raise
        return judge_targets(project, targets)


def _form(release: Candidate) -> dict[str, dict[str, Any]]:
    """Return which requests a release takes."""
    request = read_json(release.ship / "request.json")
    return {n: spec | dict.fromkeys(("example", "unit")) for n, spec in request.items()}


def judge_targets(project: Project, targets: dict[str, Running]) -> Verdict:
    """Load running services in turns, for more rounds while undecided; judge the candidate."""
    limits, rounds, checks = project.gates.load, list[Round](), list[Check]()
    plan: dict[str, Any] = {"users": limits.users, "seconds": limits.seconds}
    plan["targets"] = [
        {"name": name, "url": one.url, "release": one.digest.removeprefix(TWIN_MARK)[:12]}
        for name, one in targets.items()
    ]
    try:
        while len(rounds) < limits.most_rounds:
            number = min(limits.rounds, limits.most_rounds - len(rounds))
            rounds += run_rounds(plan | {"rounds": number}, project.root)
            found = {check.outcome for check in judge_rounds(limits, rounds)}
            if Outcome.STOP in found or Outcome.INCONCLUSIVE not in found:
                break
    except UserError as error:
        checks.append(Check(name="locust", outcome=Outcome.CRASH, sentence=str(error)))
    checks += judge_rounds(limits, rounds)
    for name in (TWIN, CHAMPION):  # of what failed itself nothing can be compared
        failed, requests, said = _failures(rounds, name)
        if requests and not limits.error_share.holds(failed / requests):
            outcome, said = Outcome.INCONCLUSIVE, f"the {name}: {said}"
            checks.append(Check(name=f"{name}_answers", outcome=outcome, sentence=said))
    if CHAMPION not in targets:
        said = "no other release is in production, or it takes other requests: none compared"
        checks.append(Check(name=CHAMPION, outcome=Outcome.PASS, sentence=said, value="none"))
    table = _table(rounds, list(targets))
    waits, labels = {row[0]: row[4:] for row in table.rows}, {"x_label": "% of answers"}
    chart = Chart(title="Longest wait", x=[50, 95, 99], series=waits, y_label="ms", **labels)
    return Verdict(gate="load", checks=checks, tables=[table], charts=[chart])


def run_rounds(plan: dict[str, Any], root: Path) -> list[Round]:
    """Let Locust carry out a plan in a project's folder; a UserError says how it failed."""
    turns = (plan["rounds"] + 1) * len(plan["targets"])
    patience = turns * (plan["seconds"] + 1) + _SLACK_SECONDS
    said = run(LOCUST, root, input=json.dumps(plan | {"timeout": TIMEOUT}), timeout=patience)
    return list(json.loads(said))


def judge_rounds(limits: LoadLimits, rounds: list[Round]) -> list[Check]:
    """Return a check of each limit; an interval that straddles its limit is inconclusive."""
    failed, requests, said = _failures(rounds, CANDIDATE)
    share = UNKNOWN
    if requests:  # by Wilson (1927), which is sound near zero
        ends = scipy.stats.binomtest(failed, requests).proportion_ci(method="wilson")
        share = Estimate(failed / requests, ends.low, ends.high)
    checks = [_judge("error_share", limits.error_share, share, said)]
    names = [*rounds[0]] if rounds else [CANDIDATE, TWIN]
    for name, key, other, phrase in MEASURES:
        if other in (None, *names):
            found = _interval(rounds, key, CANDIDATE, other)
            said = f"{phrase}; median of {len(rounds)} rounds"
            checks.append(_judge(name, getattr(limits, name), found, said))
    return checks


def _judge(name: str, limit: Limit, found: Estimate, said: str) -> Check:
    check = judge(name, limit, found, said)
    if limit.holds(found.low) == limit.holds(found.high):
        return check
    undecided = f"{said}: on both sides of the limit, so undecided"
    outcome = Outcome.WARN if limit.outcome == "warn" else Outcome.INCONCLUSIVE
    return check.model_copy(update={"outcome": outcome, "sentence": undecided})


def _interval(rounds: list[Round], key: str, target: str, other: str | None = None) -> Estimate:
    """Return the median over rounds, or of ratios to another target, and its 95 % interval.

    A bootstrap of rounds, not requests: those of one round share what the machine was doing.
    Where a target did not answer in one round, nothing is known.
    """
    values = np.array([each[target].get(key) or np.nan for each in rounds], float)
    if other is not None:
        values = values / [each[other].get(key) or np.nan for each in rounds]
    if not len(values) or not np.isfinite(values).all():
        return UNKNOWN
    draws = np.random.default_rng(0).choice(values, (2_000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return Estimate(float(np.median(values)), float(low), float(high))


def _failures(rounds: list[Round], name: str) -> tuple[int, int, str]:
    """Return how many requests to a target failed, of how many, and both in words."""
    turns = [each[name] for each in rounds if name in each]
    kinds = sum((Counter(turn["failures"]) for turn in turns), Counter[str]())
    failed, requests = kinds.total(), sum(turn["requests"] for turn in turns)
    named = ", ".join(f"{kind}: {count:,}" for kind, count in kinds.most_common(4))
    said = f"{failed:,} of {requests:,} requests failed{f' ({named})' if named else ''}"
    return failed, requests, said


def _table(rounds: list[Round], names: list[str]) -> Table:
    """Return what each target did, medians over rounds."""
    rows: list[list[Any]] = []
    for name in names:
        failed, requests, _ = _failures(rounds, name)
        medians = [_interval(rounds, key, name).value for key in ("qps", "p50", "p95", "p99")]
        shown = [round(value, 2) if finite(value) else None for value in medians]
        rows.append([name, requests, failed, *shown])
    columns = ["target", "requests", "failures", "QPS", "p50 ms", "p95", "p99"]
    return Table(title=f"Load, medians of {len(rounds)} rounds", columns=columns, rows=rows)
