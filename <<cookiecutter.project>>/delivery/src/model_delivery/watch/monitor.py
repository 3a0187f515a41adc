"""Watch what an environment answers, by windows of its rows' own time, and decide what to do.

What came true is judged over all windows together, by intervals that resample days. One odd window
moves nothing: a finding counts where several have it, but for those of which one is enough.
"""

import datetime as dt
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model_delivery import files
from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.launch import score_cleanly
from model_delivery.contract.limits import MonitorLimits
from model_delivery.gates import judge, limits_hash
from model_delivery.gates.model import Scored, segments
from model_delivery.project import Project
from model_delivery.protocols import UserError, first_unknown_day
from model_delivery.releases import accepted, champion, hosted, restore, run_page
from model_delivery.report.render import told, write_pages
from model_delivery.report.verdict import Chart, Check, Outcome, Report, Table, Verdict, finite
from model_delivery.rollout.target import Target
from model_delivery.training import scores as metrics
from model_delivery.training.scores import SAMPLE, SCORE, Estimate, estimate
from model_delivery.watch import windows as weeks
from model_delivery.watch.windows import COLUMNS, GATE, Window, combined

FAULTS = ("predictions", "previous")
"""Checks that speak against the release, and not against what it was asked."""
CAUSES = {"roc_auc": "decay", "calibration_error": "decay", "new_data": "data"}
"""What a retraining is started for, where it is not drift."""
Places = NDArray[np.int64]


class Decision(NamedTuple):
    """`ok`, `watch`, `retrain`, `rollback`, `stop` or `nothing deployed`, and why, in words."""

    decision: str
    reason: str
    because: str = ""  # of a retraining: drift, decay or data; of a rollback: the release at fault
    verdict: Verdict | None = None
    report: str = ""  # where it is written, as a pattern
    page: str = ""  # the report as Markdown


