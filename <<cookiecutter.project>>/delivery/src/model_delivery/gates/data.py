"""The gate `data`: the contract, the scale of numbers, and Deepchecks' suites.

Schema skew (the contract, new categories) stops. Value skew, a drift beyond the spread between
the training span's own months, is a reason to train again.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from model_delivery.gates import judge, quality
from model_delivery.gates.deepchecks import deepchecks
from model_delivery.project import Project
from model_delivery.protocols import Floats
from model_delivery.report.verdict import Check, Outcome, Table, Verdict, fixed
from model_delivery.training.check import check_content, check_structure
from model_delivery.training.snapshot import Snapshot, periods

DECIMALS = 6
"""Values that agree to so many decimals are the same point of a grid."""
TINY = 0.1
"""Added to both shares of familiar values: a column without a grid gives 1, and none gives 11."""
FEWEST_VALUES = 100
"""A period with fewer finite values does not count."""


def check_data(project: Project, snapshot: Snapshot) -> Verdict:
    """Judge a snapshot; Deepchecks runs where our own checks pass, for broken data crash it."""
    train, test = snapshot.rows("train"), snapshot.rows("test")
    checks, tables = contract_checks(project, snapshot, train, test), list[Table]()
    if all(check.outcome is Outcome.PASS for check in checks):
        found, drift = deepchecks(project, "data", snapshot)
        checks, tables = checks + found, [drift] if drift.rows else []
    return Verdict(gate="data", checks=quality(snapshot.manifest, checks), tables=tables)


def contract_checks(
    project: Project, snapshot: Snapshot, train: pa.Table, test: pa.Table
) -> list[Check]:
    """Return the checks of the data contract over all rows, without Deepchecks."""
    contract, limits = project.contract, project.gates.data
    for part in (train, test):
        checks = check_structure(part, contract)
        if any(check.outcome is not Outcome.PASS for check in checks):
            return checks
    checks += check_content(pa.concat_tables([train, test]), contract)
    extracted = snapshot.manifest["rows"]["extracted"]
    shares = {rule: rows / extracted for rule, rows in snapshot.manifest["excluded"].items()}
    most = {rule: contract.exclude[rule].most for rule in shares}
    said = [f"{rule} {share:.2%} (at most {most[rule]:.2%})" for rule, share in shares.items()]
    kept = all(share <= most[rule] for rule, share in shares.items())
    return [
        *checks,
        fixed("exclusions", kept, f"rows taken out by rule: {', '.join(said) or 'none'}"),
        _scale(project, train, test),
        judge("rows", limits.rows, train.num_rows, f"{train.num_rows:,} rows to train on"),
    ]


def _scale(project: Project, train: pa.Table, test: pa.Table) -> Check:
    times, ratios = train.column(project.contract.time).to_numpy(), dict[str, float]()
    months = [(times >= start) & (times < end) for start, end in periods(times)]
    for name in project.contract.of_type("number"):
        values = train.column(name).to_numpy()
        ratios[name] = scale_ratio([values[m] for m in months], test.column(name).to_numpy())
    # What cannot be compared is not-a-number, and ranks above every ratio: never a pass.
    worst = max(ratios, key=lambda name: np.nan_to_num(ratios[name], nan=np.inf), default="")
    sentence = f"scale of `{worst}` against that of the training months: another unit?"
    return judge("scale", project.gates.data.scale, ratios.get(worst, 1.0), sentence)


def scale_ratio(train: Sequence[Floats], test: Floats) -> float:
    """Return how far values are from the scale of the training periods; about 1 or less is usual.

    Drift cannot tell a unit: July differs more from spring than °C from °F. Two things do not
    follow the seasons: the *width* between the 10 % and the 90 % quantile of a month, and the
    *grid* that values are recorded on (tenths of a degree, whole miles), of which a conversion
    leaves little: 5 to 11. Zeros are on every grid. Not-a-number where fewer than two periods,
    or the test rows, hold enough values.
    """
    *past, now = (np.round(part[np.isfinite(part)], DECIMALS) for part in (*train, test))
    past = [part for part in past if len(part) >= FEWEST_VALUES]
    if len(past) < 2 or len(now) < FEWEST_VALUES:
        return float("nan")
    *widths, width = (float(np.subtract(*np.quantile(v, (0.9, 0.1)))) for v in (*past, now))
    wider = max(width / max(widths), min(widths) / width) if min(*widths, width) > 0 else 0.0
    *grids, grid = (part[part != 0] for part in (*past, now))
    if min(map(len, (*grids, grid))) < FEWEST_VALUES:
        return wider
    points, seen = np.unique(np.concatenate([np.unique(v) for v in grids]), return_counts=True)
    usual = min(np.isin(part, points[seen > 1]).mean() for part in grids)
    return float(max(wider, (usual + TINY) / (np.isin(grid, points).mean() + TINY)))
