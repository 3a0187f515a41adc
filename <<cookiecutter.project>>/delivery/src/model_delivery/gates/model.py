"""The gate `model`: quality with intervals, segments, calibration, and the champion."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.launch import score_cleanly
from model_delivery.contract.limits import Limit
from model_delivery.files import read_json
from model_delivery.gates import deepchecks, judge, quality
from model_delivery.project import Project
from model_delivery.protocols import Floats, UserError
from model_delivery.report.verdict import Chart, Check, Outcome, Table, Verdict, finite
from model_delivery.training import scores as metrics
from model_delivery.training.scores import SCORE, Estimate, estimate, roc_auc

WIDER = ("number", "integer")  # who takes the first takes the second


@dataclass(frozen=True)
class Scored:
    """Scored rows of the test window: shapes (n,); `days` are the clusters of the bootstrap.

    The champion's scores are not-a-number on rows that it may have learned from.
    """

    labels: Floats
    scores: Floats
    days: NDArray[np.datetime64]
    table: pa.Table
    champion: Floats | None = None
    gone: Sequence[str] = ()  # what the champion needs and the contract has not, or not as it was

    def auc(self, rows: NDArray[np.bool_]) -> tuple[Estimate, Estimate | None]:
        """Return the ROC AUC of some rows, and its excess over the champion's where both count."""
        own = estimate(roc_auc, self.labels[rows], self.scores[rows], self.days[rows])
        if self.champion is None:
            return own, None
        both = np.isfinite(self.champion) & rows
        parts = self.labels[both], self.scores[both], self.days[both]
        return own, estimate(roc_auc, *parts, other=self.champion[both])


def check_model(project: Project, candidate: Candidate, champion: Candidate | None) -> Verdict:
    """Judge a candidate by the scores it saved, beside the champion where there is one."""
    manifest = candidate.lineage["data"]  # on drawn rows no model is better than another
    scored = read_scored(project, candidate, None if manifest.get("sample") else champion)
    checks, table = score_checks(project, candidate, scored)
    checks = quality(manifest, checks + deepchecks(project, "model", candidate)[0])
    charts = _charts(candidate, scored)
    return Verdict(gate="model", checks=checks, tables=[table], charts=charts)


def read_scored(project: Project, candidate: Candidate, champion: Candidate | None) -> Scored:
    """Read the test window's labels and scores, and let the champion score the same rows.

    Fewer than `segment_rows` that the champion has not learned from are a UserError.
    """
    table, contract = candidate.rows("test"), project.contract
    labels, times = (table.column(name).to_numpy() for name in (contract.target, contract.time))
    scores, days = table.column(SCORE).to_numpy(), times.astype("datetime64[D]")
    scored = Scored(labels.astype(float), scores, days, table)
    if champion is None:
        return scored
    needs = {name: spec["type"] for name, spec in read_json(champion.ship / "request.json").items()}
    have = {name: spec.type for name, spec in contract.inputs.items()}
    if gone := [n for n, it in needs.items() if have.get(n) != it and (it, have.get(n)) != WIDER]:
        return replace(scored, gone=gone)
    learned_until = np.datetime64(champion.lineage["data"]["spans"]["train"][1])
    later = times > learned_until
    if later.sum() < project.gates.model.segment_rows:
        raise UserError(
            f"only {later.sum():,} test rows are later than what the champion {champion.short} "
            f"was trained on (until {learned_until}), and `segment_rows` asks for more; extract "
            "newer data, `ml data --as-of DAY`, or lower it in config/gates.yaml"
        )
    theirs = np.where(later, score_cleanly(project, champion.ship, table), np.nan)
    return replace(scored, champion=theirs)


