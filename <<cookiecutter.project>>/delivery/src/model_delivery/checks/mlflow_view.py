# /// script
# requires-python = ">=3.11,<3.14"
# # The full package: the UI of mlflow-skinny never answers. 3.18.0 does not install.
# dependencies = ["mlflow==3.17.2"]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""Make the store at MLFLOW_TRACKING_URI show what a log of events says.

    uv run --script mlflow_view.py PROJECT < EVENTS.json

Several programs may do so at once: each mends what differs until it has read twice in a row that
nothing does, so that the last one leaves it right. A run that is finished is whole.
"""

import json
import os
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

# Before the import. A server that is away would be waited for over minutes.
os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from mlflow import MlflowClient, entities
from mlflow.exceptions import MlflowException

Event = dict[str, Any]
ROUNDS = 10
JUDGED = ("verdicts", "metrics", "against", "commit", "id")


def finish(client: MlflowClient, run: str, event: Event) -> None:
    """Log what a release is made of and how it was judged; what is there already stays as it is."""
    names = ("digest", "release", "commit", "as_of", "against", "id")
    tags = {name: event[name] or "none" for name in names}
    tags |= {f"verdict.{gate}": outcome for gate, outcome in event["verdicts"].items()}
    if champion := event["champion"]:
        tags["champion"] = champion["release"]
        tags |= {f"champion.{name}": str(it[0]) for name, it in champion["metrics"].items()}
    metrics = [
        entities.Metric(f"{name}{part}", value, event["judged"], 0)
        for name, found in event["metrics"].items()
        for part, value in zip(("", "_low", "_high"), found, strict=True)
        if value is not None
    ]
    parameters = [entities.Param(name, str(value)) for name, value in event["parameters"].items()]
    client.log_batch(run, metrics, parameters, [entities.RunTag(*tag) for tag in tags.items()])
    if name := event["snapshot"]:  # by day and content
        data = entities.Dataset(name, name.rpartition("-")[2], "snapshot", "{}")
        client.log_inputs(run, [entities.DatasetInput(data)])
    client.set_terminated(run, "FINISHED", event["time"])


def check_own(
    client: MlflowClient,
    runs: list[entities.Run],
    models: list[entities.model_registry.ModelVersion],
    experiment: str,
    ids: set[str],
) -> None:
    """Leave alone a store that shows another log, as a team's server to a clone without theirs."""
    for run in runs:
        if (known := run.data.tags.get("id")) and known not in ids:
            why = f"it shows {run.info.run_name}, which the log here does not have"
            raise SystemExit(f"{why}: it is of another log, or to be deleted first")
    for model in [one for one in models if "digest" not in one.tags]:  # yet, by another replay
        made = client.get_run(model.run_id) if model.run_id else None
        if made is None or made.info.experiment_id != experiment:
            why = f"its model {model.name} has a version {model.version} that is of no log"
            raise SystemExit(f"{why}: rename that model there, or delete it, first")


def own_experiment(client: MlflowClient, project: str) -> str:
    """Return the id of the project's experiment; of a deleted one nothing is shown again."""
    known = client.get_experiment_by_name(project)
    experiment = str(known.experiment_id if known else client.create_experiment(project))
    if known and known.lifecycle_stage == "deleted":
        client.restore_experiment(experiment)  # and with it its runs, perhaps of another log
        for run in client.search_runs([experiment], max_results=50_000):
            client.delete_run(run.info.run_id)
    return experiment


def mend(
    client: MlflowClient, project: str, releases: dict[str, Event], aliases: Event, ids: set[str]
) -> str:
    """Make the store what the log says; return what was read of it before."""
    if not client.search_registered_models(f"name='{project}'"):
        client.create_registered_model(project)
    experiment = own_experiment(client, project)
    found = client.search_runs([experiment], "tags.digest != ''", max_results=50_000)
    models = client.search_model_versions(f"name='{project}'")
    check_own(client, found, models, experiment, ids)
    named = {k: str(v) for k, v in client.get_registered_model(project).aliases.items()}
    found.sort(key=lambda run: str(run.info.run_id), reverse=True)
    runs = {run.data.tags["digest"]: run for run in found}  # of two the one with the smaller id
    for run in [run for run in found if run is not runs[run.data.tags["digest"]]]:
        client.delete_run(run.info.run_id)
    own = {(run.info.run_id, digest) for digest, run in runs.items()}
    models.sort(key=lambda model: int(model.version), reverse=True)
    owned = [model for model in models if (model.run_id, model.tags.get("digest")) in own]
    versions = {model.tags["digest"]: model for model in owned}
    for model in [model for model in models if model not in versions.values()]:
        client.delete_model_version(project, model.version)
    for digest, event in releases.items():
        name, tags = event["release"], {"digest": digest, "release": event["release"]}
        run = runs.get(digest) or client.create_run(experiment, event["time"], tags, name)
        if run.info.status != "FINISHED" or run.data.tags.get("id") != event["id"]:
            finish(client, run.info.run_id, event)
        if digest not in versions:
            about = f"runs:/{run.info.run_id}/{digest}", run.info.run_id, tags
            versions[digest] = client.create_model_version(project, *about, description=name)
    known = {alias: digest for alias, digest in aliases.items() if digest in versions}
    wanted = {alias: str(versions[digest].version) for alias, digest in known.items()}
    for alias in named.keys() - wanted.keys():
        client.delete_registered_model_alias(project, alias)
    for alias, version in wanted.items() - named.items():
        client.set_registered_model_alias(project, alias, version)
    return f"{found}{models}{named}"


def replay(client: MlflowClient, project: str, events: list[Event]) -> None:
    """Mend the store until nothing differs from the log."""
    releases, aliases, seen = dict[str, Event](), dict[str, str](), ""
    ids = {event["id"] for event in events}
    for event in events:
        event["time"] = int(datetime.fromisoformat(event["time"]).timestamp() * 1000)
        if event["environment"]:
            aliases[event["environment"]] = event["digest"]
        elif event["type"] == "registered" or event["digest"] in releases:  # judged again
            first = releases.get(event["digest"], event)
            beside = dict(releases.get(event["against"], {}))
            again = {name: event[name] for name in JUDGED} | {"judged": event["time"]}
            releases[event["digest"]] = first | again | {"champion": beside}  # as it was then
    champion, newest = aliases.get("production"), next(reversed(releases), None)
    aliases |= {"champion": champion} if champion else {}
    aliases |= {"challenger": newest} if newest and newest != champion else {}
    client.search_experiments(max_results=1)  # raises where no server is
    for left in reversed(range(ROUNDS)):
        with suppress(*[MlflowException] if left else []):  # others may make the same meanwhile
            before, seen = seen, mend(client, project, releases, aliases, ids)
            if before == seen:
                return
    raise TimeoutError(f"MLflow differs from the log after {ROUNDS} rounds")


if __name__ == "__main__":
    replay(MlflowClient(), sys.argv[1], json.load(sys.stdin))
