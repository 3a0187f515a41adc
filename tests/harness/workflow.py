"""Reads workflows: their jobs in order, what each of them does and may do, what it uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from .results import HarnessError

LABELS = ("ubuntu-24.04",)
"""The hosted runners there are."""

LEVELS = ("none", "read", "write")
_CALLED = re.compile(r"\./\.github/workflows/(?P<file>[^/@]+)")
_REMOTE = re.compile(r"(?P<slug>[^./@][^/@]*/[^/@]+)(?:/(?P<path>[^@]+))?@(?P<ref>.+)")


class _Loader(yaml.SafeLoader):
    """YAML as GitHub reads it: `on`, `off`, `yes` and `no` are words, not booleans."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:bool"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def read_yaml(path: Path) -> Any:
    """Return what a workflow or an action says."""
    return yaml.load(path.read_text(), Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader


def needs(job: Mapping[str, Any]) -> list[str]:
    """Return the ids of the jobs that a job waits for."""
    value = job.get("needs", [])
    return [value] if isinstance(value, str) else list(value)


def order(workflow: Mapping[str, Any]) -> list[str]:
    """Return the ids of all jobs, each after those it needs."""
    return list(
        TopologicalSorter({n: needs(j) for n, j in workflow["jobs"].items()}).static_order()
    )


def ancestors(workflow: Mapping[str, Any], job: str) -> list[str]:
    """Return the jobs that must end before a job can start, in order."""
    found: set[str] = set()
    waiting = needs(workflow["jobs"][job])
    while waiting:
        found.add(name := waiting.pop())
        waiting += needs(workflow["jobs"][name])
    return [name for name in order(workflow) if name in found]


@dataclass(frozen=True)
class Work:
    """What a job does: its own steps, or those of the one job of the workflow that it calls.

    Where that has several, `job` is the caller itself, which has none.

    Attributes
    ----------
    id
        The id of the job with the steps.
    job
        That job.
    called
        The workflow it belongs to, and that one's file name; nothing where the job is its own.
    permissions
        What the token may do.
    """

    id: str
    job: Mapping[str, Any]
    called: tuple[str, Mapping[str, Any]] | None
    permissions: Mapping[str, str]

    @property
    def several(self) -> bool:
        """Whether it calls a workflow of several jobs."""
        return "uses" in self.job


def work(repository: Path, workflow: Mapping[str, Any], job: str) -> Work:
    """Return what a job of a workflow does.

    Raises
    ------
    HarnessError
        Where GitHub would refuse the run, or act would silently do something else.
    """
    own = workflow["jobs"][job]
    granted = permissions(workflow, job)
    if "uses" not in own:
        if granted is None:
            raise HarnessError(f"job {job}: its permissions must be named")
        return _checked(Work(job, own, None, granted), job)
    if not (match := _CALLED.fullmatch(own["uses"])):
        raise HarnessError(f"job {job}: only a workflow of this repository can be called")
    called = read_yaml(repository / ".github" / "workflows" / match["file"])
    if "workflow_call" not in called["on"]:
        raise HarnessError(f"job {job}: {match['file']} cannot be called")
    if len(called["jobs"]) != 1:
        return Work(job, own, (match["file"], called), granted or {})
    (name,) = called["jobs"]
    asked = permissions(called, name)
    for scope, level in (asked or {}).items():
        least = (granted or {}).get(scope, "none")
        if LEVELS.index(level) > LEVELS.index(least):
            raise HarnessError(
                f"job {job}: the called job {name} asks for {scope}: {level}, "
                f"but is only granted {scope}: {least}"
            )
    may = granted if asked is None else asked
    if may is None:
        raise HarnessError(f"job {job}: its permissions must be named")
    return _checked(Work(name, called["jobs"][name], (match["file"], called), may), job)


def permissions(workflow: Mapping[str, Any], job: str) -> dict[str, str] | None:
    """Return what a job asks for; what is not named is none, as GitHub has it."""
    own = workflow["jobs"][job].get("permissions", workflow.get("permissions"))
    if own is not None and not isinstance(own, dict):
        raise HarnessError(f"job {job}: permissions must be named one by one, not {own!r}")
    return None if own is None else {str(k): str(v) for k, v in own.items()}


def _checked(work: Work, caller: str) -> Work:
    """Refuse what act would silently do differently from GitHub."""
    for key in ("strategy", "uses", "services", "container", "continue-on-error"):
        if key in work.job:
            raise HarnessError(f"job {caller}: the harness does not carry out `{key}` yet")
    for part in (work.job, *work.job["steps"]):
        if "RUNNER_TRACKING_ID" in part.get("env", {}):
            raise HarnessError(f"job {caller}: act would overwrite RUNNER_TRACKING_ID")
    return work


def check_inputs(workflow: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """Refuse what GitHub refuses when somebody starts a workflow by hand.

    Raises
    ------
    HarnessError
        For an input that is not declared or is missing, and for a choice that is not offered.
    """
    trigger = workflow["on"]
    if "workflow_dispatch" not in trigger:
        raise HarnessError("Workflow does not have 'workflow_dispatch' trigger")
    settings = trigger["workflow_dispatch"] if isinstance(trigger, dict) else None
    declared = (settings or {}).get("inputs") or {}
    if unknown := given.keys() - declared.keys():
        raise HarnessError(f"Unexpected inputs provided: {sorted(unknown)}")
    for name, what in declared.items():
        value = given.get(name, what.get("default"))
        if what.get("required") and value in (None, ""):
            raise HarnessError(f"Required input '{name}' not provided")
        if what.get("type") == "choice" and name in given and value not in what["options"]:
            raise HarnessError(f"Provided value '{value}' for input '{name}' not in the list")


def remote_actions(
    repository: Path, workflows: Iterable[Mapping[str, Any]]
) -> dict[tuple[str, str], dict[str, set[str]]]:
    """Return each action used that lies elsewhere.

    Returns
    -------
    dict
        (owner/name, ref) → folder below it, mostly "" → the inputs it is given.
    """
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    local = [read_yaml(f) for f in sorted(repository.glob(".github/actions/**/action.yml"))]
    for node in _uses([*workflows, *local]):
        if match := _REMOTE.fullmatch(node["uses"]):
            paths = found.setdefault((match["slug"], match["ref"]), {})
            paths.setdefault(match["path"] or "", set()).update(node.get("with", {}))
    return found


def _uses(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if isinstance(node.get("uses"), str):
            yield node
        for value in node.values():
            yield from _uses(value)
    elif isinstance(node, list):
        for value in node:
            yield from _uses(value)
