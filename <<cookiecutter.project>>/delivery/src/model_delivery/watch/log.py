"""The prediction log: what batches need of it."""

import datetime as dt
import hmac
import re
from contextlib import suppress
from typing import Any

KEY = "ML_LOG_KEY"
"""The environment variable with the key of hashed columns."""


def keyed_hash(value: object, key: str) -> str:
    """Return 16 hexadecimal digits for a value: of its text the HMAC-SHA256 (RFC 2104)."""
    text = value.isoformat() if isinstance(value, dt.datetime) else str(value)
    return hmac.digest(key.encode(), text.encode(), "sha256").hex()[:16]


def prune(store: Any, root: str, keep_days: int) -> None:
    """Remove the days of a log, a folder in a file system of fsspec, that are too old."""
    oldest = str(dt.datetime.now(dt.UTC).date() - dt.timedelta(days=keep_days))
    for path in store.ls(root, detail=False):
        day = path.rstrip("/").rpartition("/")[2]
        if re.fullmatch(r"\d{4}-\d\d-\d\d", day) and day < oldest:
            with suppress(FileNotFoundError):  # another service removed it
                store.rm(path, recursive=True)
