"""The registry: an append-only log of small immutable events, and bytes by digest.

Events are numbered without gaps and each carries the hash of the one before it: what was deleted
or edited is named. Taking the next number is a compare-and-set.
"""

import getpass
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from random import SystemRandom
from typing import Any, Literal
from uuid import uuid4

from pydantic import Field, ValidationError

from model_delivery import files
from model_delivery.bundle.candidate import git, pack, unpack
from model_delivery.bundle.launch import run
from model_delivery.project import Project
from model_delivery.protocols import Strict, UserError
from model_delivery.report.verdict import Outcome

BRANCH, SEEN = "refs/heads/model-registry", "refs/model-registry/seen"
STORE = "model-store"  # the tag of the pre-release whose assets are the blobs


def _who() -> str:
    with suppress(KeyError, OSError):  # of a user without a name, as in a container
        return os.environ.get("GITHUB_TRIGGERING_ACTOR") or getpass.getuser()
    return f"user {os.getuid()}"


class Event(Strict):
    """One thing that happened to a digest; with an environment, what is accepted there then."""

    type: Literal["registered", "verdict", "promoted", "rolled_back"]
    digest: str
    release: str
    as_of: str
    commit: str | None
    trigger: str
    blob: str  # the SHA-256 of the stored bytes
    verdicts: dict[str, Outcome] = {}
    limits: dict[str, str] = {}  # by gate, the hash of the limits it judged by
    key: str = ""
    snapshot: str = ""
    parameters: dict[str, Any] = {}
    metrics: dict[str, list[float | None]] = {}  # on the test window: value, low, high
    against: str | None = None  # the digest of the champion that the gates judged beside
    reason: str = ""  # why it was rolled back: metric, value, limit; of a candidate, what is odd
    because: str = ""  # what a retraining was started by: schedule, drift, decay, data, person
    environment: str | None = None  # of a move
    previous: str | None = None  # of a move: the digest served before
    rehearsed: bool = False  # accepted, and served nowhere
    who: str = Field(default_factory=_who)
    id: str = Field(default_factory=lambda: uuid4().hex)
    time: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    after: str = ""  # the SHA-256 of the event before, set by the log


@dataclass(frozen=True)
class DirectoryLog:
    """An event log as numbered files in a directory."""

    folder: Path

    def events(self) -> list[Event]:
        """Return all events, the oldest first; a UserError names one that was tampered with."""
        return _checked(self._read()[1])[0]

    def append(self, decide: Callable[[Sequence[Event]], Event]) -> Event:
        """Append, once, what `decide` makes of all events, asked again when others were faster."""
        event, before, refused = None, "none", 0
        while True:
            version, stored = self._read(fresh=True)
            events, after = _checked(stored)
            event = (event and newest(events, id=event.id)) or decide(events)
            if newest(events, id=event.id):  # or a write that was said to have failed
                return event
            text = event.model_copy(update={"after": after}).model_dump_json(indent=1)
            try:
                self._write(version, f"{len(events) + 1:06d}.json", f"{text}\n".encode())
                return event
            except (FileExistsError, UserError) as error:
                refused, before = (refused + 1 if version == before else 1), version
                if refused == 5:  # and no other writer was faster
                    raise UserError(f"no event can be recorded: {error}") from error
            time.sleep(SystemRandom().uniform(0, 0.1 * 2**refused))

    def _read(self, fresh: bool = False) -> tuple[str, dict[str, bytes]]:
        """Return a name for this version of the log, and its files; the newest if `fresh`."""
        paths = sorted(self.folder.glob("[0-9]*.json"))
        return str(len(paths)), {str(path): path.read_bytes() for path in paths}

    def _write(self, version: str, name: str, content: bytes) -> None:
        """Add a file to a version of the log; an error if that is not the newest."""
        files.write_atomic(self.folder / name, content, exclusive=True)


