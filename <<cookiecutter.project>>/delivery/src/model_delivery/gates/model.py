"""The gate `model`: quality with intervals, segments, calibration, and the champion."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.environment import score_cleanly, write_columns
from model_delivery.contract.settings import Limit
from model_delivery.errors import UserError
from model_delivery.files import read_json, temporary_folder
from model_delivery.gates.deepchecks import model_checks
from model_delivery.gates.judge import judge, judge_estimate, limits_of, make_verdict
from model_delivery.project import Project
from model_delivery.protocols import Floats
from model_delivery.report.verdict import Chart, Check, Outcome, Table, Verdict, finite
from model_delivery.training.fit import SCORE
from model_delivery.training.metrics import (
    Estimate,
    calibration_curve,
    calibration_error,
    estimate,
    log_loss,
    roc_auc,
)
from model_delivery.training.snapshot import columns_of

FEWEST_ROWS = 1_000
Compared = tuple[Floats, Floats, Floats, NDArray[np.datetime64]]


@dataclass(frozen=True)
class Scored:
    """Scored rows of the test window: shapes (n,); `days` are the clusters of the bootstrap."""

    labels: Floats
    scores: Floats
    days: NDArray[np.datetime64]
    table: pa.Table
    champion: Floats | None = None

    def compared(self, rows: NDArray[np.bool_] | None = None) -> Compared | None:
        """Return labels, scores, champion's scores and days where both models can be judged."""
        if self.champion is None:
            return None
        use = np.isfinite(self.champion) & (True if rows is None else rows)
        return self.labels[use], self.scores[use], self.champion[use], self.days[use]


def check_model(
    project: Project, candidate: Candidate, champion: Floats | None = None, deep: bool = True
) -> Verdict:
    """Judge a candidate by the scores it saved.

    Parameters
    ----------
    champion
        The champion's scores on the candidate's test rows, shape (n,), not-a-number on rows it
        may have learned from; None means a first delivery, which the verdict says.
    deep
        Whether Deepchecks' model suite runs too.
    """
    started = time.perf_counter()
    scored = read_scored(project, candidate, champion)
    checks, tables = score_checks(project, candidate, scored)
    charts = [_curve(candidate), _calibration(scored)]
    if deep:
        more, found = model_checks(project, candidate)
        checks, tables = checks + more, tables + found
    limits = limits_of(project, "model")
    return make_verdict("model", candidate.digest, limits, checks, started, tables, charts)


def score_checks(
    project: Project, candidate: Candidate, scored: Scored
) -> tuple[list[Check], list[Table]]:
    """Return the checks of scores against labels, without Deepchecks."""
    table, segments = _segments(project, scored)
    quality = _quality(project, candidate, scored)
    return [*quality, *segments, *_against_champion(project, scored)], [table]


def read_scored(project: Project, candidate: Candidate, champion: Floats | None) -> Scored:
    """Read the test window's labels and scores."""
    table, contract = pq.read_table(candidate.test_path), project.contract
    labels = table.column(contract.target).to_numpy().astype(float)
    days = table.column(contract.time).to_numpy().astype("datetime64[D]")
    return Scored(labels, table.column(SCORE).to_numpy(), days, table, champion)


def _quality(project: Project, candidate: Candidate, scored: Scored) -> list[Check]:
    limits = project.gates.model
    train = pq.read_table(candidate.train_path)
    labels = train.column(project.contract.target).to_numpy().astype(float)
    base = float(labels.mean())

    def gain(y: Floats, p: Floats, w: Floats) -> float:
        return 1 - log_loss(y, p, w) / log_loss(y, np.full(len(y), base), w)

    auc = estimate(roc_auc, scored.labels, scored.scores, scored.days)
    better = estimate(gain, scored.labels, scored.scores, scored.days)
    wrong = estimate(calibration_error, scored.labels, scored.scores, scored.days)
    own = roc_auc(labels, train.column(SCORE).to_numpy(), np.ones(len(labels)))
    gap = Estimate(own - auc.value, own - auc.high, own - auc.low)
    old = _champion_value(scored)
    return [
        judge_estimate("roc_auc", limits.roc_auc, auc, "ranks late above punctual rows", old),
        judge_estimate(
            "log_loss_gain",
            limits.log_loss_gain,
            better,
            f"log loss below that of always answering the training share {base:.3f}",
        ),
        judge_estimate(
            "calibration_error", limits.calibration_error, wrong, "scores are frequencies"
        ),
        judge_estimate(
            "overfit_gap", limits.overfit_gap, gap, f"ROC AUC {own:.3f} on its own training rows"
        ),
    ]


def _champion_value(scored: Scored) -> float | None:
    compared = scored.compared()
    if compared is None:
        return None
    labels, _, champion, _ = compared
    return roc_auc(labels, champion, np.ones(len(labels)))


