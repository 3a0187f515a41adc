"""An environment on this machine as files.

current      the move (an event) after which it serves what it serves; replaced in one step
moves/       moves the registry's log was not told yet, numbered; the last one is an intent
             until it is `current`
releases/    installed releases by digest, checked before each start
services/    one folder a running service, with its process
proxy/       the proxy before them
lock         held while a command changes any of it
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from model_delivery.digest import verify
from model_delivery.errors import UserError
from model_delivery.files import write_atomic
from model_delivery.project import Project
from model_delivery.registry.champion import open_registry
from model_delivery.registry.log import Event, registration
from model_delivery.rollout.proxy import Caddy

EnvironmentName = Literal["production"]
_RECORD = "release.json"


@dataclass(frozen=True)
class Target:
    """One environment of a project on this machine."""

    project: Project
    name: EnvironmentName

    @property
    def folder(self) -> Path:
        """Where everything about it lies."""
        return self.project.work / self.name

    @property
    def port(self) -> int:
        """The port its clients use."""
        return self.project.delivery.environments[self.name].port

    @property
    def proxy(self) -> Caddy:
        """The proxy before its services."""
        return Caddy(self.folder / "proxy", self.port)

    @contextmanager
    def lock(self, verb: str) -> Iterator[None]:
        """Hold the target; the system lets go of it when this process ends, however it ends.

        Raises
        ------
        UserError
            When another command holds it.
        """
        holder = self.folder / "holder"
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                who = holder.read_text() if holder.exists() else "another command"
                raise UserError(
                    f"{self.name} is busy: {who}; wait for it, or end it: what it leaves undone "
                    "is mended by the next command"
                ) from None
            with suppress(UserError):  # a full disk must not keep anyone from stopping
                write_atomic(holder, f"`ml {verb}`, process {os.getpid()}")
            self.drop_intent()
            yield

    def current(self) -> Event | None:
        """Return the move after which this target serves what it serves."""
        path = self.folder / "current"
        return _event(path) if path.exists() else None

    def intent(self) -> Event | None:
        """Return the move that a command is at, or died at."""
        moves, current = self.moves(), self.current()
        last = _event(moves[-1]) if moves else None
        return None if last is None or (current and current.id == last.id) else last

    def moves(self) -> list[Path]:
        """Return the moves that the log was not told yet, an intent included."""
        return sorted((self.folder / "moves").glob("[0-9]*.json"))

    def intend(self, move: Event) -> None:
        """Write down what is about to be done."""
        number = int(self.moves()[-1].stem) + 1 if self.moves() else 1
        text = move.model_dump_json(indent=1)
        write_atomic(self.folder / "moves" / f"{number:06d}.json", text)

    def point(self, move: Event) -> None:
        """Make an intended move the truth."""
        write_atomic(self.folder / "current", move.model_dump_json(indent=1))

    def drop_intent(self) -> None:
        """Forget a move that did not become true."""
        if self.intent() is not None:
            self.moves()[-1].unlink()

    def tell(self) -> str | None:
        """Tell the registry's log what it was not told; return why it could not be told."""
        for path in self.moves():
            try:
                open_registry(self.project).log.append(partial(_said, _event(path)))
            except UserError as error:
                return str(error)
            path.unlink()
        return None

    def release(self, digest: str) -> Path:
        """Return where a release is, or would be, installed."""
        return self.folder / "releases" / digest

    def installed(self) -> list[Event]:
        """Return the registrations of the installed releases, the last started first."""
        records = list(self.release("").glob(f"[0-9a-f]*/{_RECORD}"))
        records.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return [_event(path) for path in records]

    def install(self, digest: str) -> Path:
        """Return a release's `ship` folder, checked; from the registry if it is not installed.

        Raises
        ------
        UserError
            When it cannot be had, or its bytes are not those of the digest.
        """
        record = self.release(digest) / _RECORD
        if not record.exists():
            registry = open_registry(self.project)
            known = registration(registry.log.events(), digest)
            if known is None:
                raise UserError(f"{digest[:12]}: neither installed nor registered; run `ml deploy`")
            shutil.rmtree(record.parent, ignore_errors=True)
            registry.blobs.get(digest, known.blob, record.parent)
            write_atomic(record, known.model_dump_json(indent=1))
        verify(record.parent / "ship", digest)
        os.utime(record)
        return record.parent / "ship"

    def prune(self) -> None:
        """Uninstall what was started longest ago; the current release and the one before stay."""
        current = self.current()
        kept = [event.digest for event in self.installed()][: self.project.delivery.keep_releases]
        for folder in self.release("").glob("*"):
            if current and folder.name not in (*kept, current.digest, current.previous):
                shutil.rmtree(folder, ignore_errors=True)


def _said(move: Event, _: Sequence[Event]) -> Event:
    return move


def _event(path: Path) -> Event:
    try:
        return Event.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path}: not what `ml` wrote there; restore it") from error
