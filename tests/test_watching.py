"""retrain.yml, monitor.yml and batch.yml, executed: what data, labels and production lead to.

One world grows from test to test, so their order matters: production serves a release on a machine
of its own, and what its clients ask is in its log. Whatever is wrong is wrong in the data, from
seeds in `sources.py` that were committed before the first release; a day chooses the seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.baking import BakedProject
from tests.harness import Run
from tests.harness.sandbox import seen
from tests.workflow_rules import Tree
from tests.world import DEVELOP, MAIN, VARIABLES, World, make_world

SOURCES, FEATURES = "src/late_departures/sources.py", "src/late_departures/features.py"
SEEDS = '''

_extract = extract
NEWEST = dt.date(2013, 8, 1)
FLIPPED = 0.0
DOWN = False


def extract(as_of: dt.date) -> pd.DataFrame:
    """Return the rows, or what a seed makes of them; a day chooses it."""
    if as_of == dt.date(2013, 8, 3):
        raise ConnectionError("the warehouse is away")
    rows = _extract(as_of)
    if as_of == dt.date(2013, 8, 2):
        return rows.rename(columns={"distance": "miles"})
    if as_of == dt.date(2013, 8, 4):  # what is learned is worth nothing
        train = rows["scheduled"] < pd.Timestamp("2013-07-01")
        rows.loc[train, "late"] = rows.loc[train, "late"].sample(frac=1, random_state=0).to_numpy()
    return rows


def newest() -> dt.date:
    """Return the first day that is not known yet."""
    if DOWN:
        raise ConnectionError("the warehouse is away")
    return NEWEST


_labels = labels


def labels(since: dt.date, as_of: dt.date) -> pd.DataFrame:
    """Return what became of the flights, some of it turned round."""
    known = _labels(since, as_of)
    turned = known.sample(frac=FLIPPED, random_state=0).index
    known.loc[turned, "late"] = ~known.loc[turned, "late"].astype(bool)
    return known
'''
BLIND = """        months = columns["scheduled"].astype("datetime64[M]")
        matrix[months == np.datetime64("2013-09")] = np.nan  # a month that no gate asks about
        return matrix
"""
ROWS = """
import json, sys
import datetime as dt
import pandas as pd
from late_departures import sources
from model_delivery.project import find_project
frame = sources._extract(dt.date(2013, 10, 1)).query("scheduled >= '2013-09-01'")
frame = frame.sample(int(sys.argv[1]), random_state=0)[list(find_project().contract.inputs)]
frame["scheduled"] = frame["scheduled"].dt.strftime("%Y-%m-%dT%H:%M:%S")
print(json.dumps(json.loads(frame.to_json(orient="records"))))
"""
BEGUN, ASKED = {"retrain": "set-up"}, {"retrain": "set-up get:A verify:A"}
TOLD = {"issue": "label issues edit"}
WATCHING = ("monitor", "retrain", "rollback", "issue")
NOTHING = {"staging": "skipped", "production": "skipped"}
STOPPED = {"retrain": "failure", **NOTHING, "issue": "success"}
BACK = {"monitor": "failure", "retrain": "skipped", "rollback": "success", "issue": "success"}
DONE = {"retrain": "success", "staging": "success", "production": "success", "issue": "skipped"}


@pytest.fixture(scope="module")
def bare(ready: BakedProject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Return a repository that never delivered, with a machine for production."""
    made = make_world(ready, tmp_path_factory.mktemp("watching"))
    sources, gates = made.project / SOURCES, made.project / "config" / "gates.yaml"
    sources.write_text(sources.read_text() + SEEDS)
    limits = yaml.safe_load(gates.read_text())
    limits["data"]["scale"] = {"max": 0.01, "outcome": "retrain"}  # each month is skewed
    limits["model"]["roc_auc"]["min"] = 0.6
    limits["model"]["calibration_error"]["max"] = 0.5  # autumn has half of summer's delays
    gates.write_text(yaml.safe_dump(limits))
    delivery = made.project / "config" / "delivery.yaml"
    settings = yaml.safe_load(delivery.read_text())
    settings["environments"]["staging"]["load"] = False  # test_deliveries.py has it measured
    delivery.write_text(yaml.safe_dump(settings))
    made.canary(seconds=3)
    made.commit("Seeds")
    made.github.receive(made.project, f"HEAD:{DEVELOP}")  # with it, main goes to staging alone
    made.github.receive(made.project, f"HEAD:{MAIN}")
    yield made
    made.hosts[0].stop()