def monitor(target: Target, as_of: dt.date | None = None) -> Decision:
    """Judge the windows before a day, write report and decision, and return the decision.

    Without a day it is the source's newest; a later one is a UserError. Killed anywhere, the next
    run finds the same: what is kept between runs is only a cache.
    """
    began, (served, earlier) = time.perf_counter(), watched(target)
    if served is None:
        return Decision("nothing deployed", "nothing deployed, nothing watched")
    if as_of is None:  # of the newest day an older decision says nothing any more
        (target.folder / GATE / "decision.json").unlink(missing_ok=True)
    newest = first_unknown_day()
    as_of = as_of or newest
    if as_of > newest:
        raise UserError(f"--as-of {as_of}: the source knows only what was before {newest}")
    project, home = served.as_trained(target.project), target.folder / GATE
    target, limits = replace(target, project=project), project.gates.monitor
    windows, (log, *labels) = weeks.read_windows(target, served, as_of)
    requests, *others = weeks.judge_windows(project, home, served, windows)
    checks = [log, requests, *labels, *others]
    seen = [window for window in windows if window.readable]
    if not seen:
        said = f"no window has {limits.requests.min:g} rows of this release: nothing was judged"
        checks.append(Check(name="judged", outcome=Outcome.WARN, sentence=said))
    performance, tables = judge_performance(project, served, earlier, seen)
    checks += [*performance, _new_data(served, as_of, limits), *_answered(target, served.digest)]
    rows = weeks.keep_rows(home, as_of, limits, windows)
    verdict = Verdict(
        gate=GATE,
        subject=served.digest,
        limits=limits_hash(project, GATE),
        checks=checks,
        tables=[Table(title="Windows, by their first day", columns=COLUMNS, rows=rows), *tables],
        charts=_charts(rows, as_of, served.lineage["metrics"]["roc_auc"], limits),
        seconds=round(time.perf_counter() - began, 2),
        finished=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
    decision = decide(verdict, earlier is not None)
    page = _write(target, served, verdict, decision, as_of)
    return decision._replace(report=str(home / "report.*"), page=page)


def watched(target: Target) -> tuple[Candidate | None, Candidate | None]:
    """Return what an environment serves, and what `ml rollback` would go back to, or None."""
    state, home = target.state(), target.folder / "releases"
    if (current := state.current) and not state.rehearsed:
        back = None if state.trying else state.way_back
        return Candidate(home / current.digest), Candidate(home / back.digest) if back else None
    # Files are scored by what the registry has as accepted, and a shared log read, anywhere.
    shared = target.batch or "://" in target.project.delivery.log.folder
    served = champion(target.project, target.name) if shared else None
    if target.batch and hosted():  # where a rollback goes by the log, too
        state = accepted(target.project, target.name, target.project.delivery.keep_releases)
        with suppress(UserError):  # without its bytes there is no way back
            return served, restore(target.project, state.way_back) if state.way_back else None
    return served, None


def decide(verdict: Verdict, can_go_back: bool) -> Decision:
    """Return what a verdict asks for: to roll back where the release alone is at fault."""
    outcome, decisive, because = verdict.outcome, verdict.decisive, ""
    broken = {check.name for check in verdict.checks if check.outcome is outcome}
    if outcome is Outcome.PASS:
        return Decision("ok", f"all {len(verdict.checks)} checks pass", verdict=verdict)
    if outcome is Outcome.STOP:
        alone = can_go_back and broken <= {*FAULTS}
        word, because = ("rollback", verdict.subject) if alone else ("stop", "")
    elif outcome is Outcome.RETRAIN:
        word, because = "retrain", CAUSES.get(decisive.name, "drift")
    else:
        word = "watch"
    return Decision(word, told(decisive), because, verdict)


def judge_performance(
    project: Project, served: Candidate, earlier: Candidate | None, windows: Sequence[Window]
) -> tuple[list[Check], list[Table]]:
    """Judge scores by what came true, over all windows; with few labels nothing is."""
    limits, contract = project.gates.monitor, project.contract
    known = [window.labelled() for window in windows]
    if sum(len(rows) for rows, _ in known) < limits.requests.min:
        return [], []
    table = pa.concat_tables([rows for rows, _ in known], promote_options="permissive")
    labels = np.concatenate([truth for _, truth in known])
    part = np.repeat(np.arange(len(known)), [len(rows) for rows, _ in known])
    days = table.column(contract.time).to_numpy().astype("datetime64[D]")
    scored = Scored(labels, table.column(SCORE).to_numpy(), days, table)
    past = float(served.lineage["metrics"]["roc_auc"])
    said = f"ROC AUC of {len(table):,} rows, less {past:.4f} of the test window"
    truth = "distance of scores from what came true"
    checks = [
        over_all("roc_auc", limits, scored, part, said, past),
        over_all("calibration_error", limits, scored, part, truth),
    ]
    logged, tables = weeks.logged_part(project).columns.keys(), list[Table]()
    if logged >= {*contract.segments}:
        weak, rows = segments(project, scored)
        tables += [rows]
        for check in (one for one in weak if one.value is not None):  # else all are too small
            good = getattr(project.gates.model, check.name).holds(check.value)
            outcome = Outcome.PASS if good else Outcome.WARN
            checks.append(check.model_copy(update={"outcome": outcome}))
    asked = files.read_json(earlier.ship / "request.json") if earlier else {}
    if earlier and logged >= {*contract.inputs, *asked}:
        few = np.sort(np.random.default_rng(0).permutation(len(labels))[:SAMPLE])
        said = f"ROC AUC, less that of {earlier.short} on the same {len(few):,} rows"
        try:
            theirs = score_cleanly(project, earlier.ship, table.take(few))
        except UserError as error:  # perhaps why it is no longer served
            why = f"{said}: it gives no scores; {error}"
            return [*checks, Check(name="previous", outcome=Outcome.WARN, sentence=why)], tables
        both = Scored(labels[few], scored.scores[few], days[few], table, theirs)
        checks.append(over_all("previous", limits, both, part[few], said))
    return checks, tables


def over_all(
    name: str, limits: MonitorLimits, scored: Scored, part: Places, said: str, past: float = 0.0
) -> Check:
    """Judge a metric over all windows by the end of its interval that is nearer to the limit.

    It is less `past`, or less another release's on the same rows. `part`, shape (n,), is the window
    of each row: where fewer than `needed` of them break the limit, it is a warning.
    """
    metric = getattr(metrics, name if name == "calibration_error" else "roc_auc")
    limit, other = getattr(limits, name), scored.champion
    rows = scored.labels, scored.scores, scored.days
    found = Estimate(*(end - past for end in estimate(metric, *rows, other=other)))
    end = found.low if limit.min is None else found.high
    check = judge(name, limit, found._replace(value=end), said)
    broken, windows = 0, np.unique(part)
    for mask in (part == one for one in windows):
        if mask.sum() < limits.requests.min:
            continue  # a metric of few rows is noise
        ones = np.ones(mask.sum())
        less = past if other is None else metric(scored.labels[mask], other[mask], ones)
        value = metric(scored.labels[mask], scored.scores[mask], ones) - less
        broken += finite(value) and not limit.holds(value)
    short = np.ptp(scored.days).astype(int) + 1 < limits.window_days  # days, to resample
    few = check.outcome in (Outcome.RETRAIN, Outcome.STOP) and (short or broken < limits.needed)
    told = f"{said}: {found.value:.4f}; {broken} of {len(windows)} windows alone break the limit"
    told += f", of fewer days than `window_days`: {limits.window_days}" if short else ""
    changes = {"outcome": Outcome.WARN} if few else {}
    return check.model_copy(update=changes | {"sentence": told})


def _new_data(served: Candidate, as_of: dt.date, limits: MonitorLimits) -> Check:
    """Judge how much longer its data would be now: error falls as a power of their number."""
    data = served.lineage["data"]
    known, first = map(dt.date.fromisoformat, (data["as_of"], data["spans"]["train"][0][:10]))
    later, span = (as_of - known).days, (known - first).days
    said = f"{later} days since its data, which span {span}"
    return judge("new_data", limits.new_data, later / span, said)


def _answered(target: Target, digest: str) -> list[Check]:
    """Judge by days what was refused and what failed: the log of predictions has neither."""
    limits, days = target.project.gates.monitor, list[list[Check]]()
    for day, (answers, refused, failed) in _counted(target, digest).items():
        if answers >= limits.requests.min / limits.window_days:
            said = f"share of {answers:,} requests of {day} that"
            checks = [
                judge("refused", limits.refused, refused / answers, f"{said} were refused (4xx)"),
                judge("failed", limits.failed, failed / answers, f"{said} failed (5xx)"),
            ]
            days.append(checks)
    return [combined(name, days, limits, "days") for name in ("refused", "failed") if days]


def _counted(target: Target, digest: str) -> dict[str, list[int]]:
    """Count by day a release's answers, and those of 4xx and of 5xx, in the last days.

    The proxy's log has the machine's own time and, of a busy service, the last hours alone: what
    was counted before is kept. An answer that no service signed is of the release that served.
    """
    kept = target.folder / GATE / "answers.json"
    now, limits = dt.datetime.now(dt.UTC), target.project.gates.monitor
    serves = dt.datetime.fromisoformat(move.time) if (move := target.state().current) else now
    first = str(now.date() - dt.timedelta(max(limits.window_days, limits.windows) - 1))
    known: dict[str, Any] = files.read_json(kept) if kept.exists() else {"until": 0.0}
    if known["until"] > now.timestamp():  # by a clock that was ahead
        known = {"until": 0.0}
    days = {day: count for day, count in known.get("days", {}).items() if first <= day[-10:]}
    until = known["until"]
    for answer in target.proxy.answered(until):
        at = dt.datetime.fromtimestamp(answer["ts"], dt.UTC)
        unsigned = [digest if at >= serves else ""]
        [signed] = answer["resp_headers"].get("X-Model-Digest", unsigned)
        if at <= now and first <= str(at.date()):
            count = days.setdefault(f"{signed} {at.date()}", [0, 0, 0])
            kind, until = answer["status"] // 100, max(until, answer["ts"])
            count[:] = count[0] + 1, count[1] + (kind == 4), count[2] + (kind == 5)
    if until != known["until"]:
        files.write_json(kept, {"until": until, "days": days})
    return {day[-10:]: count for day, count in days.items() if day.startswith(digest)}


def _charts(
    rows: list[list[Any]], as_of: dt.date, past: float, limits: MonitorLimits
) -> list[Chart]:
    """Return how it went over the windows."""
    known: dict[str, list[Any]] = {n: [row[at] for row in rows] for at, n in enumerate(COLUMNS)}
    known |= {"at training": [past] * len(rows), "limit": [limits.feature_drift.max] * len(rows)}
    drawn = {
        "ROC AUC": ("ROC AUC", "at training"),
        "Share of positives and mean score": ("share positive", "mean score"),
        "Largest drift, times the usual": ("feature drift", "prediction drift", "limit"),
        "Rows": ("rows", "of this release", "labelled"),
    }
    x = [float((dt.date.fromisoformat(day) - as_of).days) for day in known["window"]]
    label = f"window, by days before {as_of}"
    return [
        Chart(title=title, x=x, series={name: known[name] for name in names}, x_label=label)
        for title, names in drawn.items()
    ]


def _write(
    target: Target, served: Candidate, verdict: Verdict, decision: Decision, as_of: dt.date
) -> str:
    """Write the page, its texts, and last the decision; return the page as Markdown."""
    folder, lineage = target.folder / GATE, served.lineage
    report = Report(
        project=f"{target.project.about['name']}, {target.name}",
        subject=served.digest,
        event="monitoring",
        verdicts=[verdict],
        commit=lineage["commit"] or "",
        data=lineage["data"] | {"snapshot": lineage["snapshot"]},
        run=run_page(),
        decision=f"Decision as of {as_of}: {decision.decision}",
    )
    page = write_pages(folder, report)
    found = {"decision": decision.decision, "reason": decision.reason, "because": decision.because}
    found |= {"as_of": str(as_of), "digest": served.digest}
    files.write_json(folder / "decision.json", found)
    return page
