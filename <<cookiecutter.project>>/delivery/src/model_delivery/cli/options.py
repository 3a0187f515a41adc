"""What may be typed after a verb of `ml`: arguments and options, each with its help."""

import datetime as dt
import os
from typing import Annotated

import typer

from model_delivery.cli.stages import Stage
from model_delivery.contract.settings import EnvironmentName
from model_delivery.gates import Gate
from model_delivery.report.verdict import Trigger
from model_delivery.watch import retrain

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
_AGAIN = "Serve again what is deployed, after a reboot or a crash."
Start = Annotated[bool, typer.Option("--start", help=_AGAIN)]
Where = Annotated[EnvironmentName, typer.Option("--to", "--in", help="Which environment.")]
Of = Annotated[EnvironmentName, typer.Option("--in", help="Which environment.")]
_INPUT = "Rows of the contract: .parquet or .csv, a path or a URI such as s3://bucket/rows.parquet."
Input = Annotated[str, typer.Argument(help=_INPUT)]
_OUTPUT = "Gets the key's columns, `score` and `digest` of each row: .parquet, a path or a URI."
Output = Annotated[str, typer.Argument(help=_OUTPUT)]
Watch = Annotated[bool, typer.Option("--watch", help="Look again every second, until Ctrl-C.")]
Release = Annotated[str | None, typer.Argument(help="An installed one; default: the one before.")]
_GOAL = "A git tag, or a recorded release; default: the current candidate."
Goal = Annotated[str, typer.Argument(help=_GOAL)]
Named = Annotated[str, typer.Option("--release", help=_GOAL)]
_TRY = "Serve only as long as it takes; default on a runner of GitHub's, which is gone afterwards."
HOSTED = os.environ.get("RUNNER_ENVIRONMENT") == "github-hosted"
Rehearse = Annotated[bool, typer.Option("--rehearse", help=_TRY)]
_NEWEST = "First day not known yet; default: `sources.newest()` if there is one, else today."
Newest = Annotated[dt.datetime | None, typer.Option("--as-of", help=_NEWEST, formats=["%Y-%m-%d"])]
_STARTED = "What started it, for the log; a person is not held by the cool-down."
Because = Annotated[retrain.Because, typer.Option(help=_STARTED)]
_ANYWAY = "Do it in spite of cool-down and budget."
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
