"""Stands in for docker/metadata-action: tags of type raw, sha, ref and semver, and the labels.

As the action does: names are lower-case, other characters than a tag may have become `-`, a tag
of git adds `latest`, and no rules mean branch, tag and pull request.
"""

import json
import os
import re
import sys

from standin import output

REF, NAME = os.environ["GITHUB_REF"], os.environ["GITHUB_REF_NAME"]
KINDS = {"branch": "refs/heads/", "tag": "refs/tags/", "pr": "refs/pull/"}
VERSION = re.compile(r"v?(?P<major>\d+)\.(?P<minor>\d+)\.(?P<patch>\d+)(?P<pre>-[\w.-]+)?(?:\+.*)?")


def versions(rule: dict[str, str]) -> list[str]:
    """Return the tags that one rule gives here, none where it does not apply."""
    kind, of_tag = rule["type"], REF.startswith("refs/tags/")
    if kind == "raw":
        return [rule["value"]] if rule["value"] else []
    if kind == "sha":
        return [rule.get("prefix", "sha-") + os.environ["GITHUB_SHA"][:7]]
    if kind == "ref":
        if not REF.startswith(KINDS[rule["event"]]):
            return []
        return [f"pr-{NAME.split('/')[0]}"] if rule["event"] == "pr" else [NAME]
    if kind == "semver":
        match = VERSION.fullmatch(rule.get("value") or (NAME if of_tag else ""))
        if not match:
            return []
        parts = {key: value or "" for key, value in match.groupdict().items()}
        parts["version"] = "{major}.{minor}.{patch}{pre}".format_map(parts)
        return [re.sub(r"{{(\w+)}}", lambda found: parts[found[1]], rule["pattern"])]
    sys.exit(f"::error::this stand-in knows no tags of type {kind}")


lines = [line.strip() for line in os.environ["TAGS"].splitlines() if line.strip()]
lines = lines or [f"type=ref,event={event}" for event in KINDS]
rules = [
    dict(
        part.split("=", 1)
        for part in (line if "=" in line else f"type=raw,value={line}").split(",")
    )
    for line in lines
]
if unused := {key for rule in rules for key in rule} - {
    "type",
    "value",
    "event",
    "pattern",
    "prefix",
}:
    sys.exit(f"::error::this stand-in knows no {sorted(unused)}")
names = [re.sub(r"[^\w.-]", "-", name) for rule in rules for name in versions(rule)]
follows = any(r["type"] == "semver" or r.get("event") == "tag" for r in rules if versions(r))
if follows and REF.startswith("refs/tags/"):
    names.append("latest")
images = [image.strip().lower() for image in re.split(r"[\n,]", os.environ["IMAGES"])]
tags = [f"{image}:{name}" for image in filter(None, images) for name in dict.fromkeys(names)]
source = f"https://github.com/{os.environ['GITHUB_REPOSITORY']}"
labels = {
    "org.opencontainers.image.revision": os.environ["GITHUB_SHA"],
    "org.opencontainers.image.source": source,
    "org.opencontainers.image.title": os.environ["GITHUB_REPOSITORY"].split("/")[1],
    "org.opencontainers.image.url": source,
    "org.opencontainers.image.version": names[0] if names else "",
}
labels |= dict(line.split("=", 1) for line in os.environ["LABELS"].splitlines() if "=" in line)
output("tags", "\n".join(tags))
output("labels", "\n".join(f"{key}={value}" for key, value in sorted(labels.items())))
output("version", names[0] if names else "")
output("json", json.dumps({"tags": tags, "labels": labels}))
