"""Machines of one's own in the harness: what outlives a job there, and what does not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness import HarnessError, SelfHosted
from tests.harness.inside import command_of
from tests.harness.sandbox import seen
from tests.small import Repository, called, checkout, job, run, workflow

HOSTED = "ubuntu-24.04"
LABEL = f"${{{{ vars.DEPLOY_RUNNER_PRODUCTION || '{HOSTED}' }}}}"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SelfHosted]:
    machine = SelfHosted("box", tmp_path / "box")
    yield machine
    machine.stop()


def running(name: str) -> bool:
    """Tell whether a process of this name runs anywhere."""
    every = [command_of(p.parent) for p in Path("/proc").glob("[0-9]*/cmdline")]
    return any(command.startswith(f"{name} ") for command in every)


def ends(name: str) -> bool:
    """Tell whether a process of this name ends, which the kernel may take a moment for."""
    for _ in range(30):
        if not running(name):
            return True
        time.sleep(0.1)
    return False


def start(name: str, before: str = "") -> str:
    """Return a command that leaves a process of this name behind."""
    return f"({before} setsid bash -c 'exec -a {name} sleep 300' >/dev/null 2>&1 &)"


def test_what_lies_on_a_machine_of_one_s_own_stays(
    repository: Repository, host: SelfHosted
) -> None:
    files = '"$HOME/left" /tmp/left /var/tmp/left /dev/shm/left .ml/left'
    where = "echo $RUNNER_ENVIRONMENT && pwd && git branch --format='%(refname:short)'"
    leave = run(f"mkdir .ml && touch {files} .git/index.lock && {where} && git branch extra")
    keep, look = checkout(clean=False), run(f"ls {files} && {where}")
    repository.commit(
        small=workflow(
            first=job(checkout(), leave, runs_on="box"),
            second=job(keep, look, needs="first", runs_on="box"),
            third=job(checkout(), look, needs="second", runs_on="box"),
        )
    )
    done = repository.run(hosts=[host])
    assert done.results == {"first": "success", "second": "success", "third": "failure"}, done.said
    assert done.jobs["first"].log == f"self-hosted\n{seen(host.workspace())}\nmain\n"
    assert done.jobs["second"].log.endswith(done.jobs["first"].log)
    assert done.jobs["third"].log.count("No such file or directory") == 1  # `clean` took .ml away
    assert [step.name for step in done.jobs["first"].steps] == ["Check out", "Run"]
    assert host.run("ls", "-A").stdout == ".git\n.github\n"


def test_a_hosted_job_sees_nothing_of_a_machine_of_one_s_own(
    repository: Repository, host: SelfHosted
) -> None:
    secret = host.workspace() / ".ml" / "secret"
    secret.parent.mkdir(parents=True)
    secret.write_text("kept\n")
    read = run(f"cat '{seen(secret)}'")
    text = workflow(
        own=job(read, runs_on="box"), hosted=job(read), outside=job(run(f"cat '{secret}'"))
    )
    repository.commit(small=text)
    done = repository.run(hosts=[host])
    assert done.results == {"own": "success", "hosted": "failure", "outside": "failure"}
    assert done.jobs["own"].log == "kept\n"
    for name in ("hosted", "outside"):
        assert "No such file or directory" in done.jobs[name].log


def test_the_runner_ends_what_carries_its_mark_and_nothing_else(
    repository: Repository, host: SelfHosted
) -> None:
    marked, free = f"marked-{os.getpid()}", f"free-{os.getpid()}"
    both = f"{start(marked)}; {start(free, 'unset RUNNER_TRACKING_ID;')}; sleep 0.3"
    look = f"sleep 0.3; ps -eo args | grep -c '^{free} ' && ps -eo args | grep -c '^{marked} '"
    text = workflow(
        first=job(run(both), runs_on="box"), then=job(run(look), runs_on="box", needs="first")
    )
    repository.commit(small=text)
    done = repository.run(hosts=[host])
    assert done.jobs["first"].result == "success"
    assert done.jobs["first"].log == f"Terminate orphan process: {marked} 300\n"
    assert done.jobs["then"].log == "1\n0\n"  # as every job of this machine sees
    assert running(free)
    host.stop()
    assert ends(free)


def test_a_machine_of_one_s_own_serves_on_its_port_until_it_is_switched_off(
    repository: Repository, host: SelfHosted
) -> None:
    serve = "RUNNER_TRACKING_ID= setsid python3 -m http.server --bind 127.0.0.1 0 > port 2>&1 &"
    repository.commit(small=workflow(only=job(run(f"{serve} sleep 0.5"), runs_on="box")))
    repository.run(hosts=[host])
    assert host.run("pgrep", "-f", "http.server").stdout
    host.stop()
    assert not host.run("pgrep", "-f", "http.serve[r]").stdout  # and on again: it is empty


def calling(label: str) -> dict[str, object]:
    """Return a job that calls a workflow, and tells it the runner to use."""
    return {
        "uses": "./.github/workflows/called.yml",
        "permissions": {"contents": "read"},
        "with": {"runner": label},
    }


@pytest.mark.parametrize(
    ("variables", "runs"),
    [({}, "github-hosted"), ({"DEPLOY_RUNNER_PRODUCTION": "box"}, "self-hosted")],
)
def test_a_label_decides_where_a_job_runs(
    repository: Repository, host: SelfHosted, variables: dict[str, str], runs: str
) -> None:
    where = run("echo $RUNNER_ENVIRONMENT")
    text = workflow(
        named=job(where, runs_on="box"),
        own=job(where, runs_on=LABEL),
        call=calling(LABEL),
        literal=calling("box"),
    )
    deploy = called(("runner",), deploy=job(where, runs_on="${{ inputs.runner }}"))
    repository.commit(small=text, called=deploy)
    jobs = repository.run(hosts=[host], variables=variables).jobs
    logs = {name: done.log.strip() for name, done in jobs.items()}
    always = dict.fromkeys(("named", "literal"), "self-hosted")
    assert logs == {"own": runs, "call": runs} | always


@pytest.mark.parametrize("only", [job(run("echo 1"), runs_on=LABEL), calling(LABEL)])
def test_a_label_without_a_runner_is_an_error(
    repository: Repository, host: SelfHosted, only: dict[str, object]
) -> None:
    deploy = called(("runner",), deploy=job(run("echo 1"), runs_on="${{ inputs.runner }}"))
    repository.commit(small=workflow(only=only), called=deploy)
    with pytest.raises(HarnessError, match="no runner with the label 'other'"):
        repository.run(hosts=[host], variables={"DEPLOY_RUNNER_PRODUCTION": "other"})


def test_a_label_may_depend_on_an_input_and_a_skipped_job_needs_none(
    repository: Repository, host: SelfHosted
) -> None:
    label = (
        "${{ inputs.environment == 'production' && vars.PRODUCTION"
        f" || inputs.environment == 'staging' && vars.STAGING || '{HOSTED}' }}}}"
    )
    inputs = {"environment": {"type": "choice", "options": ["staging", "production"]}}
    text = workflow(
        {"workflow_dispatch": {"inputs": inputs}},
        only=job(run("echo $RUNNER_ENVIRONMENT"), runs_on=label),
        skipped=job(run("echo 1"), runs_on="${{ vars.NONE }}", **{"if": "failure()"}, needs="only"),
    )
    repository.commit(small=text)
    repository.push()
    for name, where in (("production", "self-hosted"), ("staging", "github-hosted")):
        event = repository.dispatch(environment=name)
        done = repository.run(event, hosts=[host], variables={"PRODUCTION": "box"})
        assert done.jobs["only"].log == f"{where}\n"
        assert done.results == {"only": "success", "skipped": "skipped"}


def test_of_a_killed_job_on_one_s_own_machine_only_what_is_marked_ends(
    repository: Repository, host: SelfHosted
) -> None:
    marked, free = f"marked-{os.getpid()}", f"free-{os.getpid()}"
    both = f"{start(marked)}; {start(free, 'unset RUNNER_TRACKING_ID;')}; sleep 0.3"
    killed = job(run(f"{both}; echo half > progress; sleep 60"), runs_on="box", timeout_minutes=5)
    repository.commit(small=workflow(killed=killed))
    done = repository.run(hosts=[host], kill_after=lambda folder: (folder / "progress").exists())
    assert done.results == {"killed": "cancelled"}
    assert done.jobs["killed"].seconds < 30
    assert ends(marked)
    assert running(free)
    assert (host.workspace() / "progress").read_text() == "half\n"


@pytest.mark.parametrize("runners", [1, 2])
def test_a_runner_takes_one_job_at_a_time(repository: Repository, runners: int) -> None:
    host = SelfHosted("box", repository.folder / "box", runners)
    wait = "for n in $(seq 15); do test -e /tmp/second && echo met && exit; sleep 0.1; done"
    first = f"touch /tmp/first; {wait}"
    second = "touch /tmp/second; pwd"
    repository.commit(
        small=workflow(
            {"workflow_dispatch": {"inputs": {"which": {"type": "string"}}}},
            first=job(run(first), runs_on="box", **{"if": "inputs.which == 'first'"}),
            second=job(run(second), runs_on="box", **{"if": "inputs.which == 'second'"}),
        )
    )
    repository.push()

    def go(which: str) -> str:
        if which == "second":
            while not (host.folder / "private-0" / "first").exists():
                time.sleep(0.05)
        return repository.run(repository.dispatch(which=which), hosts=[host]).jobs[which].log

    try:
        with ThreadPoolExecutor(2) as threads:
            logs = list(threads.map(go, ("first", "second")))
    finally:
        host.stop()
    assert logs == ["met\n" if runners == 2 else "", f"{seen(host.workspace(runners))}\n"]


def test_what_jobs_need_may_not_lie_where_they_cannot_look(repository: Repository) -> None:
    repository.commit(small=workflow(only=job(run("echo 1"))))
    with pytest.raises(HarnessError, match="is hidden from jobs"):
        repository.run(hosts=[SelfHosted("box", repository.folder)])
