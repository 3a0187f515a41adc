"""The command `ml`: every step of a delivery, alone or all in order."""

from __future__ import annotations

import datetime as dt
import os
import sys
import time
from typing import Annotated

import typer

from model_delivery.bundle.candidate import CURRENT, current_candidate
from model_delivery.bundle.environment import service_environment
from model_delivery.cli import rollout, stages
from model_delivery.cli.assemble import write_report
from model_delivery.cli.doctor import diagnose
from model_delivery.cli.output import progress, show, show_verdicts, step
from model_delivery.cli.ship import STAGES, ship_until
from model_delivery.cli.stages import GATES, Run, opened
from model_delivery.errors import UserError
from model_delivery.gates.prove import prove
from model_delivery.project import Project, find_project
from model_delivery.report.verdict import EVENTS, USAGE, Event, Verdict
from model_delivery.serving.launch import running
from model_delivery.training.snapshot import BrokenStructureError, current_snapshot

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help=(
        "Test, train, judge, package, deploy and watch the model of this project.\n\n"
        "[bold]ml ship[/] does all of it in order; each step is a verb of its own, skips what is "
        "up to date, and says with its exit code what it found: 0 pass or warning, 10 retrain, "
        "20 stop, 30 inconclusive, 2 bad input, 1 crash."
    ),
)