def _against_champion(project: Project, scored: Scored) -> list[Check]:
    compared = scored.compared()
    if compared is None:
        sentence = "first delivery, or the champion itself: nothing to compare with"
        return [Check(name="champion", outcome=Outcome.PASS, sentence=sentence, value="none")]
    limit = project.gates.model.champion_difference
    said = f"ROC AUC minus the champion's on the same {len(compared[0]):,} rows"
    return [judge_estimate("champion_difference", limit, _difference(compared), said)]


def _difference(compared: Compared) -> Estimate:
    labels, scores, champion, days = compared
    return estimate(roc_auc, labels, scores, days, other=champion)


@dataclass(frozen=True)
class Segment:
    """The rows of one value of one column, and how well they are ranked."""

    name: str
    rows: int
    auc: Estimate
    change: Estimate | None

    def row(self) -> list[str | int | float | None]:
        """Return the segment as a row of the report's table."""
        change = self.change.value if self.change else None
        return [self.name, self.rows, self.auc.value, self.auc.low, self.auc.high, change]


def _segments(project: Project, scored: Scored) -> tuple[Table, list[Check]]:
    """Judge each large segment; of many, some are low by chance, so the whole interval counts."""
    limits = project.gates.model
    found = list(_measured_segments(project, scored))
    columns = ["segment", "rows", "ROC AUC", "low", "high", "change to champion"]
    table = Table(title="Segments", columns=columns, rows=[s.row() for s in found])
    checks = [_worst("segment_roc_auc", limits.segment_roc_auc, [(s.name, s.auc) for s in found])]
    if scored.champion is not None:
        changes = [(s.name, s.change) for s in found if s.change]
        limit = limits.segment_champion_difference
        checks.append(_worst("segment_champion_difference", limit, changes))
    return table, checks


def _measured_segments(project: Project, scored: Scored) -> Iterator[Segment]:
    for column in project.contract.segments:
        values = scored.table.column(column).to_numpy()
        for value in sorted({value for value in values if value is not None}):
            rows = values == value
            if rows.sum() < project.gates.model.segment_rows:
                continue
            part = (scored.labels[rows], scored.scores[rows], scored.days[rows])
            compared = scored.compared(rows)
            change = _difference(compared) if compared else None
            yield Segment(f"{column} {value}", int(rows.sum()), estimate(roc_auc, *part), change)


def _worst(name: str, limit: Limit, found: list[tuple[str, Estimate]]) -> Check:
    """Judge the segment whose upper bound is lowest: it is surely as low as that."""
    if not found:
        sentence = (
            "no segment has enough rows to be judged; lower `segment_rows` or drop `segments`"
        )
        return Check(name=name, outcome=Outcome.WARN, sentence=sentence, limit=str(limit))
    segment, value = min(found, key=lambda pair: np.nan_to_num(pair[1].high, nan=-np.inf))
    said = f"worst of {len(found)} segments: {segment}; judged by the upper end of its interval"
    check = judge(name, limit, value.high, said, low=value.low, high=value.high)
    return check.model_copy(update={"value": value.value if finite(value.high) else None})


def _curve(candidate: Candidate) -> Chart:
    curve = read_json(candidate.folder / "curve.json")
    rounds = max((len(values) for values in curve.values()), default=0)
    return Chart(
        title="Learning curve",
        kind="line",
        x=list(range(1, rounds + 1)),
        series=curve,
        x_label="round",
        y_label="loss",
    )


def _calibration(scored: Scored) -> Chart:
    ones = np.ones(len(scored.labels))
    expected, observed, _ = calibration_curve(scored.labels, scored.scores, ones)
    return Chart(
        title="Calibration",
        kind="line",
        x=[round(float(value), 4) for value in expected],
        series={"observed": observed.tolist(), "ideal": expected.tolist()},
        x_label="mean score",
        y_label="share of positives",
    )


def champion_scores(
    project: Project, candidate: Candidate, champion: Candidate | None
) -> Floats | None:
    """Return the champion's scores, not-a-number on rows that it may have been trained on.

    Returns
    -------
    numpy.ndarray or None
        Shape (n test rows,); None where there is no champion, or it is the candidate itself.

    Raises
    ------
    UserError
        When fewer than 1,000 rows are later than both training spans.
    """
    if champion is None or champion.digest == candidate.digest:
        return None
    table, contract = pq.read_table(candidate.test_path), project.contract
    learned_until = np.datetime64(champion.lineage["data"]["spans"]["train"][1])
    later = table.column(contract.time).to_numpy() > learned_until
    if later.sum() < FEWEST_ROWS:
        raise UserError(
            f"only {later.sum():,} test rows are later than what the champion {champion.short} "
            f"was trained on (until {learned_until}); extract newer data: `ml data --as-of DAY`"
        )
    columns = {k: v for k, v in columns_of(table).items() if k in contract.inputs}
    with temporary_folder(project.work / "scores") as folder:
        rows = folder / "rows.npz"
        write_columns(rows, columns)
        scores = score_cleanly(project, champion.ship, rows)
    return np.where(later, scores, np.nan)
