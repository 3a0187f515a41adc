"""Bad input, as a user meets it: exit code, what the message names, and nothing half written."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.baking import BakedProject, Done

USAGE, RETRAIN, STOP = 2, 10, 20
SOURCES = '''"""Rows of the real source, spoilt as the environment variable SPOILT says."""

import datetime as dt
import os
from pathlib import Path

import numpy as np
import pandas as pd

from late_departures import real


def usual(rows: pd.DataFrame) -> pd.Series:
    return (rows["scheduled"] < pd.Timestamp(2013, 7, 1)) | (rows.index % 20 == 0)


SPOILT = {
    "none": lambda rows: None,
    "missing": lambda rows: rows.drop(columns="distance"),
    "renamed": lambda rows: rows.rename(columns={"distance": "miles"}),
    "retyped": lambda rows: rows.astype({"distance": str}),
    "mixed": lambda rows: rows.assign(distance=[1.5, "far"] * (len(rows) // 2)),
    "category": lambda rows: rows.assign(origin=rows["origin"].replace("EWR", "ewr")),
    "range": lambda rows: rows.assign(distance=rows["distance"].where(rows.index != 7, 6001.0)),
    "nan": lambda rows: rows.assign(distance=rows["distance"].where(rows.index != 7)),
    "infinity": lambda rows: rows.assign(distance=rows["distance"].where(rows.index != 7, np.inf)),
    "empty": lambda rows: rows.iloc[:0],
    "future": lambda rows: rows.assign(
        scheduled=rows["scheduled"].where(rows.index != 7, pd.Timestamp(2013, 8, 1))
    ),
    "zone": lambda rows: rows.assign(scheduled=rows["scheduled"].dt.tz_localize("UTC")),
    "double": lambda rows: pd.concat([rows, rows[["distance"]]], axis=1),
    "twice": lambda rows: pd.concat([rows, rows.iloc[[7]]]),
    "leak": lambda rows: rows.assign(visib=np.where(rows["late"].astype(bool), 2.0, 9.0)),
    "gaps": lambda rows: rows.assign(  # as of a survey that most of the late ones do not answer
        pressure=rows["pressure"].fillna(1e3).mask(rows["late"].eq(True) & (rows.index % 5 < 3))
    ),
    "drift": lambda rows: rows.assign(origin=rows["origin"].where(usual(rows), "LGA")),
}


def extract(as_of: dt.date) -> pd.DataFrame:
    kept = Path(os.environ["ROWS"])
    if not kept.exists():
        rows = real.extract(as_of).dropna(subset=["late"]).iloc[::5].reset_index(drop=True)
        rows.iloc[: len(rows) // 2 * 2].to_parquet(kept)
    return SPOILT[os.environ["SPOILT"]](pd.read_parquet(kept))
'''


@pytest.fixture(scope="module")
def project(trained: BakedProject, tmp_path_factory: pytest.TempPathFactory) -> BakedProject:
    """Return a trained project of this module's own."""
    return trained.copy(tmp_path_factory.mktemp("bad"))


Edit = Callable[[str, str, str], None]


@pytest.fixture
def edit(project: BakedProject) -> Iterator[Edit]:
    """Return a function that replaces text in a file; every file is as before afterwards."""
    before: dict[Path, str] = {}

    def replace(name: str, old: str, new: str) -> None:
        file = project.path / name
        text = before.setdefault(file, file.read_text())
        assert text.count(old) == 1, f"{name}: {old}"
        file.write_text(text.replace(old, new))

    yield replace
    for file, text in before.items():
        file.write_text(text)


def kept(project: BakedProject) -> set[Path]:
    """Return the files that verbs have made; an environment is one thing, whole or absent."""
    work = project.path / ".ml"
    rooms = [folder for folder in work.iterdir() if folder.name != "environments"]
    made = {file for room in rooms for file in (room, *room.rglob("*")) if file.is_file()}
    return {file for file in made if file.name != "lock"} | {*work.glob("environments/.new-*")}


