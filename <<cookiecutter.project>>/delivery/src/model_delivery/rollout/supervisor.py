"""A rollout as a process of its own, which ends by its deadline though whoever asked is gone.

It leaves nothing to tidy up: killed anywhere, the champion serves, and the next verb converges.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from signal import SIGTERM
from typing import cast

from model_delivery.bundle.launch import spawn
from model_delivery.contract.settings import EnvironmentName
from model_delivery.project import find_project
from model_delivery.protocols import UserError
from model_delivery.registry import Event
from model_delivery.report.verdict import USAGE, Trigger, Verdict
from model_delivery.rollout import host
from model_delivery.rollout.target import Target


def supervise(target: Target, goal: Event, why: Trigger, show: Callable[[str], None]) -> Verdict:
    """Let a supervisor roll a release out, pass on what it says, and return the verdict.

    A UserError has its last words if it refused, or was ended, as by `ml rollback`.
    """
    log = target.folder / "rollouts" / f"{goal.digest[:12]}-{os.getpid()}.log"
    for folder in (target.supervisor, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    # GitHub's runner ends, with a job, whatever carries its mark.
    env = {k: v for k, v in os.environ.items() if k != "RUNNER_TRACKING_ID"}
    env |= {"TMPDIR": str(target.supervisor.resolve())}
    command = [sys.executable, "-m", __name__, target.name, why, goal.model_dump_json()]
    process, code = spawn(command, target.project.root, env, log), None
    said = ["it said nothing"]
    try:
        with log.open(encoding="utf-8", errors="replace") as stream:
            while code is None:
                time.sleep(0.1)
                code = process.poll()  # before the last look, so that nothing is missed
                for line in stream.read().splitlines():
                    said.append(line)
                    show(line)
    except KeyboardInterrupt:
        show("it goes on: `ml status --watch` follows it, `ml rollback` ends it")
        raise
    if code == 0 and (verdict := target.state().verdict):
        return verdict
    if code == 120 or (code == USAGE and len(said) == 1):  # 120: Python cannot flush it
        raise UserError(f"{said[-1]}; is there room in {log.parent}? See `ml status`")
    if code == USAGE:
        log.unlink()  # all of it is told here
        raise UserError(said[-1])
    how = "by `ml rollback`" if code == -SIGTERM else f"with code {code}"
    ends = 1 if code > 0 else USAGE  # a signal is nobody's bug
    raise UserError(f"the rollout was ended {how}; see {log} and `ml status`", ends)


def main() -> None:
    """Roll out what the arguments say: environment, trigger, release as JSON."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("model_delivery").setLevel(logging.INFO)
    environment, trigger, goal = sys.argv[1:]
    target = Target(find_project(), cast(EnvironmentName, environment))
    try:
        host.deploy(target, Event.model_validate_json(goal), cast(Trigger, trigger))
    except UserError as error:
        logging.error(str(error).replace("\n", " "))
        sys.exit(USAGE)


if __name__ == "__main__":
    main()
