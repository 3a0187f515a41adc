"""Releases that are good offline and bad in service, made of a good candidate.

In a project with a packaged candidate: `uv run python challenger.py FAULT SEED`. The new release is
the current candidate then, with verdicts as if its gates had passed: this is about what is left
for the rollout to find. Most faults begin after the rollout's drawn rows were answered.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from faults import altered  # its neighbour: this runs as a program
from model_delivery.bundle.candidate import CURRENT, Candidate, candidate_folder, current_candidate
from model_delivery.contract.request import draw_rows
from model_delivery.files import write_atomic
from model_delivery.gates import COMPARED, GATES, limits_hash
from model_delivery.project import Project, find_project
from model_delivery.report.verdict import Verdict, fixed
from model_delivery.rollout.target import Target
from model_delivery.training.snapshot import Judged, find_snapshot

BASE = "base-candidate"
HEAD = '''
import random
import time

import numpy as np


class Faulty(Service):
    """The release, and what goes wrong with it after some requests."""

    asked = 0

    def score(self, columns: Columns) -> Floats:
        scores = super().score(columns)
        self.asked += 1
        if self.asked > 230:
            {after}
        {always}
        return scores
{more}

Service = Faulty
'''
FAULTS = {
    "none": {},
    "raises": {"after": "raise RuntimeError('seeded')"},
    "fifth": {"after": "assert self.asked % 5, 'seeded'"},
    "slow": {"after": "time.sleep(0.3)"},
    "nan": {"always": "scores = scores * (np.nan if self.asked > 1 else 1)"},
    "constant": {"after": "scores = np.full(len(scores), 0.5)"},
    "crash": {
        "more": "\n    def load(self, folder: Path) -> None:\n        raise OSError('seeded')\n"
    },
    "never-ready": {
        "more": "\n    def load(self, folder: Path) -> None:\n        time.sleep(3600)\n"
    },
    "memory": {"after": "self.kept = [*getattr(self, 'kept', []), np.ones(2_000_000)]"},
    "schema": {},
    # The worker dies with the request, and is started again.
    "drops": {"after": "random.random() < 0.2 and __import__('os')._exit(1)"},
    "hangs": {"after": "random.random() < 0.1 and time.sleep(60)"},
}


def make(project: Project, base: Candidate, fault: str, seed: str) -> Candidate:
    """Return a sealed copy of the base, with a fault; a seed makes it another release."""

    def change(ship: Path) -> None:
        parts = {"after": "pass", "always": "pass", "more": ""} | FAULTS[fault]
        service = ship / "src" / project.package / "service.py"
        service.write_text(f"{service.read_text()}\n# {seed}\n{HEAD.format(**parts)}")
        if fault == "schema":
            request = ship / "request.json"
            more = {"gate": {"type": "number", "missing": False, "example": 1.0}}
            request.write_text(json.dumps(json.loads(request.read_text()) | more))

    return altered(project, base, change)


def stamp(project: Project, candidate: Candidate) -> None:
    """Give a candidate the verdicts of gates that let it through."""
    current = Target(project, "production").state().current
    for gate in GATES:
        judged: Judged = candidate
        if gate == "data":
            judged = find_snapshot(project, candidate.lineage["snapshot"])
        against = current.digest if current and gate in COMPARED else None
        checks = [fixed("stamped", True, "stamped by a test")]
        about: dict[str, Any] = {"subject": judged.folder.name, "checks": checks}
        about |= {"limits": limits_hash(project, gate), "against": against}
        judged.save(Verdict(gate=gate, **about))


def main(fault: str, seed: str) -> None:
    """Make a release the current candidate and print its digest."""
    project = find_project()
    base = project.work / BASE
    if not base.exists():
        base.write_text(current_candidate(project).digest)
        rows = draw_rows(project.contract, 500, seed=2)
        bodies = json.dumps([json.dumps({"rows": [row]}) for row in rows])
        (project.work / "bodies.json").write_text(bodies)
    good = Candidate(candidate_folder(project, base.read_text()))
    candidate = make(project, good, fault, seed)
    stamp(project, candidate)
    write_atomic(project.work / CURRENT, candidate.digest)
    sys.stdout.write(candidate.digest)


if __name__ == "__main__":
    main(*sys.argv[1:])
