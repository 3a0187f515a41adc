"""The events of a model's life that the drill goes through, in their order.

Whatever goes wrong in it is a commit of the drill's project or happens to its processes: `ml` has
no switch for any of it.
"""

from __future__ import annotations

import json
import os
import signal
import time

from tests.baking import Done
from tests.canary.traffic import processes_of, supervisors
from tests.drill.scene import Drill, Event

LATER, AS_OF, NEXT = "2013-09-01", "2013-11-01", "2013-12-01"
"""When time has moved on: the first flights asked about then, and days that are not known yet."""
SEASONAL = '''
MONTHLY = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)  # a factor for each month there was
BUSY = ("ATL", "BOS", "CLT", "DCA", "FLL", "LAX", "MCO", "MIA", "ORD", "SFO")


class Seasonal(Service):
    """Allows for the season at the busiest airports."""

    def score(self, columns: Columns) -> Floats:
        """Return the probability of each row, shape (n,)."""
        months = columns["scheduled"].astype("M8[M]").astype(int) % 12
        factors = [
            MONTHLY[month] if dest in BUSY else 1.0
            for month, dest in zip(months, columns["dest"], strict=True)
        ]
        return super().score(columns) * factors


Service = Seasonal  # type: ignore[misc]  # takes its base's place
'''
"""Right for every flight there was, and for the drawn rows, whose airports are made up: offline all
is well. The flights of the next month are asked about in production alone."""


def better(drill: Drill) -> Done:
    """Give the model larger trees and more of them, which learn more slowly."""
    larger = {"learning_rate": 0.05, "num_leaves": 63, "most_rounds": 600}
    drill.configure({"config/model.yaml": larger})
    drill.commit("More and larger trees")
    return drill.ml("ship")


def bad(drill: Drill) -> Done:
    """Deliver a release that all gates let through, and production does not."""
    service = drill.project.path / "src" / drill.project.package / "service.py"
    service.write_text(service.read_text() + SEASONAL)
    drill.commit("Allow for the season at the busiest airports")
    return drill.ml("ship")


def killed(drill: Drill) -> Done:
    """Kill a rollout and what it rolls out when clients are led to it already."""
    drill.project.run("git", "revert", "--no-commit", "HEAD")
    drill.configure({"config/model.yaml": {"num_leaves": 47}})
    drill.commit("Without the season, and with smaller trees")
    registered = drill.ml("ship", "--until", "register")
    if registered.returncode:
        return registered
    deploy = drill.begin("deploy")
    while deploy.poll() is None and not drill.state()["weight"]:
        time.sleep(0.1)
    time.sleep(1)
    tried = processes_of(drill.project.path, drill.state()["trying"]["digest"])
    for process in [*supervisors(drill.project.path), *tried]:
        os.kill(process, signal.SIGKILL)
    drill.mark("kill -9")
    said = deploy.communicate(timeout=60)[0]
    time.sleep(2)  # with what is left, clients go on asking
    said += drill.ml("status", "--json").stdout
    return Done(deploy.args, deploy.returncode, said, "")


def later(drill: Drill) -> Done:
    """Let two months go by, and have them looked at."""
    drill.ask_about(LATER, AS_OF)
    return drill.ml("monitor", "--as-of", AS_OF)


def renamed(drill: Drill) -> Done:
    """Let the source call a column otherwise, after the champion was made."""
    upstream = {"UPSTREAM": '{"distance": "miles"}'}
    return drill.ml("retrain", "--because", "data", "--as-of", NEXT, env=upstream)


def retrained(drill: Drill) -> Done:
    """Train again, for what monitoring has found."""
    found = json.loads(drill.project.text(DECIDED))
    return drill.ml("retrain", "--because", found["because"], "--as-of", AS_OF)


PROMOTED, BACK = "promoted", "rolled_back"
DECAY = ("retrain monitor feature_drift", "retrain monitor roc_auc")
DECIDED = ".ml/production/monitor/decision.json"
LIFE = (
    Event("first delivery", (PROMOTED, 0), lambda drill: drill.ml("ship")),
    Event("a better model, by canary", (PROMOTED, 0), better, canary=True),
    Event("good offline, bad in production", (BACK, 20), bad, words=("error_share",)),
    Event("supervisor and candidate killed", ("interrupted", 2), killed, words=('"interrupted',)),
    Event("the same command again", (PROMOTED, 0), lambda drill: drill.ml("deploy"), canary=True),
    Event("drift and decay", ("retrain", 10), later, DECAY, DECIDED),
    Event("retrained, by canary", (PROMOTED, 0), retrained, canary=True),
    Event("a schema change upstream", ("stop", 20), renamed, words=("distance",)),
    Event("rollback by hand", (BACK, 0), lambda drill: drill.ml("rollback")),
)