EventOption = Annotated[
    str,
    typer.Option(
        help=f"Why this runs: {', '.join(EVENTS)}. It decides what an outcome means.",
        show_default="from GITHUB_EVENT_NAME, else local",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Do it again, even if up to date.")]
AsOfOption = Annotated[
    str | None,
    typer.Option(
        metavar="DAY",
        help="First day that is not known yet, as 2013-08-01.",
        show_default="`as_of` in config/data.yaml",
    ),
]


@app.command()
def data(as_of: AsOfOption = None, force: ForceOption = False, as_json: JsonOption = False) -> None:
    """Extract the rows known at a day, take out what is excluded, split by time."""
    run = run_of("local", force=force, as_of=as_of)
    try:
        snapshot = stages.extract(run)
    except BrokenStructureError as broken:
        raise UserError(f"the extraction does not keep config/data.yaml: {broken}") from broken
    rows = snapshot.manifest["rows"]
    text = f"{snapshot.name}: {rows['train']:,} rows to train on, {rows['test']:,} to judge by"
    show(snapshot.manifest | {"snapshot": snapshot.name}, as_json, text)


@app.command()
def train(force: ForceOption = False, event: EventOption = "", as_json: JsonOption = False) -> None:
    """Fit features and model on the current data; the result is a candidate."""
    candidate = stages.train(run_of(event, force=force))
    metrics = ", ".join(f"{k} {v:.4f}" for k, v in candidate.lineage["metrics"].items())
    text = f"candidate {candidate.short}: {metrics} (test window)"
    show(candidate.lineage | {"digest": candidate.digest}, as_json, text)


@app.command()
def check(
    gates: Annotated[
        list[str] | None, typer.Argument(help=f"Any of {', '.join(GATES)}; default: all.")
    ] = None,
    prove_them: Annotated[
        bool,
        typer.Option("--prove", help="Break the data in known ways; each must turn a gate red."),
    ] = False,
    force: ForceOption = False,
    event: EventOption = "",
    as_json: JsonOption = False,
) -> None:
    """Ask gates for their verdicts on the current data and candidate."""
    unknown = [gate for gate in gates or [] if gate not in GATES]
    if unknown:
        raise UserError(f"no gate `{unknown[0]}`; choose from {', '.join(GATES)}")
    with opened(run_of(event, force=force)) as run:
        if prove_them:
            verdicts = [_prove(run.project)]
        else:
            verdicts = [stages.gate(run, gate) for gate in gates or GATES]
        code = show_verdicts(verdicts, run.event, as_json)
    raise typer.Exit(code)


@app.command()
def package(
    image: Annotated[bool, typer.Option("--image", help="Build an OCI image too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build the Bento with SBOM, model card and checksums; with --image an OCI image."""
    run = run_of("local", image=image)
    candidate = current_candidate(run.project)
    stages.package(run, candidate)
    files = sorted(str(path) for path in candidate.package.iterdir() if path.is_file())
    show({"digest": candidate.digest, "files": files}, as_json, "\n".join(files))


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 3001,
) -> None:
    """Serve the current candidate here until Ctrl-C, in its clean environment."""
    project = find_project()
    candidate = current_candidate(project)
    python = service_environment(project, candidate.ship / "requirements.txt")
    log = project.work / "logs" / "serve.log"
    with running(candidate.ship, python, log, port=port) as service:
        progress.print(f"{candidate.short} answers at {service.url}/predict, log in {log}")
        try:
            while service.alive():
                time.sleep(0.5)
        except KeyboardInterrupt:
            progress.print("stopped")
            return
    raise UserError(f"the service ended by itself; its log is {log}")


@app.command()
def report(event: EventOption = "", as_json: JsonOption = False) -> None:
    """Write the verdicts as one HTML page and one Markdown text."""
    run = run_of(event)
    written = write_report(run.project, run.event)
    show([str(path) for path in written], as_json, "\n".join(str(path) for path in written))


@app.command()
def ship(
    until: Annotated[
        str, typer.Option(metavar="STAGE", help=f"Stop after one of {', '.join(STAGES)}.")
    ] = "deploy",
    as_of: AsOfOption = None,
    image: Annotated[bool, typer.Option("--image", help="Build an OCI image too.")] = False,
    force: ForceOption = False,
    event: EventOption = "",
    as_json: JsonOption = False,
) -> None:
    """Do all of it in order, as far as the gates allow; safe to interrupt and call again."""
    if until not in STAGES:
        raise UserError(f"no stage `{until}`; choose from {', '.join(STAGES)}")
    with opened(run_of(event, force=force, as_of=as_of, image=image)) as run:
        verdicts = ship_until(run, until)
        code = show_verdicts(verdicts, run.event, as_json)
        page, _ = write_report(run.project, run.event)
        progress.print(f"report: {page}")
    raise typer.Exit(code)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine or project lacks, and the command that mends it."""
    findings = diagnose(find_project())
    lines = [f"{'ok' if f.ok else 'NO':3} {f.subject}: {f.sentence}" for f in findings]
    show([finding._asdict() for finding in findings], as_json, "\n".join(lines))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else USAGE)


def run_of(event: str, force: bool = False, as_of: str | None = None, image: bool = False) -> Run:
    """Check configuration and options before any work begins."""
    project = find_project()
    os.chdir(project.root)
    project.check_config()
    chosen = event or _default_event()
    if chosen not in EVENTS:
        raise UserError(f"--event {chosen}: not one of {', '.join(EVENTS)}")
    try:
        day = dt.date.fromisoformat(as_of) if as_of else None
    except ValueError:
        raise UserError(f"--as-of {as_of}: not a day such as 2013-08-01") from None
    return Run(project, event=EVENTS[EVENTS.index(chosen)], force=force, as_of=day, image=image)


def _prove(project: Project) -> Verdict:
    snapshot = current_snapshot(project)
    trained = (project.work / CURRENT).exists()
    with step("prove: seeded defects"):
        return prove(project, snapshot, current_candidate(project) if trained else None)


def _default_event() -> Event:
    """A pull request is tried, anything else that GitHub starts is a delivery."""
    name = os.environ.get("GITHUB_EVENT_NAME", "")
    return {"": "local", "pull_request": "pull_request"}.get(name, "delivery")  # type: ignore[return-value]


def main() -> None:
    """Run the command; what the user can mend is one message and exit code 2."""
    try:
        app()
    except UserError as error:
        progress.print("[bold red]error[/] ", end="")
        progress.print(str(error), markup=False, soft_wrap=True)
        sys.exit(USAGE)


rollout.register(app)
