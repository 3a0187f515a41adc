"""An environment on this machine as files.

state.json   what it serves, what it can go back to, what it tries; replaced at once
settings.json config/delivery.yaml as of the last deploy, by which it is served
rollouts/    what supervisors said, and supervisor/, home of the one at work
releases/    installed releases by digest, checked before each start
services/    a log of each running service, and a home with its record
proxy/       the proxy before them; access.log, beside it, is what clients were answered
predictions/ the log of what it answered, unless config/delivery.yaml puts that elsewhere
lock         held while a command changes any of it
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from model_delivery.bundle.launch import Running, end, processes, start
from model_delivery.contract.settings import Delivery, Environment, EnvironmentName
from model_delivery.files import read_json, write_atomic, write_json
from model_delivery.project import Project, find_project
from model_delivery.protocols import UserError
from model_delivery.registry import Event, blob_store, event_log, newest, next_move, shared
from model_delivery.releases import State
from model_delivery.report.render import told
from model_delivery.rollout.proxy import Caddy
from model_delivery.watch.log import KEY, MODEL_LOG, log_key

REHEARSAL = "rehearsal.lock"
REHEARSED = (
    "nothing serves here; `ml doctor --github` lists environments, reviewers and rules to set up; "
    "to serve, give a runner's label to the repository's variable DEPLOY_RUNNER_"
)
SETTINGS = "settings.json"


class BusyError(UserError):
    """Another command changes the target."""


@dataclass(frozen=True)
class Target:
    """One environment of a project on this machine."""

    project: Project
    name: EnvironmentName

    @property
    def folder(self) -> Path:
        return self.project.work / self.name

    @property
    def supervisor(self) -> Path:
        return self.folder / "supervisor"

    @property
    def log(self) -> str:
        """The URI of its prediction log; a relative folder is beside that of all that is made."""
        folder = self.project.delivery.log.folder
        if "://" in folder:
            return f"{folder.rstrip('/')}/{self.name}"
        home = self.project.work.parent / folder / self.name  # checkouts of a machine may share it
        return str((home if folder else self.folder / "predictions").resolve())

    @property
    def settings(self) -> Environment:
        if self.name not in self.project.delivery.environments:
            raise UserError(f"config/delivery.yaml: there is no environment `{self.name}`")
        return self.project.delivery.environments[self.name]

    @property
    def batch(self) -> bool:
        """Whether nothing runs here: files are scored by what was accepted."""
        return self.settings.target == "batch"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"

    @property
    def proxy(self) -> Caddy:
        return Caddy(self.folder / "proxy", self.state().rehearsed or self.settings.port)

    @contextmanager
    def lock(self, first: bool = False, name: str = "lock") -> Iterator[None]:
        """Hold the target; the system lets go of it when this process ends, however it ends.

        Who is `first` ends a `ml deploy --start`, which may wait for what never comes up.
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as handle:
            for patience in (0.1, 0.3, 1.0, 0):  # who was just ended holds it for a moment
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if first:
                        _end_start(path)
                    time.sleep(patience)
            else:
                busy = f"{self.name} is busy: process {path.read_text()} changes it"
                raise BusyError(f"{busy}; wait for it, or end it by `ml rollback`")
            with suppress(OSError):  # a full disk must not keep anyone from stopping
                path.write_text(str(os.getpid()))
            yield

    def state(self) -> State:
        """Return what the environment serves by its own record."""
        path = self.folder / "state.json"
        try:
            return State.model_validate_json(path.read_bytes()) if path.exists() else State()
        except ValueError as error:
            why = "written by a newer version (run that one's `ml`), or damaged"
            raise UserError(f"{path}: {why}: {error}") from error

    def leave_rehearsal(self) -> None:
        """Forget what was only rehearsed here; while that is under way, a BusyError."""
        if self.state().rehearsed:
            with self.lock(name=REHEARSAL), self.lock():
                if self.state().rehearsed:
                    self.clear()  # of one that was killed
                    self.save(State())

    def keep_settings(self) -> None:
        """Let the settings of now be those by which it is served."""
        write_json(self.folder / SETTINGS, self.project.delivery.model_dump(mode="json"))

    def save(self, state: State, **changes: Any) -> None:
        """Make a state, with changes, the truth."""
        state = state.model_copy(update=changes)
        write_atomic(self.folder / "state.json", state.model_dump_json(indent=1))

    def tell(self) -> None:
        """Tell the registry's log what it was not told; where it cannot be told, a later time."""
        state = self.state()  # in a rehearsal the log is the truth, and may refuse it
        if not state.rehearsed and (shared(self.project) or not state.shared):
            with suppress(UserError, OSError):
                self.tell_now()

    def tell_now(self) -> None:
        """Tell the log what it was not told; a UserError says why it did not take it."""
        state = self.state()
        for move in state.untold:
            event_log(self.project).append(partial(self._told, move, state.rehearsed > 0))
        if state.untold:
            self.save(state, untold=[])

    def _told(self, move: Event, alone: bool, events: Sequence[Event]) -> Event:
        """Return the next move, with bytes that jobs can get, though it was registered by hand."""
        move = next_move(move, alone, events)
        here = shared(self.project) and (self.folder / "releases" / move.digest).exists()
        if here and not newest(events, digest=move.digest, environment=None):
            blob = blob_store(self.project).put(move.digest, self.install(move).parent)
            move = move.model_copy(update={"blob": blob})
        return move

    def services(self) -> list[Running]:
        """Return the services that became ready and were not stopped, dead or alive."""
        records = sorted(self.folder.glob("services/*/service.json"))
        return [Running(**read_json(path) | {"home": path.parent}) for path in records]

    def check_ready(self) -> None:
        """Raise a UserError where no service could be run: its port, or the key of its log."""
        self.proxy.check_port()
        if not self.state().rehearsed:
            log_key(self.project.delivery.log)

    def check_serves(self, digest: str) -> None:
        """Raise a UserError unless a release, or "" for any, serves and none is on its way."""
        now, mend = self.state().current, "look at it, and run `ml rollback` if it is bad too"
        if digest and processes(self.supervisor):
            raise UserError(f"{self.name}: another release is on its way; {mend}")
        if now and not now.digest.startswith(digest):
            raise UserError(f"{self.name}: {now.release} is served, not {digest[:12]}; {mend}")

    def install(self, move: Event) -> Path:
        """Return the folder of a release that ships, checked, from the blob store if need be."""
        release = self.folder / "releases" / move.digest
        blob_store(self.project).get(move.digest, move.blob, release)
        return release / "ship"

    def serve(self, move: Event) -> Running:
        """Return a healthy service of a release, checked: the one that runs, else a new one.

        One that runs by other settings of log or variables is none: it may log what is now private.
        """
        settings, key = self.project.delivery, log_key()
        kept = settings.log.model_copy(update={"folder": self.log})
        wanted = {"log": kept.model_dump(), "variables": settings.variables}
        if kept.hashed and not key:  # as in a rollback from elsewhere, which this must not keep
            kept = kept.model_copy(update={"private": [*kept.private, *kept.hashed], "hashed": []})
        actual = wanted | {"log": kept.model_dump()}
        for service in self.services():
            own = read_json(path) if (path := service.home / SETTINGS).exists() else None
            if service.digest == move.digest and own in (actual, wanted) and service.answers():
                return service
        ship, log = self.install(move), self.folder / "services" / f"{move.digest[:12]}.log"
        if actual != wanted:
            hidden = settings.log.hashed
            logging.getLogger(__name__).warning("%s not set: not logged: %s", KEY, hidden)
        logged = {} if self.state().rehearsed else {MODEL_LOG: kept.model_dump_json(), KEY: key}
        service = start(self.project, ship, log, release=move.release, variables=logged)
        write_json(service.home / SETTINGS, actual)
        write_json(service.home / "service.json", asdict(service))
        return service

    def clear(self, kept: Running | None = None) -> None:
        """Stop all services but one, half started ones too; uninstall what is not to be kept."""
        if kept is None:
            self.proxy.stop()  # first: it would lead nowhere
        for home in self.folder.glob("services/*-*"):
            if kept is None or home != kept.home:
                end(home)
        digests = {move.digest for move in self.state().moves}
        for release in self.folder.glob("releases/*"):
            if release.name not in digests:
                shutil.rmtree(release, ignore_errors=True)

    def status(self) -> dict[str, Any]:
        """Return what an environment serves and how it is, asked of the machine; takes no lock.

        `state` is `nothing deployed`, `serving`, `batch`, `rehearsed`, `stopped` or `unhealthy`.
        """
        state, services = self.state(), self.services()
        current, health, problem, note = state.current, "serving", "", ""
        if current is None:
            return {"environment": self.name, "state": "nothing deployed"}
        well = {service.digest: "answers" for service in services if service.answers()}
        own = [move.digest for move in (current, state.trying) if move]
        if self.batch:
            health, note = "batch", f"nothing runs: `ml predict --in {self.name}` scores by it"
        elif state.rehearsed and not services and not processes(self.folder):
            health, note = "rehearsed", f"{REHEARSED}{self.name.upper()}"
        elif not services and not processes(self.folder):
            health, problem = "stopped", "nothing runs"
        elif current.digest not in well:
            health, problem = "unhealthy", f"the service of {current.release} does not answer"
        elif not any(one.answers(self.url) for one in services if one.digest in own):
            health, problem = "unhealthy", f"the proxy does not lead to {current.release}"
        arms = dict[str, str]()
        for move, share in ((current, 1 - state.weight), (state.trying, state.weight)):
            if move and not note:
                arms[move.release] = f"{share:.0%} of requests, {well.get(move.digest, 'silent')}"
        return {
            "environment": self.name,
            "state": health,
            "problem": f"{problem}; run `ml deploy --start --to {self.name}`" if problem else "",
            "note": note,
            **{name: getattr(current, name) for name in ("release", "digest")},
            "since": f"{current.time}, {current.type} by {current.who}",
            "clients": f"{self.url}/predict" if arms else "",
            "installed": [move.release for move in state.moves],
            "untold": len(state.untold),
            "arms": arms,
            **_rollout(state, bool(processes(self.supervisor))),
        }