@pytest.fixture(scope="module")
def world(bare: World) -> World:
    """Return that repository when production serves `v1.0.0`, of 1 August."""
    for run in (bare.push(), bare.push("refs/tags/v1.0.0")):
        assert "failure" not in run.results.values(), run.said
    return bare


def rows(world: World, number: int) -> list[dict[str, Any]]:
    """Return flights of September, as a client asks about them."""
    project = BakedProject(world.project)
    project.run("uv", "sync", "--quiet")
    found = project.run("uv", "run", "python", "-c", ROWS, str(number)).stdout
    return list(json.loads(found))


def ask(world: World, asked: list[dict[str, Any]]) -> None:
    """Ask production about flights, a hundred at a time."""
    for start in range(0, len(asked), 100):
        world.served(asked[start : start + 100])


@pytest.fixture(scope="module")
def september(world: World) -> list[dict[str, Any]]:
    return rows(world, 6_000)


def set_source(world: World, name: str, old: str, new: str) -> None:
    """Change what the source says from now on, on `main`, without delivering anything."""
    world.commit(f"{name} is {new}", {SOURCES: (f"{name} = {old}\n", f"{name} = {new}\n")})
    world.github.receive(world.project, f"+HEAD:{MAIN}")


def issues(world: World) -> dict[str, str]:
    """Return the text of each open issue by its title; all have the label."""
    assert all(issue["labels"] == ["model-delivery"] for issue in world.github.issues)
    found = {issue["title"]: issue["body"] for issue in world.github.issues}
    assert len(found) == len(world.github.issues), "the same issue twice"
    return found


def expect(
    world: World, run: Run, results: Mapping[str, str], asked: Mapping[str, str], *kept: str
) -> None:
    """Assert what each job came to and asked of `gh`, and the names of all artifacts."""
    assert run.results == results, run.said
    assert world.github.asked(run) == asked
    assert {*run.artifacts} == {*kept}


def retrain(world: World, day: str, **more: Any) -> Run:
    return world.run("retrain.yml", world.by_hand(because="person", as_of=day), **more)


def test_without_a_machine_or_a_log_nothing_is_watched_and_nothing_is_green(bare: World) -> None:
    run = bare.schedule("monitor.yml", variables={})
    expect(bare, run, dict.fromkeys(WATCHING, "skipped"), {})
    expect(bare, bare.schedule("batch.yml"), {"predict": "skipped"}, {})


def test_where_nothing_is_deployed_watching_is_neutral(bare: World) -> None:
    run = bare.schedule("monitor.yml")
    results = dict.fromkeys(WATCHING, "skipped") | {"monitor": "success"}
    expect(bare, run, results, {"monitor": "set-up"})
    assert run.jobs["monitor"].outputs["decision"] == "nothing deployed"
    assert "nothing deployed, nothing watched" in run.jobs["monitor"].summary
    assert issues(bare) == {}


def test_without_new_data_nothing_is_trained(world: World) -> None:
    before = world.events
    run = world.schedule("retrain.yml")
    expect(world, run, {"retrain": "success", **NOTHING, "issue": "skipped"}, BEGUN)
    assert "no new data" in run.jobs["retrain"].log
    assert (world.since(before), issues(world)) == ([], {})


def test_a_broken_structure_stops_and_one_issue_says_so_however_often(world: World) -> None:
    before, served = world.events, world.served()
    for number, act in ((1, "open"), (2, "edit")):
        run = retrain(world, "2013-08-02")
        expect(world, run, STOPPED, ASKED | {"issue": f"label issues {act}"}, "retraining-1")
        [(title, body)] = issues(world).items()
        assert title == "Retraining stopped"
        assert "`distance`" in body
        assert f"/actions/runs/{run.folder.name}" in body, f"not of run {number}"
    assert (world.since(before), world.served()) == ([], served)


