"""Files that are either whole or absent, their hashes, and the digest of a folder that ships."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from model_delivery.protocols import UserError

SUMS = "SHA256SUMS"


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of `value` as JSON with one spelling, so that equal values hash alike."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder inside `parent`, gone when the block ends unless `settle` moved it.

    What killed processes left there a day ago is removed. What the system refuses to write,
    because the disk is full for example, is a UserError.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(".new-*"):
            with suppress(OSError):  # another one removed it
                old, inside = time.time() - 86_400, chain([left], left.rglob("*"))
                if all(path.lstat().st_mtime < old for path in inside):  # a new one is not walked
                    shutil.rmtree(left)
        with TemporaryDirectory(dir=parent, prefix=".new-", ignore_cleanup_errors=True) as name:
            yield Path(name)
    except OSError as error:
        if error.errno not in (errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS):
            raise
        why = f"cannot be written ({error.strerror}); nothing was changed"
        raise UserError(f"{parent}: {why}") from error


@contextmanager
def alone(path: Path, busy: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold a lock, which a child may hold on; where another has it, say so and wait for its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle.fileno()


def settle(folder: Path, destination: Path) -> None:
    """Make a finished folder `destination`, in one step, unless it is there with this content."""
    folder.chmod(0o755)
    try:
        folder.rename(destination)
    except OSError:
        if not destination.exists():
            raise


def write_atomic(path: Path, content: str | bytes, exclusive: bool = False) -> None:
    """Write a file so that a reader, a crash or a full disk sees the old bytes or the new ones.

    An `exclusive` one must not be there, else FileExistsError: of two writers one wins.
    """
    with temporary_folder(path.parent) as folder:
        with (folder / path.name).open("xb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        place = os.link if exclusive else os.replace
        place(folder / path.name, path)
        names = os.open(path.parent, os.O_RDONLY)  # they too must survive a power cut
        try:
            os.fsync(names)
        finally:
            os.close(names)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Floats must be finite or None."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; one that is missing or is not JSON in UTF-8 is a UserError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error


def seal(folder: Path) -> str:
    """Write `SHA256SUMS` and return the digest: SHA-256 of its sorted `sha256  path` lines."""
    write_atomic(folder / SUMS, "".join(f"{line}\n" for line in _sums(folder)))
    return sha256_file(folder / SUMS)


def changed_files(folder: Path, digest: str | None = None) -> list[str]:
    """Return the files of a sealed folder that were changed, added or removed, sorted.

    `SHA256SUMS` is one of them when it is missing, or has not the `digest` asked for.
    """
    sums = folder / SUMS
    if not sums.is_file():
        return [SUMS]
    listed = sums.read_text(errors="replace").splitlines()
    strange = sorted({line[66:] for line in {*listed} ^ {*_sums(folder)}})
    return strange or ([] if digest in (None, sha256_file(sums)) else [SUMS])


def verify(ship: Path, digest: str | None = None) -> str:
    """Return the digest of a sealed folder; a UserError names the first file that was changed."""
    for name in changed_files(ship, digest):
        whose = f"the candidate {digest[:12]}" if digest else "this release"
        why = f"does not belong to {whose} (changed, added or removed); refused before loading"
        raise UserError(f"{ship / name}: {why}. Train again, or deploy another release")
    return sha256_file(ship / SUMS)


def _sums(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS]
    return sorted(f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}" for path in files)
