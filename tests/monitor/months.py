"""What `ml monitor` decides after clean months and after seeded ones; runs inside a project.

    uv run python months.py '["clean 0", "scale"]'

A clean month is 28 days drawn with replacement from the days of the candidate's test window, whole
days since weather and congestion are a day's, with the candidate's own scores and the true labels.
A seeded change begins two weeks before its end, or a week where one window is enough; flipped
labels are those of the whole month. Prints a decision, its reason and the outcomes as JSON.
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
from model_delivery.files import write_json
from model_delivery.project import Project, find_project
from model_delivery.registry import Event
from model_delivery.rollout.target import State, Target
from model_delivery.watch.monitor import monitor

DAYS = 28
Month = pd.DataFrame  # rows of the contract with `score`, the target, and `day`, from 0 to 27


def clean(project: Project, candidate: Candidate, seed: int) -> Month:
    """Return a month drawn from the test window."""
    time, start = project.contract.time, pd.Timestamp(candidate.lineage["data"]["as_of"])
    rows = candidate.rows("test").to_pandas()
    days = rows[time].dt.normalize()
    drawn = np.random.default_rng(seed).choice(days.unique(), DAYS)
    parts = [rows[days == day].assign(day=place) for place, day in enumerate(drawn)]
    month = pd.concat(parts, ignore_index=True)
    shift = start + pd.to_timedelta(month["day"], unit="D") - month[time].dt.normalize()
    return month.assign(**{time: month[time] + shift})


def flipped(month: Month) -> Month:
    chosen = np.random.default_rng(0).random(len(month)) < 0.1
    return month.assign(late=month["late"] ^ chosen)


def missing(month: Month) -> Month:
    chosen = np.random.default_rng(0).random(len(month)) < 0.2
    return month.assign(temp=month["temp"].mask(chosen & (month["day"] >= DAYS - 14)))


def bad(month: Month) -> Month:
    """Return scores of a release that ranks a third of the rows by chance."""
    random = np.random.default_rng(0)
    chosen = random.random(len(month)) < 0.33
    return month.assign(score=month["score"].mask(chosen, random.permutation(month["score"])))


def late(month: Month, days: int) -> Any:
    return month["day"] >= DAYS - days


SEEDS: dict[str, Callable[[Month], Month]] = {
    "scale": lambda m: m.assign(temp=m["temp"].mask(late(m, 14), 1.8 * m["temp"])),
    "carrier": lambda m: m[~late(m, 14) | (m["carrier"] != m["carrier"].mode()[0])],
    "flipped": flipped,
    "missing": missing,
    "renamed": lambda m: m.assign(
        dew_point=m["dewp"].where(late(m, 7)), dewp=m["dewp"].mask(late(m, 7))
    ),
    "constant": lambda m: m.assign(score=m["score"].mask(late(m, 7), 0.25)),
    "alone": lambda m: m.assign(score=m["score"].mask(late(m, 7), 0.25)),
    "silent": lambda m: m[~late(m, 7)],
    "unlabelled": lambda m: m,
    "bad": bad,
}
TWO = ("constant", "bad")
"""Changes after which there is an earlier release to go back to; in clean months there is, too."""


def write_log(target: Target, month: Month, digest: str) -> None:
    """Write the log of a month, a segment a week."""
    inputs = [name for name in month if name in target.project.contract.inputs or name == "dew_point"]
    for week, rows in month.groupby(month["day"] // 7):
        text = rows[inputs].astype({target.project.contract.time: str}).astype(object)
        records = text.where(text.notna(), None).to_dict("records")
        path = Path(target.log) / f"2026-01-{week + 1:02d}" / "writer-1.jsonl"
        path.parent.mkdir(parents=True)
        with path.open("w") as stream:
            for place, (score, row) in enumerate(zip(rows["score"], records, strict=True)):
                if "dew_point" in row and row["dew_point"] is None:
                    del row["dew_point"]
                row = {name: value for name, value in row.items()}
                line = {"id": f"{week}-{place}", "row": 0, "time": f"2026-01-{week + 1:02d}T00:00:00.000000+00:00"}
                line |= {"digest": digest, "shadow": False, "ms": 1.0, "score": score, "columns": row}
                stream.write(json.dumps(line) + "\n")


def decide(project: Project, candidate: Candidate, name: str) -> dict[str, Any]:
    """Return what `ml monitor` decides after a month."""
    seed, contract = name.removeprefix("clean "), project.contract
    month = clean(project, candidate, int(seed) if seed.isdigit() else 0)
    month = SEEDS[name](month) if name in SEEDS else month
    target, now = Target(project, "production"), "f" * 64
    current = now if name == "bad" else candidate.digest
    shutil.rmtree(target.log, ignore_errors=True)
    home = target.folder / "releases"
    home.mkdir(parents=True, exist_ok=True)
    for digest in (now, candidate.digest):
        if not (home / digest).exists():
            (home / digest).symlink_to(candidate.folder)
    known: dict[str, Any] = {"type": "promoted", "as_of": "2013-08-01", "commit": None, "trigger": "local"}
    known |= {"blob": "b", "environment": "production"}
    other = candidate.digest if current == now else now
    moves = [Event(digest=d, release=d[:4], previous=p, **known) for d, p in ((current, other), (other, None))]
    target.save(State(moves=moves if name in TWO or "clean" in name else moves[:1]))
    write_log(target, month, current)
    known_until = DAYS - 14 if name == "unlabelled" else DAYS - 1
    labels = month.loc[month["day"] < known_until, [*contract.key, contract.target]]
    protocols.user_module("sources").labels = lambda since, as_of: labels
    as_of = dt.date.fromisoformat(candidate.lineage["data"]["as_of"]) + dt.timedelta(DAYS)
    found = monitor(target, as_of)
    assert found.verdict
    outcomes = {check.name: [check.outcome, check.value, check.sentence] for check in found.verdict.checks}
    return {"decision": found.decision, "reason": found.reason, "checks": outcomes}


if __name__ == "__main__":
    project = find_project()
    candidate = current_candidate(project)
    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "environments").symlink_to(project.work / "environments")
        os.environ["ML_HOME"] = folder
        for name in json.loads(sys.argv[1]):
            answers[name] = decide(project, candidate, name)
    write_json(Path(sys.argv[2]), answers) if len(sys.argv) > 2 else print(json.dumps(answers))
