"""Reads a workflow, orders its jobs, and rewrites it so that act runs exactly one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from .results import HarnessError, Job
from .sandbox import seen

OBSERVER = "harness-observer"
LABELS = ("ubuntu-24.04",)
"""The runners there are. act skips a job with any other label and exits 0."""

_END = "harness-end-of-value"
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


def permissions(workflow: Mapping[str, Any], job: str) -> dict[str, str]:
    """Return what a job's token may do; what is not named is none, as GitHub has it."""
    own = workflow["jobs"][job].get("permissions", workflow.get("permissions"))
    if not isinstance(own, dict):
        raise HarnessError(f"job {job}: permissions must be named one by one, not {own!r}")
    return {str(k): str(v) for k, v in own.items()}


def check_supported(workflow: Mapping[str, Any]) -> None:
    """Refuse what act would silently do differently from GitHub.

    Raises
    ------
    HarnessError
        For a matrix, a called workflow, services, or a checkout of another ref.
    """
    for name, job in workflow["jobs"].items():
        for key in ("strategy", "uses", "services", "container", "continue-on-error"):
            if key in job:
                raise HarnessError(f"job {name}: the harness does not carry out `{key}` yet")
        for step in job["steps"]:
            given = set(step.get("with", {}))
            if str(step.get("uses")).startswith("actions/checkout@") and given & {
                "ref",
                "repository",
            }:
                raise HarnessError(
                    f"job {name}: the harness only checks out the event's own commit"
                )


def alone(workflow: Mapping[str, Any], job: str, past: Mapping[str, Job], folder: Path) -> str:
    """Return a workflow in which one job is real and the jobs before it are already over.

    Each earlier job becomes one that ends as it did and gives the outputs that it gave, so that
    act evaluates the real job's `if:` and `needs` by itself. A last job, the observer, writes
    down how the real one ended.

    Parameters
    ----------
    workflow
        The workflow as read from its file.
    job
        The job to run.
    past
        How each job before it ended.
    folder
        Where outputs are handed over.

    Returns
    -------
    str
        YAML.
    """
    copy = {key: value for key, value in workflow.items() if key != "concurrency"}
    jobs = {
        name: _ended(workflow["jobs"][name], past[name], folder)
        for name in ancestors(workflow, job)
    }
    jobs[job] = workflow["jobs"][job]
    jobs[OBSERVER] = {
        "needs": job,
        "if": "always()",
        "runs-on": LABELS[0],
        "steps": [
            {
                "name": "Write down how the job ended",
                "env": {"ENDED": "${{ toJSON(needs) }}"},
                "run": f"printf '%s' \"$ENDED\" > '{seen(folder)}/ended.json'",
            }
        ],
    }
    return yaml.safe_dump({**copy, "jobs": jobs}, sort_keys=False)


def _ended(job: Mapping[str, Any], end: Job, folder: Path) -> dict[str, Any]:
    outputs = folder / f"{end.id}.outputs"
    lines = [f"{k}<<{_END}\n{v}\n{_END}\n" for k, v in end.outputs.items()]
    outputs.write_text("".join(lines))
    return {
        "needs": needs(job),
        "if": "false" if end.result == "skipped" else "always()",
        "runs-on": LABELS[0],
        "outputs": {name: f"${{{{ steps.past.outputs.{name} }}}}" for name in end.outputs},
        "steps": [
            {
                "name": "Outputs",
                "id": "past",
                "run": f"cat '{seen(outputs)}' >> \"$GITHUB_OUTPUT\"",
            },
            {"name": "Result", "run": "exit 0" if end.result == "success" else "exit 1"},
        ],
    }


def remote_actions(
    repository: Path, workflow: Mapping[str, Any]
) -> dict[tuple[str, str], set[str]]:
    """Return each action used that lies elsewhere: (owner/name, ref) → the inputs it is given."""
    found: dict[tuple[str, str], set[str]] = {}
    local = [read_yaml(f) for f in sorted(repository.glob(".github/actions/**/action.yml"))]
    for node in _uses([workflow, *local]):
        if match := _REMOTE.fullmatch(node["uses"]):
            if match["path"]:
                raise HarnessError(
                    f"{node['uses']}: the harness has no stand-in for a sub-path yet"
                )
            found.setdefault((match["slug"], match["ref"]), set()).update(node.get("with", {}))
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
