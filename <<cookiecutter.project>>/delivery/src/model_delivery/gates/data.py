"""The gate `data`: the contract, the scale of numbers, and Deepchecks' suites; and its proof.

Schema skew (the contract, new categories) stops. Value skew, a drift beyond the spread between
the training span's own months, is a reason to train again. `prove` shows that it can fail: it
breaks rows, in memory only, and lets them be judged by the user's own contract and limits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from model_delivery.contract.limits import Limit
from model_delivery.contract.settings import DataContract
from model_delivery.gates import deepchecks, judge, judge_findings, quality
from model_delivery.project import Project
from model_delivery.protocols import Floats, UserError
from model_delivery.report.verdict import Check, Outcome, Table, Verdict, fixed
from model_delivery.training.check import check_content, check_structure
from model_delivery.training.snapshot import Snapshot, periods

DECIMALS = 6  # values that agree to so many decimals are the same point of a grid
TINY = 0.1
"""Added to both shares of familiar values: a column without a grid gives 1, and none gives 11."""
FEWEST_VALUES = 100  # a period with fewer finite values does not count
FEWEST_KINDS = 10  # of different whole numbers
FEWEST_ROWS = 500  # of a test window whose shares are judged alone


def check_data(project: Project, snapshot: Snapshot) -> Verdict:
    """Judge a snapshot; Deepchecks runs unless our own checks stop it, for broken data crash it."""
    train, test = snapshot.rows("train"), snapshot.rows("test")
    checks, tables = contract_checks(project, snapshot, train, test), list[Table]()
    if {check.outcome for check in checks} <= {Outcome.PASS, Outcome.WARN, Outcome.RETRAIN}:
        found, drift = deepchecks(project, "data", snapshot)
        checks, tables = checks + found, [drift] if drift.rows else []
    return Verdict(gate="data", checks=quality(snapshot.manifest, checks), tables=tables)


def contract_checks(
    project: Project, snapshot: Snapshot, train: pa.Table, test: pa.Table
) -> list[Check]:
    """Return the checks of the data contract over all rows, without Deepchecks."""
    contract, limits = project.contract, project.gates.data
    checks = check_structure(test, contract)  # both are parts of one table
    if any(check.outcome is not Outcome.PASS for check in checks):
        return checks
    checks += check_content(pa.concat_tables([train, test]), contract)
    large = len(test) >= FEWEST_ROWS  # of which a long history hides much
    for check in check_content(test, contract, contract.slack)[:2] if large else ():
        if check.outcome is not Outcome.PASS:
            alone = f"in the test window alone: {check.sentence}"
            checks.append(fixed(f"newest_{check.name}", False, alone, check.value))
    extracted = snapshot.manifest["rows"]["extracted"]
    shares = {rule: rows / extracted for rule, rows in snapshot.manifest["excluded"].items()}
    if gone := [rule for rule in shares if rule not in contract.exclude]:
        raise UserError(f"config/data.yaml has no rule `{gone[0]}` any more; run `ml data`")
    most = {rule: contract.exclude[rule].most for rule in shares}
    said = [f"{rule} {share:.2%} (at most {most[rule]:.2%})" for rule, share in shares.items()]
    kept = all(share <= most[rule] for rule, share in shares.items())
    return [
        *checks,
        fixed("exclusions", kept, f"rows taken out by rule: {', '.join(said) or 'none'}"),
        judge_scale(contract, limits.scale, train, test),
        judge("rows", limits.rows, train.num_rows, f"{train.num_rows:,} rows to train on"),
    ]


def judge_scale(
    contract: DataContract, limit: Limit, train: pa.Table, test: pa.Table, days: int = 0
) -> Check:
    """Judge the number that is furthest from its scale in the training months, or parts of days."""
    times, found = train.column(contract.time).to_numpy(), dict[str, float | None]()
    months = [(times >= start) & (times < end) for start, end in periods(times, days)]
    past = f"parts of {days} days" if days else "months"
    large = sum(month.sum() >= FEWEST_VALUES for month in months)
    if large < 2 or len(test) < FEWEST_VALUES:
        said = f"too few rows to tell a unit: {FEWEST_VALUES} or more have {large} training {past}"
        said += f", newer are {len(test):,}"
        return Check(name="scale", outcome=Outcome.WARN, sentence=said, limit=str(limit))
    for name in (it for it in contract.of_type("number", "integer") if it not in contract.key):
        values, whole = train.column(name).to_numpy(), contract.columns[name].type == "integer"
        if whole and len(np.unique(values)) < FEWEST_KINDS:
            continue  # as a term in months: a season of other ones is wider, in the same unit
        ratio = scale_ratio([values[m] for m in months], test.column(name).to_numpy(), whole)
        if np.isfinite(ratio) or not contract.columns[name].missing:
            found[f"scale of `{name}` against that of the training {past}: another unit?"] = ratio
        else:  # as often missing as the contract lets it: its share of missing values is judged
            found[f"too few values of `{name}` to compare"] = None
    if {*found.values()} <= {None}:
        found["no number that can be compared"] = 1.0
    return judge_findings("scale", limit, found, ())


def scale_ratio(train: Sequence[Floats], test: Floats, whole: bool = False) -> float:
    """Return how far values are from the scale of the training periods; about 1 or less is usual.

    Drift cannot tell a unit: July differs more from spring than °C from °F. Two things do not
    follow the seasons: the *width* between the 10 % and the 90 % quantile of a month, and the
    *grid* that values are recorded on (tenths of a degree, whole miles), of which a conversion
    leaves little: 5 to 11. Zeros are on every grid; beyond all training values, as in a first
    summer, only what follows the decimal point can tell. Of `whole` numbers, as counts and codes,
    new ones are usual: their width alone counts, give or take one. Not-a-number where fewer than
    two periods, or the test rows, hold enough values.
    """
    *past, now = (np.round(part[np.isfinite(part)], DECIMALS) for part in (*train, test))
    past = [part for part in past if len(part) >= FEWEST_VALUES]
    if len(past) < 2 or len(now) < FEWEST_VALUES:
        return float("nan")
    *widths, width = (np.subtract(*np.quantile(v, (0.9, 0.1))) + whole for v in (*past, now))
    wider = max(width / max(widths), min(widths) / width) if min(*widths, width) > 0 else 0.0
    if whole:
        return float(wider)
    *grids, grid = (part[part != 0] for part in (*past, now))
    if min(map(len, (*grids, grid))) < FEWEST_VALUES:
        return float(wider)
    points, seen = np.unique(np.concatenate([np.unique(v) for v in grids]), return_counts=True)
    usual = min(np.isin(part, points[seen > 1]).mean() for part in grids)
    beyond = (grid < points[0]) | (grid > points[-1])
    here, there = (np.round(values % 1, DECIMALS) % 1 for values in (grid, points))
    known = np.isin(grid, points) | (beyond & np.isin(here, there))
    return float(max(wider, (usual + TINY) / (known.mean() + TINY)))


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
    numbers, words = (  # the key's last: it is in fewer checks
        sorted(contract.of_type(kind), key=contract.key.__contains__)
        for kind in ("number", "category")
    )
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
