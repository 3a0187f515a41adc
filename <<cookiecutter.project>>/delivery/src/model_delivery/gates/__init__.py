"""Gates turn values and limits into checks, and checks into a verdict; here is what they share."""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from operator import neg, pos
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow.compute as pc
import yaml

from model_delivery.bundle.candidate import git
from model_delivery.bundle.launch import program_python, run
from model_delivery.contract.limits import Limit
from model_delivery.contract.settings import SLACK
from model_delivery.files import read_json, sha256_json, temporary_folder, write_json
from model_delivery.project import Project
from model_delivery.protocols import UserError, without_tokens
from model_delivery.report.render import number
from model_delivery.report.verdict import Check, Outcome, Table, finite
from model_delivery.training.scores import SCORE, Estimate
from model_delivery.training.snapshot import FEWEST_PERIODS, Judged, periods

Gate = Literal["data", "model", "package", "api", "load"]
GATES: tuple[Gate, ...] = get_args(Gate)
COMPARED = ("model", "load")  # the gates that judge beside the champion
PROGRAM = Path(__file__).parents[1] / "checks" / "deepchecks_suites.py"
RUN_SECONDS = 300
SAMPLED = {"train": 20_000, "test": 8_000}
"""Rows that the program draws; more change the values little and cost time in proportion."""
FEWEST_ROWS = 100  # a training period with fewer drawn rows does not tell what is usual


def judge(name: str, limit: Limit, value: float | Estimate | None, sentence: str) -> Check:
    """Judge a value, an estimate by its own; what is no number is never a pass.

    It blocks no more than a broken limit would: one that only warns does.
    """
    low = high = None
    if isinstance(value, Estimate):
        value, low, high = value
    if not finite(value):
        why = f"{sentence}: no number came out, so it cannot be judged"
        outcome = Outcome.WARN if limit.outcome == "warn" else Outcome.INCONCLUSIVE
        return Check(name=name, outcome=outcome, sentence=why, limit=str(limit))
    outcome = Outcome.PASS if limit.holds(value) else Outcome(limit.outcome)
    found = {"value": value, "low": low, "high": high}
    numbers = {key: float(number) for key, number in found.items() if finite(number)}
    return Check(name=name, outcome=outcome, sentence=sentence, limit=str(limit), **numbers)


def quality(manifest: dict[str, Any], checks: list[Check]) -> list[Check]:
    """Return checks of rows; where those were drawn, each that has a limit is only a warning.

    What has no limit, as the contract's structure, counts on drawn rows too.
    """
    for place, check in enumerate(checks if manifest.get("sample") else ()):
        if check.limit:
            said = f"not judged on sample rows: {check.sentence}"
            checks[place] = check.model_copy(update={"outcome": Outcome.WARN, "sentence": said})
    return checks


def deepchecks(
    project: Project, suite: Literal["data", "model"], rows: Judged
) -> tuple[list[Check], Table]:
    """Judge rows or scores by the checks that have a limit; the table has every drift."""
    limits: dict[str, Limit] = getattr(project.gates.deepchecks, suite)
    asked = request_of(project, suite, rows)
    found = ask(project.work / "deepchecks", asked)[0] if limits else {}
    drifts = [drift for name in found if name.endswith("Drift") for drift in found[name].items()]
    ranked = sorted(drifts, key=lambda drift: -np.nan_to_num(drift[1] or 0.0, nan=np.inf))
    shown = [[said.replace("`", ""), value if finite(value) else None] for said, value in ranked]
    columns = ["what moved", "times the usual"]
    table = Table(title="Drift, largest first", columns=columns, rows=shown)
    spread = asked["periods"]
    return [judge_findings(n, limit, found[n], spread) for n, limit in limits.items()], table


def request_of(project: Project, suite: str, rows: Judged, days: int = 0) -> dict[str, Any]:
    """Return what the program is asked: files, columns by role, training periods, checks."""
    contract = project.contract
    numbers = contract.of_type("number", "integer", "boolean")
    # Integers of the key, and texts that hardly repeat, name rows, as an order's number does.
    keys = {name: contract.columns[name] for name in contract.key}
    names = [n for n, it in keys.items() if it.type in ("integer", "boolean")]
    for name in (n for n, it in keys.items() if it.pattern):
        values = rows.rows("train", [name]).column(0)
        names += [name] if pc.count_distinct(values).as_py() > len(values) / 2 else []
    times = rows.rows("train", [contract.time]).column(0).to_numpy()
    drawn = min(1, SAMPLED["train"] / len(times))
    spread = [
        [str(start), str(end)]
        for start, end in periods(times, days)
        if ((times >= start) & (times < end)).sum() * drawn >= FEWEST_ROWS
    ]
    return {
        "suite": suite,
        "checks": list(getattr(project.gates.deepchecks, suite)),
        "train": str(rows.path("train")),
        "tests": [str(rows.path("test"))],
        "sampled": SAMPLED,
        "periods": spread,
        "fewest_rows": FEWEST_ROWS,
        "numeric": [name for name in numbers if name not in names],
        "categorical": [name for name in contract.of_type("category") if name not in names],
        "label": contract.target,
        "time": contract.time,
        "score": SCORE,
    }


