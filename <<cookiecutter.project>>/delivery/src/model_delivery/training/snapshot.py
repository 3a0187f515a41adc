"""A snapshot: the rows known at one day, split by time, named by their content.

The test window is never seen by `fit`, not even as validation.
"""

import datetime as dt
import shutil
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
from model_delivery.contract.check import Finding, check_structure
from model_delivery.errors import UserError
from model_delivery.project import Project
from model_delivery.protocols import Columns, user_module

CURRENT = "snapshot"
Times = NDArray[np.datetime64]
FEWEST_MONTHS = 4
STOPPING = np.timedelta64(28, "D")
LARGEST_STOPPING_SHARE = 0.2


class BrokenStructureError(Exception):
    """The extraction lacks columns, has others, or has other types: the gate `data` stops."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("; ".join(f.sentence for f in findings if f.breaches))
        self.findings = findings


@dataclass(frozen=True)
class Snapshot:
    """The folder of one snapshot: `train.parquet`, the later `test.parquet`, `manifest.json`."""

    folder: Path

    @property
    def name(self) -> str:
        """As-of day and content, such as `20130801-1f0c2d3e4b5a`."""
        return self.folder.name

    @property
    def train_path(self) -> Path:
        return self.folder / "train.parquet"

    @property
    def test_path(self) -> Path:
        return self.folder / "test.parquet"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Rows, exclusions by rule, spans, hashes, and where the rows came from."""
        return dict(files.read_json(self.folder / "manifest.json"))


def take_snapshot(project: Project, as_of: dt.date | None, force: bool = False) -> Snapshot:
    """Extract the rows known before `as_of`, take out what the contract excludes, and split.

    An extraction with the same code, contract and day is not repeated unless `force` is set.

    Raises
    ------
    BrokenStructureError
        When columns or types are not those of the contract; nothing is written.
    UserError
        When the source refuses, or no rows are left to train or to test on.
    """
    day = as_of or project.contract.as_of
    done = project.work / "extractions" / _inputs_hash(project, day)
    known = _folder(project, done.read_text()) if done.exists() and not force else None
    if known is None or not known.exists():
        table = _arrow(user_module("sources").extract(day), project)
        findings = check_structure(table, project.contract)
        if any(finding.breaches for finding in findings):
            raise BrokenStructureError(findings)
        known = _write(project, day, table)
        files.write_atomic(done, known.name)
    files.write_atomic(project.work / CURRENT, known.name)
    return Snapshot(known)


def current_snapshot(project: Project) -> Snapshot:
    """Return the snapshot that `ml data` made last; UserError where its bytes have changed."""
    pointer = project.work / CURRENT
    if not pointer.exists():
        raise UserError("no data yet; run `ml data`")
    snapshot = Snapshot(_folder(project, pointer.read_text()))
    for name, digest in snapshot.manifest["files"].items():
        path = snapshot.folder / name
        if files.sha256_file(path) != digest:
            raise UserError(f"{path}: changed since it was extracted; run `ml data --force`")
    return snapshot


def columns_of(table: pa.Table) -> Columns:
    """Return a table's columns as numpy arrays: float64, int64, datetime64, object of str."""
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _folder(project: Project, name: str) -> Path:
    return project.work / "data" / name.strip()


def _inputs_hash(project: Project, day: dt.date) -> str:
    sources = sorted((project.root / "src").rglob("*.py"))
    read = [*sources, project.root / "config" / "data.yaml", project.root / "uv.lock"]
    hashes = {str(f.relative_to(project.root)): files.sha256_file(f) for f in read if f.exists()}
    return files.sha256_json([str(day), hashes])


def _arrow(frame: pd.DataFrame, project: Project) -> pa.Table:
    """Turn the extraction into Arrow; the time that splits it must be whole, in microseconds."""
    time, odd = project.contract.time, []
    for name in frame.columns:
        try:
            pa.array(frame[name])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            odd.append(f"column `{name}` mixes types ({error})")
    if time in frame and frame[time].isna().any():
        odd.append(f"column `{time}` is missing in row {int(frame[time].isna().argmax()) + 1}")
    if odd:
        raise BrokenStructureError([Finding("types", odd)])
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    if time in table.column_names and pa.types.is_timestamp(table.schema.field(time).type):
        place, whole = table.column_names.index(time), pa.timestamp("us")
        table = table.set_column(place, time, table.column(time).cast(whole))
    return table


