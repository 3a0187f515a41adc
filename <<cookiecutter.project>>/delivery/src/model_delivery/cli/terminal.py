"""What may follow a verb of `ml`, and what is shown: results on stdout, all else on stderr."""

import datetime as dt
import json
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from model_delivery.contract.settings import EnvironmentName
from model_delivery.gates import Gate
from model_delivery.protocols import UserError, user_package
from model_delivery.releases import hosted
from model_delivery.report.render import clean, value_of
from model_delivery.report.verdict import Check, Outcome, Trigger, Verdict, decide, exit_code
from model_delivery.watch import retrain

progress = Console(stderr=True, highlight=False)
results = Console(highlight=False, emoji=False)

Stage = Literal["data", "train", "model", "package", "api", "load", "register", "deploy"]
_WHY = "Why this runs, which decides what an outcome means; default: from GITHUB_EVENT_NAME."
_DAY = "First day not known yet, as 2013-08-01; default: `as_of` in config/data.yaml."
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Do it again, even if up to date.")]
Why = Annotated[Trigger | None, typer.Option("--event", help=_WHY)]
Day = Annotated[dt.datetime | None, typer.Option("--as-of", help=_DAY, formats=["%Y-%m-%d"])]
One = Annotated[Gate | None, typer.Argument(help="Which gate; default: all.")]
Prove = Annotated[bool, typer.Option("--prove", help="Break the data instead: is it noticed?")]
_DRAWN = "Draw rows from the data contract instead of extracting any; never deployed."
Sample = Annotated[bool, typer.Option("--sample", help=_DRAWN)]
Until = Annotated[Stage, typer.Option(help="The last stage to run.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")]
FreePort = Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")]
Stop = Annotated[bool, typer.Option("--stop", help="Stop service and proxy; it stays deployed.")]
_AGAIN = "Serve again what is deployed, as it was, after a reboot or a crash."
Start = Annotated[bool, typer.Option("--start", help=_AGAIN)]
Where = Annotated[EnvironmentName, typer.Option("--to", "--in", help="Which environment.")]
Of = Annotated[EnvironmentName, typer.Option("--in", help="Which environment.")]
_INPUT = "Rows of the contract: .parquet or .csv, a path or a URI such as s3://bucket/rows.parquet."
Input = Annotated[str, typer.Argument(help=_INPUT)]
_OUTPUT = "Gets the key's columns, `score` and `digest` of each row: .parquet, a path or a URI."
Output = Annotated[str, typer.Argument(help=_OUTPUT)]
Watch = Annotated[bool, typer.Option("--watch", help="Look again every second, until Ctrl-C.")]
_BACK = "An installed one; default: the one before. ^DIGEST: that one, if DIGEST is served still."
Release = Annotated[str | None, typer.Argument(help=_BACK)]
_GOAL = "A git tag, or a recorded release; default: the current candidate."
Goal = Annotated[str, typer.Argument(help=_GOAL)]
Named = Annotated[str, typer.Option("--release", help=_GOAL)]
_TRY = "Serve only as long as it takes; default on a runner of GitHub's, which is gone afterwards."
HOSTED = hosted()
Rehearse = Annotated[bool, typer.Option("--rehearse", help=_TRY)]
_NEWEST = "First day not known yet; default: `sources.newest()` if there is one, else today."
Newest = Annotated[dt.datetime | None, typer.Option("--as-of", help=_NEWEST, formats=["%Y-%m-%d"])]
_STARTED = "What started it, for the log; a person is not held by the cool-down."
Because = Annotated[retrain.Because, typer.Option(help=_STARTED)]
_ANYWAY = "Do it in spite of cool-down and budget, and of code that is in no commit."
Anyway = Annotated[bool, typer.Option("--force", help=_ANYWAY)]
Lineage = Annotated[str | None, typer.Option(metavar="RELEASE", help="All of one release.")]
_TWO = "What differs between two releases."
Compare = Annotated[tuple[str, str] | None, typer.Option(metavar="A B", help=_TWO)]
_UI = "Show it in MLflow: at MLFLOW_TRACKING_URI if that is set, else here until Ctrl-C."
Ui = Annotated[bool, typer.Option("--ui", help=_UI)]
_THERE = "Look at the repository on GitHub instead, through `gh`."
OnGitHub = Annotated[bool, typer.Option("--github", help=_THERE)]
_FIX = "Set the schedules of workflows; with --github, print the calls that mend it, and ask."
Fix = Annotated[bool, typer.Option("--fix", help=_FIX)]


