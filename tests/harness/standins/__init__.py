"""Stand-ins for actions that talk to GitHub.

A folder `owner__name` holds one for an action of that name, in Python, with the action's own
inputs; any other action gets a recorder, which writes its inputs to the run's `calls.jsonl`.
`actions/checkout` is built into act. The program `gh` has a stand-in too.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ..workflow import remote_actions

_HERE = Path(__file__).parent
GH = _HERE / "gh"


def prepare(project: Path, workflow: dict[str, Any], folder: Path) -> dict[tuple[str, str], Path]:
    """Copy or make a stand-in for each remote action: (owner/name, ref) → its folder."""
    made = {}
    for (slug, ref), inputs in remote_actions(project, workflow).items():
        name = slug.replace("/", "__")
        made[slug, ref] = folder / f"{name}@{ref}"
        if (_HERE / name).is_dir():
            shutil.copytree(_HERE / name, made[slug, ref])
        else:
            _recorder(slug, inputs, made[slug, ref])
    return made


def _recorder(slug: str, inputs: set[str], folder: Path) -> None:
    folder.mkdir(parents=True)
    shutil.copy(_HERE / "record.py", folder)
    names = {name: {"description": name, "required": False} for name in sorted(inputs)}
    step = {
        "shell": "bash",
        "env": {"ACTION": slug, "INPUTS": "${{ toJSON(inputs) }}"},
        "run": 'python3 "$GITHUB_ACTION_PATH/record.py"',
    }
    action = {
        "name": slug,
        "description": "recorder",
        "inputs": names,
        "runs": {"using": "composite", "steps": [step]},
    }
    (folder / "action.yml").write_text(json.dumps(action))  # JSON is YAML
