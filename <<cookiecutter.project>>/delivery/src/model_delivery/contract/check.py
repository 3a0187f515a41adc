"""A table against the data contract: vectorised, and precise about column, row and value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model_delivery.contract.data import Column, DataContract

_TYPE_TESTS = {
    "number": pa.types.is_floating,
    "integer": pa.types.is_integer,
    "boolean": pa.types.is_boolean,
    "timestamp": pa.types.is_timestamp,
    "category": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
}


@dataclass(frozen=True)
class Finding:
    """What one rule of the contract found in a table."""

    rule: str
    breaches: list[str]
    kept: str
    value: float
    limit: str

    @property
    def sentence(self) -> str:
        """What is wrong and where, or what holds."""
        more = len(self.breaches) - 3
        shown = "; ".join(self.breaches[:3]) + (f"; and {more} more" if more > 0 else "")
        return shown or self.kept


def check_structure(table: pa.Table, contract: DataContract) -> list[Finding]:
    """Return what is wrong with columns and types: without these no row can be read at all."""
    have, want = set(table.column_names), set(contract.columns)
    strange = [f"column `{name}` is missing" for name in contract.columns if name not in have]
    strange += [f"column `{name}` is unexpected" for name in table.column_names if name not in want]
    retyped = [
        f"column `{name}` is {table.schema.field(name).type}, not a {spec.type}"
        for name, spec in contract.columns.items()
        if name in have and not _TYPE_TESTS[spec.type](table.schema.field(name).type)
    ]
    empty = [] if table.num_rows else ["the table has no rows"]
    return [
        Finding("columns", strange, f"{len(want)} columns as agreed", len(strange), "= 0"),
        Finding("types", retyped, "every column has its type", len(retyped), "= 0"),
        Finding("empty", empty, f"{table.num_rows:,} rows", len(empty), "= 0"),
    ]


def check_content(table: pa.Table, contract: DataContract) -> list[Finding]:
    """Return what is wrong with values: missing, outside their domain, or a key twice.

    `table` must have passed `check_structure`.
    """
    missing: list[str] = []
    outside: list[str] = []
    worst_missing = worst_outside = 0.0
    for name, spec in contract.columns.items():
        column = table.column(name).combine_chunks()
        absent = _absent(column)
        share = float(np.mean(absent))
        if share > spec.missing:
            where = _where(table, contract, int(np.argmax(absent)))
            missing.append(f"`{name}`: {share:.2%} missing, at most {spec.missing:.2%} ({where})")
        worst_missing = max(worst_missing, share - spec.missing)
        wrong = _outside(column, spec) & ~absent
        share = float(np.mean(wrong))
        if share > spec.outside:
            row = int(np.argmax(wrong))
            value = column[row].as_py()
            where = _where(table, contract, row)
            outside.append(f"`{name}`: {share:.2%} outside its domain, e.g. {value!r} ({where})")
        worst_outside = max(worst_outside, share - spec.outside)
    return [
        Finding("missing", missing, "no column misses too many", max(worst_missing, 0.0), "= 0"),
        Finding("domain", outside, "values lie in their domain", max(worst_outside, 0.0), "= 0"),
        _duplicates(table, contract),
    ]


def _absent(column: pa.Array) -> Any:
    absent = pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
    return absent.to_numpy(zero_copy_only=False)


def _outside(column: pa.Array, spec: Column) -> Any:
    """Return which values lie outside the domain; infinity always does."""
    if spec.type in ("number", "integer"):
        values = column.to_numpy(zero_copy_only=False).astype(float)
        low = -np.finfo(float).max if spec.min is None else spec.min
        high = np.finfo(float).max if spec.max is None else spec.max
        return (values < low) | (values > high)
    if spec.type == "category":
        encoded = column.dictionary_encode()
        words = encoded.dictionary
        if spec.values is not None:
            good = pc.is_in(words, pa.array(spec.values, words.type))
        else:
            good = pc.match_substring_regex(words, f"^(?:{spec.pattern})$")
        bad = ~good.to_numpy(zero_copy_only=False)
        codes = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
        return bad[codes] if len(bad) else np.zeros(len(column), bool)
    return np.zeros(len(column), bool)


def _duplicates(table: pa.Table, contract: DataContract) -> Finding:
    keys = table.select(contract.key)
    counted = keys.append_column("_row", pa.array(range(table.num_rows)))
    groups = counted.group_by(contract.key).aggregate([("_row", "count"), ("_row", "max")])
    twice = groups.filter(pc.greater(groups["_row_count"], 1))
    extra = int(pc.sum(twice["_row_count"]).as_py() or 0) - twice.num_rows
    breaches = []
    if extra:
        where = _where(table, contract, twice["_row_max"][0].as_py())
        breaches = [f"{extra:,} rows repeat the key {', '.join(contract.key)} ({where})"]
    kept = f"the key {', '.join(contract.key)} is unique"
    return Finding("key", breaches, kept, extra, "= 0")


def _where(table: pa.Table, contract: DataContract, row: int) -> str:
    """Name a row by its number, counted from 1, and its key."""
    key = ", ".join(str(table.column(name)[row].as_py()) for name in contract.key)
    return f"row {row + 1}: {key}"
