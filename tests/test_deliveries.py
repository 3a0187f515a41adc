"""deliver.yml, deploy.yml and rollback.yml, executed: what each push, tag and rollback leads to.

Jobs run for real, each on a machine of its own, in a repository whose pushes, tags and registry
are real. One world grows from test to test, as a repository does, so their order matters; a second
one, a copy of the first after staging, has no machine to serve on and rehearses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from tests.baking import BakedProject
from tests.harness import Run, push
from tests.harness.github import git
from tests.harness.programs import NO_LOGIN
from tests.world import DEVELOP, MAIN, World, make_world

HOG = "_KEPT = b'x' * 400_000_000  # good in every gate, and too big for production\n"
GATES = ("data", "model", "package", "api", "load")
REFUSED = {"candidate": "set-up"}
HOSTILE = '"; touch /tmp/hostile; $(touch hostile) `touch hostile` ${{ github.token }} @everyone'


def expect(world: World, run: Run, asked: Mapping[str, str], **results: str) -> None:
    """Assert what each job of deliver.yml came to, asked of `gh`, and left as an artifact.

    A job is skipped unless another result is named, and asks nothing unless `asked` says so.
    """
    jobs = ("candidate", "test", "staging", "production", "release")
    assert run.results == dict.fromkeys(jobs, "skipped") | results, run.said
    assert world.github.asked(run) == asked
    if run.results["candidate"] != "success":
        assert run.artifacts == {}
        return
    digest = run.jobs["candidate"].outputs["digest"]
    assert run.artifacts == {f"release-{digest}": "candidate"}
    kept = run.artifact(f"release-{digest}") / ".ml" / "candidates" / digest / "verdicts"
    said = {file.stem: json.loads(file.read_text())["outcome"] for file in kept.iterdir()}
    assert said == dict.fromkeys(GATES, "pass")


def said_by(world: World, run: Run, job: str) -> list[list[str]]:
    """Return the words of each call of `gh` by a job of a run."""
    about = {"run": run.folder.name, "job": job}
    return [call["words"] for call in world.github.calls if about.items() <= call.items()]


def signed_by(world: World, run: Run) -> list[tuple[str, str, str]]:
    """Return what the jobs of a run attested: job, name of the subject, SHA-256."""
    made = [one for one in world.github.statements if one["run"] == run.folder.name]
    return sorted((one["job"], one["name"], one["sha256"]) for one in made)


def everything(run: Run) -> str:
    """Return all that a run shows: logs, summaries, outputs, and the text files of artifacts."""
    jobs = run.jobs.values()
    texts = [text for job in jobs for text in (job.log, job.summary, *job.outputs.values())]
    files = [file for name in run.artifacts for file in run.artifact(name).rglob("*")]
    return "\n".join([*texts, *(f.read_text(errors="replace") for f in files if f.is_file())])


@pytest.fixture(scope="module")
def world(ready: BakedProject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = make_world(ready, tmp_path_factory.mktemp("deliveries"))
    yield made
    made.hosts[0].stop()


@pytest.fixture(scope="module")
def first(world: World) -> Run:
    """Return the very first push, to a repository that has nothing set up."""
    return world.push()


@pytest.fixture(scope="module")
def hosted(world: World, first: Run, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return a copy of the world after its first push, without a machine to serve on."""
    made = world.copy(tmp_path_factory.mktemp("hosted"))
    git(made.project, "checkout", "--quiet", "--detach", world.events[0]["commit"])
    git(made.project, "update-ref", MAIN, "HEAD")
    return made


