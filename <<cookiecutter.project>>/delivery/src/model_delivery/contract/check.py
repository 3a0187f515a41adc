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
    """What one rule of the contract found in a table: breaches, or what holds instead."""

    rule: str
    breaches: list[str]
    kept: str = ""

    @property
    def value(self) -> float:
        """The number of breaches."""
        return float(len(self.breaches))

    @property
    def sentence(self) -> str:
        """What is wrong and where, or what holds."""
        more = len(self.breaches) - 3
        shown = "; ".join(self.breaches[:3]) + (f"; and {more} more" if more > 0 else "")
        return shown or self.kept


def check_structure(table: pa.Table, contract: DataContract) -> list[Finding]:
    """Return what is wrong with columns and types: without these no row can be read at all."""
    have, want = table.column_names, contract.columns
    strange = [f"column `{name}` is missing" for name in want if name not in have]
    strange += [f"column `{name}` is unexpected" for name in have if name not in want]
    kinds = {name: table.schema.field(name).type for name in want if name in have}
    retyped = [
        f"column `{name}` is {kind}, not a {want[name].type}"
        for name, kind in kinds.items()
        if not _TYPE_TESTS[want[name].type](kind)
    ]
    return [
        Finding("columns", strange, f"{len(want)} columns as agreed"),
        Finding("types", retyped, "every column has its type"),
        Finding("empty", [] if table.num_rows else ["no rows"], f"{table.num_rows:,} rows"),
    ]


def check_content(table: pa.Table, contract: DataContract) -> list[Finding]:
    """Return what is wrong with values: missing, outside their domain, or a key twice.

    `table` must have passed `check_structure`.
    """
    missing: list[str] = []
    outside: list[str] = []
    for name, spec in contract.columns.items():
        column = table.column(name).combine_chunks()
        absent = pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False)
        wrong = _outside(column, spec) & ~absent
        rules = (
            (missing, absent, spec.missing, "missing"),
            (outside, wrong, spec.outside, "outside"),
        )
        for breaches, marked, most, word in rules:
            share, row = float(np.mean(marked)), int(np.argmax(marked))
            if share > most:
                where = f"{column[row].as_py()!r} in {_where(table, contract, row)}"
                breaches.append(f"`{name}`: {share:.2%} {word}, at most {most:.2%}, e.g. {where}")
    return [
        Finding("missing", missing, "no column misses too many values"),
        Finding("domain", outside, "values lie in their domain"),
        _duplicates(table, contract),
    ]


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
    rows = pa.array(range(table.num_rows))
    counted = table.select(contract.key).append_column("_row", rows)
    groups = counted.group_by(contract.key).aggregate([("_row", "count"), ("_row", "max")])
    twice = groups.filter(pc.greater(groups["_row_count"], 1))
    key = ", ".join(contract.key)
    breaches = [
        f"the key {key} stands {count} times, last in {_where(table, contract, row)}"
        for count, row in zip(
            *(twice[n].to_pylist() for n in ("_row_count", "_row_max")), strict=True
        )
    ]
    return Finding("key", breaches, f"the key {key} is unique")


def _where(table: pa.Table, contract: DataContract, row: int) -> str:
    """Name a row by its number, counted from 1, and its key."""
    key = ", ".join(str(table.column(name)[row].as_py()) for name in contract.key)
    return f"row {row + 1}: {key}"
