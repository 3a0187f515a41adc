"""The digest: SHA-256 over the sorted `sha256  path` lines of what ships."""

from __future__ import annotations

from pathlib import Path

from model_delivery.errors import UserError
from model_delivery.files import sha256_bytes, sha256_file, write_atomic

SUMS = "SHA256SUMS"


def seal(ship: Path) -> str:
    """Write `SHA256SUMS` into a folder and return the folder's digest."""
    text = _lines(ship)
    write_atomic(ship / SUMS, text)
    return sha256_bytes(text.encode())


def verify(ship: Path, digest: str) -> None:
    """Refuse a folder whose bytes are not those that `digest` names.

    Raises
    ------
    UserError
        Naming the first file that was changed, added or removed.
    """
    found = _lines(ship)
    if sha256_bytes(found.encode()) == digest:
        return
    sums = ship / SUMS
    listed = set(sums.read_text().splitlines()) if sums.exists() else set()
    strange = sorted(line.split("  ", 1)[1] for line in listed ^ set(found.splitlines()))
    what = strange[0] if strange else SUMS
    raise UserError(
        f"{ship / what}: does not belong to the candidate {digest[:12]} "
        "(changed, added or removed); refused before loading. Train again, or fetch it again"
    )


def verify_sealed(ship: Path) -> str:
    """Return the digest that a folder's own `SHA256SUMS` gives, after every byte was checked.

    Raises
    ------
    UserError
        When `SHA256SUMS` is missing, or a file was changed, added or removed.
    """
    sums = ship / SUMS
    if not sums.is_file():
        raise UserError(f"{sums}: missing, so nothing says what belongs here; refused to load")
    digest = sha256_file(sums)
    verify(ship, digest)
    return digest


def _lines(ship: Path) -> str:
    files = [path for path in ship.rglob("*") if path.is_file() and path != ship / SUMS]
    lines = [f"{sha256_file(path)}  {path.relative_to(ship).as_posix()}" for path in files]
    return "".join(f"{line}\n" for line in sorted(lines))
