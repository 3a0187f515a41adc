"""Let a model live its whole life on this machine, with clients that ask all the time.

python -m tests.drill [--folder demo/drill] [--minutes 6]
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from tests.baking import ROOT
from tests.drill.judge import MINUTES, judge, table, took
from tests.drill.life import LIFE
from tests.drill.page import page
from tests.drill.scene import RATE, Drill, Event


def happen(drill: Drill, event: Event) -> bool:
    """Let one event happen and say so; return whether its decision was the expected one."""
    sys.stdout.write(f"{event.name} …\n")
    sys.stdout.flush()
    step = drill.run(event)
    return step.found == step.expected


def live(drill: Drill) -> None:
    """Go through the events, as far as each decides as it must."""
    if happen(drill, LIFE[0]):
        with drill.clients():
            for event in LIFE[1:]:
                if not happen(drill, event):
                    break


def main(arguments: list[str] | None = None) -> int:
    """Run the drill; print a table, write a page, and say with the exit code how it went."""
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "demo" / "drill")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="that it may take")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # production is stopped then, too
    started, drill = time.monotonic(), Drill.make(folder)
    try:
        live(drill)
    finally:
        drill.ml("deploy", "--stop")
    answers = drill.traffic.answers() if drill.traffic else []
    rows = judge([event.name for event in LIFE], drill.steps, answers, RATE)
    seconds = time.monotonic() - started
    (folder / "drill.html").write_text(page(rows, answers, drill.marks, seconds))
    time_taken = took(seconds, options.minutes)
    sys.stdout.write(f"\n{table(rows)}\n\n{time_taken}; {folder / 'drill.html'}\n")
    late = seconds > 60 * options.minutes
    return 1 if late or any(row.problems for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
