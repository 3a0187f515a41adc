"""A snapshot: the rows known at one day, split by time, named by their content."""

from __future__ import annotations

import datetime as dt
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model_delivery.contract.check import Finding, check_structure
from model_delivery.errors import UserError
from model_delivery.files import (
    read_json,
    settle,
    sha256_file,
    sha256_json,
    temporary_folder,
    write_atomic,
    write_json,
)
from model_delivery.project import Project
from model_delivery.protocols import Columns, user_module
from model_delivery.training.split import test_start

CURRENT = "snapshot"


class BrokenStructureError(Exception):
    """The extraction lacks columns, has others, or has other types: the gate `data` stops."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("; ".join(f.sentence for f in findings if f.breaches))
        self.findings = findings


@dataclass(frozen=True)
class Snapshot:
    """The folder of one snapshot: `train.parquet`, `test.parquet`, `manifest.json`."""

    folder: Path

    @property
    def name(self) -> str:
        """As-of day and content, such as `20130801-1f0c2d3e4b5a`."""
        return self.folder.name

    @property
    def train_path(self) -> Path:
        """The rows a model may learn from."""
        return self.folder / "train.parquet"

    @property
    def test_path(self) -> Path:
        """The later rows that judge it."""
        return self.folder / "test.parquet"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Rows, exclusions by rule, spans, hashes, and where the rows came from."""
        manifest: dict[str, Any] = read_json(self.folder / "manifest.json")
        return manifest

    def verify(self) -> None:
        """Refuse a snapshot whose bytes are not those of its manifest."""
        for name, digest in self.manifest["files"].items():
            if sha256_file(self.folder / name) != digest:
                path = self.folder / name
                raise UserError(f"{path}: changed since it was extracted; run `ml data --force`")


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
    if done.exists() and not force and (known := _folder(project, done.read_text())).exists():
        write_atomic(project.work / CURRENT, known.name)
        return Snapshot(known)
    table = _arrow(user_module("sources").extract(day), project)
    findings = check_structure(table, project.contract)
    if any(finding.breaches for finding in findings):
        raise BrokenStructureError(findings)
    snapshot = _write(project, day, table)
    write_atomic(done, snapshot.name)
    write_atomic(project.work / CURRENT, snapshot.name)
    return snapshot


def current_snapshot(project: Project) -> Snapshot:
    """Return the snapshot that `ml data` made last.

    Raises
    ------
    UserError
        When there is none, or its bytes have changed.
    """
    pointer = project.work / CURRENT
    if not pointer.exists():
        raise UserError("no data yet; run `ml data`")
    snapshot = Snapshot(_folder(project, pointer.read_text()))
    snapshot.verify()
    return snapshot


def columns_of(table: pa.Table) -> Columns:
    """Return a table's columns as numpy arrays: float64, int64, datetime64, object of str."""
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _folder(project: Project, name: str) -> Path:
    return project.work / "data" / name.strip()


def _inputs_hash(project: Project, day: dt.date) -> str:
    sources = sorted((project.root / "src").rglob("*.py"))
    files = [*sources, project.root / "config" / "data.yaml", project.root / "uv.lock"]
    hashes = {str(f.relative_to(project.root)): sha256_file(f) for f in files if f.exists()}
    return sha256_json([str(day), hashes])


def _arrow(frame: Any, project: Project) -> pa.Table:
    """Turn the extraction into Arrow, with microseconds and plain strings."""
    for name in frame.columns:
        try:
            pa.array(frame[name])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            finding = Finding("types", [f"column `{name}` mixes types ({error})"])
            raise BrokenStructureError([finding]) from error
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    time = project.contract.time
    if time in table.column_names and pa.types.is_timestamp(table.schema.field(time).type):
        place = table.column_names.index(time)
        if table.column(time).null_count:
            row = int(np.argmax(table.column(time).is_null().to_numpy())) + 1
            finding = Finding("types", [f"column `{time}` is missing in row {row}"])
            raise BrokenStructureError([finding])
        table = table.set_column(place, time, table.column(time).cast(pa.timestamp("us")))
    return table


def _exclude(project: Project, table: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Take out rows by rule, counting each row under the first rule that names it."""
    counts = {}
    for rule, spec in project.contract.exclude.items():
        keep = pc.is_valid(table.column(spec.column))
        kept = table.filter(keep)
        counts[rule] = table.num_rows - kept.num_rows
        table = kept
    return table, counts


def _write(project: Project, day: dt.date, extracted: pa.Table) -> Snapshot:
    table, excluded = _exclude(project, extracted)
    time = project.contract.time
    table = table.select(list(project.contract.columns)).sort_by(
        [(name, "ascending") for name in dict.fromkeys([time, *project.contract.key])]
    )
    if not table.num_rows:
        raise UserError(f"sources.extract({day}): every row was excluded ({excluded})")
    start = test_start(table.column(time).to_numpy(), day)
    later = pc.greater_equal(table.column(time), pa.scalar(start, pa.timestamp("us")))
    parts = {"train": table.filter(pc.invert(later)), "test": table.filter(later)}
    for part, rows in parts.items():
        if not rows.num_rows:
            raise UserError(f"--as-of {day}: no rows to {part} on (test window from {start})")
    with temporary_folder(project.work / "data") as folder:
        for part, rows in parts.items():
            pq.write_table(rows, folder / f"{part}.parquet")
        manifest = {
            "as_of": str(day),
            "source": f"{project.package}.sources.extract",
            "rows": {"extracted": extracted.num_rows}
            | {part: rows.num_rows for part, rows in parts.items()},
            "excluded": excluded,
            "spans": {part: _span(rows, time) for part, rows in parts.items()},
            "files": {f"{part}.parquet": sha256_file(folder / f"{part}.parquet") for part in parts},
        }
        write_json(folder / "manifest.json", manifest)
        name = f"{day:%Y%m%d}-{sha256_json(manifest)[:12]}"
        shutil.rmtree(_folder(project, name), ignore_errors=True)  # it may have been damaged
        settle(folder, _folder(project, name))
    return Snapshot(_folder(project, name))


def _span(table: pa.Table, time: str) -> list[str]:
    bounds = pc.min_max(table.column(time))
    return [bounds["min"].as_py().isoformat(), bounds["max"].as_py().isoformat()]
