"""What an environment answered, by its prediction log, and what came true, by the source's labels.

The log's folders are days of *writing*, which may differ from the rows' own time, and are wrong
where a clock was set back: each segment is read once, and again if it grew or has rows asked for.
"""

import datetime as dt
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from model_delivery.contract.settings import DataContract
from model_delivery.files import read_json, write_json
from model_delivery.project import Project
from model_delivery.protocols import Floats, UserError, ask_source, user_module
from model_delivery.report.verdict import Check, Outcome
from model_delivery.training.check import SERVED, check_structure, judge_rule
from model_delivery.training.scores import SCORE
from model_delivery.training.snapshot import Times
from model_delivery.watch.log import keyed_hash, log_key

_TIME = SERVED["timestamp"]
_NOTES = {"id": pa.string(), "row": pa.int64(), "time": pa.string(), "digest": pa.string()}
_KEPT = [*_NOTES.items(), ("shadow", pa.bool_()), (SCORE, pa.float64())]


class Logged(NamedTuple):
    """Rows of one release, with scores in `SCORE`, and their times; those of all; what else is."""

    rows: pa.Table
    at: Times
    times: Times
    found: dict[str, int]


def read_log(
    project: Project, uri: str, digest: str, span: tuple[dt.date, dt.date], index: Path
) -> Logged:
    """Return clients' rows of days, the end exclusive, by their time; of repeats the last one.

    `index` keeps each segment's size and own span between runs. A line that is no JSON, but for a
    torn last one, is a UserError with its number; a segment that cannot be read is counted.
    """
    store, paths = _listed(uri)
    known: dict[str, list[Any]] = read_json(index) if index.exists() else {}
    found, spans = {"unreadable": 0, "dropped": 0}, dict[str, list[Any]]()
    read = list[tuple[pd.DataFrame, pa.Table]]()
    first, end = (np.datetime64(day, "us") for day in span)
    for path, about in sorted(paths.items()):
        with suppress(FileNotFoundError):  # its day was too old, and was just removed
            if path.endswith(".dropped") and path.split("/")[-2] >= str(span[0]):
                counts = _read(store, path).split()
                found["dropped"] += sum(int(count) for count in counts if count.isdigit())
                found["unreadable"] += not all(map(bytes.isdigit, counts))
            if path.endswith((".jsonl", ".parquet")):
                size, low, high = spans[path] = known.get(path, [-1, "", ""])
                if size != about["size"] or (low < str(end) and high >= str(first)):
                    notes, rows = _segment(project, _read(store, path), path, found)
                    if len(at := notes["at"].to_numpy()):  # one without rows is looked at again
                        spans[path] = [about["size"], str(at.min()), str(at.max())]
                    if (inside := (at >= first) & (at < end)).any():
                        read.append((notes[inside], rows.filter(pa.array(inside))))
    if spans != known:
        write_json(index, spans)
    if not read:
        return Logged(pa.table({}), nothing := np.array([], "M8[us]"), nothing, found)
    whole = pd.concat([notes for notes, _ in read], ignore_index=True)
    again = whole.sort_values("time", kind="stable").duplicated(["id", "row"], keep="last")
    kept = ~again.sort_index().to_numpy()
    mine, at = kept & (whole["digest"] == digest).to_numpy(), whole["at"].to_numpy()
    found |= {"repeated": int(again.sum()), "of other releases": int((kept & ~mine).sum())}
    masks = np.split(mine, np.cumsum([len(notes) for notes, _ in read])[:-1])
    own = _joined([rows.filter(mask) for (_, rows), mask in zip(read, masks, strict=True)], uri)
    order = np.argsort(at[mine], kind="stable")
    return Logged(own.take(order), at[mine][order], at[kept], found)


def _listed(uri: str) -> tuple[Any, dict[str, Any]]:
    """Return the file system of a log, and what it says of each file."""
    try:
        store, root = url_to_fs(uri)
        return store, store.find(root, detail=True) if store.exists(root) else {}
    except Exception as error:  # each kind of store has its own
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{uri}: the prediction log cannot be listed ({why})") from error


def _read(store: Any, path: str) -> bytes:
    try:
        return bytes(store.cat_file(path))
    except FileNotFoundError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: this part of the log cannot be read ({why})") from error


