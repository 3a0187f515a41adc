"""Write requests about real flights, in the order of their schedule; runs in the drill's project.

python flights.py SINCE UNTIL REQUESTS ROWS FILE
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path

from late_departures.sources import extract
from model_delivery.files import write_atomic
from model_delivery.project import find_project


def main(since: str, until: str, requests: str, rows: str, file: str) -> None:
    """Draw flights that no release was trained on, with the columns that a request has."""
    columns = [*find_project().contract.inputs]
    table = extract(dt.date.fromisoformat(until))
    table = table[table["scheduled"] >= since][columns].sample(
        int(requests) * int(rows), random_state=1
    )
    table = table.sort_values("scheduled").assign(
        scheduled=table["scheduled"].dt.strftime("%Y-%m-%dT%H:%M:%S")
    )
    flights = json.loads(table.to_json(orient="records", double_precision=15))
    bodies = [flights[n : n + int(rows)] for n in range(0, len(flights), int(rows))]
    write_atomic(Path(file), json.dumps([json.dumps({"rows": body}) for body in bodies]))


if __name__ == "__main__":
    main(*sys.argv[1:])