def said(done: Done) -> str:
    """Return what a command printed, as one line of words."""
    return " ".join((done.stdout + done.stderr).split())


def refused(project: BakedProject, *arguments: str) -> str:
    """Run `ml …`, which must refuse as bad input, show no traceback, and leave `.ml` as it was."""
    before = kept(project)
    done = project.ml(*arguments, check=False)
    assert done.returncode == USAGE, said(done)
    assert "Traceback" not in said(done)
    assert kept(project) == before
    return said(done)


CONFIG = {
    "data.yaml unknown": (
        "data.yaml",
        "target: late",
        "targett: late",
        ":5: `targett`",
        "`target`",
    ),
    "data.yaml type": ("data.yaml", "min: 10, max: 6000", "min: ten, max: 6000", "`columns.dist"),
    "model.yaml unknown": (
        "model.yaml",
        "num_leaves:",
        "num_leafs:",
        ":3: `num_leafs`",
        "mean `num_leaves`",
    ),
    "model.yaml type": ("model.yaml", "seed: 20130801", "seed: now", ":9: `seed`", "'now'"),
    "gates.yaml unknown": ("gates.yaml", "  overfit_gap:", "  overfit_gat:", "mean `overfit_gap`"),
    "gates.yaml type": ("gates.yaml", "  users: ", "  users: -", "`load.users`"),
    "gates.yaml text": ("gates.yaml", "min: 0.70", "min: '0.70'", "`model.roc_auc.min`", "number"),
    "gates.yaml flag": (
        "gates.yaml",
        "min: 0.70",
        "min: yes",
        "`model.roc_auc.min`",
        "(found True)",
    ),
    "gates.yaml side": (
        "gates.yaml",
        "min: 0.70",
        "max: 0.70",
        "`model.roc_auc.min`: a key that is needed, and is missing",
    ),
    "data.yaml NaN": (
        "data.yaml",
        "min: 10, max: 6000",
        "min: .nan, max: 6000",
        "columns.distance",
    ),
    "data.yaml day": ("data.yaml", "as_of: 2013-08-01", "as_of: 2013-02-30", "data.yaml: ", "day"),
    "delivery.yaml key": (
        "delivery.yaml",
        "port: 3000",
        "port: {{ PORT }}",
        "delivery.yaml",
        "key",
    ),
    "gates.yaml check": ("gates.yaml", "LabelDrift:", "LableDrift:", ":22: `deepchecks.data.Lable"),
    "delivery.yaml unknown": (
        "delivery.yaml",
        "keep_releases",
        "keep_release",
        ":26: `keep_release`",
    ),
    "delivery.yaml type": ("delivery.yaml", "port: 3000", "port: 80", ":7: `environments.prod"),
    "delivery.yaml step": ("delivery.yaml", "weight: 0.1", "weight: 0.01", "gets 12 requests"),
    "delivery.yaml champion": (
        "delivery.yaml",
        "weight: 0.1, seconds: 30",
        "weight: 0.9, seconds: 12",
        "in a step of 90% one release gets 48 requests, below `min_requests`",
    ),
    "a value for keys": (
        "gates.yaml",
        "roc_auc: { min: 0.70, outcome: stop }",
        "roc_auc: 0.7",
        ":8: `model.roc_auc`: needs keys below it, not a value: `min`, `max`, `outcome`",
    ),
    "a ceiling for a floor": (
        "gates.yaml",
        "SimpleModelComparison: { min:",
        "SimpleModelComparison: { max:",
        ":17: `deepchecks`: `model.SimpleModelComparison` needs `min`",
    ),
    "a floor for a ceiling": (
        "gates.yaml",
        "LabelDrift: { max:",
        "LabelDrift: { min:",
        ":22: `deepchecks.data.LabelDrift.max`: a key that is needed, and is missing",
    ),
    "no that is false": ("data.yaml", "[EWR, ", "[no, ", "unless in quotes (found False)"),
    "a column that is none": ("data.yaml", "segments: [", "segments: [orign, ", "`orign` is named"),
    "delivery.yaml ports": ("delivery.yaml", "port: 3010", "port: 3020", "share a port"),
    "a key twice": ("model.yaml", "patience: 40", "seed: 1", "`seed` stands twice", "line 8"),
    "no YAML": ("model.yaml", "seed: 20130801", "seed: [", "model.yaml:", "not YAML"),
}


