"""A rollout as a process of its own, which ends by its deadline though whoever asked is gone.

It leaves nothing to tidy up: killed anywhere, the champion serves, and the next verb converges.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM
from subprocess import Popen
from typing import cast

from model_delivery.bundle.launch import spawn
from model_delivery.contract.settings import EnvironmentName
from model_delivery.project import find_project
from model_delivery.protocols import UserError
from model_delivery.registry import Event as Move
from model_delivery.report.verdict import USAGE, Event, Verdict
from model_delivery.rollout import host
from model_delivery.rollout.target import Target


def supervise(target: Target, goal: Move, trigger: Event, show: Callable[[str], None]) -> Verdict:
    """Let a supervisor roll a release out, pass on what it says, and return the verdict.

    A UserError has its last words if it refused, or was ended, as by `ml rollback`.
    """
    log = target.folder / "rollouts" / f"{goal.digest[:12]}-{os.getpid()}.log"
    for folder in (target.supervisor, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    # GitHub's runner ends, with a job, whatever carries its mark.
    env = {k: v for k, v in os.environ.items() if k != "RUNNER_TRACKING_ID"}
    env |= {"TMPDIR": str(target.supervisor.resolve())}
    command = [sys.executable, "-m", __name__, target.name, trigger, goal.model_dump_json()]
    process = spawn(command, target.project.root, env, log)
    try:
        said = _follow(process, log, show)
    except KeyboardInterrupt:
        show("it goes on: `ml status --watch` follows it, `ml rollback` ends it")
        raise
    code = process.returncode
    if code == 0 and (verdict := target.state().verdict):
        return verdict
    if code == USAGE:
        log.unlink()  # all of it is told here
        raise UserError(said[-1])
    why = "by `ml rollback`" if code == -SIGTERM else f"with code {code}"
    raise UserError(f"the rollout was ended {why}; see {log} and `ml status`")


def _follow(process: Popen[bytes], log: Path, show: Callable[[str], None]) -> list[str]:
    """Show lines as they come, until the process ends; return them all."""
    said = list[str]()
    with log.open(encoding="utf-8", errors="replace") as stream:
        while True:
            ended = process.poll() is not None
            lines = stream.read().splitlines()
            for line in lines:
                show(line)
            said += lines
            if ended:
                return said or ["it said nothing"]
            time.sleep(0.1)


def main() -> None:
    """Roll out what the arguments say: environment, trigger, release as JSON."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("model_delivery").setLevel(logging.INFO)
    environment, trigger, goal = sys.argv[1:]
    target = Target(find_project(), cast(EnvironmentName, environment))
    try:
        host.deploy(target, Move.model_validate_json(goal), cast(Event, trigger))
    except UserError as error:
        logging.error(str(error).replace("\n", " "))
        sys.exit(USAGE)


if __name__ == "__main__":
    main()
