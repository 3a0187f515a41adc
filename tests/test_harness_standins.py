"""The stand-ins do what GitHub does for a token that may, and refuse it to one that may not."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.harness import PullRequest, Run, run_workflow
from tests.harness.github import git
from tests.small import Repository, checkout, job, run, use, workflow

ALL = dict.fromkeys(("contents", "attestations", "issues", "packages", "id-token"), "write")
READ = dict.fromkeys(ALL.keys() - {"id-token"}, "read")
WITH_TOKEN = {"GH_TOKEN": "${{ github.token }}", "GH_REPO": "${{ github.repository }}"}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def gh(*commands: str) -> dict[str, Any]:
    """Return a step of commands, of which each must succeed."""
    return run(" && ".join(commands), **WITH_TOKEN)


def may(permissions: dict[str, str], *steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return job(*steps, permissions=permissions, **more)


def carry_out(repository: Repository, /, **jobs: dict[str, Any]) -> Run:
    repository.commit(small=workflow(**jobs))
    return repository.run()


def failed(done: Run) -> set[str]:
    return {name for name, result in done.results.items() if result == "failure"}


def test_a_release_is_made_once_of_a_tag_that_exists(repository: Repository) -> None:
    repository.commit()
    repository.github.receive(repository.project, "HEAD:refs/tags/v1.0.0")
    publish = "gh release create v1.0.0 a* --verify-tag --title One --notes-file a --latest"
    make = run("echo 1 > a; echo 2 > ab")
    done = carry_out(
        repository,
        reads=may(READ, make, gh(publish)),
        typo=may(ALL, make, gh(publish.replace("v1", "v2"))),
        missing=may(ALL, gh(publish)),
        nowhere=may(ALL, make, run(publish, GH_TOKEN=WITH_TOKEN["GH_TOKEN"])),
        elsewhere=may(ALL, make, gh(f"{publish} --repo other/name")),
        made=may(ALL, make, gh(publish)),
        again=may(ALL, make, gh(publish), needs="made"),
        store=may(ALL, make, gh("gh release create model-store a --prerelease --notes=Models")),
        got=may(
            READ, gh("gh release download v1.0.0 --pattern=ab --dir=x", "cat x/ab"), needs="made"
        ),
        none=may(READ, gh("gh release download v1.0.0 --pattern=b"), needs="made"),
        blind=may({}, gh("gh release download v1.0.0 --pattern=ab"), needs="made"),
        unknown=may(ALL, gh("gh release create v3 --no-such-option")),
    )
    said = {name: ended.log for name, ended in done.jobs.items()}
    assert failed(done) == set(done.jobs) - {"made", "store", "got"}, done.said
    assert "contents: write" in said["reads"]
    assert "tag v2.0.0 doesn't exist" in said["typo"]
    assert "no matches found for `a*`" in said["missing"]
    assert "not a git repository" in said["nowhere"]
    assert "other/name" in said["elsewhere"]
    assert "tag_name already exists" in said["again"]
    assert said["got"] == "2\n"
    assert "no assets match" in said["none"]
    assert "contents: read" in said["blind"]
    assert "unrecognized arguments" in said["unknown"]
    one = {"title": "One", "notes": "1\n", "latest": True, "prerelease": False}
    store = {"title": "model-store", "notes": "Models", "latest": False, "prerelease": True}
    assert repository.github.releases == {
        "v1.0.0": {**one, "assets": ["a", "ab"]},
        "model-store": {**store, "assets": ["a"]},
    }
    assert "a" in repository.github.registry
    assert "ab" not in repository.github.registry
    assert "gh release download v1.0.0 --pattern=ab --dir=x" in repository.github.said
    assert {call["job"] for call in repository.github.calls} == set(done.jobs)


@pytest.mark.parametrize("plan", ["public", "private", "paid"])
def test_what_was_attested_can_be_verified_to_the_byte(repository: Repository, plan: str) -> None:
    verify = "gh attestation verify {} --repo octo-org/late-departures"
    image = {"subject_name": "ghcr.io/o/i", "subject_digest": f"sha256:{'1' * 64}"}
    make = run("echo 1 > a; echo 2 > b")
    jobs = {
        "reads": may(READ, make, use("actions/attest@v0", subject_path="a")),
        "missing": may(ALL, use("actions/attest@v0", subject_path="a")),
        "attests": may(ALL, make, use("actions/attest@v0", subject_path="a")),
        "image": may(ALL, use("actions/attest@v0", **image)),
        "same": may(READ, make, gh(verify.format("a")), needs="attests"),
        "pushed": may(READ, gh(verify.format(f"oci://x@sha256:{'1' * 64}")), needs="image"),
        "other": may(READ, make, gh(verify.format("b")), needs="attests"),
        "theirs": may(READ, make, gh("gh attestation verify a --repo o/other"), needs="attests"),
        "blind": may({}, make, gh(verify.format("a")), needs="attests"),
    }
    repository.commit(small=workflow(**jobs))
    github = repository.github
    object.__setattr__(github, "paid", plan == "paid")
    event = repository.push()
    event.payload["repository"]["private"] = plan != "public"
    done = run_workflow(repository.project, "small.yml", event, github)
    if plan == "private":
        assert "Feature not available" in done.jobs["attests"].log
        assert github.attestations == {}
        return
    assert failed(done) == {"reads", "missing", "other", "theirs", "blind"}, done.said
    assert "id-token" in done.jobs["reads"].log
    assert "no attestations found for subject sha256:" in done.jobs["other"].log
    assert github.attestations == {sha256(b"1\n").hexdigest(): "a", "1" * 64: "ghcr.io/o/i"}


def test_an_issue_is_opened_found_and_changed(repository: Repository) -> None:
    label = "gh label create data"
    create = "gh issue create --title Skew --body Red --label data"
    listed = 'gh api "repos/$GH_REPO/issues?labels=data&state=open&per_page={}" --jq '
    listed += "'first(.[] | select(.title == env.TITLE)).number'"
    few, many = listed.format(1), listed.format(100)
    done = carry_out(
        repository,
        reads=may(READ, gh(create)),
        unknown=may(ALL, gh("gh issue create --title Skew --body Red --label other")),
        opens=may(ALL, gh(label, create, create.replace("Skew", "Other"))),
        twice=may(ALL, gh(f"{label} --force", label), needs="opens"),
        looks=may(READ, gh(f"TITLE=Other {few}", f"TITLE=Skew {few}"), needs="opens"),
        finds=may(READ, gh(f"TITLE=Skew {many}", f"TITLE=None {many}"), needs="opens"),
        blind=may({}, gh(many), needs="opens"),
        writes=may(ALL, gh("echo Green > t", "gh issue edit 1 --body-file t"), needs="opens"),
        absent=may(ALL, gh("gh issue edit 3 --body x"), needs="opens"),
    )
    assert failed(done) == {"reads", "unknown", "twice", "blind", "absent"}, done.said
    assert "could not add label: 'other' not found" in done.jobs["unknown"].log
    assert done.jobs["looks"].log.split() == ["2"]  # Skew is older than the limit reaches
    assert done.jobs["finds"].log.split() == ["1"]
    one, two = repository.github.issues
    assert (one["body"], one["state"], one["labels"]) == ("Green\n", "open", ["data"])
    assert two["body"] == "Red"


def test_only_a_release_that_is_published_shows_its_assets(repository: Repository) -> None:
    repository.commit()
    asked = 'gh api --paginate "repos/$GH_REPO/releases" --jq '
    asked += "'.[] | select(.tag_name == env.TAG and (.draft | not)).assets[].name'"
    for tag, hidden in (("v1", False), ("v2", True)):
        repository.github.draft(tag, "Ours", hidden)
        (repository.github.assets(tag) / "report.html").touch()
    looks = may(READ, gh(*(f"TAG={tag} {asked}" for tag in ("v1", "v2", "v3"))))
    done = carry_out(repository, looks=looks, blind=may({}, gh(f"TAG=v1 {asked}")))
    assert done.jobs["looks"].log.split() == ["report.html"]
    assert failed(done) == {"blind"}, done.said


def test_the_api_answers_what_the_test_says_and_else_not_found(repository: Repository) -> None:
    path = "repos/octo-org/late-departures/environments"
    github = repository.github
    github.api[path] = {"total_count": 0}
    known = may(READ, gh("gh api repos/{owner}/{repo}/environments"))
    other = may(READ, gh(f"gh api {path}/production"))
    changes = may(ALL, gh(f"gh api --method PUT {path}"))
    repository.commit(small=workflow(known=known, other=other, changes=changes))
    done = run_workflow(repository.project, "small.yml", repository.push(), github)
    assert json.loads(done.jobs["known"].log) == {"total_count": 0}
    assert "Not Found (HTTP 404)" in done.jobs["other"].log
    assert failed(done) == {"other", "changes"}


def test_an_image_is_pushed_by_who_is_logged_in_and_may(repository: Repository) -> None:
    make = run("mkdir ship; echo 1 > ship/model; echo FROM x > Recipe")
    who = {"username": "${{ github.actor }}", "password": "${{ github.token }}"}
    login = use("docker/login-action@v0", registry="ghcr.io", **who)
    given = {"images": "ghcr.io/Octo-Org/Late", "labels": "model.digest=abc"}
    name = use("docker/metadata-action@v0", id="meta", tags="type=raw,value=v1+data", **given)
    tags = "${{ steps.meta.outputs.tags }}"
    how: dict[str, Any] = {"context": "ship", "file": "Recipe", "tags": tags, "push": True}
    build = use(
        "docker/build-push-action@v0",
        labels="${{ steps.meta.outputs.labels }}",
        **how,
    )
    upper = use("docker/build-push-action@v0", **{**how, "tags": "ghcr.io/Octo:1"})
    empty = use("docker/build-push-action@v0", **{**how, "context": "none"})
    show = run('echo "$DIGEST"', DIGEST="${{ steps.used.outputs.digest }}")
    done = carry_out(
        repository,
        stranger=may(ALL, make, name, build),
        reads=may(READ, make, login, name, build),
        upper=may(ALL, make, login, upper),
        empty=may(ALL, make, login, name, empty),
        recipe=may(ALL, run("mkdir ship"), login, name, build),
        nobody=may(ALL, use("docker/login-action@v0", registry="ghcr.io", username="me")),
        pushes=may(ALL, make, login, name, build, show),
    )
    assert failed(done) == set(done.jobs) - {"pushes"}, done.said
    (tag,), (image,) = repository.github.images.keys(), repository.github.images.values()
    assert tag == "ghcr.io/octo-org/late:v1-data"
    assert image["digest"] == done.jobs["pushes"].log.strip()
    assert "model.digest=abc" in image["labels"]


@pytest.mark.parametrize(
    ("ref", "rules", "tags"),
    [
        ("refs/tags/v1.2.3", "type=semver,pattern={{version}}", "i:1.2.3 i:latest"),
        ("refs/tags/v1.2.3", "type=ref,event=tag\ntype=ref,event=branch", "i:v1.2.3 i:latest"),
        ("refs/heads/main", "type=semver,pattern={{version}}\nplain", "i:plain"),
        ("refs/heads/a/b", "", "i:a-b"),
    ],
)
def test_an_image_is_named_by_what_was_pushed(
    repository: Repository, ref: str, rules: str, tags: str
) -> None:
    name = use("docker/metadata-action@v0", images="I", tags=rules)
    show = run("echo $TAGS", TAGS="${{ steps.used.outputs.tags }}")
    repository.commit(small=workflow(only=job(name, show)))
    repository.github.receive(repository.project, f"HEAD:{ref}")
    if ref != "refs/heads/main":
        git(repository.project, "update-ref", ref, "HEAD")
    assert repository.run(repository.push(ref)).jobs["only"].log == f"{tags}\n"


def test_a_cache_is_kept_by_key_and_apart_by_scope(repository: Repository) -> None:
    paths = {"path": "kept\n~/kept"}
    save = use("actions/cache/save@v0", key="k-${{ github.event_name }}", **paths)
    restore = use("actions/cache/restore@v0", key="k-push", **paths)
    prefix = use("actions/cache/restore@v0", key="k-none", restore_keys="k-", **paths)
    others = use("actions/cache/restore@v0", key="k-pull_request", **paths)
    must = use("actions/cache/restore@v0", key="none", fail_on_cache_miss=True, **paths)
    make = run("mkdir kept && echo $GITHUB_EVENT_NAME > kept/a && cp kept/a ~/kept")

    def show(step: dict[str, Any], name: str) -> list[dict[str, Any]]:
        hit = f"${{{{ steps.{name}.outputs.cache-hit }}}}"
        command = 'echo "[$HIT]" $(cat kept/a ~/kept) && rm -rf kept ~/kept'
        return [{**step, "id": name}, {"name": "Show", "run": command, "env": {"HIT": hit}}]

    looks = [*show(restore, "same"), *show(prefix, "prefix"), *show(others, "others")]
    jobs = {"saves": job(make, save), "looks": job(*looks, must, needs="saves")}
    repository.commit(small=workflow(("push", "pull_request"), **jobs))
    pushed = repository.push()
    request = PullRequest().event(repository.project, repository.github.repository)
    runs = [repository.run(event) for event in (pushed, request, pushed)]
    logs = [done.jobs["looks"].log for done in runs]
    same, none = "[true] push push\n", "Cache not found for input keys: k-pull_request\n"
    for log in (logs[0], logs[2]):  # what a pull request saved, no push ever sees
        assert log.startswith(f"{same}[false] push push\n{none}")
    theirs = "pull_request pull_request\n"
    assert logs[1].startswith(f"{same}[false] {theirs}[true] {theirs}")
    assert "is taken" in runs[2].jobs["saves"].log
    for done in runs:
        assert failed(done) == {"looks"}
        assert "Failed to restore cache entry. Input key: none" in done.jobs["looks"].log


def test_an_action_in_a_folder_of_a_repository_is_recorded_by_its_whole_name(
    repository: Repository,
) -> None:
    analyze = [use("github/codeql-action/init@v0", languages="python"), use("a/b@v1", x="1")]
    done = carry_out(repository, only=job(*analyze, use("github/codeql-action/analyze@v0")))
    assert [call["action"] for call in done.calls] == [
        "github/codeql-action/init",
        "a/b",
        "github/codeql-action/analyze",
    ]
    assert done.calls[0]["inputs"] == {"languages": "python"}


def test_an_expression_hashes_files_of_the_checkout(repository: Repository) -> None:
    def asks(pattern: str) -> dict[str, Any]:
        there = {"name": "There", "if": f"hashFiles('{pattern}') != ''", "run": "echo there"}
        return job(checkout(), run("mkdir .ml && echo 1 > .ml/a"), there)

    done = carry_out(repository, hidden=asks(".ml/a"), deep=asks("**/a"), other=asks(".ml/b"))
    assert {name: ended.log for name, ended in done.jobs.items()} == {
        "hidden": "there\n",
        "deep": "there\n",
        "other": "",
    }
