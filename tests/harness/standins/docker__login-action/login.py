"""Stands in for docker/login-action: remembers, in this user's home, where one is logged in."""

import json
import os
import sys
from pathlib import Path

if not (os.environ["USERNAME"] and os.environ["PASSWORD"]):
    sys.exit("::error::Username and password required")
file = Path.home() / ".docker" / "config.json"
file.parent.mkdir(exist_ok=True)
settings = json.loads(file.read_text()) if file.exists() else {"auths": {}}
settings["auths"][os.environ["REGISTRY"]] = {}
file.write_text(json.dumps(settings))
