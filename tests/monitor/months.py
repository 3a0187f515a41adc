"""What `ml monitor` decides after clean months and after seeded changes; runs inside a project.

    uv run python months.py '["clean 0", "scale"]' DIGEST

DIGEST is an older candidate, which a clean month has as its earlier release. A clean month is 28
days drawn with replacement from the days of the candidate's test window, with the candidate's own
scores and the true labels: whole days, since weather and congestion are a day's. A seeded change
begins two weeks before the month's end, or one where a window is enough; labels are flipped, and a
bad release ranks badly, all month. Prints decision, reason and findings.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from model_delivery import protocols
from model_delivery.bundle.candidate import Candidate, current_candidate
from model_delivery.project import Project, find_project
from model_delivery.registry import Event
from model_delivery.releases import State
from model_delivery.report.verdict import Outcome
from model_delivery.rollout.target import Target
from model_delivery.watch.monitor import monitor

DAYS = 28
OTHER = "f" * 64
TWO = ("constant", "bad")
"""Changes with an earlier release to go back to, of the same scores."""
Month = pd.DataFrame
"""Rows of the contract with `score`, the target, and `day` from 0 to 27."""


def clean(project: Project, candidate: Candidate, seed: int) -> Month:
    """Return a month drawn from the test window."""
    time, start = project.contract.time, pd.Timestamp(candidate.lineage["data"]["as_of"])
    rows = candidate.rows("test").to_pandas()
    days = rows[time].dt.normalize()
    drawn = np.random.default_rng(seed).choice(days.unique(), DAYS)
    parts = [rows[days == day].assign(day=place) for place, day in enumerate(drawn)]
    month = pd.concat(parts, ignore_index=True)
    shift = start + pd.to_timedelta(month["day"], unit="D") - month[time].dt.normalize()
    moved: Month = month.assign(**{time: month[time] + shift})
    return moved


def some(month: Month, share: float) -> Any:
    """Mark a share of the rows, always the same ones."""
    return np.random.default_rng(0).random(len(month)) < share


def late(month: Month, days: int) -> Any:
    """Mark the rows of the last days."""
    return month["day"] >= DAYS - days


def renamed(month: Month) -> Month:
    """Return a month in whose last week a column has another name."""
    last = late(month, 7)
    return month.assign(dew_point=month["dewp"].where(last), dewp=month["dewp"].mask(last))


def bad(month: Month) -> Month:
    """Return scores of a release that ranks a third of the rows by chance."""
    mixed = np.random.default_rng(1).permutation(month["score"])
    return month.assign(score=month["score"].mask(some(month, 0.33), mixed))


def constant(month: Month) -> Month:
    """Return a month with the same score for every row of its last week."""
    return month.assign(score=month["score"].mask(late(month, 7), 0.25))


SEEDS: dict[str, Callable[[Month], Month]] = {
    "scale": lambda m: m.assign(temp=m["temp"].mask(late(m, 14), 1.8 * m["temp"])),
    "carrier": lambda m: m[~late(m, 14) | (m["carrier"] != m["carrier"].mode()[0])],
    "flipped": lambda m: m.assign(late=m["late"] ^ some(m, 0.1)),
    "missing": lambda m: m.assign(temp=m["temp"].mask(late(m, 14) & some(m, 0.2))),
    "renamed": renamed,
    "constant": constant,
    "alone": constant,
    "silent": lambda m: m[~late(m, 7)],
    "unlabelled": lambda m: m,
    "bad": bad,
}


def serve(target: Target, candidate: Candidate, older: Candidate, name: str) -> str:
    """Make production serve the candidate, or one that is said to be worse; return its digest."""
    clean = name.startswith("clean")
    current, before = candidate.digest, older.digest if clean else OTHER
    if name == "bad":
        current, before = before, current
    home = target.folder / "releases"
    home.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = {"type": "promoted", "as_of": "2013-08-01", "commit": None}
    known |= {"trigger": "local", "blob": "none", "environment": target.name}
    moves = []
    for digest, previous in ((current, before), (before, None)):
        if not (home / digest).exists():
            own = older if digest == older.digest else candidate
            (home / digest).symlink_to(own.folder)
        moves.append(Event(digest=digest, release=digest[:4], previous=previous, **known))
    target.save(State(moves=moves if name in TWO or clean else moves[:1]))
    return current


def write_log(target: Target, month: Month, digest: str) -> None:
    """Write the log of a month, a segment a week."""
    time, inputs = target.project.contract.time, {*target.project.contract.inputs, "dew_point"}
    shutil.rmtree(target.log, ignore_errors=True)
    for week, rows in month.groupby(month["day"] // 7):
        text = rows[[name for name in rows if name in inputs]].astype({time: str}).astype(object)
        written = f"2026-01-{week + 1:02d}"
        path = Path(target.log) / written / "writer-1.jsonl"
        path.parent.mkdir(parents=True)
        about = {"row": 0, "time": f"{written}T00:00:00.000000+00:00", "digest": digest}
        about |= {"shadow": False, "ms": 1.0}
        records = text.where(text.notna(), None).to_dict("records")
        with path.open("w") as stream:
            for place, (score, columns) in enumerate(zip(rows["score"], records, strict=True)):
                found = {"id": f"{week}-{place}", "score": score, "columns": columns}
                stream.write(json.dumps(about | found) + "\n")


def decide(project: Project, candidate: Candidate, older: Candidate, name: str) -> dict[str, Any]:
    """Return what is decided after a month."""
    seed, contract = name.removeprefix("clean "), project.contract
    month = clean(project, candidate, int(seed) if seed.isdigit() else 0)
    month = SEEDS[name](month) if name in SEEDS else month
    target = Target(project, "production")
    write_log(target, month, serve(target, candidate, older, name))
    known = month[~late(month, 14 if name == "unlabelled" else 1)]
    labels = known[[*contract.key, contract.target]]
    sources: Any = protocols.user_module("sources")
    sources.labels = lambda *_: labels
    start = dt.date.fromisoformat(candidate.lineage["data"]["as_of"])
    found = monitor(target, start + dt.timedelta(DAYS))
    checks = found.verdict.checks if found.verdict else []
    said = {check.name: check.sentence for check in checks if check.outcome is not Outcome.PASS}
    unjudged = [check.name for check in checks if check.outcome is Outcome.INCONCLUSIVE]
    told = {"decision": found.decision, "reason": found.reason}
    judged = [check.name for check in checks]
    return told | {"findings": said, "unjudged": unjudged, "judged": judged}


def main(names: list[str], older: str) -> None:
    """Decide in an environment of its own, and print what was decided."""
    project = find_project()
    candidate, environments = current_candidate(project), project.work / "environments"
    earlier = Candidate(candidate.folder.with_name(older))
    environments.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "environments").symlink_to(environments)
        os.environ["ML_HOME"] = folder
        found = {name: decide(project, candidate, earlier, name) for name in names}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
