"""What workflows promise that a run under act cannot show: act ignores all of it.

The rules hold for the generated project's workflows and for the template's own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.baking import ROOT, BakedProject
from tests.harness.github import git
from tests.harness.workflow import needs, read_yaml
from tests.workflow_rules import PINS, RULES, Tree, triggers
from tests.workflow_table import BEGIN, END, PAGE, part, rewritten, table


@pytest.fixture(params=["generated", "template"])
def tree(request: pytest.FixtureRequest, baked: BakedProject) -> Tree:
    return Tree(baked.path if request.param == "generated" else ROOT)


@pytest.fixture
def ci(baked: BakedProject) -> dict[str, Any]:
    return dict(Tree(baked.path).workflows["ci.yml"])


def tool(name: str, *arguments: str | Path, cwd: Path, given: str | None = None) -> str:
    """Run a linter beside this interpreter; a finding fails the test."""
    program = shutil.which(name, path=Path(sys.executable).parent)
    assert program, f"{name} is not installed; run `uv sync`"
    done = subprocess.run(
        [program, *arguments], cwd=cwd, capture_output=True, text=True, check=False, input=given
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_kept(tree: Tree, rule: str) -> None:
    assert RULES[rule](tree) == [], RULES[rule].__doc__


def test_the_list_of_pins_is_well_formed_and_all_used(baked: BakedProject) -> None:
    form = re.compile(r"[\w.-]+(?:/[\w.-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    text = "".join(f.read_text() for t in (Tree(baked.path), Tree(ROOT)) for f in t.files)
    for pin in PINS:
        assert form.fullmatch(pin), pin
        assert pin in text, f"no workflow uses {pin}"


def test_permissions_are_none_unless_a_job_names_them(tree: Tree) -> None:
    for name, workflow in tree.workflows.items():
        assert workflow["permissions"] == {}, name
    for place, job in tree.jobs():
        assert isinstance(job.get("permissions", {}), dict), place


def test_every_job_and_step_has_a_name_and_every_job_an_end(tree: Tree) -> None:
    for place, job in tree.jobs():
        assert job["name"], place
        # A job that calls a workflow can have no limit: the jobs there have one each.
        assert "uses" in job or isinstance(job["timeout-minutes"], int), place
        assert "uses" in job or 0 < job["timeout-minutes"] <= 180, place
        assert "continue-on-error" not in job, place
    for place, step in tree.steps():
        assert step.get("name"), f"{place}: {step}"
        assert "continue-on-error" not in step, f"{place}: {step['name']}"


def test_a_step_is_one_command_and_values_reach_it_through_the_environment(tree: Tree) -> None:
    for place, step in tree.steps():
        command = step.get("run", "").strip()
        # Whoever names a branch or a pull request would otherwise write part of the script.
        assert "${{" not in command, f"{place}: {step['name']}"
        assert "\n" not in command, f"{place}: {step['name']}"


def test_no_checkout_leaves_its_token_behind(tree: Tree) -> None:
    for place, step in tree.steps():
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False, place


def test_python_versions_are_text(tree: Tree) -> None:
    for place, step in tree.steps():
        version = step.get("with", {}).get("python-version", "")
        assert isinstance(version, str), f"{place}: {version} would be a number"


def test_a_newer_push_cancels_the_check_of_the_older_one(ci: dict[str, Any]) -> None:
    assert ci["concurrency"]["cancel-in-progress"] is True
    assert "github.event.pull_request.number" in ci["concurrency"]["group"]


def test_what_waits_for_what(baked: BakedProject) -> None:
    """A group of its own for each run would let two deliveries meet in one environment."""
    workflows = Tree(baked.path).workflows.items()
    assert {name: workflow["concurrency"]["group"] for name, workflow in workflows} == {
        "batch.yml": "batch",
        "ci.yml": "ci-${{ github.event.pull_request.number }}",
        "deliver.yml": "deliver-${{ inputs.tag || github.ref_name }}",
        "deploy.yml": "${{ inputs.verb }}-${{ inputs.environment }}",
        "issue.yml": "issue-${{ inputs.title }}",
        "monitor.yml": "monitor-${{ github.run_id }}",
        "retrain.yml": "retrain",
        "rollback.yml": "by-hand-${{ inputs.environment }}",
        "security.yml": "security-${{ github.event.pull_request.number || github.run_id }}",
    }


def test_what_starts_each_workflow(baked: BakedProject) -> None:
    """A run under act is given its event: no filter of branches or tags is looked at there."""
    push = {"branches": ["develop", "main"], "tags": ["v*"]}
    found = {name: workflow["on"] for name, workflow in Tree(baked.path).workflows.items()}
    assert found["ci.yml"] == {"pull_request": None}
    assert (found["deliver.yml"]["push"], found["deliver.yml"].keys()) == (
        push,
        {"push", "workflow_dispatch"},
    )
    assert found["security.yml"].keys() == {"pull_request", "push", "schedule"}
    assert found["security.yml"]["push"] == {"branches": ["main"]}
    assert found["rollback.yml"].keys() == {"workflow_dispatch"}
    for name in ("deploy.yml", "issue.yml"):
        assert found[name].keys() == {"workflow_call"}
    for name in ("batch.yml", "monitor.yml"):
        assert found[name].keys() == {"schedule", "workflow_dispatch"}
    assert found["retrain.yml"].keys() == {"schedule", "workflow_dispatch", "workflow_call"}
    assert len(found) == 9


def test_the_pull_request_s_jobs_and_what_each_may_do(ci: dict[str, Any]) -> None:
    assert {name: job.get("permissions", {}) for name, job in ci["jobs"].items()} == {
        "test": {"contents": "read"},
        "candidate": {"contents": "read"},
        "comment": {"pull-requests": "write"},
        "gates": {},
    }
    assert ci["on"] == {"pull_request": None}  # no filter: a required check must always report


def test_the_job_that_may_write_runs_nothing_of_the_pull_request(ci: dict[str, Any]) -> None:
    used = [step["uses"].split("@")[0] for step in ci["jobs"]["comment"]["steps"]]
    assert used == ["actions/download-artifact", "marocchino/sticky-pull-request-comment"]


def test_the_job_that_may_write_issues_runs_nothing_of_the_project(baked: BakedProject) -> None:
    tree = Tree(baked.path)
    [job] = tree.workflows["issue.yml"]["jobs"].values()
    assert job["permissions"] == {"issues": "write"}
    used = [step["uses"].split("@")[0] for step in job["steps"] if "uses" in step]
    assert used == ["actions/download-artifact"]
    for node in tree.nodes():
        if "issues" in node.permissions and not node.calls:
            assert node.place.endswith(" → issue.yml: issue")


def test_what_changes_an_environment_enters_it_and_a_look_does_not(baked: BakedProject) -> None:
    """Whoever must approve a delivery would else be asked each day whether to look."""
    entered: dict[str, set[str]] = {}
    for node in Tree(baked.path).nodes():
        if node.place.endswith(" → deploy.yml: run"):
            entered.setdefault(node.inputs["verb"], set()).add(node.environment)
    assert entered == {
        "deploy": {"test", "staging", "production"},
        "rollback": {"${{ inputs.environment || '' }}", "production"},
        "monitor": {""},
        "predict": {""},
    }


def test_schedules_are_apart_and_off_the_full_hour(tree: Tree) -> None:
    """On the full hour GitHub is busiest, and drops runs."""
    found = {
        name: trigger["cron"]
        for name, workflow in tree.workflows.items()
        for trigger in triggers(workflow).get("schedule", [])
    }
    ours = {"security.yml", "nightly.yml"}
    theirs = {"security.yml", "retrain.yml", "monitor.yml", "batch.yml"}
    assert found.keys() == (ours if tree.repository == ROOT else theirs)
    minutes = [cron.split()[0] for cron in found.values()]
    assert all(minute.isdigit() and int(minute) % 15 for minute in minutes)
    assert len({tuple(cron.split()[:2]) for cron in found.values()}) == len(found)


def test_a_scheduled_job_checks_out_the_newest_default_branch(baked: BakedProject) -> None:
    """The event of a schedule does not name it, and a commit of its start may be days old."""
    known = []
    for place, step in Tree(baked.path).steps():
        ref = step.get("with", {}).get("ref", "") if "checkout@" in step.get("uses", "") else ""
        if "default_branch" in ref and not place.startswith("deliver.yml"):  # that has no schedule
            known.append(place)
            assert ref.endswith("github.event.repository.default_branch || github.ref_name }}")
    assert len(known) == 2, known


def test_a_second_attempt_takes_no_artifact_of_the_first(tree: Tree) -> None:
    """Two attempts of a run may keep one name twice, and which is downloaded is not said."""
    for place, step in tree.steps():
        if "upload-artifact@" in step.get("uses", ""):
            name, again = step["with"]["name"], step["with"].get("overwrite", False)
            assert "github.run_attempt" in name or again, place


def test_an_artifact_is_kept_for_as_long_as_a_reviewer_may_take(tree: Tree) -> None:
    """A job may wait 30 days for one; a plan's storage is not for ever's."""
    for place, step in tree.steps():
        if "upload-artifact@" in step.get("uses", ""):
            waited_for = step["with"]["name"].startswith("release-")
            assert step["with"]["retention-days"] == (35 if waited_for else 30), place


@pytest.mark.parametrize(
    ("assets", "published"),
    [
        ("card.md 0123456789ab.bento report.html", True),
        ("card.md 0123456789ab.bento", False),  # something was cut off
    ],
)
def test_published_is_what_has_its_page_which_comes_last(
    baked: BakedProject, tmp_path: Path, assets: str, published: bool
) -> None:
    steps = Tree(baked.path).workflows["deliver.yml"]["jobs"]["candidate"]["steps"]
    [command] = [step["run"] for step in steps if step.get("id") == "releases"]
    (tmp_path / "gh").write_text(f"#!/bin/sh\nprintf '%s\\n' {assets}\n")
    (tmp_path / "gh").chmod(0o755)
    told = tmp_path / "output"
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GITHUB_OUTPUT": str(told)}
    env |= {"TAG": "v1.0.0", "GITHUB_REPOSITORY": "a/b"}
    subprocess.run(["bash", "-euo", "pipefail", "-c", command], env=env, check=True)
    assert told.exists() == published


def test_gates_waits_for_every_other_job_and_always_answers(ci: dict[str, Any]) -> None:
    gates = ci["jobs"]["gates"]
    assert set(needs(gates)) == set(ci["jobs"]) - {"gates"}
    assert gates["if"] == "always()"


def test_what_a_plan_may_not_have_runs_or_is_said_to_be_left_out(tree: Tree) -> None:
    jobs = tree.workflows["security.yml"]["jobs"]
    assert jobs["scan"]["needs"] == "plan"
    assert jobs["scan"]["if"].endswith("&& needs.plan.outputs.visibility == 'public'")
    asks, says = jobs["plan"]["steps"]
    assert "gh api" in asks["run"]  # the event of a schedule does not say it
    assert says["if"] == "steps.asked.outputs.visibility != 'public'"
    attests = "actions/attest@" in "".join(file.read_text() for file in tree.files)
    for name in ("CodeQL", "Scorecard", "review", "GITHUB_STEP_SUMMARY"):
        assert name in says["run"]
    assert ("attestations" in says["run"]) is attests


def test_the_template_is_scanned_as_a_project_is(baked: BakedProject) -> None:
    """Only the project's jobs are executed, in `test_security_workflow.py`."""
    ours, theirs = (Tree(p).workflows["security.yml"]["jobs"] for p in (ROOT, baked.path))
    assert ours["scan"] == theirs["scan"]
    assert ours["plan"]["steps"][0] == theirs["plan"]["steps"][0]


