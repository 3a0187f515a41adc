"""Open an issue about a run that failed, or add the run to the one that is open.

    RUN=https://github.com/… python3 tools/issue.py TITLE TEXT

Called by the nightly workflow: a month of failures is one issue, with its newest runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

RUNS = 20
"""How many runs an issue keeps, the newest last."""


OURS = "repos/{owner}/{repo}/issues?creator=github-actions%5Bbot%5D&state=open&per_page=100"
"""Our own: anybody may open one of any title. `gh issue list --app` is said to miss them."""


def gh(*words: str, given: str = "") -> str:
    """Run `gh` and return what it printed; its own message goes to standard error."""
    command = ["gh", *words]
    return subprocess.run(
        command, input=given, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


def body(text: str, runs: list[str]) -> str:
    """Return an issue's text: what it is about, and the newest runs, each once."""
    kept = list(dict.fromkeys(runs))[-RUNS:]
    return "\n".join([text, "", *(f"- {run}" for run in kept), ""])


def report(title: str, text: str, run: str) -> str:
    """Open the issue of this title, or add a run to it; return what `gh` says of it."""
    for issue in json.loads(gh("api", OURS)):
        if issue["title"] == title:
            lines = (issue["body"] or "").splitlines()
            before = [line[2:] for line in lines if line.startswith("- ")]
            whole = body(text, [*before, run])
            return gh("issue", "edit", str(issue["number"]), "--body-file", "-", given=whole)
    return gh("issue", "create", "--title", title, "--body-file", "-", given=body(text, [run]))


def main(arguments: list[str]) -> int:
    """Report the run that the variable RUN names; return the exit code."""
    if len(arguments) != 2 or not os.environ.get("RUN"):
        print(__doc__, file=sys.stderr)
        return 2
    title, text = arguments
    try:
        print(report(title, text, os.environ["RUN"]))
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
