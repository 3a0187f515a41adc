"""A table against the data contract: vectorised, and precise about column, row and value."""

from bisect import bisect_left
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model_delivery.contract.settings import Column, DataContract, Kind
from model_delivery.protocols import UserError
from model_delivery.report.verdict import Check, fixed

TYPE_TESTS = {
    "number": pa.types.is_floating,
    "integer": pa.types.is_integer,
    "boolean": pa.types.is_boolean,
    "timestamp": lambda kind: pa.types.is_timestamp(kind) and kind.tz is None,
    "category": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
}
ARROW = {"number": pa.float64(), "integer": pa.int64(), "boolean": pa.bool_()}
ARROW |= {"category": pa.string(), "timestamp": pa.timestamp("s")}  # whole ones
SERVED = ARROW | {"timestamp": pa.timestamp("us")}  # as a service gives columns to features
_DOMAIN = ("min", "max", "values", "pattern")
_MAKES = {  # by type, what pandas does
    "number": '`.astype("float64")` makes it that',
    "integer": '`.astype("Int64")` makes it that; with gaps it is a number, a text a category',
    "boolean": '`.astype("boolean")` makes it that',
    "category": '`.astype("string")` makes it that, `dtype="string"` where it is read keeps zeros',
    "timestamp": "`pd.to_datetime`, then without a zone, makes it that",
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
        f"column `{name}` is {own}, not of type {kind}; {_MAKES[kind]}"
        for name, own in ((field.name, _plain(field.type)) for field in table.schema)
        if name in want and not TYPE_TESTS[kind := want[name].type](own)
    ]
    return [
        judge_rule("columns", strange, f"{len(want)} columns as agreed"),
        judge_rule("types", retyped, "every column has its type"),
        judge_rule("empty", [] if len(table) else ["no rows: see `as_of`"], f"{len(table):,} rows"),
    ]


def check_content(table: pa.Table, contract: DataContract, slack: float = 0.0) -> list[Check]:
    """Judge values, after `check_structure`: missing, outside their domain, or a key twice.

    `slack` is added to the shares of rows that may miss a value or leave the domain.
    """
    breaches: dict[str, list[str]] = {"missing": [], "outside": []}
    for name, spec in contract.columns.items():
        column = table.column(name).combine_chunks()
        absent = pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False)
        found = {"missing": absent, "outside": outside(column, spec) & ~absent}
        for word, marked in found.items():
            share, row = float(np.mean(marked)), int(np.argmax(marked))
            if share > (most := getattr(spec, word) + slack):
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


def check_rows(
    rows: pa.RecordBatch, request: Mapping[str, Any], before: int, text: bool = False
) -> dict[str, pa.Array]:
    """Return the columns of a request in a snapshot's types, if it may hold each of these rows.

    Else a UserError names the first wrong row, by its number from 1 after those `before`, with
    column and value. A `text` is read as what its column is. Not-a-number is missing.
    """
    columns, wrong = dict[str, pa.Array](), list[tuple[int, str]]()
    for name, asked in request.items():
        domain = {key: value for key, value in asked.items() if key in ("type", *_DOMAIN)}
        spec = Column.model_validate(domain)
        columns[name] = values = readable(rows.column(name), spec.type, text)
        absent = pc.is_null(values).to_numpy(zero_copy_only=False)
        bad = absent & (not asked["missing"]) | outside(values, spec) & ~absent
        first = int(np.argmax(bad)) if bad.any() else len(values)
        wrong += [(first, name)] if first < len(rows) else []
    if wrong:
        row, name = min(wrong, key=lambda found: found[0])
        asked, value = request[name], repr(rows.column(name)[row].as_py())
        value = "hidden here" if asked.get("hidden") else value
        bounds = "".join(f", {key} {asked[key]}" for key in _DOMAIN if key in asked)
        need = f"{'' if asked['missing'] else 'required, '}{asked['type']}{bounds}"
        raise UserError(f"row {before + row + 1}: `{name}` is {value}, but must be {need:.300}")
    return columns


def readable(column: pa.Array, kind: Kind, text: bool = False) -> pa.Array:
    """Return a column's values as a service has them, before the first that is not of this kind.

    Mostly these are all; a time with a part of a second is no such value.
    """
    own = _plain(column.type)
    whole = kind == "number" and pa.types.is_integer(own)
    if not (text or whole or pa.types.is_null(own) or TYPE_TESTS[kind](own)):
        return pa.nulls(0, ARROW[kind])

    def cast(length: int) -> Any:
        with suppress(pa.ArrowInvalid):
            return column[:length].cast(ARROW[kind], safe=kind != "number")

    values, lengths = cast(len(column)), range(1, len(column) + 1)
    if values is None:
        values = cast(bisect_left(lengths, True, key=lambda length: cast(length) is None))
    if kind == "number":
        return pa.array(values.to_numpy(zero_copy_only=False), from_pandas=True)
    return values.cast("timestamp[us]") if kind == "timestamp" else values


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values, also of a categorical's."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def outside(column: pa.Array, spec: Column) -> Any:
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
