"""Prove that gates can fail: break the current data in known ways and see them turn red.

Only rows and scores are broken, in memory, and judged by the user's own contract and limits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model_delivery.bundle.candidate import Candidate
from model_delivery.contract.data import DataContract
from model_delivery.gates.data import contract_checks
from model_delivery.gates.judge import make_verdict
from model_delivery.gates.model import Scored, read_scored, score_checks
from model_delivery.project import Project
from model_delivery.report.verdict import Check, Outcome, Verdict, worst
from model_delivery.training.snapshot import Snapshot

UNIT = 1.8
SHARE = 0.2
TableDefect = Callable[[pa.Table, DataContract], tuple[pa.Table, str] | None]
ScoreDefect = Callable[[Scored, DataContract], tuple[Scored, str] | None]


def prove(project: Project, snapshot: Snapshot, candidate: Candidate | None) -> Verdict:
    """Return a verdict with one check a defect: it passes where the defect was found.

    A defect that the contract gives no place for, such as a new category where there is no
    closed list, is left out.
    """
    started = time.perf_counter()
    train, test = pq.read_table(snapshot.train_path), pq.read_table(snapshot.test_path)
    checks = []
    for name, defect in TABLE_DEFECTS.items():
        broken = defect(test, project.contract)
        if broken:
            found = contract_checks(project, snapshot, train, broken[0])
            checks.append(_found(f"data: {name}", broken[1], found))
    if candidate:
        scored = read_scored(project, candidate, None)
        for name, spoil in SCORE_DEFECTS.items():
            spoilt = spoil(scored, project.contract)
            if spoilt:
                found = score_checks(project, candidate, spoilt[0])[0]
                checks.append(_found(f"model: {name}", spoilt[1], found))
    limits = [project.gates.data, project.gates.model]
    subject = candidate.digest if candidate else snapshot.name
    return make_verdict("prove", subject, limits, checks, started)


def _found(name: str, what: str, checks: list[Check]) -> Check:
    outcome = worst([check.outcome for check in checks])
    red = [check for check in checks if check.outcome is not Outcome.PASS]
    if not red:
        sentence = f"{what}: no check noticed; look at its limits"
        return Check(name=name, outcome=Outcome.STOP, sentence=sentence, value="unnoticed")
    sentence = f"{what}: {outcome} by {', '.join(check.name for check in red)}"
    return Check(name=name, outcome=Outcome.PASS, sentence=sentence, value=str(outcome))


def _set(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def _some(table: pa.Table) -> pa.Array:
    """Mark every fifth row."""
    return pa.array(np.arange(table.num_rows) % round(1 / SHARE) == 0)


def _renamed(table: pa.Table, contract: DataContract) -> tuple[pa.Table, str]:
    name = next(iter(contract.inputs))
    return table.rename_columns({name: f"{name}_new"}), f"column `{name}` renamed"


def _retyped(table: pa.Table, contract: DataContract) -> tuple[pa.Table, str] | None:
    for name in contract.of_type("number", "integer"):
        return _set(table, name, table.column(name).cast(pa.string())), f"`{name}` became text"
    return None


def _other_unit(table: pa.Table, contract: DataContract) -> tuple[pa.Table, str] | None:
    for name in contract.of_type("number"):
        changed = pc.multiply(table.column(name), UNIT)
        return _set(table, name, changed), f"`{name}` multiplied by {UNIT}"
    return None


def _out_of_range(table: pa.Table, contract: DataContract) -> tuple[pa.Table, str] | None:
    for name in contract.of_type("number"):
        wild = pc.if_else(_some(table), pa.scalar(float("inf")), table.column(name))
        return _set(table, name, wild), f"`{name}` infinite in {SHARE:.0%} of rows"
    return None


def _new_category(table: pa.Table, contract: DataContract) -> tuple[pa.Table, str] | None:
    for name in contract.of_type("category"):
        strange = pc.if_else(_some(table), pa.scalar("never seen"), table.column(name))
        return _set(table, name, strange), f"`{name}` has a new value in {SHARE:.0%} of rows"
    return None


def _missing(table: pa.Table, contract: DataContract) -> tuple[pa.Table, str] | None:
    for name in contract.of_type("number", "category"):
        if contract.columns[name].missing < SHARE / 2:
            kind = table.schema.field(name).type
            holes = pc.if_else(_some(table), pa.scalar(None, kind), table.column(name))
            return _set(table, name, holes), f"`{name}` missing in {SHARE:.0%} of rows"
    return None


def _no_label(table: pa.Table, contract: DataContract) -> tuple[pa.Table, str]:
    target = contract.target
    holes = pc.if_else(_some(table), pa.scalar(None, pa.bool_()), table.column(target))
    return _set(table, target, holes), f"`{target}` missing in {SHARE:.0%} of rows"


def _twice(table: pa.Table, contract: DataContract) -> tuple[pa.Table, str]:
    return pa.concat_tables([table, table.slice(0, 1)]), "one row stands twice"


def _unexpected(table: pa.Table, contract: DataContract) -> tuple[pa.Table, str]:
    extra = table.append_column("surprise", pa.nulls(table.num_rows, pa.string()))
    return extra, "a column `surprise` added"


def _constant(scored: Scored, contract: DataContract) -> tuple[Scored, str]:
    same = np.full_like(scored.scores, scored.scores.mean())
    return replace(scored, scores=same), "every score is the mean score"


def _worse(scored: Scored, contract: DataContract) -> tuple[Scored, str]:
    random = np.random.default_rng(0)
    mixed = np.where(
        random.random(len(scored.scores)) < 0.6, random.permutation(scored.scores), scored.scores
    )
    return replace(scored, scores=mixed), "60 % of scores exchanged at random"


def _overconfident(scored: Scored, contract: DataContract) -> tuple[Scored, str]:
    return replace(scored, scores=scored.scores**3), "scores cubed: ranks kept, frequencies lost"


def _worse_segment(scored: Scored, contract: DataContract) -> tuple[Scored, str] | None:
    for column in contract.segments:
        values = scored.table.column(column).to_numpy()
        names, counts = np.unique(values, return_counts=True)
        rows = values == names[np.argmax(counts)]
        spoilt = scored.scores.copy()
        spoilt[rows] = np.random.default_rng(0).permutation(spoilt[rows])
        said = f"scores of {column} {names[np.argmax(counts)]} exchanged at random"
        return replace(scored, scores=spoilt), said
    return None


TABLE_DEFECTS: dict[str, TableDefect] = {
    "renamed column": _renamed,
    "unexpected column": _unexpected,
    "retyped column": _retyped,
    "other unit": _other_unit,
    "infinity": _out_of_range,
    "new category": _new_category,
    "missing values": _missing,
    "missing labels": _no_label,
    "duplicate key": _twice,
}
SCORE_DEFECTS: dict[str, ScoreDefect] = {
    "constant model": _constant,
    "worse model": _worse,
    "overconfident model": _overconfident,
    "worse segment": _worse_segment,
}
