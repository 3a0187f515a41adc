"""Runs a workflow job by job and collects what came of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import act, alone, calls, log, sandbox, standins
from .events import Event
from .github import FakeGitHub
from .hosts import SelfHosted
from .repository import git
from .results import HarnessError, Job, LeftBehindError, Run
from .workflow import LABELS, Work, check_inputs, read_yaml

_ENDS = ("success", "failure", "skipped")


@dataclass(frozen=True)
class _Scenario:
    """What the jobs of one run have in common."""

    project: Path
    source: Path
    name: str
    workflow: dict[str, Any]
    works: Mapping[str, Work]
    setting: act.Setting
    hosts: Sequence[SelfHosted]
    kill_after: Callable[[Path], bool]
    taken: Mapping[str, Run]
    within: str = ""
    """`caller/` of a called workflow's jobs."""

    def folder(self, kind: str, job: str) -> Path:
        """Return a folder for a job."""
        return self.setting.folder / kind / f"{self.within}{job}"


@dataclass(frozen=True)
class _Machine:
    """Where a job runs: a folder for it alone, and the host with the checkout that it keeps."""

    scratch: Path
    host: SelfHosted | None = None
    checkout: Path | None = None

    def checkouts(self) -> list[Path]:
        """Return the folder, outside, that the running job checks out to, once there is one."""
        if self.checkout:
            return [self.checkout]
        return list((self.scratch / "work").glob("*/hostexecutor"))


def run_workflow(  # noqa: PLR0913 - each is a part of GitHub that a scenario may need
    project: Path,
    name: str,
    event: Event,
    github: FakeGitHub,
    *,
    taken: Mapping[str, Run] | None = None,
    variables: Mapping[str, str] | None = None,
    hosts: Sequence[SelfHosted] = (),
    kill_after: Callable[[Path], bool] | None = None,
    cold: bool = False,
) -> Run:
    """Run a workflow of a project on an event; any number of runs may go on at the same time.

    Parameters
    ----------
    project
        A git repository: the workflow is read from the event's commit, whatever else lies there.
    name
        The workflow's file name.
    event
        What starts it; see `PullRequest.event`, `push` and `dispatch`.
    github
        What outlives the run: the comments, the repository that is `origin`, its releases.
    taken
        Jobs not to run again but to take over, with result, outputs and artifacts, from an
        earlier run whose inputs were the same.
    variables
        The repository's variables, `vars.NAME` in a workflow.
    hosts
        The machines of one's own, by whose label a job may ask for one.
    kill_after
        Is asked, while a job runs, with the folder that it checked out to. Once it holds, the
        job's machine is killed (of a machine of one's own, what carries the job's mark): the job
        ends as `cancelled`, which the jobs after it see as `failure`.
    cold
        Whether each job begins with an empty download cache, as the first of a repository does.

    Returns
    -------
    Run
        Every job of the workflow; those of a called workflow that has several as `caller/job`.

    Raises
    ------
    HarnessError
        When GitHub would refuse the run, or act could not run a job.
    LeftBehindError
        When a job on a hosted runner left processes running.
    """
    for place in (project, *(host.folder for host in hosts)):
        if github.folder.resolve().is_relative_to(place.resolve()):
            raise HarnessError(f"{place} is hidden from jobs, so nothing they need may lie in it")
    github.open()
    folder = github.next_run()
    source = _source(project, name, event, github, folder / "source")
    workflow = read_yaml(source / ".github" / "workflows" / name)
    if event.name == "workflow_dispatch":
        check_inputs(workflow, event.payload["inputs"])
    works = calls.works(source, workflow)
    read = [read_yaml(file) for file in (source / ".github" / "workflows").glob("*.y*ml")]
    actions = standins.prepare(source, read, folder / "actions")
    setting = act.Setting(name, event, github, folder, actions, dict(variables or {}), cold)
    never = kill_after or (lambda _: False)
    scenario = _Scenario(project, source, name, workflow, works, setting, hosts, never, taken or {})
    return Run(_run_jobs(scenario), folder)


def _source(project: Path, name: str, event: Event, github: FakeGitHub, folder: Path) -> Path:
    """Unpack the workflows and actions of the event's commit, which is in `origin` from now on."""
    try:
        github.offer(project, event)
    except LookupError as missing:
        raise HarnessError(str(missing)) from missing
    (folder / ".github").mkdir(parents=True)
    archive = folder / "github.tar"
    git(github.origin, "archive", f"--output={archive}", event.sha, ".github")
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
    if not (folder / ".github" / "workflows" / name).exists():
        raise HarnessError(f"{event.ref} at {event.sha[:12]} has no workflow {name}")
    return folder


def _take(source: Run, job: str, folder: Path) -> Job:
    index = Run({}, folder).artifacts
    for name, owner in source.artifacts.items():
        if owner == job:
            shutil.copytree(source.artifact(name), folder / "artifacts" / name)
            index[name] = job
    (folder / "artifacts.json").write_text(json.dumps(index))
    return source.jobs[job]


def _run_jobs(scenario: _Scenario) -> dict[str, Job]:
    jobs: dict[str, Job] = {}
    for job, own in scenario.works.items():
        if earlier := scenario.taken.get(f"{scenario.within}{job}"):
            jobs[job] = _take(earlier, job, scenario.setting.folder)
        elif own.several:
            jobs.update(_call(scenario, job, jobs))
        else:
            jobs[job] = _run_job(scenario, job, jobs)
    return jobs


