"""Replay the year 2013 month by month in one project of its own; see docs/replay.md.

python -m tests.replay [--folder demo/replay] [--minutes 12]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.baking import ROOT, environment
from tests.bench.figures import table
from tests.replay import settings
from tests.replay.asking import Asking
from tests.replay.judge import MINUTES, figures
from tests.replay.memory import Memory
from tests.replay.page import page, picture
from tools import demo

INSIDE = Path(__file__).with_name("inside.py")
DAYS = [f"2013-{month:02d}-01" for month in range(2, 13)] + ["2014-01-01"]
SAMPLE = 2_000
"""Flights of a month that are asked over HTTP, at least; the rest are scored by `ml predict`."""
MONITORED = (0, 10, 20, 30)
RETRAINED = (0, 20, 30)


class ReplayError(Exception):
    """A step that ended otherwise than it may, in a sentence."""


@dataclass
class Replay:
    """One replay: its folder, and what is known of each month so far."""

    folder: Path
    months: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def project(self) -> Path:
        """The generated project."""
        return self.folder / demo.PROJECT

    @property
    def rows(self) -> Path:
        """Flights and answers by month."""
        return self.folder / "rows"

    def run(self, *command: str, codes: tuple[int, ...] = (0,), home: str = "") -> tuple[int, str]:
        """Run a command in the project; return its exit code and what it printed.

        `home` is where it keeps what it makes, if not in the project.

        Raises
        ------
        ReplayError
            When it ends with another code; what it said is in `replay.log`.
        """
        done = subprocess.run(
            ("uv", "run", "--quiet", *command),
            cwd=self.project,
            env=environment({"ML_HOME": home} if home else None),
            capture_output=True,
            text=True,
            check=False,
        )
        name = " ".join(part.rpartition("/")[2] for part in command)
        with (self.folder / "replay.log").open("a", encoding="utf-8") as log:
            log.write(f"$ {name}\n{done.stderr}{done.stdout}[{done.returncode}]\n")
        if done.returncode not in codes:
            raise ReplayError(f"`{name}` ended with {done.returncode}; see {log.name}")
        return done.returncode, done.stdout

    def inside(self, *arguments: str, home: str = "") -> None:
        """Run a part of inside.py."""
        self.run("python", str(INSIDE), *arguments, home=home)

    def say(self, what: str) -> None:
        """Tell what is going on, and when."""
        sys.stderr.write(f"{time.monotonic() - self.started:6.0f} s  {what}\n")

    def release(self) -> dict[str, Any]:
        """Return what production says that it serves."""
        return dict(json.loads(self.run("ml", "status", "--json")[1]))

    def prepare(self) -> None:
        """Generate the project with its settings, deliver January's model, draw the curves."""
        stop(self.project)  # what an earlier replay left
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.say("a project, and its first delivery from the data of January")
        settings.change(demo.generate(self.folder))
        demo.first_commit(self.project)
        self.run("ml", "ship", "--as-of", DAYS[0])
        self.inside("flights", str(self.rows))
        self.say("the other curves: ten models that are trained and not delivered")
        first = self.project / ".ml" / "candidates" / self.release()["digest"]
        self.inside("curves", str(self.rows), str(first), home=str(self.folder / "monthly"))

    def live(self, asking: Asking, day: str, after: str) -> None:
        """Let a month pass: its flights are asked, its labels come, it is judged."""
        month, retrained = day[:7], bool(self.months) and self.months[-1]["decision"] == "retrain"
        asking.begin(json.loads((self.rows / f"{month}.json").read_text()))
        if retrained:
            self.retrain(asking, day)
        asking.ask(SAMPLE - asking.asked)
        answers = self.rows / f"{month}-answers.json"
        answers.write_text(json.dumps(asking.scores()))
        self.inside("rest", str(self.rows), month, str(asking.asked))
        places = [str(self.rows / f"{month}-{part}.parquet") for part in ("input", "output")]
        self.run("ml", "predict", *places)
        code, _ = self.run("ml", "monitor", "--as-of", after, codes=MONITORED)
        monitor = self.project / ".ml" / "production" / "monitor"
        decided = json.loads((monitor / "decision.json").read_text())
        self.months.append(
            {
                "month": month,
                "release": self.release()["release"],
                "http": asking.asked,
                "drift": drift(json.loads((monitor / "report.json").read_text())),
                "code": code,
                "retraining": "",
                **{name: decided.get(name, "") for name in ("decision", "reason", "because")},
            }
        )
        failed = f"{asking.asked:,} by HTTP, {asking.failed} failed"
        self.say(f"{month}: {failed}; {decided['decision']}, {decided['reason']}")

    def retrain(self, asking: Asking, day: str) -> None:
        """Retrain because the month before says so, while the first flights of the new one ask."""
        last, before = self.months[-1], self.release()["release"]
        because = last["because"] or "drift"
        with asking.going_on():
            command = ("ml", "retrain", "--as-of", day, "--because", because)
            code, _ = self.run(*command, codes=RETRAINED)
        now = self.release()["release"]
        last["retraining"] = "refused" if now == before else "promoted"
        self.say(f"{day}: retrained because of {because}: {last['retraining']} ({code}), {now}")

    def record(self, gigabytes: float) -> dict[str, Any]:
        """Return all that the replay found; also written to `replay.json`."""
        log = self.project / ".ml" / "production" / "predictions"
        self.inside("measure", str(self.rows), str(log))
        measured = json.loads((self.rows / "measured.json").read_text())
        for month in self.months:
            curves = measured[month["month"]]
            month |= {name: curves.pop(name) for name in ("asked", "failed", "logged")}
            month["curves"] = curves
        minutes = (time.monotonic() - self.started) / 60
        found = {"months": self.months, "minutes": minutes, "gigabytes": gigabytes}
        (self.folder / "replay.json").write_text(json.dumps(found, indent=1) + "\n")
        return found


