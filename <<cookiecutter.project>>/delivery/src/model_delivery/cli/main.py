"""The command `ml`: every step of a delivery, alone or all in order."""

import os
import signal
import sys
import time
from contextlib import nullcontext, suppress
from typing import Any

import typer

from model_delivery import history as past
from model_delivery.bundle import launch
from model_delivery.bundle.candidate import current_candidate
from model_delivery.cli import stages
from model_delivery.cli import terminal as tty
from model_delivery.cli.doctor import carry_out, check_schedules, diagnose, diagnose_github
from model_delivery.gates import GATES
from model_delivery.gates.data import prove
from model_delivery.project import find_project
from model_delivery.protocols import UserError
from model_delivery.registry import event_log
from model_delivery.report.verdict import USAGE, Outcome, Trigger, exit_code
from model_delivery.rollout import host
from model_delivery.rollout.target import Target, standing
from model_delivery.training.snapshot import current_snapshot
from model_delivery.watch import batch
from model_delivery.watch import monitor as monitoring
from model_delivery.watch import retrain as retraining

HELP = (
    "Train, judge, package and deploy the model of this project.\n\n[bold]ml ship[/] does all of "
    "it in order; each step is a verb of its own, skips what is up to date, and says with its exit "
    "code what it found: 0 pass or warning, 10 retrain, 20 stop, 30 inconclusive, 2 bad input, "
    "1 crash. A production that is unhealthy is a 20, too."
)
app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich", help=HELP
)
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@app.command()
def data(
    as_of: tty.Day = None,
    sample: tty.Sample = False,
    force: tty.Force = False,
    as_json: tty.Json = False,
) -> None:
    """Extract the rows known at a day, take out what is excluded, split by time."""
    snapshot = stages.extract(_run(as_of=as_of, force=force, sample=sample))
    rows = snapshot.manifest["rows"]
    text = f"{snapshot.name}: {rows['train']:,} rows to train on, {rows['test']:,} to judge by"
    tty.show(snapshot.manifest | {"snapshot": snapshot.name}, as_json, text)


@app.command()
def train(force: tty.Force = False, event: tty.Why = None, as_json: tty.Json = False) -> None:
    """Fit features and model on the current data; the result is a candidate."""
    candidate = stages.train(_run(event, force=force))
    metrics = ", ".join(f"{k} {v:.4f}" for k, v in candidate.lineage["metrics"].items())
    text = f"candidate {candidate.short}: {metrics} (test window)"
    tty.show(candidate.lineage | {"digest": candidate.digest}, as_json, text)


@app.command()
def check(
    gate: tty.One = None,
    seeded: tty.Prove = False,
    force: tty.Force = False,
    event: tty.Why = None,
    as_json: tty.Json = False,
) -> None:
    """Ask gates for their verdicts on the current data and candidate."""
    if seeded and gate not in (None, "data"):
        raise UserError(f"--prove breaks rows, which gate {gate} does not judge; leave it out")
    run = _run(event, force=force)
    asked = (stages.gate(run, name) for name in ([gate] if gate else GATES))
    verdicts = [prove(run.project, current_snapshot(run.project))] if seeded else asked
    raise typer.Exit(tty.show_verdicts(verdicts, run.event, as_json))


@app.command()
def package(as_json: tty.Json = False) -> None:
    """Build the Bento with SBOM, model card and checksums."""
    candidate = stages.package(_run())
    files = sorted(str(path) for path in candidate.package.iterdir() if path.is_file())
    tty.show({"digest": candidate.digest, "files": files}, as_json, "\n".join(files))


@app.command()
def serve(port: tty.Port = 3001) -> None:
    """Serve the current candidate here until Ctrl-C, in its clean environment."""
    project = find_project()
    candidate = current_candidate(project)
    log = project.work / "logs" / "serve.log"
    with suppress(KeyboardInterrupt), launch.start(project, candidate.ship, log, port) as service:
        tty.show(None, False, f"{candidate.short} answers at {service.url}/predict; see {log}")
        while launch.processes(service.home):
            time.sleep(0.5)
        raise UserError(f"the service ended by itself; its log is {log}")