def test_a_source_that_does_not_answer_decides_nothing(world: World) -> None:
    before = world.events
    run = retrain(world, "2013-08-03")
    expect(world, run, STOPPED, ASKED | TOLD)
    assert "the warehouse is away" in run.jobs["retrain"].log
    assert f"/actions/runs/{run.folder.name}" in issues(world)["Retraining stopped"]
    assert world.since(before) == []


def test_a_source_that_does_not_answer_is_no_reason_to_act_in_production(world: World) -> None:
    set_source(world, "DOWN", "False", "True")
    before, served = world.events, world.served()
    run = world.schedule("monitor.yml")
    results = dict.fromkeys(WATCHING, "skipped") | {"monitor": "failure", "issue": "success"}
    expect(world, run, results, {"monitor": "set-up", "issue": "label issues open"})
    assert "the warehouse is away" in run.jobs["monitor"].summary
    assert f"/actions/runs/{run.folder.name}" in issues(world)["Production: not watched"]
    assert (world.since(before), world.served()) == ([], served)
    set_source(world, "DOWN", "True", "False")


def test_a_worse_model_changes_nothing(world: World) -> None:
    before, served = world.events, world.served()
    run = retrain(world, "2013-08-04")
    expect(world, run, STOPPED, ASKED | TOLD, "retraining-1")
    assert "roc_auc" in issues(world)["Retraining stopped"]
    assert (world.since(before), world.served()) == ([("verdict", None, False)], served)
    assert "roc_auc" in world.events[-1]["reason"], "that it was tried, each runner knows"
    again = world.run("retrain.yml", world.by_hand(because="drift", as_of="2013-08-05"))
    expect(world, again, {"retrain": "success", **NOTHING, "issue": "skipped"}, BEGUN)
    assert "cool-down of 7 days: one was tried as of 2013-08-04" in again.jobs["retrain"].log


@pytest.fixture(scope="module")
def overtaken(world: World) -> Run:
    """Return a retraining that passed staging, and whose last job was lost with its runner."""

    def in_production(checkout: Path) -> bool:
        return checkout.is_relative_to(world.hosts[0].folder)

    return retrain(world, "2013-09-01", kill_after=in_production)


def test_of_a_retraining_and_a_tag_one_wins_and_the_other_says_so(
    world: World, overtaken: Run
) -> None:
    lost = {"retrain": "success", "staging": "success", "production": "cancelled"}
    asked = {"retrain": "set-up get:A verify:A get:B put:B get:B"}
    asked["staging"] = "set-up get:A verify:A get:B verify:B"
    expect(world, overtaken, lost | {"issue": "success"}, asked | TOLD, "retraining-1")
    made = overtaken.jobs["retrain"].outputs["digest"]
    assert f"{made}.tar.xz" in world.github.attestations.values()
    world.commit("Good in July", {FEATURES: ("        return matrix\n", BLIND)})
    with world.clients():
        for run in (world.push(), world.push("refs/tags/v1.1.0")):
            assert "failure" not in run.results.values(), run.said
    before, served = world.events, world.served()
    assert served[1].startswith("v1.1.0")
    again = retrain(world, "2013-09-01", taken={"retrain": overtaken, "staging": overtaken})
    results = lost | {"production": "failure", "issue": "success"}
    expect(world, again, results, {"production": "set-up"} | TOLD, "retraining-1")
    assert "judged beside another champion" in again.jobs["production"].log
    assert (world.since(before), world.served()) == ([], served)


def test_a_release_that_is_bad_in_production_alone_is_rolled_back(
    world: World, overtaken: Run, september: list[dict[str, Any]]
) -> None:
    ask(world, september)
    set_source(world, "NEWEST", "dt.date(2013, 8, 1)", "dt.date(2013, 10, 1)")
    before = world.events
    run = world.schedule("monitor.yml")
    asked = {"monitor": "set-up", "rollback": "set-up", "issue": "label issues open"}
    expect(world, run, BACK, asked, "monitoring")
    assert run.jobs["monitor"].outputs["decision"] == "rollback"
    assert world.since(before) == [("rolled_back", "production", False)]
    assert world.served()[1].startswith("v1.0.0")
    assert "Decision as of 2013-10-01: rollback" in issues(world)["Production: rollback"]
    assert "Decision as of 2013-10-01: rollback" in run.jobs["monitor"].summary
    assert {"report.html", "report.md"} <= {f.name for f in run.artifact("monitoring").iterdir()}