def _exclude(project: Project, table: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Take out rows by rule, counting each row under the first rule that names it."""
    counts = {}
    for rule, spec in project.contract.exclude.items():
        kept = table.filter(pc.is_valid(table.column(spec.column)))
        counts[rule], table = table.num_rows - kept.num_rows, kept
    return table, counts


def _write(project: Project, day: dt.date, extracted: pa.Table) -> Path:
    """Write a snapshot and return its folder."""
    contract, time = project.contract, project.contract.time
    table, excluded = _exclude(project, extracted)
    order = [(name, "ascending") for name in dict.fromkeys([time, *contract.key])]
    table = table.select(list(contract.columns)).sort_by(order)
    if not table.num_rows:
        raise UserError(f"sources.extract({day}): every row was excluded ({excluded})")
    start = test_start(table.column(time).to_numpy(), day)
    later = pc.greater_equal(table.column(time), pa.scalar(start, pa.timestamp("us")))
    parts = {"train": table.filter(pc.invert(later)), "test": table.filter(later)}
    spans = {}
    for part, rows in parts.items():
        if not rows.num_rows:
            raise UserError(f"--as-of {day}: no rows to {part} on (test window from {start})")
        spans[part] = [end.as_py().isoformat() for end in pc.min_max(rows.column(time)).values()]
    with files.temporary_folder(project.work / "data") as folder:
        paths = {part: folder / f"{part}.parquet" for part in parts}
        for part, rows in parts.items():
            pq.write_table(rows, paths[part])
        counts = {part: rows.num_rows for part, rows in parts.items()}
        manifest = {
            "as_of": str(day),
            "source": f"{project.package}.sources.extract",
            "rows": {"extracted": extracted.num_rows, **counts},
            "excluded": excluded,
            "spans": spans,
            "files": {path.name: files.sha256_file(path) for path in paths.values()},
        }
        files.write_json(folder / "manifest.json", manifest)
        final = _folder(project, f"{day:%Y%m%d}-{files.sha256_json(manifest)[:12]}")
        shutil.rmtree(final, ignore_errors=True)  # it may have been damaged
        files.settle(folder, final)
    return final


def test_start(times: Times, as_of: dt.date) -> np.datetime64:
    """Return where the test window begins: a calendar month before `as_of`.

    Where all rows together span fewer than four months it is the last fifth of the span.
    """
    first, end = pd.Timestamp(times.min()), pd.Timestamp(as_of)
    short = first.normalize() > end - pd.DateOffset(months=FEWEST_MONTHS)
    start = end - (end - first) / 5 if short else end - pd.DateOffset(months=1)
    found: np.datetime64 = start.to_datetime64().astype("datetime64[us]")
    return found


def stopping_rows(times: Times) -> NDArray[np.bool_]:
    """Mark the training rows, shape (n,), of the last four weeks, at most a fifth of all rows."""
    start = times.max() - STOPPING
    fifth = np.quantile(times.astype("datetime64[s]").astype(np.int64), 1 - LARGEST_STOPPING_SHARE)
    latest = np.datetime64(int(np.ceil(fifth)), "s")
    marked: NDArray[np.bool_] = times > max(start, latest)
    return marked


def periods(times: Times) -> list[tuple[np.datetime64, np.datetime64]]:
    """Return (start, exclusive end) of a span's months, or weeks where it has fewer than four.

    Drift is judged against the spread between these periods.
    """
    first, last = times.min().astype("datetime64[D]"), times.max().astype("datetime64[D]")
    starts = np.arange(first.astype("datetime64[M]"), last.astype("datetime64[M]") + 1)
    step = 1
    if len(starts) < FEWEST_MONTHS:
        starts, step = np.arange(first, last + 1, 7), 7
    ends = (starts + step).astype("datetime64[D]")
    return list(zip(starts.astype("datetime64[D]"), ends, strict=True))
