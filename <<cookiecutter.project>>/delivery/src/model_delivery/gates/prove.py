"""Prove that gates can fail: break the current data in known ways and see them turn red.

Only rows and scores are broken, in memory, and judged by the user's own contract and limits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model_delivery.bundle.candidate import Candidate
from model_delivery.contract.data import DataContract
from model_delivery.gates.data import contract_checks
from model_delivery.gates.judge import limits_of, make_verdict
from model_delivery.gates.model import Scored, read_scored, score_checks
from model_delivery.project import Project
from model_delivery.report.verdict import Check, Outcome, Verdict, worst
from model_delivery.training.snapshot import Snapshot

SHARE = 0.2
Change = Callable[[Any], Any]
"""From a column as pandas Series to the broken one."""


def prove(project: Project, snapshot: Snapshot, candidate: Candidate | None) -> Verdict:
    """Return a verdict with one check a defect: it passes where a gate noticed the defect."""
    started = time.perf_counter()
    train, test = pq.read_table(snapshot.train_path), pq.read_table(snapshot.test_path)
    checks = [
        _noticed(f"data: {name}", contract_checks(project, snapshot, train, broken))
        for name, broken in table_defects(test, project.contract)
    ]
    if candidate:
        scored = read_scored(project, candidate, None)
        checks += [
            _noticed(f"model: {name}", score_checks(project, candidate, spoilt)[0])
            for name, spoilt in score_defects(scored, project.contract)
        ]
    limits = [*limits_of(project, "data"), *limits_of(project, "model")]
    subject = candidate.digest if candidate else snapshot.name
    return make_verdict("prove", subject, limits, checks, started)


def table_defects(table: pa.Table, contract: DataContract) -> list[tuple[str, pa.Table]]:
    """Return broken copies of a table, each with what is wrong with it."""
    fifth = np.arange(table.num_rows) % round(1 / SHARE) == 0
    some: dict[str, tuple[list[str], Change]] = {
        "became text": (contract.of_type("number", "integer"), lambda x: x.astype(str)),
        "is in another unit (times 1.8)": (contract.of_type("number"), lambda x: x * 1.8),
        "is infinite in a fifth of rows": (
            contract.of_type("number"),
            lambda x: x.mask(fifth, np.inf),
        ),
        "has a new value in a fifth of rows": (
            contract.of_type("category"),
            lambda x: x.mask(fifth, "never seen"),
        ),
        "is missing in a fifth of rows": (
            [
                n
                for n in contract.of_type("number", "category")
                if contract.columns[n].missing < 0.1
            ],
            lambda x: x.mask(fifth, None),
        ),
        "has no label in a fifth of rows": (
            [contract.target],
            lambda x: x.astype("boolean").mask(fifth),
        ),
    }
    first = next(iter(contract.inputs))
    broken = [
        (f"`{first}` is renamed", table.rename_columns({first: f"{first}_new"})),
        ("a column is added", table.append_column("surprise", pa.nulls(table.num_rows))),
        ("a row stands twice", pa.concat_tables([table, table.slice(0, 1)])),
    ]
    for what, (names, change) in some.items():
        for name in names[:1]:
            column = pa.Array.from_pandas(change(table.column(name).to_pandas()))
            place = table.column_names.index(name)
            broken.append((f"`{name}` {what}", table.set_column(place, name, column)))
    return broken


def score_defects(scored: Scored, contract: DataContract) -> list[tuple[str, Scored]]:
    """Return spoilt copies of scores, each with what is wrong with them."""
    random, scores = np.random.default_rng(0), scored.scores
    shuffled = random.permutation(scores)
    spoilt = {
        "every score is the mean": np.full_like(scores, scores.mean()),
        "60 % of scores are exchanged": np.where(
            random.random(len(scores)) < 0.6, shuffled, scores
        ),
        "scores are cubed: ranks kept, frequencies lost": scores**3,
    }
    for column in contract.segments[:1]:
        values = scored.table.column(column).to_numpy()
        names, counts = np.unique(values, return_counts=True)
        largest = names[np.argmax(counts)]
        worse = np.where(values == largest, shuffled, scores)
        spoilt[f"scores of {column} {largest} are exchanged"] = worse
    return [(name, replace(scored, scores=broken)) for name, broken in spoilt.items()]


def _noticed(name: str, checks: list[Check]) -> Check:
    red = [check.name for check in checks if check.outcome is not Outcome.PASS]
    if not red:
        sentence = "no check noticed it; look at the limits"
        return Check(name=name, outcome=Outcome.STOP, sentence=sentence, value="unnoticed")
    outcome = worst([check.outcome for check in checks])
    sentence = f"{outcome} by {', '.join(red)}"
    return Check(name=name, outcome=Outcome.PASS, sentence=sentence, value=str(outcome))
