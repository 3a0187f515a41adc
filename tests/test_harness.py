"""The harness itself: it carries over what GitHub carries over, and notices what GitHub has not."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.harness import (
    Comment,
    FakeGitHub,
    HarnessError,
    LeftBehindError,
    PullRequest,
    Run,
    run_workflow,
)
from tests.harness.github import git
from tests.harness.inside import command_of

STICKY = "marocchino/sticky-pull-request-comment@v0"
HEAD = """\
name: Small
on: pull_request
permissions: { contents: read, pull-requests: write }
jobs:
"""
JOB = """\
  {name}:
    needs: {needs}
    if: {condition}
    runs-on: {label}
    timeout-minutes: 1
    outputs: {{ said: "${{{{ steps.it.outputs.said }}}}" }}
    steps:
      - {{ name: Check out, uses: actions/checkout@v0, with: {{ persist-credentials: false }} }}
      - {{ name: Do it, id: it, run: '{run}' }}
"""


def job(
    name: str,
    run: str,
    *,
    needs: str = "[]",
    condition: str = "success()",
    label: str = "ubuntu-24.04",
) -> str:
    return JOB.format(name=name, run=run, needs=needs, condition=condition, label=label)


def use(action: str, **inputs: str) -> str:
    """Return one more step of the job before."""
    return f"      - {{ name: Use, uses: {action}, with: {json.dumps(inputs)} }}\n"


def carry_out(folder: Path, *jobs: str, fork: bool = False) -> Run:
    """Run a workflow of these jobs, on a pull request, in a project that holds nothing else."""
    project = folder / "project"
    workflows = project / ".github" / "workflows"
    workflows.mkdir(parents=True)
    (workflows / "small.yml").write_text(HEAD + "".join(jobs))
    git(project, "init", "--quiet")
    git(project, "add", ".")
    git(project, *("-c", "user.name=A", "-c", "user.email=a@example.org"), "commit", "-qm", "One")
    github = FakeGitHub(folder / "github")
    event = PullRequest(fork=fork).event(project, github.repository)
    return run_workflow(project, "small.yml", event, github)


def ended(name: str) -> bool:
    """Tell whether no process of this name is left, which the kernel may take a moment for."""
    for _ in range(50):
        every = [p.parent for p in Path("/proc").glob("[0-9]*/cmdline")]
        if not any(command_of(process).startswith(f"{name} ") for process in every):
            return True
        time.sleep(0.1)
    return False


def test_outputs_and_artifacts_reach_the_next_job(tmp_path: Path) -> None:
    run = carry_out(
        tmp_path,
        job("first", 'echo "said=two words" >> "$GITHUB_OUTPUT" && echo 1 > kept')
        + use("actions/upload-artifact@v0", name="kept", path="kept"),
        job("second", 'echo "${{ needs.first.outputs.said }}" && ls', needs="first")
        + use("actions/download-artifact@v0", name="kept"),
    )
    assert run.results == {"first": "success", "second": "success"}
    assert run.jobs["first"].outputs["said"] == "two words"
    assert "two words\n" in run.jobs["second"].log
    assert run.artifacts == {"kept": "first"}
    assert (run.artifact("kept") / "kept").read_text() == "1\n"


def test_files_left_by_an_earlier_job_are_not_there(tmp_path: Path) -> None:
    files = '"$HOME/left" /tmp/left /var/tmp/left /dev/shm/left left'
    told = 'echo "said=$HOME/left $PWD/left" >> "$GITHUB_OUTPUT"'
    run = carry_out(
        tmp_path,
        job("first", f"touch {files} && cat {files} $HOME/left $PWD/left && {told}"),
        job("second", f"cat {files}", needs="first"),
        job("third", "cat ${{ needs.first.outputs.said }}", needs="first"),
    )
    assert run.results == {"first": "success", "second": "failure", "third": "failure"}
    assert run.jobs["second"].log.count("No such file or directory") == 5
    assert run.jobs["third"].log.count("No such file or directory") == 2  # by absolute path


def test_a_job_cannot_write_elsewhere(tmp_path: Path) -> None:
    place = Path(__file__).with_name("written-by-a-job")
    run = carry_out(tmp_path, job("first", f"echo 1 > {place}"))
    assert run.results == {"first": "failure"}
    log = run.jobs["first"].log  # a clone below /tmp does not exist there at all
    assert "Read-only file system" in log or f"{place}: No such file or directory" in log
    assert not place.exists()


def test_a_process_left_by_a_job_fails_the_scenario_and_is_ended(tmp_path: Path) -> None:
    name = f"left-{os.getpid()}"
    leave = f'setsid env -i bash -c "exec -a {name} sleep 300" >/dev/null 2>&1 & sleep 0.2'
    with pytest.raises(LeftBehindError, match=f"job first left processes running: {name} 300"):
        carry_out(tmp_path, job("first", leave))
    assert ended(name)


def test_a_label_without_a_runner_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"job first was not run: .*ubuntu-24\.40"):
        carry_out(tmp_path, job("first", "echo 1", label="ubuntu-24.40"))


def test_conditions_see_how_earlier_jobs_ended(tmp_path: Path) -> None:
    run = carry_out(
        tmp_path,
        job("fails", "exit 1"),
        job("skipped", "echo 1", needs="fails"),
        job("after-skipped", "echo 1", needs="skipped"),
        job(
            "always",
            'echo "${{ toJSON(needs.*.result) }}"',
            needs="[fails, skipped]",
            condition="always()",
        ),
        job("on-failure", "echo 1", needs="skipped", condition="failure()"),
    )
    assert run.results == {
        "fails": "failure",
        "skipped": "skipped",
        "after-skipped": "skipped",
        "always": "success",
        "on-failure": "success",
    }
    assert [s.result for s in run.jobs["fails"].steps] == ["success", "failure"]


def test_a_job_sees_nothing_of_this_machine_s_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEAKED", "from-outside")
    run = carry_out(tmp_path, job("first", "env"))
    environment = dict(
        line.split("=", 1) for line in run.jobs["first"].log.splitlines() if "=" in line
    )
    assert "LEAKED" not in environment
    assert environment["HOME"] != os.environ["HOME"]
    assert environment["GITHUB_REPOSITORY"] == "octo-org/late-departures"
    assert environment["GITHUB_EVENT_NAME"] == "pull_request"


def test_a_comment_is_written_once_and_then_updated_in_place(tmp_path: Path) -> None:
    comment = use(STICKY, header="a", path="text") + use(STICKY, header="b", path="text")
    again = job("again", "echo 2 > text", needs="first") + use(STICKY, header="a", path="text")
    carry_out(tmp_path, job("first", "echo 1 > text") + comment, again)
    assert FakeGitHub(tmp_path / "github").comments == [
        Comment(number=7, header="a", body="2\n", updates=1),
        Comment(number=7, header="b", body="1\n", updates=0),
    ]


def test_a_fork_cannot_comment(tmp_path: Path) -> None:
    comment = use(STICKY, header="a", path="text")
    run = carry_out(tmp_path, job("first", "echo 1 > text") + comment, fork=True)
    assert run.results == {"first": "failure"}
    assert "Resource not accessible by integration" in run.jobs["first"].log


def test_hidden_files_stay_out_of_an_artifact_unless_asked_for(tmp_path: Path) -> None:
    make = "mkdir -p .ml/a .ml/b && touch .ml/a/1 .ml/b/2"
    upload = {"path": ".ml/a\n.ml/*", "if-no-files-found": "error"}
    run = carry_out(
        tmp_path,
        job("hidden", make) + use("actions/upload-artifact@v0", name="no", **upload),
        job("asked", make)
        + use(
            "actions/upload-artifact@v0", name="yes", **upload, **{"include-hidden-files": "true"}
        ),
    )
    assert run.results == {"hidden": "failure", "asked": "success"}
    kept = run.artifact("yes")
    files = [str(f.relative_to(kept)) for f in sorted(kept.rglob("*")) if f.is_file()]
    assert files == ["a/1", "b/2"]


def test_an_action_without_a_stand_in_is_recorded(tmp_path: Path) -> None:
    run = carry_out(tmp_path, job("first", "echo 1") + use("owner/name@v1", some="value"))
    assert run.calls == [{"action": "owner/name", "job": "first", "inputs": {"some": "value"}}]


def test_git_and_gh_reach_the_repository_after_a_login_and_as_far_as_the_token_may(
    tmp_path: Path,
) -> None:
    login = "GH_TOKEN=${{ github.token }} gh auth setup-git"
    run = carry_out(
        tmp_path,
        job("stranger", "git ls-remote origin"),
        job("tokenless", "gh auth setup-git"),
        job("reads", f"{login} && git ls-remote origin"),
        job("pushes", f"{login} && git push origin HEAD:refs/heads/new"),
        job("uploads", "GH_TOKEN=${{ github.token }} gh release create new"),
    )
    assert "'/no-login/" in run.jobs["stranger"].log
    assert "set the GH_TOKEN env variable" in run.jobs["tokenless"].log
    assert "Permission to this repository denied" in run.jobs["pushes"].log
    assert "Resource not accessible by integration" in run.jobs["uploads"].log
    assert run.results == dict.fromkeys(run.jobs, "failure") | {"reads": "success"}
    assert FakeGitHub(tmp_path / "github").registry == {}


def test_a_job_that_outlives_its_time_is_ended_and_fails_the_scenario(tmp_path: Path) -> None:
    name = f"slow-{os.getpid()}"
    slow = job("slow", f'bash -c "exec -a {name} sleep 300"')
    with pytest.raises(HarnessError, match="still running after 3 s"):
        carry_out(tmp_path, slow.replace("timeout-minutes: 1", "timeout-minutes: 0.05"))
    assert ended(name)