def score_checks(
    project: Project, candidate: Candidate, scored: Scored
) -> tuple[list[Check], Table]:
    """Return the checks of scores against labels, without Deepchecks, and the segments."""
    limits, train = project.gates.model, candidate.rows("train")
    labels, own = (train.column(name).to_numpy() for name in (project.contract.target, SCORE))
    base, own_auc = float(labels.mean()), roc_auc(labels.astype(float), own, np.ones(len(own)))

    def gain(y: Floats, p: Floats, w: Floats) -> float:
        trivial = np.full(len(y), base)
        return 1 - metrics.log_loss(y, p, w) / metrics.log_loss(y, trivial, w)

    rows = scored.labels, scored.scores, scored.days
    auc, change = scored.auc(np.ones(len(scored.labels), bool))
    saved = f"share of the log loss of always answering the training share, {base:.3f}, saved"
    error = estimate(metrics.calibration_error, *rows)
    gap = Estimate(own_auc - auc.value, own_auc - auc.high, own_auc - auc.low)
    found = {
        "roc_auc": (auc, "how well rows with and without the target are ranked"),
        "log_loss_gain": (estimate(gain, *rows), saved),
        "calibration_error": (error, "mean distance of scores from what came true"),
        "overfit_gap": (gap, f"ROC AUC {own_auc:.3f} on training rows, less that on test rows"),
    }
    if change:
        found["champion_difference"] = change, "ROC AUC, less the champion's on the same rows"
    checks = [judge(name, getattr(limits, name), *each) for name, each in found.items()]
    if change:
        checks[0] = checks[0].model_copy(update={"champion": auc.value - change.value})
    else:
        sentence = "first delivery, drawn rows, or a champion that is the same"
        outcome = Outcome.PASS
        if scored.gone:
            names = ", ".join(scored.gone)
            sentence = f"not compared: it needs {names}, gone from the contract or of another type"
            outcome = Outcome.WARN
        checks.append(Check(name="champion", outcome=outcome, sentence=sentence, value="none"))
    found_in, table = segments(project, scored)
    return [*checks, *found_in], table


def segments(project: Project, scored: Scored) -> tuple[list[Check], Table]:
    """Judge each large segment; of many, some are low by chance, so the whole interval counts."""
    limits, rows = project.gates.model, list[list[Any]]()
    aucs, changes = dict[str, Estimate](), dict[str, Estimate]()
    for column in project.contract.segments:
        values = scored.table.column(column).to_numpy()
        for value in sorted(set(values) - {None}):
            inside, name = values == value, f"{column} {value}"
            if inside.sum() >= limits.segment_rows:
                aucs[name], change = scored.auc(inside)
                if change:
                    changes[name] = change
                rows.append([name, int(inside.sum()), *aucs[name], change and change.value])
    # A report shows the first ones; without a change are those whose rows have one label.
    rows.sort(key=lambda row: -abs(row[-1]) if finite(row[-1]) else 0.0)
    columns = ["segment", "rows", "ROC AUC", "low", "high", "change to champion"]
    order = ", most changed against the champion first" if changes else ""
    table = Table(title=f"Segments{order}", columns=columns, rows=rows)
    if not project.contract.segments:
        return [], table
    checks = [_worst("segment_roc_auc", limits.segment_roc_auc, aucs)]
    if scored.champion is not None:
        limit = limits.segment_champion_difference
        checks.append(_worst("segment_champion_difference", limit, changes))
    return checks, table


def _worst(name: str, limit: Limit, found: dict[str, Estimate]) -> Check:
    """Judge the segment whose upper bound is lowest, by that bound: it is surely as low.

    One with hardly any row of a class has no bound; it is named, and a pass becomes a warning.
    """
    known = {segment: one for segment, one in found.items() if finite(one.high)}
    silent = ", ".join(segment for segment in found if segment not in known)
    if not known:
        sentence = "none has `segment_rows` rows, of both classes; lower it, or drop `segments`"
        return Check(name=name, outcome=Outcome.WARN, sentence=sentence, limit=str(limit))
    segment, worst = min(known.items(), key=lambda pair: pair[1].high)
    said = f"of {len(known)} segments surely lowest, by the upper end of its interval: {segment}"
    said += f"; not judged, hardly any row of a class: {silent}" if silent else ""
    check = judge(name, limit, Estimate(worst.high, worst.low, worst.high), said)
    passed = silent and check.outcome is Outcome.PASS
    return check.model_copy(update={"outcome": Outcome.WARN}) if passed else check


def _charts(candidate: Candidate, scored: Scored) -> list[Chart]:
    losses, ones = read_json(candidate.folder / "curve.json"), np.ones(len(scored.labels))
    rounds = [float(n + 1) for n in range(max(map(len, losses.values()), default=0))]
    mean, observed, _ = metrics.calibration_curve(scored.labels, scored.scores, ones)
    rates = {"observed": observed.tolist(), "ideal": mean.tolist()}
    names = {"x_label": "mean score", "y_label": "share of positives"}
    return [
        Chart(title="Learning curve", x=rounds, series=losses, x_label="round", y_label="loss"),
        Chart(title="Calibration", x=mean.round(4).tolist(), series=rates, **names),
    ]
