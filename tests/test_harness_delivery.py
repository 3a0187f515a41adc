"""The harness on what deliveries need: pushes, tags, called workflows, killed and parallel runs."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness import FakeGitHub, HarnessError, schedule
from tests.harness.github import git
from tests.small import LOGIN, Repository, called, checkout, job, run, workflow

HOSTILE = "hostile/$(touch${IFS}touched)`id`'\"|&;%s"
SHOW = run('printf "%s\n" "$GITHUB" > shown.json && cat shown.json', GITHUB="${{ toJSON(github) }}")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


@pytest.mark.parametrize(
    ("ref", "kind"),
    [
        ("refs/heads/main", "branch"),
        ("refs/tags/v1.0.0", "tag"),
        (f"refs/heads/{HOSTILE}", "branch"),
        (f"refs/tags/{HOSTILE}", "tag"),
    ],
)
def test_a_push_names_its_ref_and_its_commit_as_data(
    repository: Repository, ref: str, kind: str
) -> None:
    message = f'Second "line" {HOSTILE}\n\n${{{{ github.token }}}}'
    repository.commit()
    variables = "GITHUB_REF GITHUB_REF_NAME GITHUB_REF_TYPE GITHUB_SHA GITHUB_EVENT_NAME"
    shown = run(f"for name in {variables}; do printenv $name; done && git rev-parse HEAD")
    repository.commit(message, small=workflow(only=job(SHOW, checkout(), shown)))
    sha = git(repository.project, "rev-parse", "HEAD")
    if ref != "refs/heads/main":
        git(repository.project, "update-ref", ref, sha)
    event = repository.push(ref)
    repository.commit("After it", small=workflow(other=job(SHOW)))
    repository.push()  # what was pushed first stays what this run is about
    only = repository.run(event)
    assert only.results == {"only": "success"}, only.said
    said, _, rest = only.jobs["only"].log.rpartition("}\n")
    github = json.loads(said + "}")
    name = ref.split("/", maxsplit=2)[2]
    assert rest.splitlines() == [ref, name, kind, sha, "push", sha]
    assert (github["ref"], github["ref_name"], github["ref_type"]) == (ref, name, kind)
    assert (github["sha"], github["event_name"], github["event"]["after"]) == (sha, "push", sha)
    assert github["event"]["head_commit"]["message"] == message
    assert github["event"]["repository"]["private"] is True
    assert not list(repository.folder.rglob("touched"))


def test_what_was_not_pushed_starts_nothing(repository: Repository) -> None:
    repository.commit(small=workflow(only=job(run("echo 1"))))
    with pytest.raises(HarnessError, match=r"refs/heads/main at .* is not in origin"):
        repository.run(repository.dispatch())
    repository.push()
    repository.commit("Two")
    with pytest.raises(HarnessError, match="is not in origin"):
        repository.run(repository.dispatch())


def test_somebody_starts_a_workflow_with_inputs(repository: Repository) -> None:
    inputs = {
        "release": {"type": "string"},
        "environment": {"type": "choice", "options": ["staging", "production"], "required": True},
    }
    said = run('echo "$A $B $GITHUB_REF"', A="${{ inputs.environment }}", B="${{ inputs.release }}")
    text = workflow({"workflow_dispatch": {"inputs": inputs}}, only=job(said))
    repository.commit(small=text)
    repository.push()
    done = repository.run(repository.dispatch(environment="staging", release=HOSTILE))
    assert done.jobs["only"].log == f"staging {HOSTILE} refs/heads/main\n"
    for given, answer in (
        ({"environment": "elsewhere"}, "not in the list"),
        ({"environment": "staging", "other": "1"}, "Unexpected inputs"),
        ({}, "Required input 'environment'"),
    ):
        with pytest.raises(HarnessError, match=answer):
            repository.run(repository.dispatch(**given))


def test_a_repository_s_variables_are_there_and_no_others(repository: Repository) -> None:
    said = run('echo "[$A] [$B]"', A="${{ vars.RUNNER }}", B="${{ vars.OTHER }}")
    repository.commit(small=workflow(only=job(said)))
    done = repository.run(variables={"RUNNER": f"a {HOSTILE}"})
    assert done.jobs["only"].log == f"[a {HOSTILE}] []\n"


def test_a_checkout_takes_what_it_is_asked_for(repository: Repository) -> None:
    branch = {"ref": "${{ github.event.repository.default_branch }}"}
    count = run(
        "git rev-list --all --count && git branch --show-current && ls -1 .github/workflows"
    )
    jobs = {
        "own": job(checkout(), count),
        "default": job(checkout(**branch), count),
        "all": job(checkout(fetch_depth=0), run("git show main:.github/workflows/small.yml")),
        "every": job(checkout(fetch_depth=0), run("git log --format=%s --all && git tag")),
        "other": job(checkout(ref="nowhere"), count),
        "folder": job(checkout(path="there"), run("ls -1 there/.github/workflows")),
        "blind": job(checkout(), permissions={}),
    }
    repository.commit(small=workflow(**jobs))
    git(repository.project, "tag", "v1.0.0")
    event = repository.push("refs/tags/v1.0.0")
    repository.commit("Two", another=workflow(only=job()))
    repository.push()
    done = repository.run(event)
    assert done.jobs["own"].log == "1\nsmall.yml\n"
    assert done.jobs["default"].log == "1\nmain\nanother.yml\nsmall.yml\n"
    assert done.jobs["every"].log == "Two\nOne\nv1.0.0\n"
    assert done.jobs["folder"].log == "small.yml\n"
    assert "A branch or tag with the name 'nowhere' could not be found" in done.jobs["other"].log
    assert "not found" in done.jobs["blind"].log  # the repository is private
    failed = {name for name, result in done.results.items() if result == "failure"}
    assert failed == {"other", "blind", "all"}  # a clone's branches of others are `origin/…`


CALLING = {"uses": "./.github/workflows/called.yml", "permissions": {"contents": "write"}}


def test_a_called_workflow_is_a_job_of_its_caller(repository: Repository) -> None:
    first = job(
        run('echo "to=test" >> "$GITHUB_OUTPUT"'), outputs={"to": "${{ steps.it.outputs.to }}"}
    )
    says = (
        'echo "$TO $OF" && echo "was=$TO" >> "$GITHUB_OUTPUT" && echo 1 >> "$GITHUB_STEP_SUMMARY"'
    )
    call = {
        **CALLING,
        "name": "Deploy to ${{ needs.first.outputs.to }}",
        "needs": "first",
        "with": {"environment": "${{ needs.first.outputs.to }}"},
        "concurrency": {"group": "test", "queue": "max"},
    }
    deploy = job(
        checkout(),
        run(says, TO="${{ inputs.environment }}", OF="${{ github.workflow }}"),
        outputs={"was": "${{ steps.it.outputs.was }}"},
        environment="${{ inputs.environment }}",
        concurrency={"group": "x", "queue": "max"},
    )
    last = job(run('echo "$WAS"', WAS="${{ needs.call.outputs.was }}"), needs="call")
    repository.commit(
        small=workflow(first=first, call=call, last=last),
        called=called(("environment",), {"was": "${{ jobs.deploy.outputs.was }}"}, deploy=deploy),
    )
    done = repository.run()
    assert done.results == dict.fromkeys(("first", "call", "last"), "success"), done.said
    assert [step.name for step in done.jobs["call"].steps] == ["Check out", "Run"]
    assert done.jobs["call"].log == "test Small\n"
    assert done.jobs["call"].summary == "1\n"
    assert done.jobs["call"].outputs == {"was": "test"}
    assert done.jobs["last"].log == "test\n"


def test_a_called_job_that_fails_or_is_skipped_is_so_for_its_caller(repository: Repository) -> None:
    repository.commit(
        small=workflow(
            fails=CALLING,
            after={**CALLING, "needs": "fails"},
            always=job(run("echo 1"), needs=["fails"], **{"if": "failure()"}),
        ),
        called=called(deploy=job(run("exit 1"))),
    )
    done = repository.run()
    assert done.results == {"fails": "failure", "after": "skipped", "always": "success"}
    assert "--- fails ---" in done.said


def test_a_called_job_may_do_what_it_asks_for_and_no_more(repository: Repository) -> None:
    push = run(f"{LOGIN} && git push origin HEAD:refs/heads/new")
    asks = job(checkout(), push, permissions={"contents": "write"})
    repository.commit(
        small=workflow(reads=CALLING, writes={**CALLING, "uses": "./.github/workflows/writes.yml"}),
        called=called(deploy=job(checkout(), push)),
        writes=called(deploy=asks),
    )
    done = repository.run()
    assert "Permission to this repository denied" in done.jobs["reads"].log
    assert done.results == {"reads": "failure", "writes": "success"}
    assert "refs/heads/new" in repository.github.registry


@pytest.mark.parametrize(
    ("granted", "jobs", "answer"),
    [
        ({"contents": "read"}, 1, "asks for contents: write, but is only granted contents: read"),
        ({}, 1, "asks for contents: write, but is only granted contents: none"),
        ({"contents": "read"}, 2, "asks for contents: write, but is only granted contents: read"),
    ],
)
def test_a_call_that_github_or_the_harness_cannot_carry_out_is_refused(
    repository: Repository, granted: dict[str, str], jobs: int, answer: str
) -> None:
    asks = job(run("echo 1"), permissions={"contents": "write"})
    repository.commit(
        small=workflow(call={**CALLING, "permissions": granted}),
        called=called((), None, **{f"deploy{n}": asks for n in range(jobs)}),
    )
    with pytest.raises(HarnessError, match=answer):
        repository.run()


def test_a_called_workflow_of_several_jobs_runs_each_of_them(repository: Repository) -> None:
    """Also where one calls a third workflow, and where the caller goes on after a failure."""
    say = run('echo "$WHY $GITHUB_EVENT_NAME" && echo "to=$WHY" >> "$GITHUB_OUTPUT"')
    say["env"] = {"WHY": "${{ inputs.why || 'none' }}"}
    first = job(say, outputs={"to": "${{ steps.it.outputs.to }}"})
    third = {**CALLING, "uses": "./.github/workflows/third.yml", "needs": "first"}
    inner = {
        "first": first,
        "third": {**third, "with": {"to": "${{ needs.first.outputs.to }}"}},
        "never": {**third, "if": "needs.first.outputs.to == 'other'", "with": {"to": "x"}},
        "last": job(run("exit 1"), needs=["first", "third"]),
    }
    outer = {
        "fails": job(say, run("exit 1"), outputs={"why": "it''s"}),
        "call": {**CALLING, "needs": "fails", "if": "${{ !cancelled() }}"},
        "not": {**CALLING, "needs": "fails"},
        "after": job(run("echo 1"), needs="call", **{"if": "needs.call.outputs.to != ''"}),
        "always": job(run('echo "$TO"', TO="${{ needs.call.outputs.to }}"), needs="call"),
    }
    outer["call"]["with"] = outer["not"]["with"] = {"why": "${{ needs.fails.outputs.why }}"}
    outer["always"]["if"] = "always()"
    repository.commit(
        small=workflow(("schedule", "push"), **outer),
        called=called(("why",), {"to": "${{ jobs.first.outputs.to }}"}, **inner),
        third=called(("to",), None, go=job(run('echo "to $TO"', TO="${{ inputs.to }}"))),
    )
    repository.push()
    done = repository.run(schedule(repository.project))
    assert done.results == {
        "fails": "failure",
        "call": "failure",
        "call/first": "success",
        "call/third": "success",
        "call/never": "skipped",
        "call/last": "failure",
        "not": "skipped",
        "after": "skipped",
        "always": "success",
    }, done.said
    assert done.jobs["fails"].log == "none schedule\n"
    assert done.jobs["call/first"].log == "it''s schedule\n"
    assert done.jobs["call/third"].log == "to it''s\n"
    assert done.jobs["always"].log == "it''s\n"


def test_a_killed_job_is_cancelled_and_nothing_of_it_runs_on(repository: Repository) -> None:
    killed = job(  # act has a second to read what was said before it is killed
        run("echo begun && sleep 1 && echo half > progress && sleep 60"),
        run("echo never"),
        timeout_minutes=5,
    )
    after = job(run("echo 1"), needs="killed")
    clean = job(run("echo 1"), needs="killed", **{"if": "always()"})
    repository.commit(small=workflow(killed=killed, after=after, clean=clean))
    done = repository.run(kill_after=lambda folder: holds(folder / "progress", "half"))
    assert done.results == {"killed": "cancelled", "after": "skipped", "clean": "success"}
    assert done.jobs["killed"].log == "begun\n"
    assert done.jobs["killed"].seconds < 30


def holds(file: Path, text: str) -> bool:
    return file.exists() and text in file.read_text()


def test_runs_at_the_same_time_do_not_disturb_each_other(repository: Repository) -> None:
    command = f"{LOGIN} && git push --quiet origin HEAD:refs/heads/$GITHUB_RUN_NUMBER"
    text = run(f"{command} && echo $GITHUB_RUN_NUMBER > kept")
    keep = {
        "name": "Keep",
        "uses": "actions/upload-artifact@v0",
        "with": {"name": "a", "path": "kept"},
    }
    only = job(checkout(), text, keep, permissions={"contents": "write"})
    repository.commit(small=workflow(only=only))
    project, github = repository.project, repository.github
    events = [repository.dispatch()] * 8
    github.receive(project, "main")
    with ThreadPoolExecutor(4) as threads:
        runs = list(threads.map(repository.run, events))
    assert {r.folder.name for r in runs} == {str(n) for n in range(1, 9)}
    for done in runs:
        assert done.results == {"only": "success"}, done.said
        assert (done.artifact("a") / "kept").read_text() == f"{done.folder.name}\n"
    assert {f"refs/heads/{n}" for n in range(1, 9)} < github.registry.keys()


def test_a_job_sees_nothing_of_the_jobs_of_other_runs_nor_of_those_beside_it(
    repository: Repository,
) -> None:
    """Nor does a job of a called workflow, or what is asked for a label."""
    leave = run('touch ~/left && echo "home=$HOME" >> "$GITHUB_OUTPUT"')
    home = {"home": "${{ steps.it.outputs.home }}"}
    first = job(leave, outputs=home, runs_on="${{ vars.NONE || 'ubuntu-24.04' }}")
    look = job(run("ls $WHERE/left", WHERE="${{ inputs.home }}"))
    found = job(run("ls $WHERE/left || echo $?", WHERE="${{ needs.first.outputs.home }}"))
    inner = {"first": first, "looks": {**found, "needs": "first"}, "outer": look}
    call = {**CALLING, "needs": "first", "with": {"home": "${{ needs.first.outputs.home }}"}}
    repository.commit(
        small=workflow(first=first, call=call), called=called(("home",), None, **inner)
    )
    done = repository.run()
    assert done.jobs["call/outer"].result == "failure"
    assert done.jobs["call/looks"].log.endswith("No such file or directory\n2\n")
    left = done.jobs["first"].outputs["home"]
    repository.commit(small=workflow(later=job(run(f"ls {left}/left"))))
    later = repository.run()
    for one in (done.jobs["call/outer"], later.jobs["later"]):
        assert f"cannot access '{left}/left'" in one.log


def test_threads_that_start_in_the_same_instant_share_a_repository_and_no_run(
    tmp_path: Path,
) -> None:
    github = FakeGitHub(tmp_path / "github")
    (github.folder / "runs" / "2").mkdir(parents=True)  # by a thread that was faster
    start = threading.Barrier(8)

    def ask() -> tuple[Path, Path]:
        start.wait()
        origin = github.origin
        start.wait()
        return origin, github.next_run()

    with ThreadPoolExecutor(8) as threads:
        answers = [future.result() for future in [threads.submit(ask) for _ in range(8)]]
    origins, runs = zip(*answers, strict=True)
    assert set(origins) == {github.origin}
    assert {run.name for run in runs} == {str(n) for n in range(3, 11)}
    assert {place.name for place in github.folder.iterdir()} == {"origin.git", "runs"}