@app.command()
def report(event: tty.Why = None, as_json: tty.Json = False) -> None:
    """Write the verdicts as one HTML page and one Markdown text."""
    written = [str(path) for path in stages.write_report(_run(event))]
    tty.show(written, as_json, "\n".join(written))


@app.command()
def ship(
    until: tty.Until = "deploy",
    release: tty.Named = "",
    as_of: tty.Day = None,
    sample: tty.Sample = False,
    force: tty.Force = False,
    event: tty.Why = None,
    rehearse: tty.Rehearse = tty.HOSTED,
    as_json: tty.Json = False,
) -> None:
    """Do all of it in order, as far as the gates allow; interrupted, it goes on where it was."""
    run = _run(event, as_of, force=force, sample=sample, release=release, rehearse=rehearse)
    if until in ("register", "deploy") and sample:
        raise UserError("rows drawn from the data contract are never deployed: use `--until load`")
    if until == "deploy" and not rehearse:  # minutes before it would matter
        Target(run.project, run.environment).check_ready()
    try:
        code = tty.show_verdicts(stages.ship(run, until), run.event, as_json)
    finally:  # an error does not hide what was judged before it
        with suppress(UserError):
            tty.say(f"report: {stages.write_report(run)[0]}")
    raise typer.Exit(code)


@app.command()
def deploy(
    release: tty.Goal = "",
    to: tty.Where = "production",
    start: tty.Start = False,
    stop: tty.Stop = False,
    event: tty.Why = None,
    rehearse: tty.Rehearse = tty.HOSTED,
    as_json: tty.Json = False,
) -> None:
    """Make an environment serve a release, if gates and rollout allow it."""
    if start and stop:
        raise UserError("--start or --stop: one of them")
    if start or stop:
        (host.stop if stop else host.start)(standing(to))
        status(to, as_json=as_json)
    run = _run(event, environment=to, release=release, rehearse=rehearse)
    verdict = stages.deploy(run)
    if not as_json:
        tty.show_verdicts([verdict], run.event, False)
    health = tty.show_status(Target(run.project, to).status(), as_json)
    raise typer.Exit(exit_code([verdict.outcome], run.event) or health)


@app.command()
def rollback(
    release: tty.Release = None,
    of: tty.Of = "production",
    rehearse: tty.Rehearse = tty.HOSTED,
    as_json: tty.Json = False,
) -> None:
    """Make an environment serve an installed release again: seconds, no registry, no network."""
    target = standing(of)
    with tty.step("rollback"), host.rehearsal(target) if rehearse else nullcontext():
        before, after = target.state().current, host.rollback(target, release)
    if after == before:
        tty.say(said := f"nothing done: {after.release} is what serves; name another")
        tty.job("GITHUB_STEP_SUMMARY", said)
    code = tty.show_status(target.status(), as_json)
    past.mirror(target.project)  # last: it may take its time
    raise typer.Exit(code)


@app.command()
def monitor(of: tty.Of = "production", as_of: tty.Newest = None, as_json: tty.Json = False) -> None:
    """Judge what an environment answered lately, by training and by what came true; decide."""
    run = _run("monitoring", as_of)
    with tty.step("monitor"):
        found = monitoring.monitor(Target(run.project, of), run.as_of)
    told, text = found._asdict(), f"{found.decision}: {found.reason}"
    tty.job("GITHUB_OUTPUT", "\n".join(f"{n}={told[n]}" for n in ("decision", "because", "report")))
    tty.job("GITHUB_STEP_SUMMARY", told.pop("page") or f"    {text}")
    verdicts = [found.verdict] if found.verdict else []
    if not as_json:
        tty.show_verdicts(verdicts, "monitoring", False)
    tty.show(told | {"verdict": [one.model_dump() for one in verdicts]}, as_json, text)
    raise typer.Exit(exit_code([one.outcome for one in verdicts] or [Outcome.PASS], "monitoring"))


