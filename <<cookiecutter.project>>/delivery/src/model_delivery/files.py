"""Files that are either whole or absent, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_delivery.errors import UserError


def sha256_bytes(content: bytes) -> str:
    """Return the SHA-256 of `content` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with one spelling, so that equal values hash alike."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, a crash or a full disk sees the old bytes or the new ones.

    Raises
    ------
    UserError
        When the file cannot be written, for example because the disk is full.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); nothing was changed") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Floats must be finite or None."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    UserError
        When the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg})") from error


@contextmanager
def atomic_folder(destination: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `destination` when the block ends without an error.

    An existing `destination` is kept: folders are named by their content, so it is the same.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}."))
    try:
        yield temporary
        if not destination.exists():
            temporary.rename(destination)
    except OSError as error:
        raise UserError(
            f"{destination}: cannot be written ({error}); nothing was changed"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
