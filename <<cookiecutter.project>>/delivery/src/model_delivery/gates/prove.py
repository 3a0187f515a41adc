"""Prove that gates can fail: break the current data in known ways and see them turn red.

Only rows and scores are broken, in memory, and judged by the user's own contract and limits.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model_delivery.bundle.candidate import Candidate
from model_delivery.contract.settings import DataContract
from model_delivery.gates import fixed, make_verdict
from model_delivery.gates.data import contract_checks
from model_delivery.gates.model import Scored, read_scored, score_checks
from model_delivery.project import Project
from model_delivery.report.verdict import Check, Outcome, Verdict
from model_delivery.training.snapshot import Snapshot


def prove(project: Project, snapshot: Snapshot, candidate: Candidate | None) -> Verdict:
    """Return a verdict with one check a defect: it passes where a gate noticed the defect."""
    started, contract = time.perf_counter(), project.contract
    train, test = pq.read_table(snapshot.train_path), pq.read_table(snapshot.test_path)
    checks = [
        _noticed(f"data: {name}", contract_checks(project, snapshot, train, broken))
        for name, broken in table_defects(test, contract).items()
    ]
    if candidate:
        scored = read_scored(project, candidate, None)
        checks += [
            _noticed(f"model: {name}", score_checks(project, candidate, spoilt)[0])
            for name, spoilt in score_defects(scored, contract).items()
        ]
    subject = candidate.digest if candidate else snapshot.name
    return make_verdict(project, "prove", subject, checks, started)


def table_defects(table: pa.Table, contract: DataContract) -> dict[str, pa.Table]:
    """Return broken copies of a table by what is wrong with them."""
    frame, fifth = table.to_pandas(), np.arange(table.num_rows) % 5 == 0
    numbers, words = contract.of_type("number"), contract.of_type("category")
    required = [name for name in [*words, *numbers] if not contract.columns[name].missing]
    target, first = contract.target, next(iter(contract.inputs))
    often = "in a fifth of rows"
    changes: list[tuple[list[str], str, Callable[[Any], Any]]] = [
        (numbers, "became text", lambda x: x.astype(str)),
        (numbers, "is in another unit (times 1.8)", lambda x: x * 1.8),
        (numbers, f"is infinite {often}", lambda x: x.mask(fifth, np.inf)),
        (words, f"has a new value {often}", lambda x: x.mask(fifth, "never seen")),
        (required, f"is missing {often}", lambda x: x.mask(fifth, None)),
        ([target], f"is missing {often}", lambda x: x.astype("boolean").mask(fifth)),
    ]
    broken = {
        f"`{first}` is renamed": table.rename_columns({first: f"{first}_new"}),
        "a column is added": table.append_column("surprise", pa.nulls(table.num_rows)),
        "a row stands twice": pa.concat_tables([table, table.slice(0, 1)]),
    }
    for names, what, change in changes:
        for name in names[:1]:
            column = pa.Array.from_pandas(change(frame[name]))
            place = table.column_names.index(name)
            broken[f"`{name}` {what}"] = table.set_column(place, name, column)
    return broken


def score_defects(scored: Scored, contract: DataContract) -> dict[str, Scored]:
    """Return spoilt copies of scores by what is wrong with them."""
    random, scores = np.random.default_rng(0), scored.scores
    shuffled, most = random.permutation(scores), random.random(len(scores)) < 0.6
    spoilt = {
        "every score is the mean": np.full_like(scores, scores.mean()),
        "60 % of scores are exchanged": np.where(most, shuffled, scores),
        "scores are cubed: ranks kept, frequencies lost": scores**3,
    }
    for column in contract.segments[:1]:
        values = scored.table.column(column).to_numpy()
        names, counts = np.unique(values, return_counts=True)
        largest = names[np.argmax(counts)]
        worse = np.where(values == largest, shuffled, scores)
        spoilt[f"scores of {column} {largest} are exchanged"] = worse
    return {name: replace(scored, scores=broken) for name, broken in spoilt.items()}


def _noticed(name: str, checks: list[Check]) -> Check:
    red = [f"{check.name} ({check.outcome})" for check in checks if check.outcome != Outcome.PASS]
    said = f"noticed by {', '.join(red)}" if red else "no check noticed it; look at the limits"
    return fixed(name, bool(red), said)
