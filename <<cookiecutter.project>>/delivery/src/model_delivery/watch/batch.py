"""Files of rows, scored by the release that an environment has accepted, with its own features.

Rows are checked as a request's are, by that release's `request.json`. Scores and prediction log
appear when all is done, or not at all, and carry an id that follows from input and release: a run
that was killed is simply run again, and nothing counts twice.
"""

import csv
import datetime as dt
import difflib
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from pyarrow.csv import ConvertOptions, ReadOptions, open_csv

from model_delivery.bundle.launch import Scorer
from model_delivery.files import read_json, sha256_json, temporary_folder
from model_delivery.protocols import UserError
from model_delivery.releases import champion, hosted
from model_delivery.rollout.target import Target
from model_delivery.training.check import check_rows
from model_delivery.watch.log import keyed_hash, log_key, prune

ROWS, BYTES, MOST_WORKERS, ROUND = 16_384, 2_000_000, 4, 4
"""A batch's rows, or bytes of text; processes that score, and each one's batches in memory."""
Batch = tuple[int, pa.RecordBatch]  # with the number of rows before it


@dataclass(frozen=True)
class Run:
    """An input, the release that scores it, and what all records of the log share."""

    target: Target
    source: str
    ship: Path
    request: dict[str, Any]
    about: dict[str, Any]

    def write(self, scores: Path, log: Path, say: Callable[[str], None]) -> int:
        """Write the output and the log, in the input's order; return the number of rows."""
        count, idle = min(os.cpu_count() or 1, MOST_WORKERS), SimpleQueue[Scorer]()
        writers, rows, batches = dict[Path, pq.ParquetWriter](), 0, self.read(say)
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(count))
            for said in (log.with_name(f"scorer-{number}") for number in range(count)):
                idle.put(stack.enter_context(Scorer(self.target.project, self.ship, said)))
            while some := [*islice(batches, ROUND * count)]:
                for tables in pool.map(partial(self.score, idle), some):
                    for path, table in zip((scores, log), tables, strict=True):
                        if path not in writers:
                            writer = pq.ParquetWriter(path, table.schema, write_page_checksum=True)
                            writers[path] = stack.enter_context(writer)
                        writers[path].write_table(table)
                    rows += len(tables[0])
        return rows

    def read(self, say: Callable[[str], None]) -> Iterator[Batch]:
        """Yield batches of the columns that count."""
        names = [*dict.fromkeys([*self.request, *self.target.project.contract.key])]
        with _told(self.source), fsspec.open(self.source, "rb") as stream:
            if text := self.source.endswith(".csv"):
                have = next(csv.reader([stream.readline().decode("utf-8-sig")]), list[str]())
                stream.seek(0)
            else:
                file = pq.ParquetFile(stream)
                have = file.schema_arrow.names
            for name in (name for name in names if have.count(name) != 1):
                near = difflib.get_close_matches(name, {*have} - {name}, n=1)
                hint = f"; is it `{near[0]}`?" if near else f"; it has {', '.join(have)}"
                many = "more than one" if name in have else "no"
                raise UserError(f"{many} column `{name}`{hint:.300}")
            if aside := ", ".join(name or "''" for name in have if name not in names):
                say(f"{self.source}: left aside: {aside}")
            if text:  # read as text, and as numbers where a wrong one can be named
                types = dict.fromkeys(names, pa.string())
                given = {"include_columns": names, "null_values": [""], "strings_can_be_null": True}
                options = ConvertOptions(column_types=types, **given)
                reading = ReadOptions(block_size=BYTES, use_threads=False)
                batches = open_csv(stream, reading, convert_options=options)
            else:
                batches = file.iter_batches(ROWS, columns=names, use_threads=False)
            before = 0
            for batch in filter(len, batches):
                yield before, batch
                before += len(batch)
        if not before:
            raise UserError(f"{self.source}: no rows")

    def score(self, idle: SimpleQueue[Scorer], given: Batch) -> tuple[pa.Table, pa.Table]:
        """Return the rows of the output and of the log."""
        before, batch = given
        text, log = self.source.endswith(".csv"), self.target.project.delivery.log
        with _told(self.source):
            columns, scorer = check_rows(batch, self.request, before, text), idle.get()
        started = perf_counter()
        try:
            scores = scorer.score(columns)
        finally:
            idle.put(scorer)
        rows, ms = len(scores), 1e3 * (perf_counter() - started) / len(scores)
        same = {name: pa.repeat(value, rows) for name, value in (self.about | {"ms": ms}).items()}
        kept = [name for name in columns if name not in log.private]
        keys = {name: log_key(log) for name in log.hashed}
        shown = [_shown(columns[name], keys.get(name, "")) for name in kept]
        found = {"row": np.arange(before, before + rows), "score": scores}
        found["columns"] = pa.StructArray.from_arrays(shown, kept)
        own = {n: columns.get(n, batch.column(n)) for n in self.target.project.contract.key}
        output = {**own, "score": scores, "digest": same["digest"]}
        return pa.table(output), pa.table(same | found)


