"""A snapshot: the rows known at one day, split by time, named by their content."""

import datetime as dt
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model_delivery import files
from model_delivery.contract.request import draw_rows
from model_delivery.contract.settings import DataContract
from model_delivery.project import Project
from model_delivery.protocols import UserError, ask_source
from model_delivery.report.verdict import Check, Outcome, Verdict
from model_delivery.training.check import check_structure, judge_rule, readable

CURRENT = "snapshot"
Times = NDArray[np.datetime64]
FEWEST_PERIODS, MOST_PARTS = 4, 40
SAMPLE_DAYS, SAMPLE_VALUES = 200, 50
STOPPING = np.timedelta64(28, "D")
LARGEST_STOPPING_SHARE = 0.2


class BrokenStructureError(UserError):
    """The extraction lacks columns, has others, or has other types: the gate `data` stops."""

    def __init__(self, checks: list[Check]) -> None:
        told = "; ".join(one.sentence for one in checks if one.outcome is not Outcome.PASS)
        super().__init__(f"the extraction does not keep config/data.yaml: {told}")
        self.checks = checks


@dataclass(frozen=True)
class Judged:
    """A folder of rows to train and to test on, with the verdicts that gates gave of it."""

    folder: Path

    def path(self, part: str) -> Path:
        return self.folder / f"{part}.parquet"

    def rows(self, part: str, columns: list[str] | None = None) -> pa.Table:
        return pq.read_table(self.path(part), columns=columns)

    def verdict(self, gate: str) -> Verdict | None:
        path = self.folder / "verdicts" / f"{gate}.json"
        return Verdict.model_validate_json(path.read_text()) if path.exists() else None

    def save(self, verdict: Verdict) -> None:
        path = self.folder / "verdicts" / f"{verdict.gate}.json"
        files.write_atomic(path, verdict.model_dump_json(indent=2))


class Snapshot(Judged):
    """A snapshot, its folder named by day and content, such as `20130801-1f0c2d3e4b5a`."""

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Rows, exclusions by rule, spans, hashes, and where the rows came from."""
        return dict(files.read_json(self.folder / "manifest.json"))


def find_snapshot(project: Project, name: str) -> Snapshot:
    """Return the snapshot of this name, which need not be there."""
    return Snapshot(project.work / "data" / name.strip())


def take_snapshot(
    project: Project,
    as_of: dt.date | None,
    force: bool = False,
    sample: bool = False,
    tell: Callable[[str], object] = lambda _: None,
) -> Snapshot:
    """Extract the rows known before `as_of`, take out what the contract excludes, and split.

    A `sample` is drawn from the contract instead. An extraction with the same code, contract and
    day is not repeated unless `force` is set, and `tell` is told so. Without rows to train or to
    test on a UserError, with a BrokenStructureError nothing is written.
    """
    day = as_of or project.contract.as_of
    inputs = f"src/{project.package}", "delivery/src", "config/data.yaml", "uv.lock"
    rows = max(2_000, int(1.5 * project.gates.data.rows.min)) if sample else None
    done = project.work / "extractions" / inputs_hash(project, inputs, day, rows)
    known = find_snapshot(project, done.read_text()) if done.exists() and not force else None
    if known is None or not known.folder.exists():
        frame = draw(project.contract, day, rows) if rows else ask_source("extract", day)
        known = _write(project, day, _checked(project, day, frame), sample)
        files.write_atomic(done, known.name)
    else:
        tell(f"as extracted before for {day} by this code; `ml data --force` asks the source again")
    files.write_atomic(project.work / CURRENT, known.name)
    return known


def current_snapshot(project: Project) -> Snapshot:
    """Return the snapshot that `ml data` made last; UserError where its bytes have changed."""
    pointer = project.work / CURRENT
    if not pointer.exists():
        raise UserError("no data yet; run `ml data`")
    snapshot = find_snapshot(project, pointer.read_text())
    for name, digest in snapshot.manifest["files"].items():
        path = snapshot.folder / name
        if not path.exists() or files.sha256_file(path) != digest:
            raise UserError(f"{path}: not what was extracted; run `ml data --force`")
    return snapshot


def tree(path: Path) -> list[Path]:
    """Return a file, or the files below a folder, sorted, without caches and hidden ones."""
    below = {file.relative_to(path).parts: file for file in path.rglob("*") if file.is_file()}
    hidden = "__pycache__", "."
    kept = [below[parts] for parts in sorted(below) if not any(p.startswith(hidden) for p in parts)]
    return [path] if path.is_file() else kept


def training_code(project: Project) -> list[str]:
    """Return the files and folders that training depends on."""
    config = ["config/data.yaml", "config/model.yaml"]
    return [f"src/{project.package}", "delivery/src", "uv.lock", *config]


def inputs_hash(project: Project, names: Iterable[str] = (), *more: object) -> str:
    """Return the SHA-256 over files and folders, else training's code, and what else counts."""
    found = [path for name in names or training_code(project) for path in tree(project.root / name)]
    hashes = {str(path.relative_to(project.root)): files.sha256_file(path) for path in found}
    return files.sha256_json([hashes, *more])


