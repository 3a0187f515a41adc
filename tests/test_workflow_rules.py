"""Each rule over workflows is proved to bite: a sound repository, and one mistake after another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workflow_expressions import reduced
from tests.workflow_rules import DEFAULT_BRANCH, HANDED_ON, RULES, Node, Tree, allowed
from tests.workflow_table import table

UV = "astral-sh/setup-uv@20cfd1bf945f4377ade1205e4dbc17946fc9a30d # v10.0.1"
CALL = "uses: ./.github/workflows/deploy.yml"
FILES = {
    "workflows/ci.yml": """\
on: pull_request
permissions: {}
concurrency: { group: ci, cancel-in-progress: true }
jobs:
  test:
    runs-on: ubuntu-24.04
    permissions: { contents: read }
    steps:
      - name: Set up
        uses: ./.github/actions/setup
        with: { cache: true }
  comment:
    runs-on: ubuntu-24.04
    permissions: { pull-requests: write }
    steps:
      - { name: Say so, run: echo }
  free:
    runs-on: ubuntu-24.04
    steps: []
""",
    "workflows/deliver.yml": """\
on:
  push: { branches: [main], tags: ["v*"] }
  workflow_dispatch:
permissions: {}
concurrency: { group: deliver, cancel-in-progress: false, queue: max }
jobs:
  build:
    if: github.event_name != 'workflow_dispatch'
    runs-on: ubuntu-24.04
    steps:
      - { name: Set up, id: setup, uses: ./.github/actions/setup }
      - name: Ship
        id: ship
        env:
          ML_ATTESTED: ${{ steps.setup.outputs.visibility == 'public' }}
          MLFLOW_TRACKING_URI: ${{ vars.MLFLOW_TRACKING_URI }}
        run: uv run ml ship --until register
      - name: Attest the blob
        if: steps.setup.outputs.visibility == 'public'
        uses: actions/attest@1e69f48acb82d1966a394da916b4c1698aa569d6 # v4.2.2
        with: { subject-path: ".ml/registry/blobs/${{ steps.ship.outputs.digest }}.tar.xz" }
  test:
    needs: build
    permissions: { contents: write }
    uses: ./.github/workflows/deploy.yml
    with: { verb: deploy, environment: test, runner: ubuntu-24.04 }
  production:
    needs: build
    permissions: { contents: write }
    uses: ./.github/workflows/deploy.yml
    with:
      verb: deploy
      environment: production
      runner: ${{ vars.DEPLOY_RUNNER || 'ubuntu-24.04' }}
    secrets:
      KEY: ${{ secrets.STORE_KEY }}
  release:
    needs: production
    runs-on: ubuntu-24.04
    steps:
      - name: Push
        id: pushed
        uses: docker/build-push-action@53b7df96c91f9c12dcc8a07bcb9ccacbed38856a # v7.3.0
      - name: Attest the image
        if: ${{ github.event.repository.visibility == 'public' }}
        uses: actions/attest@1e69f48acb82d1966a394da916b4c1698aa569d6 # v4.2.2
        with: { subject-name: image, subject-digest: "${{ steps.pushed.outputs.digest }}" }
      - name: Attest the files
        if: ${{ github.event.repository.visibility == 'public' }}
        uses: actions/attest@1e69f48acb82d1966a394da916b4c1698aa569d6 # v4.2.2
        with: { subject-path: "$FOLDER/package/*" }
      - { name: Publish, run: gh release create "$TAG" "$FOLDER"/package/* report.html }
""",
    "workflows/deploy.yml": """\
on:
  workflow_call:
    inputs: { verb: { type: string }, environment: { type: string }, runner: {} }
    secrets: { KEY: { required: true } }
permissions: {}
concurrency:
  group: ${{ inputs.verb }}-${{ inputs.environment }}
  cancel-in-progress: false
  queue: max
jobs:
  deploy:
    runs-on: ${{ inputs.runner }}
    environment: { name: "${{ inputs.environment }}" }
    permissions: { contents: read }
    steps:
      - name: Check out
        uses: actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1
        with:
          ref: >-
            ${{ inputs.verb == 'deploy' && inputs.environment == 'test' && github.sha
            || github.event.repository.default_branch || github.ref_name }}
      - { name: Set up, id: setup, uses: ./.github/actions/setup }
      - name: Deploy
        env:
          ML_ATTESTED: ${{ steps.setup.outputs.visibility == 'public' }}
          MLFLOW_TRACKING_URI: ${{ vars.MLFLOW_TRACKING_URI }}
          KEY: ${{ secrets.KEY }}
        run: uv run ml deploy
""",
    "actions/setup/action.yml": f"""\
inputs:
  cache: {{ default: "false" }}
runs:
  using: composite
  steps:
    - name: Install
      uses: {UV}
      with:
        enable-cache: ${{{{ inputs.cache }}}}
""",
}
CI, DELIVER, DEPLOY, SETUP = FILES
PRIVILEGE, CACHE = "privileges_of_a_pull_request", "caches_of_privileged_jobs"
GROUPS, LIMITS = "groups_of_environments", "limits_of_a_branch"
VERB_AND_PLACE = "${{ inputs.verb }}-${{ inputs.environment }}"
DEPLOYS = "deliver.yml: production → deploy.yml: deploy"

# Each mistake: where, what it was, what it becomes, the rule it breaks, and what is found.
MISTAKES = {
    "an action by its tag": (SETUP, UV, "astral-sh/setup-uv@v10", "unpinned", "setup-uv@v10"),
    "a commit without its version": (SETUP, " # v10.0.1", "", "unpinned", "setup-uv@20cf"),
    "a commit that is not listed": (SETUP, "20cfd", "30cfd", "unpinned", "setup-uv@30cf"),
    "an action of our own that is not there": (
        *(DELIVER, "uses: ./.github/actions/setup", "uses: ./.github/actions/other"),
        *("unpinned", "actions/other"),
    ),
    "a stranger's code with a token": (
        *(CI, "on: pull_request\n", "on: [pull_request_target]\n"),
        *("strangers_code_with_privileges", "ci.yml: pull_request_target"),
    ),
    "a stranger's artifacts with a token": (
        *(DELIVER, "  workflow_dispatch:\n", "  workflow_run: { workflows: [CI] }\n"),
        *("strangers_code_with_privileges", "deliver.yml: workflow_run"),
    ),
    "a secret in a pull request": (
        CI,
        "run: echo",
        'env: { A: "${{ secrets.KEY }}" }, run: echo',
        PRIVILEGE,
        "comment: secret KEY",
    ),
    "every secret in a pull request": (
        *(CI, "run: echo", 'env: { A: "${{ toJSON(secrets) }}" }, run: echo'),
        *(PRIVILEGE, "comment: secret all"),
    ),
    "secrets handed on by a pull request": (
        CI,
        "  comment:\n",
        f"  call:\n    {CALL}\n    secrets: inherit\n  comment:\n",
        PRIVILEGE,
        "call: secret all",
    ),
    "a secret for a whole workflow": (
        *(CI, "jobs:\n", 'env: { A: "${{ secrets.KEY }}" }\njobs:\n'),
        *(PRIVILEGE, "test: secret KEY"),
    ),
    "an environment in a pull request": (
        CI,
        "    permissions: { contents: read }\n",
        "    environment: test\n    permissions: { contents: read }\n"
        "    concurrency: { group: t, cancel-in-progress: false, queue: max }\n",
        PRIVILEGE,
        "test: environment test",
    ),
    "an own runner in a pull request": (
        *(
            CI,
            "ubuntu-24.04\n    permissions: { contents",
            "self-hosted\n    permissions: { contents",
        ),
        *(PRIVILEGE, "test: runs on self-hosted"),
    ),
    "a runner by a variable in a pull request": (
        CI,
        "ubuntu-24.04\n    permissions: { contents",
        "${{ vars.R || 'ubuntu-24.04' }}\n    permissions: { contents",
        PRIVILEGE,
        "test: runs on ${{ vars.R",
    ),
    "a right to write in a pull request": (
        *(CI, "contents: read", "contents: write"),
        *(PRIVILEGE, "test: writes contents"),
    ),
    "a token of identity in a pull request": (
        *(CI, "pull-requests: write", "id-token: write"),
        *(PRIVILEGE, "comment: writes id-token"),
    ),
    "a second job that may comment": (
        *(CI, "contents: read", "pull-requests: write"),
        *(PRIVILEGE, "test: writes pull-requests"),
    ),
    "all rights in a pull request": (
        *(CI, "{ contents: read }", "write-all"),
        *(PRIVILEGE, "test: permissions write-all"),
    ),
    "rights of a whole workflow": (
        *(CI, "permissions: {}", "permissions: { actions: write }"),
        *(PRIVILEGE, "ci.yml: free: writes actions"),
    ),
    "a deployment called by a pull request": (
        CI,
        "  comment:\n",
        f"  call:\n    {CALL}\n    permissions: {{ contents: read }}\n"
        "    with: { verb: deploy, environment: production, runner: mine }\n  comment:\n",
        PRIVILEGE,
        "ci.yml: call → deploy.yml: deploy: environment production",
    ),
    "a pull request that starts a delivery": (
        *(DELIVER, "  workflow_dispatch:\n", "  workflow_dispatch:\n  pull_request:\n"),
        *(PRIVILEGE, f"{DEPLOYS}: secret KEY"),
    ),
    "a cache on a push": (
        DELIVER,
        "uses: ./.github/actions/setup }",
        "uses: ./.github/actions/setup, with: { cache: true } }",
        CACHE,
        "deliver.yml: build: Set up",
    ),
    "a cache by default": (
        SETUP,
        "\n      with:\n        enable-cache: ${{ inputs.cache }}",
        "",
        CACHE,
        "deliver.yml: build: Set up",
    ),
    "a cache on a dispatch": (
        *(CI, "on: pull_request\n", "on: [pull_request, workflow_dispatch]\n"),
        *(CACHE, "ci.yml: test: Set up"),
    ),
    "a cache by itself": (
        DEPLOY,
        "- name: Deploy\n",
        "- { name: Keep, uses: actions/cache/save@55cc, with: { key: a } }\n      - name: Deploy\n",
        CACHE,
        f"{DEPLOYS}: Keep",
    ),
    "a cache of another set-up": (
        DEPLOY,
        "- name: Deploy\n",
        "- { name: Python, uses: actions/setup-python@5fda, with: { cache: pip } }\n"
        "      - name: Deploy\n",
        CACHE,
        f"{DEPLOYS}: Python",
    ),
    "a question whose answer may be lost": (
        *(
            DELIVER,
            "run: uv run ml ship --until",
            'run: echo "v=$(gh api x)" && uv run ml ship --until',
        ),
        *("unnoticed", 'deliver.yml: build: echo "v=$(gh api x)"'),
    ),
    "a workflow without a group": (
        *(CI, "concurrency: { group: ci, cancel-in-progress: true }\n", ""),
        *("concurrency", "ci.yml: no concurrency"),
    ),
    "a deployment that is cancelled": (
        DEPLOY,
        "cancel-in-progress: false",
        "cancel-in-progress: true",
        "concurrency",
        f"{DEPLOYS}: ",
    ),
    "a deployment that is perhaps cancelled": (
        *(DEPLOY, "cancel-in-progress: false", "cancel-in-progress: \"${{ github.ref != 'a' }}\""),
        *("concurrency", f"{DEPLOYS}: "),
    ),
    "a deployment dropped from the queue": (
        *(DEPLOY, "  queue: max\n", ""),
        *("concurrency", f"{DEPLOYS}: "),
    ),
    "a deployment cancelled with what called it": (
        *(DELIVER, "group: deliver, cancel-in-progress: false, queue: max", "group: deliver"),
        *("concurrency", f"{DEPLOYS}: "),
    ),
    "a deployment that waits for what called it": (
        *(DEPLOY, VERB_AND_PLACE, "deliver"),
        *("deadlocks", f"{DEPLOYS}: deliver"),
    ),
    "an action by its tag within braces": (
        *(
            DEPLOY,
            "- name: Deploy\n",
            "- { name: Keep, uses: a/b@v1, with: {} }\n      - name: Deploy\n",
        ),
        *("unpinned", "deploy.yml: a/b@v1"),
    ),
    "a called job that wants more": (
        DELIVER,
        "permissions: { contents: write }\n    uses: ./.github/workflows/deploy.yml\n    with:\n",
        "permissions: {}\n    uses: ./.github/workflows/deploy.yml\n    with:\n",
        *("more_than_the_caller_may", f"{DEPLOYS}: contents: read"),
    ),
    "a pull request with a job of another workflow": (
        *(DELIVER, "  workflow_dispatch:\n", "  workflow_dispatch:\n  pull_request:\n"),
        *("more_jobs_of_a_pull_request", "deliver.yml: build"),
    ),
    "a group for each run": (
        *(DEPLOY, VERB_AND_PLACE, VERB_AND_PLACE + "-${{ github.run_id }}"),
        *(GROUPS, f"{DEPLOYS}: waits in deploy-production-${{{{ github.run_id }}}}"),
    ),
    "a group for all environments": (
        *(DEPLOY, VERB_AND_PLACE, "${{ inputs.verb }}"),
        *(GROUPS, f"{DEPLOYS}: waits in deploy"),
    ),
    "limits of the pushed commit": (
        *(DEPLOY, f"|| {DEFAULT_BRANCH}", "|| github.sha"),
        *(LIMITS, f"{DEPLOYS}: checks out ${{{{ github.sha }}}}"),
    ),
    "limits of the pushed commit in staging too": (
        *(DEPLOY, "inputs.environment == 'test'", "inputs.environment != 'other'"),
        *(LIMITS, f"{DEPLOYS}: checks out ${{{{ github.sha || "),
    ),
    "limits of nothing in particular": (
        DEPLOY,
        "          ref: >-",
        "          other: >-",
        *(LIMITS, f"{DEPLOYS}: checks out nothing"),
    ),
    "a deployment of what nobody attested": (
        *(DEPLOY, f"          ML_ATTESTED: {HANDED_ON['ML_ATTESTED']}\n", ""),
        *("not_handed_on", f"{DEPLOYS}: Deploy: ML_ATTESTED is None"),
    ),
    "a deployment that asks an event for what it may not say": (
        *(DEPLOY, "steps.setup.outputs.visibility", "github.event.repository.visibility"),
        *("not_handed_on", f"{DEPLOYS}: Deploy: ML_ATTESTED is ${{{{ github.event"),
    ),
    "a deployment that asks nobody": (
        *(DEPLOY, "id: setup, ", ""),
        *("not_handed_on", f"{DEPLOYS}: Deploy: nobody asked"),
    ),
    "a blob found again that nobody attested": (
        *(DELIVER, "ML_ATTESTED", "ATTESTED"),
        *("not_handed_on", "deliver.yml: build: Ship: ML_ATTESTED is None"),
    ),
    "a delivery that no server of MLflow hears of": (
        *(DEPLOY, "MLFLOW_TRACKING_URI: ${{ vars.MLFLOW_TRACKING_URI }}", "MLFLOW: there"),
        *("not_handed_on", f"{DEPLOYS}: Deploy: MLFLOW_TRACKING_URI is None"),
    ),
    "a blob without a word on who built it": (
        *(DELIVER, ".ml/registry/blobs/", ".ml/candidates/"),
        *("unattested", "deliver.yml: build: .ml/registry/blobs/"),
    ),
    "an image without a word on who built it": (
        *(DELIVER, "steps.pushed.outputs.digest", "steps.other.outputs.digest"),
        *("unattested", "deliver.yml: release: ${{ steps.pushed.outputs.digest }}"),
    ),
    "files of a release without a word on who built them": (
        *(DELIVER, 'subject-path: "$FOLDER/package/*"', 'subject-path: "$FOLDER/ship/*"'),
        *("unattested", "deliver.yml: release: /package/*"),
    ),
}


def repository(folder: Path, files: dict[str, str]) -> Tree:
    """Return a repository of these files."""
    for name, text in files.items():
        file = folder / ".github" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Tree(folder)


def broken(tree: Tree) -> dict[str, list[str]]:
    """Return what each broken rule found."""
    return {name: found for name, rule in RULES.items() if (found := rule(tree))}


def test_a_sound_repository_breaks_no_rule(tmp_path: Path) -> None:
    assert broken(repository(tmp_path, FILES)) == {}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_breaks_its_rule(tmp_path: Path, mistake: str) -> None:
    where, old, new, rule, says = MISTAKES[mistake]
    assert FILES[where].count(old) == 1
    found = broken(repository(tmp_path, FILES | {where: FILES[where].replace(old, new)}))
    assert says in " ".join(found.get(rule, [])), found


def test_every_rule_has_a_mistake() -> None:
    assert {rule for _, _, _, rule, _ in MISTAKES.values()} == RULES.keys()


def test_a_condition_narrows_what_may_start_a_job() -> None:
    events = {"push", "schedule", "pull_request"}
    assert allowed(events, "${{ github.event_name != 'pull_request' && x }}") == {
        "push",
        "schedule",
    }
    assert allowed(events, "github.event_name == 'push'") == {"push"}
    assert allowed(events, "github.event_name == 'push' || always()") == events
    assert allowed(events, "!(github.event_name == 'push')") == events
    assert allowed(events, "") == events


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("${{ inputs.a == 'x' && vars.A || 'b' }}", "${{ vars.A || 'b' }}"),
        ("${{ (inputs.a == 'y' && vars.A) || (inputs.a == 'x' && vars.B) }}", "${{ vars.B }}"),
        ("${{ (inputs.a == 'y' || inputs.a == 'z') && vars.A || '' }}", ""),
        ("${{ inputs.a != 'y' || vars.A }}", "True"),
        ("${{ !cancelled() && inputs.b == 'x' }}", "${{ !cancelled() && inputs.b == 'x' }}"),
        ("${{ inputs.a }}-${{ inputs.c }}", "x-${{ vars.C }}"),
        ("${{ inputs.c == 'x' && vars.A }}", "${{ inputs.c == 'x' && vars.A }}"),
    ],
)
def test_inputs_that_are_known_decide_an_expression(text: str, left: str) -> None:
    assert reduced(text, {"a": "x", "c": "${{ vars.C }}"}) == left


def test_workflows_that_call_each_other_in_a_circle_are_named(tmp_path: Path) -> None:
    circle = {DEPLOY: FILES[DEPLOY] + f"  again:\n    {CALL}\n"}
    with pytest.raises(ValueError, match=r"deploy\.yml calls itself"):
        list(repository(tmp_path, FILES | circle).nodes())


def test_the_table_has_a_row_for_each_job_that_runs(tmp_path: Path) -> None:
    rows = table(repository(tmp_path, FILES).repository).splitlines()
    pushed = "push to `main`, tag `v*`, dispatch"
    assert rows[2:] == [
        "| `ci.yml: test` | pull request | `contents: read` | none | none | `ubuntu-24.04` |",
        "| `ci.yml: comment` | pull request | `pull-requests: write` | none | none "
        "| `ubuntu-24.04` |",
        "| `ci.yml: free` | pull request | none | none | none | `ubuntu-24.04` |",
        "| `deliver.yml: build` | push to `main`, tag `v*` | none | none | none | `ubuntu-24.04` |",
        f"| `deliver.yml: test` → `deploy.yml: deploy` | {pushed} "
        "| `contents: read` | `KEY` | `test` | `ubuntu-24.04` |",
        f"| `deliver.yml: production` → `deploy.yml: deploy` | {pushed} "
        "| `contents: read` | `KEY` | `production` | `vars.DEPLOY_RUNNER \\|\\| 'ubuntu-24.04'` |",
        f"| `deliver.yml: release` | {pushed} | none | none | none | `ubuntu-24.04` |",
    ]


def test_a_secret_s_name_in_words_is_no_secret() -> None:
    job = {"steps": [{"name": "Say which secrets.X are missing", "run": "echo secrets"}]}
    assert Node("", {}, job, frozenset()).secrets == set()
