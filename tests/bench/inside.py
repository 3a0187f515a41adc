"""What is measured inside a generated project, by its own interpreter: prints one JSON value.

uv run python inside.py paths|contract|deepchecks
uv run python inside.py starts TIMES
uv run python inside.py load ROUNDS SECONDS NAIVE_URL
uv run python inside.py batch FOLDER TURNS
uv run python inside.py logging ROUNDS SECONDS
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from model_delivery.bundle.candidate import current_candidate
from model_delivery.bundle.launch import Running, service_environment, start
from model_delivery.gates import deepchecks as judged
from model_delivery.gates.load import Round, _interval, run_rounds
from model_delivery.project import find_project
from model_delivery.protocols import user_module
from model_delivery.registry import Event
from model_delivery.releases import State
from model_delivery.report.verdict import Check, Outcome, Table
from model_delivery.rollout.target import Target
from model_delivery.training.check import check_content, check_structure
from model_delivery.training.snapshot import current_snapshot
from model_delivery.watch.log import MODEL_LOG

USERS = 8
STARTS = 5
COPIES = 10
"""Of a year's rows: 3.4 million together."""
UNJUDGED = (Outcome.INCONCLUSIVE, Outcome.CRASH)


def paths() -> dict[str, str]:
    """Return the files of the snapshot, and our ROC AUC on its test rows."""
    project = find_project()
    snapshot, candidate = current_snapshot(project), current_candidate(project)
    auc = candidate.lineage["metrics"]["roc_auc"]
    return {"train": str(snapshot.path("train")), "test": str(snapshot.path("test")), "auc": auc}


def contract() -> dict[str, Any]:
    """Time the data contract over the whole year."""
    project = find_project()
    table = pa.Table.from_pandas(
        user_module("sources").extract(dt.date(2014, 1, 1)), preserve_index=False
    )
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        check_structure(table, project.contract)
        check_content(table, project.contract)
        seconds.append(time.perf_counter() - started)
    return {"rows": table.num_rows, "seconds": seconds}


def deepchecks() -> dict[str, Any]:
    """Time Deepchecks' three suites, its environment made beforehand by an earlier run."""
    project, found = find_project(), dict[str, Any]()
    suites: dict[str, Callable[[], tuple[list[Check], Table]]] = {
        "data": lambda: judged(project, "data", current_snapshot(project)),
        "model": lambda: judged(project, "model", current_candidate(project)),
    }
    for name, suite in suites.items():
        started = time.perf_counter()
        checks, _ = suite()
        missing = [check.name for check in checks if check.outcome in UNJUDGED]
        seconds = time.perf_counter() - started
        found[name] = {"seconds": seconds, "checks": len(checks), "missing": missing}
    return found


@contextlib.contextmanager
def service(noop: bool = False, predictions: Path | None = None) -> Iterator[tuple[Running, float]]:
    """Start the candidate or its twin; yield it and the seconds from start to ready.

    With a folder for it, it keeps a log of its predictions.
    """
    project = find_project()
    ship = current_candidate(project).ship
    service_environment(project, ship)  # to make it takes no part of the time
    log = project.work / "logs" / f"bench-{'twin' if noop else 'candidate'}.log"
    settings = project.delivery.log.model_copy(update={"folder": str(predictions)})
    variables = {MODEL_LOG: settings.model_dump_json()} if predictions else {}
    started = time.perf_counter()
    with start(project, ship, log, noop=noop, variables=variables) as running:
        yield running, time.perf_counter() - started


def starts(times: str) -> dict[str, list[float]]:
    """Start candidate and twin in turns; the first of each only warms the page cache."""
    found: dict[str, list[float]] = {"candidate": [], "twin": []}
    for turn in range(int(times) + 1):
        for name in random.sample(sorted(found), 2):
            with service(noop=name == "twin") as (_, seconds):
                found[name] += [seconds] if turn else []
    return found


def in_turns(rounds: str, seconds: str, **urls: str) -> list[Round]:
    """Load services in turns, as the gate does."""
    targets = [{"name": name, "url": url, "release": None} for name, url in urls.items()]
    plan = {"users": USERS, "seconds": float(seconds), "rounds": int(rounds)}
    return run_rounds(plan | {"targets": targets}, find_project().root)