@pytest.mark.parametrize("kind", CONFIG)
def test_a_mistake_in_a_config_file_is_named_with_file_line_and_key(
    project: BakedProject, edit: Edit, kind: str
) -> None:
    name, old, new, *told = CONFIG[kind]
    edit(f"config/{name}", old, new)
    message = refused(project, "train")
    assert f"config/{name}:" in message
    assert [text for text in told if text not in message] == [], message


TABLES = {
    "none": ["no table", "'NoneType' object"],
    "missing": ["column `distance` is missing"],
    "renamed": ["column `distance` is missing", "column `miles` is unexpected"],
    "retyped": ['column `distance` is string, not of type number; `.astype("float64")` makes'],
    "mixed": ["column `distance` mixes types: ", " in row ", " is of type "],
    "future": ["`scheduled` is 2013-08-01 00:00:00 in row 8: not before 2013-08-01"],
    "zone": ["column `scheduled` is timestamp[", "tz=UTC], not of type timestamp; `pd.to_dat"],
    "double": ["columns stand twice", "distance"],
    "category": ["`origin`:", "outside", "'ewr' in row 1: 2013-01-01"],
    "range": ["`distance`:", "outside", "6001.0 in row 8: 2013-01-01"],
    "nan": ["`distance`:", "missing", "in row 8: 2013-01-01"],
    "infinity": ["`distance`:", "outside", "inf in row 8: 2013-01-01"],
    "empty": ["no rows: see `as_of`"],
    "twice": ["the key scheduled, carrier, flight stands twice", "2013-01-01"],
}


def ship_data(project: BakedProject, kind: str, *options: str) -> Done:
    """Run the gate `data` on an extraction that is spoilt in one way."""
    package = project.path / "src" / project.package
    rows = project.path.parent / "rows.parquet"
    (package / "sources.py").rename(package / "real.py")
    try:
        (package / "sources.py").write_text(SOURCES)
        ship = ("uv", "run", "ml", "ship", "--until", "data", "--force", *options)
        return project.run(*ship, check=False, env={"SPOILT": kind, "ROWS": str(rows)})
    finally:
        (package / "real.py").replace(package / "sources.py")


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_breaks_the_contract_stops_and_is_named_with_column_and_row(
    project: BakedProject, kind: str
) -> None:
    done = ship_data(project, kind)
    assert done.returncode == STOP, said(done)
    assert "Traceback" not in said(done)
    assert [text for text in TABLES[kind] if text not in said(done)] == [], said(done)


def test_a_refused_extraction_is_judged_until_there_is_a_good_one(project: BakedProject) -> None:
    ship_data(project, "renamed")
    again = project.ml("check", "data", check=False)
    assert again.returncode == STOP, said(again)
    assert "column `distance` is missing" in said(again)
    assert "pass data" in said(project.ml("ship", "--until", "data"))


@pytest.mark.parametrize(
    ("kind", "found"), [("leak", "`visib`: 1.000"), ("gaps", "`pressure`: 0.")]
)
def test_a_column_that_tells_the_label_stops(project: BakedProject, kind: str, found: str) -> None:
    """By its values, or by where it has none."""
    done = ship_data(project, kind)
    assert done.returncode == STOP, said(done)
    assert f"stop data FeatureLabelCorrelation: {found}" in said(done)
    assert "1 is a column that tells the label alone" in said(done)


