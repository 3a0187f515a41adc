"""The stages of a delivery, in order. Each can run alone and skips what is up to date."""

import datetime as dt
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from model_delivery import releases
from model_delivery.bundle import candidate as candidates
from model_delivery.bundle.candidate import Candidate, current_candidate
from model_delivery.bundle.launch import NotReadyError
from model_delivery.cli.terminal import Stage, job, say, step
from model_delivery.contract.settings import EnvironmentName
from model_delivery.files import alone, write_atomic
from model_delivery.gates import COMPARED, GATES, limits_hash, lowered_limits
from model_delivery.gates.data import check_data
from model_delivery.gates.load import check_load
from model_delivery.gates.model import check_model
from model_delivery.gates.shipped import check_api, check_package
from model_delivery.history import mirror
from model_delivery.project import Project
from model_delivery.protocols import UserError, unset_variables
from model_delivery.registry import Event, event_log, newest
from model_delivery.report.render import write_pages
from model_delivery.report.verdict import Check, Outcome, Report, Trigger, Verdict, allows_promotion
from model_delivery.rollout.host import rehearsal
from model_delivery.rollout.supervisor import supervise
from model_delivery.rollout.target import Target
from model_delivery.training import snapshot as data

STAGES: tuple[Stage, ...] = get_args(Stage)
REFUSED = "refused.json"  # the verdict on an extraction that could not become a snapshot


@dataclass
class Run:
    """One call of `ml`: the project, why it runs, and what was asked."""

    project: Project
    event: Trigger = "local"
    as_of: dt.date | None = None
    force: bool = False
    sample: bool = False
    environment: EnvironmentName = "production"
    release: str = ""  # a tag, a name or a digest: what was recorded, in place of what is here
    rehearse: bool = False
    key: str = ""
    recorded: Event | None = None


def ship(run: Run, last: Stage) -> Iterator[Verdict]:
    """Run the stages up to `last` and yield their verdicts.

    A gate that does not allow promotion ends it: bad data trains nothing, a bad model is not
    packaged, and nothing of either is deployed. One at a time in a work folder, whose current
    snapshot and candidate the next stage takes.
    """
    wait = "another `ml ship` is at work; this one waits for its end"
    with alone(run.project.work / "ship.lock", lambda: say(wait)):
        yield from _stages(run, last)


def _stages(run: Run, last: Stage) -> Iterator[Verdict]:
    acts = {"data": extract, "train": train, "package": package, "register": record}
    if run.release:  # it is judged as it was recorded: nothing of it is made anew
        acts = {"data": fetch, "register": record}
    for stage in STAGES[: STAGES.index(last) + 1]:
        if stage in acts:
            with suppress(data.BrokenStructureError):  # the gate says it
                acts[stage](run)
        if stage in GATES:
            verdict = gate(run, stage)
            yield verdict
            if not allows_promotion(verdict.outcome, run.event):
                return
        if stage == "deploy":
            yield deploy(run)
        elif stage == last == "register":
            mirror(run.project)


def extract(run: Run) -> data.Snapshot:
    """Take the snapshot; of a broken structure, which raises, the verdict is kept instead."""
    sample = run.sample or (run.event == "pull_request" and bool(unset_variables()))
    if sample:
        say("on rows drawn from the data contract: no quality is judged")
    (run.project.work / REFUSED).unlink(missing_ok=True)  # of what was extracted before
    try:
        with step("data: extract and split"):
            again = run.force or run.event == "retraining"  # the source may have been corrected
            snapshot = data.take_snapshot(run.project, _day(run), again, sample, say)
    except data.BrokenStructureError as broken:
        verdict = Verdict(gate="data", subject="none", checks=broken.checks)
        write_atomic(run.project.work / REFUSED, verdict.model_dump_json(indent=2))
        raise
    if run.event == "retraining" and (old := releases.champion(run.project)):
        end, known = (it["spans"]["test"][1] for it in (snapshot.manifest, old.lineage["data"]))
        if end <= known:
            raise UserError(f"no new data: the newest row is of {end}, as the champion's", 0)
    return snapshot


