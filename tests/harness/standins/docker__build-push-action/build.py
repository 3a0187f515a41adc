"""Stands in for docker/build-push-action: an image is the SHA-256 of its context's files.

Refuses what would fail: a context or recipe that is not there, a name that is not lower-case, and
a push without a login or without `packages: write`.
"""

import json
import os
import sys
from hashlib import sha256
from pathlib import Path

from standin import output, require, state


def lines(name: str) -> list[str]:
    """Return an input of several lines, without empty ones."""
    return [line.strip() for line in os.environ[name].splitlines() if line.strip()]


context = Path(os.environ["CONTEXT"])
recipe = Path(os.environ["FILE"] or context / "Dockerfile")
if not context.is_dir():
    sys.exit(f"::error::path {context} not found")
if not recipe.is_file():
    sys.exit(f"::error::failed to read dockerfile: open {recipe}: no such file or directory")
whole = sha256(recipe.read_bytes())
for file in sorted(file for file in context.rglob("*") if file.is_file()):
    whole.update(f"{file.relative_to(context)}\0".encode() + file.read_bytes())
digest = f"sha256:{whole.hexdigest()}"
for tag in lines("TAGS"):
    if tag != f"{tag.rpartition(':')[0].lower()}:{tag.rpartition(':')[2]}":
        sys.exit(f"::error::invalid tag {tag}: repository name must be lowercase")
if os.environ["PUSH"] == "true":
    config = Path.home() / ".docker" / "config.json"
    auths = json.loads(config.read_text())["auths"] if config.exists() else {}
    for tag in lines("TAGS"):
        if tag.split("/")[0] not in auths:
            sys.exit(f"::error::push access denied to {tag}: authorization failed")
    require("packages")
    image = {"digest": digest, "labels": lines("LABELS"), "build-args": lines("BUILD_ARGS")}
    with state("images.json", {}) as images:
        images.update(dict.fromkeys(lines("TAGS"), image))
output("digest", digest)
