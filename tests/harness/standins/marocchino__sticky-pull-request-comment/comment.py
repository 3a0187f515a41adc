"""Stands in for marocchino/sticky-pull-request-comment: a JSON file instead of a pull request.

Refuses what GitHub would refuse: a token that may not write, an empty text, one over the limit.
"""

import json
import os
import sys
from pathlib import Path

from standin import require, state

LONGEST = 65_536  # characters of a comment

require("pull-requests")
event = json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text())
number, header = event["pull_request"]["number"], os.environ["HEADER"]
body = Path(os.environ["FILE"]).read_text()
if not body.strip():
    sys.exit("::error::Either message or path input is required")
if len(body) > LONGEST:
    sys.exit(f"::error::Body is too long (maximum is {LONGEST} characters)")
with state("comments.json", []) as comments:
    for comment in comments:
        if (comment["number"], comment["header"]) == (number, header):
            comment.update(body=body, updates=comment["updates"] + 1)
            break
    else:
        comments.append({"number": number, "header": header, "body": body, "updates": 0})
