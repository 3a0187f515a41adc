"""Stand-ins for actions that talk to GitHub.

A folder `owner__name` holds one for an action of that name, in Python, with the action's own
inputs; any other action gets a recorder, which writes its inputs to the run's `calls.jsonl`.
The programs `gh` and `node` have stand-ins too. What all have in common is in `shared`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..workflow import remote_actions

_HERE = Path(__file__).parent
_SHARED = _HERE / "shared"
_PROGRAMS = ("gh", "node")


def prepare(
    repository: Path, workflows: Iterable[Mapping[str, Any]], folder: Path
) -> dict[tuple[str, str], Path]:
    """Copy or make a stand-in for each remote action: (owner/name, ref) → its folder."""
    made = {}
    for (slug, ref), paths in remote_actions(repository, workflows).items():
        name = slug.replace("/", "__")
        made[slug, ref] = own = folder / f"{name}@{ref}"
        if (_HERE / name).is_dir():
            shutil.copytree(_HERE / name, own)
            shutil.copy(_SHARED / "standin.py", own)
        for path, inputs in paths.items():
            if not (own / path / "action.yml").exists():
                _recorder(f"{slug}/{path}".rstrip("/"), inputs, own / path)
    return made


def install(folder: Path) -> None:
    """Copy the programs that stand in for others into a folder that is on PATH."""
    for name in _PROGRAMS:
        shutil.copy(_HERE / name, folder)
    shutil.copytree(_SHARED, folder / "shared")


def _recorder(slug: str, inputs: set[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
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
