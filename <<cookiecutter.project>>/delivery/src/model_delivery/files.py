"""Files that are either whole or absent, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
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
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); nothing was changed"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, as `fsync` does for a file's bytes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder inside `parent`, gone when the block ends unless `settle` moved it.

    Raises
    ------
    UserError
        When something in the block cannot be written, for example because the disk is full.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=".new-"))
    except OSError as error:
        raise UserError(f"{parent}: cannot be written ({error.strerror})") from error
    try:
        yield folder
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise UserError(f"{parent}: {error.strerror}; nothing was changed") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settle(folder: Path, destination: Path) -> None:
    """Make a finished temporary folder `destination`, in one step.

    An existing `destination` stays: folders are named by their content, so it is the same.
    """
    if not destination.exists():
        folder.chmod(0o755)
        folder.rename(destination)