def load(rounds: str, seconds: str, naive: str) -> list[Round]:
    """Load candidate, twin and the naive service in turns."""
    with service() as (candidate, _), service(noop=True) as (twin, _):
        return in_turns(rounds, seconds, candidate=candidate.url, twin=twin.url, naive=naive)


def logging(rounds: str, seconds: str) -> dict[str, Any]:
    """Load the candidate with a prediction log and without; count what it kept and lost.

    Both are started a few times: of equal processes some are a few per cent faster than others.
    """
    found, kept, lost, each = list[Round](), 0, 0, str(math.ceil(int(rounds) / STARTS))
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory() as folder:
            with service(predictions=Path(folder)) as (logged, _), service() as (plain, _):
                found += in_turns(each, seconds, logged=logged.url, plain=plain.url)
            kept += sum(path.read_bytes().count(b"\n") for path in Path(folder).glob("*/*.jsonl"))
            lost += sum(sum(map(int, path.open())) for path in Path(folder).glob("*/*.dropped"))
    ratio = _interval(found, "qps", "logged", "plain")
    return {"rounds": found, "kept": kept, "lost": lost, "ratio": ratio._asdict()}


def accepted() -> Path:
    """Let production have accepted the candidate; return the folder that ships."""
    project = find_project()
    candidate, target = current_candidate(project), Target(project, "production")
    known: dict[str, Any] = {"type": "promoted", "digest": candidate.digest, "commit": None}
    known |= {"as_of": candidate.lineage["data"]["as_of"], "trigger": "local"}
    known |= {"release": "bench", "blob": "none"}
    target.save(State(moves=[Event(environment=target.name, **known)]))
    ship = target.folder / "releases" / candidate.digest / "ship"
    shutil.copytree(candidate.ship, ship, dirs_exist_ok=True)
    return ship


def predicted(source: Path, goal: Path) -> tuple[float, float]:
    """Score a file by `ml predict`; return its seconds and its megabytes of memory.

    Memory is the highest sum of what `ml` and all below it hold, shared pages counted for each.
    """
    started, peak = time.perf_counter(), 0.0
    command = [str(Path(sys.executable).with_name("ml")), "predict", str(source), str(goal)]
    process = psutil.Popen(command, stdout=sys.stderr)
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(each.memory_info().rss for each in family) / 1e6)
        time.sleep(0.1)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, "ml predict")
    return time.perf_counter() - started, peak


def batch(folder: str, turns: str) -> dict[str, Any]:
    """Score a file by `ml predict`, and its features, prepared, by LightGBM alone, in turns.

    LightGBM has its default threads. For memory, a file of a tenth of the rows is scored too.
    """
    project, ship = find_project(), accepted()
    frame = user_module("sources").extract(dt.date(2014, 1, 1))
    year = pa.Table.from_pandas(frame, preserve_index=False)
    source, tenth = (Path(folder, f"{name}.parquet") for name in ("rows", "tenth"))
    for file, copies in ((source, COPIES), (tenth, COPIES // 10)):
        with pq.ParquetWriter(file, year.schema) as writer:
            for _ in range(copies):
                writer.write_table(year)
    columns = {name: year[name].to_numpy() for name in project.contract.inputs}
    features = user_module("features").Features.load(ship / "model").transform(columns)
    matrix = np.tile(features, (COPIES, 1))
    booster = lightgbm.Booster(model_file=str(ship / "model" / "model.txt"))
    found: dict[str, Any] = {"rows": len(matrix), "lightgbm": [], "predict": [], "megabytes": []}
    found["megabytes of a tenth"], goal = [], source.with_name("scores.parquet")
    for _ in range(int(turns)):
        started = time.perf_counter()
        expected = booster.predict(matrix)
        found["lightgbm"].append(time.perf_counter() - started)
        found["megabytes of a tenth"].append(predicted(tenth, goal)[1])
        seconds, peak = predicted(source, goal)
        found["predict"].append(seconds)
        found["megabytes"].append(peak)
        np.testing.assert_array_equal(pq.read_table(goal)["score"].to_numpy(), expected)
    return found


if __name__ == "__main__":
    parts = (paths, contract, deepchecks, starts, load, logging, batch)
    verbs = {verb.__name__: verb for verb in parts}
    with contextlib.redirect_stdout(sys.stderr):
        value = verbs[sys.argv[1]](*sys.argv[2:])
    sys.stdout.write(json.dumps(value, default=lambda path: str(Path(path))) + "\n")