def fetch(run: Run) -> Candidate:
    """Make the release that was asked for the current candidate; of its rows nothing is here."""
    with step(f"fetch {run.release}"):
        candidate = releases.restore(run.project, releases.resolve(run.project, run.release))
        for other in (data.CURRENT, REFUSED):
            (run.project.work / other).unlink(missing_ok=True)
        write_atomic(run.project.work / candidates.CURRENT, candidate.digest)
        return candidate


def _day(run: Run) -> dt.date:
    """Return the first day not known: never before the champion's."""
    served = newest(event_log(run.project).events(), environment="production")
    known = run.project.contract.as_of
    newer = dt.date.fromisoformat(served.as_of) if served else known
    if served and newer > known and not run.as_of:
        say(f"as of {newer}, as {served.release} in production; config/data.yaml says {known}")
    return run.as_of or max(known, newer)


def train(run: Run) -> Candidate:
    """Train, unless the same key was trained before, here or by whoever registered it."""
    project = run.project
    with step("train: features, model, scores"):
        snapshot = data.current_snapshot(project)
        run.key = releases.recall(project, snapshot)
        candidate = candidates.make_candidate(project, snapshot, run.event, run.force)
    changed = ", ".join(candidates.uncommitted(project))
    if changed or not releases.delivering(project):
        say(f"in no commit, so `ml retrain` will refuse it: {changed or 'all of it':.200}")
    return candidate


def package(run: Run) -> Candidate:
    """Build the Bento with its SBOM and card."""
    candidate = current_candidate(run.project)
    with step("package: Bento, SBOM, model card"):
        candidates.build_package(run.project, candidate)
    return candidate


def record(run: Run) -> Event:
    """Tell the log of the current candidate and of its verdicts, if they allow its promotion."""
    candidate = current_candidate(run.project)
    with step(f"register {candidate.short}"):
        verdicts = releases.judged(run.project, candidate, run.event)
        candidate.save(verdicts["data"])  # goes along with the bytes; the rows stay here
        run.recorded = releases.register(run.project, candidate, verdicts, run.event, run.key)
    job("GITHUB_OUTPUT", f"digest={candidate.digest}")
    return run.recorded


def deploy(run: Run) -> Verdict:
    """Make an environment serve a release, as far as its rollout allows it."""
    target, release = Target(run.project, run.environment), run.release
    if not run.rehearse:  # that takes a port of its own
        target.leave_rehearsal()
        target.check_ready()
    move = releases.resolve(run.project, release) if release else run.recorded or record(run)
    place = rehearsal(target) if run.rehearse else nullcontext()
    try:
        with step(f"rollout of {move.digest[:12]} to {run.environment}"), place:
            verdict = supervise(target, move, run.event, say)
    except UserError:  # something may have happened; not after Ctrl-C, which ends at once
        mirror(run.project)
        raise
    mirror(run.project)
    if target.services() and not run.rehearse:
        say(f"{run.environment} answers at {target.url}/predict")
    return verdict


def gate(run: Run, name: str) -> Verdict:
    """Return a gate's verdict on the current data or candidate, given now or before."""
    project = run.project
    if name == "data":
        if run.release:
            return _recorded(project)
        if (run.project.work / REFUSED).exists():
            return Verdict.model_validate_json((run.project.work / REFUSED).read_bytes())
        snapshot = data.current_snapshot(project)
        return _verdict(run, name, snapshot, lambda: check_data(project, snapshot))
    candidate = current_candidate(project)
    served = releases.champion(project) if name in COMPARED else None
    known = candidate.verdict(name)
    old = served if served and served.digest != candidate.digest else None
    if old:
        releases.check_succeeds(old.digest)
    # Once it is served itself, what it was compared with before still stands.
    against = old.digest if old else known.against if served and known else None
    gates: dict[str, Callable[[], Verdict]] = {
        "model": lambda: check_model(project, candidate, old),
        "package": lambda: check_package(project, candidate),
        "api": lambda: check_api(project, candidate),
        "load": lambda: check_load(project, candidate, old),
    }
    return _verdict(run, name, candidate, gates[name], against)


def _recorded(project: Project) -> Verdict:
    """Return the verdict on its data that a release brought along; its rows are not here."""
    known = current_candidate(project).verdict("data")
    if known is None or known.limits != limits_hash(project, "data"):
        why = "gate data: config/data.yaml or gates.yaml changed since its rows were judged"
        raise UserError(f"{why}; deliver main again, and tag what staging has then")
    return known


