"""`ml retrain` in a real project: what upstream does decides, and only a better model is served.

The source is seeded by a variable that the champion's own commit reads: code that is not released
must not count.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.baking import BakedProject, Done, free_port
from tests.harness.github import git
from tests.test_verbs import change, loosened
from tests.test_workflows import WHO

STOP = 20
UPSTREAM = '''

_as_it_is, _seen = extract, os.environ.get("UPSTREAM", "")


def extract(as_of: dt.date) -> pd.DataFrame:
    """Return the rows, as upstream was changed for a test."""
    table = _as_it_is(as_of)
    if _seen == "renamed":
        return table.rename(columns={"distance": "miles"})
    if _seen == "still":
        return table[table["scheduled"] < "2013-08-01"]
    if _seen == "noise":
        late, past = table["late"].copy(), (table["scheduled"] < "2013-08-20").to_numpy()
        late[past] = late[past].sample(frac=1, random_state=0).to_numpy()
        return table.assign(late=late)
    return table
'''
DELIVERED = """
from model_delivery.bundle.candidate import current_candidate
from model_delivery.project import find_project
from model_delivery.registry import event_log
from model_delivery.releases import register

project = find_project()
known = register(project, current_candidate(project), {}, "delivery")
moved = known.model_copy(update={"type": "promoted", "environment": "production", "id": "moved"})
event_log(project).append(lambda _: moved)
"""


@pytest.fixture(scope="module")
def project(
    ready: BakedProject, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BakedProject]:
    """Return a project whose champion was delivered from its first commits; main has gone on."""
    copy = ready.copy(tmp_path_factory.mktemp("retrain"))
    sources = copy.path / "src" / copy.package / "sources.py"
    text = sources.read_text().replace(
        "import datetime as dt\n", "import datetime as dt\nimport os\n"
    )
    sources.write_text(text + UPSTREAM)
    git(copy.path, *WHO, "commit", "--quiet", "--all", "-m", "A source to seed")
    copy.ml("data")
    copy.ml("train")
    copy.run("uv", "run", "python", "-c", DELIVERED)
    sources.write_text(text.replace("def extract", "def never_released"))
    git(copy.path, *WHO, "commit", "--quiet", "--all", "-m", "Break it, unreleased")
    none: dict[str, dict[str, dict[str, str]]] = {"deepchecks": {"data": {}, "model": {}}}
    change(copy, "gates", lambda it: it.update(none, load=it["load"] | loosened(it["load"])))
    change(copy, "delivery", lambda it: it["rollout"].update(shadow_rows=20))
    alone = {"port": free_port(), "canary": []}
    change(copy, "delivery", lambda it: it["environments"]["production"].update(alone))
    yield copy
    copy.ml("deploy", "--stop")


def retrain(project: BakedProject, day: str, *options: str, upstream: str = "") -> Done:
    command = ["uv", "run", "ml", "retrain", "--because", "drift", "--as-of", day, *options]
    return project.run(*command, check=False, env={"UPSTREAM": upstream})


def events(project: BakedProject) -> list[dict[str, Any]]:
    return list(json.loads(project.ml("history", "--json").stdout))


def test_a_later_day_without_later_rows_trains_nothing(project: BakedProject) -> None:
    before = events(project)
    done = retrain(project, "2013-08-02", upstream="still")
    assert done.returncode == 0, done.stderr
    assert "no new data: the newest row is of 2013-07-31T23:59:00" in done.stderr
    assert "train:" not in done.stderr
    assert events(project) == before


def test_a_schema_that_changed_upstream_stops_and_is_reported(project: BakedProject) -> None:
    before = events(project)
    done = retrain(project, "2013-09-30", upstream="renamed")
    assert done.returncode == STOP, done.stderr
    assert "v0.1.0+data.20130801.1 stays in production: a gate" in done.stdout
    project.ml("report")
    assert "column `distance` is missing" in project.text(".ml/report/report.md")
    assert events(project) == before


def test_a_worse_model_stops_and_is_reported(project: BakedProject) -> None:
    before = events(project)
    done = retrain(project, "2013-09-22", upstream="noise")
    assert done.returncode == STOP, done.stderr
    assert "stop model champion_difference" in done.stderr
    assert "package" not in done.stderr
    project.ml("report")
    assert "champion_difference" in project.text(".ml/report/report.md")
    *known, told = events(project)
    assert known == before
    assert (told["type"], told["digest"], told["verdicts"]["model"]) == ("verdict", "none", "stop")
    later = retrain(project, "2013-09-23", upstream="noise")
    assert later.returncode == 0, later.stderr
    assert later.stdout.startswith("cool-down of 7 days: one was tried as of 2013-09-22")
    assert events(project) == [*known, told]


def test_a_model_of_newer_rows_is_served_once(project: BakedProject) -> None:
    before = events(project)
    done = retrain(project, "2013-10-01", "--json")
    assert done.returncode == 0, done.stderr
    made = events(project)[len(before) :]
    assert [one["type"] for one in made] == ["registered", "promoted"]
    champion = before[0]
    for one in made:
        assert (one["trigger"], one["because"]) == ("retraining", "drift")
        assert (one["as_of"], one["commit"]) == ("2013-10-01", champion["commit"])
        assert one["digest"] == json.loads(done.stdout)["digest"] != champion["digest"]
    assert made[0]["against"] == champion["digest"]
    report = json.loads(project.text(".ml/report/report.json"))
    assert report["project"] == "late-departures"
    assert report["commit"] == champion["commit"]  # with no word of files that are not committed
    status = json.loads(project.ml("status", "--json").stdout)
    assert (status["state"], status["digest"]) == ("serving", made[0]["digest"])
    again = retrain(project, "2013-10-01")
    assert (again.returncode, again.stdout[:11]) == (0, "no new data")
    assert events(project) == before + made