def drift(report: dict[str, Any]) -> float | None:
    """Return the largest drift of a monitor's report, in multiples of the usual."""
    checks = [check for verdict in report["verdicts"] for check in verdict["checks"]]
    values = [check["value"] for check in checks if check["name"].endswith("_drift")]
    return max((value for value in values if isinstance(value, int | float)), default=None)


def stop(project: Path) -> None:
    """Stop the production of a replay, if there is one."""
    if (project / ".venv").exists():
        command = ("uv", "run", "--quiet", "ml", "deploy", "--stop")
        subprocess.run(command, cwd=project, env=environment(), capture_output=True, check=False)


def show(folder: Path, found: dict[str, Any], minutes: float) -> bool:
    """Write the page and its picture; return whether all bars were reached."""
    judged = figures(found, minutes)
    html = folder / "replay.html"
    html.write_text(page(found, judged), encoding="utf-8")
    sys.stdout.write(f"{table(judged)}\n\n{html}\n{picture(html)}\n")
    return all(figure.reached for figure in judged)


def main(arguments: list[str] | None = None) -> int:
    """Replay, judge, show; the exit code says whether all bars were reached."""
    parser = argparse.ArgumentParser(prog="python -m tests.replay", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "demo" / "replay")
    parser.add_argument("--page", action="store_true", help="draw replay.json again, and no more")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="that it may take")
    options = parser.parse_args(arguments)
    replay = Replay(options.folder.resolve())
    if options.page:
        found = json.loads((replay.folder / "replay.json").read_text())
        return 0 if show(replay.folder, found, options.minutes) else 1
    try:
        with Memory(replay.folder) as memory:
            replay.prepare()
            asking = Asking(settings.PORT)
            for day, after in pairwise(DAYS):
                replay.live(asking, day, after)
        found = replay.record(memory.gigabytes)
    except (ReplayError, demo.DemoError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        stop(replay.project)
    return 0 if show(replay.folder, found, options.minutes) else 1


if __name__ == "__main__":
    sys.exit(main())
