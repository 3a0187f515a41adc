"""The drill's project, its clients, and a record of each event."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.baking import BakedProject, Done, environment, free_port
from tests.canary.traffic import Traffic, asking
from tests.drill.judge import Decision, Step
from tools import demo

RATE, ROWS = 40, 5
"""Requests a second, and flights in each."""
SINCE, UNTIL = "2013-08-01", "2013-09-01"
"""The flights that clients ask about first: those after the last that a model has seen."""
SETTINGS: dict[str, dict[str, Any]] = {
    "config/delivery.yaml": {
        "environments": {
            "production": {"canary": [{"weight": 0.2, "seconds": 5}, {"weight": 0.5, "seconds": 5}]}
        },
        "rollout": {"requests_per_second": RATE, "min_requests": 30},
    },
    "config/gates.yaml": {
        "deepchecks": {"model": {"WeakSegmentsPerformance": None}},
        "load": {
            "seconds": 0.3,
            "rounds": 4,
            "error_share": {"max": 0.01, "outcome": "stop"},
            "qps": {"min": 50, "outcome": "stop"},
            "p95_ms": {"max": 500, "outcome": "stop"},
            "p99_ms": {"max": 1000, "outcome": "stop"},
            "qps_to_champion": {"min": 0.5, "outcome": "stop"},
            "p95_to_champion": {"max": 3, "outcome": "stop"},
        },
    },
    "config/model.yaml": {"learning_rate": 0.3, "num_leaves": 4, "most_rounds": 20},
}
"""What the drill sets otherwise, so that a life takes minutes on a machine that its clients use,
too: short canary steps, a short load test with room for them, and without the longest of
Deepchecks' checks, which only warns. The first model is a small one. `None` takes a setting out."""
SOURCE = '''

_tables, _departures = read_flights, extract


def read_flights(path: Path) -> pd.DataFrame:
    """Return the flights of a world where F9 takes over from UA in September, and is often late."""
    flights = _tables(path)
    taken = (flights["carrier"] == "UA") & (flights["scheduled"] >= "2013-09-01")
    late = flights["late"].notna() & (flights["scheduled"].dt.minute % 2 == 0)
    flights.loc[taken & late, "late"] = True
    flights.loc[taken, "carrier"] = "F9"
    return flights


def extract(as_of: dt.date) -> pd.DataFrame:
    """Return the departures, with the columns called as the system upstream calls them."""
    return _departures(as_of).rename(columns=json.loads(os.environ.get("UPSTREAM", "{}")))
'''
"""Of the drill's own source: what changes in its world, which no model was told."""
WORDS = {0: "nothing", 2: "refused", 10: "retrain", 20: "stop", 30: "inconclusive"}
"""What an exit code alone says, where production serves what it served."""


@dataclass(frozen=True)
class Event:
    """What happens, and what must become of it: the decision and its exit code, and the reason."""

    name: str
    expected: tuple[str, int]
    act: Callable[[Drill], Done]
    words: tuple[str, ...] = ()
    decision: str = ""  # the file that has it, where production need not change
    canary: bool = False  # whether clients must have got both releases