def rules_of(tree: Tree) -> dict[str, dict[str, Any]]:
    """Return, by what a ruleset protects, its rules with their parameters."""
    rulesets = json.loads((tree.repository / ".github" / "rulesets.json").read_text())
    found = {}
    for ruleset in rulesets:
        assert ruleset["enforcement"] == "active"
        assert ruleset["conditions"]["ref_name"]["exclude"] == []
        for ref in ruleset["conditions"]["ref_name"]["include"]:
            found[f"{ruleset['target']} {ref}"] = {
                rule["type"]: rule.get("parameters", {}) for rule in ruleset["rules"]
            }
    assert len({ruleset["name"] for ruleset in rulesets}) == len(rulesets)
    return found


def test_a_branch_can_be_made_of_a_merge_that_no_check_ran_on(baked: BakedProject) -> None:
    for ref in ("branch ~DEFAULT_BRANCH", "branch refs/heads/develop"):
        checks = rules_of(Tree(baked.path))[ref]["required_status_checks"]
        assert checks["do_not_enforce_on_create"] is True


def test_rulesets_keep_what_must_not_be_rewritten(baked: BakedProject) -> None:
    merged = {"deletion", "non_fast_forward", "pull_request", "required_status_checks"}
    assert {ref: set(rules) for ref, rules in rules_of(Tree(baked.path)).items()} == {
        "branch ~DEFAULT_BRANCH": merged,
        "branch refs/heads/develop": merged,
        "tag refs/tags/v*": {"update", "deletion"},
        "branch refs/heads/model-registry": {"non_fast_forward", "deletion"},
    }


