"""What a run of a workflow leaves: jobs with their steps, outputs, summaries and logs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class HarnessError(RuntimeError):
    """The scenario could not be carried out, or a job did what no hosted runner allows."""


class LeftBehindError(HarnessError):
    """A job ended while processes that it had started were still running."""


@dataclass(frozen=True)
class Step:
    """One step of a job: its name and `success`, `failure` or `skipped`."""

    name: str
    result: str


@dataclass(frozen=True)
class Job:
    """One job: its id, result, steps in order, outputs, summary (Markdown) and what it printed."""

    id: str
    result: str
    steps: tuple[Step, ...] = ()
    outputs: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""
    log: str = ""
    seconds: float = 0.0

    def step(self, name: str) -> Step:
        """Return the step of this name."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(f"job {self.id} has no step {name!r}: {[s.name for s in self.steps]}")


@dataclass(frozen=True)
class Run:
    """One run of a workflow: its jobs by id, and the folder that holds its artifacts and calls."""

    jobs: Mapping[str, Job]
    folder: Path

    @property
    def results(self) -> dict[str, str]:
        """The result of each job: `success`, `failure` or `skipped`."""
        return {name: job.result for name, job in self.jobs.items()}

    @property
    def said(self) -> str:
        """The last lines of each job that failed."""
        failed = [job for job in self.jobs.values() if job.result == "failure"]
        return "\n".join(f"--- {job.id} ---\n{job.log[-3000:]}" for job in failed)

    def artifact(self, name: str) -> Path:
        """Return the folder with the files of an artifact.

        Raises
        ------
        KeyError
            When no job uploaded it.
        """
        if name not in self.artifacts:
            raise KeyError(f"no artifact {name!r}; there are {sorted(self.artifacts)}")
        return self.folder / "artifacts" / name

    @property
    def artifacts(self) -> dict[str, str]:
        """The names of the artifacts, each with the job that uploaded it."""
        index = self.folder / "artifacts.json"
        return dict(json.loads(index.read_text())) if index.exists() else {}

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The inputs of each use of an action that only a recorder stands in for."""
        lines = self.folder / "calls.jsonl"
        return [json.loads(s) for s in lines.read_text().splitlines()] if lines.exists() else []
