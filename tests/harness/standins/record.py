"""Stands in for any action: writes down that it was called, and with which inputs."""

import json
import os
from pathlib import Path

call = {
    "action": os.environ["ACTION"],
    "job": os.environ["STANDIN_JOB"],
    "inputs": json.loads(os.environ["INPUTS"]),
}
with (Path(os.environ["STANDIN_RUN"]) / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(call) + "\n")
