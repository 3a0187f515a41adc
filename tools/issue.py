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


def gh(*words: str, given: str = "") -> str:
    """Run `gh` and return what it printed; its own message goes to standard error."""
    command = ["gh", "issue", *words]
    return subprocess.run(
        command, input=given, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


def body(text: str, runs: list[str]) -> str:
    """Return an issue's text: what it is about, and the newest runs, each once."""
    kept = list(dict.fromkeys(runs))[-RUNS:]
    return "\n".join([text, "", *(f"- {run}" for run in kept), ""])


def report(title: str, text: str, run: str) -> str:
    """Open the issue of this title, or add a run to it; return what `gh` says of it."""
    # Only one of our own: anybody may open an issue with this title.
    mine = ("--state", "open", "--app", "github-actions", "--limit", "100")
    listed = json.loads(gh("list", *mine, "--json", "number,title,body"))
    for issue in listed:
        if issue["title"] == title:
            before = [line[2:] for line in issue["body"].splitlines() if line.startswith("- ")]
            whole = body(text, [*before, run])
            return gh("edit", str(issue["number"]), "--body-file", "-", given=whole)
    return gh("create", "--title", title, "--body-file", "-", given=body(text, [run]))


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
