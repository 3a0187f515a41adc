"""Stands in for actions/attest: writes down the SHA-256 of files, or of one named subject.

Refuses what GitHub would refuse: a token that may not sign or store, a private repository whose
plan has no attestations, and subjects that are not there.
"""

import glob
import json
import os
import re
import sys
from hashlib import sha256
from pathlib import Path

from standin import GITHUB, PRIVATE, output, require, state

require("id-token")
require("attestations")
if PRIVATE and not json.loads((GITHUB / "plan.json").read_text()):
    sys.exit("::error::Feature not available for this organization: the repository is private")

subjects = {}
if name := os.environ["NAME"]:
    if not (match := re.fullmatch(r"sha256:([0-9a-f]{64})", os.environ["DIGEST"])):
        sys.exit("::error::subject-digest must be in the format 'sha256:<hex-digest>'")
    subjects[name] = match[1]
    if os.environ["PUSH"] == "true":
        require("packages")
else:
    for pattern in re.split(r"[\n,]", os.environ["PATHS"].strip()):
        for file in map(Path, glob.glob(pattern.strip(), recursive=True, include_hidden=True)):
            if file.is_file():
                subjects[file.name] = sha256(file.read_bytes()).hexdigest()
if not subjects:
    sys.exit(f"::error::Could not find subject at path {os.environ['PATHS']}")
about = {
    "run": os.environ["GITHUB_RUN_NUMBER"],
    "job": os.environ["STANDIN_JOB"],
    "signer": os.environ["STANDIN_FILE"],
    "sha": os.environ["GITHUB_SHA"],
    "ref": os.environ["GITHUB_REF"],
}
with state("attestations.json", []) as attestations:
    attestations += [{"name": n, "sha256": digest, **about} for n, digest in subjects.items()]
    number = len(attestations)
output(
    "attestation-url", f"https://github.com/{os.environ['GITHUB_REPOSITORY']}/attestations/{number}"
)
