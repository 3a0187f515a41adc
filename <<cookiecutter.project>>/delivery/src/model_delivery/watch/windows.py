"""Windows of what a release was asked: each judged as training data are.

Structure and shares are those of the data contract, with some slack; scale and drift are compared
with parts of the training span as long as a window.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model_delivery import files
from model_delivery.bundle.candidate import Candidate
from model_delivery.contract.limits import MonitorLimits
from model_delivery.contract.settings import DataContract
from model_delivery.gates import ask, judge, judge_findings, request_of
from model_delivery.gates.data import judge_scale
from model_delivery.project import Project
from model_delivery.protocols import Floats
from model_delivery.report.verdict import Check, Outcome, finite, fixed
from model_delivery.rollout.target import Target
from model_delivery.training.check import check_content, check_structure
from model_delivery.training.scores import SCORE, roc_auc
from model_delivery.watch.rows import join_labels, read_labels, read_log

GATE, DRIFT, DRIFTS = "monitor", "FeatureDrift", ("feature_drift", "prediction_drift")
AT_ONCE = ("columns", "types", "predictions")
"""Checks of which the newest window is enough: no odd day is behind them."""
LOST = 0.01  # of the rows: more that the service had to drop are told as a warning
SHOWN = 26  # windows on a page, those of earlier runs too
COLUMNS = ["window", "rows", "of this release", "labelled", "share positive", "mean score"]
COLUMNS += ["ROC AUC", "feature drift", "prediction drift"]


@dataclass
class Window:
    """Days from `start`: a release's n rows, what came true of each, and how many rows of any.

    `truth`, shape (n,), is 0, 1, or not-a-number where it is not known. `checks` come by judging.
    """

    start: dt.date
    rows: pa.Table
    truth: Floats
    requests: int
    checks: list[Check] = field(default_factory=list)

    @property
    def readable(self) -> bool:
        """Whether it had enough rows of the release, of the right structure."""
        return any(check.name == "predictions" for check in self.checks)

    def labelled(self) -> tuple[pa.Table, Floats]:
        """Return the rows whose label is known, and the labels."""
        known = np.isfinite(self.truth)
        return self.rows.filter(pa.array(known)), self.truth[known]

    def summary(self, fewest: float) -> list[Any]:
        """Return a row of the page: `COLUMNS`."""
        values, (rows, labels) = {check.name: check.value for check in self.checks}, self.labelled()
        judged: list[Any] = [None, None, None]
        if len(labels) >= fewest and self.readable:
            scores = rows.column(SCORE).to_numpy()
            auc = roc_auc(labels, scores, np.ones(len(labels)))
            known = labels.mean().item(), scores.mean().item(), auc
            judged = [value if finite(value) else None for value in known]
        row = [str(self.start), self.requests, len(self.rows), len(labels), *judged]
        return [*row, *map(values.get, DRIFTS)]


def keep_rows(
    home: Path, as_of: dt.date, limits: MonitorLimits, windows: Sequence[Window]
) -> list[list[Any]]:
    """Keep windows' rows of `COLUMNS`; return those of all judged so far, the oldest first."""
    path = home / "windows.json"
    known: dict[str, list[Any]] = files.read_json(path) if path.exists() else {}
    known |= {str(window.start): window.summary(limits.requests.min) for window in windows}
    files.write_json(path, known)
    days = [as_of - place * dt.timedelta(limits.window_days) for place in range(SHOWN, 0, -1)]
    return [known[str(day)] for day in days if len(known.get(str(day), ())) == len(COLUMNS)]


def read_windows(
    target: Target, served: Candidate, as_of: dt.date
) -> tuple[list[Window], list[Check]]:
    """Return the windows that end at a day, the oldest first, and what log and labels tell."""
    project, limits = target.project, target.project.gates.monitor
    days = dt.timedelta(limits.window_days)
    starts = [as_of - place * days for place in range(limits.windows, 0, -1)]
    index = target.folder / GATE / "segments.json"
    rows, at, times, found = read_log(project, target.log, served.digest, (starts[0], as_of), index)
    labels, checks = read_labels(project, starts[0], as_of)
    truth, unknown = join_labels(project.contract, rows, labels)
    lost = found["unreadable"] or found["dropped"] > LOST * len(times)
    outcome = Outcome.WARN if lost else Outcome.PASS
    counts = found | {"labels of no row": unknown}
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    log = Check(name="log", outcome=outcome, sentence=f"{len(rows):,} rows of this release; {said}")
    old = at < np.datetime64(starts[-1])
    broken = {check.name for check in checks if check.outcome is not Outcome.PASS}
    if old.any() and broken <= {"label conflicts"}:
        share = float(np.isfinite(truth[old]).mean())
        said = f"share of {old.sum():,} rows before {starts[-1]} whose label arrived"
        checks.append(judge("labels", limits.labels, share, said))
    windows = list[Window]()
    for start in starts:
        ends = np.datetime64(start), np.datetime64(start + days)
        own, every = ((where >= ends[0]) & (where < ends[1]) for where in (at, times))
        windows.append(Window(start, rows.filter(pa.array(own)), truth[own], int(every.sum())))
    return windows, [log, *checks]


