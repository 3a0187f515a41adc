"""A repository that grows from test to test, as one does, and the machine production is on."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib import request

import yaml

from tests.baking import BakedProject, free_port
from tests.canary.traffic import meanwhile
from tests.harness import Event, FakeGitHub, Run, SelfHosted, dispatch, push, run_workflow, schedule
from tests.harness.github import git
from tests.harness.sandbox import seen
from tests.test_workflows import QUICK, WHO, loosen_load_limits

LABEL = "production-host"
VARIABLES = {"DEPLOY_RUNNER_PRODUCTION": LABEL}
MAIN, DEVELOP = "refs/heads/main", "refs/heads/develop"
ROW: dict[str, Any] = {
    "scheduled": "2013-07-01T17:45",
    "carrier": "UA",
    "flight": 1545,
    "origin": "EWR",
    "dest": "IAH",
    "distance": 1400,
    "temp": 79.0,
    "dewp": 70.0,
    "humid": 74.0,
    "wind_dir": 200,
    "wind_speed": 9.2,
    "precip": 0,
    "pressure": 1012.0,
    "visib": 10,
}


@dataclass
class World:
    """A repository with its origin, and the machine that production is on, if there is one."""

    project: Path
    github: FakeGitHub
    hosts: tuple[SelfHosted, ...] = ()
    port: int = 0
    private: bool = True

    def commit(self, message: str, changes: Mapping[str, tuple[str, str]] | None = None) -> str:
        """Commit changes, `{file: (old, new)}`, to the branch that is checked out."""
        for name, (old, new) in (changes or {}).items():
            file = self.project / name
            text = file.read_text()
            assert text.count(old) == 1, f"{name}: {old}"
            file.write_text(text.replace(old, new))
        git(self.project, *WHO, "commit", "--quiet", "--all", "--allow-empty", "-m", message)
        return git(self.project, "rev-parse", "HEAD")

    def canary(self, seconds: float) -> None:
        """Give production's canary one step of 30 %."""
        file = self.project / "config" / "delivery.yaml"
        settings = yaml.safe_load(file.read_text())
        steps = settings["environments"]["production"]["canary"]
        assert {step["weight"] for step in steps} & {0.3}
        steps[:] = [{"weight": 0.3, "seconds": seconds}]
        file.write_text(yaml.safe_dump(settings))

    def state(self) -> dict[str, Any]:
        """Return what production on the host says of itself; it must have served before."""
        file = self.hosts[0].folder / "ml" / "production" / "state.json"
        return dict(json.loads(file.read_text()))

    def push(self, ref: str = MAIN, **more: Any) -> Run:
        """Push the commit that is checked out, as a branch or a tag, and run deliver.yml."""
        if ref.startswith("refs/tags/"):
            git(self.project, "tag", "--force", ref.removeprefix("refs/tags/"))
            self.github.receive(self.project, f"+{ref}")
        else:
            self.github.receive(self.project, f"HEAD:{ref}")
            git(self.project, "update-ref", ref, "HEAD")
        event = push(self.project, self.github.repository, ref, private=self.private)
        return self.run("deliver.yml", event, **more)

    def run(self, workflow: str, event: Any, **more: Any) -> Run:
        """Run a workflow on an event."""
        variables = VARIABLES if self.hosts else {}
        options = {"variables": variables, "hosts": self.hosts} | more
        return run_workflow(self.project, workflow, event, self.github, **options)

    def dispatch(self, workflow: str, **inputs: str) -> Run:
        """Run a workflow by hand on `main`."""
        return self.run(workflow, self.by_hand(**inputs))

    def by_hand(self, **inputs: str) -> Event:
        """Return the event of a start by hand on `main`."""
        repository = self.github.repository
        return dispatch(self.project, repository, MAIN, inputs, private=self.private)

    def schedule(self, workflow: str, **more: Any) -> Run:
        """Run a workflow as its schedule does."""
        return self.run(workflow, schedule(self.project, private=self.private), **more)

    def copy(self, folder: Path) -> World:
        """Return a copy of the repository and all that GitHub keeps of it, without a machine."""
        of_runs = shutil.ignore_patterns("runs", "calls.json")  # a copy counts its own from 1
        shutil.copytree(self.project, folder / "project", ignore=shutil.ignore_patterns(".venv"))
        shutil.copytree(self.github.folder, folder / "github", ignore=of_runs)
        return World(folder / "project", FakeGitHub(folder / "github"))

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the registry's branch holds."""
        return self.github.events

    def since(self, before: list[dict[str, Any]]) -> list[tuple[str, str | None, bool]]:
        """Return the events since others, as type, environment, rehearsed."""
        new = self.events
        assert new[: len(before)] == before, "an event was changed"
        return [(e["type"], e["environment"], e["rehearsed"]) for e in new[len(before) :]]

    def served(self, rows: Sequence[Mapping[str, Any]] = (ROW,)) -> tuple[str, str]:
        """Ask production for predictions, as a client does; return digest and release."""
        body = json.dumps({"rows": rows}).encode()
        asked = request.Request(f"http://127.0.0.1:{self.port}/predict", body)
        asked.add_header("content-type", "application/json")
        with request.urlopen(asked, timeout=10) as answer:  # noqa: S310 - http, as said above
            assert 0 < json.loads(answer.read())["probability"][0] < 1
            return answer.headers["x-model-digest"], answer.headers["x-release"]

    @contextmanager
    def clients(self) -> Iterator[list[Exception | None]]:
        """Ask production some fifty times a second, about ever new rows; yield each's error."""
        draw = random.Random(0)  # noqa: S311 - rows, no secret
        asked = list[Exception | None]()

        def ask(done: threading.Event) -> None:
            while not done.wait(0.02):
                at = f"2013-0{draw.randint(1, 7)}-01T{draw.randint(5, 23):02}:45"
                weather = {name: draw.uniform(20, 100) for name in ("temp", "humid")}
                more = {"wind_speed": draw.uniform(0, 40), "distance": draw.randint(200, 2500)}
                try:
                    self.served([ROW | weather | more | {"scheduled": at}])
                    asked.append(None)
                except Exception as error:  # a client goes on, whatever it was
                    asked.append(error)

        with meanwhile(ask):
            yield asked


def make_world(ready: BakedProject, folder: Path) -> World:
    """Return a repository with quick checks and without a delivery; stop its host in the end."""
    project = folder / "project"
    git(folder, "clone", "--quiet", str(ready.path), str(project))
    port = free_port()
    for name, changes in QUICK.items():
        file = project / "config" / name
        settings = yaml.safe_load(file.read_text())
        for part, change in changes.items():
            settings[part].update(change)
        if name == "delivery.yaml":
            steps = [{"weight": 0.3, "seconds": 3}, {"weight": 0.5, "seconds": 3}]
            settings["rollout"] |= {"requests_per_second": 60, "min_requests": 20}
            settings["rollout"]["memory_mb"]["max"] = 500
            for number, place in enumerate(settings["environments"].values()):
                place["port"] = free_port() if number < 2 else port
            settings["environments"]["production"]["canary"] = steps
        file.write_text(yaml.safe_dump(settings))
    loosen_load_limits(project / "config" / "gates.yaml")
    home = folder / "host"
    host = SelfHosted(LABEL, home, runners=2, variables={"ML_HOME": str(seen(home / "ml"))})
    made = World(project, FakeGitHub(folder / "github"), (host,), port, private=False)
    made.commit("Quick checks")
    return made