def test_the_very_first_push_is_complete_and_says_what_was_rehearsed(
    world: World, first: Run, hosted: World
) -> None:
    assert hosted.events == world.events  # copied now, before the two part
    asked = dict.fromkeys(("test", "staging"), "set-up get:A verify:A")
    asked["candidate"] = "set-up get:A put:A store get:A put:A get:A"
    expect(world, first, asked, candidate="success", test="success", staging="success")
    assert world.since([]) == [
        ("registered", None, False),
        ("promoted", "test", True),
        ("promoted", "staging", True),
    ]
    registered = world.events[0]
    digest = registered["digest"]
    assert {e["digest"] for e in world.events} == {digest}
    assert [e["verdicts"] for e in world.events] == [dict.fromkeys(GATES, "pass")] * 3
    assert registered["limits"].keys() == set(GATES)
    blob = f"{digest}.tar.xz"
    assert signed_by(world, first) == [("candidate", blob, registered["blob"])]
    kept = first.artifact(f"release-{digest}") / ".ml"
    reports = {f"report.{form}" for form in ("html", "json", "md")}
    assert {file.name for file in (kept / "report").iterdir()} == reports
    assert first.jobs["candidate"].outputs["digest"] == digest
    asset = f"{digest}-{registered['blob'][:12]}.tar.xz"
    assert {"refs/heads/model-registry", asset} <= world.github.registry.keys()
    for name in ("test", "staging"):
        summary = first.jobs[name].summary
        assert "rehearsed" in summary
        assert f"DEPLOY_RUNNER_{name.upper()}" in summary  # what to set up next
        assert "`ml doctor --github`" in summary
    assert "qps" in first.jobs["staging"].log
    assert digest[:12] in first.jobs["candidate"].summary


def test_a_push_to_develop_goes_to_test_and_trains_nothing_twice(world: World, first: Run) -> None:
    before = world.events
    sha = world.commit(HOSTILE)
    run = world.push(DEVELOP)
    asked = {"candidate": "set-up get:A verify:A get:A", "test": "set-up get:A verify:A"}
    expect(world, run, asked, candidate="success", test="success")
    assert world.since(before) == [("verdict", "test", True)]  # the same digest, served already
    assert world.events[-1]["commit"] == sha
    digest = world.events[-1]["digest"]
    place = f".ml/candidates/{digest}/lineage.json"
    once, again = (one.artifact(f"release-{digest}") / place for one in (first, run))
    assert once.read_bytes() == again.read_bytes()  # it says when it was trained
    assert not [f for f in run.folder.rglob("*hostile*") if f.name.startswith("hostile")]
    # A commit's message is shown nowhere and told to nobody, so nothing of it can be carried out.
    told = [everything(run), json.dumps(world.events), json.dumps(world.github.calls)]
    assert not [text for text in told if "@everyone" in text or "touch hostile" in text]


def test_a_push_to_main_goes_to_staging_alone_where_develop_exists(
    world: World, first: Run
) -> None:
    before = world.events
    sha = world.commit("A change of the docs")
    asked = {"candidate": "set-up get:A verify:A get:A", "staging": "set-up get:A verify:A"}
    expect(world, world.push(), asked, candidate="success", staging="success")
    assert world.since(before) == [("verdict", "staging", True)]
    assert world.events[-1]["commit"] == sha


@pytest.fixture(scope="module")
def v1(world: World, first: Run) -> Run:
    """Return the delivery of what staging has, as the first tag."""
    return world.push("refs/tags/v1.0.0")


def test_a_tag_is_served_in_production_and_published(world: World, v1: Run) -> None:
    asked = {"candidate": "set-up get:A verify:A get:A releases", "release": "publish"}
    asked["production"] = "set-up get:A verify:A"
    expect(world, v1, asked, candidate="success", production="success", release="success")
    move = world.events[-1]
    assert (move["type"], move["environment"], move["rehearsed"]) == (
        "promoted",
        "production",
        False,
    )
    digest, release = world.served()
    assert (digest, release) == (move["digest"], "v1.0.0+data.20130801.1")
    assert move["commit"] == git(world.project, "rev-parse", "v1.0.0^{commit}")
    assert "serving" in v1.jobs["production"].summary
    of_the_user = world.hosts[0].folder / "home" / ".gitconfig"  # which its runners share
    assert of_the_user.read_text() == NO_LOGIN
    published = world.github.releases["v1.0.0"]
    names = {"report.html", "card.md", "sbom.cdx.json", "SHA256SUMS", f"{digest[:12]}.bento"}
    assert set(published["assets"]) == names
    [image] = world.github.images.values()
    assert image["digest"] in published["notes"]
    assert digest[:12] in published["notes"]
    assert move["verdicts"] == dict.fromkeys(GATES, "pass")