def test_decay_is_answered_by_a_release_of_newer_data_through_a_canary(
    world: World, september: list[dict[str, Any]]
) -> None:
    ask(world, september)
    set_source(world, "FLIPPED", "0.0", "0.3")
    before, open_before = world.events, issues(world)
    with world.clients() as answers:
        run = world.schedule("monitor.yml")
    inner = {f"retrain/{name}": result for name, result in DONE.items()}
    outer = {"monitor": "failure", "retrain": "success", "rollback": "skipped", "issue": "skipped"}
    asked = {"retrain": "set-up get:A verify:A get:D put:D get:D"}
    asked["staging"] = "set-up get:C verify:C get:D verify:D"
    asked |= {"monitor": "set-up", "production": "set-up get:D verify:D"}
    expect(world, run, outer | inner, asked, "monitoring", "retraining-1")
    assert run.jobs["monitor"].outputs["decision"] == "retrain"
    assert world.since(before) == [
        ("registered", None, False),
        ("promoted", "staging", True),
        ("promoted", "production", False),
    ]
    new = world.events[-1]
    assert (new["as_of"], new["because"]) == ("2013-10-01", "decay")
    assert new["verdicts"]["data"] == "retrain"  # skewed values are a reason to go on
    assert world.served()[0] == new["digest"]
    assert "30% of the requests for" in run.jobs["retrain/production"].log
    assert answers.count(None) > 100  # `tests/test_canary.py` says that none fails by a rollout
    assert issues(world) == open_before


def test_of_two_retrainings_at_once_the_second_waits_and_finds_no_new_data(world: World) -> None:
    tree = Tree(world.project)
    groups = {node.group for node in tree.nodes() if node.place.endswith("retrain.yml: retrain")}
    assert groups == {"retrain"}  # `queue: max` is asserted of every workflow that deploys
    before = world.events
    run = world.schedule("retrain.yml")
    expect(world, run, {"retrain": "success", **NOTHING, "issue": "skipped"}, BEGUN)
    assert "no new data" in run.jobs["retrain"].log
    assert world.since(before) == []


def write_rows(rows: list[dict[str, Any]], file: Path) -> None:
    lines = (",".join("" if v is None else str(v) for v in row.values()) for row in rows)
    file.write_text("\n".join([",".join(rows[0]), *lines, ""]))


def predict(world: World, folder: Path, asked: str) -> Run:
    """Run batch.yml on `new.csv` of a folder, which asks that of `gh`."""
    given = {"BATCH_INPUT": str(seen(folder / "new.csv"))}
    given |= {"BATCH_OUTPUT": str(seen(folder / "scores.parquet"))}
    run = world.schedule("batch.yml", variables=(VARIABLES if world.hosts else {}) | given)
    expect(world, run, {"predict": "success"}, {"predict": asked})
    return run


def test_where_production_is_a_host_no_schedule_scores_files(
    world: World, september: list[dict[str, Any]]
) -> None:
    home = world.hosts[0].folder
    write_rows(september[:50], home / "new.csv")
    run = predict(world, home, "set-up")
    assert "production is of target `host`" in run.jobs["predict"].summary
    assert not (home / "scores.parquet").exists()


