"""Pinned requirements, and the bill of materials made of the same lock."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.environment import run_uv
from model_delivery.project import Project

_PIN = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>[^\s;]+)( ;.*?)?(?P<hashes>( --hash=sha256:\w{64})*)"
)


@dataclass(frozen=True)
class Pin:
    """One requirement; `hashes` counts the files that may be installed for it."""

    text: str
    hashes: int


def read_pins(requirements: str) -> list[Pin]:
    """Return the requirements of a file; one that is not `name==version` has no hashes."""
    joined = re.sub(r"\s*\\\n\s*", " ", requirements)
    lines = [line.strip() for line in joined.splitlines()]
    return [_pin(line) for line in lines if line and not line.startswith("#")]


def _pin(line: str) -> Pin:
    found = _PIN.fullmatch(line)
    if found is None:
        return Pin(line, 0)
    return Pin(pinned(found["name"], found["version"]), found["hashes"].count("--hash="))


def pinned(name: str, version: str) -> str:
    """Return `name==version`, the name in its one spelling (PEP 503)."""
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


def bill_of_materials(
    project: Project, title: str, candidate: Candidate, when: datetime
) -> dict[str, Any]:
    """Return a CycloneDX bill of the service's locked packages, about the model by its digest.

    It is uv's own export made repeatable: number and time come from the candidate.
    """
    flags = ["--format", "cyclonedx1.5", "--preview-features", "sbom-export"]
    scope = ["--locked", "--no-default-groups", "--no-emit-workspace"]
    bill: dict[str, Any] = json.loads(run_uv(["export", "-q", *flags, *scope], project.root))
    model = f"sha256:{candidate.digest}"
    bill["serialNumber"] = f"urn:uuid:{uuid.UUID(candidate.digest[:32])}"
    bill["metadata"] |= {
        "timestamp": when.isoformat(),
        "component": {
            "type": "machine-learning-model",
            "bom-ref": model,
            "name": title,
            "version": candidate.short,
            "hashes": [{"alg": "SHA-256", "content": candidate.digest}],
        },
    }
    needs = sorted(component["bom-ref"] for component in bill["components"])
    bill["dependencies"] = [{"ref": model, "dependsOn": needs}, *bill["dependencies"]]
    return bill


def listed(bill: dict[str, Any]) -> set[str]:
    """Return the `name==version` of each component of a bill."""
    return {pinned(part["name"], part["version"]) for part in bill["components"]}
