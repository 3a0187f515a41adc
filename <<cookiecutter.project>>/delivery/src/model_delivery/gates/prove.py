"""Prove that the gate `data` can fail: break its rows in known ways, and see it turn red.

Rows are broken in memory only, and judged by the user's own contract and limits.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from model_delivery.contract.settings import DataContract
from model_delivery.gates.data import contract_checks
from model_delivery.project import Project
from model_delivery.report.verdict import Check, Outcome, Verdict, fixed
from model_delivery.training.snapshot import Snapshot


def prove(project: Project, snapshot: Snapshot) -> Verdict:
    """Return a verdict with one check a defect: it passes where a check noticed the defect."""
    checks, blocking = list[Check](), (Outcome.STOP, Outcome.RETRAIN, Outcome.INCONCLUSIVE)
    train, test = snapshot.rows("train"), snapshot.rows("test")
    already = contract_checks(project, snapshot, train, test)
    for name, broken in defects(test, project.contract).items():
        found = contract_checks(project, snapshot, train, broken)
        pairs = [(one.name, one.outcome) for one in found if one not in already]
        red = [f"{name} ({outcome})" for name, outcome in pairs if outcome in blocking]
        said = f"noticed by {', '.join(red)}" if red else "no check noticed it; look at the limits"
        checks.append(fixed(name, bool(red), said))
    return Verdict(gate="prove", checks=checks)


def defects(table: pa.Table, contract: DataContract) -> dict[str, pa.Table]:
    """Return broken copies of a table by what is wrong with them."""
    frame, fifth = table.to_pandas(), np.arange(table.num_rows) % 5 == 0
    numbers, words = contract.of_type("number"), contract.of_type("category")
    required = [name for name in [*words, *numbers] if not contract.columns[name].missing]
    target, first, often = [contract.target], next(iter(contract.inputs)), "in a fifth of rows"
    changes: list[tuple[list[str], str, Callable[[Any], Any]]] = [
        (numbers, "became text", lambda x: x.astype(str)),
        (numbers, "is in another unit (times 1.8)", lambda x: x * 1.8),
        (numbers, f"is infinite {often}", lambda x: x.mask(fifth, np.inf)),
        (words, "became a number", lambda x: x.str.len()),
        (words, f"has a new value {often}", lambda x: x.mask(fifth, "never seen")),
        (required, f"is missing {often}", lambda x: x.mask(fifth, None)),
        (target, f"is missing {often}", lambda x: x.astype("boolean").mask(fifth)),
    ]
    broken = {
        f"`{first}` is not there": table.drop_columns(first),
        f"`{first}` is renamed": table.rename_columns({first: f"{first}_new"}),
        "a column is added": table.append_column("surprise", pa.nulls(table.num_rows)),
        "a row stands twice": pa.concat_tables([table, table.slice(0, 1)]),
        "no row is left": table.slice(0, 0),
    }
    for names, what, change in changes:
        for name in names[:1]:
            column = pa.Array.from_pandas(change(frame[name]))
            place = table.column_names.index(name)
            broken[f"`{name}` {what}"] = table.set_column(place, name, column)
    return broken
