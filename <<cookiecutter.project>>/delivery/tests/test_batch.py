"""Files are scored as the service would score their rows, wholly or not at all, and once."""

from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fsspec.implementations.local import LocalFileSystem
from model_delivery.bundle import scorer
from model_delivery.bundle.candidate import Candidate, candidate_folder
from model_delivery.contract.request import JsonRow, columns_of, draw_rows, request_model
from model_delivery.contract.settings import DataContract, Environment
from model_delivery.files import read_json, seal, write_json
from model_delivery.gates import GATES
from model_delivery.project import Project
from model_delivery.protocols import UserError
from model_delivery.registry import Event, event_log
from model_delivery.releases import register
from model_delivery.report.verdict import Outcome, Verdict, fixed
from model_delivery.rollout import host
from model_delivery.rollout.target import State, Target
from model_delivery.serving import answer
from model_delivery.watch import batch
from model_delivery.watch.log import PredictionLog, keyed_hash
from pydantic import ValidationError

SERVICE = """
import zlib
import numpy as np
from model_delivery.serving import ModelService

class Service(ModelService):
    def load(self, folder):
        print("this is no score", flush=True)

    def score(self, columns):
        rows = zip(*(columns[name].tolist() for name in sorted(columns)))
        return np.array([zlib.crc32(repr([*map(str, row)]).encode()) / 2**33 for row in rows])
"""
"""A release whose scores follow from every digit of every column."""
DELIVERY = """
environments: {production: {target: batch}}
rollout: {shadow_rows: 40, requests_per_second: 100, min_requests: 20,
  shadow_distance: {max: 0.9, outcome: stop}, error_share: {max: 0.01, outcome: stop},
  p95_ms: {max: 900, outcome: stop}, score_distance: {max: 0.4, outcome: stop},
  memory_mb: {max: 500, outcome: stop}}
keep_releases: 2
start_timeout_seconds: 20
"""
N = 150
SAME = ("row", "digest", "shadow", "score", "columns")
KEY = ["at", "count", "model code"]


