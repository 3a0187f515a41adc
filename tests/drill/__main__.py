"""Let a model live its whole life on this machine, with clients that ask all the time.

python -m tests.drill [--folder demo/drill]
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from tests.baking import ROOT
from tests.drill.judge import judge, table
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


def main() -> int:
    """Run the drill; print a table, write a page, and say with the exit code how it went."""
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "demo" / "drill")
    folder = parser.parse_args().folder.resolve()
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
    sys.stdout.write(f"\n{table(rows)}\n\n{seconds:.0f} s in all; {folder / 'drill.html'}\n")
    return 1 if any(row.problems for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