def test_a_tag_attests_and_tells_github_what_it_published_and_nothing_else(
    world: World, v1: Run
) -> None:
    digest, blob = world.events[0]["digest"], world.events[0]["blob"]
    files = {file.name: file for file in world.github.assets("v1.0.0").iterdir()}
    page = files.pop("report.html")
    package = sorted(f".ml/candidates/{digest}/package/{name}" for name in files)
    notes = ["--verify-tag", "--title", "v1.0.0", "--notes-file", ".ml/report/report.md"]
    create = ["release", "create", "v1.0.0", *package, f".ml/report/{page.name}", *notes]
    assert said_by(world, v1, "release") == [create]
    [image] = world.github.images.values()
    assert signed_by(world, v1) == sorted(
        [
            ("candidate", f"{digest}.tar.xz", blob),
            ("release", "ghcr.io/octo-org/late-departures", image["digest"].split(":")[1]),
            *(("release", n, sha256(f.read_bytes()).hexdigest()) for n, f in files.items()),
        ]
    )


def test_a_tag_beside_main_is_refused(world: World, v1: Run) -> None:
    before = world.events
    main = git(world.project, "rev-parse", "HEAD")
    world.commit("Never merged")
    run = world.push("refs/tags/v9.0.0")
    git(world.project, "reset", "--quiet", "--hard", main)
    expect(world, run, REFUSED, candidate="failure")
    assert "is not on the branch here; merge it" in run.jobs["candidate"].log
    assert world.since(before) == []
    assert world.served()[0] == before[-1]["digest"]


def test_a_tag_that_never_passed_staging_is_refused(world: World, v1: Run) -> None:
    before = world.events
    sha = world.commit("Pushed, and tagged at once")
    world.github.receive(world.project, f"HEAD:{MAIN}")
    run = world.push("refs/tags/v9.0.1")
    expect(world, run, REFUSED, candidate="failure")
    assert f"gh run list --workflow deliver.yml --commit {sha}" in run.jobs["candidate"].log
    assert world.since(before) == []


def test_a_hostile_tag_or_input_is_data(world: World, v1: Run) -> None:
    before, served = world.events, world.served()
    world.github.receive(world.project, f"HEAD:{MAIN}")
    tag = "v0-$(touch${IFS}hostile)`id`;'\"&"
    runs = [
        world.push(f"refs/tags/{tag}"),
        world.dispatch("deliver.yml", tag=HOSTILE),
        world.dispatch("deliver.yml", tag=before[0]["digest"][:12]),  # a release, and no tag
        world.dispatch("rollback.yml", environment="production", release=HOSTILE),
    ]
    jobs = ("candidate", "candidate", "candidate", "rollback")
    typed = HOSTILE.partition("${{")[0]  # act, unlike GitHub, looks into a variable's value again
    for run, job, said in zip(runs, jobs, (tag, typed, "no tag `", HOSTILE), strict=True):
        assert run.results[job] == "failure"
        assert world.github.asked(run) == {job: "set-up"}
        assert said in run.jobs[job].log
    places = [*(run.folder for run in runs), world.hosts[0].folder]
    assert not [f for place in places for f in place.rglob("hostile*")]
    assert (world.since(before), world.served()) == ([], served)


def test_what_nobody_attested_is_not_delivered(world: World, v1: Run) -> None:
    kept = world.github.folder / "attestations.json"
    away = kept.rename(kept.with_name("away.json"))
    git(world.project, "tag", "--force", "v1.0.1", "v1.0.0")
    world.github.receive(world.project, "refs/tags/v1.0.1")
    run = world.dispatch("deliver.yml", tag="v1.0.1")
    away.rename(kept)
    expect(world, run, {"candidate": "set-up get:A verify:A"}, candidate="failure")
    assert "no attestations found" in run.jobs["candidate"].log


