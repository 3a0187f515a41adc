"""The verbs as a user calls them one after the other: what is reused, and what never is."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from tests.baking import BakedProject, environment, free_port

STOP = 20


@pytest.fixture(scope="module")
def project(
    trained: BakedProject, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BakedProject]:
    """Return a trained project of this module's own: a free port, and a load of few seconds."""
    copy = trained.copy(tmp_path_factory.mktemp("verbs"))
    port, other = free_port(), free_port()
    at_once = {"port": port, "canary": []}  # tests/test_canary.py is about the steps
    change(copy, "delivery", lambda it: it["environments"]["production"].update(at_once))
    change(copy, "delivery", lambda it: it["environments"]["staging"].update(port=other))
    change(copy, "gates", lambda it: it["load"].update(loosened(it["load"])))
    yield copy
    copy.ml("deploy", "--stop")


SPARSE = """
import json, numpy as np, pandas as pd
from pathlib import Path
from model_delivery.gates import FEWEST_ROWS, SAMPLED, ask

def write(values):
    name, places, random = f"{values}.parquet", np.arange(4000), np.random.default_rng(0)
    at = pd.Timestamp("2013-01-01") + pd.to_timedelta(places // 40, "D")
    sparse = np.where(places < values, random.random(4000), np.nan)
    pd.DataFrame({"at": at, "full": random.random(4000), "sparse": sparse}).to_parquet(name)
    return str(Path(name).resolve())

asked = {"suite": "data", "checks": ["FeatureDrift"], "tests": [write(9), write(10)]}
asked |= {"numeric": ["full", "sparse"], "categorical": [], "label": None, "time": "at"}
asked |= {"sampled": SAMPLED, "fewest_rows": FEWEST_ROWS}
halves = [["2013-01-01", "2013-02-20"], ["2013-02-20", "2013-04-11"]]
for values, periods in ((400, []), (9, []), (400, halves)):
    found = ask(Path.cwd(), asked | {"train": write(values), "periods": periods})
    print(json.dumps([each["FeatureDrift"] for each in found]))
"""


def loosened(load: dict[str, Any]) -> dict[str, Any]:
    """Return limits of the load gate that no busy machine breaks, and a short load."""
    wide = {key: limit | {"outcome": "warn"} for key, limit in load.items() if type(limit) is dict}
    return wide | {"seconds": 0.3, "rounds": 4, "most_rounds": 4}


def change(project: BakedProject, name: str, edit: Any) -> None:
    """Change a file of `config/`."""
    file = project.path / "config" / f"{name}.yaml"
    content = yaml.safe_load(file.read_text())
    edit(content)
    file.write_text(yaml.safe_dump(content, sort_keys=False))


def verdict(project: BakedProject, gate: str, *options: str) -> dict[str, Any]:
    """Return what a gate says."""
    (found,) = json.loads(project.ml("check", gate, "--json", *options, check=False).stdout)
    return dict(found)


def said(found: dict[str, Any], name: str) -> str:
    return next(str(check["sentence"]) for check in found["checks"] if check["name"] == name)


def production_port(project: BakedProject) -> int:
    settings = yaml.safe_load((project.path / "config" / "delivery.yaml").read_text())
    return int(settings["environments"]["production"]["port"])