@app.command()
def retrain(
    as_of: tty.Newest = None,
    because: tty.Because = "person",
    until: tty.Until = "deploy",
    force: tty.Anyway = False,
    as_json: tty.Json = False,
) -> None:
    """Train the champion's commit on newer data, and ship it as far as the gates allow."""
    run = _run("retraining", as_of)
    done = retraining.retrain(run.project, run.as_of, because, until, force, tty.say)
    tty.show(done._asdict(), as_json, done.sentence)
    raise typer.Exit(done.code)


@app.command()
def predict(
    source: tty.Input, goal: tty.Output, by: tty.Of = "production", as_json: tty.Json = False
) -> None:
    """Score a file of rows by what an environment has accepted, and log it as a service does."""
    with tty.step("predict"):
        done = batch.predict(Target(find_project(), by), source, goal, tty.say)
    tty.show(done, as_json, f"{done['rows']:,} rows scored by {done['digest'][:12]}: {goal}")


@app.command()
def status(of: tty.Of = "production", watch: tty.Watch = False, as_json: tty.Json = False) -> None:
    """Say what an environment serves, who gets which share, and what was decided last."""
    target = standing(of)
    while watch:
        tty.results.clear()
        tty.show_status(target.status(), as_json)
        time.sleep(1)
    raise typer.Exit(tty.show_status(target.status(), as_json))


@app.command()
def history(
    lineage: tty.Lineage = None,
    compare: tty.Compare = None,
    ui: tty.Ui = False,
    port: tty.FreePort = 0,
    as_json: tty.Json = False,
) -> None:
    """Say what was registered, judged, promoted and rolled back, when and by whom."""
    project = find_project()
    events = event_log(project).events()
    if ui and events:
        with suppress(KeyboardInterrupt):
            past.browse(project, port, lambda at: tty.show(at, as_json, f"the log is at {at}"))
        return
    text = "\n".join(map(past.line, events)) or past.EMPTY
    if lineage is not None or compare:
        events, text = past.describe(events, *(compare or (lineage or "",)))
    tty.show([event.model_dump(mode="json") for event in events], as_json, text)


@app.command()
def doctor(
    on_github: tty.OnGitHub = False, fix: tty.Fix = False, as_json: tty.Json = False
) -> None:
    """Say what this machine or project lacks, or its side on GitHub, and what mends it."""
    project = find_project()
    if fix and not on_github:
        check_schedules(project, fix=True)
    found = diagnose_github(project) if on_github else diagnose(project)
    lines = [f"{'ok' if it.ok else 'NO':3} {it.subject}: {it.sentence}" for it in found]
    shown = [{"subject": it.subject, "ok": it.ok, "sentence": it.sentence} for it in found]
    tty.show(shown, as_json, "\n".join(lines))
    mends = [it for it in found if fix and it.call]
    for mend in mends:
        tty.say(str(mend))
    if mends and typer.confirm(f"Run these {len(mends)}?", err=True):
        if refused := [*carry_out(project, mends)]:
            raise UserError("\n".join(refused))
        return tty.say("done; without --fix, this looks again")
    raise typer.Exit(0 if all(it.ok for it in found) else USAGE)


def _run(event: Trigger | None = None, as_of: tty.Day = None, **asked: Any) -> stages.Run:
    """Return a run in the project's folder, after its configuration was read."""
    project = find_project()
    os.chdir(project.root)
    project.check_config()
    by_github: dict[str, Trigger] = {"": "local", "pull_request": "pull_request"}
    event = event or by_github.get(os.environ.get("GITHUB_EVENT_NAME", ""), "delivery")
    return stages.Run(project, event, as_of.date() if as_of else None, **asked)


def _end(*_: object) -> None:
    """End with every service that was started; a second signal must not keep it from that."""
    for sign in _ENDING:
        signal.signal(sign, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    """Run the command; what the user can mend is one message, mostly with exit code 2."""
    for sign in _ENDING:
        if signal.getsignal(sign) is not signal.SIG_IGN:  # as `nohup` sets it
            signal.signal(sign, _end)
    try:
        app()
    except Exception as error:
        sys.exit(tty.show_error(error))