def _call(scenario: _Scenario, job: str, past: Mapping[str, Job]) -> dict[str, Job]:
    """Run the jobs of a called workflow, if act finds that the caller's condition holds."""
    own, scratch = scenario.works[job], scenario.folder("jobs", job)
    file, called = own.called or ("", {})
    told = {name: scratch / f"{name}.txt" for name in own.job.get("with", {})}
    tells = [alone.tell(str(own.job["with"][name]), file) for name, file in told.items()]
    _act(scenario, job, past, _Machine(scratch), tells or [alone.tell("", scratch / "none.txt")])
    if alone.ended(scratch, job).get("result") == "skipped":
        return {job: Job(job, "skipped")}
    given = {name: place.read_text() for name, place in told.items()}
    inner = calls.entered(called, given, scenario.workflow["on"])
    works = calls.works(scenario.source, inner, own.permissions)
    within = f"{scenario.within}{job}/"
    ended = _run_jobs(replace(scenario, name=file, workflow=inner, works=works, within=within))
    outcome = calls.outcome(job, called, {k: v for k, v in ended.items() if "/" not in k})
    return {job: outcome} | {f"{job}/{name}": one for name, one in ended.items()}


def _run_job(scenario: _Scenario, job: str, past: Mapping[str, Job]) -> Job:
    started = time.monotonic()
    host = _host(scenario, job, past)
    scratch = scenario.folder("jobs", job)
    taken: AbstractContextManager[int] = host.runner() if host else nullcontext(0)
    with taken as runner:
        machine = _Machine(scratch, host, host.workspace(runner) if host else None)
        finished = _act(scenario, job, past, machine)
    own = scenario.works[job]
    messages = log.of(log.read(finished.log), job, own)
    end = alone.ended(scratch, job)
    if finished.killed:
        end = {"result": "cancelled"}
    elif end.get("result") not in _ENDS:
        trouble = log.problems(log.read(finished.log)) or finished.log[-3000:]
        raise HarnessError(f"job {job} was not run: {trouble}")
    elif finished.processes and not host:
        raise LeftBehindError(f"job {job} left processes running: {'; '.join(finished.processes)}")
    orphans = [f"Terminate orphan process: {command}\n" for command in finished.processes]
    return Job(
        id=job,
        result=end["result"],
        steps=log.steps(messages),
        outputs=end.get("outputs") or {},
        summary=log.summary(messages),
        log=log.printed(messages) + "".join(orphans),
        seconds=round(time.monotonic() - started, 1),
    )


def _host(scenario: _Scenario, job: str, past: Mapping[str, Job]) -> SelfHosted | None:
    """Return the machine that a job asks for; None for a hosted runner.

    A label that is an expression is evaluated by act, in a job with the same `needs` and inputs.
    """
    label = scenario.works[job].job["runs-on"]
    if not isinstance(label, str):
        raise HarnessError(f"job {job}: the harness knows one label for a job, not {label!r}")
    if "${{" in label:
        scratch = scenario.folder("labels", job)
        told = scratch / "label.txt"
        _act(scenario, job, past, _Machine(scratch), [alone.tell(label, told)])
        if not told.exists():  # the job is skipped, so it needs no machine
            return None
        label = told.read_text()
    hosts = {host.label: host for host in scenario.hosts}
    if label not in (*LABELS, *hosts):
        raise HarnessError(f"job {job} was not run: there is no runner with the label {label!r}")
    return hosts.get(label)


def _act(
    scenario: _Scenario,
    job: str,
    past: Mapping[str, Job],
    machine: _Machine,
    instead: list[Any] | None = None,
) -> sandbox.Finished:
    """Run a job, or other steps instead of its own, on a machine."""
    own, scratch = scenario.works[job], machine.scratch
    repository = act.repository(scenario.setting, scratch)
    entering = [alone.enter(machine.checkout)] if machine.checkout else []
    steps = instead or [*entering, *own.job["steps"]]
    real = alone.place(scenario.workflow, job, own, steps, scratch)
    text = alone.alone(scenario.workflow, job, real, past, scratch)
    (scratch / "workflow.yml").write_text(text)
    file = own.called[0] if own.called and not own.several else scenario.name
    part = act.Part(job, own.permissions, scratch, machine.host, file)
    command = sandbox.Command(
        words=act.words(scenario.setting, part),
        scratch=scratch,
        folder=repository,
        environment=act.own_environment(part),
        seconds=60 * float(own.job.get("timeout-minutes", 5)),
        kill_when=lambda: not instead and any(map(scenario.kill_after, machine.checkouts())),
    )
    if machine.host:
        return machine.host.visit(command, part.mark)
    own_machines = [host.folder for host in scenario.hosts]
    hidden = [scenario.project, *own_machines, *_others(scratch, scenario.setting.folder)]
    return sandbox.run(command, hidden)


def _others(scratch: Path, run: Path) -> list[Path]:
    """Return the folders of all other jobs so far, of this run and of others.

    What the stand-ins of a job read stays in sight: this run's artifacts, and GitHub's folder.
    """
    beside = [run / name for name in ("source", "jobs", "labels")]
    for folder in (run.parent, *(place for place in scratch.parents if run in place.parents)):
        beside += folder.iterdir()
    return [
        place for place in beside if place.is_dir() and place not in (scratch, *scratch.parents)
    ]
