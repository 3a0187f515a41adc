"""Measure a generated project against its bars; print Markdown, write JSON with all raw values.

python -m tests.bench [--project FOLDER] [--rounds 6] [--json FILE] [--only PART …]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tests.baking import ROOT
from tests.bench.figures import Figure, as_json, beside, table
from tests.bench.pull_request import billed, job_seconds
from tests.bench.subject import Subject, generate, inside, load_average, naive, run, say, train

SECONDS = 3.0
"""How long a target is loaded in each round."""
TURNS = 3
"""Of a file of millions of rows."""


def service(subject: Subject) -> list[Figure]:
    """Compare the service with its no-op twin and with the naive one, in turns."""
    files = inside(subject, "paths")
    with naive(subject, files) as (url, auc):
        calm = load_average()
        rounds = inside(subject, "load", str(subject.rounds), str(SECONDS), url)
    subject.raw["rounds"] = rounds

    def values(name: str, key: str) -> list[float]:
        return [each[name].get(key) or float("nan") for each in rounds]

    def ratio(other: str) -> tuple[float, str]:
        own, its = values("candidate", "qps"), values(other, "qps")
        paired = median(a / b for a, b in zip(own, its, strict=True))
        return paired, f"{median(own):,.0f} to {median(its):,.0f} a second"

    def failed(name: str) -> int:
        return sum(sum(each[name]["failures"].values()) for each in rounds)

    (to_twin, twin_note), (to_naive, naive_note) = ratio("twin"), ratio("naive")
    p99, twin_p99 = median(values("candidate", "p99")), median(values("twin", "p99"))
    turns = f"Locust, medians of {subject.rounds} turns; load average {calm:.1f} before"
    return [
        Figure(
            "QPS at 8 users, to its no-op twin", to_twin, least=0.65, note=f"{twin_note}; {turns}"
        ),
        Figure("QPS at 8 users, to naive FastAPI", to_naive, least=12, note=naive_note),
        Figure(
            "ROC AUC, distance to naive's",
            abs(auc - files["auc"]),
            most=0.01,
            note=f"naive {auc:.4f}",
        ),
        Figure("p99 at 8 users", p99, most=40, unit="ms", note=f"twin {twin_p99:.1f} ms"),
        Figure("failed requests", failed("candidate"), most=0, note=f"naive {failed('naive')}"),
    ]


def logging(subject: Subject) -> list[Figure]:
    """Compare the service with itself without a prediction log, in at least 20 pairs of turns."""
    calm, least = load_average(), max(20, subject.rounds)
    found = subject.raw["logging"] = inside(subject, "logging", str(least), str(SECONDS))
    ratio, rounds = found["ratio"], found["rounds"]
    p99 = {name: median(each[name]["p99"] for each in rounds) for name in ("logged", "plain")}
    asked, kept = sum(each["logged"]["requests"] for each in rounds), found["kept"]
    counts = f"{kept:,} kept, of {asked:,} answers and the warm-up before"
    note = (
        f"median loss {1 - ratio['value']:.1%}, of {len(rounds)} pairs; "
        f"p99 {p99['logged']:.1f} ms, without {p99['plain']:.1f}; load average {calm:.1f} before"
    )
    return [
        Figure("QPS lost by logging, upper bound", 1 - ratio["low"], most=0.08, note=note),
        Figure("records lost at that load", max(found["lost"], asked - kept), most=0, note=counts),
    ]


def ready(subject: Subject) -> list[Figure]:
    """Compare the time from start to ready with the twin's, in turns."""
    calm = load_average()
    found = subject.raw["starts"] = inside(subject, "starts", str(subject.rounds))
    own, twin = median(found["candidate"]), median(found["twin"])
    note = (
        f"{own:.2f} s to {twin:.2f} s; medians of {subject.rounds}; load average {calm:.1f} before"
    )
    return [Figure("start to ready, to the twin's", own / twin, most=1.5, note=note)]


def contract(subject: Subject) -> list[Figure]:
    """Time the data contract over a whole year of rows."""
    found = subject.raw["contract"] = inside(subject, "contract")
    what = f"data contract over {found['rows']:,} rows"
    return [Figure(what, median(found["seconds"]), most=2, unit="s")]