def served(project: BakedProject) -> str:
    """Return the release that answers a real request at production's port."""
    request = json.loads((candidate(project) / "ship" / "request.json").read_text())
    row = {name: column["example"] for name, column in request.items()}
    ask = urllib.request.Request(
        f"http://127.0.0.1:{production_port(project)}/predict",
        json.dumps({"rows": [row]}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(ask) as answer:  # noqa: S310 - http on this machine, nothing else
        return str(json.load(answer)["release"])


def candidate(project: BakedProject) -> Path:
    return project.path / ".ml" / "candidates" / project.text(".ml/candidate")


def test_a_verdict_under_another_contract_is_not_reused(project: BakedProject) -> None:
    first = verdict(project, "data")
    assert (first["outcome"], verdict(project, "data")) == ("pass", first)
    for _ in range(2):
        change(project, "data", lambda it: it["columns"]["temp"].update(min=60, max=70))
        assert project.ml("ship", "--until", "data", check=False).returncode == STOP
        assert project.ml("check", "data", check=False).returncode == STOP
        change(project, "data", lambda it: it["columns"]["temp"].update(min=-40, max=115))
        assert verdict(project, "data")["outcome"] == "pass"


def test_the_same_bytes_from_another_key_are_judged_anew(project: BakedProject) -> None:
    project.ml("ship", "--until", "model")
    before = candidate(project)
    assert "of 12 segments" in said(verdict(project, "model"), "segment_roc_auc")
    change(project, "data", lambda it: it.update(segments=["origin"]))
    project.ml("data")
    project.ml("train")
    assert candidate(project) == before
    assert not (before / "verdicts").exists()
    assert "of 3 segments" in said(verdict(project, "model"), "segment_roc_auc")


def test_deepchecks_leaves_out_a_column_of_few_values_and_says_so(
    project: BakedProject, tmp_path: Path
) -> None:
    python = project.path / ".venv" / "bin" / "python"
    done = subprocess.run(
        [python, "-c", SPARSE], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    usual, sparse, once = map(json.loads, done.stdout.splitlines())
    gone, there = ([*found.values()] for found in usual)
    assert len(gone) == len(there) == 2
    assert sum(map(math.isnan, gone)) == 1, "training has them: they are missed, and no pass"
    assert not any(map(math.isnan, there))
    for found in (*sparse, *once):  # few in training, too, or in no two of its periods
        assert sorted(name[:8] for name in found) == ["`full`: ", "`sparse`"]
        assert found["`sparse`: too few values to compare"] is None
        assert math.isfinite(next(value for value in found.values() if value is not None))


def test_a_package_that_changed_after_its_gate_stops_and_is_mended(project: BakedProject) -> None:
    project.ml("ship", "--until", "package")
    card = candidate(project) / "package" / "card.md"
    card.write_text(card.read_text() + "\nIt is perfect.\n")
    found = verdict(project, "package")
    assert (found["outcome"], "card.md" in said(found, "checksums")) == ("stop", True)
    project.ml("package")
    assert verdict(project, "package")["outcome"] == "pass"


def test_production_is_shipped_seen_replaced_and_rolled_back(project: BakedProject) -> None:
    project.ml("ship")
    first = candidate(project).name[:12]
    assert served(project) == first
    trained, began = (candidate(project) / "lineage.json").stat().st_mtime_ns, time.monotonic()
    project.ml("ship")  # of the same key
    seconds = time.monotonic() - began
    print(f"\nml ship again: {seconds:.1f} s")
    assert seconds <= 15  # as docs/verified.md promises; the load gate has decided before
    assert (candidate(project) / "lineage.json").stat().st_mtime_ns == trained
    change(project, "model", lambda it: it.update(num_leaves=15))
    project.ml("ship")
    second = candidate(project).name[:12]
    assert (served(project), first != second) == (second, True)
    compared = verdict(project, "model")
    assert compared["against"][:12] == first
    assert "champion_difference" in {check["name"] for check in compared["checks"]}

    status = json.loads(project.ml("status", "--json").stdout)
    assert (status["state"], status["digest"][:12]) == ("serving", second)
    assert len(status["installed"]) == 2
    project.ml("deploy", "--to", "staging")
    staged = json.loads(project.ml("status", "--in", "staging", "--json").stdout)
    assert (staged["digest"], staged["release"]) == (status["digest"], status["release"])
    project.ml("deploy", "--to", "staging", "--stop")
    back = json.loads(project.ml("rollback", "--json").stdout)
    assert (back["digest"][:12], served(project)) == (first, first)
    assert f"nothing done: {back['release']} is what serves" in project.ml("rollback").stderr
    told = [event["type"] for event in json.loads(project.ml("history", "--json").stdout)]
    assert told == ["registered", "promoted"] * 2 + ["promoted", "rolled_back"]
    refused = project.ml("deploy", check=False)
    assert (refused.returncode, "was rolled back after" in refused.stderr) == (2, True)


def test_a_champion_that_takes_other_requests_is_not_asked_and_holds_nobody_up(
    project: BakedProject,
) -> None:
    change(project, "data", lambda it: it["columns"]["carrier"]["values"].append("ZZ"))
    champion = served(project)
    project.ml("ship")
    assert served(project) == candidate(project).name[:12] != champion
    assert "or it takes other requests" in said(verdict(project, "load"), "champion")
    assert verdict(project, "model")["against"][:12] == champion


def test_production_that_was_stopped_starts_by_the_command_that_status_names(
    project: BakedProject,
) -> None:
    before = served(project)
    stopped = json.loads(project.ml("deploy", "--stop", "--json").stdout)
    assert stopped["state"] == "stopped"
    command = stopped["problem"].partition("run `ml ")[2].rstrip("`").split()
    assert json.loads(project.ml(*command, "--json").stdout)["state"] == "serving"
    assert served(project) == before


@contextmanager
def traffic(project: BakedProject, *options: str) -> Iterator[IO[str]]:
    """Let `make traffic` ask during a block, which reads what it says."""
    command = ["make", "--no-print-directory", "traffic", *options]  # `make test` may run this
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=project.path, env=environment(), **streams) as asking:
        assert asking.stdout is not None
        try:
            yield asking.stdout
        finally:
            os.killpg(asking.pid, signal.SIGTERM)


def test_traffic_asks_production(project: BakedProject) -> None:
    log = project.path / ".ml" / "production" / "access.log"
    before, deadline = len(log.read_text().splitlines()), time.monotonic() + 60
    with traffic(project):
        while len(new := log.read_text().splitlines()[before:]) < 20:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
    assert len(new) >= 20
    assert {json.loads(line)["status"] for line in new[:20]} == {200}


def test_traffic_that_nobody_answers_says_so(project: BakedProject) -> None:
    port = free_port()
    with traffic(project, f"PORT={port}") as said:
        assert said.readline() == f"asking http://127.0.0.1:{port}/predict until Ctrl-C\n"
        for _ in range(2):  # it goes on: production may be on its way
            assert "refused: see `ml status`; PORT=... asks another" in said.readline()


def test_two_signals_at_once_leave_no_service_behind(project: BakedProject) -> None:
    command = [".venv/bin/ml", "serve", "--port", "0"]
    refused = project.run(*command, check=False)
    assert refused.returncode == 2
    command[-1] = str(free_port())
    with subprocess.Popen(command, cwd=project.path, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        assert "/predict" in serving.stdout.readline()
        for _ in range(2):
            serving.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        serving.wait(30)
    with socket.create_server(("127.0.0.1", int(command[-1]))):
        pass  # nobody listens there any more


def test_a_limit_that_changed_after_its_verdict_is_not_reported(project: BakedProject) -> None:
    change(project, "gates", lambda it: it["model"]["roc_auc"].update(min=0.99))
    project.ml("report")
    report = json.loads(project.text(".ml/report/report.json"))
    outcomes = {one["gate"]: one["outcome"] for one in report["verdicts"]}
    assert (outcomes["model"], outcomes["data"]) == ("inconclusive", "pass")
    assert project.ml("check", "model", check=False).returncode == STOP
