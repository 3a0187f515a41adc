"""A called workflow with jobs of its own: read as GitHub does, with its inputs put in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .results import HarnessError, Job
from .workflow import LEVELS, Work, order, work

_INPUT = re.compile(r"\binputs\.([\w-]+)")
_OUTPUT = re.compile(r"\$\{\{ jobs\.([\w-]+)\.outputs\.([\w-]+) \}\}")


def entered(workflow: Mapping[str, Any], given: Mapping[str, str], on: Any) -> dict[str, Any]:
    """Return a called workflow as one that is started by its caller's event.

    What is an input in an expression becomes its value; none of a caller's is left out of it.

    Raises
    ------
    HarnessError
        For an input that is required and not given, and for one that is not declared.
    """
    declared = (workflow["on"]["workflow_call"] or {}).get("inputs") or {}
    if unknown := given.keys() - declared.keys():
        raise HarnessError(f"Invalid input, {sorted(unknown)} are not defined in the workflow")
    values = {name: str(what.get("default", "")) for name, what in declared.items()} | dict(given)
    for name, what in declared.items():
        if what.get("required") and name not in given:
            raise HarnessError(f"Input {name} is required, but not provided while calling")

    def put(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: put(value) for key, value in node.items()}
        if isinstance(node, list):
            return [put(value) for value in node]
        return _INPUT.sub(quoted, node) if isinstance(node, str) else node

    def quoted(match: re.Match[str]) -> str:
        return "'" + values.get(match[1], "").replace("'", "''") + "'"

    return {**put({key: value for key, value in workflow.items() if key != "on"}), "on": on}


def works(
    repository: Path, workflow: Mapping[str, Any], may: Mapping[str, str] | None = None
) -> dict[str, Work]:
    """Return what each job of a workflow does, in order, and see to what a caller's jobs may.

    Raises
    ------
    HarnessError
        Where it asks for more.
    """
    found = {job: work(repository, workflow, job) for job in order(workflow)}
    for name, one in found.items():
        for scope, level in one.permissions.items() if may is not None else ():
            least = (may or {}).get(scope, "none")
            if LEVELS.index(level) > LEVELS.index(least):
                raise HarnessError(
                    f"job {name} asks for {scope}: {level}, but is only granted {scope}: {least}"
                )
    return found


def outcome(job: str, workflow: Mapping[str, Any], ended: Mapping[str, Job]) -> Job:
    """Return how a call ended: by its jobs, with the outputs that the called workflow declares."""
    results = {one.result for one in ended.values()}
    worst = next(r for r in ("cancelled", "failure", "success", "skipped") if r in results)
    outputs = {}
    for name, what in ((workflow["on"]["workflow_call"] or {}).get("outputs") or {}).items():
        if not (match := _OUTPUT.fullmatch(what["value"])):
            raise HarnessError(f"job {job}: the harness knows only outputs of jobs, not {name}")
        outputs[name] = ended[match[1]].outputs.get(match[2], "")
    seconds = sum(one.seconds for one in ended.values())
    return Job(
        job, worst, outputs=outputs, log="".join(e.log for e in ended.values()), seconds=seconds
    )
