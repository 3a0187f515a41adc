"""Stands in for `gh`: releases, attestations and issues of one repository, kept in a folder.

Refuses what GitHub would refuse: a call without a token or a repository, and one that the token's
permissions do not cover. An option that it does not know is an error. Every call is written down.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from standin import GITHUB, PRIVATE, may, state

Options = argparse.Namespace
_How = dict[str, Any]
_Arguments = dict[str, _How]


def main(words: list[str]) -> None:
    """Carry out one call."""
    if not os.environ.get("GH_TOKEN"):
        _fail("gh: To use GitHub CLI in a GitHub Actions workflow, set the GH_TOKEN env variable.")
    with state("calls.json", []) as calls:
        where = {"run": os.environ.get("GITHUB_RUN_NUMBER"), "job": os.environ.get("STANDIN_JOB")}
        calls.append({**where, "words": words})
    options = _parser().parse_args([w.replace("--latest=false", "--not-latest") for w in words])
    if options.do is not setup_git:
        _require_repository(options)
    options.do(options)


def setup_git(_: Options) -> None:
    """As a credential helper does, for this user's git from now on."""
    address = f"https://github.com/{os.environ['GITHUB_REPOSITORY']}"
    place = f"url.file://{GITHUB / 'origin.git'}.insteadOf"
    subprocess.run(["git", "config", "--global", place, address], check=True)


def release_create(options: Options) -> None:
    """Make a release of a tag, once, with its assets."""
    _require("contents")
    for file in options.files:
        if not Path(file).is_file():
            _fail(f"no matches found for `{file}`")
    tags = ["git", "-C", str(GITHUB / "origin.git"), "tag", "--list", options.tag]
    if options.verify_tag and not subprocess.check_output(tags):
        _fail(f"tag {options.tag} doesn't exist in the repo, aborting due to --verify-tag flag")
    notes = Path(options.notes_file).read_text() if options.notes_file else options.notes
    with state("releases.json", {}) as releases:
        if options.tag in releases:
            _fail("HTTP 422: Validation Failed\nRelease.tag_name already exists")
        latest = not (options.prerelease or options.not_latest)
        for other in releases.values():
            other["latest"] = other["latest"] and not latest
        made = {"title": options.title or options.tag, "notes": notes, "latest": latest}
        releases[options.tag] = {**made, "prerelease": options.prerelease}
        _assets(options.tag).mkdir(parents=True)
        for file in options.files:
            shutil.copy(file, _assets(options.tag))
    print(f"https://github.com/{os.environ['GITHUB_REPOSITORY']}/releases/tag/{options.tag}")


def release_upload(options: Options) -> None:
    """Add assets to a release."""
    _require("contents")
    with state("releases.json", {}) as releases:
        _known(options.tag, releases)
        for file in map(Path, options.files):
            if (_assets(options.tag) / file.name).exists() and not options.clobber:
                _fail(f"asset under the same name already exists: [{file.name}]")
            _copy(file, _assets(options.tag) / file.name)


def release_download(options: Options) -> None:
    """Copy one asset of a release into a folder."""
    _require("contents", "read")
    with state("releases.json", {}) as releases:
        _known(options.tag, releases)
        found = sorted(_assets(options.tag).glob(options.pattern))
        if not found:
            _fail("no assets match the file pattern")
        for asset in found:
            target = Path(options.dir) / asset.name
            if target.exists() and not options.clobber:
                _fail(f"{target} already exists (use `--clobber` to overwrite file)")
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(asset, target)


def attestation_verify(options: Options) -> None:
    """Succeed if somebody attested who built exactly these bytes, or this image."""
    _require("attestations", "read")
    if options.repo != os.environ["GITHUB_REPOSITORY"]:
        _fail("HTTP 404: Not Found")
    if options.file.startswith("oci://"):
        digest = options.file.rpartition("@sha256:")[2]
    else:
        digest = sha256(Path(options.file).read_bytes()).hexdigest()
    with state("attestations.json", []) as attestations:
        found = [a for a in attestations if a["sha256"] == digest]
    if not found:
        _fail(f"no attestations found for subject sha256:{digest}")
    form, place = options.cert_identity_regex or "", f"https://github.com/{options.repo}"
    if not any(re.search(form, f"{place}/{a['signer']}@{a['ref']}") for a in found):
        _fail(f"verifying with issuer failed: expected {form}")
    for key, wanted in (("sha", options.source_digest), ("ref", options.source_ref)):
        if wanted and not any(a[key] == wanted for a in found):
            _fail(f"verifying with issuer failed: expected {key} {wanted}")
    print(json.dumps(found) if options.format == "json" else "Verification succeeded!")