@pytest.fixture(scope="module")
def big(world: World, v1: Run) -> Run:
    """Return the push of a release that passes each gate and needs too much memory."""
    service = "src/late_departures/service.py"
    text = (world.project / service).read_text()
    head = text[: text.index("\n\n\n")]
    world.commit("Keep more in memory", {service: (head, f"{head}\n\n{HOG}")})
    return world.push()


def test_a_release_that_is_bad_under_the_canary_is_rolled_back(world: World, big: Run) -> None:
    asked = {"candidate": "set-up get:A verify:A get:B put:B get:B"}
    asked["staging"] = "set-up get:A verify:A get:B verify:B"
    expect(world, big, asked, candidate="success", staging="success")
    before, served = world.events, world.served()
    run = world.push("refs/tags/v1.1.0")
    asked = {"candidate": "set-up get:B verify:B get:A verify:A get:B releases"}
    asked["production"] = "set-up get:B verify:B"
    expect(world, run, asked, candidate="success", production="failure")
    assert world.since(before) == [("rolled_back", "production", False)]
    last = world.events[-1]
    assert (last["digest"], last["previous"]) == (
        served[0],
        big.jobs["candidate"].outputs["digest"],
    )
    assert "memory_mb" in last["reason"]
    assert "limit ≤ 500" in last["reason"]
    assert world.served() == served
    assert "v1.1.0" not in world.github.releases
    assert "memory_mb" in run.jobs["production"].summary


def test_a_rollback_ends_a_canary_while_it_runs(world: World, big: Run) -> None:
    world.canary(seconds=300)
    git(world.project, "checkout", "v1.0.0", "--", "src")
    world.commit(
        "Learn faster", {"config/model.yaml": ("learning_rate: 0.05", "learning_rate: 0.1")}
    )
    staged = world.push()
    asked = {"candidate": "set-up get:A verify:A get:C put:C get:C"}
    asked["staging"] = "set-up get:B verify:B get:C verify:C"
    expect(world, staged, asked, candidate="success", staging="success")
    before, served = world.events, world.served()
    with ThreadPoolExecutor() as pool:
        delivery = pool.submit(world.push, "refs/tags/v1.2.0")
        deadline = time.monotonic() + 300
        while not world.state()["weight"]:
            assert not delivery.done(), delivery.result().said
            assert time.monotonic() < deadline
            time.sleep(0.2)
        rollback = world.dispatch("rollback.yml", environment="production")
        run = delivery.result()
    assert rollback.results == {"rollback": "success"}, rollback.said
    assert world.github.asked(rollback) == {"rollback": "set-up"}
    asked = {"candidate": "set-up get:C verify:C get:A verify:A get:C releases"}
    asked["production"] = "set-up get:C verify:C"
    expect(world, run, asked, candidate="success", production="failure")
    assert "the rollout was ended by `ml rollback`" in run.jobs["production"].log
    assert world.since(before) == [("rolled_back", "production", False)]
    assert "by hand" in world.events[-1]["reason"]
    assert world.served() == served