def _verdict(
    run: Run, name: str, judged: data.Judged, ask: Callable[[], Verdict], against: str | None = None
) -> Verdict:
    """Return the verdict given before, if it was decided by the same limits and champion, or ask.

    A crash is a verdict too, so that the report shows it. A package may have been changed or made
    anew since, and is looked at again; a load that was too much may have been the machine's moment.
    """
    again, started = run.force or name == "package", time.perf_counter()
    known = None if again else judged.verdict(name)
    limits = limits_hash(run.project, name)
    same = known and (known.limits, known.against) == (limits, against)
    anew = (Outcome.INCONCLUSIVE, Outcome.CRASH, *([Outcome.STOP] if name == "load" else []))
    if known and same and known.outcome not in anew:
        return known
    try:
        with step(f"check {name}"):
            verdict = ask()
    except NotReadyError as error:  # perhaps the champion's service, or a busy machine
        silent = Check(name="ready", outcome=Outcome.INCONCLUSIVE, sentence=str(error))
        verdict = Verdict(gate=name, checks=[silent])
    except UserError:
        raise
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}"
        crashed = Check(name="ran", outcome=Outcome.CRASH, sentence=said)
        verdict = Verdict(gate=name, checks=[crashed])
    stamp: dict[str, Any] = {"subject": judged.folder.name, "limits": limits, "against": against}
    stamp["seconds"] = round(time.perf_counter() - started, 2)
    stamp["finished"] = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    verdict = verdict.model_copy(update=stamp)
    judged.save(verdict)
    return verdict


def write_report(run: Run) -> tuple[Path, Path]:
    """Write `report.html`, `report.md` and, for programs, `report.json`; return the first two."""
    folder, broken = run.project.work / "report", (run.project.work / REFUSED).exists()
    verdicts, facts = ([gate(run, "data")], {}) if broken else _found(run.project)
    facts = {"subject": verdicts[-1].subject, **facts}
    left = [name for name in GATES if name not in {verdict.gate for verdict in verdicts}]
    if all(allows_promotion(verdict.outcome, run.event) for verdict in verdicts):
        verdicts += [Verdict(gate=name, subject=facts["subject"]) for name in left]
    elif left:
        facts["notes"] = ["Later gates did not run: an earlier one does not allow it."]
    if run.event in ("local", "pull_request"):
        facts["lowered"] = lowered_limits(run.project)
    facts |= {"project": run.project.about["name"], "run": releases.run_page()}
    report = Report(event=run.event, verdicts=verdicts, **facts)
    job("GITHUB_STEP_SUMMARY", write_pages(folder, report))
    return folder / "report.html", folder / "report.md"


def _found(project: Project) -> tuple[list[Verdict], dict[str, Any]]:
    """Return the verdicts on the snapshot and on the candidate trained on it, and their facts."""
    candidate = current_candidate(project) if (project.work / candidates.CURRENT).exists() else None
    manifest, name = candidate.lineage["data"] if candidate else {}, ""
    found = [candidate.verdict("data")] if candidate else []
    if (project.work / data.CURRENT).exists() or not candidate:
        snapshot = data.current_snapshot(project)
        manifest, name, found = snapshot.manifest, snapshot.name, [snapshot.verdict("data")]
    facts: dict[str, Any] = {"data": manifest | {"snapshot": name or "fetched"}}
    if candidate and name in ("", candidate.lineage["snapshot"]):
        found += [candidate.verdict(gate) for gate in GATES if gate != "data"]
        tried = Target(project, "production").state().verdict
        found += [tried if tried and tried.subject == candidate.digest else None]
        about, changed = candidate.lineage, candidate.lineage["changed_files"]
        more = f" (not committed: {changed} files)" if changed else ""
        facts["commit"] = f"{about['commit'] or 'no commit'}{more}"
        facts["branch"] = os.environ.get("GITHUB_HEAD_REF") or about["branch"] or ""
        facts["subject"] = candidate.digest
    verdicts = [v for v in found if v and v.limits == limits_hash(project, v.gate)]
    if not verdicts:
        raise UserError("nothing to report yet; run `ml ship`")
    return verdicts, facts