def test_drift_is_a_reason_to_retrain_and_no_reason_against_a_delivery(
    project: BakedProject,
) -> None:
    done = ship_data(project, "drift", "--event", "retraining")
    assert done.returncode == RETRAIN, said(done)
    assert "retrain data FeatureDrift: `origin`: 0" in said(done)
    again = project.ml("check", "data", "--event", "delivery")
    assert "warn (retrain) data FeatureDrift: `origin`" in said(again)


def test_every_defect_that_a_user_can_seed_is_noticed_by_the_shipped_limits(
    project: BakedProject,
) -> None:
    project.ml("data")
    (verdict,) = json.loads(project.ml("check", "--prove", "--json").stdout)
    assert {check["outcome"] for check in verdict["checks"]} == {"pass"}
    assert len(verdict["checks"]) >= 12


@pytest.mark.parametrize("day", ["2012-12-31", "2014-06-01", "soon"])
def test_a_day_outside_the_data_is_refused(project: BakedProject, day: str) -> None:
    message = refused(project, "data", "--as-of", day)
    assert day in message
    assert "2013-01-01 to 2013-12-31" in message or "does not match the formats" in message


def test_a_changed_byte_of_a_candidate_is_refused_before_anything_is_loaded(
    project: BakedProject, edit: Edit
) -> None:
    digest = (project.path / ".ml" / "candidate").read_text()
    edit(f".ml/candidates/{digest}/ship/requirements.txt", "bentoml==", "bentoml=== ")
    message = refused(project, "check", "api")
    assert (
        f"{digest}/ship/requirements.txt: does not belong to the candidate {digest[:12]}" in message
    )


def test_edited_checksums_do_not_make_another_candidate(project: BakedProject, edit: Edit) -> None:
    digest = (project.path / ".ml" / "candidate").read_text()
    ship = f".ml/candidates/{digest}/ship"
    before = sha256(project.text(f"{ship}/service.py").encode()).hexdigest()
    edit(f"{ship}/service.py", "import sys\n", "import sys  # changed\n")
    changed = sha256(project.text(f"{ship}/service.py").encode()).hexdigest()
    edit(f"{ship}/SHA256SUMS", f"{before}  service.py", f"{changed}  service.py")
    message = refused(project, "check", "api")
    assert f"SHA256SUMS: does not belong to the candidate {digest[:12]}" in message


def test_a_port_that_a_stranger_holds_is_refused(project: BakedProject, edit: Edit) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = str(stranger.getsockname()[1])
        taken = f"port {port} is in use by process {os.getpid()}, `"
        assert taken in refused(project, "serve", "--port", port)
        edit("config/delivery.yaml", "port: 3000", f"port: {port}")
        message = refused(project, "deploy")
        assert taken + Path("/proc/self/comm").read_text().strip() in message
        assert f"in {Path.cwd()}; stop it" in message
        doctor = project.ml("doctor", check=False)
        assert doctor.returncode == USAGE
        assert taken in said(doctor)


@pytest.mark.parametrize("verb", ["data", "train"])
def test_a_full_disk_is_said_and_leaves_what_was_there(project: BakedProject, verb: str) -> None:
    before = kept(project)
    limited = f"ulimit -f 100; exec .venv/bin/ml {verb} --force"  # files of 100 kB at most
    done = project.run("bash", "-c", limited, check=False)
    assert done.returncode == USAGE, said(done)
    assert re.search(r"cannot be written \(.*File too large\); nothing was changed", said(done))
    assert kept(project) == before


def test_without_network_the_environment_cannot_be_made_and_is_not_half_made(
    project: BakedProject, tmp_path: Path
) -> None:
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    env = {"UV_CACHE_DIR": str(tmp_path / "cache"), "UV_HTTP_RETRIES": "0", **nowhere}
    shutil.rmtree(project.path / ".ml" / "environments", ignore_errors=True)
    before = kept(project)
    done = project.run(".venv/bin/ml", "package", check=False, env=env)
    assert done.returncode == USAGE, said(done)
    assert "no network? run it once where the package index can be reached" in said(done)
    assert kept(project) == before
