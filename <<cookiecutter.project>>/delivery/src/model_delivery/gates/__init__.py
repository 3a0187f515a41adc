"""Gates: each turns values and limits into checks, and checks into a verdict."""

import os
import re
from collections.abc import Callable
from operator import neg, pos
from typing import Any, Literal, get_args

import yaml

from model_delivery.bundle.candidate import git
from model_delivery.contract.limits import Limit
from model_delivery.files import sha256_json
from model_delivery.project import Project
from model_delivery.report.render import number
from model_delivery.report.verdict import Check, Outcome, finite
from model_delivery.training.scores import Estimate

Gate = Literal["data", "model", "package", "api", "load"]
GATES: tuple[Gate, ...] = get_args(Gate)
COMPARED = ("model", "load")
"""The gates that judge beside the champion."""


def judge(name: str, limit: Limit, value: float | Estimate | None, sentence: str) -> Check:
    """Judge a value, an estimate by its own; what is no number is never a pass."""
    low = high = None
    if isinstance(value, Estimate):
        value, low, high = value
    if not finite(value):
        why = f"{sentence}: no number came out, so it cannot be judged"
        return Check(name=name, outcome=Outcome.INCONCLUSIVE, sentence=why, limit=str(limit))
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


def limits_hash(project: Project, gate: str) -> str:
    """Return the SHA-256 that names what a gate judges by: its limits, and the data contract."""
    limits, contract = project.gates.model_dump(mode="json"), project.contract.model_dump()
    limits["rollout"] = project.delivery.rollout.model_dump()
    return sha256_json([limits.get(gate), limits["deepchecks"].get(gate), contract])


def lowered_limits(project: Project) -> list[str]:
    """Say which limits are looser here than on the branch that a change goes to."""
    names, told = ("origin/HEAD", "origin/main", "main"), list[str]()
    found = (git(project, "merge-base", "HEAD", name) for name in names)
    # GitHub has merged a pull request into the commit that it starts from.
    base = "HEAD^1" if os.environ.get("GITHUB_BASE_REF") else next(filter(None, found), None)
    rollout = r"rollout\.|environments\.\w+\.(canary|load)$"
    for path, limits in (("config/gates.yaml", ""), ("config/delivery.yaml", rollout)):
        try:
            old = _limits(yaml.safe_load(git(project, "show", f"{base}:./{path}") or ""))
            new = _limits(yaml.safe_load((project.root / path).read_text("utf-8")))
            kept = {name: old[name] for name in old if re.match(limits, name)}
            looser = {name: _loosened(limit, new.get(name)) for name, limit in kept.items()}
        except Exception:  # the base may hold anything, also a file of another version
            kept = looser = {}
        if not any(isinstance(limit, dict) for limit in kept.values()):
            looser = {path: "was not compared: no limits can be read on the branch this goes to"}
        told += [f"`{name}` {how}" for name, how in looser.items() if how]
    return told


def _limits(content: Any, name: str = "") -> dict[str, Any]:
    """Return the limits and numbers of a file by their dotted names."""
    if not isinstance(content, dict) or content.keys() & {"min", "max"}:
        return {name: content}
    inner = [_limits(value, f"{name}.{key}".lstrip(".")) for key, value in content.items()]
    return {name: limit for part in inner for name, limit in part.items()}


def _loosened(old: Any, new: Any) -> str:
    """Say how a limit was loosened; empty where it was not."""
    if not isinstance(old, dict):  # rows, rounds and the like
        return f"{number(old)} → {number(new)}: it decides what is judged" if old != new else ""
    now, outcomes = new if isinstance(new, dict) else {}, ["warn", "retrain", "stop"]
    strict: dict[str, Callable[[Any], Any]] = {"min": pos, "max": neg, "outcome": outcomes.index}
    worse = [k for k in old if now.get(k) is None or strict[k](now[k]) < strict[k](old[k])]
    return ", ".join(f"{k} {number(old[k])} → {number(now.get(k))}" for k in worse)
