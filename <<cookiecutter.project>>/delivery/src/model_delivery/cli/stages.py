"""The stages of a delivery, in order. Each can run alone and skips what is up to date."""

from __future__ import annotations

import datetime as dt
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from model_delivery.bundle.bento import build_package
from model_delivery.bundle.candidate import (
    CURRENT,
    Candidate,
    current_candidate,
    data_verdict,
    save_data_verdict,
)
from model_delivery.bundle.environment import service_environment
from model_delivery.bundle.image import build_image
from model_delivery.bundle.make import make_candidate
from model_delivery.cli.output import step
from model_delivery.errors import UserError
from model_delivery.files import write_atomic
from model_delivery.gates.api import check_api
from model_delivery.gates.champion import champion_scores
from model_delivery.gates.data import check_data, refused
from model_delivery.gates.judge import limits_hash, limits_of, make_verdict
from model_delivery.gates.load import check_load
from model_delivery.gates.model import check_model
from model_delivery.gates.package import check_package
from model_delivery.gates.prove import prove
from model_delivery.project import Project
from model_delivery.registry.champion import champion
from model_delivery.report.verdict import Check, Event, Outcome, Verdict
from model_delivery.serving.launch import Running, running
from model_delivery.training.snapshot import (
    BrokenStructureError,
    Snapshot,
    current_snapshot,
    take_snapshot,
)

_UNSURE = (Outcome.INCONCLUSIVE, Outcome.CRASH)


@dataclass
class Run:
    """One call of `ml`: the project, why it runs, and the service that gates share."""

    project: Project
    event: Event = "local"
    force: bool = False
    as_of: dt.date | None = None
    image: bool = False
    _resources: ExitStack = field(default_factory=ExitStack)
    _service: Running | None = None

    def service(self, candidate: Candidate) -> Running:
        """Return the candidate's service, started once for all gates of this call."""
        if self._service is None or self._service.digest != candidate.digest:
            python = service_environment(self.project, candidate.ship / "requirements.txt")
            log = self.project.work / "logs" / f"gate-{candidate.short}.log"
            started = running(candidate.ship, python, log)
            self._service = self._resources.enter_context(started)
        return self._service

    def close(self) -> None:
        """Stop what this call started."""
        self._resources.close()


@contextmanager
def opened(run: Run) -> Iterator[Run]:
    """Yield a run and stop its service at the end, also after an error or Ctrl-C."""
    try:
        yield run
    finally:
        run.close()


def extract(run: Run) -> Snapshot:
    """Take the snapshot; a broken structure raises `BrokenStructureError`."""
    with step("data: extract and split"):
        return take_snapshot(run.project, run.as_of, run.force)


def data_stage(run: Run) -> Verdict:
    """Extract, then judge the snapshot against contract, scale and drift."""
    refusal = run.project.work / "refused.json"
    try:
        snapshot = extract(run)
    except BrokenStructureError as broken:
        verdict = refused(run.project, broken.findings)
        write_atomic(refusal, verdict.model_dump_json(indent=2))
        return verdict
    refusal.unlink(missing_ok=True)
    return judge_data(run, snapshot)


def judge_data(run: Run, snapshot: Snapshot) -> Verdict:
    """Give the verdict on a snapshot, or return the one given under the same limits."""
    known = data_verdict(run.project, snapshot.name)
    if known is not None and _stands(run, known, "data", None):
        return known
    with step("data: contract, then Deepchecks in its own environment"):
        verdict = check_data(run.project, snapshot)
    save_data_verdict(run.project, snapshot.name, verdict)
    return verdict


def train_stage(run: Run) -> Candidate:
    """Train, unless the same key was trained before."""
    with step("train: features, model, scores"):
        snapshot = current_snapshot(run.project)
        return make_candidate(run.project, snapshot, run.event, run.force)[0]


def model_stage(run: Run) -> Verdict:
    """Judge the model's quality, alone and against the champion."""
    candidate, old = current_candidate(run.project), champion(run.project)

    def check() -> Verdict:
        return check_model(run.project, candidate, champion_scores(run.project, candidate, old))

    return _judged(run, candidate, "model", old, "model: quality, segments, champion", check)


def package_stage(run: Run) -> Verdict:
    """Build what is delivered, then look into it."""
    candidate = current_candidate(run.project)
    build(run, candidate)

    def check() -> Verdict:
        return check_package(run.project, candidate)

    return _judged(run, candidate, "package", None, "package: contents and equality", check)


def build(run: Run, candidate: Candidate) -> Path:
    """Build the Bento with its SBOM and card, and with `--image` the OCI image."""
    with step("package: Bento, SBOM, model card"):
        bento = build_package(run.project, candidate)
    if run.image:
        with step("package: OCI image"):
            build_image(run.project, candidate)
    return bento


def api_stage(run: Run) -> Verdict:
    """Ask the running service right and wrong questions."""
    candidate = current_candidate(run.project)

    def check() -> Verdict:
        return check_api(run.project, candidate, run.service(candidate))

    return _judged(run, candidate, "api", None, "api: right and wrong requests", check)


def load_stage(run: Run) -> Verdict:
    """Load the service beside its twin and the champion."""
    candidate, old = current_candidate(run.project), champion(run.project)

    def check() -> Verdict:
        return check_load(run.project, candidate, old, run.service(candidate))

    return _judged(run, candidate, "load", old, "load: Locust, interleaved with the twin", check)


def prove_stage(run: Run) -> Verdict:
    """Break the current rows and scores in known ways; each must be noticed."""
    pointed = (run.project.work / CURRENT).exists()
    candidate = current_candidate(run.project) if pointed else None
    with step("prove: seeded defects"):
        return prove(run.project, current_snapshot(run.project), candidate)


def _judged(
    run: Run,
    candidate: Candidate,
    gate: str,
    old: Candidate | None,
    title: str,
    check: Callable[[], Verdict],
) -> Verdict:
    """Return the verdict that stands, or give a new one; a crash is a verdict too."""
    against = old.digest if old is not None and old.digest != candidate.digest else None
    known = candidate.verdict(gate)
    if known is not None and _stands(run, known, gate, against):
        return known
    started = time.perf_counter()
    try:
        with step(title):
            verdict = check()
    except UserError:
        raise
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}"
        crashed = Check(name="ran", outcome=Outcome.CRASH, sentence=said)
        limits = limits_of(run.project, gate)
        verdict = make_verdict(gate, candidate.digest, limits, [crashed], started)
    verdict = verdict.model_copy(update={"against": against})
    candidate.save(verdict)
    return verdict


def _stands(run: Run, verdict: Verdict, gate: str, against: str | None) -> bool:
    """Return whether an earlier verdict still counts: same limits, same champion, decided."""
    same = (
        verdict.limits == limits_hash(limits_of(run.project, gate)) and verdict.against == against
    )
    return same and not run.force and verdict.outcome not in _UNSURE


GATE_STAGES: dict[str, Callable[[Run], Verdict]] = {
    "data": data_stage,
    "model": model_stage,
    "package": package_stage,
    "api": api_stage,
    "load": load_stage,
}