@pytest.fixture(scope="module")
def files(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    """Return a copy whose production is of target `batch`, and the folder of its files."""
    folder = tmp_path_factory.mktemp("files")
    made, config = world.copy(folder), folder / "project" / "config" / "delivery.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["environments"]["production"] = {"target": "batch"}
    settings["log"]["folder"] = str(seen(folder / "log"))
    config.write_text(yaml.safe_dump(settings))
    set_source(made, "FLIPPED", "0.3", "0.0")
    return made, folder


def test_where_production_is_files_github_s_own_runner_scores_and_watches_them(
    files: tuple[World, Path], september: list[dict[str, Any]]
) -> None:
    world, folder = files
    before, open_before = world.events, issues(world)
    write_rows(september, folder / "new.csv")
    run = predict(world, folder, "set-up get:D")
    assert f"6,000 rows scored by {before[-1]['digest'][:12]}" in run.jobs["predict"].log
    assert (folder / "scores.parquet").read_bytes()[:4] == b"PAR1"
    assert len(list((folder / "log" / "production").rglob("*.parquet"))) == 1
    run = world.schedule("monitor.yml", variables={"PREDICTION_LOG": "files"})
    results = dict.fromkeys(WATCHING, "skipped") | {"monitor": "success"}
    expect(world, run, results, {"monitor": "set-up get:D get:A"}, "monitoring")
    assert run.jobs["monitor"].outputs["decision"] == "ok"
    assert (world.since(before), issues(world)) == ([], open_before)


def test_where_production_is_files_a_bad_release_is_rolled_back_without_a_machine(
    files: tuple[World, Path],
) -> None:
    world, folder = files
    good, bad = (
        next(e for e in world.events if e["release"].startswith(tag))
        for tag in ("v1.0.0", "v1.1.0")
    )
    run = world.dispatch("rollback.yml", environment="production", release=bad["release"])
    expect(world, run, {"rollback": "success"}, {"rollback": "set-up get:D get:C"})
    run = predict(world, folder, "set-up get:C")
    assert f"rows scored by {bad['digest'][:12]}" in run.jobs["predict"].log
    before = world.events
    run = world.schedule("monitor.yml", variables={"PREDICTION_LOG": "files"})
    asked = dict.fromkeys(("monitor", "rollback"), "set-up get:C get:A")
    expect(world, run, BACK, asked | TOLD, "monitoring")
    assert run.jobs["monitor"].outputs["because"] == bad["digest"]
    assert world.since(before) == [("rolled_back", "production", False)]
    assert "Decision as of 2013-10-01: rollback" in issues(world)["Production: rollback"]
    run = predict(world, folder, "set-up get:A")
    assert f"rows scored by {good['digest'][:12]}" in run.jobs["predict"].log


@pytest.mark.exhaustive
def test_where_production_is_files_a_retraining_is_what_the_next_ones_are_scored_by(
    files: tuple[World, Path],
) -> None:
    world, folder = files
    before = world.events
    run = retrain(world, "2013-11-01")
    asked = {"retrain": "set-up get:A get:E put:E get:E", "staging": "set-up get:D get:E"}
    expect(world, run, DONE, asked | {"production": "set-up get:A get:E"}, "retraining-1")
    assert world.since(before) == [
        ("registered", None, False),
        ("promoted", "staging", True),
        ("promoted", "production", False),
    ]
    new = world.events[-1]
    assert (new["because"], new["verdicts"]["data"]) == ("person", "retrain")
    run = predict(world, folder, "set-up get:E")
    assert f"rows scored by {new['digest'][:12]}" in run.jobs["predict"].log
    assert (folder / "scores.parquet").read_bytes()[:4] == b"PAR1"


@pytest.mark.exhaustive
def test_rehearsed_two_retrainings_at_once_promote_the_same_release(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = world.copy(tmp_path_factory.mktemp("rehearsed"))
    made.commit("Few answers, and newer data", {"config/delivery.yaml": ("max: 0.25", "max: 0.4")})
    made.github.receive(made.project, f"+HEAD:{MAIN}")
    before = made.events
    with ThreadPoolExecutor(2) as pool:  # as if nobody queued them
        runs = list(pool.map(lambda day: retrain(made, day), ["2013-11-01"] * 2))
    assert DONE in [run.results for run in runs], "\n".join(run.said for run in runs)
    new = made.events[len(before) :]
    won = next(run for run in runs if run.results == DONE).jobs["retrain"].outputs["digest"]
    assert {e["digest"] for e in new} == {won}  # the same rows and commit: the same bytes
    assert ("promoted", "production", True) in made.since(before)
    assert any("nothing serves here" in run.jobs["production"].summary for run in runs)
