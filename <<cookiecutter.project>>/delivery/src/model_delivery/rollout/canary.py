"""The judgement of a rollout: drawn requests first, then clients' own beside the champion's.

A challenger is compared with the *concurrent* champion, never with the past, and by what
production itself counted: the proxy's log of answers. A value whose interval lies wholly beyond
its limit is failure, and is not waited for. Success is a value within its limit after a step's
time, with enough requests. What is neither by the step's deadline is inconclusive.
"""

import json
import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
import pyarrow as pa
import scipy

from model_delivery.bundle.launch import Running, Scorer, processes
from model_delivery.contract.request import JsonRow, columns_of, draw_rows
from model_delivery.contract.settings import Delivery, RolloutLimits, Step
from model_delivery.gates import judge
from model_delivery.project import Project
from model_delivery.protocols import Floats, UserError
from model_delivery.report.verdict import Check, Outcome, fixed, worst
from model_delivery.serving import SCORE, Prediction
from model_delivery.training.scores import UNKNOWN, Estimate
from model_delivery.watch.log import SHADOW

SIGNIFICANCE = 0.001
"""Of a failure: it is looked for every second, and a false alarm costs a release."""
FEW = 3  # wrong answers to drawn rows, after which no more are asked for: each may take its timeout
DISTINCT = 10
"""Different scores of the champion; with fewer, clients send too few different rows to compare."""
Arm = Running | Path  # a release in one of two forms: a service, or the folder that ships
GOOD = (Outcome.PASS, Outcome.WARN)


class Answer(NamedTuple):
    """An answer to a client, as the proxy logged it; without a score that is not-a-number."""

    status: int
    milliseconds: float
    score: float


class Traffic:
    """What clients got who were led to services, from now on, as the proxy's log has it."""

    def __init__(self, log: Path, *services: Running) -> None:
        self.log, self.offset, self.services = log, 0, services
        with suppress(FileNotFoundError):  # while it rolls over
            self.offset = log.stat().st_size
        self.digests = {service.address: service.digest for service in services}
        self.answers = {address: list[Answer]() for address in self.digests}

    def read(self) -> list[list[Answer]]:
        """Read on, whole lines only; return the answers by service, in order."""
        with suppress(FileNotFoundError), self.log.open("rb") as stream:
            if stream.seek(0, os.SEEK_END) < self.offset:
                self.offset = 0
            stream.seek(self.offset)
            for line in stream:
                if line.endswith(b"\n"):
                    self.offset += len(line)
                    self._take(json.loads(line))
        return [*self.answers.values()]

    def _take(self, logged: dict[str, Any]) -> None:
        """Count an answer for the release that the client was led to."""
        if (arm := logged.get("arm")) in self.answers:
            headers = {name.lower(): values[0] for name, values in logged["resp_headers"].items()}
            own = headers.get("x-model-digest") == self.digests[arm]  # else it was led on
            status, score = logged["status"] if own else 502, float(headers.get(SCORE, "nan"))
            self.answers[arm].append(Answer(status, 1e3 * logged["duration"], score))


def shadow(project: Project, challenger: Arm, champion: Arm | None) -> list[Check]:
    """Ask a release for rows drawn from the contract before any client may, and the champion."""
    limits = project.delivery.rollout
    rows = draw_rows(project.contract, limits.shadow_rows, seed=1)
    scores, slips = _answers(project, challenger, rows)
    first = f"; first: {slips[0]}" if slips else ""
    said, good = f"drawn rows got a probability{first}", float(np.isfinite(scores).sum())
    checks = [fixed("shadow_answers", not slips, said, good, f"≥ {len(rows)}")]
    if champion and not slips:
        old, strange = _answers(project, champion, rows)
        if strange:  # the champion takes other requests, of which clients will tell, if there are
            said = f"not compared: the champion gives drawn rows no score: {strange[0]}"
            checks.append(Check(name="shadow_distance", outcome=Outcome.WARN, sentence=said))
        else:
            value = float(scipy.stats.ks_2samp(scores, old).statistic)
            what = "distance of the drawn rows' scores from the champion's (Kolmogorov-Smirnov)"
            checks.append(judge("shadow_distance", limits.shadow_distance, value, what))
    return checks


def watch(limits: RolloutLimits, step: Step, traffic: Traffic, url: str) -> list[Check]:
    """Look every second at what clients get in one step; return the checks that decide it."""
    start, (challenger, champion) = time.monotonic(), traffic.services
    while True:
        time.sleep(1)
        answers = traffic.read()
        memory, waited = _megabytes(challenger.home), time.monotonic() - start
        left = "no" if memory == 0 else "yes"  # unknown, where one just ended
        if not any(champion.answers(url) for _ in range(2)):
            raise UserError("the champion does not answer any more, or the proxy before it")
        checks = [
            *compare(limits, *answers),
            judge("memory_mb", limits.memory_mb, memory, "MB of memory in use"),
            fixed("alive", left == "yes", "a process of its service is left", left, "yes"),
        ]
        outcome = worst([check.outcome for check in checks])
        if outcome is Outcome.STOP or waited > (step.seconds if outcome in GOOD else step.deadline):
            at = f"at {step.weight:.0%} after {waited:.0f} s"
            return [c.model_copy(update={"sentence": f"{at}: {c.sentence}"}) for c in checks]


def _megabytes(home: Path) -> float:
    """Return the memory that the processes of a home use; not-a-number where one just ended."""
    with suppress(psutil.Error):
        return sum(float(process.memory_info().rss) for process in processes(home)) / 1e6
    return float("nan")