@dataclass
class Drill:
    """A project in a folder, and what happened in it."""

    project: BakedProject
    port: int
    log: Path
    steps: list[Step] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    traffic: Traffic | None = None

    @classmethod
    def make(cls, folder: Path) -> Drill:
        """Generate a project of its own, up to the commit that is delivered first."""
        demo.down(folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        drill = cls(BakedProject(demo.generate(folder)), free_port(), folder / "ml.log")
        drill.configure(SETTINGS)
        port = {"environments": {"production": {"port": drill.port}}}
        drill.configure({"config/delivery.yaml": port})
        source = drill.project.path / "src" / drill.project.package / "sources.py"
        text = source.read_text().replace(
            "import datetime as dt\n", "import datetime as dt\nimport json\nimport os\n"
        )
        source.write_text(text + SOURCE)
        demo.first_commit(drill.project.path)
        return drill

    def configure(self, changes: Mapping[str, Any]) -> None:
        """Change settings, by file."""
        for name, change in changes.items():
            file = self.project.path / name
            settings = merged(yaml.safe_load(file.read_text()), change)
            file.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def commit(self, message: str) -> None:
        """Commit all that was changed."""
        who = ("-c", "user.name=drill", "-c", "user.email=drill@example.org")
        self.project.run("git", *who, "commit", "--quiet", "--all", "-m", message)

    def ml(self, *arguments: str, env: Mapping[str, str] | None = None) -> Done:
        """Run `ml`, and keep what it says."""
        done = self.project.run("uv", "run", "ml", *arguments, check=False, env=env)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(
                f"\n$ ml {' '.join(arguments)}\n{done.stdout}{done.stderr}= {done.returncode}\n"
            )
        return done

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `ml`, and do not wait for it."""
        return subprocess.Popen(
            ["uv", "run", "ml", *arguments],
            cwd=self.project.path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def state(self) -> dict[str, Any]:
        """Return production's own record."""
        file = self.project.path / ".ml" / "production" / "state.json"
        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"moves": []}
        return found

    def mark(self, what: str) -> None:
        """Note what happens at this moment."""
        self.marks.append((time.time(), what))

    def ask_about(self, since: str, until: str, requests: int = 1200) -> None:
        """Let clients ask about flights of some days, from now on; wait until all were, once."""
        script = Path(__file__).with_name("flights.py")
        words = (since, until, str(requests), str(ROWS), str(self.bodies))
        self.project.run("uv", "run", "--quiet", "python", str(script), *words)
        if self.traffic:
            self.mark("time moves on")
            time.sleep(requests / RATE + 1)

    @property
    def bodies(self) -> Path:
        """The requests that clients ask."""
        return self.log.with_name("bodies.json")

    @contextlib.contextmanager
    def clients(self) -> Iterator[None]:
        """Let a process that is none of `ml` ask all the time, until the end of the block."""
        self.ask_about(SINCE, UNTIL)
        with asking(self.port, RATE, self.bodies, self.log.with_name("answers.jsonl")) as traffic:
            self.traffic = traffic
            time.sleep(1)
            yield
            time.sleep(1)

    def run(self, event: Event) -> Step:
        """Let an event happen, and record what became of it."""
        before, start = self.state()["moves"][:1], time.time()
        done = event.act(self)
        time.sleep(1 if self.traffic else 0)  # in which only who serves now may answer
        state, said = self.state(), done.stdout + done.stderr
        moves, word, reason = state["moves"], WORDS.get(done.returncode, "crash"), ""
        if state.get("trying"):
            word = "interrupted"
        elif moves and moves[:1] != before:
            word, reason = moves[0]["type"], moves[0]["reason"]
        if event.decision:
            found = json.loads(self.project.text(event.decision))
            word, reason = found["decision"], found["reason"]
        step = Step(
            event.name,
            " ".join(done.args),
            Decision(*event.expected),
            Decision(word, done.returncode),
            event.words,
            f"{said}\n{reason}",
            start,
            time.time(),
            moves[0]["digest"] if moves else "",
            reason=reason,
            budget=budget_of(said) if (word, done.returncode) == ("rolled_back", 20) else 0.0,
            clients=self.traffic is not None,
            canary=event.canary,
        )
        self.steps.append(step)
        return step


def merged(old: Any, new: Any) -> Any:
    """Return settings with changes: a mapping's key by key, None takes one out."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    both = old | {key: merged(old.get(key), value) for key, value in new.items()}
    return {key: value for key, value in both.items() if value is not None}


def budget_of(said: str) -> float:
    """Return what a bad release may cost at the first step, as `ml` told before it began."""
    costs = re.findall(r"= (\d+) requests at that rate", said)
    return float(costs[0]) if costs else 0.0