def _issues(label: str, which: str, most: int) -> list[dict[str, Any]]:
    """Return the issues in a state that have a label, or any for "", the newest first."""
    _require("issues", "read")
    with state("issues.json", []) as issues:
        found = [
            it for it in reversed(issues) if it["state"] == which and label in ["", *it["labels"]]
        ]
    return found[:most]


def _assets_of(jq: str) -> str:
    """Return the assets of a tag's release that is no draft, the one form of jq that is known."""
    _require("contents", "read")
    if jq != ".[] | select(.tag_name == env.TAG and (.draft | not)).assets[].name":
        _fail(f"this stand-in does not know {jq}")
    with state("releases.json", {}) as releases:
        made = releases.get(os.environ["TAG"], {"draft": True})
    if made.get("draft"):
        return ""
    return "\n".join(sorted(asset.name for asset in _assets(os.environ["TAG"]).iterdir()))


def label_create(options: Options) -> None:
    """Make a label, or with --force be content with one that is there."""
    _require("issues")
    with state("labels.json", []) as labels:
        if options.name not in labels:
            labels.append(options.name)
        elif not options.force:
            _fail(f"label with name `{options.name}` already exists; use `--force` to update")


def issue_create(options: Options) -> None:
    """Open an issue, and print its address."""
    _require("issues")
    with state("labels.json", []) as labels:
        for label in set(options.label) - set(labels):
            _fail(f"could not add label: '{label}' not found")
    with state("issues.json", []) as issues:
        issue = {"number": len(issues) + 1, "title": options.title, "body": _body(options) or ""}
        issues.append({**issue, "state": "open", "labels": options.label})
    print(f"https://github.com/{os.environ['GITHUB_REPOSITORY']}/issues/{issue['number']}")


def issue_edit(options: Options) -> None:
    """Change the title, the text or the labels of an issue."""
    _require("issues")
    with state("issues.json", []) as issues:
        found = [issue for issue in issues if issue["number"] == options.number]
        if not found:
            _fail("GraphQL: Could not resolve to an issue or pull request")
        changes = {"title": options.title, "body": _body(options)}
        found[0].update({key: value for key, value in changes.items() if value is not None})
        found[0]["labels"] += [new for new in options.add_label if new not in found[0]["labels"]]