def test_a_required_check_is_a_job_that_answers_each_pull_request(baked: BakedProject) -> None:
    """One that a filter or a condition can leave out would be waited for, forever."""
    tree = Tree(baked.path)
    checks = rules_of(tree)["branch ~DEFAULT_BRANCH"]["required_status_checks"]
    required = {check["context"] for check in checks["required_status_checks"]}
    answers = {
        node.job["name"]
        for node in tree.nodes()
        if "pull_request" in node.events
        and triggers(node.workflow)["pull_request"] == {}
        and node.job.get("if") in ("always()", "github.event_name == 'pull_request'")
    }
    assert required == answers == {"Gates", "Audit"}


def owned(repository: Path) -> dict[str, str]:
    """Return who owns each path by CODEOWNERS."""
    lines = (repository / ".github" / "CODEOWNERS").read_text().splitlines()
    return dict(line.split(" ") for line in lines if not line.startswith("#"))


def test_owners_are_asked_about_workflows_and_limits(bake: Callable[..., BakedProject]) -> None:
    project = bake(github_owner="some-team")
    owners = owned(project.path)
    paths = ("/.github/", "/config/", "/delivery/", "/Makefile", "/pyproject.toml")
    assert {*paths, "/uv.lock"} == owners.keys()
    assert {*owners.values()} == {"@some-team"}
    for path in paths:  # uv.lock comes with the first commit
        assert (project.path / path.strip("/")).exists(), path