def compare(limits: RolloutLimits, own: list[Answer], old: list[Answer]) -> list[Check]:
    """Judge one arm's failures, latency and scores beside the other's."""
    fewest, counts = min(len(own), len(old)), f"{len(own)} answers, {len(old)} of the champion"
    few = "; send more (`make traffic`), lower `min_requests`, or switch at once by `canary: []`"
    enough, most = fewest >= limits.min_requests, f"≥ {limits.min_requests}"
    outcome, said = (Outcome.PASS, counts) if enough else (Outcome.INCONCLUSIVE, counts + few)
    requests = Check(name="requests", outcome=outcome, sentence=said, value=fewest, limit=most)
    checks, what, share = list[Check](), "failed or refused", _more(own, old, 400)
    # A refusal is its caller's mistake, unless a release surely makes more of them.
    if share.low <= 0:
        what, share = "failed", _more(own, old, 499)  # 5xx, and clients who gave up
    found = {
        "error_share": (share, f"share of {what} answers, less the champion's"),
        "p95_ms": (_slower(own, old), "ms that 95 % of answers took at most, less the champion's"),
        "score_distance": _distance(own, old),
    }
    for name, (value, what) in found.items():
        limit = getattr(limits, name)
        check = judge(name, limit, value, f"{what}; {counts}")
        surely = check.low is not None and not limit.holds(check.low)
        if not surely and not (enough and check.outcome in GOOD):
            check = check.model_copy(update={"outcome": Outcome.INCONCLUSIVE})
        checks.append(check)
    return [*checks, requests] if enough else [requests, *checks]


def damage(settings: Delivery, steps: list[Step]) -> str:
    """Return what a bad release can cost at most, and until when, with the numbers behind it."""
    rate, lines = settings.rollout.requests_per_second, list[str]()
    for step in steps:
        cost = f"{step.weight:.0%} × {rate:g} requests/s × {step.deadline:g} s"
        most = f"{step.most(rate):.0f} requests at that rate"
        lines.append(f"a bad release costs at most {cost} = {most} before it is taken back")
    return "\n".join(lines) or "no canary: all clients at once"


def _answers(project: Project, arm: Arm, rows: list[JsonRow]) -> tuple[Floats, list[str]]:
    """Return a score for each row, shape (n,), and what was wrong with answers."""
    if isinstance(arm, Running):
        return _ask(arm, rows)
    given = columns_of(rows, project.contract).items()
    columns = {n: pa.array(v, pa.string() if v.dtype == object else None) for n, v in given}
    try:
        with Scorer(project, arm, project.work / "logs" / "shadow.log") as scorer:
            return scorer.score(columns), []
    except UserError as error:
        return np.full(len(rows), np.nan), [str(error)]


def _ask(service: Running, rows: list[dict[str, Any]]) -> tuple[Floats, list[str]]:
    """Return a score for each row, shape (n,), and what was wrong with answers."""
    scores, slips = np.full(len(rows), np.nan), list[str]()
    options: dict[str, Any] = {"timeout": 5, "trust_env": False, "headers": {SHADOW: "1"}}
    with httpx.Client(base_url=service.url, **options) as client:
        for place, row in enumerate(rows):
            try:
                answer = client.post("/predict", json={"rows": [row]}).raise_for_status()
                [scores[place]] = Prediction.model_validate_json(answer.content).probability
            except (httpx.HTTPError, ValueError) as error:
                slips.append(f"{type(error).__name__}: {error}".splitlines()[0][:200])
                if len(slips) == FEW:
                    break
    return scores, slips


def _more(own: list[Answer], old: list[Answer], least: int) -> Estimate:
    """Return the difference of shares of a status or above (Newcombe 1998, exact intervals)."""
    if not own or not old:
        return UNKNOWN
    counts = [(sum(answer.status >= least for answer in arm), len(arm)) for arm in (own, old)]
    ends = [scipy.stats.binomtest(*one).proportion_ci(1 - SIGNIFICANCE, "exact") for one in counts]
    (p, q), (a, b) = (part / whole for part, whole in counts), ends
    down, up = math.hypot(p - a.low, b.high - q), math.hypot(a.high - p, q - b.low)
    return Estimate(p - q, p - q - down, p - q + up)


def _slower(own: list[Answer], old: list[Answer]) -> Estimate:
    """Return the difference of 95 % quantiles; its interval is of order statistics."""
    (p, low, high), (q, least, most) = _quantile(own), _quantile(old)
    return Estimate(p - q, low - most, high - least)


def _quantile(arm: list[Answer]) -> Estimate:
    if not arm:
        return UNKNOWN
    waits = [answer.milliseconds for answer in arm]
    ends = scipy.stats.quantile_test(waits, p=0.95).confidence_interval(1 - SIGNIFICANCE)
    value = float(np.quantile(waits, 0.95, method="inverted_cdf"))
    return Estimate(value, float(ends.low), float(ends.high))


def _distance(own: list[Answer], old: list[Answer]) -> tuple[Estimate, str]:
    """Return the largest difference of distribution functions, within the band of its test.

    With it come the words for it, which say where too few scores differ.
    """
    a, b = ([x.score for x in arm if math.isfinite(x.score)] for arm in (own, old))
    what, kinds = "Kolmogorov-Smirnov distance of scores", len({*b})
    if kinds < DISTINCT:
        none = "it gives none to what clients send, as to a new column: `canary: []`"
        mend = "send other rows, or use `canary: []`" if b else none
        what += f"; {kinds} different ones of the champion are too few: {mend}"
    if not a or kinds < DISTINCT:
        return UNKNOWN, what
    value = float(scipy.stats.ks_2samp(a, b, method="asymp").statistic)
    band = math.sqrt(-math.log(SIGNIFICANCE / 2) / 2 * (1 / len(a) + 1 / len(b)))
    return Estimate(value, value - band, value + band), what
