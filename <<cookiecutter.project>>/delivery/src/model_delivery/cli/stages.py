"""The stages of a delivery, in order. Each can run alone and skips what is up to date."""

import datetime as dt
import os
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from model_delivery.bundle.candidate import (
    CURRENT,
    Candidate,
    candidate_folder,
    current_candidate,
    data_verdict,
    make_candidate,
    save_data_verdict,
)
from model_delivery.bundle.environment import service_environment
from model_delivery.bundle.image import build_image
from model_delivery.bundle.launch import Running, running
from model_delivery.bundle.package import build_package, rows_of
from model_delivery.cli.screen import say, step
from model_delivery.errors import UserError
from model_delivery.files import write_atomic
from model_delivery.gates import COMPARED, GATES, limits_hash, make_verdict
from model_delivery.gates.api import check_api
from model_delivery.gates.data import check_data, refused
from model_delivery.gates.load import check_load
from model_delivery.gates.model import check_model
from model_delivery.gates.package import check_package
from model_delivery.project import Project
from model_delivery.registry import champion
from model_delivery.report.render import render
from model_delivery.report.verdict import (
    Check,
    Event,
    Outcome,
    Report,
    Verdict,
    allows_promotion,
)
from model_delivery.rollout.host import Moved
from model_delivery.rollout.host import deploy as deploy_on_host
from model_delivery.training.snapshot import (
    BrokenStructureError,
    Snapshot,
    current_snapshot,
    take_snapshot,
)

REFUSED = "refused.json"
STAGES = ("data", "train", "model", "package", "api", "load", "deploy")
_UNSURE = (Outcome.INCONCLUSIVE, Outcome.CRASH)


@dataclass
class Run:
    """One call of `ml`: the project, why it runs, and the service that its gates share.

    A context manager: leaving it stops the service, also after an error or Ctrl-C.
    """

    project: Project
    event: Event = "local"
    force: bool = False
    as_of: dt.date | None = None
    image: bool = False
    _resources: ExitStack = field(default_factory=ExitStack)
    _service: Running | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def service(self, candidate: Candidate) -> Running:
        """Return the candidate's service, started once for all gates of this call."""
        if self._service is None:
            python = service_environment(self.project, candidate.ship / "requirements.txt")
            log = self.project.work / "logs" / f"gate-{candidate.short}.log"
            self._service = self._resources.enter_context(running(candidate.ship, python, log))
        return self._service


def ship(run: Run, last: str) -> list[Verdict]:
    """Run the stages up to `last` and return their verdicts.

    A gate that does not allow promotion ends it: bad data trains nothing, a bad model is not
    packaged, and nothing of either is deployed.
    """
    verdicts: list[Verdict] = []
    for stage in STAGES[: STAGES.index(last) + 1]:
        if stage not in GATES:
            {"train": train, "deploy": deploy}[stage](run)
            continue
        verdicts.append(gate(run, stage, fresh=True))
        say(verdicts[-1], run.event)
        if not allows_promotion(verdicts[-1].outcome, run.event):
            break
    return verdicts


def extract(run: Run) -> Snapshot:
    """Take the snapshot; a broken structure raises `BrokenStructureError`."""
    with step("data: extract and split"):
        return take_snapshot(run.project, run.as_of, run.force)


def train(run: Run) -> Candidate:
    """Train, unless the same key was trained before."""
    with step("train: features, model, scores"):
        snapshot = current_snapshot(run.project)
        return make_candidate(run.project, snapshot, run.event, run.force)


def package(run: Run, candidate: Candidate) -> None:
    """Build the Bento with its SBOM and card, and with `--image` the OCI image."""
    with step("package: Bento, SBOM, model card"):
        build_package(run.project, candidate)
    if run.image:
        with step("package: OCI image"):
            build_image(run.project, candidate)


def deploy(run: Run) -> Moved:
    """Make production serve the current candidate."""
    candidate = current_candidate(run.project)
    with step(f"deploy: {candidate.short} beside the present release, then switch"):
        return deploy_on_host(run.project, "production", candidate, run.event)