@dataclass(frozen=True)
class GitLog(DirectoryLog):
    """An event log as a branch of a remote, pushed without force; `.` is the repository itself."""

    project: Project
    remote: str

    def _read(self, fresh: bool = False) -> tuple[str, dict[str, bytes]]:
        seen = self._git("for-each-ref", "--format=%(objectname)", SEEN)
        try:  # a branch that is gone comes back with the next event
            version = self._git("ls-remote", self.remote, BRANCH).partition("\t")[0] or seen
            if version != seen:
                self._git("fetch", "--refmap=", "-q", "--no-write-fetch-head", self.remote, BRANCH)
        except UserError as error:
            if fresh or not seen:
                mend = "in a job: is GH_TOKEN set, and did `gh auth setup-git` run before?"
                raise UserError(f"the event log is out of reach: {error}\n{mend}") from error
            version = seen
        if not version:  # what was written before there was a branch
            return "", super()._read()[1]
        history = "log", "-m", "--format=", "--name-only", "--no-renames", "--diff-filter=a"
        edited = self._git(*history, version, "--", "events").splitlines()[-1:]
        if seen and self._git("rev-list", "-1", seen, f"^{version}"):  # by force
            lost = self._git("diff", *history[3:], seen, version, "--", "events").splitlines()
            edited = [*lost, "history"][:1]
        for name in edited:
            mend = f"`git push --force {self.remote} {SEEN}:{BRANCH}` where it was seen before"
            raise UserError(f"{name}: event edited or removed on {BRANCH}; to mend it, {mend}")
        rows = [row.split() for row in self._git("ls-tree", version, "events/").splitlines()]
        batch = self._git("cat-file", "--batch", given="\n".join(row[2] for row in rows))
        texts = re.split(r"(?m)(?:^|\n)[0-9a-f]{40,} \w+ \d+\n", batch)[1:]
        stored = {row[3]: text.encode() for row, text in zip(rows, texts, strict=True)}
        _checked(stored)  # else it does not count as seen
        git(self.project, "update-ref", SEEN, version)  # unless another process here is at it
        return version, stored

    def _write(self, version: str, name: str, content: bytes) -> None:
        rows = self._git("ls-tree", f"{version}:events").splitlines() if version else []
        for path, data in (({} if version else super()._read()[1]) | {name: content}).items():
            blob = self._git("hash-object", "-w", "--stdin", given=data.decode())
            rows.append(f"100644 blob {blob}\t{Path(path).name}")
        events = self._git("mktree", given="\n".join(rows))
        tree = self._git("mktree", given=f"040000 tree {events}\tevents")
        who = "-c", "user.name=ml", "-c", "user.email=ml@localhost"
        parent = ("-p", version) if version else ()
        commit = self._git(*who, "commit-tree", "-m", name, *parent, tree)
        # By its address: git would lock a branch of its own, and leave the lock if it is killed.
        place = "." if self.remote == "." else self._git("remote", "get-url", "--push", self.remote)
        self._git("push", "--quiet", "--no-verify", place, f"{commit}:{BRANCH}")
        self._git("update-ref", SEEN, commit)

    def _git(self, *command: str, given: str = "") -> str:
        options = {"env": os.environ | {"GIT_TERMINAL_PROMPT": "0"}, "timeout": 30}
        form = {"input": given, "encoding": "utf-8", "errors": "replace"}
        return run(["git", *command], self.project.root, **options, **form).removesuffix("\n")


def _checked(stored: dict[str, bytes]) -> tuple[list[Event], str]:
    """Return the events of all files, and the hash of the newest; or name what is wrong."""
    events, after = list[Event](), ""
    for number, (name, content) in enumerate(stored.items(), start=1):
        before, path = (Path(name).with_name(f"{n:06d}.json") for n in (number - 1, number))
        if name != str(path):
            raise UserError(f"{path}: event missing; the log was edited")
        try:
            event = Event.model_validate_json(content)
        except ValidationError as error:
            raise UserError(f"{path}: not an event: restore it, or update `ml`: {error}") from error
        if event.after != after:
            raise UserError(f"{before}: event edited, or {path} inserted; restore what it was")
        after = sha256(content).hexdigest()
        events.append(event)
    return events, after


def newest(events: Sequence[Event], **fields: str | None) -> Event | None:
    """Return the last event whose fields have these values, if there is one."""
    found = (e for e in reversed(events) if all(getattr(e, k) == v for k, v in fields.items()))
    return next(found, None)


def next_move(move: Event, alone: bool, events: Sequence[Event]) -> Event:
    """Return a move; if it is `alone`, of a rehearsal, a UserError where another was newer."""
    last = newest(events, environment=str(move.environment)) if alone else None
    if last and last.digest not in (move.digest, move.previous):
        other = f"{last.release} was accepted meanwhile, by {last.who}"
        raise UserError(f"{move.environment}: {other}; run {move.release} again")
    return move


