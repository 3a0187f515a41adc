"""The gate `data`: the contract, the scale of numbers, and Deepchecks' two suites.

Schema skew (the contract, new categories, mixed types) stops. Value skew, a drift beyond the
spread between the training span's own months, is a reason to train again.
"""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model_delivery.contract.check import Finding, check_content, check_structure
from model_delivery.files import sha256_bytes
from model_delivery.gates.deepchecks import data_checks
from model_delivery.gates.judge import fixed, judge, limits_of, make_verdict
from model_delivery.gates.scale import scale_ratio
from model_delivery.project import Project
from model_delivery.report.verdict import Check, Table, Verdict
from model_delivery.training.snapshot import Snapshot, columns_of
from model_delivery.training.split import periods


def check_data(project: Project, snapshot: Snapshot, deep: bool = True) -> Verdict:
    """Judge a snapshot.

    Parameters
    ----------
    deep
        Whether Deepchecks runs too, when the contract's own checks are kept; broken data
        would only make it crash.
    """
    started = time.perf_counter()
    train, test = pq.read_table(snapshot.train_path), pq.read_table(snapshot.test_path)
    checks = contract_checks(project, snapshot, train, test)
    tables: list[Table] = [_rows_table(snapshot)]
    if deep and all(check.outcome.value == "pass" for check in checks):
        more, drift = data_checks(project, snapshot)
        checks, tables = checks + more, tables + drift
    subject = sha256_bytes(snapshot.name.encode())
    return make_verdict("data", subject, limits_of(project, "data"), checks, started, tables)


def refused(project: Project, findings: list[Finding]) -> Verdict:
    """Return the verdict on an extraction whose structure is broken."""
    limits = limits_of(project, "data")
    checks = [_as_check(finding) for finding in findings]
    return make_verdict("data", sha256_bytes(b"refused"), limits, checks, time.perf_counter())


def contract_checks(
    project: Project, snapshot: Snapshot, train: pa.Table, test: pa.Table
) -> list[Check]:
    """Return the checks of the data contract over all rows, without Deepchecks."""
    contract, limits = project.contract, project.gates.data
    for part in (train, test):
        findings = check_structure(part, contract)
        if any(finding.breaches for finding in findings):
            return [_as_check(finding) for finding in findings]
    findings += check_content(pa.concat_tables([train, test]), contract)
    checks = [_as_check(finding) for finding in findings]
    checks += [_excluded(project, snapshot), _scale(project, train, test)]
    sentence = f"{train.num_rows:,} rows to train on"
    return [*checks, judge("rows", limits.rows, train.num_rows, sentence)]


def _as_check(finding: Finding) -> Check:
    return fixed(finding.rule, not finding.breaches, finding.sentence, finding.value)


def _excluded(project: Project, snapshot: Snapshot) -> Check:
    extracted = snapshot.manifest["rows"]["extracted"]
    shares = {rule: n / extracted for rule, n in snapshot.manifest["excluded"].items()}
    rules = project.contract.exclude
    beyond = [rule for rule, share in shares.items() if share > rules[rule].most]
    said = [
        f"{rule} {share:.2%} (at most {rules[rule].most:.2%})" for rule, share in shares.items()
    ]
    sentence = "rows taken out by rule: " + (", ".join(said) or "none")
    return fixed("exclusions", not beyond, sentence, max(shares.values(), default=0.0))


def _scale(project: Project, train: pa.Table, test: pa.Table) -> Check:
    contract = project.contract
    times = train.column(contract.time).to_numpy()
    names = contract.of_type("number")
    columns, later = columns_of(train.select(names)), columns_of(test.select(names))
    spans = [(times >= start) & (times < end) for _, start, end in periods(times)]
    parts = [{name: columns[name][span] for name in names} for span in spans if np.any(span)]
    ratios = scale_ratio(parts, later)
    # What cannot be compared is not-a-number, and ranks above every ratio: never a pass.
    worst = max(ratios, key=lambda name: np.nan_to_num(ratios[name], nan=np.inf), default=None)
    value = ratios[worst] if worst else 1.0
    sentence = f"`{worst}` is {value:.2f} times off the width or the grid of the training months"
    return judge("scale", project.gates.data.scale, value, sentence)


def _rows_table(snapshot: Snapshot) -> Table:
    manifest = snapshot.manifest
    rows = [
        [part, f"{manifest['rows'][part]:,}", *manifest["spans"][part]]
        for part in ("train", "test")
    ]
    rows += [[f"excluded: {rule}", f"{n:,}", "", ""] for rule, n in manifest["excluded"].items()]
    return Table(title="Rows", columns=["part", "rows", "from", "to"], rows=rows)