def draw(contract: DataContract, day: dt.date, rows: int) -> pd.DataFrame:
    """Return rows drawn from the contract, of the months before a day; always the same ones.

    The label follows three columns, so that there is something to learn.
    """
    random, columns = np.random.default_rng(0), contract.columns
    whole = {name: spec.model_copy(update={"missing": 0}) for name, spec in columns.items()}
    frame = pd.DataFrame(draw_rows(contract.model_copy(update={"columns": whole}), rows, seed=0))
    for name in contract.of_type("timestamp"):
        frame[name] = pd.to_datetime(frame[name], format="ISO8601")
    start = pd.Timestamp(day) - pd.Timedelta(days=SAMPLE_DAYS)
    frame[contract.time] = pd.date_range(start, pd.Timestamp(day), rows + 1)[:-1].floor("s")
    known = [str(name) for name in frame if name not in (contract.time, *contract.key)]
    for name in (name for name in known if columns[name].pattern):  # else all would differ
        frame[name] = random.choice(frame[name][:SAMPLE_VALUES], rows)
    for name in contract.key:
        if (spec := columns[name]).type == "integer" and spec.max is None:  # few numbers are drawn
            frame[name] = math.ceil(spec.min or 0) + np.arange(rows)
    evidence = sum(frame[name].rank(pct=True) - 0.5 for name in known[:3])
    frame[contract.target] = random.random(rows) < 1 / (1 + np.exp(1 - 6 * evidence))
    for name in contract.of_type("number", "category"):
        frame[name] = frame[name].mask(random.random(rows) < columns[name].missing / 2)
    return frame.drop_duplicates(contract.key, ignore_index=True)


def _checked(project: Project, day: dt.date, frame: pd.DataFrame) -> pa.Table:
    """Return an extraction with the contract's structure, its columns as a service has them."""
    time = project.contract.time
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    except (ValueError, TypeError, AttributeError) as error:
        why = "; ".join(map(str, error.args))
        told = _mixed(frame) or [f"no table, or columns stand twice ({why})"]
        raise BrokenStructureError([judge_rule("types", told)]) from error
    checks = check_structure(table, project.contract)
    if all(check.outcome is Outcome.PASS for check in checks):
        for row in np.flatnonzero(~(frame[time] < pd.Timestamp(day)))[:1]:
            wrong = f"`{time}` is {frame[time].iloc[row]} in row {row + 1}: not before {day}"
            checks.append(judge_rule("time", [wrong]))
    if any(check.outcome is not Outcome.PASS for check in checks):
        raise BrokenStructureError(checks)
    for place, name in enumerate(table.column_names):
        column, kind = table.column(name).combine_chunks(), project.contract.columns[name].type
        values = readable(column, kind)
        if (row := len(values)) < len(column):
            whole = 'a request has whole seconds; `.dt.floor("s")` cuts the rest'
            why = whole if kind == "timestamp" else "a request's numbers have 64 bits"
            beyond = judge_rule("types", [f"`{name}` is {column[row]} in row {row + 1}: {why}"])
            raise BrokenStructureError([beyond])
        table = table.set_column(place, name, values)
    return table


def _mixed(frame: Any) -> list[str]:
    """Say which columns of a table hold values of several types, and where one is another."""
    told, whole = list[str](), isinstance(frame, pd.DataFrame) and frame.columns.is_unique
    for name in frame.select_dtypes(object) if whole else ():
        values = frame[name].reset_index(drop=True).dropna()
        kinds = values.map(lambda value: float if type(value) is int else type(value))
        for row in kinds.index[kinds != kinds.mode().get(0)][:1]:
            what = f"{values[row]!r} in row {row + 1} is of type {type(values[row]).__name__}"
            told.append(f"column `{name}` mixes types: {what}")
    return told


