"""A table against the data contract: vectorised, and precise about column, row and value."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model_delivery.contract.settings import Column, DataContract
from model_delivery.report.verdict import Check, fixed

_TYPE_TESTS = {
    "number": pa.types.is_floating,
    "integer": pa.types.is_integer,
    "boolean": pa.types.is_boolean,
    "timestamp": lambda kind: pa.types.is_timestamp(kind) and kind.tz is None,
    "category": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
}


def judge_rule(name: str, breaches: list[str], kept: str = "") -> Check:
    """Return the check of a rule: it names the first three breaches, or says what holds."""
    return fixed(name, not breaches, "; ".join(breaches[:3]) or kept, len(breaches))


def check_structure(table: pa.Table, contract: DataContract) -> list[Check]:
    """Judge columns and types: without these no row can be read at all."""
    have, want = table.column_names, contract.columns
    strange = [f"column `{name}` is missing" for name in want if name not in have]
    strange += [f"column `{n}` is unexpected: name it, or drop it" for n in have if n not in want]
    retyped = [
        f"column `{field.name}` is {field.type}, not a {want[field.name].type}"
        for field in table.schema
        if field.name in want and not _TYPE_TESTS[want[field.name].type](field.type)
    ]
    return [
        judge_rule("columns", strange, f"{len(want)} columns as agreed"),
        judge_rule("types", retyped, "every column has its type"),
        judge_rule("empty", [] if table.num_rows else ["no rows"], f"{table.num_rows:,} rows"),
    ]


def check_content(table: pa.Table, contract: DataContract) -> list[Check]:
    """Judge values: missing, outside their domain, or a key twice.

    `table` must have passed `check_structure`.
    """
    breaches: dict[str, list[str]] = {"missing": [], "outside": []}
    for name, spec in contract.columns.items():
        column = table.column(name).combine_chunks()
        absent = pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False)
        found = {"missing": absent, "outside": _outside(column, spec) & ~absent}
        for word, marked in found.items():
            share, row, most = float(np.mean(marked)), int(np.argmax(marked)), getattr(spec, word)
            if share > most:
                where = f"{column[row].as_py()!r} in {_where(table, contract, row)}"
                said = f"`{name}`: {share:.2%} {word}, at most {most:.2%}, e.g. {where}"
                breaches[word].append(said)
    key, again = ", ".join(contract.key), table.select(contract.key).to_pandas().duplicated()
    twice = [
        f"the key {key} stands twice, again in {_where(table, contract, row)}"
        for row in np.flatnonzero(again).tolist()
    ]
    return [
        judge_rule("missing", breaches["missing"], "no column misses too many values"),
        judge_rule("domain", breaches["outside"], "values lie in their domain"),
        judge_rule("key", twice, f"the key {key} is unique"),
    ]


def _outside(column: pa.Array, spec: Column) -> Any:
    """Return which values lie outside the domain; infinity always does."""
    if spec.type in ("number", "integer"):
        values = column.to_numpy(zero_copy_only=False).astype(float)
        low = -np.inf if spec.min is None else spec.min
        high = np.inf if spec.max is None else spec.max
        return ~np.isfinite(values) | (values < low) | (values > high)
    if spec.type != "category":
        return np.zeros(len(column), bool)
    known = spec.values or []
    if spec.pattern:
        known = [v for v in column.unique().drop_null().to_pylist() if spec.pattern.fullmatch(v)]
    return ~pc.is_in(column, pa.array(known, column.type)).to_numpy(zero_copy_only=False)


def _where(table: pa.Table, contract: DataContract, row: int) -> str:
    """Name a row by its number, counted from 1, and its key."""
    key = ", ".join(str(table.column(name)[row].as_py()) for name in contract.key)
    return f"row {row + 1}: {key}"