def test_owners_are_asked_about_what_runs_with_the_template_s_rights() -> None:
    owners = owned(ROOT)
    assert {"/.github/", "/.ci/", "/tools/", "/<<cookiecutter.project>>/.github/"} < owners.keys()
    for path in owners:
        assert (ROOT / path.strip("/")).exists(), path


def test_a_pull_request_is_asked_what_changes_and_why(tree: Tree) -> None:
    text = (tree.repository / ".github" / "pull_request_template.md").read_text()
    assert text.startswith("## What changes, and why\n")


def test_dependabot_waits_seven_days_and_groups(tree: Tree) -> None:
    updates = read_yaml(tree.repository / ".github" / "dependabot.yml")["updates"]
    assert {u["package-ecosystem"] for u in updates} == {"github-actions", "uv"}
    for update in updates:
        assert update["schedule"]["interval"] == "weekly"
        assert update["cooldown"]["default-days"] >= 7
        assert update["groups"]


@pytest.mark.parametrize("repository", [ROOT, ROOT / "<<cookiecutter.project>>"])
def test_dependabot_sees_every_file_that_uses_an_action(repository: Path) -> None:
    updates = read_yaml(repository / ".github" / "dependabot.yml")["updates"]
    [folders] = [u["directories"] for u in updates if u["package-ecosystem"] == "github-actions"]
    # Of `/` it reads `.github/workflows`, of any other folder what lies right in it.
    read = [".github/workflows" if folder == "/" else folder.strip("/") for folder in folders]
    tracked = git(repository, "ls-files", "*.github/*.yml").splitlines()  # not what a drill left
    uses = [file for name in tracked if "uses: " in (file := repository / name).read_text()]
    assert uses
    for file in uses:
        place = file.parent.relative_to(repository)
        assert any(place.match(pattern) for pattern in read), file


def test_the_readme_names_every_workflow(tree: Tree) -> None:
    text = (tree.repository / PAGE).read_text()
    for name in tree.workflows:
        assert f"`{name}`" in text


def test_the_readme_s_table_of_jobs_is_what_the_workflows_say(tree: Tree) -> None:
    again = "`tools/uv.sh run python -m tests.workflow_table` writes it anew"
    assert part((tree.repository / PAGE).read_text()) == table(tree.repository), again