def judge_windows(
    project: Project, home: Path, served: Candidate, windows: Sequence[Window]
) -> list[Check]:
    """Judge each window; Deepchecks is asked once, of all that are sound.

    Return `requests` of the newest, and what each other check says of all of them.
    """
    train, sound = served.rows("train"), dict[Path, Window]()
    with files.temporary_folder(home) as folder:
        for window in windows:
            window.checks.extend(judge_rows(project, train, window))
            good = {check.outcome for check in window.checks[1:]} <= {Outcome.PASS, Outcome.WARN}
            if window.readable and good:
                sound[path := folder / f"{window.start}.parquet"] = window
                pq.write_table(window.rows, path)
        drifts = judge_drifts(project, served, [*sound])
    for window, checks in zip(sound.values(), drifts, strict=True):
        window.checks.extend(checks)
    found = [window.checks for window in windows]
    names = dict.fromkeys(check.name for checks in found for check in checks[1:])
    return [found[-1][0], *(combined(name, found, project.gates.monitor) for name in names)]


def judge_rows(project: Project, train: pa.Table, window: Window) -> list[Check]:
    """Judge a window's rows without Deepchecks, as far as they can be read; `requests` is first."""
    limits, contract = project.gates.monitor, logged_part(project)
    checks = [judge("requests", limits.requests, window.requests, f"rows since {window.start}")]
    if len(window.rows) < limits.requests.min:
        return checks
    gone = {SCORE, *project.delivery.log.hashed, *project.delivery.log.private}  # by now
    for name in window.rows.column_names:  # of nothing but null: as good as not there
        spec = contract.columns.get(name)
        bare = spec is None or spec.missing + contract.slack < 1
        gone |= {name} if bare and not pc.count(window.rows.column(name)).as_py() else set()
    rows = window.rows.select([name for name in window.rows.column_names if name not in gone])
    checks += check_structure(rows, contract)[:2]
    if any(check.outcome is not Outcome.PASS for check in checks[1:]):
        return checks
    scores, few = window.rows.column(SCORE).to_numpy(), int(limits.requests.min)
    low, high = float(np.min(scores)), float(np.max(scores))
    said = f"scores of {len(rows):,} rows from {low:.4f} to {high:.4f}"
    frame = window.rows.to_pandas()
    asked = frame.drop_duplicates([n for n in frame if n != SCORE], keep="last").tail(few)
    stuck = len(asked) >= few and asked[SCORE].nunique() == 1  # a repeated row may have one
    if stuck:
        said += f"; the newest {few} different rows all got the same one"
    checks += check_content(rows, contract, contract.slack)[:2]  # a row may be asked for twice
    checks.append(judge_scale(contract, limits.scale, train, rows, limits.window_days))
    return [*checks, fixed("predictions", low >= 0 and high <= 1 and not stuck, said)]


def logged_part(project: Project) -> DataContract:
    """Return the contract of what the log holds as it was asked: nothing private or hashed."""
    contract, log = project.contract, project.delivery.log
    gone = {contract.target, *log.private, *log.hashed}
    kept = {name: spec for name, spec in contract.columns.items() if name not in gone}
    key = [name for name in contract.key if name in kept]
    return contract.model_copy(update={"columns": kept, "key": key})


def judge_drifts(project: Project, served: Candidate, paths: Sequence[Path]) -> list[list[Check]]:
    """Judge the drift of features and predictions in files of rows; Deepchecks is asked once."""
    limits, kept = project.gates.monitor, logged_part(project).columns
    request = request_of(project, "data", served, limits.window_days) | {"label": None}
    request |= {"suite": GATE, "checks": [DRIFT], "tests": [str(path) for path in paths]}
    for kind in ("numeric", "categorical"):
        request[kind] = [name for name in request[kind] if name in kept]
    request["numeric"].append(SCORE)  # a drift is measured alike, whatever drifts
    checks, spread = list[list[Check]](), request["periods"]
    for found in ask(project.work / "deepchecks", request) if paths else []:
        silent = {said: value for said, value in found[DRIFT].items() if said[0] != "`"}
        own = {s: value for s, value in found[DRIFT].items() if s.startswith(f"`{SCORE}`")}
        other = {said: value for said, value in found[DRIFT].items() if said not in own}
        drifts = zip(DRIFTS, (other, own or silent), strict=True)  # without features of one
        checks.append([judge_findings(n, getattr(limits, n), it, spread) for n, it in drifts if it])
    return checks


def combined(
    name: str, windows: Sequence[Sequence[Check]], limits: MonitorLimits, each: str = "windows"
) -> Check:
    """Return what a check says of all windows: in fewer than `needed` it is only a warning."""
    found = [check for checks in windows for check in checks if check.name == name]
    broken = [check for check in found if check.outcome is not Outcome.PASS]
    if not broken:
        return found[-1]
    silent = [check for check in broken if check.outcome is Outcome.INCONCLUSIVE]
    bad = [check for check in broken if check.outcome not in (Outcome.INCONCLUSIVE, Outcome.WARN)]
    at_once = name in AT_ONCE and any(check in windows[-1] for check in bad)
    counts = at_once or len(bad) >= limits.needed
    several = bad if counts else silent or broken
    last = several[-1]
    said = f"in {len(several)} of {len(found)} {each}: {last.sentence}"
    outcome = last.outcome if counts or silent else Outcome.WARN
    return last.model_copy(update={"outcome": outcome, "sentence": said})