def test_a_killed_delivery_is_finished_by_its_supervisor_and_run_again(
    world: World, big: Run
) -> None:
    world.canary(seconds=8)
    world.commit("A shorter canary")
    asked = {"candidate": "set-up get:C verify:C get:A verify:A get:C"}
    asked["staging"] = "set-up get:C verify:C"
    expect(world, world.push(), asked, candidate="success", staging="success")
    before = world.events

    def weighted(checkout: Path) -> bool:
        in_production = checkout.is_relative_to(world.hosts[0].folder)
        return in_production and bool(world.state()["weight"])

    with world.clients() as answers:
        killed = world.push("refs/tags/v1.3.0", kill_after=weighted)
        asked["candidate"] += " releases"
        jobs = {"candidate": "success", "production": "cancelled"}
        assert killed.results == dict.fromkeys(("test", "staging", "release"), "skipped") | jobs
        found = world.github.asked(killed)
        assert found == {"candidate": asked["candidate"], "production": "set-up verify:C"}
        deadline = time.monotonic() + 60
        while (now := world.state())["trying"] or now["untold"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    digest = killed.jobs["candidate"].outputs["digest"]
    assert world.served() == (digest, "v1.3.0+data.20130801.3")
    assert len(answers) > 100
    assert {*answers} == {None}
    again = world.push("refs/tags/v1.3.0")
    asked = {"candidate": "set-up get:C verify:C get:C releases", "production": "set-up"}
    done = {"candidate": "success", "production": "success"}
    expect(world, again, asked | {"release": "publish"}, **done, release="success")
    kinds = [kind for kind, *_ in world.since(before)]
    assert kinds.count("promoted") == 1
    assert "v1.3.0" in world.github.releases
    once_more = world.dispatch("deliver.yml", tag="v1.3.0")  # published already
    expect(world, once_more, asked, **done)


def test_a_rollback_goes_to_a_named_release(world: World, big: Run) -> None:
    before = world.events
    run = world.dispatch("rollback.yml", environment="production", release="v1.0.0+data.20130801.1")
    assert run.results == {"rollback": "success"}, run.said
    assert world.github.asked(run) == {"rollback": "set-up"}  # it is installed
    assert world.since(before) == [("rolled_back", "production", False)]
    assert world.served()[1] == "v1.0.0+data.20130801.1"
    assert "v1.0.0" in run.jobs["rollback"].summary


def test_rehearsed_a_tag_is_published_and_production_claims_to_serve_nothing(
    hosted: World,
) -> None:
    before, attested = hosted.events, hosted.github.statements
    hosted.github.draft("v1.0.0", "Our first one")  # whose page made the tag
    run = hosted.push("refs/tags/v1.0.0")
    asked = {"candidate": "set-up get:A get:A releases", "production": "set-up get:A"}
    asked["release"] = "publish add add"  # the files, to what the page made
    expect(hosted, run, asked, candidate="success", production="success", release="success")
    assert hosted.since(before) == [("promoted", "production", True)]
    assert hosted.github.statements == attested  # the repository is private
    published = hosted.github.releases["v1.0.0"]
    assert published["notes"] == "Our first one"
    assert {"report.html", "report.md", "card.md", "SHA256SUMS"} <= {*published["assets"]}
    summary = run.jobs["production"].summary
    assert "nothing serves here" in summary
    assert "serving" not in summary


def test_rehearsed_a_bad_release_is_refused(world: World, hosted: World, big: Run) -> None:
    git(hosted.project, "fetch", "--quiet", str(world.project), "v1.1.0")
    git(hosted.project, "checkout", "--quiet", "FETCH_HEAD", "--", "src")
    hosted.commit("Keep more in memory")
    asked = dict.fromkeys(("test", "staging"), "set-up get:A get:B")
    asked["candidate"] = "set-up get:A get:B put:B get:B"
    expect(hosted, hosted.push(), asked, candidate="success", test="success", staging="success")
    before = hosted.events
    run = hosted.push("refs/tags/v1.1.0")
    asked = {"candidate": "set-up get:B get:A get:B releases", "production": "set-up get:A get:B"}
    expect(hosted, run, asked, candidate="success", production="failure")
    assert hosted.since(before) == [("rolled_back", "production", True)]
    assert "memory_mb" in hosted.events[-1]["reason"]
    assert "v1.1.0" not in hosted.github.releases


def test_rehearsed_a_rollback_makes_an_earlier_release_the_accepted_one(hosted: World) -> None:
    before = hosted.events
    run = hosted.dispatch("rollback.yml", environment="staging")
    assert run.results == {"rollback": "success"}, run.said
    assert hosted.github.asked(run) == {"rollback": "set-up get:B get:A"}
    assert hosted.since(before) == [("rolled_back", "staging", True)]
    assert hosted.events[-1]["digest"] == hosted.events[0]["digest"]
    assert "nothing serves here" in run.jobs["rollback"].summary


def test_rehearsed_production_goes_back_too_and_claims_to_serve_nothing(hosted: World) -> None:
    git(hosted.project, "checkout", "v1.0.0", "--", "src")
    hosted.commit(
        "Learn faster", {"config/model.yaml": ("learning_rate: 0.05", "learning_rate: 0.1")}
    )
    asked = {"test": "set-up get:B get:C", "staging": "set-up get:A get:C"}
    asked["candidate"] = "set-up get:A get:C put:C get:C"
    expect(hosted, hosted.push(), asked, candidate="success", test="success", staging="success")
    run = hosted.push("refs/tags/v1.2.0")
    asked = {"candidate": "set-up get:C get:A get:C releases", "production": "set-up get:A get:C"}
    asked["release"] = "publish"
    expect(hosted, run, asked, candidate="success", production="success", release="success")
    before, faster = hosted.events, run.jobs["candidate"].outputs["digest"]
    run = hosted.dispatch("rollback.yml", environment="production")
    assert run.results == {"rollback": "success"}, run.said
    assert hosted.github.asked(run) == {"rollback": "set-up get:C get:A"}
    assert hosted.since(before) == [("rolled_back", "production", True)]
    last = hosted.events[-1]
    assert (last["digest"], last["previous"]) == (hosted.events[0]["digest"], faster)
    summary = run.jobs["rollback"].summary
    assert "rehearsed" in summary
    assert "nothing serves here" in summary
    assert "serving" not in summary
    assert run.artifacts == {}


def test_eight_deliveries_at_once_lose_nothing(hosted: World) -> None:
    before = hosted.events
    git(hosted.project, "checkout", "--quiet", "--detach", before[0]["commit"])
    # Each job has a machine of its own on GitHub; here eight of them start services on two cores.
    patient = {"config/delivery.yaml": ("timeout_seconds: 60", "timeout_seconds: 600")}
    shas = []
    events = []
    for number in range(8):
        shas.append(hosted.commit(f"Change {number}", None if number else patient))
        hosted.github.receive(hosted.project, f"+HEAD:{DEVELOP}")
        git(hosted.project, "update-ref", DEVELOP, "HEAD")
        events.append(push(hosted.project, hosted.github.repository, DEVELOP))
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda event: hosted.run("deliver.yml", event), events))
    for run in runs:
        rehearsed = hosted.github.asked(run)["test"]
        assert rehearsed in ("set-up get:C get:A", "set-up get:A")  # A, where another was first
        asked = {"candidate": "set-up get:A get:A", "test": rehearsed}
        expect(hosted, run, asked, candidate="success", test="success")
    new = hosted.events[len(before) :]
    assert [(e["environment"], e["digest"]) for e in new] == [("test", before[0]["digest"])] * 8
    assert {e["commit"] for e in new} == set(shas)