def batch(subject: Subject) -> list[Figure]:
    """Compare `ml predict` with LightGBM's own prediction on prepared features, in turns."""
    calm = load_average()
    found = subject.raw["batch"] = inside(subject, "batch", str(subject.folder), str(TURNS))
    own, its = (found["rows"] / median(found[name]) for name in ("predict", "lightgbm"))
    pairs = zip(found["lightgbm"], found["predict"], strict=True)
    rates = f"{own:,.0f} to {its:,.0f} rows a second; {found['rows']:,} rows, {TURNS} turns"
    note = f"{rates}; load average {calm:.1f} before"
    whole, tenth = max(found["megabytes"]), max(found["megabytes of a tenth"])
    said = f"{whole:.0f} MB for all rows, {tenth:.0f} MB for a tenth of them"
    memory = max(whole, tenth)
    return [
        Figure("`ml predict`, to LightGBM's own", median(a / b for a, b in pairs), 0.5, note=note),
        Figure("`ml predict`, all its processes", memory, most=600, unit="MB", note=said),
    ]


def deepchecks(subject: Subject) -> list[Figure]:
    """Time Deepchecks' suites on the candidate's data and scores."""
    found = subject.raw["deepchecks"] = inside(subject, "deepchecks")
    missing = [name for suite in found.values() for name in suite["missing"]]
    note = f"did not run: {', '.join(missing)}" if missing else "all named checks ran"
    total = sum(suite["seconds"] for suite in found.values())
    return [Figure("Deepchecks, data and model suites", total, most=60, unit="s", note=note)]


def demo(subject: Subject) -> list[Figure]:
    """Time `make demo` with caches warm, and stop what it leaves."""
    folder = str(subject.folder / "demo")
    started = time.perf_counter()
    try:
        run(sys.executable, "tools/demo.py", "up", "--folder", folder, cwd=ROOT)
        seconds = time.perf_counter() - started
    finally:
        run(sys.executable, "tools/demo.py", "down", "--folder", folder, cwd=ROOT)
    return [Figure("`make demo`, caches warm", seconds, most=150, unit="s")]


def again(subject: Subject) -> list[Figure]:
    """Time `ml ship` of what was shipped before, which trains, packages and loads nothing."""
    assert subject.project is not None
    command, seconds = ("uv", "run", "ml", "ship", "--until", "load"), list[float]()
    candidate, shipped = subject.project / ".ml" / "candidate", list[str]()
    for _ in range(1 + TURNS):
        started = time.perf_counter()
        run(*command, cwd=subject.project)
        seconds.append(time.perf_counter() - started)
        made = subject.project / ".ml" / "candidates" / candidate.read_text()
        shipped.append((made / "lineage.json").read_text())  # it has the time of its training
    subject.raw["again"] = seconds
    trained = len(set(shipped)) - 1
    note = f"median of {TURNS}; the first one took {seconds[0]:.0f} s"
    return [
        Figure("`ml ship` of a key again", median(seconds[1:]), most=15, unit="s", note=note),
        Figure("trained by that", trained, most=0),
    ]


def pull_request(subject: Subject) -> list[Figure]:
    """Count the minutes of a pull request, with warm download caches and with none."""
    kinds = ("warm", "cold", "machinery")
    found = {name: job_seconds(subject, name, cold=name == "cold") for name in kinds}
    subject.raw["pull_request"] = found
    (minutes, parts), cold, tested = (billed(jobs) for jobs in found.values())
    note = f"{parts}; with empty download caches {cold[0]}: {cold[1]}; "
    note += f"where the machinery's tests run {tested[0]}: {tested[1]}"
    return [Figure("a pull request, each job in whole minutes", minutes, most=9, note=note)]


PARTS: dict[str, Callable[[Subject], list[Figure]]] = {
    part.__name__: part
    for part in (service, logging, ready, batch, contract, deepchecks, again, demo, pull_request)
}


def measured(name: str, subject: Subject) -> list[Figure]:
    """Measure one part; one that breaks is short of its bars, and the others still run."""
    say(f"measuring: {name}")
    try:
        return PARTS[name](subject)
    except (subprocess.CalledProcessError, RuntimeError) as error:
        say(str(error))
        return [Figure(name, float("nan"), most=0, note="did not run: see above")]


def main() -> int:
    """Run the asked parts; the exit code says whether all bars were reached."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--project", type=Path, help="a project with a candidate; default: a new one"
    )
    parser.add_argument("--rounds", type=int, default=6, help="turns of each target (at least 4)")
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "bench.json")
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    options = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as temporary:
        subject = Subject(Path(temporary), options.project, max(4, options.rounds))
        seconds = subject.raw["cookiecutter"] = generate(subject)
        figures.append(Figure("cookiecutter run", median(seconds), most=3, unit="s"))
        if set(options.only) != {"demo"}:
            train(subject)
        for name in options.only:
            figures += measured(name, subject)
    found = as_json(figures, subject.raw)
    if options.json.exists() and set(options.only) < set(PARTS):
        found = beside(json.loads(options.json.read_text()), found)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(table(figures) + "\n")
    return 0 if all(figure.reached for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