def _rollout(state: State, going: bool) -> dict[str, str]:
    """Say how a rollout goes, if there is one, and what was decided last, or so far."""
    last, current = state.verdict, state.current
    decided = f"on {last.subject[:12]}: {last.outcome}, {told(last.decisive)}" if last else ""
    if state.trying:
        how = "under way" if going else "interrupted; run `ml rollback`"
        begun = last and last.subject == state.trying.digest  # else of the one before
        return {"rollout": how, "so far": decided if begun else ""}
    if current and current.type == "rolled_back" and not current.reason:
        decided = f"back from {str(current.previous)[:12]}, by hand"
    return {"rollout": "", "decided": decided}


def standing(name: EnvironmentName) -> Target:
    """Return an environment by the settings of its last deploy, for what must work at once.

    What was done to config/delivery.yaml since, in this checkout or another, holds from the next.
    """
    target = Target(find_project(), name)
    with suppress(OSError, ValueError):  # nothing is deployed, or by another version
        settings = Delivery.model_validate_json((target.folder / SETTINGS).read_bytes())
        return Target(target.project.under(delivery=settings), name)
    _ = target.settings
    return target


def _end_start(lock: Path) -> None:
    with suppress(ValueError, psutil.Error):  # its holder may have ended, or not said who it is
        holder = psutil.Process(int(lock.read_text()))
        if "--start" in holder.cmdline():
            holder.terminate()
            holder.wait(10)