def test_data_older_than_the_champions_is_refused(hosted: World) -> None:
    older = hosted.events[0]["commit"]
    moved = [e for e in hosted.events if e["environment"] == "production"][-1]
    newer = {k: v for k, v in moved.items() if k not in ("id", "time", "after")}
    big = next(e for e in hosted.events if e["digest"] != hosted.events[0]["digest"])
    newer |= {"digest": big["digest"], "blob": big["blob"], "as_of": "2013-09-01"}
    newer |= {"type": "promoted", "previous": moved["digest"]}
    code = "import json, sys; from model_delivery.project import find_project; "
    code += "from model_delivery.registry import Event, event_log; "
    code += "made = Event.model_validate_json(sys.argv[1]); "
    code += "event_log(find_project()).append(lambda _: made)"
    project = BakedProject(hosted.project)
    git(hosted.project, "remote", "set-url", "origin", str(hosted.github.origin))
    project.run("uv", "sync", "--quiet")
    project.run("uv", "run", "python", "-c", code, json.dumps(newer), env=hosted.github.job())
    before = hosted.events
    git(hosted.project, "checkout", "--quiet", "--detach", older)
    run = hosted.push("refs/tags/v8.0.0")
    expect(hosted, run, REFUSED, candidate="failure")
    assert "its data ends 2013-08-01, before that of" in run.jobs["candidate"].log
    assert f"gh run list --workflow deliver.yml --commit {older}" in run.jobs["candidate"].log
    assert [e for e in hosted.events if e["environment"] == "production"][-1] == before[-1]