def ask(folder: Path, request: dict[str, Any]) -> list[dict[str, dict[str, float | None]]]:
    """Run the program; return for each test file the numbers of checks by what is said of them.

    That its environment cannot be made is a UserError; without an answer there is no number.
    """
    with temporary_folder(folder) as own:  # of several at once each has its own
        asked, answered = own / "request.json", own / "answer.json"
        write_json(asked, request)
        python = program_python(PROGRAM, own)
        # Without compiled modules every start would take 20 seconds more.
        env = without_tokens() | {"PYTHONDONTWRITEBYTECODE": ""}
        try:
            command = [python, str(PROGRAM), str(asked), str(answered)]
            run(command, own, env=env, timeout=RUN_SECONDS)
        except UserError as error:
            silence: dict[str, float | None] = {f"Deepchecks did not answer: {error}": math.nan}
            return [dict.fromkeys(request["checks"], silence)] * len(request["tests"])
        return list(read_json(answered))


def judge_findings(
    name: str, limit: Limit, found: Mapping[str, float | None], spread: Sequence[Any]
) -> Check:
    """Judge one check by its worst number; one that is none leaves it inconclusive.

    What is None was too sparse to measure, and only said beside the others. A drift is a warning
    where `spread`, the training periods, are too few to tell what is usual.
    """
    known = {said: value for said, value in found.items() if value is not None}
    sparse = [said for said in found if said not in known]
    unknown = [said for said, value in known.items() if not math.isfinite(value)]
    worst = max if limit.max is not None else min
    said = next(iter(unknown), None) or worst(known, key=lambda said: known[said], default="")
    text = "; ".join(filter(None, [said, *sparse]))
    if "drift" in name.lower() and len(spread) < FEWEST_PERIODS:
        limit = limit.model_copy(update={"outcome": "warn"})
        text += f"; only {len(spread)} training periods tell what is usual"
    return judge(name, limit, known.get(said), text)


def limits_hash(project: Project, gate: str) -> str:
    """Return the SHA-256 that names what a gate judges by: its limits, and the data contract."""
    limits, contract = (it.model_dump(mode="json") for it in (project.gates, project.contract))
    limits["rollout"] = project.delivery.rollout.model_dump()
    return sha256_json([limits.get(gate), limits["deepchecks"].get(gate), contract])


def lowered_limits(project: Project) -> list[str]:
    """Say which limits are looser here than on the branch that a change goes to."""
    names, told = ("origin/HEAD", "origin/main", "main"), list[str]()
    found = (git(project, "merge-base", "HEAD", name) for name in names)
    # GitHub has merged a pull request into the commit that it starts from.
    base = "HEAD^1" if os.environ.get("GITHUB_BASE_REF") else next(filter(None, found), None)
    rollout = r"rollout\.|environments\.\w+\.(canary|load)$"
    files = (("gates", _limits, ""), ("delivery", _limits, rollout), ("data", _shares, ""))
    for file, read, limits in files:
        path = f"config/{file}.yaml"
        try:
            old = read(yaml.safe_load(git(project, "show", f"{base}:./{path}") or ""))
            new = read(yaml.safe_load((project.root / path).read_text("utf-8")))
            kept = {name: old[name] for name in old if re.match(limits, name)}
            if file == "data":  # a column that is gone lets nothing through; a new rule takes rows
                both = (name for name in new if name in old or name.startswith("exclude."))
                kept = {name: old.get(name, {"max": 0.0}) for name in both}
            looser = {name: _loosened(limit, new.get(name)) for name, limit in kept.items()}
        except Exception:  # the base may hold anything, also a file of another version
            old = looser = {}
        if not any(isinstance(limit, dict) for limit in old.values()):
            looser = {path: "was not compared: no limits can be read on the branch this goes to"}
        told += [f"`{name}` {how}" for name, how in looser.items() if how]
    return told


def _limits(content: Any, name: str = "") -> dict[str, Any]:
    """Return the limits and numbers of a file by their dotted names."""
    if not isinstance(content, dict) or content.keys() & {"min", "max"}:
        return {name: content}
    inner = [_limits(value, f"{name}.{key}".lstrip(".")) for key, value in content.items()]
    return {name: limit for part in inner for name, limit in part.items()}


def _shares(content: Any) -> dict[str, Any]:
    """Return as limits which shares of rows may break the data contract, by their dotted names."""
    shares = {
        f"columns.{name}.{kind}": {"max": spec.get(kind, 0.0)}
        for name, spec in content["columns"].items()
        for kind in ("missing", "outside")
    }
    shares["slack"] = {"max": content.get("slack", SLACK)}
    rules = (content.get("exclude") or {}).items()
    return shares | {f"exclude.{name}.most": {"max": rule["most"]} for name, rule in rules}


def _loosened(old: Any, new: Any) -> str:
    """Say how a limit was loosened; empty where it was not."""
    if not isinstance(old, dict):  # rows, rounds and the like
        return f"{number(old)} → {number(new)}: it decides what is judged" if old != new else ""
    now, outcomes = new if isinstance(new, dict) else {}, ["warn", "retrain", "stop"]
    strict: dict[str, Callable[[Any], Any]] = {"min": pos, "max": neg, "outcome": outcomes.index}
    worse = [k for k in old if now.get(k) is None or strict[k](now[k]) < strict[k](old[k])]
    return ", ".join(f"{k} {number(old[k])} → {number(now.get(k))}" for k in worse)
