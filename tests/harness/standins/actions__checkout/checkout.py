"""Stands in for actions/checkout: the commit of the run, or a `ref`, of the one repository.

What it does to a folder is what the action does, down to the names of branches and the refspecs:
one commit without history unless `fetch-depth` says more, and all branches and tags where it is 0.
A folder that is a clone already loses its branches, and all that is not tracked unless `clean` is
false.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from standin import GITHUB, PRIVATE, may, output

ADDRESS = f"https://github.com/{os.environ['GITHUB_REPOSITORY']}"
LOGIN = f"url.file://{GITHUB / 'origin.git'}.insteadOf"


def git(*words: str) -> str:
    """Run git in the checkout; its failure is the step's."""
    done = subprocess.run(["git", *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"::error::The process 'git' failed with exit code {done.returncode}")
    return done.stdout.strip()


def fetch(*refspecs: str, depth: int) -> None:
    """Fetch with the token that the action has, whatever this user is logged in to."""
    how = [f"--depth={depth}"] if depth else []
    if not depth and Path(".git/shallow").exists():
        how = ["--unshallow"]
    tags = [] if os.environ["TAGS"] == "true" else ["--no-tags"]
    login = ("-c", f"{LOGIN}={ADDRESS}")
    git(*login, "fetch", "--quiet", "--prune", "--force", *tags, *how, "origin", *refspecs)


def prepare() -> None:
    """Make the folder a clean repository whose origin is on GitHub."""
    head = ["git", "--git-dir=.git", "rev-parse", "--verify", "--quiet", "HEAD"]
    if subprocess.run(head, capture_output=True, check=False).returncode:
        for entry in Path().iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        git("-c", "init.defaultBranch=main", "init", "--quiet")
        git("remote", "add", "origin", ADDRESS)
    else:
        Path(".git/index.lock").unlink(missing_ok=True)  # of a job that was killed
        git("checkout", "--quiet", "--detach")
        for branch in git("for-each-ref", "--format=%(refname:short)", "refs/heads").splitlines():
            git("branch", "--quiet", "--delete", "--force", branch)
        if os.environ["CLEAN"] != "false":
            git("clean", "-ffdx", "--quiet")
            git("reset", "--hard", "--quiet")
    if os.environ["PERSIST"] != "false":
        git("config", LOGIN, ADDRESS)


def wanted() -> tuple[str, str]:
    """Return the full name of the ref and the commit to check out; one of them may be empty."""
    ref = os.environ["REF"]
    if not ref:
        return os.environ["GITHUB_REF"], os.environ["GITHUB_SHA"]
    if re.fullmatch(r"[0-9a-fA-F]{40}", ref):
        return "", ref
    names = [ref] if ref.startswith("refs/") else [f"refs/heads/{ref}", f"refs/tags/{ref}"]
    known = git("--git-dir", str(GITHUB / "origin.git"), "for-each-ref", "--format=%(refname)")
    found = [name for name in names if name in known.splitlines()]
    if not found:
        sys.exit(f"::error::A branch or tag with the name '{ref}' could not be found")
    return found[0], ""


def here(ref: str) -> str:
    """Return the name that a fetched ref has in the clone."""
    for there, ours in (
        ("refs/heads/", "refs/remotes/origin/"),
        ("refs/pull/", "refs/remotes/pull/"),
    ):
        if ref.startswith(there):
            return ours + ref.removeprefix(there)
    return ref


def main() -> None:
    """Check out."""
    if PRIVATE and not may("contents", "read"):
        sys.exit(f"::error::fatal: repository '{ADDRESS}/' not found")
    Path(os.environ["FOLDER"]).mkdir(parents=True, exist_ok=True)
    os.chdir(os.environ["FOLDER"])
    prepare()
    ref, commit = wanted()
    depth = int(os.environ["DEPTH"])
    if not depth:
        fetch("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*", depth=0)
    # A tag is fetched as what it is; a branch at the run's commit, wherever it stands by now.
    source = ref if ref.startswith("refs/tags/") else commit or ref
    fetch(f"+{source}:{here(ref)}" if ref else commit, depth=depth)
    if ref.startswith("refs/heads/"):
        git("checkout", "--quiet", "--force", "-B", ref.removeprefix("refs/heads/"), here(ref))
    else:
        git("checkout", "--quiet", "--force", "--detach", here(ref) if ref else commit)
    output("ref", ref)
    output("commit", git("rev-parse", "HEAD"))


main()