@pytest.fixture
def project(
    tmp_path: Path, contract: DataContract, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    monkeypatch.setattr(scorer, "service_environment", lambda *_: Path(sys.executable))
    monkeypatch.setattr(host, "limits_hash", lambda *_: "limits")
    monkeypatch.setattr(batch, "ROWS", 16)
    monkeypatch.setattr(batch, "ROUND", 2)
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "project"
    (root / "config").mkdir(parents=True)
    keyed = contract.model_copy(update={"key": KEY}).model_dump(mode="json", exclude_none=True)
    (root / "config" / "data.yaml").write_text(yaml.safe_dump(keyed))
    (root / "pyproject.toml").write_text('[project]\nversion = "1.1.0"\n')
    yield configured(root)
    fsspec.filesystem("memory").store.clear()


def configured(root: Path, log: str = "{}") -> Project:
    (root / "config" / "delivery.yaml").write_text(f"{DELIVERY}log: {log}\n")
    return Project(root)


def release(project: Project, ship: Path, service: str = "", against: str | None = None) -> Event:
    """Register a release with another service than the stub's, as if its gates had passed."""
    staged = project.work / "staged"
    shutil.copytree(ship, staged / "ship")
    if service:
        (staged / "ship" / "src" / "stub" / "service.py").write_text(service)
    lineage = {"data": {"as_of": "2013-08-01"}, "commit": "c" * 40, "snapshot": "s", "key": "k"}
    write_json(staged / "lineage.json", lineage | {"parameters": {}})
    candidate = Candidate(candidate_folder(project, seal(staged / "ship")))
    candidate.folder.parent.mkdir(parents=True, exist_ok=True)
    staged.rename(candidate.folder)
    about: dict[str, Any] = {"subject": candidate.digest, "limits": "limits", "against": against}
    checks = [fixed("c", True, "as it should be")]
    verdicts = {gate: Verdict(gate=gate, checks=checks, **about) for gate in GATES}
    candidate.save(verdicts["model"])
    return register(project, candidate, verdicts, "local")


def accept(project: Project, accepted: Event) -> Target:
    """Let production have accepted a release."""
    target = Target(project, "production")
    target.save(State(moves=[accepted.model_copy(update={"environment": "production"})]))
    return target


@pytest.fixture
def target(project: Project, ship: Path) -> Target:
    return accept(project, release(project, ship, SERVICE))


@pytest.fixture(scope="module")
def rows(contract: DataContract) -> list[JsonRow]:
    return draw_rows(contract, N, seed=3)


@pytest.fixture
def table(contract: DataContract, rows: list[JsonRow]) -> pa.Table:
    return pa.table({name: pa.array(values) for name, values in columns_of(rows, contract).items()})


def predict(target: Target, source: str, goal: str = "scores.parquet") -> dict[str, Any]:
    return batch.predict(target, source, goal, lambda said: None)


def written(table: pa.Table, name: str = "rows.parquet") -> str:
    pq.write_table(table, name)
    return name


def logged(target: Target) -> list[dict[str, Any]]:
    paths = sorted(Path(target.log).glob("????-??-??/*.parquet"))
    return [record for path in paths for record in pq.read_table(path).to_pylist()]


def service_of(target: Target) -> Any:
    """Return the service of the installed release, loaded in this process."""
    module = ModuleType("shipped")
    exec(SERVICE, module.__dict__)
    return module.__dict__["Service"]()


def test_scores_are_the_services_bit_for_bit(
    target: Target, contract: DataContract, rows: list[JsonRow], table: pa.Table
) -> None:
    [digest] = [move.digest for move in target.state().moves]
    request = read_json(target.install(target.state().moves[0]) / "request.json")
    read = request_model(request).model_validate_json(json.dumps({"rows": rows})).rows
    expected = [answer(service_of(target), [row], request)[0] for row in read]
    assert len(set(expected)) > N - 5
    strange = table.set_column(4, "json", pa.array(table["json"].to_numpy(), from_pandas=True))
    strange = strange.set_column(1, "kind", strange["kind"].dictionary_encode())
    fsspec.filesystem("memory").pipe("/in/rows.parquet", Path(written(strange)).read_bytes())
    table.to_pandas().to_csv("rows.csv", index=False)
    for source in (written(table), "memory://in/rows.parquet", "rows.csv"):
        assert predict(target, source)["rows"] == N
        found = pq.read_table("scores.parquet")
        assert found.column_names == [*KEY, "score", "digest"]
        assert found["score"].to_pylist() == expected, source
        assert found.select(KEY).equals(table.select(KEY)), source
        assert found["digest"].unique().to_pylist() == [digest]
    assert not [*Path().rglob("*.part")]


def test_the_log_has_the_rows_as_a_service_logs_them(
    project: Project,
    target: Target,
    rows: list[JsonRow],
    table: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ML_LOG_KEY", "secret")
    log = '{private: [amount], hashed: [kind, "model code", count]}'
    target = Target(configured(project.root, log), "production")
    done = predict(target, written(table))
    records = logged(target)
    assert [record["row"] for record in records] == [*range(N)]
    request = read_json(target.install(target.state().moves[0]) / "request.json")
    read = request_model(request).model_validate_json(json.dumps({"rows": rows})).rows
    to = target.project.delivery.log.model_copy(update={"folder": "served"})
    service = PredictionLog(to, done["digest"], request, lambda dropped: None)
    service.add({}, read, pq.read_table("scores.parquet")["score"].to_pylist(), seconds=0.1)
    service.close()
    [segment] = Path("served").rglob("*.jsonl")
    for own, line in zip(records, segment.read_text().splitlines(), strict=True):
        other = json.loads(line)
        assert own.keys() == other.keys()
        assert [own[name] for name in SAME] == [other[name] for name in SAME]
        assert (own["id"], own["time"]) == (done["id"], done["time"])
        assert own["ms"] > 0
        assert own["columns"].keys() == request.keys() - {"amount"}
        secret = own["columns"]["count"]
        assert secret == keyed_hash(rows[own["row"]]["count"], "secret")
    slip = Target(configured(project.root, "{private: [amout]}"), "production")
    with pytest.raises(UserError, match=r"`log\.private`: `amout`: .*`amount`"):
        predict(slip, "rows.parquet")
    assert dt.datetime.fromisoformat(done["time"]).utcoffset() == dt.timedelta(0)


def test_the_same_rows_by_the_same_release_count_once(
    project: Project, target: Target, ship: Path, table: pa.Table
) -> None:
    first, again = predict(target, written(table)), predict(target, written(table))
    assert first["id"] == again["id"]
    assert len(logged(target)) == N
    other = predict(target, written(table.slice(1)))
    newer = predict(accept(project, release(project, ship)), written(table))
    assert len({first["id"], other["id"], newer["id"]}) == 3
    assert len(logged(target)) == 3 * N - 1


def change(column: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        frame = table.to_pandas()
        frame[column] = frame[column].astype(object)
        frame.loc[row - 1, column] = value
        kind = pa.array([value]).type if isinstance(value, dt.datetime) else table[column].type
        new = pa.array(frame[column], kind, from_pandas=value is None)
        return table.set_column(table.column_names.index(column), column, new)

    return changed


def renamed(table: pa.Table) -> pa.Table:
    return table.rename_columns([name.replace("amount", "amout") for name in table.column_names])


def doubled(table: pa.Table) -> pa.Table:
    return table.append_column("kind", table["kind"])


def as_text(table: pa.Table) -> pa.Table:
    return table.set_column(5, "count", table["count"].cast("string"))


def twice(table: pa.Table) -> pa.Table:
    return change("count", 90, -1)(change("kind", 85, "c")(table))


HALF = dt.datetime(2013, 7, 1, 12, 0, 0, 500_000)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (renamed, "one column `amount`; is it `amout`"),
        (doubled, "one column `kind`"),
        (as_text, r"row 1: `count` is '\d+', but must be required, integer, min 0"),
        (change("kind", 77, "d"), r"row 77: `kind` is 'd', .*values \['a', 'b c', 'ü'\]"),
        (change("model code", 3, "ab"), r"row 3: `model code` is 'ab', .*pattern \[A-Z\]"),
        (change("amount", N, 100.1), "row 150: `amount` is 100.1, .*max 100"),
        (change("amount", 20, None), "row 20: `amount` is None, but must be required"),
        (change("amount", 20, float("nan")), "row 20: `amount` is nan, but must be required"),
        (change("json", 17, float("inf")), "row 17: `json` is inf, but must be number"),
        (change("at", 5, HALF), r"row 5: `at` is datetime.*500000\), but must be .*timestamp"),
        (twice, "row 85: `kind` is 'c'"),
        (lambda table: table.slice(0, 0), "no rows"),
    ],
)
def test_the_first_wrong_row_is_named_and_nothing_is_written(
    target: Target, table: pa.Table, harm: Callable[[pa.Table], pa.Table], message: str
) -> None:
    with pytest.raises(UserError, match=rf"^rows\.parquet: .*{message}"):
        predict(target, written(harm(table)))
    assert not Path("scores.parquet").exists()
    assert logged(target) == []
    assert [*target.folder.glob("batches/.new-*")] == []


def test_wrong_text_is_named_by_its_row(target: Target, table: pa.Table) -> None:
    frame = table.to_pandas().astype(object)
    frame.loc[130, "count"] = "many"
    frame.to_csv("rows.csv", index=False)
    with pytest.raises(UserError, match=r"rows\.csv: row 131: `count` is 'many', but .*integer"):
        predict(target, "rows.csv")
    Path("torn.csv").write_text(Path("rows.csv").read_text()[:-20])
    with pytest.raises(UserError, match=r"torn\.csv: CSV parse error"):
        predict(target, "torn.csv")


def test_what_cannot_be_read_or_written_is_said(target: Target, table: pa.Table) -> None:
    written(table)
    Path("torn.parquet").write_bytes(Path("rows.parquet").read_bytes()[:-9])
    Path("file").touch()
    for source, goal, message in [
        ("rows.txt", "scores.parquet", r"rows\.txt, .*in \.parquet or \.csv"),
        ("rows.parquet", "scores.csv", r"scores go to \.parquet"),
        ("none.parquet", "scores.parquet", r"none\.parquet: .*No such file"),
        ("nope://rows.parquet", "scores.parquet", r"nope://rows\.parquet: Protocol not known"),
        ("torn.parquet", "scores.parquet", r"torn\.parquet: .*[Pp]arquet"),
        ("rows.parquet", "file/scores.parquet", r"file/scores\.parquet: .*(exists|directory)"),
    ]:
        with pytest.raises(UserError, match=message):
            predict(target, source, goal)
    assert not Path("scores.parquet").exists()


def test_a_release_that_gives_no_probabilities_ends_it(
    project: Project, ship: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer, "PATIENCE_SECONDS", 5)
    for service, message in [
        (
            SERVICE.replace("2**33", "2**31"),
            r"ended while it scored .*no probabilities of \d+ rows",
        ),
        (SERVICE.replace("/ 2**33", "* float('nan')"), "no probabilities"),
        (SERVICE.replace("print(", "exit("), "ended while it scored"),
        (SERVICE.replace("rows =", "import time; time.sleep(99); rows ="), "ended while it scored"),
    ]:
        with pytest.raises(UserError, match=f"(?s){message}"):
            predict(accept(project, release(project, ship, service)), written(table))
        assert not Path("scores.parquet").exists()


def test_without_a_release_or_with_one_from_before(
    project: Project, ship: Path, table: pa.Table, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"production: nothing deployed.*`ml deploy --to production`"
    ):
        predict(Target(project, "production"), written(table))
    old = shutil.copytree(ship, tmp_path / "old")
    service = (old / "service.py").read_text().replace("--stream", "nothing else")
    (old / "service.py").write_text(service)
    with pytest.raises(UserError, match="from before `ml predict`; deploy one"):
        predict(accept(project, release(project, old)), written(table))


class Killer(LocalFileSystem):
    """A file system in which this process is killed at one act of those that last."""

    at = 0
    acts = 0

    def _act(self, half: Callable[[], object]) -> None:
        Killer.acts += 1
        if Killer.acts == Killer.at:
            half()
            os.kill(os.getpid(), signal.SIGKILL)

    def put_file(self, path: str, to: str, **options: Any) -> None:
        self._act(lambda: Path(to).write_bytes(Path(path).read_bytes()[:100]))
        super().put_file(path, to, **options)

    def mv(self, one: str, two: str, **options: Any) -> None:
        self._act(lambda: None)
        super().mv(one, two, **options)


def killed(target: Target, source: str, at: int) -> int:
    """Predict in a child that is killed at its so manieth act; return its exit code."""

    def work() -> None:
        Killer.at = at
        batch.url_to_fs = lambda uri: (Killer(), os.path.abspath(uri))  # type: ignore[assignment]
        predict(target, source)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def scorers(target: Target) -> list[int]:
    at = str(target.folder)
    found = psutil.process_iter(["cmdline", "cwd"])
    return [p.pid for p in found if "--stream" in (p.info["cmdline"] or ()) and at in p.info["cwd"]]


def test_killed_at_any_durable_act_a_rerun_converges(target: Target, table: pa.Table) -> None:
    expected, at, goal = predict(target, written(table)), 1, Path("scores.parquet")
    whole = pq.read_table(goal)
    while True:
        shutil.rmtree(target.log)
        goal.unlink()
        if killed(target, "rows.parquet", at) == 0:
            break
        assert not goal.exists()  # or it would be whole: it is the last
        assert len(logged(target)) in (0, N)
        deadline = time.monotonic() + 20
        while scorers(target):
            assert time.monotonic() < deadline, "what scored outlives who asked"
            time.sleep(0.05)
        assert predict(target, "rows.parquet")["id"] == expected["id"]
        assert pq.read_table(goal).equals(whole)
        assert len({(r["id"], r["row"]) for r in logged(target)}) == len(logged(target)) == N
        assert [*Path().rglob("*.part")] == []
        at += 1
    assert at == 5, "two files, each copied and moved"


def deploy(project: Project, goal: Event) -> Verdict:
    return host.deploy(Target(project, "production"), goal)


def status(project: Project) -> dict[str, Any]:
    return Target(project, "production").status()


def test_target_batch_is_deployed_to_and_rolled_back_without_anything_that_runs(
    project: Project, ship: Path, table: pa.Table
) -> None:
    target = Target(project, "production")
    assert status(project)["state"] == "nothing deployed"
    a = release(project, ship)
    assert deploy(project, a).outcome is Outcome.PASS
    assert status(project)["state"] == "batch"
    assert "`ml predict --in production`" in status(project)["note"]
    assert status(project)["arms"] == {}
    b = release(project, ship, SERVICE, against=a.digest)
    verdict = deploy(project, b)
    assert [check.name for check in verdict.checks] == ["shadow_answers", "shadow_distance"]
    assert predict(target, written(table))["digest"] == b.digest
    weight = target.folder / "releases" / a.digest / "ship" / "model" / "weight.txt"
    weight.write_text("0.02")
    with pytest.raises(UserError, match=r"weight\.txt: does not belong to"):
        host.rollback(target, None)
    assert predict(target, "rows.parquet")["digest"] == b.digest
    weight.write_text("0.01")
    assert host.rollback(target, None).digest == a.digest
    host.stop(target)
    host.start(target)
    assert status(project)["state"] == "batch"
    assert predict(target, written(table))["digest"] == a.digest
    told = [(e.type, e.digest) for e in event_log(project).events() if e.environment]
    assert told == [("promoted", a.digest), ("promoted", b.digest), ("rolled_back", a.digest)]
    assert not (target.folder / "services").exists()
    with pytest.raises(UserError, match="was rolled back at"):
        deploy(project, b)


def test_a_release_that_scores_drawn_rows_badly_is_not_accepted(
    project: Project, ship: Path, tmp_path: Path
) -> None:
    a = release(project, ship)
    deploy(project, a)
    constant = SERVICE.replace("zlib.crc32(repr([*map(str, row)]).encode()) / 2**33", "1.0")
    old = shutil.copytree(ship, tmp_path / "old")
    (old / "service.py").write_text((old / "service.py").read_text().replace("--stream", ""))
    for wrong, of, name, sentence in [
        (constant, ship, "shadow_distance", "from the champion's"),
        (constant.replace("1.0", "float('nan')"), ship, "shadow_answers", "no probabilities"),
        (SERVICE + "\n", old, "shadow_answers", "from before `ml predict`"),
    ]:
        verdict = deploy(project, release(project, of, wrong, against=a.digest))
        assert (verdict.outcome, verdict.decisive.name) == (Outcome.STOP, name)
        assert sentence in verdict.decisive.sentence
        assert status(project)["digest"] == a.digest
        assert event_log(project).events()[-1].type == "rolled_back"


def test_on_a_machine_that_is_gone_afterwards_the_log_is_the_truth(
    project: Project, ship: Path, table: pa.Table
) -> None:
    target, a = Target(project, "production"), release(project, ship)
    with host.rehearsal(target):
        deploy(project, a)
    [event] = [event for event in event_log(project).events() if event.environment]
    assert (event.type, event.rehearsed) == ("promoted", False)  # it is what scores
    shutil.rmtree(target.folder)
    assert predict(target, written(table))["digest"] == a.digest
    b = release(project, ship, SERVICE, against=a.digest)
    other = event.model_copy(update={"id": "x", "digest": "f" * 64})

    def meanwhile() -> None:
        with host.rehearsal(target):
            deploy(project, b)
            event_log(project).append(lambda _: other)

    with pytest.raises(UserError, match="was accepted meanwhile"):
        meanwhile()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "host"}, "needs a `port`"),
        ({"target": "batch", "port": 3000}, "no `port`"),
        ({"target": "batch", "load": True}, "no `port`, `load`"),
        ({"target": "batch", "canary": [{"weight": 0.1, "seconds": 1}]}, "or `canary`"),
    ],
)
def test_a_batch_environment_has_nothing_that_runs(settings: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Environment.model_validate(settings)