def gate(run: Run, name: str, fresh: bool = False) -> Verdict:
    """Return a gate's verdict on the current data or candidate, given now or before.

    `fresh` makes first what the gate looks at: the snapshot, or the package.
    """
    if name == "data":
        return _data_gate(run, fresh)
    candidate = current_candidate(run.project)
    if name == "package" and fresh:
        package(run, candidate)
    old = champion(run.project) if name in COMPARED else None
    old = None if old and old.digest == candidate.digest else old
    known, against = candidate.verdict(name), old.digest if old else None
    if known and _stands(run, known, against):
        return known
    with step(f"check {name}"):
        verdict = _judge(run, name, candidate, old).model_copy(update={"against": against})
    candidate.save(verdict)
    return verdict


def _data_gate(run: Run, fresh: bool) -> Verdict:
    refusal = run.project.work / REFUSED
    try:
        snapshot = extract(run) if fresh else current_snapshot(run.project)
    except BrokenStructureError as broken:
        verdict = refused(run.project, broken.findings)
        write_atomic(refusal, verdict.model_dump_json(indent=2))
        return verdict
    refusal.unlink(missing_ok=True)
    known = data_verdict(run.project, snapshot.name)
    if known and _stands(run, known):
        return known
    with step("check data: contract, then Deepchecks in its own environment"):
        verdict = check_data(run.project, snapshot)
    save_data_verdict(run.project, snapshot.name, verdict)
    return verdict


def _judge(run: Run, name: str, candidate: Candidate, old: Candidate | None) -> Verdict:
    """Ask a gate; a crash is a verdict too, so that the report shows it."""
    project, started = run.project, time.perf_counter()
    try:
        if name == "model":
            return check_model(project, candidate, old)
        if name == "package":
            return check_package(project, candidate)
        if name == "api":
            return check_api(project, candidate, run.service(candidate))
        return check_load(project, candidate, old, run.service(candidate))
    except UserError:
        raise
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}"
        crashed = Check(name="ran", outcome=Outcome.CRASH, sentence=said)
        return make_verdict(project, name, candidate.digest, [crashed], started)


def _stands(run: Run, verdict: Verdict, against: str | None = None) -> bool:
    """Return whether an earlier verdict still counts: same limits, same champion, decided."""
    same = verdict.limits == limits_hash(run.project, verdict.gate) and verdict.against == against
    return same and not run.force and verdict.outcome not in _UNSURE


def write_report(project: Project, event: Event) -> tuple[Path, Path]:
    """Write `report.html`, `report.md` and, for programs, `report.json`; return the first two."""
    refusal = project.work / REFUSED
    broken = [Verdict.read(refusal.read_text())] if refusal.exists() else []
    facts: dict[str, Any] = {"verdicts": broken} if broken else _facts(project)
    verdicts = facts["verdicts"]
    facts.setdefault("subject", verdicts[-1].subject)
    compared = [verdict.against for verdict in verdicts if verdict.against]
    if compared:  # not who is served now: after a deploy that is the candidate itself
        facts["champion"] = compared[0][:12]
    left = [gate for gate in GATES if gate not in {verdict.gate for verdict in verdicts}]
    if all(allows_promotion(verdict.outcome, event) for verdict in verdicts):
        verdicts += [Verdict(gate=gate, subject=facts["subject"], limits="") for gate in left]
    elif left:
        facts["notes"] = ["Later gates did not run: an earlier one does not allow it."]
    report = Report(project=project.root.name, event=event, **facts)
    folder = project.work / "report"
    write_atomic(folder / "report.json", report.model_dump_json(indent=2))
    for name in ("report.html", "report.md"):
        write_atomic(folder / name, render(name, report))
    return folder / "report.html", folder / "report.md"


def _facts(project: Project) -> dict[str, Any]:
    """Return verdicts, rows and lineage of the snapshot and of the candidate trained on it."""
    snapshot = current_snapshot(project)
    facts: dict[str, Any] = {"data": rows_of(snapshot.name, snapshot.manifest)}
    found = [data_verdict(project, snapshot.name)]
    pointer = project.work / CURRENT
    if pointer.exists():
        candidate = Candidate(candidate_folder(project, pointer.read_text().strip()))
        lineage = candidate.lineage
        if lineage["snapshot"] == snapshot.name:
            found += [candidate.verdict(gate) for gate in GATES if gate != "data"]
            branch = os.environ.get("GITHUB_HEAD_REF") or lineage["branch"] or ""
            facts |= {"commit": lineage["commit"] or "", "branch": branch}
            facts["subject"] = f"sha256:{candidate.digest}"
    facts["verdicts"] = [verdict for verdict in found if verdict]
    if not facts["verdicts"]:
        raise UserError("nothing to report yet; run `ml ship`")
    return facts