def api(options: Options) -> None:
    """Answer a GET with what the test wrote down for the path, or with what the repository is."""
    if options.method != "GET":
        _fail(f"this stand-in only answers GET, not {options.method}")
    owner, name = os.environ["GITHUB_REPOSITORY"].split("/")
    path = options.path.lstrip("/").replace("{owner}", owner).replace("{repo}", name)
    about = {"full_name": f"{owner}/{name}", "visibility": "private" if PRIVATE else "public"}
    answers = {f"repos/{owner}/{name}": about} | json.loads((GITHUB / "api.json").read_text())
    if path == f"repos/{owner}/{name}/releases" and options.paginate:
        print(_assets_of(options.jq))
        return
    of = r"(?:labels=([\w-]+)|creator=github-actions%5Bbot%5D)"  # by that app are all of them here
    if asked := re.fullmatch(
        rf"repos/{owner}/{name}/issues\?{of}&state=(\w+)&per_page=(\d+)", path
    ):
        found = _issues(asked[1] or "", asked[2], int(asked[3]))
        print(_first(found, options.jq) if options.jq else json.dumps(found))
        return
    if path not in answers:
        print(json.dumps({"message": "Not Found", "status": "404"}))
        _fail("gh: Not Found (HTTP 404)")
    found = answers[path]
    print(found[options.jq.removeprefix(".")] if options.jq else json.dumps(found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gh", allow_abbrev=False)
    groups = parser.add_subparsers(required=True)
    many: _How = {"action": "append", "default": []}
    yes: _How = {"action": "store_true"}
    body: _Arguments = {"--title": {}, "--body": {}, "--body-file": {}}
    _add(
        groups,
        "api",
        api,
        {"path": {}, "--method": {"default": "GET"}, "--paginate": yes, "--jq": {}},
    )
    auth = groups.add_parser("auth").add_subparsers(required=True)
    _add(auth, "setup-git", setup_git, {})
    verify: _Arguments = {"file": {}, "--source-digest": {}, "--source-ref": {}, "--format": {}}
    verify["--cert-identity-regex"] = {}
    attestation = groups.add_parser("attestation").add_subparsers(required=True)
    _add(attestation, "verify", attestation_verify, verify)
    release = groups.add_parser("release").add_subparsers(required=True)
    files: _Arguments = {"tag": {}, "files": {"nargs": "*"}}
    flags = dict.fromkeys(("--prerelease", "--latest", "--not-latest", "--verify-tag"), yes)
    notes: _Arguments = {"--title": {}, "--notes": {"default": ""}, "--notes-file": {}}
    _add(release, "create", release_create, {**files, **notes, **flags})
    _add(release, "upload", release_upload, {**files, "--clobber": yes})
    to: _Arguments = {"--pattern": {"default": "*"}, "--dir": {"default": "."}, "--clobber": yes}
    _add(release, "download", release_download, {"tag": {}, **to})
    issue = groups.add_parser("issue").add_subparsers(required=True)
    _add(issue, "create", issue_create, {**body, "--label": many})
    labels = groups.add_parser("label").add_subparsers(required=True)
    _add(labels, "create", label_create, {"name": {}, "--force": yes})
    _add(issue, "edit", issue_edit, {"number": {"type": int}, **body, "--add-label": many})
    return parser


def _add(groups: Any, name: str, do: Callable[[Options], None], arguments: _Arguments) -> None:
    parser = groups.add_parser(name, allow_abbrev=False)
    parser.add_argument("--repo", "-R")
    for argument, how in arguments.items():
        parser.add_argument(argument, **how)
    parser.set_defaults(do=do)


def _require_repository(options: Options) -> None:
    """Find the repository as `gh` does: by an option, a variable, or the folder's own origin."""
    ours = os.environ["GITHUB_REPOSITORY"]
    named = options.repo or os.environ.get("GH_REPO")
    if not named and options.do is not api:
        look = ["git", "config", "--get", "remote.origin.url"]
        done = subprocess.run(look, capture_output=True, text=True, check=False)
        if done.returncode:
            _fail("failed to determine base repo: not a git repository; use --repo or GH_REPO")
        named = ours
    if named and named != ours:
        _fail(f"GraphQL: Could not resolve to a Repository with the name '{named}'.")


def _require(permission: str, level: str = "write") -> None:
    if not may(permission, level):
        _fail(f"HTTP 403: Resource not accessible by integration ({permission}: {level})")


def _known(tag: str, releases: dict[str, Any]) -> None:
    if tag not in releases:
        _fail("release not found")


def _assets(tag: str) -> Path:
    return GITHUB / "releases" / tag


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that it appears whole."""
    new = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, new)
    new.rename(target)


def _first(shown: list[dict[str, Any]], jq: str) -> str:
    """Carry out the one form of jq that is known: the first that has the value of a variable."""
    form = r"first\(\.\[\] \| select\(\.(\w+) == env\.(\w+)\)\)\.(\w+)"
    if not (match := re.fullmatch(form, jq)):
        _fail(f"this stand-in does not know {jq}")
    key, variable, wanted = match.groups()
    found = [issue for issue in shown if issue[key] == os.environ.get(variable)]
    return str(found[0][wanted]) if found else ""


def _body(options: Options) -> str | None:
    if options.body_file == "-":
        return sys.stdin.read()
    return Path(options.body_file).read_text() if options.body_file else options.body


def _fail(message: str) -> NoReturn:
    sys.exit(message)