@dataclass(frozen=True)
class DirectoryBlobs:
    """Candidates as files `<digest>.tar.xz`."""

    folder: Path

    def has(self, digest: str, checksum: str) -> bool:
        """Return whether a digest's blob is there and has these bytes."""
        path = self._path(digest)
        return path.exists() and files.sha256_file(path) == checksum

    def put(self, digest: str, folder: Path) -> str:
        """Store a candidate's folder; return the SHA-256 of the stored bytes."""
        files.write_atomic(self._path(digest), pack(folder))
        return files.sha256_file(self._path(digest))

    def get(self, digest: str, checksum: str, destination: Path) -> None:
        """Make `destination`, unless it is that, what was stored, attested, and nothing else."""
        if not files.changed_files(destination / "ship", digest):
            return
        path = self._path(digest)
        if not DirectoryBlobs.has(self, digest, checksum) and not self.has(digest, checksum):
            raise UserError(f"{path}: missing or tampered with; run `ml deploy` where it was made")
        if os.environ.get("ML_ATTESTED") == "true":  # else this plan of GitHub has none
            repository = os.environ["GITHUB_REPOSITORY"]
            builder = rf"^https://[^/]+/{repository}/\.github/workflows/(deliver|retrain)\.yml@"
            command = ["gh", "attestation", "verify", path.name, "--repo", repository]
            run([*command, "--cert-identity-regex", builder], path.parent)
        with files.temporary_folder(destination.parent) as folder:
            unpack(path, folder)
            files.verify(folder / "ship", digest)
            if destination.exists():
                logging.getLogger(__name__).warning("%s was changed, and is made anew", destination)
                shutil.rmtree(destination)
            files.settle(folder, destination)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.tar.xz"


@dataclass(frozen=True)
class GithubBlobs(DirectoryBlobs):
    """Candidates as assets of a pre-release on GitHub; `folder` keeps what was here once."""

    root: Path

    def has(self, digest: str, checksum: str) -> bool:
        name = self._asset(digest, checksum)
        with files.temporary_folder(self.folder) as folder:
            known = self._gh("download", STORE, f"--pattern={name}", f"--dir={folder}")
            if whole := known and files.sha256_file(folder / name) == checksum:
                (folder / name).replace(self._path(digest))
        return whole

    def put(self, digest: str, folder: Path) -> str:
        checksum = super().put(digest, folder)
        with files.temporary_folder(self.folder) as place:
            asset, sent = place / self._asset(digest, checksum), False
            shutil.copyfile(self._path(digest), asset)
            for pause in (0, 0, 2, 8, 20):  # GitHub may show only later what it was given
                time.sleep(pause)
                if self.has(digest, checksum):
                    return checksum
                sent = sent or self._gh("upload", STORE, str(asset), "--clobber")
                if not sent:
                    self._gh("create", STORE, "--prerelease", "--notes=Models, kept by `ml`.")
        raise UserError(f"{asset.name}: did not arrive in release {STORE}; run it again")

    @staticmethod
    def _asset(digest: str, checksum: str) -> str:
        """Name an asset by its bytes too, so that other bytes of a digest never replace it."""
        return f"{digest}-{checksum[:12]}.tar.xz"

    def _gh(self, *command: str) -> bool:
        """Run a command on releases; return whether what it needs is there."""
        try:
            run(["gh", "release", *command], self.root, timeout=300)
        except UserError as error:
            if not re.search("release not found|no assets|already exists", str(error)):
                raise
            return False
        return True


def event_log(project: Project) -> DirectoryLog:
    """Return what happened to a project's releases; on a branch where it is a git repository."""
    folder, remote = project.work / "registry" / "events", "origin" if shared(project) else "."
    here = (project.root / ".git").exists()
    return GitLog(folder, project, remote) if here else DirectoryLog(folder)


def blob_store(project: Project) -> DirectoryBlobs:
    """Return the bytes it happened to."""
    folder = project.work / "registry" / "blobs"
    return GithubBlobs(folder, project.root) if shared(project) else DirectoryBlobs(folder)


def shared(project: Project) -> bool:
    """Return whether both are shared: by workflows. What a laptop tries is its own affair."""
    return os.environ.get("GITHUB_ACTIONS") == "true" and bool(git(project, "remote"))