def _joined(parts: Sequence[pa.Table], uri: str) -> pa.Table:
    """Return the rows of one release in one table."""
    try:
        some = [part for part in parts if len(part)] or parts[:1]
        return pa.concat_tables(some, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        why = f"{uri}: a column of one release has several types ({error}): was it hashed once?"
        raise UserError(f"{why} Put it back into `log.hashed`, or remove those days") from error


def _segment(
    project: Project, content: bytes, path: str, found: dict[str, int]
) -> tuple[pd.DataFrame, pa.Table]:
    """Return of clients' rows what was noted, with their own time `at`; and columns and score."""
    contract, hashed = project.contract, project.delivery.log.hashed
    types = {n: SERVED[spec.type] for n, spec in contract.inputs.items()}
    types |= dict.fromkeys(hashed, pa.string())
    try:
        if path.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(content), page_checksum_verification=True)
            if not {*dict(_KEPT), "columns"} <= {*table.column_names}:
                raise pa.ArrowInvalid("no segment of the log")
        else:
            table = _parsed(content, path, types)
    except (pa.ArrowInvalid, OSError):  # truncated or damaged, by a disk or by hand
        table = _parsed(b"", path, types)
        found["unreadable"] += 1
    table = table.filter(pc.invert(table.column("shadow")))
    columns = table.column("columns").combine_chunks()
    rows = pa.table(columns.flatten(), [field.name for field in columns.type])
    for place, name in enumerate(rows.column_names):
        with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError):  # judged later
            rows = rows.set_column(place, name, rows.column(name).cast(types[name]))
    at = table.column("time").cast(pa.timestamp("us", "UTC")).cast(_TIME)
    if contract.time in rows.column_names and rows.column(contract.time).type == _TIME:
        at = pc.coalesce(rows.column(contract.time), at)  # an unknown time is that of the answer
    notes = table.select([*_NOTES]).to_pandas().assign(at=at.to_numpy())
    return notes, rows.append_column(SCORE, table.column(SCORE))


def _parsed(content: bytes, path: str, types: dict[str, pa.DataType]) -> pa.Table:
    """Return the whole lines of a segment, with its own types where they are not the contract's."""
    text = {name: pa.string() if kind == _TIME else kind for name, kind in types.items()}
    schema = pa.schema([*_KEPT, ("columns", pa.struct(text))])
    whole = content[: content.rfind(b"\n") + 1]
    if not whole:
        return schema.empty_table()
    for form in (pj.ParseOptions(explicit_schema=schema), None):
        with suppress(pa.ArrowInvalid):
            return pj.read_json(io.BytesIO(whole), pj.ReadOptions(block_size=len(whole)), form)
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: no JSON ({error}); take out the line") from error
    raise UserError(f"{path}: a column has several types; no release writes that")


def read_labels(
    project: Project, since: dt.date, as_of: dt.date
) -> tuple[pd.DataFrame, list[Check]]:
    """Return what came true, each key once and hashed as in the log, and what is wrong with it."""
    contract, names = project.contract, [*project.contract.key, project.contract.target]
    none, labels = pd.DataFrame(columns=names), "labels"
    if not hasattr(user_module("sources"), labels):
        said = "sources.py has no `labels(since, as_of)`: performance is not judged"
        return none, [Check(name=labels, outcome=Outcome.WARN, sentence=said)]
    wanted = contract.model_copy(update={"columns": {n: contract.columns[n] for n in names}})
    try:
        frame = ask_source(labels, since, as_of)
    except (UserError, ValueError, LookupError) as error:  # such as an answer cut short
        said = str(error) if isinstance(error, UserError) else f"sources.labels: {error!r}"
        return none, [Check(name=labels, outcome=Outcome.INCONCLUSIVE, sentence=said)]
    if isinstance(frame, pd.DataFrame) and {*names} <= {*frame} and not len(frame):
        return none, []  # whose types a source may not know
    try:
        found = check_structure(pa.Table.from_pandas(frame, preserve_index=False), wanted)[:2]
    except (ValueError, TypeError, AttributeError) as error:
        found = [judge_rule("types", [f"no table of {', '.join(names)} ({error})"])]
    checks = [check.model_copy(update={"name": f"label {check.name}"}) for check in found]
    if any(check.outcome is not Outcome.PASS for check in checks):
        return none, checks
    frame = frame[names].dropna(subset=[contract.target]).drop_duplicates()
    for name in {*contract.key}.intersection(project.delivery.log.hashed):
        key = log_key(project.delivery.log)
        frame[name] = [keyed_hash(value, key) for value in frame[name]]
    twice = frame.duplicated(contract.key, keep=False)
    for first in frame[twice][contract.key][:1].astype(str).to_numpy().tolist():
        said = f"{twice.sum()} labels contradict each other and do not count: {', '.join(first)}"
        checks.append(Check(name="label conflicts", outcome=Outcome.WARN, sentence=said))
    return frame[~twice], checks


def join_labels(contract: DataContract, rows: pa.Table, labels: pd.DataFrame) -> tuple[Floats, int]:
    """Return what came true of each row, 0, 1 or not-a-number, and how many labels are of none."""
    try:
        joined = rows.select(contract.key).to_pandas().merge(labels, how="left", on=contract.key)
    except (KeyError, ValueError):  # the key is not as the contract says, which other checks tell
        return np.full(len(rows), np.nan), len(labels)
    truth = joined[contract.target].astype(float).to_numpy()
    known = joined[np.isfinite(truth)].drop_duplicates(contract.key)
    return truth, len(labels) - len(known)
