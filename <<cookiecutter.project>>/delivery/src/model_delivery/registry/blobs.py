"""Bytes by digest: one compressed tar a candidate, the same bytes for the same content."""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from model_delivery.digest import verify
from model_delivery.errors import UserError
from model_delivery.files import settle, sha256_file, sync_folder, temporary_folder


class BlobStore(Protocol):
    """Where candidates' bytes are kept: a directory; later the assets of a GitHub release."""

    def has(self, digest: str, checksum: str | None) -> bool:
        """Return whether a digest's blob is there and has these bytes."""

    def put(self, digest: str, folder: Path) -> str:
        """Store a candidate's folder; return the SHA-256 of the stored bytes."""

    def get(self, digest: str, checksum: str | None, destination: Path) -> None:
        """Make `destination` the folder that was stored, every byte checked."""


@dataclass(frozen=True)
class DirectoryBlobs:
    """A blob store as files `<digest>.tar.zst` in a directory."""

    folder: Path

    def has(self, digest: str, checksum: str | None) -> bool:
        """Return whether a digest's blob is there and has these bytes."""
        path = self._path(digest)
        return path.exists() and sha256_file(path) == checksum

    def put(self, digest: str, folder: Path) -> str:
        """Store a candidate's folder, in place of an earlier blob of this digest."""
        with temporary_folder(self.folder) as temporary:
            packed = temporary / "blob"
            _pack(folder, packed)
            with packed.open("rb") as stream:
                os.fsync(stream.fileno())
            checksum = sha256_file(packed)
            packed.replace(self._path(digest))
            sync_folder(self.folder)
        return checksum

    def get(self, digest: str, checksum: str | None, destination: Path) -> None:
        """Make `destination` the folder that was stored, unless it exists.

        Raises
        ------
        UserError
            When the blob is missing or has other bytes than the registered ones; nothing is
            unpacked then.
        """
        path = self._path(digest)
        if not self.has(digest, checksum):
            what = "not what was registered (tampered with?)" if path.exists() else "missing"
            raise UserError(f"{path}: {what}; run `ml deploy` where the candidate was trained")
        with temporary_folder(destination.parent) as temporary:
            unpacked = temporary / "blob"
            with (
                pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream,
                tarfile.open(fileobj=stream, mode="r|") as archive,
            ):
                # As an attribute: Debian 12's Python 3.11.2 has no `filter`; the bytes are known.
                archive.extraction_filter = getattr(tarfile, "data_filter", None)
                archive.extractall(unpacked)  # noqa: S202
            verify(unpacked / "ship", digest)
            settle(unpacked, destination)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.tar.zst"


def _pack(folder: Path, destination: Path) -> None:
    """Write a tar that depends on paths and contents only: no times, owners or modes."""
    with (
        pa.CompressedOutputStream(pa.OSFile(str(destination), "wb"), "zstd") as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(member, content)