@contextmanager
def step(title: str) -> Iterator[None]:
    """Show a spinner while a step runs, and its name and seconds when it is done."""
    started = time.perf_counter()
    with progress.status(f"{title} …"):
        yield
    progress.print(f"[dim]{time.perf_counter() - started:6.1f} s[/]  {title}")


def say(line: str) -> None:
    """Print a line about what is under way."""
    progress.print(f"         {line}", markup=False, soft_wrap=True)


def job(file: str, text: str) -> None:
    """Append to a file of the workflow's job, such as GITHUB_OUTPUT, if this runs in one."""
    with Path(os.environ.get(file) or os.devnull).open("a", encoding="utf-8") as end:
        end.write(f"{text}\n")


def show(value: Any, as_json: bool, text: str) -> None:
    """Print a result as JSON or as text."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
        sys.stdout.flush()
    else:
        results.print(text, soft_wrap=True, markup=False)


def show_error(error: Exception) -> int:
    """Print what the user can mend, also in a job's summary, or where it crashed; return the code.

    A mistake in the user's own code is told from there on: the frames before it are all ours.
    """
    if not isinstance(error, UserError):
        own, package = error.__traceback__, user_package()
        while own and Path(own.tb_frame.f_code.co_filename).parent.name != package:
            own = own.tb_next
        traceback.print_exception(error.with_traceback(own or error.__traceback__))
        return 1
    progress.print("[bold red]error[/] " if error.code else "", end="")
    progress.print(str(error), markup=False, soft_wrap=True)
    job("GITHUB_STEP_SUMMARY", indent(str(error), "    "))
    return error.code


def show_status(found: dict[str, Any], as_json: bool) -> int:
    """Print what an environment serves; return the exit code: of `stop`, if it is unhealthy."""
    lines = []
    for name, value in found.items():
        parts = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            parts = [f"{release:28} {said}" for release, said in value.items()]
        lines += [f"{name if part is parts[0] else '':12} {part}" for part in parts if part]
    show(found, as_json, text := "\n".join(lines))
    job("GITHUB_STEP_SUMMARY", indent(text, "    "))
    return exit_code([Outcome.STOP if found["state"] == "unhealthy" else Outcome.PASS], "local")


def show_verdicts(verdicts: Iterable[Verdict], event: Trigger, as_json: bool) -> int:
    """Print each verdict as it comes, with every check that did not pass; return the exit code."""
    shown = list[Verdict]()
    for verdict in verdicts:
        shown.append(verdict)
        if not as_json:
            decisive = verdict.decisive
            _line(verdict.outcome, event, f"{verdict.gate}: {decisive.name} {_found(decisive)}")
            for check in verdict.checks:
                if check.outcome is not Outcome.PASS or verdict.gate == "prove":
                    found = f" [{_found(check)}]" if check.limit else ""
                    said = f"{verdict.gate} {check.name}: {check.sentence}{found}"
                    _line(check.outcome, event, said, "  ")
    if as_json:
        show([verdict.model_dump(mode="json") for verdict in shown], True, "")
    return exit_code([verdict.outcome for verdict in shown], event)


def _line(outcome: Outcome, event: Trigger, said: str, indent: str = "") -> None:
    decided = decide(outcome, event)
    raw = f" ({outcome})" if decided is not outcome else ""
    colour = {"pass": "green", "warn": "yellow"}.get(decided, "red")
    text = Text.assemble(indent, (f"{decided}{raw}", colour), " ", clean(said))
    results.print(text, soft_wrap=True)


def _found(check: Check) -> str:
    value, ends = value_of(check)
    shown = [value, f"({ends})" if ends else "", f"limit {check.limit}" if check.limit else ""]
    return " ".join(filter(None, shown))