def test_a_page_gets_its_table_between_the_marks(baked: BakedProject) -> None:
    page = f"above\n{BEGIN}old\n{END}below\n"
    assert rewritten(page, baked.path) == f"above\n{BEGIN}{table(baked.path)}{END}below\n"
    for broken in ("none", f"{BEGIN}no end", f"{END}{BEGIN}", page + page):
        with pytest.raises(ValueError, match="needs <!--"):
            rewritten(broken, baked.path)


def test_linters_find_nothing(tree: Tree) -> None:
    folder = tree.repository
    files = [folder / ".github" / "workflows" / name for name in tree.workflows]
    pedantic = ("--offline", "--persona", "pedantic", "--strict-collection")
    tool("zizmor", *pedantic, folder / ".github", cwd=folder)
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent)
    tool("actionlint", "-shellcheck", str(shellcheck), *files, cwd=folder)
    dependabot = sorted(folder.glob(".github/dependabot.yml"))
    tool("jactionlint", *files, *tree.actions, *dependabot, cwd=folder)
    for schema, those in (
        ("github-workflows", files),
        ("github-actions", tree.actions),
        ("dependabot", dependabot),
    ):
        if those:
            tool("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *those, cwd=folder)
    for _, step in tree.steps():
        if "run" in step:
            tool("shellcheck", "--shell", "bash", "-", cwd=folder, given=step["run"])


DECLARED = "secrets: { WAREHOUSE: { required: false } }"
HANDED = 'secrets: { WAREHOUSE: "${{ secrets.WAREHOUSE }}" }'
GIVEN = 'WAREHOUSE: "${{ secrets.WAREHOUSE }}"'


def test_a_secret_that_is_handed_on_as_the_page_says_passes_the_audit(
    baked: BakedProject, tmp_path: Path
) -> None:
    """A user adds these lines; what the audit refused would hold up every pull request after."""
    shutil.copytree(baked.path / ".github", tmp_path / ".github")
    workflows = tmp_path / ".github" / "workflows"
    page = (workflows / "README.md").read_text()
    for line in (DECLARED, HANDED, GIVEN):
        assert f"`{line}`" in page
    check = (workflows / "ci.yml").read_text()
    assert check.count("env: { GH_TOKEN") == 1
    (workflows / "ci.yml").write_text(check.replace("{ GH_TOKEN", f"{{ {GIVEN}, GH_TOKEN"))
    for name in ("deliver", "retrain", "deploy"):
        file = workflows / f"{name}.yml"
        text = file.read_text().replace("  workflow_call:\n", f"  workflow_call:\n    {DECLARED}\n")
        given = "          GH_TOKEN: ${{ github.token }}\n"
        assert given in text
        file.write_text(text.replace(given, f"{given}          {GIVEN}\n", 1))
    monitor = (workflows / "monitor.yml").read_text()
    for called in ("retrain.yml", "deploy.yml\n    with: { verb: monitor"):
        line = f"    uses: ./.github/workflows/{called}"
        assert monitor.count(line) == 1
        monitor = monitor.replace(line, f"    {HANDED}\n{line}")
    (workflows / "monitor.yml").write_text(monitor)
    test_linters_find_nothing(Tree(tmp_path))
    inherited = monitor.replace(HANDED, "secrets: inherit", 1)
    (workflows / "monitor.yml").write_text(inherited)
    with pytest.raises(AssertionError, match="secrets-inherit"):
        test_linters_find_nothing(Tree(tmp_path))


def test_act_reads_every_workflow(baked: BakedProject, tmp_path: Path) -> None:
    shutil.copytree(baked.path / ".github", tmp_path / ".github")
    for file in Tree(tmp_path).files:  # what GitHub knows since May 2026, and act not yet
        file.write_text(file.read_text().replace("queue: max", ""))
    git(tmp_path, "init", "--quiet")
    tool("act", "--validate", "--strict", cwd=tmp_path)


def test_no_finding_is_silenced_but_the_one_act_needs(tree: Tree) -> None:
    silenced = re.compile(r"zizmor: *ignore|shellcheck disable|actionlint.*ignore")
    for file in tree.files:
        assert not silenced.search(file.read_text()), file
    rules = read_yaml(tree.repository / ".github" / "zizmor.yml")["rules"]
    assert rules == {"self-repository": {"disable": True}}
