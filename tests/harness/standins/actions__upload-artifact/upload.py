"""Stands in for actions/upload-artifact: the files that the patterns match, into the run's folder.

As the action does: one pattern that names a folder or a glob is the artifact's root, several are
rooted at the folder they have in common; hidden files, and files in hidden folders, only on
request; a name can be used once in a run, unless the one before is to be overwritten.
"""

import glob
import json
import os
import shutil
import sys
from pathlib import Path

name = os.environ["NAME"]
run = Path(os.environ["STANDIN_RUN"])
index_file = run / "artifacts.json"
index = json.loads(index_file.read_text()) if index_file.exists() else {}
if name in index and os.environ["OVERWRITE"] != "true":
    sys.exit(f"::error::an artifact {name} was already uploaded in this run")
shutil.rmtree(run / "artifacts" / name, ignore_errors=True)


def search_path(pattern: str) -> Path:
    """Return the part of a pattern before its first wildcard."""
    parts = Path(pattern).parts
    plain = [p for i, p in enumerate(parts) if not any(map(glob.has_magic, parts[: i + 1]))]
    return Path(*plain).absolute()


def is_hidden(path: Path) -> bool:
    """Tell whether a file, or a folder on the way to it, has a name with a leading dot."""
    return any(part.startswith(".") for part in path.relative_to(Path.cwd()).parts)


patterns = [line.strip() for line in os.environ["PATHS"].splitlines() if line.strip()]
if any(pattern.startswith("!") for pattern in patterns):
    sys.exit("::error::this stand-in knows no exclusions")
files = set()
for pattern in patterns:
    for hit in map(Path, glob.glob(pattern, recursive=True, include_hidden=True)):
        found = hit.rglob("*") if hit.is_dir() else [hit]
        files |= {f.absolute() for f in found if f.is_file()}
if os.environ["HIDDEN"] != "true":
    files = {f for f in files if not is_hidden(f)}
if not files:
    missing = os.environ["MISSING"]
    sys.exit(f"::error::no files found: {patterns}" if missing == "error" else 0)
searched = [search_path(p) for p in patterns]
root = Path(os.path.commonpath(searched))
if root.is_file():
    root = root.parent
for file in sorted(files):
    place = run / "artifacts" / name / file.relative_to(root)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, place)
index[name] = os.environ["STANDIN_JOB"]
index_file.write_text(json.dumps(index))
with Path(os.environ["GITHUB_OUTPUT"]).open("a") as outputs:
    outputs.write(f"artifact-id={len(index)}\n")
print(f"uploaded {len(files)} files as {name}")