def predict(target: Target, source: str, goal: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Score the rows of a file; return what was done.

    `source` is parquet or CSV, a path or a URI that fsspec can reach. `goal` gets, in the same
    order, the key's columns, `score` and `digest`, as parquet. A UserError has file, row (the first
    is 1), column and value of the first row that no request may hold, or says what cannot be read
    or written; then there is no output.
    """
    if not source.endswith((".parquet", ".csv")) or not goal.endswith(".parquet"):
        raise UserError(f"{source}, {goal}: rows are in .parquet or .csv, scores go to .parquet")
    if not target.batch and "/batch.yml@" in os.environ.get("GITHUB_WORKFLOW_REF", ""):
        mend = "no schedule scores files for it; unset BATCH_INPUT"
        raise UserError(f"{target.name} is of target `host`: {mend}", 0)
    target.project.check_log()  # a name with a slip would keep nothing private
    log_key(target.project.delivery.log)
    for place in (goal, target.log):
        if hosted() and "://" not in place:
            say(f"{place}: gone with this machine afterwards, unless a step keeps it; name a URI")
    ship, digest = _release(target)
    with _told(source), fsspec.open(source, "rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    now = dt.datetime.now(dt.UTC)
    about = {"id": sha256_json([content, digest])[:32], "digest": digest}
    about["time"] = now.isoformat(timespec="microseconds")
    request, log = read_json(ship / "request.json"), target.project.delivery.log
    for name in {*log.private, *log.hashed} & {*request}:
        request[name]["hidden"] = True  # from whoever reads why a row was refused
    run = Run(target, source, ship, request, about | {"shadow": False})
    with temporary_folder(target.folder / "batches") as folder:
        scores, records = folder / "scores", folder / "log"
        rows = run.write(scores, records, say)
        _publish(records, f"{target.log}/{now.date()}/{about['id']}-0.parquet")
        _publish(scores, goal)  # last: without it, the user runs it again
        with _told(target.log):
            store, root = url_to_fs(target.log)
            prune(store, root, log.keep_days)
    return {"rows": rows, "output": goal, **about}


def _release(target: Target) -> tuple[Path, str]:
    """Return the folder that ships, and the digest, of what the environment accepted last."""
    if current := target.state().current:
        return target.install(current), current.digest
    if accepted := champion(target.project, target.name):  # as on a runner of GitHub's
        return accepted.ship, accepted.digest
    mend = f"run `ml deploy --to {target.name}`"
    raise UserError(f"{target.name}: nothing deployed, so nothing to score by; {mend}")


@contextmanager
def _told(place: str) -> Iterator[None]:
    """Say which file it is that a file system or a reader has an error with."""
    try:
        yield
    except (UserError, OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise UserError(f"{place}: {error}") from error


def _shown(column: pa.Array, key: str) -> pa.Array:
    """Return a column as the log holds it: times as ISO text, with a key hashes for values."""
    if pa.types.is_timestamp(column.type):
        column = pc.binary_replace_slice(column.cast("timestamp[s]").cast("string"), 10, 11, "T")
    if not key:
        return column
    known = column.dictionary_encode()
    words = pa.array([keyed_hash(word, key) for word in known.dictionary.to_pylist()], pa.string())
    return words.take(known.indices)


def _publish(path: Path, uri: str) -> None:
    """Put a whole file in its place, in one step."""
    with _told(uri):
        store, place = url_to_fs(uri)
        store.makedirs(place.rpartition("/")[0], exist_ok=True)
        store.put_file(str(path), f"{place}.part")
        store.mv(f"{place}.part", place)
