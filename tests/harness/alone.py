"""Rewrites a workflow so that act runs exactly one of its jobs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .results import Job
from .sandbox import seen
from .workflow import LABELS, Work, ancestors, needs

OBSERVER = "harness-observer"
ENTER = "harness-enter"
"""The step that leads to the checkout which a machine of one's own keeps."""

_END = "harness-end-of-value"
_IGNORED = ("concurrency", "environment")
"""Not carried out by act, which does not even know all their forms; static tests read them."""


def alone(
    workflow: Mapping[str, Any],
    job: str,
    real: Mapping[str, Any],
    past: Mapping[str, Job],
    folder: Path,
) -> str:
    """Return a workflow in which one job is real and the jobs before it are already over.

    Each earlier job becomes one that ends as it did and gives the outputs that it gave, so that
    act evaluates the real job's `if:` and `needs` by itself. A last job, the observer, writes
    down how the real one ended.

    Parameters
    ----------
    workflow
        The workflow as read from its file.
    job
        The id of the job to run.
    real
        What stands under this id.
    past
        How each job before it ended.
    folder
        Where outputs are handed over.

    Returns
    -------
    str
        YAML.
    """
    jobs = {
        name: _ended(workflow["jobs"][name], past[name], folder)
        for name in ancestors(workflow, job)
    }
    jobs[job] = dict(real)
    ended = {"name": "Write down", "env": {"ENDED": "${{ toJSON(needs) }}"}}
    jobs[OBSERVER] = _observer(job, {**ended, "run": _write("$ENDED", folder / "ended.json")})
    return _yaml({**_known(workflow), "jobs": jobs})


def place(
    workflow: Mapping[str, Any], job: str, work: Work, steps: list[Any], folder: Path
) -> dict[str, Any]:
    """Put steps in place of a job's own, and return what stands under its id.

    Where the job calls a workflow, that one is written below `folder`, in `repository`, where act
    finds it. Since act ends at once when a called job fails, it has an observer too.
    """
    called_only = ("uses", "with", "secrets")
    own = {key: value for key, value in _known(work.job).items() if key not in called_only}
    own |= {"runs-on": LABELS[0], "steps": steps}
    if work.called is None or work.several:
        return own
    file, called = work.called
    # In a called workflow the context `github` is that of its caller.
    copy = {**_known(called), "name": workflow["name"]}
    copy["jobs"] = {work.id: own, OBSERVER: _observer(work.id, _write_called(work, called, folder))}
    target = folder / "repository" / ".github" / "workflows" / file
    target.parent.mkdir(parents=True)
    target.write_text(_yaml(copy))
    # Without a name: the log names the job by its id.
    return {k: v for k, v in _known(workflow["jobs"][job]).items() if k != "name"}


def ended(folder: Path, job: str) -> dict[str, Any]:
    """Return what the observers wrote down of a job: result and outputs, or nothing."""
    if (called := folder / "called.json").exists():
        return dict(json.loads(called.read_text()))
    caller = folder / "ended.json"
    return dict(json.loads(caller.read_text())[job]) if caller.exists() else {}


def enter(checkout: Path) -> dict[str, Any]:
    """Return the step that makes a folder which outlives the job its workspace."""
    command = f'rmdir "$GITHUB_WORKSPACE" && ln -s \'{seen(checkout)}\' "$GITHUB_WORKSPACE"'
    return {"name": "Enter the checkout", "id": ENTER, "run": command}


def tell(expression: str, file: Path) -> dict[str, Any]:
    """Return a step that writes down what an expression is."""
    return {"name": "Tell", "env": {"VALUE": expression}, "run": _write("$VALUE", file)}


def _write(value: str, file: Path) -> str:
    return f"printf '%s' \"{value}\" > '{seen(file)}'"


def _write_called(work: Work, called: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the step that writes down how a called job ended, and the workflow's outputs."""
    declared = (called["on"]["workflow_call"] or {}).get("outputs") or {}
    names = list(declared)
    # Within the called workflow its jobs are not in the context `jobs`.
    values = [re.sub(r"\bjobs\.", "needs.", declared[name]["value"]) for name in names]
    outputs = f"{{name: os.environ[f'VALUE_{{n}}'] for n, name in enumerate({names})}}"
    ended = f"dict(result=os.environ['RESULT'], outputs={outputs})"
    code = f"import json, os; print(json.dumps({ended}))"
    return {
        "name": "Write down",
        "env": {"RESULT": f"${{{{ needs.{work.id}.result }}}}"}
        | {f"VALUE_{n}": value for n, value in enumerate(values)},
        "run": f"python3 -c \"{code}\" > '{seen(folder)}/called.json'",
    }


def _observer(job: str, step: dict[str, Any]) -> dict[str, Any]:
    return {"needs": job, "if": "always()", "runs-on": LABELS[0], "steps": [step]}


def _known(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in _IGNORED}


def _yaml(workflow: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(workflow, sort_keys=False))


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