def _write(project: Project, day: dt.date, table: pa.Table, sample: bool) -> Snapshot:
    """Take out rows, each counted under the first rule that names it; split, and write."""
    contract, time, excluded, extracted = project.contract, project.contract.time, {}, len(table)
    newest = table.column(time).to_numpy().max()
    if newest < pd.Timestamp(day) - pd.DateOffset(months=1):
        why = f"no row of the month before; newest: {newest}: set `as_of` to the day after it"
        raise UserError(f"sources.extract({day}): {why}")
    for rule, spec in contract.exclude.items():
        kept = table.filter(pc.is_valid(table.column(spec.column)))
        excluded[rule], table = len(table) - len(kept), kept
    if not len(table):
        raise UserError(f"sources.extract({day}): every row was excluded ({excluded})")
    order = [(name, "ascending") for name in dict.fromkeys([time, *contract.key])]
    table = table.select(list(contract.columns)).sort_by(order)
    start = test_start(table.column(time).to_numpy(), day)
    later = pc.greater_equal(table.column(time), pa.scalar(start, pa.timestamp("us")))
    parts, spans = {"train": table.filter(pc.invert(later)), "test": table.filter(later)}, {}
    for part, rows in parts.items():
        if not len(rows):
            raise UserError(f"--as-of {day}: no rows to {part} on (test window from {start})")
        spans[part] = [end.as_py().isoformat() for end in pc.min_max(rows.column(time)).values()]
    with files.temporary_folder(project.work / "data") as folder:
        for part, rows in parts.items():
            pq.write_table(rows, folder / f"{part}.parquet")
        manifest = {
            "as_of": str(day),
            "source": "config/data.yaml" if sample else f"{project.package}.sources.extract",
            "sample": sample,
            "rows": {"extracted": extracted} | {part: len(rows) for part, rows in parts.items()},
            "excluded": excluded,
            "spans": spans,
            "files": {path.name: files.sha256_file(path) for path in sorted(folder.iterdir())},
        }
        files.write_json(folder / "manifest.json", manifest)
        made = find_snapshot(project, f"{day:%Y%m%d}-{files.sha256_json(manifest)[:12]}")
        shutil.rmtree(made.folder, ignore_errors=True)  # it may have been damaged
        files.settle(folder, made.folder)
    return made


def test_start(times: Times, as_of: dt.date) -> np.datetime64:
    """Return where the test window begins: a calendar month before `as_of`.

    Where labels come late, and the newest days have none, it is the month before those. Where all
    rows together span fewer than four months it is the last fifth of the span.
    """
    first, last = pd.Timestamp(times.min()), pd.Timestamp(times.max())
    end = min(pd.Timestamp(as_of), last.normalize() + pd.Timedelta(days=1))
    short = first.normalize() > end - pd.DateOffset(months=FEWEST_PERIODS)
    start = end - (end - first) / 5 if short else end - pd.DateOffset(months=1)
    return np.datetime64(start.floor("us").isoformat(), "us")


def stopping_rows(times: Times) -> NDArray[np.bool_]:
    """Mark the training rows, shape (n,), of the last four weeks, at most a fifth of all rows."""
    fifth = np.sort(times)[int(len(times) * (1 - LARGEST_STOPPING_SHARE))]
    start = max(times.max() - STOPPING, fifth)
    return np.asarray(times > start if times.max() > start else times >= start)


def periods(times: Times, days: int = 0) -> list[tuple[np.datetime64, np.datetime64]]:
    """Return (start, exclusive end) of a span's months, or weeks where it has fewer than four.

    With `days` they are whole parts of so many, spread over the span where that has very many.
    """
    first, last = times.min().astype("datetime64[D]"), times.max().astype("datetime64[D]")
    starts, step = np.arange(first.astype("datetime64[M]"), last.astype("datetime64[M]") + 1), 1
    if days:
        starts, step = np.arange(first, last + 2 - days, days), days
        starts = starts[np.linspace(0, len(starts) - 1, min(len(starts), MOST_PARTS)).astype(int)]
    elif len(starts) < FEWEST_PERIODS:
        starts, step = np.arange(first, last + 1, 7), 7
    edges = (edge.astype("datetime64[D]") for edge in (starts, starts + step))
    return list(zip(*edges, strict=True))
